"""The broker in asyncio: the same verbs and errors, and an end in order."""

from __future__ import annotations

import asyncio
import inspect
import signal
import subprocess
import sys

import httpx2
import pytest
import trio
import uvloop
from websockets.asyncio.client import connect as connect_websocket

import cachecast
from cachecast import App, BrokerConfig, Webhook
from cachecast.asyncio import Broker, WouldBlock, open_broker
from cachecast.broker import Broker as TrioBroker
from cachecast.broker import open_broker as open_trio_broker
from cachecast.bus.receipt import Receipt
from cachecast.errors import BadRequestError, BrokerClosedError, BusError, ConfigError, LimitError
from tests.unit.bus.shared_bus import Mesh

APP = App(id="1", key="k", secret="s" * 20)
CONFIG = BrokerConfig(apps=(APP,))

#: Methods of the Trio broker that are the business of its own server.
INTERNAL = {"hub", "listen", "end_user", "channel_of_user"}


def _run(main):
    return asyncio.run(asyncio.wait_for(main(), 60))


def _with_broker(body, config=CONFIG, **options):
    async def main():
        async with open_broker(config, **options) as broker:
            await body(broker)

    _run(main)


def _surface(cls):
    return {name for name in vars(cls) if not name.startswith("_")}


def _parameters(function):
    return [
        (parameter.name, parameter.kind, parameter.default)
        for parameter in inspect.signature(function).parameters.values()
    ]


# --- the surface


def test_its_verbs_are_those_of_the_trio_broker():
    """Whoever adds a verb there adds it here."""
    assert _surface(Broker) == _surface(TrioBroker) - INTERNAL | {"config", "server"}


@pytest.mark.parametrize("name", sorted(_surface(TrioBroker) - INTERNAL - {"is_ready"}))
def test_each_verb_takes_the_same_arguments_and_waits_where_that_does(name):
    ours, theirs = getattr(Broker, name), getattr(TrioBroker, name)

    assert _parameters(ours) == _parameters(theirs)
    assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(theirs)


def test_it_is_opened_with_all_that_opens_and_serves_the_trio_broker():
    ours = {p[0] for p in _parameters(open_broker)}

    # A place at the bus is left by a process that this one replaces.
    assert {p[0] for p in _parameters(open_trio_broker)} - {"place"} <= ours
    serve = {p[0] for p in _parameters(cachecast.serve)}
    # The last three are for processes that work together; see `cachecast serve`.
    others = {"broker", "address", "task_status", "falls_back", "predecessor", "seat"}
    assert serve - others <= ours


# --- the verbs


def test_a_value_is_published_read_and_received():
    async def body(broker):
        await broker.publish("1", "cache-a", "tick", {"n": 1})
        await broker.publish_batch("1", [("cache-a", "tick", "2"), ("cache-b", "tick", "3")])
        assert (await broker.read_cache("1", "cache-a")).data == "2"
        async with broker.subscribe("1", "cache-b") as events:
            assert (await anext(events)).json() == 3
            receipt = broker.publish_nowait("1", "cache-b", "tick", "4")
            assert receipt.is_done
            assert receipt.fault is None
            await receipt.wait()
            assert (await anext(events)).json() == 4
        assert await broker.channels("1") == {}
        assert not (await broker.channel("1", "cache-a")).occupied
        assert await broker.users("1", "presence-a") == []
        assert await broker.terminate("1", "ann") == 0
        await broker.send_to_user("1", "ann", "tick", "5")
        assert broker.is_ready
        assert broker.config is CONFIG
        assert broker.statistics().apps[0].cache_entries == 2

    _with_broker(body)


def test_its_helpers_answer_auth_endpoints():
    async def body(broker):
        answer = broker.authorize_channel("1", "1.1", "presence-a", user_id="ann")
        assert answer["auth"].startswith("k:")
        assert "user_data" in broker.authenticate_user("1", "1.1", {"id": "ann"})
        assert "nonce" in Broker.encrypt("x" * 43 + "=", "private-encrypted-a", "secret")

    _with_broker(body)


