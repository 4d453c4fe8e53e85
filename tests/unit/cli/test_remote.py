"""Commands that talk to a server, against a live one."""

from __future__ import annotations

import json
import os
import time
from functools import partial

import pytest
import trio
from click.testing import CliRunner

from engine.cli import cachecast
from engine.cli.remote import RequestError
from tests.server.node import Wire, make_app, running, until

DEMO = {"id": "4242", "key": "app-key", "secret": "app-secret"}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("CACHECAST_"):
            monkeypatch.delenv(name)


def run(*arguments):
    result = CliRunner().invoke(cachecast, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def serving(**fields):
    return running(make_app(**DEMO | fields), unix_now=time.time)


async def cli(node, *arguments):
    url = f"http://127.0.0.1:{node.server.port}"
    return await trio.to_thread.run_sync(lambda: run(*arguments, "--url", url))


async def test_published_value_is_read_back():
    async with serving() as node:
        result = await cli(node, "publish", "cache-prices", "tick", '{"eur":1.08}')
        assert result.stdout == "published tick to cache-prices\n"
        result = await cli(node, "cache", "cache-prices")
        assert result.stdout == '{"eur":1.08}\n'
        assert "expires in 1" in result.stderr


async def test_several_channels_are_separated_by_commas():
    async with serving() as node:
        await cli(node, "publish", "cache-a,cache-b", "e", "1")
        for channel in ("cache-a", "cache-b"):
            assert (await cli(node, "cache", channel)).stdout == "1\n"


async def test_empty_cache_is_an_error_that_says_so():
    async with serving() as node:
        with pytest.raises(RequestError, match="cache-a has no cached value"):
            await cli(node, "cache", "cache-a")


async def test_channels_are_listed_with_their_users():
    async with serving() as node:
        client = await node.client("/app/app-key")
        await client.subscribe("a")
        await client.subscribe("b")
        assert (await cli(node, "channels")).stdout == "a\nb\n"
        assert (await cli(node, "channels", "--prefix", "b")).stdout == "b\n"
        assert (await cli(node, "channels", "--prefix", "presence-")).stdout == ""


@pytest.mark.parametrize(
    "channel", ["cache-prices", "private-cache-prices", "presence-cache-prices"]
)
async def test_subscriber_prints_the_cached_value_first_and_then_what_comes(channel):
    async with serving() as node:
        await node.broker.publish("4242", channel, "tick", "old")
        url = f"ws://127.0.0.1:{node.server.port}"
        results = []

        async def subscribe():
            results.append(
                await trio.to_thread.run_sync(
                    lambda: run("subscribe", channel, "--count", "2", "--url", url)
                )
            )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(subscribe)
            await until(lambda: node.broker.hubs["4242"].channels)
            await node.broker.publish("4242", channel, "tick", "new")
        lines = [json.loads(line) for line in results[0].stdout.splitlines()]
        assert lines == [
            {"event": "tick", "channel": channel, "data": "old"},
            {"event": "tick", "channel": channel, "data": "new"},
        ]


async def test_terminate_disconnects_a_user():
    async with serving() as node:
        result = await cli(node, "terminate", "user 1/2")
        assert result.stdout == "terminated the connections of user 1/2\n"


async def test_refusal_keeps_the_servers_words():
    async with serving() as node:
        with pytest.raises(RequestError, match="answered 400: Unknown auth_key"):
            await cli(node, "channels", "--key", "wrong")
        with pytest.raises(RequestError, match="answered 401: Invalid signature"):
            await cli(node, "channels", "--secret", "wrong")
        with pytest.raises(RequestError, match="answered 400: Event names may not start"):
            await cli(node, "publish", "a", "pusher:x", "1")
        with pytest.raises(RequestError, match="answered 404: Unknown app '77'"):
            await cli(node, "publish", "a", "x", "1", "--app-id", "77")


def test_server_that_is_not_there_is_named_with_a_remedy():
    with pytest.raises(
        RequestError, match=r"http://127\.0\.0\.1:1 cannot be reached.*cachecast serve"
    ):
        run("channels", "--url", "http://127.0.0.1:1")


async def test_answer_that_is_no_json_is_an_error(nursery):
    async def speak(stream):
        wire = Wire(stream)
        await wire.until(b"\r\n\r\n")
        await wire.say(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        await wire.aclose()

    (listener,) = await nursery.start(partial(trio.serve_tcp, speak, 0, host="127.0.0.1"))
    url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
    with pytest.raises(RequestError, match="not JSON"):
        await trio.to_thread.run_sync(lambda: run("channels", "--url", url))
    nursery.cancel_scope.cancel()
