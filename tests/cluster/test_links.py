"""Links and functions on real engines: killed, paused, locked, full, flushed, replaced.

What a node would do is in :class:`Node`: hello on every connection, and the functions after it.
"""

from __future__ import annotations

import os
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trustme

from cachecast.bus.attach import attach
from cachecast.bus.calls import Call, Facts
from cachecast.bus.dial import Dialler, introduce, tls_context
from cachecast.bus.faults import (
    CredentialsError,
    EpochError,
    ForbiddenError,
    FullError,
    LinkError,
    LostError,
    MissingFunctionError,
    NoReplicasError,
    ReplicaError,
    SilentError,
    UnreachableError,
)
from cachecast.bus.functions import Functions
from cachecast.bus.link import Link
from cachecast.bus.memory import check_memory
from cachecast.bus.record import read_value
from cachecast.bus.resp import Connection, Limits
from cachecast.bus.shards import Keys
from cachecast.bus_config import BusConfig, Endpoint, Primary
from tests.cluster.engines import ENGINES, MEMORY_ONLY, Plain, Server, binary_of, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

APP = "4242"


@pytest.fixture(params=ENGINES)
def own(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that a test may treat as it likes."""
    with serving(request.param) as server:
        yield server


def primary_of(server: Server) -> Primary:
    return Primary((Endpoint(path=str(server.path)),))


class Node:
    """Two links to one engine, hello on each connection, and what was heard."""

    def __init__(self, primary: Primary, **options: Any) -> None:
        self.to = Functions(Keys())
        self.facts = Facts(node=os.urandom(4).hex(), nonce="1", primaries=("p/0",))
        self.news: list[Any] = []
        self.messages: list[tuple[bytes, bytes]] = []
        self.epoch, self.session, self.number = 0, "", 0
        self.topics: list[bytes] = []
        self.commands = Link(
            primary,
            random=lambda: 0.0,
            greet=self.greet,
            on_up=lambda _: self.news.append("UP"),
            on_down=self.news.append,
            **options,
        )
        self.news_link = Link(
            primary,
            random=lambda: 0.0,
            greet=self.attach,
            on_message=lambda *message: self.messages.append(message),
            **options,
        )

    async def greet(self, connection: Connection) -> None:
        try:
            await self.hello(connection)
        except MissingFunctionError:
            await ask(connection, self.to.load())
            await self.hello(connection)

    async def hello(self, connection: Connection) -> None:
        call = self.to.hello(
            self.facts, seen_epoch=self.epoch, session=self.session, lease_ms=5_000, grace_ms=0
        )
        found = await ask(connection, call)
        if found.session != self.session:
            self.number = 0
        self.epoch, self.session = found.epoch, found.session

    async def attach(self, connection: Connection) -> None:
        if self.topics:
            connection.subscribe(self.topics)
        await connection.call("PING")

    async def publish(self, channel: str, payload: bytes, life_ms: int = 60_000) -> Any:
        self.number += 1
        event = self.to.event(APP, channel, payload, lifetime_ms=life_ms)
        call = self.to.publish(self.epoch, self.session, self.number, [event])
        return await ask(self.commands.require(), call)

    async def read(self, channel: str) -> Any:
        call = self.to.read(self.epoch, [self.to.keys.value(APP, channel)])
        return (await ask(self.commands.require(), call))[1][0]

    async def wait_news(self, n: int) -> None:
        while len(self.news) < n:  # noqa: ASYNC110 - callbacks know no events
            await trio.sleep(0.005)


async def ask(connection: Connection, call: Call[Any]) -> Any:
    return call.read(await connection.call(*call.arguments))


@asynccontextmanager
async def running(primary: Primary, **options: Any) -> AsyncIterator[Node]:
    node = Node(primary, **options)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.commands.run)
        nursery.start_soon(node.news_link.run)
        await node.commands.wait_up()
        await node.news_link.wait_up()
        yield node
        nursery.cancel_scope.cancel()


async def test_a_barrier_behind_a_publish_finds_the_message_handed_over(own: Server) -> None:
    """A thousand times, on two connections of one process."""
    async with running(primary_of(own)) as node:
        link = node.news_link.require()
        link.subscribe((node.to.keys.topic(APP, "cache-x"),))
        await link.call("PING")
        for number in range(1000):
            await node.publish("cache-x", b"%d" % number)
            await link.call("PING")

            assert read_value(node.messages[-1][1])[1].payload == b"%d" % number

    assert len(node.messages) == 1000


async def test_an_engine_that_was_killed_and_restarted_is_a_down_an_up_and_a_new_epoch(
    own: Server,
) -> None:
    """Its functions are loaded again, and everything it held is gone."""
    async with running(primary_of(own)) as node:
        await node.publish("cache-x", b"1")
        assert (await node.read("cache-x")).payload == b"1"
        epoch = node.epoch
        own.kill()
        own.process.wait()
        await node.wait_news(2)
        own.start()
        await node.wait_news(3)

        assert node.epoch > epoch
        assert await node.read("cache-x") is None
        await node.publish("cache-x", b"2")

    assert [type(news) for news in node.news] == [str, LostError, str]


async def test_an_engine_that_stands_still_is_noticed_and_found_again(own: Server) -> None:
    """Not by an error, but by silence; the epoch stays."""
    limits = Limits(silence_s=0.3, beat_s=0.05, connect_limit_s=0.3)
    async with running(primary_of(own), limits=limits) as node:
        await node.publish("cache-x", b"1")
        epoch = node.epoch
        own.kill(signal.SIGSTOP)
        with pytest.raises(SilentError) as caught:
            await node.publish("cache-x", b"2")
        assert caught.value.was_maybe_done
        own.kill(signal.SIGCONT)
        await node.wait_news(3)

        assert node.epoch == epoch
        assert (await node.read("cache-x")).payload in {b"1", b"2"}
        event = node.to.event(APP, "cache-x", b"2", lifetime_ms=60_000)
        found = await ask(
            node.commands.require(), node.to.publish(epoch, node.session, node.number, [event])
        )
        record = await node.read("cache-x")

    assert record.payload == b"2"
    assert found.version == record.version


async def test_subscribers_that_an_operator_kills_come_back(own: Server) -> None:
    """CLIENT KILL TYPE pubsub; the command link does not notice."""
    async with running(primary_of(own)) as node:
        node.topics = [node.to.keys.topic(APP, "cache-x")]
        link = node.news_link.require()
        await node.attach(link)
        assert await node.commands.call("CLIENT", "KILL", "TYPE", "pubsub") == 1
        while node.news_link.connection in {None, link}:  # noqa: ASYNC110
            await trio.sleep(0.005)
        await node.publish("cache-x", b"1")
        await node.news_link.call("PING")

    assert len(node.messages) == 1
    assert node.news == ["UP"]


async def test_an_output_buffer_that_runs_over_is_a_loss_that_valkey_explains(
    own: Server,
) -> None:
    """Redis 7.0 does not count them; the sentence names the limit."""
    async with running(primary_of(own)) as node:
        await node.commands.call("CONFIG", "SET", "client-output-buffer-limit", "pubsub 1 1 0")
        node.topics = [b"t"]
        link = node.news_link.require()
        await node.attach(link)
        await node.commands.call("PUBLISH", "t", b"x" * 2_000_000)
        while node.news_link.connection in {None, link}:  # noqa: ASYNC110
            await trio.sleep(0.005)
        assert isinstance(link.fault, LostError)
        assert "client-output-buffer-limit" in str(link.fault)
        about = node.news_link.about

    assert about is not None
    assert node.news_link.n_overflows == (1 if about.product == "valkey" else 0)


async def test_flushall_is_heard_as_another_epoch(own: Server) -> None:
    """No connection ends, and nothing is published into the void."""
    async with running(primary_of(own)) as node:
        epoch = node.epoch
        await node.commands.call("FLUSHALL")
        with pytest.raises(EpochError):
            await node.publish("cache-x", b"1")
        await node.hello(node.commands.require())
        assert node.epoch > epoch
        await node.publish("cache-x", b"1")


async def test_a_full_engine_takes_no_publish_and_lets_members_leave(own: Server) -> None:
    """What makes room may run."""
    async with running(primary_of(own)) as node:
        enter = node.to.enter(node.epoch, node.session, "m", APP, "ann", name="presence-x")
        await ask(node.commands.require(), enter)
        await node.commands.call("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(FullError, match="maxmemory"):
            await node.publish("cache-x", b"1")
        leave = node.to.leave(node.epoch, node.session, "m", APP, "ann", name="presence-x")
        assert await ask(node.commands.require(), leave) == (True, 0)
        assert await node.read("cache-x") is None
        await ask(node.commands.require(), node.to.beat(node.epoch, node.session, 5_000))


async def test_missing_functions_and_missing_replicas_have_their_own_types(own: Server) -> None:
    """FUNCTION FLUSH by somebody; min-replicas-to-write by the operator."""
    async with running(primary_of(own)) as node:
        await node.commands.call("CONFIG", "SET", "min-replicas-to-write", "1")
        with pytest.raises(NoReplicasError):
            await node.publish("cache-x", b"1")
        await node.commands.call("CONFIG", "SET", "min-replicas-to-write", "0")
        await node.commands.call("FUNCTION", "FLUSH")
        with pytest.raises(MissingFunctionError):
            await node.publish("cache-x", b"1")
        await node.greet(node.commands.require())
        await node.publish("cache-x", b"1")


@pytest.mark.slow
async def test_attaching_fifty_megabytes_does_not_run_over_the_engines_buffer(own: Server) -> None:
    """Which is 4 MB here; 32 MB, or 8 MB for a minute, by default."""
    channels = [(APP, f"cache-{number}") for number in range(5_000)]
    found: list[int] = []
    ends: list[LinkError | None] = []
    async with running(primary_of(own)) as node:
        limit = "pubsub 4mb 4mb 0"
        await node.commands.call("CONFIG", "SET", "client-output-buffer-limit", limit)
        for start in range(0, len(channels), 100):
            node.number += 1
            events = [
                node.to.event(*channel, b"x" * 10_000, lifetime_ms=60_000)
                for channel in channels[start : start + 100]
            ]
            call = node.to.publish(node.epoch, node.session, node.number, events)
            await ask(node.commands.require(), call)
        link = node.news_link.require()
        link.subscribe((b"t",))  # only a subscriber has that limit
        attach(
            link,
            node.to,
            node.epoch,
            channels,
            lambda _, record: found.append(len(record.payload) if record else 0),
            ends.append,
        )
        while not ends:  # noqa: ASYNC110
            await trio.sleep(0.005)
        await link.call("PING")

        assert node.news_link.connection is link
    assert ends == [None]
    assert found == [10_000] * 5_000


async def first_fault(primary: Primary, **options: Any) -> LinkError:
    node = Node(primary, **options)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.commands.run)
        while node.commands.fault is None and not node.news:  # noqa: ASYNC110
            await trio.sleep(0.005)
        nursery.cancel_scope.cancel()
    assert node.commands.fault is not None, "it was let in"
    return node.commands.fault


async def test_passwords_and_users_are_checked_by_the_engine(own: Server) -> None:
    """Without one, with a wrong one, with one that may too little, and with the one of the docs."""
    with Plain(own.path) as plain:
        plain.must("ACL", "SETUSER", "small", "on", ">p", "~*", "&*", "+@all", "-fcall")
        plain.must("ACL", "SETUSER", "deaf", "on", ">p", "~*", "resetchannels", "+@all")
        plain.must(  # the very words of ForbiddenError
            "ACL", "SETUSER", "node", "on", ">p",
            "~cc:*", "&cc:*", "+@all", "-@dangerous", "+info", "+config|get",
        )  # fmt: skip
        plain.must("CONFIG", "SET", "requirepass", "s3cret")
    endpoints = primary_of(own).endpoints

    assert isinstance(await first_fault(Primary(endpoints)), CredentialsError)
    for user, password in (("", "wrong"), ("nobody", "s3cret")):
        fault = await first_fault(Primary(endpoints, username=user, password=password))
        assert isinstance(fault, CredentialsError)
    for user in ("small", "deaf"):
        fault = await first_fault(Primary(endpoints, username=user, password="p"))
        assert isinstance(fault, ForbiddenError)
    for user, password in (("", "s3cret"), ("node", "p")):
        primary = Primary(endpoints, username=user, password=password)
        async with running(primary) as node:
            await node.publish("cache-x", b"1")
            await check_memory(node.commands.require(), "it")


def free_ports(n: int) -> list[int]:
    import socket  # noqa: PLC0415

    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports


@pytest.mark.slow
async def test_tls_with_a_private_authority(tmp_path: Path) -> None:
    """Debian's Redis speaks TLS, the wheel's Valkey does not."""
    authority, (port,) = trustme.CA(), free_ports(1)
    certificate = authority.issue_cert("127.0.0.1")
    files = {name: tmp_path / name for name in ("ca.pem", "cert.pem", "key.pem")}
    authority.cert_pem.write_to_path(str(files["ca.pem"]))
    certificate.private_key_pem.write_to_path(str(files["key.pem"]))
    certificate.cert_chain_pems[0].write_to_path(str(files["cert.pem"]))
    options = (
        "--tls-port", str(port), "--bind", "127.0.0.1", "--tls-auth-clients", "no",
        "--tls-cert-file", str(files["cert.pem"]), "--tls-key-file", str(files["key.pem"]),
        "--tls-ca-cert-file", str(files["ca.pem"]),
    )  # fmt: skip
    (primary,) = BusConfig(urls=(f"rediss://127.0.0.1:{port}",)).primaries()
    with serving("redis", *options):
        async with running(primary, tls=tls_context(str(files["ca.pem"]))) as node:
            await node.publish("cache-x", b"x" * 100_000)
            assert (await node.read("cache-x")).payload == b"x" * 100_000
        fault = await first_fault(primary, tls=tls_context(None))
    assert "bus.tls_ca" in str(fault)


@pytest.mark.slow
async def test_a_sentinel_leads_to_the_new_primary_after_a_failover(tmp_path: Path) -> None:
    """The replica is refused by name, until it has been promoted; then there is a new epoch."""
    ports = free_ports(3)
    binary = binary_of("redis")
    local = ("--bind", "127.0.0.1", *MEMORY_ONLY, "--repl-diskless-load", "swapdb")
    conf = tmp_path / "sentinel.conf"
    conf.write_text(
        f"sentinel monitor mymaster 127.0.0.1 {ports[0]} 1\n"
        "sentinel down-after-milliseconds mymaster 300\n"
    )
    with (
        Server(binary, "--port", str(ports[0]), *local) as old,
        Server(binary, "--port", str(ports[1]), *local, "--replicaof", "127.0.0.1", str(ports[0])),
        Server(binary, "--port", str(ports[2]), "--bind", "127.0.0.1", sentinel=conf),
    ):
        replica = Primary((Endpoint("127.0.0.1", ports[1]),))
        assert isinstance(await first_fault(replica), ReplicaError)
        (primary,) = BusConfig(
            urls=(f"valkey://127.0.0.1:{ports[2]}",), sentinel=("mymaster",)
        ).primaries()
        async with running(primary) as node:
            await node.publish("cache-x", b"1")
            await node.commands.call("WAIT", "1", "1000")
            epoch = node.epoch
            found = await check_memory(node.commands.require(), "primary", ask_replica)
            assert {finding.where for finding in found} == {"primary", str(replica.endpoints[0])}
            await promote(ports[2])
            old.kill()
            with trio.fail_after(30):
                await node.wait_news(3)

            assert node.epoch > epoch
            assert await node.read("cache-x") is None
            await node.publish("cache-x", b"2")
    assert isinstance(await first_fault(primary), UnreachableError)


async def ask_replica(endpoint: Endpoint) -> list[Any]:
    connection = Connection(await Dialler(Primary((endpoint,))).connect())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        await introduce(connection, "", "")
        found = await check_memory(connection, str(endpoint))
        nursery.cancel_scope.cancel()
    return found


async def promote(port: int) -> None:
    """Have the Sentinel fail over once it knows the replica."""
    connection = Connection(await trio.open_tcp_stream("127.0.0.1", port))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        await introduce(connection, "", "")
        with trio.fail_after(30):
            while True:
                try:
                    await connection.call("SENTINEL", "failover", "mymaster")
                    break
                except LinkError:
                    await trio.sleep(0.2)
        nursery.cancel_scope.cancel()