def test_its_errors_are_those_of_the_trio_broker():
    async def body(broker):
        with pytest.raises(BadRequestError):
            await broker.publish("2", "a", "tick", "1")
        with pytest.raises(BadRequestError):
            await broker.read_cache("1", "plain")
        with pytest.raises(BadRequestError):
            await broker.send_to_user("1", "a b\n", "tick", "1")
        with pytest.raises(LimitError):
            await broker.publish("1", "a", "tick", "x" * 100_000)
        with pytest.raises(TypeError):
            await broker.publish("1", "a", "tick", object())
        with pytest.raises(BadRequestError):
            async with broker.subscribe("1", "bad name"):
                raise AssertionError
        with pytest.raises(ConfigError):
            await broker.reload(BrokerConfig())

    _with_broker(body)


def test_another_configuration_is_served_without_an_end():
    async def body(broker):
        changed = BrokerConfig(apps=(APP, App(id="2", key="k2", secret="t" * 20)))
        changes = await broker.reload(changed)
        assert changes
        await broker.publish("2", "cache-a", "tick", "1")

    _with_broker(body)


def test_publishers_wait_for_a_slow_subscriber_and_what_is_cancelled_meanwhile_is_not_published():
    async def body(broker):
        async with broker.subscribe("1", "plain") as events:
            with pytest.raises(WouldBlock):
                for n in range(1_001):
                    broker.publish_nowait("1", "plain", "tick", str(n))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await broker.publish("1", "plain", "tick", "never")
            waiting = asyncio.create_task(broker.publish("1", "plain", "tick", "last"))
            await asyncio.sleep(0.01)
            assert not waiting.done()
            received = [(await anext(events)).data for _ in range(500)]
            await waiting
            received.append((await anext(events)).data)

        assert received == [*map(str, range(500)), "last"]

    _with_broker(body)


def test_a_publisher_in_a_tight_loop_lets_others_have_their_turn():
    async def body(broker):
        ticks = []

        async def other():
            while True:
                ticks.append(None)
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        for _ in range(100):
            await broker.publish("1", "nobody", "tick", "1")
        task.cancel()
        assert len(ticks) >= 100

    _with_broker(body)


# --- hooks


def test_hooks_are_functions_of_asyncio_and_their_failures_are_logged_only():
    async def body(broker):
        heard = asyncio.Queue()

        async def failing(app_id, event):
            raise ValueError

        async def hook(app_id, event):
            await asyncio.sleep(0.001)
            heard.put_nowait((app_id, event.name, event.channel))

        broker.on("cache_miss", failing)
        broker.on("cache_miss", hook)
        async with broker.subscribe("1", "cache-none"):
            assert await heard.get() == ("1", "cache_miss", "cache-none")

    _with_broker(body)


def test_a_hook_that_runs_when_the_broker_ends_is_cancelled_and_waited_for():
    log = []

    async def body(broker):
        begun = asyncio.Event()

        async def hook(app_id, event):
            begun.set()
            try:
                await asyncio.sleep(60)
            finally:
                log.append("hook cancelled")

        broker.on("cache_miss", hook)
        async with broker.subscribe("1", "cache-none"):
            await begun.wait()

    _with_broker(body)

    assert log == ["hook cancelled"]


def test_a_hook_may_use_the_broker():
    async def body(broker):
        async def hook(app_id, event):
            await broker.publish(app_id, event.channel, "filled", "1")

        broker.on("cache_miss", hook)
        async with broker.subscribe("1", "cache-none") as events:
            assert (await anext(events)).name == "filled"

    _with_broker(body)


# --- the server


def test_clients_are_served_by_sockets_and_closed_at_the_end():
    async def main():
        async with open_broker(CONFIG, listen="127.0.0.1:0", admin_address="127.0.0.1:0") as broker:
            url = f"ws://127.0.0.1:{broker.server.port}/app/k"
            async with connect_websocket(url) as client:
                assert "connection_established" in await client.recv()
                await client.send('{"event":"pusher:subscribe","data":{"channel":"a"}}')
                assert "subscription_succeeded" in await client.recv()
                await broker.publish("1", "a", "tick", "1")
                assert '"tick"' in await client.recv()
                assert await broker.channels("1")
                async with httpx2.AsyncClient() as http:
                    base = f"http://127.0.0.1:{broker.server.admin_port}"
                    assert (await http.get(f"{base}/up")).status_code == 200
                await broker.server.drain(0.01)
                await client.wait_closed()
                assert client.close_code == 4100

    _run(main)


def test_a_broker_that_does_not_listen_has_no_server():
    async def body(broker):
        with pytest.raises(RuntimeError, match="does not listen"):
            broker.server.drain(1)

    _with_broker(body)


