"""An App is checked at start-up and never shows its secrets."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import msgspec
import pytest

from cachecast import apps
from cachecast.apps import App, KeyPair, Webhook
from cachecast.errors import ConfigError


def _app(**fields: Any) -> App:
    return App(**({"id": "1", "key": "key", "secret": "hush"} | fields))


def test_an_app_with_a_key_and_a_secret_is_enough() -> None:
    """Everything else has a default that passes the check."""
    _app().check("apps[0]")


@pytest.mark.parametrize(
    "host",
    ["example.org", "*.example.org", "localhost", "10.0.0.1", "::1", "null", "file://"],
)
def test_an_origin_is_a_host_name_or_a_pattern_of_one(host: str) -> None:
    """What an Origin header can have as its host."""
    _app(allowed_origins=(host,)).check("apps[0]")


@pytest.mark.parametrize("text", ["a+b=c", "a b", "clé", "100%", "%zz", "a&b", "...", "~"])
def test_a_key_or_an_id_may_be_anything_that_survives_a_url(text: str) -> None:
    """Encoded or not, for clients differ."""
    _app(id=text, key=text, secret=text + "%2F?/ #").check("apps[0]")


def test_all_keys_of_an_app_are_valid_at_once_and_the_oldest_comes_first() -> None:
    """That is how a key is rotated; the oldest signs webhooks (protocol.md 7)."""
    app = _app(keys=(KeyPair(key="second", secret="b"),))

    assert [pair.key for pair in app.key_pairs] == ["key", "second"]
    assert app.secret_of("key") == b"hush"
    assert app.secret_of("second") == b"b"
    assert app.secret_of("third") is None
    assert App(id="1", keys=(KeyPair(key="k", secret="s"),)).secret_of("") is None


def test_no_secret_shows_in_a_repr() -> None:
    """A repr ends in logs and tracebacks."""
    hook = Webhook(url="https://example.org/hook", headers={"Authorization": "hush"})
    app = _app(keys=(KeyPair(key="second", secret="hush"),), webhooks=(hook,))

    assert "hush" not in repr(app) + repr(app.keys) + repr(app.webhooks)
    assert "second" in repr(app.keys)
    assert "example.org" in repr(hook)


def test_an_unknown_field_is_an_error() -> None:
    """A misspelt limit must not be a limit that does not exist."""
    with pytest.raises(msgspec.ValidationError, match="max_conections"):
        msgspec.convert({"id": "1", "max_conections": 3}, App)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"id": ""}, "id"),
        ({"id": "a/b"}, "id"),
        ({"key": ""}, "key"),
        ({"secret": ""}, "key"),
        ({"key": "", "secret": ""}, "key"),
        ({"key": "a:b"}, "keys"),
        ({"key": "a/b"}, "keys"),
        ({"key": "a?b"}, "keys"),
        ({"key": "a#b"}, "keys"),
        ({"key": "a\\b"}, "keys"),
        ({"key": ".."}, "keys"),
        ({"key": "a%2Bb"}, "keys"),
        ({"key": " key"}, "keys"),
        ({"key": "key\n"}, "keys"),
        ({"key": "k\x00y"}, "keys"),
        ({"key": "\ufeffkey"}, "keys"),
        ({"secret": "hush\n"}, "keys"),
        ({"secret": "hush\r\n"}, "keys"),
        ({"secret": "\thush"}, "keys"),
        ({"secret": "hu\nsh"}, "keys"),
        ({"secret": "hush\u200b"}, "keys"),
        ({"keys": (KeyPair(key="k", secret="hush "),)}, "keys"),
        ({"id": "a?b"}, "id"),
        ({"id": "%41"}, "id"),
        ({"id": "."}, "id"),
        ({"id": "1\n"}, "id"),
        ({"id": "1\x07"}, "id"),
        ({"keys": (KeyPair(key="", secret="s"),)}, "keys"),
        ({"keys": (KeyPair(key="k", secret=""),)}, "keys"),
        ({"max_channel_name_length": 1_001}, "max_channel_name_length"),
        ({"webhooks": (Webhook(url="ftp://example.org"),)}, "webhooks[0].url"),
        ({"webhooks": (Webhook(url="https://a.org"), Webhook(url="http://"))}, "webhooks[1].url"),
        ({"webhooks": (Webhook(url="http://[::1"),)}, "webhooks[0].url"),
        ({"webhooks": (Webhook(url="http://a.org:http"),)}, "webhooks[0].url"),
        ({"webhooks": (Webhook(url="http://a.org/ "),)}, "webhooks[0].url"),
        ({"webhooks": (Webhook(url="http://a.org/hush\n"),)}, "webhooks[0].url"),
        *[
            ({"webhooks": (Webhook(url="http://a.org", headers=headers),)}, "webhooks[0].headers")
            for headers in (
                {"Authorization": "Bearer hush\n"},
                {"Authorization": "hush\r\nX-Other: 1"},
                {"Authorization": " hush"},
                {"Authorization:": "hush"},
                {"X Token": "hush"},
                {"": "hush"},
                {"X-Töken": "hush"},
                {"X-Token": "hush\u200b"},
            )
        ],
        ({"cluster": ""}, "cluster"),
        ({"cluster": "eu\n"}, "cluster"),
        ({"allowed_origins": ("a.org", "https://a.org")}, "allowed_origins[1]"),
        ({"allowed_origins": ("localhost:3000",)}, "allowed_origins[0]"),
        ({"allowed_origins": ("a.org/path",)}, "allowed_origins[0]"),
        ({"allowed_origins": ("[::1]",)}, "allowed_origins[0]"),
        ({"allowed_origins": ("",)}, "allowed_origins[0]"),
        ({"allowed_origins": ("file:///",)}, "allowed_origins[0]"),
        ({"stall_timeout_s": nan}, "stall_timeout_s"),
        ({"stall_timeout_s": inf}, "stall_timeout_s"),
        *[({field: 0}, field) for field in apps._POSITIVE],
    ],
)
def test_what_cannot_work_is_refused_and_named(fields: dict[str, Any], field: str) -> None:
    """The error names the app, the field and the rule."""
    with pytest.raises(ConfigError) as caught:
        _app(**fields).check("apps[7]")

    assert caught.value.field == f"apps[7].{field}"
    assert caught.value.rule
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("ttl_s", [0, -1, 1800.001, 3600, inf, nan])
def test_no_app_may_promise_a_longer_life_than_thirty_minutes(ttl_s: float) -> None:
    """And the error says why."""
    with pytest.raises(ConfigError, match="outlives 30 minutes") as caught:
        _app(cache_ttl_s=ttl_s).check("apps[0]")

    assert caught.value.field == "apps[0].cache_ttl_s"
    assert caught.value.remedy


@pytest.mark.parametrize("ttl_s", [None, 0.001, 1800, 1800.0])
def test_a_shorter_life_is_allowed(ttl_s: float | None) -> None:
    """Up to and including the thirty minutes themselves."""
    _app(cache_ttl_s=ttl_s).check("apps[0]")


def test_every_numeric_limit_is_checked() -> None:
    """A limit that is added later must be put into the list as well."""
    numeric = {
        field.name
        for field in msgspec.structs.fields(App)
        if field.type in {int, float, int | None, float | None}
    }

    assert numeric - {"cache_ttl_s"} == set(apps._POSITIVE)


def test_there_are_seven_webhook_events() -> None:
    """Those of protocol.md 7."""
    assert len(apps.WEBHOOK_EVENTS) == 7
