"""The table in the docstring of ``cachecast.errors`` is what the classes say."""

from __future__ import annotations

import inspect

import pytest

from cachecast import errors
from cachecast.errors import (
    ConfigError,
    EngineError,
    LimitError,
    RemoteProtocolError,
    SubscriptionError,
)

_CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, EngineError)
}


def _table() -> dict[str, tuple[int | None, int, bool]]:
    """The rows between the second and the third line of equal signs."""
    lines = (errors.__doc__ or "").splitlines()
    rules = [number for number, line in enumerate(lines) if line.strip().startswith("=====")]
    rows = {}
    for line in lines[rules[1] + 1 : rules[2]]:
        name, code, status, fatal, *_ = line.split()
        rows[name] = (None if code == "null" else int(code), int(status), fatal == "yes")
    return rows


def test_every_answerable_error_stands_in_the_table_with_its_answer() -> None:
    """Whoever reads the table knows what goes over the wire."""
    classes = {
        name: (kind.close_code, kind.http_status, kind.is_fatal)
        for name, kind in _CLASSES.items()
        if issubclass(kind, RemoteProtocolError)
    }

    assert _table() == classes


def test_the_tree_is_drawn_as_it_is() -> None:
    """Each class is indented under the one that it derives from."""
    doc = (errors.__doc__ or "").split("How each is answered")[0]
    above: dict[int, str] = {}
    drawn = {}
    for line in doc.splitlines():
        name = line.split()[0] if line.split() else ""
        if name in _CLASSES and line.startswith("    "):
            depth = len(line) - len(line.lstrip())
            above[depth] = name
            drawn[name] = above.get(depth - 2, "Exception")

    assert drawn == {name: kind.__mro__[1].__name__ for name, kind in _CLASSES.items()}


def test_all_lists_every_class() -> None:
    """``__all__`` is complete and sorted."""
    assert sorted(_CLASSES) == errors.__all__


def test_a_config_error_names_field_rule_and_remedy() -> None:
    """All three stand in the text, and each is an attribute."""
    error = ConfigError("apps[0].id", "must be non-empty.", "Give one.")

    assert str(error) == "apps[0].id: must be non-empty. Give one."
    assert (error.field, error.rule, error.remedy) == (
        "apps[0].id",
        "must be non-empty.",
        "Give one.",
    )
    assert str(ConfigError("port", "is wrong.")) == "port: is wrong."


def test_an_instance_may_carry_another_answer_than_its_class() -> None:
    """The class stays as it is."""
    error = LimitError(
        "slow down", limit=10, actual=11, unit="events", close_code=4301, http_status=429
    )

    assert (error.close_code, error.http_status) == (4301, 429)
    assert (error.limit, error.actual, error.unit) == (10, 11, "events")
    assert (LimitError.close_code, LimitError.http_status) == (None, 413)


def test_a_refused_subscription_carries_what_its_frame_needs() -> None:
    """Type and status of the frame have the values of protocol.md 9.5 by default."""
    error = SubscriptionError("no", channel="private-a")

    assert (error.channel, error.kind, error.status) == ("private-a", "AuthError", 401)
    assert error.message == str(error) == "no"


@pytest.mark.parametrize("kind", _CLASSES.values())
def test_every_error_says_what_it_is(kind: type[EngineError]) -> None:
    """A class without a docstring explains nothing."""
    assert kind.__doc__


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x" * 300, "x" * 300),
        ("x" * 301, "x" * 300 + "…"),
        ("ü" * 150, "ü" * 150),
        ("ü" * 151, "ü" * 150 + "…"),
        ("x" + "ü" * 150, "x" + "ü" * 149 + "…"),
        ("x" * 20 + "\ud800", "x" * 20 + "\ud800"),
        ("\ud800" * 400, "?" * 300 + "…"),
    ],
)
def test_what_is_quoted_is_cut_between_characters(text: str, told: str) -> None:
    """And whoever reads it sees that it was cut."""
    assert errors.clip(text) == told


def test_no_message_tells_a_client_more_than_a_few_hundred_bytes() -> None:
    """Whatever somebody put into it."""
    error = RemoteProtocolError("Unknown thing " + "ü" * 100_000)

    assert len(error.message.encode()) < 610
    assert str(error) == error.message
