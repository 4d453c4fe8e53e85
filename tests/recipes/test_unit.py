"""docs/examples/cachecast.service: systemd takes it, it is tight, and a node lives with it.

No systemd is the first process here, so what the kernel would refuse is looked for with strace:
every system call of a node's life must be one that the unit's filter allows.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cachecast.config import DEMO_APP

UNIT = Path(__file__).parents[2] / "docs" / "examples" / "cachecast.service"

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        reason = f"{name} is not installed"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [tool("systemd-analyze"), *words], capture_output=True, text=True, check=False, timeout=60
    )


def settings(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


def test_systemd_finds_nothing_wrong_with_it(tmp_path: Path) -> None:
    text = re.sub(r"^Exec(\w+)=\S+", r"Exec\1=/bin/true", UNIT.read_text(), flags=re.MULTILINE)
    text = re.sub(r"^(User|Group)=.*$", r"\1=root", text, flags=re.MULTILINE)
    path = tmp_path / UNIT.name
    path.write_text(text)
    done = analyze("verify", str(path))
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_left_open_is_little() -> None:
    """As systemd counts it, 0 is tight and 10 is open: without these lines it is 9.2."""
    done = analyze("security", "--offline=true", "--threshold=20", str(UNIT))
    assert done.returncode == 0, done.stdout


def allowed() -> set[str]:
    """The names of system calls that pass the unit's filters, in their order."""
    names: set[str] = set()
    for line in settings("SystemCallFilter"):
        for one in line.removeprefix("~").split():
            (names.difference_update if line.startswith("~") else names.update)(expand(one))
    return names


def expand(name: str) -> set[str]:
    if not name.startswith("@"):
        return {name}
    said = analyze("syscall-filter", name).stdout.splitlines()[1:]
    words = [line.strip() for line in said if not line.strip().startswith("#")]
    return {one for word in words if word for one in expand(word)}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_whole_life_needs_no_call_that_is_refused(tmp_path: Path, workers: int) -> None:
    """From its start to its end, with locked memory, a Unix socket and a log in JSON."""
    log = tmp_path / "calls"
    node = subprocess.Popen(
        [tool("strace"), "--follow-forks", "--quiet=all", "--signal=none", "--output", log,
         sys.executable, "-m", "cachecast", "serve", "--port", "0", "--workers", str(workers),
         "--uds", str(tmp_path / "clients.sock"), "--control", str(tmp_path / "control.sock"),
         "--lock-memory"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert node.stdout is not None
        ready = next(line for line in node.stdout if line.startswith("Cachecast ready on"))
        url = re.search(r"http://\S+", ready)
        assert url is not None
        for words in (
            ["publish", "cache-a", "tick", "{}", "--url", url[0]],
            ["subscribe", "cache-a", "--count", "1", "--url", url[0].replace("http", "ws")],
            ["reload", "--control", str(tmp_path / "control.sock")],
        ):
            done = subprocess.run(
                [sys.executable, "-m", "cachecast", *words],
                capture_output=True, text=True, timeout=60, check=False,
                env=os.environ | {"CACHECAST_APP_SECRET": DEMO_APP.secret},
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
    finally:
        assert node.stdout is not None
        children = Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), 15)
        assert node.wait(60) == 0
        node.stdout.close()
    used = set(re.findall(r"^\d+ +(\w+)\(", log.read_text(), re.MULTILINE))
    assert {"bind", "sendto", "epoll_wait"} <= used
    assert used - allowed() == set()
