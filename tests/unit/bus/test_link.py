"""Links: who is greeted, who is refused and in which words, and UP and DOWN in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio

from cachecast.bus.faults import (
    CredentialsError,
    DownError,
    ForbiddenError,
    GarbageError,
    LinkError,
    LoadingError,
    LostError,
    ReplicaError,
    UnfitError,
    UnreachableError,
)
from cachecast.bus.link import Link
from cachecast.bus.resp import Limits
from tests.unit.bus.fake_engine import HELLO, fake_engine

if TYPE_CHECKING:
    from trio.testing import MockClock

    from cachecast.bus.resp import Connection
    from cachecast.bus_config import Primary

QUICK = Limits(connect_limit_s=0.2)


class Owner:
    """What a link's owner hears."""

    def __init__(self) -> None:
        self.news: list[Any] = []

    def options(self) -> dict[str, Any]:
        return {
            "random": lambda: 0.0,
            "on_up": lambda _: self.news.append("UP"),
            "on_down": self.news.append,
        }

    async def wait(self, n: int) -> None:
        while len(self.news) < n:  # noqa: ASYNC110 - the owner's callbacks know no events
            await trio.sleep(0.005)


async def first_fault(link: Link) -> LinkError:
    """Why the first attempts fail."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        while link.fault is None:  # noqa: ASYNC110
            await trio.sleep(0.005)
        nursery.cancel_scope.cancel()
    return link.fault


@pytest.mark.parametrize(
    ("replies", "kind", "words"),
    [
        ({b"HELLO": b"-NOAUTH Authentication required.\r\n"}, CredentialsError, "bus.password"),
        ({b"HELLO": b"-WRONGPASS invalid\r\n"}, CredentialsError, "bus.username"),
        ({b"HELLO": b"-ERR unknown command 'HELLO'\r\n"}, UnfitError, "Redis 7.0"),
        ({b"HELLO": b"-NOPROTO unsupported\r\n"}, UnfitError, "RESP3"),
        ({b"HELLO": b"+OK\r\n"}, UnfitError, "HELLO 3"),
        ({b"HELLO": HELLO.replace(b"7.0.15", b"6.2.14")}, UnfitError, "redis 6.2.14"),
        ({b"HELLO": HELLO.replace(b"$10\r\nstandalone", b"$7\r\ncluster")}, UnfitError, "Cluster"),
        ({b"HELLO": HELLO.replace(b"$6\r\nmaster", b"$5\r\nslave")}, ReplicaError, "bus.sentinel"),
        ({b"INFO": b"-LOADING it\r\n"}, LoadingError, 'save ""'),
        ({b"INFO": b"-NOPERM this user has no permissions to run 'info'\r\n"}, ForbiddenError, "&"),
        ({b"HELLO": b"hang up"}, LostError, "ended the connection"),
        ({b"HELLO": b"HTTP/1.1 400 Bad Request\r\n"}, GarbageError, "TLS on only one side"),
        ({b"HELLO": b""}, UnreachableError, "greeting within 0.2 s"),
    ],
)
async def test_who_cannot_be_used_is_refused_in_words(
    replies: dict[bytes, bytes], kind: type[LinkError], words: str
) -> None:
    """Each names what to do about it."""
    async with fake_engine(replies) as engine:
        link = Link(engine.primary, random=lambda: 0.0, limits=QUICK)

        fault = await first_fault(link)

    assert type(fault) is kind
    assert words in str(fault)
    with pytest.raises(DownError, match="no link"):
        link.send(("PING",), None)


async def test_credentials_database_and_name_are_sent_and_never_shown() -> None:
    """User without a name is the default one."""
    async with fake_engine() as engine:
        primary = msgspec.structs.replace(engine.primary, password="s3cret", database=3)
        link = Link(primary, random=lambda: 0.0, name="node-7")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            await link.wait_up()
            nursery.cancel_scope.cancel()

    hello = [b"HELLO", b"3", b"AUTH", b"default", b"s3cret", b"SETNAME", b"node-7"]
    assert engine.commands[:2] == [hello, [b"SELECT", b"3"]]
    assert "s3cret" not in repr(primary)


async def test_every_loss_is_a_down_and_every_return_an_up() -> None:
    """In turn, with the reason; and the greeting comes before the UP."""
    owner = Owner()
    greeted: list[int] = []

    async def greet(connection: Connection) -> None:
        greeted.append(len(owner.news))
        await connection.call("PING")

    async with fake_engine() as engine, trio.open_nursery() as nursery:
        link = Link(engine.primary, greet=greet, **owner.options())
        nursery.start_soon(link.run)
        for round_ in range(3):
            connection = await link.wait_up()
            await owner.wait(2 * round_ + 1)
            await engine.streams[-1].aclose()
            await owner.wait(2 * round_ + 2)
            assert connection.fault is not None
        await link.wait_up()
        nursery.cancel_scope.cancel()

    assert [news if news == "UP" else type(news) for news in owner.news] == [
        "UP", LostError, "UP", LostError, "UP", LostError, "UP",
    ]  # fmt: skip
    assert greeted == [0, 2, 4, 6]
    assert link.n_ups == 4


async def test_a_greeting_that_is_refused_is_no_up() -> None:
    """What the owner's hello says counts as if the engine had said it."""
    owner = Owner()

    async def greet(connection: Connection) -> None:
        raise UnfitError("not with us")

    async with fake_engine() as engine:
        fault = await first_fault(Link(engine.primary, greet=greet, **owner.options()))

    assert str(fault) == "not with us"
    assert owner.news == []


