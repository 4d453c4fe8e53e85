"""A cached value followed by `EventSource` in Chromium, in a page of another origin."""

from __future__ import annotations

import hashlib
import hmac
import time
from typing import TYPE_CHECKING, Any

from tests.e2e.world import FOLLOWED, fresh

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.clients import Backend, JsClient
    from tests.e2e.server import ServerProcess


def signed(server: ServerProcess, path: str) -> str:
    """The URL that a service gives to its page."""
    query = f"auth_key={FOLLOWED.key}&auth_timestamp={int(time.time())}&auth_version=1.0"
    text = f"GET\n{path}\n{query}".encode()
    signature = hmac.new(FOLLOWED.secret.encode(), text, hashlib.sha256).hexdigest()
    return f"{server.url}{path}?{query}&auth_signature={signature}"


def test_a_page_follows_a_value_from_its_first_to_its_end(
    open_page: Callable[..., JsClient],
    open_backend: Callable[..., Backend],
    server: ServerProcess,
) -> None:
    """None, each newer one with its id, and none again: this app's values live for 6 s."""
    backend = open_backend(server, FOLLOWED)
    page = open_page(backend=backend)
    channel = fresh("cache-")

    def followed(nth: int) -> dict[str, Any]:
        return page.wait(lambda event: event["on"] == "followed", nth=nth)

    page.call("follow", url=signed(server, f"/apps/{FOLLOWED.id}/channels/{channel}/cache"))
    assert followed(1)["event_id"] == ""
    ids = set()
    for nth, value in enumerate(("one", "two"), 2):
        backend.trigger(channel, "tick", value)
        said = followed(nth)
        assert f'"data":"{value}"' in said["data"]
        ids.add(said["event_id"])
    assert len(ids) == 2

    gone = followed(4)

    assert "pusher:cache_miss" in gone["data"]
    assert gone["event_id"] == ""
