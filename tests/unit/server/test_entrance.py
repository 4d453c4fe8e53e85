"""The door, without anybody behind it; tests of the inspector and the relay go through it."""

from __future__ import annotations

from collections import Counter

import pytest

from cachecast.server.entrance import Entrance, InspectorTerms, json_response
from cachecast.server.http_messages import Request

TOKEN = "t0ken-of-the-tests-1234"


class Door(Entrance):
    """One that tells what got through."""

    def _act(self, name, request):
        return json_response(f"did {name}")

    def _read(self, name, request):
        return json_response(f"read {name}")


@pytest.mark.parametrize(
    ("method", "path", "token", "status"),
    [
        ("GET", "/inspector/api/anything", TOKEN, 200),
        ("POST", "/inspector/api/publish", TOKEN, 200),
        ("GET", "/inspector/api/publish", TOKEN, 405),
        ("POST", "/inspector/api/anything", TOKEN, 405),
        ("POST", "/inspector", TOKEN, 405),
        ("GET", "/inspector/session", TOKEN, 405),
        ("GET", "/inspector/else", TOKEN, 404),
        ("GET", "/inspector/api/anything", "wrong", 401),
        ("POST", "/inspector/api/publish", "wrong", 401),
    ],
)
def test_who_may_go_on_is_said_before_anything_is_looked_at(method, path, token, status):
    refusals = Counter()
    headers = {b"host": b"127.0.0.1:1", b"authorization": b"Bearer " + token.encode()}
    door = Door(InspectorTerms(TOKEN), lambda: 0.0, lambda: 0.0, refusals)
    answer = door.answer(
        Request(method, path, "", headers, b"", keeps_alive=True, is_upgrade=False)
    )
    assert answer.status == status
    assert any(line.startswith("Content-Security-Policy: ") for line in answer.headers)
    assert refusals == ({} if status == 200 else {f"inspector {status}": 1})
