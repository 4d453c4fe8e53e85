"""Options that several commands take are the same for each."""

from __future__ import annotations

from cachecast.cli.bus import check
from cachecast.cli.serve import serve_command


def test_where_the_engine_is_is_said_alike_to_every_command() -> None:
    """Whoever has found out with `bus check` can paste it behind `serve`."""
    said = [
        {option.name: option.help for option in command.params if "bus" in (option.name or "")}  # type: ignore[attr-defined]
        for command in (check, serve_command)
    ]

    assert said[0] == said[1]
    assert len(said[0]) == 7
