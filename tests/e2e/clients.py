"""Handles on what runs elsewhere: a pusher-js client, a laravel-echo, an application's backend."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

from tests.e2e.program import PATIENCE_S, Event, Program
from tests.e2e.world import MAIN, MASTER_KEY, Credentials

if TYPE_CHECKING:
    from tests.e2e.server import ServerProcess

_numbers = itertools.count(1)


class Backend:
    """An application's backend: the npm `pusher` library for one app on one server."""

    def __init__(
        self,
        program: Program,
        server: ServerProcess,
        app: Credentials = MAIN,
        *,
        name: str | None = None,
    ) -> None:
        self.program = program
        self.server = server
        self.app = app
        self.name = name or f"b{next(_numbers)}"
        self.url = f"http://127.0.0.1:{program.ready['port']}/{self.name}"
        options = {
            "appId": app.id,
            "key": app.key,
            "secret": app.secret,
            "host": "127.0.0.1",
            "port": server.port,
            "useTLS": server.is_tls,
            "encryptionMasterKeyBase64": MASTER_KEY,
        }
        program.call("open", name=self.name, options=options)

    def trigger(
        self, channels: str | list[str], event: str, data: object, **params: object
    ) -> dict[str, Any]:
        reply = self._call(
            "trigger", channels=channels, event=event, data=data, params=params or None
        )
        return _body(reply)

    def trigger_batch(self, *batch: dict[str, object]) -> dict[str, Any]:
        return _body(self._call("trigger_batch", batch=batch))

    def get(self, path: str, **params: object) -> dict[str, Any]:
        return _body(self._call("get", path=path, params=params))

    def send_to_user(self, user_id: str, event: str, data: object) -> dict[str, Any]:
        return _body(self._call("send_to_user", user_id=user_id, event=event, data=data))

    def terminate(self, user_id: str) -> dict[str, Any]:
        return _body(self._call("terminate", user_id=user_id))

    def _call(self, op: str, **arguments: object) -> dict[str, Any]:
        reply: dict[str, Any] = self.program.call(op, name=self.name, **arguments)
        return reply


def _body(reply: dict[str, Any]) -> dict[str, Any]:
    assert reply["status"] == 200
    body: dict[str, Any] = reply["body"]
    return body


class JsClient:
    """One ``new Pusher(...)``; in Chromium it has a page to itself.

    Args:
        program: where it runs.
        backend: authorizes its channels, signs it in, and knows the server.
        user_id, user_info, watchlist: who it is to the backend.
        key: another than the backend's app's.
        is_forbidden: whether the backend refuses to authorize it.
        encryption: whether to take the build that decrypts.
        options: more for ``new Pusher``.
    """

    def __init__(
        self,
        program: Program,
        backend: Backend,
        *,
        user_id: str = "",
        user_info: object = None,
        watchlist: list[str] | None = None,
        key: str | None = None,
        is_forbidden: bool = False,
        encryption: bool = False,
        options: dict[str, object] | None = None,
    ) -> None:
        self.program = program
        self.name = f"c{next(_numbers)}"
        params = {"user_id": user_id, "user_info": json.dumps(user_info)}
        if watchlist is not None:
            params["watchlist"] = json.dumps(watchlist)
        if is_forbidden:
            params["forbidden"] = "yes"
        self.call(
            "open",
            key=key or backend.app.key,
            encryption=encryption,
            options=connection_options(backend.server)
            | {
                "channelAuthorization": {
                    "transport": "ajax",
                    "endpoint": f"{backend.url}/auth-channel",
                    "params": params,
                },
                "userAuthentication": {
                    "transport": "ajax",
                    "endpoint": f"{backend.url}/auth-user",
                    "params": params,
                },
            }
            | (options or {}),
        )

    def call(self, op: str, **arguments: object) -> Any:
        return self.program.call(op, client=self.name, **arguments)

    @property
    def events(self) -> list[Event]:
        """Everything that this client has reported so far."""
        return self.program.events[self.name]

    @property
    def socket_id(self) -> str:
        socket_id: str = self.call("socket_id")
        return socket_id

    # --- doing

    def subscribe(self, channel: str, *, waits: bool = True) -> None:
        """Subscribe and, unless told otherwise, wait until that has succeeded."""
        self.call("subscribe", channel=channel)
        if waits:
            self.wait_event(channel, "pusher:subscription_succeeded")

    def unsubscribe(self, channel: str) -> None:
        self.call("unsubscribe", channel=channel)

    def trigger(self, channel: str, event: str, data: object) -> None:
        assert self.call("trigger", channel=channel, event=event, data=data) is True

    def sign_in(self) -> None:
        self.call("signin")
        self.wait(lambda e: e["on"] == "message" and e["event"] == "pusher:signin_success")

    def members(self, channel: str) -> dict[str, Any]:
        members: dict[str, Any] = self.call("members", channel=channel)
        return members

    def close(self) -> None:
        """End it as a user who closes the tab does."""
        if self.program.ready["versions"].get("chromium"):
            self.call("close_page")
        else:
            self.call("disconnect")

    # --- seeing

    def wait(self, matches: Any, *, nth: int = 1, within_s: float = PATIENCE_S) -> Event:
        return self.program.wait(self.name, matches, nth=nth, within_s=within_s)

    def wait_event(self, channel: str, event: str, *, nth: int = 1) -> Any:
        """Wait for an event of a channel, as its binders get it, and return its data."""
        return self.wait(
            lambda e: e["on"] == "event" and e["channel"] == channel and e["event"] == event,
            nth=nth,
        )["data"]

    def wait_state(self, state: str, *, nth: int = 1) -> Event:
        """Wait for a state of the connection."""
        return self.wait(lambda e: e["on"] == "state" and e["state"] == state, nth=nth)

    def wait_error(self, code: int | None, *, nth: int = 1) -> Event:
        """Wait for an error with a Pusher code."""

        def matches(event: Event) -> bool:
            error = event.get("error") or {}
            data = error.get("data") or (error.get("error") or {}).get("data") or {}
            return event["on"] == "error" and data.get("code") == code

        return self.wait(matches, nth=nth)

    def seen_on(self, channel: str) -> list[tuple[str, Any]]:
        """Event and data of all that this channel's binders got so far, without the counts."""
        return [
            (event["event"], event["data"])
            for event in self.events
            if event["on"] == "event"
            and event["channel"] == channel
            and event["event"] != "pusher:subscription_count"
        ]

    def messages(self) -> list[Event]:
        """What came over the connection, before pusher-js renamed or dispatched it."""
        return [event for event in self.events if event["on"] == "message"]


def connection_options(server: ServerProcess) -> dict[str, object]:
    """What ``new Pusher`` needs to find a server of one's own."""
    return {
        "cluster": "here",
        "wsHost": "127.0.0.1",
        "wsPort": server.port,
        "wssPort": server.port,
        "forceTLS": server.is_tls,
        "enabledTransports": ["ws", "wss"],
    }
