"""permessage-deflate where it is offered: Chromium with pusher-js, and a client of another make."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.witness import MSGPACK, Witness
from tests.e2e.world import COMPRESSING, MAIN, Credentials, fresh

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.clients import Backend, JsClient
    from tests.e2e.server import ServerProcess

AGREED = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"


@pytest.mark.parametrize(("app", "agreed"), [(COMPRESSING, AGREED), (MAIN, None)])
def test_a_page_hears_everything_of_an_app_that_compresses(
    app: Credentials,
    agreed: str | None,
    open_page: Callable[..., JsClient],
    open_backend: Callable[..., Backend],
    server: ServerProcess,
) -> None:
    """Live, cached, encrypted, from another page, small and large; a page offers it always."""
    backend = open_backend(server, app)
    first, second = (open_page(backend=backend, user_id=user, encryption=True) for user in "ab")
    cache, secret = fresh("private-cache-"), fresh("private-encrypted-cache-")
    values = ["tick", "ü €" * 400, [{"price": number / 4} for number in range(200)]]
    for channel in (cache, secret):
        first.subscribe(channel)
    for value in values:
        for channel in (cache, secret):
            backend.trigger(channel, "tick", value)
    for number, value in enumerate(values, 1):
        for channel in (cache, secret):
            assert first.wait_event(channel, "tick", nth=number) == value

    for channel in (cache, secret):
        second.subscribe(channel)
        assert second.wait_event(channel, "tick") == values[-1]
    second.trigger(cache, "client-hello", values[1])
    assert first.wait_event(cache, "client-hello") == values[1]

    said = first.wait(lambda event: event["on"] == "extensions")
    assert said["text"] == agreed


@pytest.mark.parametrize("subprotocol", [None, MSGPACK])
def test_a_client_of_another_make_speaks_compressed_both_ways(
    subprotocol: str | None, server: ServerProcess, open_backend: Callable[..., Backend]
) -> None:
    """It compresses all that it says; what it hears is inflated by its own hands."""
    backend = open_backend(server, COMPRESSING)
    channel = fresh("private-")
    with (
        Witness(server, COMPRESSING, subprotocol=subprotocol) as teller,
        Witness(server, COMPRESSING, subprotocol=subprotocol) as hearer,
    ):
        assert teller.extensions == ["permessage-deflate"]
        for client in (teller, hearer):
            client.subscribe(channel)
        for text in ("a", "ü €" * 400):
            teller.send("client-hello", text, channel=channel)
            assert hearer.wait("client-hello")["data"] == text
            backend.trigger(channel, "tick", text)
            for client in (teller, hearer):
                assert client.wait("tick")["data"] == text
