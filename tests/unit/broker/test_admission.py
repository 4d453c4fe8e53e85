"""Who may connect, and what the others are told."""

from __future__ import annotations

import msgspec
import pytest

from cachecast.broker.admission import (
    check_protocol_version,
    check_request,
    find_hub,
    find_own_hub,
    find_secret,
)
from cachecast.config import BrokerConfig
from cachecast.errors import AuthError, BadRequestError, RefusedError
from cachecast.testing import TEST_APP, open_test_broker

KEY = TEST_APP.key


def _app(**fields):
    return msgspec.structs.replace(TEST_APP, **fields)


@pytest.mark.parametrize(("text", "number"), [(None, None), ("4", 4), ("7", 7), ("07", 7)])
def test_protocol_versions_that_are_fine(text, number):
    assert check_protocol_version(text) == number


@pytest.mark.parametrize(
    ("text", "code"),
    [("3", 4007), ("8", 4007), ("7" * 5_000, 4007), ("", 4006), ("7 ", 4006),
      ("+7", 4006), ("²", 4006)],
)  # fmt: skip
def test_protocol_versions_that_are_not(text, code):
    """A number of any length is refused at once: Python would take its time to read it."""
    with pytest.raises(RefusedError) as caught:
        check_protocol_version(text)

    assert caught.value.close_code == code
    assert len(caught.value.message) < 100


def test_a_version_may_be_required():
    with pytest.raises(RefusedError) as caught:
        check_protocol_version(None, is_required=True)

    assert caught.value.close_code == 4008
    assert check_protocol_version("7", is_required=True) == 7


@pytest.mark.parametrize(
    ("fields", "arguments", "code"),
    [
        ({"is_enabled": False, "is_tls_only": True}, {}, 4000),
        ({"is_enabled": False}, {"protocol": "9"}, 4007),
        ({"is_enabled": False}, {}, 4003),
        ({"allowed_origins": ("a.test",)}, {"origin": "https://b.test"}, 4009),
        ({"allowed_origins": ("a.test",)}, {"origin": "null"}, 4009),
        ({"allowed_origins": ("a.test",)}, {"origin": "http://[a.test"}, 4009),
        ({"allowed_origins": ("a.test",)}, {"origin": "https://a.test.evil"}, 4009),
        ({"allowed_origins": ("*.a.test",)}, {"origin": "https://a.test"}, 4009),
        ({"allowed_origins": ("A.test",)}, {"origin": "https://a.TEST:444"}, None),
        ({"allowed_origins": ("a.test",)}, {"origin": "https://["}, 4009),
        ({"allowed_origins": ("*",)}, {"origin": "https://[a.test"}, 4009),
        ({"allowed_origins": ("a.test",)}, {"origin": ""}, 4009),
        ({"allowed_origins": ("a.test",)}, {"origin": None}, None),
        ({"allowed_origins": ("null",)}, {"origin": "null"}, None),
        ({"allowed_origins": ("null",)}, {"origin": "https://null"}, 4009),
        ({"allowed_origins": ("null",)}, {"origin": "file://"}, 4009),
        ({"allowed_origins": ("file://",)}, {"origin": "file://"}, None),
        ({"allowed_origins": ("file://",)}, {"origin": "file://host"}, 4009),
        ({"allowed_origins": ("file://",)}, {"origin": "null"}, 4009),
        ({"allowed_origins": ("*",)}, {"origin": "null"}, None),
    ],
)
async def test_who_is_admitted(autojump_clock, fields, arguments, code):
    """TLS comes first: a client that comes back with it may meet the next obstacle then."""
    async with open_test_broker(BrokerConfig(apps=(_app(**fields),))) as broker:
        given = {"protocol": "7", "origin": None, "is_tls": False} | arguments
        if code is None:
            assert broker.clients.admit(KEY, **given).id == TEST_APP.id
            return
        with pytest.raises(RefusedError) as caught:
            broker.clients.admit(KEY, **given)

        assert caught.value.close_code == code
        assert broker.statistics().apps[0].refusals == {str(code): 1}


@pytest.mark.parametrize(
    ("fields", "code", "text"),
    [
        ({"cluster": "eu", "is_tls_only": True}, 4001, "App {id} not in this cluster."),
        ({"is_tls_only": True, "is_enabled": False}, 4000, "Application only accepts SSL conn"),
        ({"is_enabled": False}, 4003, "Application disabled"),
    ],
)  # fmt: skip
async def test_a_request_and_a_connection_are_refused_for_the_same_reasons(
    autojump_clock, fields, code, text
):
    """In the words that each side knows."""
    async with open_test_broker(BrokerConfig(apps=(_app(**fields),))) as broker:
        hub = find_hub(broker.hubs, TEST_APP.id)
        with pytest.raises(RefusedError) as by_http:
            check_request(hub, None, is_tls=False)
        with pytest.raises(RefusedError) as by_socket:
            broker.clients.admit(KEY, "7", None, is_tls=False)

        assert by_http.value.message.startswith(text.format(id=TEST_APP.id))
        assert (by_http.value.http_status, by_socket.value.close_code) == (403, code)


async def test_who_is_not_here_is_unknown(autojump_clock):
    """An embedder is told so of an app in another cluster, too; a request has to sign first."""
    other = _app(id="other", key="other-key", cluster="eu")
    async with open_test_broker(BrokerConfig(apps=(TEST_APP, other))) as broker:
        for find in (
            lambda: find_hub(broker.hubs, "nobody"),
            lambda: find_own_hub(broker.hubs, "nobody", None),
            lambda: find_own_hub(broker.hubs, "other", None),
        ):
            with pytest.raises(BadRequestError, match="Unknown app") as caught:
                find()
            assert caught.value.http_status == 404
        hub = find_own_hub(broker.hubs, TEST_APP.id, "any")
        by_key = broker.clients.find_hub

        assert find_secret(hub, by_key, KEY) == TEST_APP.secret.encode()
        assert find_secret(hub, by_key, "nobody") is None
        with pytest.raises(AuthError, match="Not authorized for that app") as refused:
            find_secret(hub, by_key, "other-key")
        assert refused.value.http_status == 400
