"""Two configurations side by side, in sentences that show no secret."""

from __future__ import annotations

import msgspec
import pytest

from cachecast.apps import App, KeyPair, Webhook
from cachecast.bus_config import BusConfig
from cachecast.changes import FIXED_SERVER, Changes, compare, reloadable
from cachecast.config import BrokerConfig, FileConfig, ServerConfig

ONE = App(id="1", key="key-one", secret="s3cr3t-one", name="shop")
TWO = App(id="2", key="key-two", secret="s3cr3t-two")
BASE = FileConfig(apps=(ONE, TWO))
HOOK = Webhook(url="https://user:t0ken@hook.test/?t=t0ken", headers={"X": "t0ken"})


def replaced(value, **fields):
    return msgspec.structs.replace(value, **fields)


def test_nothing_is_different_from_itself():
    assert compare(BASE, BASE) == Changes()
    assert compare(BASE, FileConfig(apps=(replaced(ONE), replaced(TWO)))) == Changes()
    assert compare(BASE, replaced(BASE, apps=(TWO, ONE))) == Changes()  # order says nothing


@pytest.mark.parametrize(
    ("new", "sentences"),
    [
        (replaced(BASE, apps=(ONE,)), ["app 2: removed, its clients are closed with 4001"]),
        (replaced(BASE, apps=(ONE, TWO, replaced(TWO, id="3", key="k3"))), ["app 3: added"]),
        (
            replaced(BASE, apps=(ONE, replaced(TWO, is_enabled=False))),
            ["app 2: is_enabled: true -> false", "app 2: its clients are closed with 4003"],
        ),
        (
            replaced(BASE, apps=(ONE, replaced(TWO, max_connections=7, name="till"))),
            ['app 2: name: "" -> "till"', "app 2: max_connections: none -> 7"],
        ),
        (
            replaced(BASE, cache_ttl_s=60.0, max_connections=None, cluster="eu"),
            ['cluster: none -> "eu"', "cache_ttl_s: 1800.0 -> 60.0"],
        ),
        (
            replaced(BASE, server=ServerConfig(drain_s=1.0, log_level="debug")),
            ["server.drain_s: 5.0 -> 1.0", 'server.log_level: "info" -> "debug"'],
        ),
    ],
)
def test_what_changes_is_said_with_what_it_was_and_will_be(new, sentences):
    changes = compare(BASE, new)
    assert (list(changes.made), changes.fixed) == (sentences, ())


@pytest.mark.parametrize(
    ("app", "sentences"),
    [
        (replaced(ONE, keys=(KeyPair(key="new", secret="s3cr3t"),)), ["key new added"]),
        (
            replaced(ONE, key="", secret="", keys=(KeyPair(key="new", secret="s3cr3t"),)),
            ["key new added", "key key-one removed"],
        ),
        (replaced(ONE, secret="s3cr3t-other"), ["secret of key key-one changed"]),
        (replaced(ONE, webhooks=(HOOK,)), ["webhooks: changed"]),
    ],
)
def test_of_secrets_only_that_they_change_is_said(app, sentences):
    changes = compare(BASE, replaced(BASE, apps=(app, TWO)))
    assert list(changes.made) == [f"app 1: {text}" for text in sentences]
    assert "s3cr3t" not in repr(changes)
    assert "t0ken" not in repr(changes)


def test_the_order_of_keys_is_told_for_it_says_which_signs_webhooks():
    pairs = (KeyPair(key="a", secret="x"), KeyPair(key="b", secret="y"))
    apps = [App(id="1", keys=pairs), App(id="1", keys=pairs[::-1])]
    old, new = (FileConfig(apps=(app,)) for app in apps)
    assert compare(old, new).made == ("app 1: order of keys changed",)


def test_what_cannot_change_is_named_and_stays_as_it_is():
    bus = BusConfig(urls=("valkey://:s3cr3t@engine",), password="s3cr3t")
    server = ServerConfig(host="0.0.0.0", port=7000, workers=4, drain_s=1.0)
    changes = compare(BASE, replaced(BASE, server=server, bus=bus))
    assert changes.made == ("server.drain_s: 5.0 -> 1.0",)
    assert changes.fixed == (
        'server.host: "127.0.0.1" -> "0.0.0.0"',
        "server.port: 6001 -> 7000",
        "server.workers: 1 -> 4",
        "bus.urls: changed",
        "bus.password: changed",
    )
    assert "s3cr3t" not in repr(changes)
    served = reloadable(BASE, replaced(BASE, server=server, bus=bus))
    assert served == replaced(BASE, server=ServerConfig(drain_s=1.0))


def test_another_certificate_can_be_served_but_not_whether_there_is_one():
    plain = ServerConfig()
    one = ServerConfig(tls_cert="/one.pem", tls_key="/one.key")
    two = ServerConfig(tls_cert="/two.pem", tls_key="/two.key")
    changes = compare(replaced(BASE, server=one), replaced(BASE, server=two))
    assert [text.partition(":")[0] for text in changes.made] == [
        "server.tls_cert",
        "server.tls_key",
    ]
    assert not changes.fixed
    for old, new in ((plain, one), (one, plain)):
        changes = compare(replaced(BASE, server=old), replaced(BASE, server=new))
        assert not changes.made
        assert len(changes.fixed) == 2
        assert reloadable(replaced(BASE, server=old), replaced(BASE, server=new)).server == old


def test_every_field_is_one_or_the_other():
    """A new field that nobody thought of would change here and not in the node."""
    assert set(FIXED_SERVER) <= set(ServerConfig.__struct_fields__)
    assert {"drain_s", "drain_code", "webhook_flush_s", "exit_limit_s", "trusts_proxy"} | {
        "log_level", "tls_cert", "tls_key",
    } == set(ServerConfig.__struct_fields__) - set(FIXED_SERVER)  # fmt: skip


def test_an_embedders_configuration_has_no_server():
    old, new = BrokerConfig(apps=(ONE,)), BrokerConfig(apps=(ONE,), max_connections=5)
    assert compare(old, new) == Changes(("max_connections: none -> 5",))
    assert reloadable(old, new) == new
