"""Fuzz what reads HTTP API requests: bodies of both types, queries, paths.

Anything is either read, with every limit kept, or refused with 400 or 413. Run it with
``python -m tests.fuzz.fuzz_http_bodies -runs=100000``.
"""

from __future__ import annotations

import json

import atheris
import msgpack

from tests.fuzz.seeds import run

with atheris.instrument_imports(include=["cachecast"]):
    from cachecast.apps import App
    from cachecast.errors import BadRequestError, LimitError
    from cachecast.protocol import auth, http_api

APP = App(id="1", key="k", secret="s")


def test_one_input(data: bytes) -> None:
    """The first byte chooses the reader."""
    choice, body = (data[0], data[1:]) if data else (0, b"")
    is_msgpack = bool(choice & 1)
    text = body.decode("latin-1")
    query = auth.parse_query(text)
    auth.request_text("GET", "/", query.pairs)
    http_api.find_route(text)
    try:
        requests = _read(choice >> 1 & 3, body, query, is_msgpack=is_msgpack)
        http_api.read_channel_info(query)
    except (BadRequestError, LimitError):
        return
    for request in requests:
        assert 0 < len(request.channels) <= APP.max_channels_per_event
        assert 0 < len(request.name) <= APP.max_event_name_length
        assert len(request.data.encode()) <= APP.max_event_bytes


def _read(
    choice: int, body: bytes, query: auth.Query, *, is_msgpack: bool
) -> list[http_api.EventRequest]:
    match choice:
        case 0:
            return [http_api.read_event(body, auth.Query.of([]), APP, is_msgpack=is_msgpack)]
        case 1:
            return http_api.read_batch(body, APP, is_msgpack=is_msgpack)
        case 2:
            return [http_api.read_event(b"", query, APP, is_msgpack=is_msgpack)]
        case _:
            return [http_api.read_plain_event(body, "a", query, APP)]


def _seeds() -> list[bytes]:
    event = {"name": "ev", "data": "d", "channels": ["a", "cache-b"], "socket_id": "1.2"}
    item = {"name": "ev", "data": "d", "channel": "a", "info": "user_count"}
    query = b"name=ev&data=%C3%A4&channels[]=a&channels%5B%5D=b&info=user_count&auth_key=k"
    seeds = [bytes([6 | is_msgpack]) + b"data" for is_msgpack in (0, 1)]
    seeds += [bytes([4]) + query, bytes([4]) + b"/apps/1/channels/presence-a/users"]
    for choice, value in ((0, event), (2, {"batch": [item, item]})):
        seeds.append(bytes([choice]) + json.dumps(value).encode())
        seeds.append(bytes([choice | 1]) + msgpack.packb(value))
    return seeds


if __name__ == "__main__":
    run(test_one_input, _seeds())
