"""Webhooks as an application receives them: over HTTP, verified by the npm `pusher` library."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.clients import Backend, JsClient
from tests.e2e.program import PATIENCE_S, Event, Program
from tests.e2e.server import ServerProcess
from tests.e2e.witness import Witness
from tests.e2e.world import MAIN, NEW_KEY, OLD_KEY, fresh, write_config

if TYPE_CHECKING:
    from collections.abc import Iterator

#: It swallows a page reload (section 7).
GRACE_S = 3.0

#: When the end of a channel is told, and what a slow machine may add.
VACATED_WITHIN_S = GRACE_S + PATIENCE_S


class Hooks:
    """An app of a server that tells the backend about it."""

    def __init__(self, program: Program, backend: Backend) -> None:
        self.backend = backend
        self._program = program
        self._name = f"webhooks:{backend.name}"

    @property
    def received(self) -> list[Event]:
        return self._program.events[self._name]

    def wait(self, channel: str, name: str, *, within_s: float = PATIENCE_S) -> dict[str, Any]:
        """Wait for the event about a channel; the request that brought it must be valid."""

        def of(webhook: Event) -> list[dict[str, Any]]:
            return [e for e in webhook["events"] if (e["channel"], e["name"]) == (channel, name)]

        webhook = self._program.wait(self._name, lambda w: bool(of(w)), within_s=within_s)
        assert webhook["is_valid"]
        assert abs(webhook["age_ms"]) < 300_000
        return of(webhook)[0]

    def names(self, channel: str) -> list[str]:
        """Of all events about a channel so far, in the order of arrival."""
        return [e["name"] for w in self.received for e in w["events"] if e["channel"] == channel]


@pytest.fixture(scope="module")
def hooked(
    backend_program: Program, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Hooks]]:
    """A server that tells the backend, which is asked to verify."""
    directory = tmp_path_factory.mktemp("hooked")
    # The backend's name is part of its URL, and the URL part of the server's configuration.
    names = {"main": "hooks-main", "rotating": "hooks-rotating"}
    origin = f"http://127.0.0.1:{backend_program.ready['port']}"
    config = write_config(
        directory,
        webhooks=f"{origin}/{names['main']}/webhook",
        rotating_webhooks=f"{origin}/{names['rotating']}/webhook",
    )
    server = ServerProcess(directory, "--config", str(config))
    yield {
        name: Hooks(backend_program, Backend(backend_program, server, app, name=names[name]))
        for name, app in (("main", MAIN), ("rotating", OLD_KEY))
    }
    server.stop()


def test_life_of_a_cache_channel(hooked):
    """Occupied, missed, counted and, three seconds after the last one left, vacated."""
    hooks, channel = hooked["main"], fresh("cache-")
    with Witness(hooks.backend.server) as client:
        client.subscribe(channel)
        hooks.wait(channel, "channel_occupied")
        hooks.wait(channel, "cache_miss")
        assert hooks.wait(channel, "subscription_count")["subscription_count"] == 1
        with Witness(hooks.backend.server) as second:
            second.subscribe(channel)
            second.wait("pusher:cache_miss", channel)
    hooks.wait(channel, "channel_vacated", within_s=VACATED_WITHIN_S)

    names = hooks.names(channel)
    assert names.count("channel_occupied") == 1
    assert names.count("channel_vacated") == 1
    assert names.count("cache_miss") == 1  # once per empty period, however many missed


def test_members_and_client_events_of_pusher_js(hooked, node_clients):
    """member_added, client_event with its user and text, member_removed (section 7)."""
    hooks, channel = hooked["main"], fresh("presence-")
    ann = JsClient(node_clients, hooks.backend, user_id="ann")
    ann.wait_state("connected")
    ann.subscribe(channel)
    assert hooks.wait(channel, "member_added")["user_id"] == "ann"
    ann.trigger(channel, "client-move", {"x": 1})
    event = hooks.wait(channel, "client_event")
    assert event == {
        "name": "client_event",
        "channel": channel,
        "event": "client-move",
        "data": '{"x":1}',
        "socket_id": ann.socket_id,
        "user_id": "ann",
    }
    ann.close()

    assert hooks.wait(channel, "member_removed", within_s=VACATED_WITHIN_S)["user_id"] == "ann"
    hooks.wait(channel, "channel_vacated", within_s=VACATED_WITHIN_S)


def test_page_reload_is_not_told(hooked, node_clients):
    """Back within the grace: neither removed and vacated nor added and occupied again."""
    hooks, fence = hooked["main"], fresh("presence-")
    away_s = GRACE_S
    while away_s >= GRACE_S:  # a machine that stood still in between was no reload
        channel = fresh("presence-")
        first = JsClient(node_clients, hooks.backend, user_id="ann")
        first.wait_state("connected")
        first.subscribe(channel)
        hooks.wait(channel, "member_added")
        left_at = time.monotonic()
        first.close()
        again = JsClient(node_clients, hooks.backend, user_id="ann")
        again.wait_state("connected")
        again.subscribe(channel)
        away_s = time.monotonic() - left_at
    # Whoever leaves later is told of later, so this one comes when ours would have come.
    again.subscribe(fence)
    again.unsubscribe(fence)
    hooks.wait(fence, "channel_vacated", within_s=VACATED_WITHIN_S)

    assert sorted(hooks.names(channel)) == ["channel_occupied", "member_added"]
    again.close()


def test_oldest_key_signs_while_a_key_is_rotated(hooked, open_backend):
    """X-Pusher-Key names the oldest active one, whichever key the client used (section 7)."""
    hooks, channel = hooked["rotating"], fresh("private-")
    with Witness(hooks.backend.server, NEW_KEY) as client:
        client.subscribe(channel)
        hooks.wait(channel, "channel_occupied")

    assert {webhook["key"] for webhook in hooks.received} == {OLD_KEY.key}
    assert all(webhook["is_valid"] for webhook in hooks.received)
