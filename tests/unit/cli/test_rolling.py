"""``cachecast upgrade`` of a node with workers, as real processes: who goes on, what is said."""

from __future__ import annotations

import hashlib
import hmac
import json
import stat
import sys
import time

import pytest
import trio

from cachecast.control.ask import ask
from cachecast.errors import ControlError
from tests.sockets.node import signed
from tests.unit.cli.test_serve import DEMO, LIMIT_S, serving
from tests.unit.cli.test_upgrade import processes_of
from tests.unit.cli.test_workers import engine_of, is_alive, workers_of

#: Runs in each new process, before anything of Cachecast does, and fails at a named step there.
SABOTAGE = """
import os, signal, sys

def wrap(owner, name, step, when=lambda *_: True):
    function = getattr(owner, name)
    def wrapped(*args, **options):
        if when(*args) and os.environ["AT"] == step + " dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if when(*args) and os.environ["AT"] == step + " raises":
            raise RuntimeError("a bug of the new version")
        return function(*args, **options)
    setattr(owner, name, wrapped)

if "worker" in sys.argv:
    from cachecast.bus import succession as bus
    from cachecast.handover import line, state
    from cachecast.server import succession
    is_a = lambda kind: lambda _, message, *__: isinstance(message, kind)
    wrap(succession.Predecessor, "ask", "start")
    wrap(bus.Follower, "follow", "follow")
    wrap(succession.Taking, "take", "clients", is_a(state.Clients))
    wrap(succession.Taking, "finish", "end")
    wrap(line.Line, "send_now", "word", is_a(state.Taken))
elif os.environ["AT"] == "parent":
    os.write(2, b"Error: this version cannot begin\\n")
    os._exit(3)
elif os.environ["AT"] == "version":
    from cachecast.handover import state
    state.STATE_VERSION = 99
"""


