"""What a parent and its workers say to each other."""

from __future__ import annotations

import msgspec
import pytest

from cachecast.apps import App, Webhook
from cachecast.config import FileConfig
from cachecast.errors import BusError, ConfigError
from cachecast.metrics import Family
from cachecast.server.crossing import Ways
from cachecast.workers.messages import (
    FROM_PARENT,
    FROM_WORKER,
    Ask,
    Beat,
    Brief,
    Failed,
    Order,
    Ready,
    Report,
)

APP = App(
    id="1",
    key="k",
    secret="t0p-s3cr3t",
    webhooks=(Webhook(url="https://a.test/", headers={"X": "y"}),),
)
FAMILY = Family("cachecast_a", "counter", "words", [("cachecast_a_total", {"app": "1"}, 2.0)])


@pytest.mark.parametrize(
    ("message", "union"),
    [
        (Brief(1, FileConfig(apps=(APP,)), (7,), Ways(b"k", 0, 8, (9,))), FROM_PARENT),
        (Order(15), FROM_PARENT),
        (Ask(), FROM_PARENT),
        (Ready(), FROM_WORKER),
        (Failed("words"), FROM_WORKER),
        (Beat(is_ready=False), FROM_WORKER),
        (Report([FAMILY]), FROM_WORKER),
    ],
)
def test_what_is_said_is_what_is_heard(message: msgspec.Struct, union: object) -> None:
    """A whole configuration too, with what has no default."""
    said = msgspec.msgpack.encode(message)
    heard = msgspec.msgpack.decode(said, type=union)

    assert type(heard) is type(message)
    assert msgspec.msgpack.encode(heard) == said


def test_a_brief_can_be_printed() -> None:
    """It holds everybody's secrets."""
    assert "t0p-s3cr3t" not in repr(Brief(1, FileConfig(apps=(APP,)), (7,), Ways(b"k", 0, 8, (9,))))


def test_an_error_arrives_in_its_parts() -> None:
    """So the parent says of it what a node of one process would."""
    error = ConfigError("server.tls_cert", "cannot be read.", "Look.")

    again = Failed.from_error(error).to_error()
    assert isinstance(again, ConfigError)
    assert (again.field, again.rule, again.remedy) == (
        "server.tls_cert",
        "cannot be read.",
        "Look.",
    )
    assert str(Failed.from_error(BusError("no engine")).to_error()) == "no engine"
