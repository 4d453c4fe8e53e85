"""A cached value over HTTP: streams of it, and reads that wait for another one."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
import trio

from cachecast import BrokerConfig
from cachecast.broker.follows import READERS_PER_STEP
from cachecast.server.cached import COMMENT_S, MAX_WAIT_S
from tests.sockets.node import APP_ID, Node, Wire, make_app, message, running, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PATH = "channels/cache-a/cache"
STREAM = "Accept: text/event-stream\r\n"
MISS = [
    "id:",
    "event: pusher:cache_miss",
    'data: {"event":"pusher:cache_miss","channel":"cache-a","data":"{}"}',
]


class Stream:
    """An open stream, and what it says."""

    def __init__(self, wire: Wire, head: str) -> None:
        self.wire = wire
        self.head = head

    async def part(self) -> str | None:
        """The next part of the body; None at its end."""
        size = int((await self.wire.until(b"\r\n")).strip(), 16)
        data = await self.wire.exactly(size + 2)
        return data[:-2].decode() if size else None

    async def event(self) -> list[str] | None:
        """The lines of the next event; comments are passed over."""
        while (part := await self.part()) == ":\n\n":
            pass
        return None if part is None else part.split("\n")[:-2]

    async def value(self) -> Any:
        """The data of the next event, which is a value, and its id."""
        lines = await self.event()
        assert lines is not None
        assert [line.split(":")[0] for line in lines] == ["id", "data"], lines
        return lines[0].removeprefix("id: "), lines[1].removeprefix("data: ")


async def follow(
    node: Node, path: str = PATH, headers: str = "", receives: int | None = None
) -> Stream:
    """Open a stream."""
    wire = await node.connect(receives=receives)
    await wire.say(node.signed("GET", path, headers=STREAM + headers))
    head = (await wire.until(b"\r\n\r\n")).decode()
    assert head.startswith("HTTP/1.1 200 "), head
    return Stream(wire, head)


async def values_to_the_end(stream: Stream) -> list[str]:
    """Numbers of the values that come before the connection ends in the midst of one."""
    heard = []
    try:
        while True:
            heard.append((await stream.value())[1][45:48])
    except EOFError:
        return heard


async def publish(node: Node, data: str, channel: str = "cache-a") -> str:
    """Publish a value; the message that readers get."""
    await node.broker.publish(APP_ID, channel, "tick", data)
    return f'{{"event":"tick","channel":"{channel}","data":"{data}"}}'


def n_readers(node: Node) -> int:
    return node.broker.statistics().apps[0].cache_readers


@asynccontextmanager
async def asking(node: Node, **options: Any) -> AsyncIterator[Wire]:
    """A read that waits, under way."""
    before = n_readers(node)
    wire = await node.connect()
    await wire.say(node.signed("GET", PATH, **options))
    await until(lambda: n_readers(node) == before + 1)
    yield wire
    assert n_readers(node) <= before


# --- streams


async def test_a_stream_is_the_value_and_then_each_newer_one():
    async with running() as node:
        first = await publish(node, "one")
        plain = await node.ask("GET", PATH)
        stream = await follow(node)
        assert "\r\nContent-Type: text/event-stream\r\n" in stream.head
        assert "\r\nCache-Control: no-store\r\n" in stream.head
        assert await stream.value() == (plain.headers["etag"].strip('"'), first)
        for data in ("two", "two", "three"):
            said = await publish(node, data)
            assert (await stream.value())[1] == said
        assert n_readers(node) == 1
        await stream.wire.aclose()
        await until(lambda: not n_readers(node))
        assert not node.broker.delivery._subscribers


async def test_a_reader_is_told_that_there_is_no_value_and_when_there_is_none_any_more():
    async with running(cache_ttl_s=100.0) as node:
        stream = await follow(node)
        assert await stream.event() == MISS
        said = await publish(node, "one")
        assert (await stream.value())[1] == said
        await node.wait(99.0)
        late = await follow(node)
        assert (await late.value())[1] == said
        await node.wait(1.0)
        for one in (stream, late, await follow(node)):
            assert await one.event() == MISS
        said = await publish(node, "one")
        assert (await stream.value())[1] == said


async def test_a_reader_that_comes_back_does_not_get_what_it_has():
    async with running() as node:
        await publish(node, "one")
        event_id, _ = await (await follow(node)).value()
        back = await follow(node, headers=f"Last-Event-ID: {event_id}\r\n")
        assert await back.part() == ":\n\n"
        said = await publish(node, "two")
        assert (await back.value())[1] == said
        behind = await follow(node, headers=f"Last-Event-ID: {event_id}\r\n")
        assert (await behind.value())[1] == said
        await node.broker.reload(BrokerConfig(apps=(make_app(cache_ttl_s=50.0),)))


async def test_events_of_clients_are_no_values():
    async with running(make_app(allows_client_events=True)) as node:
        client = await node.client()
        await client.subscribe_signed("private-cache-a")
        stream = await follow(node, "channels/private-cache-a/cache")
        assert (await stream.event())[1] == "event: pusher:cache_miss"
        await client.send(1, message("client-x", "y", channel="private-cache-a"))
        await client.say("pusher:ping")
        await client.hear("pusher:pong")
        said = await publish(node, "one", "private-cache-a")
        assert (await stream.value())[1] == said


async def test_a_silent_stream_says_that_it_is_there():
    async with running() as node:
        await publish(node, "one")
        stream = await follow(node)
        await stream.value()
        for _ in range(3):
            await node.wait(COMMENT_S)
            assert await stream.part() == ":\n\n"
        await node.wait(node.broker.config.idle_timeout_s)
        await publish(node, "two")
        await stream.value()


async def test_what_waits_for_a_slow_reader_is_the_newest_and_goes_at_its_deadline():
    async with running(make_app(max_event_bytes=200_000), cache_ttl_s=20.0) as node:
        stream = await follow(node, receives=4_096)
        await stream.event()
        for number in range(200):
            await publish(node, f"{number:03}" + "x" * 100_000)
            await until(lambda: not node.broker.follows._found["3", "cache-a"]._is_working)
        assert 0 < node.broker.backlog.n_bytes < 300_000
        await node.wait(20.0)
        heard = await values_to_the_end(stream)
        assert heard == sorted(heard)
        assert "199" not in heard
        assert not node.broker.backlog.n_bytes
        await until(lambda: not n_readers(node))


async def test_every_one_of_many_readers_gets_the_value():
    async with running() as node:
        streams = [await follow(node) for _ in range(2 * READERS_PER_STEP + 7)]
        for stream in streams:
            assert await stream.event() == MISS
        assert len(node.broker.delivery._subscribers) == 1
        said = await publish(node, "one")
        for stream in streams:
            assert (await stream.value())[1] == said


async def test_streams_and_waiting_reads_of_an_app_have_a_limit():
    async with running(make_app(max_cache_readers=2)) as node:
        await publish(node, "one")
        stream = await follow(node)
        async with asking(node, params={"wait": "9"}, headers="If-None-Match: *\r\n") as wire:
            for options in ({"headers": STREAM}, {"params": {"wait": "1"}}):
                answer = await node.ask("GET", PATH, **options)
                assert answer.status == 429
                assert "2 streams and waiting reads" in answer.text
            await publish(node, "two")
            assert (await wire.answer()).status == 200
        await follow(node)
        await stream.wire.aclose()
        await until(lambda: n_readers(node) == 1)
        await follow(node)


async def test_a_stream_counts_as_a_client_and_leaves_publishers_their_room():
    async with running() as node:
        stream = await follow(node)
        await stream.event()
        assert node.server.room.n_websockets == 1
        assert not list(node.server.room.guests())
        node.server.room.max_clients = 0
        answer = await node.ask("GET", PATH, headers=STREAM)
        assert answer.status == 503
        assert (await node.ask("GET", "channels")).status == 200


async def test_the_head_of_a_stream_begins_none():
    async with running() as node:
        answer = await node.ask("HEAD", PATH, headers=STREAM)
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/event-stream"
        assert n_readers(node) == 0


@pytest.mark.parametrize(
    ("path", "options", "status"),
    [
        ("channels/a/cache", {"headers": STREAM}, 400),
        ("channels/a/cache", {"params": {"wait": "1"}}, 400),
        (PATH, {"headers": STREAM, "secret": "wrong"}, 401),
        (PATH, {"params": {"wait": "1"}, "secret": "wrong"}, 401),
        (PATH, {"params": {"wait": "-1"}}, 400),
        (PATH, {"params": {"wait": f"{MAX_WAIT_S + 0.1}"}}, 400),
        (PATH, {"params": {"wait": "nan"}}, 400),
        (PATH, {"params": {"wait": "soon"}}, 400),
        (PATH, {"params": {"wait": ""}}, 400),
    ],
)
async def test_what_is_wrong_is_said_at_once(path, options, status):
    async with running() as node:
        answer = await node.ask("GET", path, **options)
        assert answer.status == status
        assert answer.text.endswith("\n")


@pytest.mark.parametrize(
    ("accept", "is_stream"),
    [
        ("text/event-stream", True),
        ("Text/Event-Stream; q=0.5", True),
        ("text/event-stream, application/json", True),
        ("text/event-stream, */*;q=0.1", True),
        ("application/json, text/event-stream", False),
        ("*/*", False),
        ("text/event-stream;q=0", False),
        ("application/msgpack, text/event-stream;q=0.9", False),
    ],
)
async def test_what_a_caller_likes_best_decides(accept, is_stream):
    async with running() as node:
        await publish(node, "one")
        answer = await node.ask("HEAD", PATH, headers=f"Accept: {accept}\r\n")
        assert (answer.headers["content-type"] == "text/event-stream") == is_stream


async def test_pages_of_other_origins_may_follow():
    async with running(make_app(cors_origins=("https://a.example",))) as node:
        stream = await follow(node, headers="Origin: https://a.example\r\n")
        assert "\r\nAccess-Control-Allow-Origin: https://a.example\r\n" in stream.head


# --- reads that wait


async def test_a_read_that_waits_is_the_plain_one_where_there_is_something_new():
    async with running() as node:
        await publish(node, "one")
        plain = await node.ask("GET", PATH)
        for headers in ("", 'If-None-Match: "other"\r\n'):
            answer = await node.ask("GET", PATH, params={"wait": "30"}, headers=headers)
            assert (answer.status, answer.body) == (200, plain.body)
            assert answer.headers["etag"] == plain.headers["etag"]
            assert answer.headers["cache-control"] == "no-cache"


async def test_a_read_that_waits_gets_the_next_value():
    async with running() as node:
        async with asking(node, params={"wait": "30"}) as wire:
            said = await publish(node, "one")
            answer = await wire.answer()
            assert (answer.status, answer.text) == (200, said)
        for number, form in enumerate(("{}", "W/{}", '"other", {}', "*")):
            headers = f"If-None-Match: {form.format(answer.headers['etag'])}\r\n"
            async with asking(node, params={"wait": "30"}, headers=headers) as wire:
                said = await publish(node, f"x{number}")
                answer = await wire.answer()
                assert answer.text == said
        await wire.say(node.signed("GET", "channels"))
        assert (await wire.answer()).status == 200


async def test_a_read_that_waited_in_vain_is_the_plain_one_too():
    async with running() as node:
        async with asking(node, params={"wait": "2.5"}) as wire:
            await node.wait(2.0)
            assert n_readers(node) == 1
            await node.wait(2.0)
            assert (await wire.answer()).status == 404
        await publish(node, "one")
        etag = (await node.ask("GET", PATH)).headers["etag"]
        headers = f"If-None-Match: {etag}\r\n"
        async with asking(node, params={"wait": "2"}, headers=headers) as wire:
            await node.wait(3.0)
            answer = await wire.answer()
            assert (answer.status, answer.headers["etag"]) == (304, etag)
        answer = await node.ask("GET", PATH, params={"wait": "0"}, headers=headers)
        assert answer.status == 304


async def test_a_read_that_waits_is_told_that_its_value_is_gone():
    async with running(cache_ttl_s=30.0) as node:
        await publish(node, "one")
        etag = (await node.ask("GET", PATH)).headers["etag"]
        headers = f"If-None-Match: {etag}\r\n"
        async with asking(node, params={"wait": "60"}, headers=headers) as wire:
            await node.wait(29.0)
            assert n_readers(node) == 1
            await node.wait(2.0)
            answer = await wire.answer()
            assert answer.status == 404
            assert answer.headers["cache-control"] == "no-store"
        answer = await node.ask("GET", PATH, params={"wait": "60"}, headers=headers)
        assert answer.status == 404


async def test_a_read_that_waits_answers_in_msgpack_for_who_likes_it():
    async with running() as node:
        headers = "Accept: application/msgpack\r\n"
        async with asking(node, params={"wait": "30"}, headers=headers) as wire:
            await publish(node, "one")
            assert msgpack.unpackb((await wire.answer()).body)["data"] == "one"


async def test_a_read_whose_caller_goes_makes_room_at_once():
    async with running() as node, asking(node, params={"wait": "30"}) as wire:
        await wire.aclose()
        await until(lambda: not n_readers(node))


async def test_what_is_asked_behind_a_read_that_waits_is_answered_behind_it():
    async with running() as node, asking(node, params={"wait": "30"}) as wire:
        for _ in range(3):
            await wire.say(b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\nGET /no")
            await wire.say(b"thing HTTP/1.1\r\nHost: a\r\n\r\n")
        await publish(node, "one")
        statuses = [(await wire.answer()).status for _ in range(7)]
        assert statuses == [200] + [404] * 6
        assert not n_readers(node)


# --- plain reads


@pytest.mark.parametrize("path", [PATH, "channels/cache-a"])
async def test_answers_that_wait_for_a_slow_caller_are_not_sent_past_their_values_end(path):
    async with running(make_app(max_event_bytes=200_000), cache_ttl_s=20.0) as node:
        await publish(node, "x" * 100_000)
        wire = await node.connect(receives=4_096)
        params = {} if path == PATH else {"info": "cache"}
        n_asked = 200
        await wire.say(node.signed("GET", path, params=params) * n_asked)
        await until(lambda: node.broker.backlog.n_bytes > 200_000)
        await node.wait(20.0)
        assert not node.broker.backlog.n_bytes
        with pytest.raises(EOFError):
            await wire.exactly(n_asked * 100_000)


# --- the end


async def test_a_drain_ends_streams_in_order_and_answers_who_waits():
    async with running() as node:
        await publish(node, "one")
        stream = await follow(node)
        await stream.value()
        headers = "If-None-Match: *\r\n"
        async with asking(node, params={"wait": "30"}, headers=headers) as wire:  # noqa: SIM117
            async with trio.open_nursery() as nursery:
                nursery.start_soon(node.server.drain, 0.1)
                assert await stream.event() is None
                assert (await wire.answer()).status == 304
                for one in (wire, stream.wire):
                    await one.aclose()


async def test_readers_of_an_app_that_is_removed_are_sent_away():
    async with running(make_app(), make_app(id="9", key="k9")) as node:
        stream = await follow(node)
        await stream.event()
        async with asking(node, params={"wait": "30"}) as wire:
            await node.broker.reload(BrokerConfig(apps=(make_app(id="9", key="k9"),)))
            assert await stream.event() is None
            assert (await wire.answer()).status == 404
        assert not node.broker.follows._found


async def test_a_release_lets_who_comes_next_follow_again():
    async with running() as node:
        stream = await follow(node)
        await stream.event()
        node.broker.follows.release()
        assert await stream.event() is None
        await stream.wire.say(node.signed("GET", PATH, headers=STREAM))
        await stream.wire.until(b"\r\n\r\n")
        assert await stream.event() == MISS
        assert n_readers(node) == 1
