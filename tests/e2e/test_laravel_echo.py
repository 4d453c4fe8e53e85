"""laravel-echo, unmodified, on pusher-js: Laravel's words for the same channels."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.clients import Backend, connection_options
from tests.e2e.program import PATIENCE_S, Program
from tests.e2e.world import fresh

#: Laravel names events after their PHP class.
LARAVEL_EVENT = "App\\Events\\PriceChanged"

METHODS = [
    ("channel", ""),
    ("private", "private-"),
    ("encryptedPrivate", "private-encrypted-"),
    ("join", "presence-"),
]


class EchoClient:
    """One ``new Echo(...)``, as Laravel's documentation sets it up."""

    def __init__(self, program: Program, backend: Backend, user_id: str, broadcaster: str) -> None:
        self.name = fresh("echo-")
        self._program = program
        options = connection_options(backend.server) | {
            "broadcaster": broadcaster,
            "key": backend.app.key,
            "withoutInterceptors": True,
            "channelAuthorization": {
                "transport": "ajax",
                "endpoint": f"{backend.url}/auth-channel",
                "params": {"user_id": user_id, "user_info": f'{{"name":"{user_id}"}}'},
            },
        }
        self.call("echo_open", options=options, encryption=True)

    def call(self, op: str, **arguments: object) -> Any:
        return self._program.call(op, client=self.name, **arguments)

    def join(self, method: str, channel: str) -> None:
        self.call("echo_join", method=method, channel=channel, event="PriceChanged")
        self.wait(channel, "subscribed")

    def wait(self, channel: str, event: str) -> Any:
        def matches(e: dict[str, Any]) -> bool:
            return e["on"] == "echo" and e["channel"] == channel and e["event"] == event

        return self._program.wait(self.name, matches, within_s=PATIENCE_S).get("data")

    def seen(self, channel: str) -> list[str]:
        return [
            e["event"]
            for e in self._program.events[self.name]
            if e["on"] == "echo" and e["channel"] == channel
        ]

    def close(self) -> None:
        self.call("echo_close")
        if self._program.ready["versions"].get("chromium"):
            self.call("close_page")


@pytest.fixture
def open_echo(clients, backend):
    opened: list[EchoClient] = []

    def open_(user_id: str = "ann", broadcaster: str = "pusher") -> EchoClient:
        opened.append(EchoClient(clients, backend, user_id, broadcaster))
        return opened[-1]

    yield open_
    for echo in opened:
        echo.close()


@pytest.mark.parametrize("broadcaster", ["pusher", "reverb"])
def test_echo_connects_by_either_broadcaster(open_echo, backend, broadcaster):
    """`reverb` is pusher-js with an empty cluster."""
    channel = fresh()
    echo = open_echo(broadcaster=broadcaster)
    echo.join("channel", channel)
    backend.trigger(channel, LARAVEL_EVENT, {"eur": 1.08})

    assert echo.wait(channel, "PriceChanged") == {"eur": 1.08}


@pytest.mark.parametrize(("method", "prefix"), METHODS)
def test_echo_hears_every_kind_of_channel_live_and_keeps_nothing(
    open_echo, backend, method, prefix
):
    """What is no cache channel neither replays nor misses."""
    channel = fresh()
    backend.trigger(prefix + channel, LARAVEL_EVENT, {"eur": 1.07})
    echo = open_echo()
    echo.join(method, channel)
    backend.trigger(prefix + channel, LARAVEL_EVENT, {"eur": 1.08})

    assert echo.wait(channel, "PriceChanged") == {"eur": 1.08}
    assert "miss" not in echo.seen(channel)


@pytest.mark.parametrize(("method", "prefix"), METHODS)
def test_echo_reads_the_cache_through_its_own_names(open_echo, backend, method, prefix):
    """Echo.private('cache-x') is private-cache-x: Echo only prefixes (2.1)."""
    channel = fresh("cache-")
    early = open_echo("ann")
    early.join(method, channel)
    early.wait(channel, "miss")
    backend.trigger(prefix + channel, LARAVEL_EVENT, {"eur": 1.08})
    assert early.wait(channel, "PriceChanged") == {"eur": 1.08}

    late = open_echo("bob")
    late.join(method, channel)
    assert late.wait(channel, "PriceChanged") == {"eur": 1.08}
    assert "miss" not in late.seen(channel)


def test_echo_presence_knows_who_is_here(open_echo, backend):
    """here, joining, leaving and whispers; on a presence-cache channel."""
    channel = fresh("cache-")
    backend.trigger(f"presence-{channel}", LARAVEL_EVENT, {"eur": 1.08})
    ann, bob = open_echo("ann"), open_echo("bob")
    ann.join("join", channel)
    assert ann.wait(channel, "here") == [{"name": "ann"}]  # else bob may come first, elsewhere
    bob.join("join", channel)

    here = bob.wait(channel, "here")
    assert sorted(member["name"] for member in here) == ["ann", "bob"]
    assert ann.wait(channel, "joining") == {"name": "bob"}
    assert bob.wait(channel, "PriceChanged") == {"eur": 1.08}
    bob.call("echo_whisper", channel=channel, data={"typing": True})
    assert ann.wait(channel, "whisper") == {"typing": True}
    bob.call("echo_leave", channel=channel)
    assert ann.wait(channel, "leaving") == {"name": "bob"}


def test_echo_error_hears_of_a_refused_channel(open_echo, open_backend, server, clients):
    """`.error()` fires, which needs the frame on the channel (2.9)."""
    wrong = open_backend(server)
    wrong.program.call(
        "open",
        name=wrong.name,
        options={"appId": "4242", "key": "app-key", "secret": "wrong", "host": "127.0.0.1"},
    )
    channel = fresh()
    echo = EchoClient(clients, wrong, "ann", "pusher")
    echo.call("echo_join", method="private", channel=channel, event="PriceChanged")

    assert echo.wait(channel, "error")["status"] == 401
    echo.close()