@pytest.fixture
def broken(tmp_path):
    """A function that gives an interpreter whose Cachecast fails at a step."""
    folder = tmp_path / "sabotage"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SABOTAGE)

    def make(at, *, first=""):
        path = tmp_path / f"python {at}"
        path.write_text(
            f"#!/bin/sh\n{first}\nexport AT='{at}' PYTHONPATH='{folder}'\n"
            f'exec "{sys.executable}" "$@"\n'
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return make


@pytest.fixture
def control(tmp_path):
    return tmp_path / "control"


async def upgrade(control, program=sys.executable):
    """Have all of it replaced, as the command does; gives what the node says of that."""
    with trio.fail_after(LIMIT_S):
        told = await ask(control, "upgrade", dict[str, int], program)
        assert told["workers"] == 2
        return await ask(control, "upgraded", dict[str, int])


async def enter(client, channel, user):
    """Subscribe to a presence channel of the demonstration app as a user."""
    data = json.dumps({"user_id": user})
    text = f"{client.socket_id}:{channel}:{data}"
    mac = hmac.new(DEMO["secret"].encode(), text.encode(), hashlib.sha256).hexdigest()
    await client.subscribe(channel, auth=f"{DEMO['key']}:{mac}", channel_data=data)


class Crowd:
    """Clients on all workers, and what they hear."""

    def __init__(self, server):
        self.server = server
        self.clients = []
        self.caller = None
        self.n_said = 0

    async def come(self, n=8):
        self.caller = await self.server.connect()
        for number in range(n):
            client = await self.server.client()
            await client.subscribe("cache-a")
            await enter(client, "presence-room", f"user-{number}")
            self.clients.append(client)

    async def publish(self):
        body = {"name": "tick", "channel": "cache-a", "data": str(self.n_said)}
        path = "/apps/4242/events"
        await self.caller.say(signed("POST", path, body, at=time.time(), **DEMO))
        answer = await self.caller.answer("POST")
        assert answer.status == 200, answer.text
        self.n_said += 1

    async def publish_on(self, task_status=trio.TASK_STATUS_IGNORED):
        """Publish, one behind the other, until cancelled; a call is never cut in two."""
        task_status.started()
        while True:
            with trio.CancelScope(shield=True):
                await self.publish()
            await trio.sleep(0.01)

    async def check(self):
        """Each has heard each event once, in order; and of nobody that he came or went twice."""
        await self.publish()
        last = str(self.n_said - 1)
        for number, client in enumerate(self.clients):
            heard, came = [], []
            with trio.fail_after(LIMIT_S):
                while not heard or heard[-1] != last:
                    message = await client.hear()
                    if message["event"] == "tick":
                        heard.append(message["data"])
                    elif message["event"].startswith("pusher_internal:member_"):
                        assert message["event"].endswith("added"), message
                        came.append(json.loads(message["data"])["user_id"])
            assert heard == [str(n) for n in range(self.n_said)]
            assert came == [f"user-{n}" for n in range(number + 1, len(self.clients))]

    async def leave(self):
        for client in self.clients:
            await client.wire.aclose()
        await self.caller.aclose()


async def test_parent_and_workers_are_replaced_and_nobody_notices(control):
    with serving("--control", str(control), "--workers", "2") as server:
        pid = server.process.pid
        workers, engine = set(workers_of(pid)), engine_of(pid)
        crowd = Crowd(server)
        await crowd.come()
        async with trio.open_nursery() as nursery:
            await nursery.start(crowd.publish_on)
            told = await upgrade(control)
            nursery.cancel_scope.cancel()
        await crowd.check()

        assert told == {"pid": pid, "workers": 2, "connections": 8, "closed": 0}
        assert engine_of(pid) == engine
        assert len(workers_of(pid)) == 2
        assert not workers & set(workers_of(pid))
        # It goes on as any node: who comes is served, a worker that dies is started again.
        late = await server.client()
        await late.subscribe("cache-a")
        assert (await late.hear("tick"))["data"] == str(crowd.n_said - 1)
        await late.wire.aclose()
        await crowd.leave()
        assert await trio.to_thread.run_sync(server.end) == 0
        assert not is_alive(engine)
        said = [entry["event"] for entry in server.logs]
        assert said.count("worker replaced") == 2
        assert said.count("drained") == 2
        assert not {"worker ended, it is started again", "worker said"} & set(said)


@pytest.mark.slow
async def test_worker_whose_successor_fails_goes_on(control, broken):
    """At whatever step; each is a try of its own, and the last one succeeds."""
    with serving("--control", str(control), "--workers", "2") as server:
        pid = server.process.pid
        workers = set(workers_of(pid))
        crowd = Crowd(server)
        await crowd.come(16)  # so many that each worker has some
        words = r"Worker 1 could not be replaced and goes on: .*0 of 2 workers run the new version"
        async with trio.open_nursery() as nursery:
            await nursery.start(crowd.publish_on)
            for at in ("follow dies", "clients raises", "word dies"):
                with pytest.raises(ControlError, match=words):
                    await upgrade(control, broken(at))
                assert set(workers_of(pid)) == workers, at
            assert (await upgrade(control, broken("nothing")))["connections"] == 16
            nursery.cancel_scope.cancel()
        await crowd.check()
        assert not workers & set(workers_of(pid))
        await crowd.leave()


async def test_parent_does_not_become_what_cannot_begin(control, broken, tmp_path):
    """What is tried before says why; nothing has changed then, and the next try can succeed."""
    path = tmp_path / "c.toml"
    text = f"[server]\ncontrol = '{control}'\n[[apps]]\nid='4242'\nkey='app-key'\nsecret='s'\n"
    path.write_text(text)
    with serving("--config", str(path), "--workers", "2") as server:
        children = set(processes_of(server.process.pid))

        async def refused(words, program=sys.executable):
            with pytest.raises(ControlError, match=words):
                await upgrade(control, program)
            assert set(processes_of(server.process.pid)) == children

        await refused("The new program cannot begin: this version", broken("parent"))
        await refused("does not understand the state of the running parent", broken("version"))
        await refused("/nowhere/python cannot be started", "/nowhere/python")
        path.write_text("[server]\nporty = 1\n")
        await refused("porty")
        path.write_text("[bus]\nurls = ['redis://localhost:1']\n" + text)
        await refused("cannot move to another engine")
        path.write_text(text)
        # Gone between the try and the exec: it becomes again what it was.
        gone = broken("nothing", first='case "$PARENT_STATE" in *:trial) rm "$0";; esac')
        await refused("cannot be started: No such file", gone)
        client = await server.client()
        await client.subscribe("cache-a")
        await client.wire.aclose()
