"""Hosted Pusher's texts (protocol.md 2.9), and whom they are about."""

import pytest

from cachecast.client.refusals import find_channel, is_about_sign_in, is_nameless_refusal

CHANNELS = ["private-a", "private-a.b", "presence-c", "private-ab"]


@pytest.mark.parametrize(
    ("text", "channel"),
    [
        ("Invalid signature: Expected HMAC SHA256 hex digest of 1.2:private-a, but got ff",
         "private-a"),
        ('Invalid signature: Expected HMAC ... of 1.2:presence-c:{"user_id":"private-a"}, but got',
         "presence-c"),
        ("Existing subscription to channel private-a.b", "private-a.b"),
        ("Existing subscription to channel private-a.", "private-a"),
        ("Invalid channel name 'private-ab'", "private-ab"),
        ("Existing subscription to channel private-abc", None),
        ("Invalid key in subscription auth data: 'KEY'", None),
        ("Cannot broadcast client event (connection not subscribed to channel private-a)", None),
        ("No current subscription to channel private-a, or subscription in progress", None),
        ("", None),
    ],
)  # fmt: skip
def test_the_channel_that_a_refusal_names(text, channel):
    """The first one named, whole; texts about other things name none."""
    assert find_channel(text, CHANNELS) == channel


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Invalid signature: Expected HMAC SHA256 hex digest of 1.2::user::{}, but got ff", True),
        ("Sign-in is not enabled for this app", True),
        ("Connection is already signed in as another user", True),
        ("Invalid user_data: id must be a non-empty string", True),
        ("Invalid signature: Expected HMAC SHA256 hex digest of 1.2:private-a, but got", False),
        ("Missing parameter: data.channel_data, required ... unless it is signed in", False),
    ],
)  # fmt: skip
def test_whether_a_text_is_about_signing_in(text, expected):
    assert is_about_sign_in(text) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Invalid key in subscription auth data: 'KEY'", True),
        ("Invalid format: auth must have the format key:signature", True),
        ("Missing parameter: data.channel", True),
        ("Unsupported event received on socket: x", False),
        ("Client event rejected - only supported on private and presence channels", False),
    ],
)
def test_refusals_without_a_name(text, expected):
    assert is_nameless_refusal(text) is expected
