"""What an embedder signs; that a session accepts it stands in test_broker.py."""

from __future__ import annotations

import hashlib
import hmac
import json

import pytest

from cachecast.apps import App, KeyPair
from cachecast.broker import signing
from cachecast.errors import BadRequestError

APP = App(id="1", key="old", secret="old-secret", keys=(KeyPair(key="new", secret="new-secret"),))


def _hmac(secret: str, text: str) -> str:
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()


def test_the_newest_key_signs() -> None:
    """So that a rotation begins with its configuration."""
    answer = signing.authorize_channel(APP, "1.2", "private-a", None, None, None)

    assert answer == {"auth": "new:" + _hmac("new-secret", "1.2:private-a")}


def test_a_member_is_signed_with_what_is_known_of_it() -> None:
    """The text that is signed is the text that is sent."""
    answer = signing.authorize_channel(APP, "1.2", "presence-a", "u", {"n": 1}, None)

    assert json.loads(answer["channel_data"]) == {"user_id": "u", "user_info": {"n": 1}}
    text = "1.2:presence-a:" + answer["channel_data"]
    assert answer["auth"] == "new:" + _hmac("new-secret", text)


@pytest.mark.parametrize("user_data", [{}, {"id": ""}, {"id": 7}])
def test_a_user_needs_an_id(user_data: dict[str, object]) -> None:
    """pusher-js drops anything but a non-empty string (protocol.md 5.1)."""
    with pytest.raises(BadRequestError, match=r"id must be a non-empty string\n$"):
        signing.authenticate_user(APP, "1.2", user_data)


@pytest.mark.parametrize(
    "user_data",
    [{"id": "e:2"}, {"id": "x" * 129}, {"id": "u", "user_info": True}, {"id": "u", "watchlist": 7}],
)
def test_nothing_is_signed_that_the_broker_would_refuse(user_data: dict[str, object]) -> None:
    """The embedder hears it where it can mend it, and not the user's browser."""
    with pytest.raises(BadRequestError, match=r"Invalid user_data: .*\n$"):
        signing.authenticate_user(APP, "1.2", user_data)


@pytest.mark.parametrize("user_info", [True, "x", [1], 0])
def test_user_info_must_be_a_mapping(user_info: object) -> None:
    """As the broker will see it: what has the form of an object in JSON."""
    with pytest.raises(BadRequestError, match=r"user_info is invalid .*\n$"):
        signing.authorize_channel(APP, "1.2", "presence-a", "u", user_info, None)
    assert "user_info" not in signing.authorize_channel(APP, "1.2", "presence-a", "u", None, None)


def test_half_an_emoji_is_signed_as_it_is_sent() -> None:
    """UTF-8 has no form for it, and a signature covers bytes."""
    answer = signing.authorize_channel(APP, "1.2", "presence-a", "u", {"n": "\ud83d"}, None)

    assert json.loads(answer["channel_data"])["user_info"] == {"n": "\ufffd"}
