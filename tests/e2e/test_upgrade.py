"""A node is replaced under load, and the load test's ledger has nothing to say about it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING

import pytest
import trio

from tests.e2e.test_process import wait_for
from tests.unit.cli.test_serve import serving
from tests.unit.cli.test_upgrade import until, upgrade

if TYPE_CHECKING:
    from pathlib import Path

LIMIT_S = 90

#: What must be zero. How long it took is not judged here: the machine may be busy.
FIGURES = (
    "delivery.lost", "delivery.doubled", "delivery.reordered", "delivery.stale",
    "delivery.altered", "delivery.misrouted", "publish.failed", "closed.unexpected",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("profile", "n_workers"), [("many-channels", 1), ("cache-join", 1), ("cache-join", 2)]
)
def test_nothing_is_lost_and_nobody_closed_over_an_upgrade(
    start_server, tmp_path, profile, n_workers
):
    control = tmp_path / "control"
    server = start_server("--control", str(control), "--workers", str(n_workers))
    load = subprocess.Popen(
        [sys.executable, "-m", "cachecast", "load", "run", profile, "--quiet",
         "--target", server.ws_url, "--app-id", "4242", "--key", "app-key",
         "--secret", "app-secret", "--subscribers", "50", "--channels", "100", "--rate", "100",
         "--duration", str(5 * n_workers), "--report", str(tmp_path / "report")],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    with load:
        wait_for(lambda: _publishes(server), "no load")
        n_upgrades = 2 // n_workers
        for _ in range(n_upgrades):
            time.sleep(1.0)  # of the load, which is a process of its own
            _upgrade(control)
        said, _ = load.communicate(timeout=LIMIT_S)
    figures = json.loads((tmp_path / "report" / "result.json").read_text())["figures"]
    assert {name: figures[name] for name in FIGURES} == dict.fromkeys(FIGURES, 0), said
    assert figures["delivery.received"] > 0
    log = server.log.read_text()
    assert log.count('"handed over"') == n_upgrades * n_workers


def _publishes(server) -> bool:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.admin_port}/metrics") as answer:
        page = answer.read().decode()
    (count,) = [line for line in page.splitlines() if line.startswith("cachecast_publishes_total")]
    return float(count.rpartition(" ")[2]) > 0


def _upgrade(control: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "cachecast", "upgrade", "--control", str(control)],
        check=True,
        timeout=LIMIT_S,
        capture_output=True,
    )


async def test_webhooks_that_wait_are_told_by_the_new_process_and_once(tmp_path):
    """One that the receiver has refused, and one that it has not answered."""
    told: list[tuple[bool, str]] = []
    is_open = False

    async def receive(stream: trio.SocketStream) -> None:
        async with stream:
            head, _, body = (await stream.receive_some(65_536)).partition(b"\r\n\r\n")
            size = int(re.search(rb"content-length: (\d+)", head.lower())[1])
            while len(body) < size:
                body += await stream.receive_some(65_536)
            (event,) = json.loads(body)["events"]
            told.append((is_open, event["channel"]))
            if not is_open and event["channel"] == "unanswered":
                await trio.sleep_forever()
            status = b"200 OK" if is_open else b"503 Busy"
            await stream.send_all(
                b"HTTP/1.1 %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status
            )

    control, config = tmp_path / "control", tmp_path / "c.toml"
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, receive, [listener])
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/"
        config.write_text(
            "[server]\ndrain_s = 0\nwebhook_flush_s = 0\n"
            "[[apps]]\nid = '4242'\nkey = 'app-key'\nsecret = 'app-secret'\n"
            f"webhooks = [{{url = '{url}', events = ['channel_occupied']}}]\n"
        )
        with serving("--config", str(config), "--control", str(control)) as server:
            client = await server.client()
            for channel in ("refused", "unanswered"):
                await client.subscribe(channel)
                await until(lambda channel=channel: (False, channel) in told)
            await upgrade(control)
            is_open = True
            await until(lambda: {(True, "refused"), (True, "unanswered")} <= set(told))
            await client.subscribe("new")
            await until(lambda: (True, "new") in told)
            accepted = [channel for was_open, channel in told if was_open]
            assert sorted(accepted) == ["new", "refused", "unanswered"]
            await client.wire.aclose()
            assert await trio.to_thread.run_sync(server.end) == 0
        nursery.cancel_scope.cancel()