async def test_calls_under_way_are_answered_before_the_down() -> None:
    """Who is told that the link is down finds nothing still waiting."""
    owner = Owner()
    async with fake_engine({b"GET": b""}) as engine, trio.open_nursery() as nursery:
        link = Link(engine.primary, **owner.options())
        nursery.start_soon(link.run)
        await link.wait_up()
        link.send(("GET", "a"), owner.news.append)
        await engine.streams[-1].aclose()
        await owner.wait(3)
        nursery.cancel_scope.cancel()

    assert owner.news[0] == "UP"
    assert isinstance(owner.news[1], LostError)
    assert owner.news[1] is owner.news[2]


async def test_an_overflow_that_the_engine_counted_explains_a_loss() -> None:
    """The engine hangs up without a word; Valkey counts whom it hung up on."""
    info = b"run_id:%b\r\nclient_output_buffer_limit_disconnections:%d\r\n"

    def reply(n: int, run_id: bytes = b"ab1") -> bytes:
        text = info % (run_id, n)
        return b"$%d\r\n%b\r\n" % (len(text), text)

    async with fake_engine({b"INFO": reply(4)}) as engine, trio.open_nursery() as nursery:
        link = Link(engine.primary, random=lambda: 0.0)
        nursery.start_soon(link.run)
        for n, run_id, is_overflow in (
            (4, b"ab1", False), (5, b"ab1", True), (5, b"ab1", False), (6, b"ab2", False),
        ):  # fmt: skip
            engine.replies[b"INFO"] = reply(n, run_id)
            if link.n_ups:
                await engine.streams[-1].aclose()
                while link.connection is not None:  # noqa: ASYNC110
                    await trio.sleep(0.005)
                assert not link._up.is_set()
            await link.wait_up()
            assert link.about is not None
            assert link.about.has_overflowed is is_overflow
        nursery.cancel_scope.cancel()

    assert link.n_overflows == 1


async def test_attempts_come_ever_more_slowly(autojump_clock: MockClock) -> None:
    """Up to half a second, of which half is drawn: a third of the grace of a new epoch."""
    link = Link(await _closed_port(), random=lambda: 0.0)
    with trio.move_on_after(20):
        await link.run()

    assert isinstance(link.fault, UnreachableError)
    assert "Connection refused" in str(link.fault)
    assert 70 < link.n_failures < 90


async def _closed_port() -> Primary:
    async with fake_engine() as engine:
        return engine.primary
