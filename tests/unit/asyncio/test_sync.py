"""The synchronous door: every verb from a thread, and no way to wait for oneself or for ever."""

from __future__ import annotations

import asyncio
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from cachecast import App, BrokerConfig
from cachecast.asyncio import Broker, SyncBroker, open_broker
from cachecast.asyncio import sync as sync_module
from cachecast.errors import BadRequestError, BrokerClosedError

CONFIG = BrokerConfig(apps=(App(id="1", key="k", secret="s" * 20),))

#: What makes no sense where a call blocks: receipts, and hooks of asyncio's; and the server's.
ASYNC_ONLY = {"publish_nowait", "on", "server"}


def _run(main):
    return asyncio.run(asyncio.wait_for(main(), 60))


def _in_thread(function, config=CONFIG):
    """Open a broker and call a function with its door in another thread."""

    async def main():
        async with open_broker(config) as broker:
            return await asyncio.to_thread(function, broker.sync)

    return _run(main)


def _surface(cls):
    return {name for name in vars(cls) if not name.startswith("_")}


def test_it_has_the_verbs_of_the_broker():
    assert _surface(SyncBroker) == _surface(Broker) - ASYNC_ONLY


@pytest.mark.parametrize("name", sorted(_surface(SyncBroker) - {"config", "is_ready", "encrypt"}))
def test_each_verb_takes_the_same_arguments_and_none_has_to_be_awaited(name):
    ours, theirs = getattr(SyncBroker, name), getattr(Broker, name)

    assert list(inspect.signature(ours).parameters.values()) == list(
        inspect.signature(theirs).parameters.values()
    )
    assert not inspect.iscoroutinefunction(ours)


def test_every_verb_works_from_a_thread():
    def use(sync):
        sync.publish("1", "cache-a", "tick", {"n": 1})
        sync.publish_batch("1", [("cache-a", "tick", "2")])
        sync.send_to_user("1", "ann", "tick", "3")
        assert sync.read_cache("1", "cache-a").data == "2"
        assert sync.channels("1") == {}
        assert not sync.channel("1", "cache-a").occupied
        assert sync.users("1", "presence-a") == []
        assert sync.terminate("1", "ann") == 0
        assert sync.statistics().apps[0].cache_entries == 1
        assert sync.config is CONFIG
        assert sync.reload(CONFIG) is not None
        assert sync.is_ready
        assert sync.authorize_channel("1", "1.1", "private-a")["auth"]
        assert sync.authenticate_user("1", "1.1", {"id": "ann"})["auth"]
        assert sync.encrypt("x" * 43 + "=", "private-encrypted-a", "secret")

    _in_thread(use)


def test_errors_are_those_of_the_broker():
    def use(sync):
        with pytest.raises(BadRequestError):
            sync.publish("2", "a", "tick", "1")

    _in_thread(use)


def test_a_thread_may_subscribe():
    def use(sync):
        sync.publish("1", "cache-a", "tick", "1")
        with sync.subscribe("1", "cache-a") as events:
            assert next(events).data == "1"
            sync.publish("1", "cache-a", "tick", "2")
            assert next(events).data == "2"
            assert events.conflated == 0
        with pytest.raises(StopIteration):
            next(events)

    _in_thread(use)


def test_many_threads_publish_at_once():
    async def main():
        async with open_broker(CONFIG) as broker, broker.subscribe("1", "plain") as events:
            with ThreadPoolExecutor(8) as pool:
                loop = asyncio.get_running_loop()
                calls = [
                    loop.run_in_executor(pool, broker.sync.publish, "1", "plain", "tick", str(n))
                    for n in range(200)
                ]
                received = [int((await anext(events)).data) for _ in range(200)]
                await asyncio.gather(*calls)
        assert sorted(received) == list(range(200))

    _run(main)


def test_the_loops_own_thread_is_refused_in_one_sentence():
    async def main():
        async with open_broker(CONFIG) as broker:
            with pytest.raises(
                RuntimeError, match=r"^broker\.sync\.publish\(\) would block .* use `await"
            ):
                broker.sync.publish("1", "a", "tick", "1")
            with pytest.raises(RuntimeError, match="would block"), broker.sync.subscribe("1", "a"):
                raise AssertionError

    _run(main)


def test_a_thread_that_waits_when_the_broker_ends_is_told_so():
    async def main():
        async with open_broker(CONFIG) as broker:
            begun = threading.Event()

            def listen():
                with broker.sync.subscribe("1", "a") as events:
                    begun.set()
                    return list(events)

            listening = asyncio.get_running_loop().run_in_executor(None, listen)
            await asyncio.to_thread(begun.wait)
        assert await listening == []
        with pytest.raises(BrokerClosedError):
            await asyncio.to_thread(broker.sync.publish, "1", "a", "tick", "1")
        return broker

    broker = _run(main)
    with pytest.raises(BrokerClosedError, match="loop"):
        broker.sync.publish("1", "a", "tick", "1")


def test_a_thread_that_waits_when_the_loop_is_closed_does_not_wait_for_ever(monkeypatch):
    """A loop tells nobody that it closes, and what it had to do is not done."""
    monkeypatch.setattr(sync_module, "LOOK_S", 0.01)
    loop = asyncio.new_event_loop()
    block = open_broker(CONFIG)
    broker = loop.run_until_complete(block.__aenter__())
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(broker.sync.read_cache, "1", "cache-a")
        while not waiting.running():
            pass
        loop.close()
        with pytest.raises(BrokerClosedError):
            waiting.result(60)

    async def main():
        async with open_broker(CONFIG):
            pass

    _run(main)