def test_an_address_that_is_taken_is_said_bare_and_leaves_nothing_behind():
    async def main():
        async with open_broker(CONFIG, listen="127.0.0.1:0") as broker:
            with pytest.raises(ConfigError, match="in use"):
                async with open_broker(CONFIG, listen=f"127.0.0.1:{broker.server.port}"):
                    raise AssertionError
            await broker.publish("1", "cache-a", "tick", "1")

    _run(main)


def test_several_brokers_share_a_loop():
    async def main():
        async with open_broker(CONFIG) as one, open_broker(CONFIG) as two:
            await one.publish("1", "cache-a", "tick", "1")
            await two.publish("1", "cache-a", "tick", "2")
            assert (await one.read_cache("1", "cache-a")).data == "1"
        async with open_broker(CONFIG) as three:
            assert await three.read_cache("1", "cache-a") is None

    _run(main)
    _run(main)


# --- several nodes


def test_what_all_nodes_agree_on_is_awaited():
    async def main():
        mesh = Mesh(delay_s=0.002)
        async with (
            open_broker(CONFIG, bus=mesh.join()) as one,
            open_broker(CONFIG, bus=mesh.join()) as two,
            two.subscribe("1", "cache-a") as events,
        ):
            receipt = one.publish_nowait("1", "cache-a", "tick", "1")
            assert not receipt.is_done
            await receipt.wait()
            await one.publish("1", "cache-a", "tick", "2")
            assert (await two.read_cache("1", "cache-a")).data == "2"
            assert await two.channels("1") == {}
            assert (await anext(events)).data == "2"

    _run(main)


def test_who_waits_for_other_nodes_is_told_when_they_are_gone_or_the_broker_is():
    async def main():
        mesh = Mesh(delay_s=30)
        bus = mesh.join()
        async with open_broker(CONFIG, bus=bus) as broker:
            lost = asyncio.create_task(broker.publish("1", "cache-a", "tick", "1"))
            await asyncio.sleep(0.001)
            bus.cut()
            with pytest.raises(BusError):
                await lost
        async with open_broker(CONFIG, bus=mesh.join()) as broker:
            ended = asyncio.create_task(broker.read_cache("1", "cache-a"))
            await asyncio.sleep(0.001)
        with pytest.raises(BrokerClosedError):
            await ended

    _run(main)


def test_what_nobody_answers_ends_with_the_broker():
    async def main():
        async with open_broker(CONFIG) as broker:
            waiting = asyncio.create_task(broker._waits.receipt(Receipt()))
            await asyncio.sleep(0)
        with pytest.raises(BrokerClosedError):
            await waiting

    _run(main)


# --- the end


def test_whatever_is_asked_of_a_broker_that_has_ended_says_so():
    async def main():
        async with open_broker(CONFIG) as broker, broker.subscribe("1", "a") as events:
            pass
        with pytest.raises(BrokerClosedError):
            await broker.publish("1", "a", "tick", "1")
        with pytest.raises(BrokerClosedError):
            broker.publish_nowait("1", "a", "tick", "1")
        with pytest.raises(BrokerClosedError):
            await broker.reload(CONFIG)
        with pytest.raises(BrokerClosedError):
            broker.on("cache_miss", None)
        with pytest.raises(StopAsyncIteration):
            await anext(events)

    _run(main)


