"""What happens in an app, as webhooks and hooks are told of it."""

from __future__ import annotations

import msgspec

from cachecast.apps import WEBHOOK_EVENTS
from cachecast.events import AppEvent


def test_what_an_event_has_not_got_is_left_out() -> None:
    """Receivers look at whether a key is there; a count of 0 is one (protocol.md 7)."""
    assert msgspec.json.encode(AppEvent("cache_miss", "cache-a")) == (
        b'{"name":"cache_miss","channel":"cache-a"}'
    )
    assert msgspec.json.encode(AppEvent("subscription_count", "a", subscription_count=0)) == (
        b'{"name":"subscription_count","channel":"a","subscription_count":0}'
    )


def test_what_users_said_is_in_no_log() -> None:
    """Where an event is shown, it is by name and channel."""
    event = AppEvent("client_event", "private-a", user_id="ann", event="client-x", data="secret")

    assert repr(event) == "AppEvent('client_event', 'private-a')"


def test_webhooks_may_ask_for_all_seven() -> None:
    """Pusher's page on webhooks lists them."""
    assert len(WEBHOOK_EVENTS) == len(set(WEBHOOK_EVENTS)) == 7
