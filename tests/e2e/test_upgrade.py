"""A node is replaced under load, and the load test's ledger has nothing to say about it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING

import pytest

from tests.e2e.test_process import wait_for

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