def test_webhooks_get_their_last_chance_when_the_block_ends_normally():
    """As with the Trio broker; and an exception does not wait for them."""

    async def main():
        asked = asyncio.Event()

        async def answer(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            asked.set()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            writer.close()

        receiver = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = receiver.sockets[0].getsockname()[1]
        hook = Webhook(url=f"http://127.0.0.1:{port}/", events=("cache_miss",))
        app = App(id="1", key="k", secret="s" * 20, webhooks=(hook,))
        async with open_broker(BrokerConfig(apps=(app,))) as broker:  # noqa: SIM117
            async with broker.subscribe("1", "cache-none"):
                pass
        assert asked.is_set()
        receiver.close()

    _run(main)


def test_a_broker_that_fails_ends_the_block_with_its_error():
    async def main():
        with pytest.raises(ExceptionGroup) as caught:
            async with open_broker(CONFIG) as broker:

                def fail():
                    raise MemoryError

                broker._broker.evictor._clock = fail
                broker._broker.stepper.add("1", fail)
                await asyncio.sleep(60)
        assert caught.group_contains(MemoryError)
        with pytest.raises(BrokerClosedError):
            await broker.publish("1", "a", "tick", "1")

    _run(main)


def test_a_subscriber_in_another_task_ends_with_the_broker():
    async def main():
        async with open_broker(CONFIG) as broker:

            async def listen():
                async with broker.subscribe("1", "a") as events:
                    return [event.data async for event in events]

            task = asyncio.create_task(listen())
            await asyncio.sleep(0.001)
            await broker.publish("1", "a", "tick", "1")
        assert await task == ["1"]

    _run(main)


def test_what_still_runs_when_the_block_ends_is_told_so_and_holds_nothing_up():
    async def main():
        async with open_broker(CONFIG, listen="127.0.0.1:0") as broker:
            clients = [
                await connect_websocket(f"ws://127.0.0.1:{broker.server.port}/app/k")
                for _ in range(2)
            ]
            drain = asyncio.create_task(broker.server.drain(1_000))
            events = broker.subscribe("1", "plain")
            await events.__aenter__()
            for n in range(500):
                broker.publish_nowait("1", "plain", "tick", str(n))
            publish = asyncio.create_task(broker.publish("1", "plain", "tick", "late"))
            await asyncio.sleep(0.001)
        await asyncio.wait({drain, publish}, timeout=30)
        for task in (drain, publish):
            with pytest.raises(BrokerClosedError):
                await task
        for client in clients:
            await client.close()

    _run(main)


# --- wrong places


def test_who_calls_from_the_wrong_place_is_told_what_to_do():
    async def in_trio(broker):
        await broker.publish("1", "a", "tick", "1")

    async def elsewhere(broker):
        with pytest.raises(RuntimeError, match=r"call broker\.sync\.publish\(\) from others$"):
            await broker.publish("1", "a", "tick", "1")

    async def body(broker):
        with pytest.raises(RuntimeError, match=r"the broker of cachecast\.open_broker$"):
            await broker._guest.run(in_trio, broker)
        await asyncio.to_thread(asyncio.run, elsewhere(broker))
        with pytest.raises(RuntimeError, match=r"or use cachecast\.asyncio"):
            async with open_trio_broker(CONFIG):
                raise AssertionError

    _with_broker(body)

    async def main():
        async with open_broker(CONFIG):
            raise AssertionError

    with pytest.raises(RuntimeError, match=r"^cachecast\.asyncio\.open_broker\(\) needs asyncio"):
        trio.run(main)


# --- other loops, and Ctrl-C


def test_it_works_on_uvloop():
    async def main():
        async with open_broker(CONFIG, listen="127.0.0.1:0") as broker:
            assert broker._guest.ticks.is_threadless
            url = f"ws://127.0.0.1:{broker.server.port}/app/k"
            async with connect_websocket(url) as client:
                assert "connection_established" in await client.recv()
            await broker.publish("1", "cache-a", "tick", "1")
            async with broker.subscribe("1", "cache-a") as events:
                assert (await anext(events)).data == "1"
            assert (await asyncio.to_thread(broker.sync.read_cache, "1", "cache-a")).data == "1"

    uvloop.run(asyncio.wait_for(main(), 60))


_PROGRAM = """
import asyncio, sys
from cachecast import App, BrokerConfig
from cachecast.asyncio import open_broker

async def main():
    try:
        async with open_broker(
            BrokerConfig(apps=(App(id="1", key="k", secret="s" * 20),)), listen="127.0.0.1:0"
        ) as broker:
            print("ready", flush=True)
            await asyncio.sleep(60)
    except asyncio.CancelledError:
        print("cancelled", flush=True)
        raise
    finally:
        print("closed", flush=True)

try:
    START
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ("asyncio.run(main())", ["cancelled", "closed", "interrupted"]),
        ("import uvloop; uvloop.run(main())", ["cancelled", "closed", "interrupted"]),
        # Without asyncio's own handler it is Trio that hears of it, and the block that raises it.
        ("asyncio.new_event_loop().run_until_complete(main())", ["closed", "interrupted"]),
    ],
)
def test_ctrl_c_once_suffices(start, said):
    program = _PROGRAM.replace("START", start)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert output.split() == said
    assert errors == ""
    assert process.returncode == 0
