"""What ``serve`` does to its own process; each in a process of its own."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from cachecast.cli import process
from cachecast.errors import ConfigError


def python(script):
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_core_dumps_are_off_and_the_process_is_sealed():
    out = python(
        "import resource, ctypes\n"
        "from cachecast.cli.process import disable_core_dumps\n"
        "print(disable_core_dumps(), *resource.getrlimit(resource.RLIMIT_CORE),"
        " ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"  # PR_GET_DUMPABLE
    )
    assert out == ["True", "0", "0", "0"]


def test_file_limit_is_raised_to_what_the_system_allows():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    out = python(
        "import resource\n"
        "from cachecast.cli.process import raise_file_limit\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, (64, {hard}))\n"
        "print(raise_file_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    assert out == [str(hard)] * 3


def test_file_limit_that_is_unlimited_on_paper_is_taken_at_what_works(monkeypatch):
    """As on macOS."""
    limits = []

    def set_limit(_, pair):
        if pair[0] > 10_240:
            raise ValueError("not allowed to raise maximum limit")
        limits.append(pair)

    monkeypatch.setattr(process.resource, "getrlimit", lambda _: (256, 1 << 63))
    monkeypatch.setattr(process.resource, "setrlimit", set_limit)
    assert process.raise_file_limit() == 10_240
    assert limits == [(10_240, 1 << 63)]


def test_memory_lock_that_is_forbidden_names_the_limit(monkeypatch):
    class Libc:
        def mlockall(self, flags):
            assert flags == 3  # what is there and what will come
            process.ctypes.set_errno(1)
            return -1

    monkeypatch.setattr(process.ctypes, "CDLL", lambda *_, **__: Libc())
    with pytest.raises(ConfigError) as caught:
        process.lock_memory()
    assert caught.value.field == "server.locks_memory"
    assert "RLIMIT_MEMLOCK is" in caught.value.rule
    assert "ulimit -l" in caught.value.remedy


@pytest.mark.parametrize(
    ("limit", "capabilities", "answer"),
    [
        (-1, "0000000000000000", None),
        (1 << 30, "0000000000000000", 1 << 30),
        (1 << 30, "0000000000004000", None),  # CAP_IPC_LOCK, as root has it
        (1 << 30, None, 1 << 30),
    ],
)
def test_memory_lock_says_how_much_may_be_locked(monkeypatch, limit, capabilities, answer):
    """Past it the kernel gives no memory at all, which only an operator can prevent."""

    class Libc:
        def mlockall(self, flags):
            return 0

    def read(path, **_):
        if capabilities is None:
            raise FileNotFoundError
        return f"Name:\tcachecast\nCapEff:\t{capabilities}\nCapBnd:\t000001ffffffffff\n"

    monkeypatch.setattr(process.ctypes, "CDLL", lambda *_, **__: Libc())
    monkeypatch.setattr(process.resource, "getrlimit", lambda _: (limit, limit))
    monkeypatch.setattr(process.Path, "read_text", read)
    assert process.lock_memory() == answer


def test_garbage_collector_looks_at_what_is_new_in_small_parts_and_rarely_at_the_rest():
    """Over a hundred thousand objects at once it stopped the loop for 20 to 50 ms."""
    out = python(
        "import gc\n"
        "from cachecast.cli.process import settle_garbage_collector\n"
        "settle_garbage_collector()\n"
        "before = [each['collections'] for each in gc.get_stats()]\n"
        "kept = [[n] for n in range(100_000)]\n"
        "new, middle, old = [\n"
        "    each['collections'] - n for each, n in zip(gc.get_stats(), before)\n"
        "]\n"
        "print(gc.isenabled(), gc.get_freeze_count() > 10_000, 40 <= new + middle <= 60, old)"
    )
    assert out == ["True", "True", "True", "0"]


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1),
     ("1600000 100000", 8), ("", 8), (None, 8)],
)  # fmt: skip
def test_cores_are_those_that_it_may_keep_busy(monkeypatch, quota, cores):
    """Of its mask, or fewer where its container is allowed less."""

    def read(path, **_):
        assert str(path) == "/sys/fs/cgroup/cpu.max"
        if quota is None:
            raise FileNotFoundError
        return quota

    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr("pathlib.Path.read_text", read)
    assert process.count_cores() == cores
