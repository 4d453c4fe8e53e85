"""A response's bytes, read by h11."""

from __future__ import annotations

import h11
import pytest

from cachecast.server.http_messages import Response, encode_response, text_response

DATE = "Mon, 23 Nov 2026 12:00:00 GMT"


def _read(data: bytes) -> tuple[h11.Response, bytes]:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    head = client.next_event()
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert isinstance(head, h11.Response)
    return head, body


@pytest.mark.parametrize("keeps_alive", [True, False])
def test_a_response_reads_as_it_was_written(keeps_alive: bool) -> None:
    """Status, headers in order, body; and whether the connection stays."""
    response = Response(200, b'{"a":1}', headers=('ETag: "x"', "Age: 3"))

    head, body = _read(encode_response(response, DATE, keeps_alive=keeps_alive))

    headers = dict(head.headers)
    assert (head.status_code, body) == (200, b'{"a":1}')
    assert headers[b"date"] == DATE.encode()
    assert headers[b"content-type"] == b"application/json"
    assert (headers[b"etag"], headers[b"age"]) == (b'"x"', b"3")
    assert (headers.get(b"connection") == b"close") is not keeps_alive


def test_a_304_describes_no_body() -> None:
    """It is about what the client has already (RFC 9110 15.4.5)."""
    head, body = _read(encode_response(Response(304, b"", headers=('ETag: "x"',)), DATE,
                                       keeps_alive=True))  # fmt: skip

    names = {name for name, _ in head.headers}
    assert body == b""
    assert b"etag" in names
    assert not names & {b"content-type", b"content-length"}


def test_a_refusal_is_plain_text_with_a_newline() -> None:
    """As hosted Pusher's are."""
    response = text_response(400, "No")

    assert response.body == b"No\n"
    assert response.content_type.startswith("text/plain")
