"""What of a node's limits is one worker's."""

from __future__ import annotations

import pytest

from cachecast.apps import App
from cachecast.config import FileConfig
from cachecast.errors import ConfigError
from cachecast.workers.shares import share_of

APP = App(id="1", key="k", secret="s")
DIVIDED = ("max_connections", "max_cache_entries", "max_cache_bytes", "max_outbox_bytes")


@pytest.mark.parametrize("n_workers", [2, 3, 7])
def test_shares_add_up_to_what_was_configured(n_workers: int) -> None:
    """Also where it cannot be divided evenly."""
    config = FileConfig(apps=(APP,), max_connections=1_000)
    shares = [share_of(config, number, n_workers) for number in range(1, n_workers + 1)]

    for field in DIVIDED:
        parts = [getattr(share, field) for share in shares]
        assert sum(parts) == getattr(config, field)
        assert max(parts) - min(parts) <= 1
    undelivered = [share.apps[0].max_undelivered_bytes for share in shares]
    assert sum(undelivered) == APP.max_undelivered_bytes


def test_what_is_of_one_channel_or_one_connection_is_not_divided() -> None:
    """And neither is what an app may do on all nodes together, nor a limit that is not set."""
    config = FileConfig(apps=(App(id="1", key="k", secret="s", max_connections=10),))
    share = share_of(config, 1, 4)

    divided = {*DIVIDED, "apps"}
    for field in FileConfig.__struct_fields__:
        if field not in divided:
            assert getattr(share, field) == getattr(config, field), field
    assert share.max_connections is None
    assert share.apps[0].max_connections == 10
    assert share.apps[0].max_pending_bytes == config.apps[0].max_pending_bytes


def test_fewer_clients_than_workers_are_refused() -> None:
    """A worker that may have none would be of no use to anybody who comes to it."""
    with pytest.raises(ConfigError, match="max_connections: must be at least 4, is 3: 4 workers"):
        share_of(FileConfig(apps=(APP,), max_connections=3), 1, 4)


def test_a_share_in_which_one_event_does_not_fit_is_refused() -> None:
    """In the words of the limit, and with what it has to do with workers."""
    config = FileConfig(apps=(APP,), max_cache_bytes=30_000)
    config.check()

    with pytest.raises(ConfigError, match=r"max_cache_bytes: of each of 4 workers: .*divided"):
        share_of(config, 1, 4)


def test_an_app_with_a_tiny_ceiling_keeps_a_byte() -> None:
    """Its publishers then wait for one another, as they do anyway."""
    app = App(id="1", key="k", secret="s", max_undelivered_bytes=1)

    assert share_of(FileConfig(apps=(app,)), 2, 2).apps[0].max_undelivered_bytes == 1
