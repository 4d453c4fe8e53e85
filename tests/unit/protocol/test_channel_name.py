"""The grammar of channel names (protocol.md 2.1 and 2.2)."""

from __future__ import annotations

import pytest

from cachecast.errors import BadChannelNameError
from cachecast.protocol.channel_name import ChannelName, Kind, is_user_id, parse_channel_name


@pytest.mark.parametrize(
    ("text", "kind", "is_cache"),
    [
        ("news", Kind.PUBLIC, False),
        ("cache-news", Kind.PUBLIC, True),
        ("private-news", Kind.PRIVATE, False),
        ("private-cache-news", Kind.PRIVATE, True),
        ("private-encrypted-news", Kind.ENCRYPTED, False),
        ("private-encrypted-cache-news", Kind.ENCRYPTED, True),
        ("presence-news", Kind.PRESENCE, False),
        ("presence-cache-news", Kind.PRESENCE, True),
        ("#server-to-user-u1", Kind.SERVER_TO_USER, False),
        # Prefixes count from the start and in this order only.
        ("cache-private-x", Kind.PUBLIC, True),
        ("my-cache-x", Kind.PUBLIC, False),
        ("private-x-cache-y", Kind.PRIVATE, False),
        ("encrypted-cache-x", Kind.PUBLIC, False),
        ("private-cache-encrypted-x", Kind.PRIVATE, True),
        ("presence-encrypted-cache-x", Kind.PRESENCE, False),
        ("cache", Kind.PUBLIC, False),
        ("cachex", Kind.PUBLIC, False),
        ("cache-", Kind.PUBLIC, True),
        ("privatex", Kind.PUBLIC, False),
        ("Private-x", Kind.PUBLIC, False),
        ("__proto__", Kind.PUBLIC, False),
        ("a_-=@,.;Z9", Kind.PUBLIC, False),
    ],
)
def test_the_longest_prefix_at_the_start_decides(text: str, kind: Kind, is_cache: bool) -> None:
    """Nothing further back in the name has a meaning."""
    assert parse_channel_name(text) == ChannelName(text, kind, is_cache)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a b",
        "a/b",
        "a\n",
        "\na",
        "a\0",
        "ä",
        "a#b",
        "#",
        "#a",
        "#server-to-user-",
        "#server-to-user-a b",
        "#server-to-user-a\n",
        "##server-to-user-a",
        "a:b",
        "a|b",
        "a?b",
        "\u0661",
    ],
)
def test_what_is_outside_the_grammar_is_refused(text: str) -> None:
    """Also what only ends or begins with something foreign."""
    with pytest.raises(BadChannelNameError, match="Invalid channel name"):
        parse_channel_name(text)


def test_a_name_may_have_two_hundred_characters_and_not_one_more() -> None:
    """Two hundred is what every server library lets through."""
    assert parse_channel_name("a" * 200).text == "a" * 200
    with pytest.raises(BadChannelNameError, match="it has 201 characters, allowed are 1 to 200"):
        parse_channel_name("a" * 201)


def test_an_app_may_allow_fewer_or_more_characters() -> None:
    """The limit is the app's."""
    assert parse_channel_name("a" * 300, 300)
    with pytest.raises(BadChannelNameError):
        parse_channel_name("abcd", 3)


def test_a_refusal_is_not_larger_than_what_caused_it() -> None:
    """A megabyte of name does not come back as a megabyte of error."""
    with pytest.raises(BadChannelNameError) as caught:
        parse_channel_name("a" * 1_000_000)

    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("text", "needs_auth", "is_presence", "is_encrypted", "allows_client_events"),
    [
        ("a", False, False, False, False),
        ("cache-a", False, False, False, False),
        ("private-a", True, False, False, True),
        ("private-cache-a", True, False, False, True),
        ("private-encrypted-a", True, False, True, True),
        ("presence-a", True, True, False, True),
        ("#server-to-user-a", False, False, False, False),
    ],
)
def test_what_follows_from_the_kind(
    text: str, needs_auth: bool, is_presence: bool, is_encrypted: bool, allows_client_events: bool
) -> None:
    """The table of protocol.md 2.1."""
    name = parse_channel_name(text)

    assert name.needs_auth is needs_auth
    assert name.is_presence is is_presence
    assert name.is_encrypted is is_encrypted
    assert name.allows_client_events is allows_client_events


def test_only_a_server_to_user_channel_names_a_user() -> None:
    """The id is what follows the prefix."""
    assert parse_channel_name("#server-to-user-u1").user_id == "u1"
    assert parse_channel_name("private-u1").user_id == ""


def test_users_own_channels_are_hidden_and_no_others() -> None:
    """From counts, lists, webhooks (protocol.md 9.5)."""
    assert parse_channel_name("#server-to-user-u").is_hidden
    assert not parse_channel_name("server-to-user-u").is_hidden
    assert is_user_id("a@b.c,d;e=f-g_H9")
    assert not is_user_id("")
