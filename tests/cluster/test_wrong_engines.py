"""`cachecast serve` with every wrong engine: it says why in one line, and what to do, at start."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trustme

from tests.cluster.engines import ENGINES, MEMORY_ONLY, Plain, Server, binary_of
from tests.cluster.nodes import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow  # a process for each refusal

LIMIT_S = 20.0

STRICT = (*MEMORY_ONLY, "--slowlog-max-len", "0", "--crash-log-enabled", "no")


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Server]:
    """One that a node takes, until a test spoils it."""
    with Server(binary_of(request.param), "--port", "0", *STRICT) as server:
        with Plain(server.path) as plain:
            for name in plain.must("CONFIG", "GET", "commandlog-*-max-len"):
                plain.must("CONFIG", "SET", name, 0)
        yield server


def refusal(*options: str, **environment: str) -> str:
    """What `serve` says on its way out."""
    done = subprocess.run(
        [sys.executable, "-m", "cachecast", "serve", "--port", "0", *options],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env=os.environ | environment,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "ready" not in done.stdout
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("cachecast: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


@contextmanager
def answering(answer: bytes | None) -> Iterator[int]:
    """A server that answers everything with the same, or with nothing at all."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        open_ones: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    one, _ = listener.accept()
                    open_ones.append(one)
                    if answer is not None:
                        one.recv(4096)
                        one.sendall(answer)
                except OSError:
                    return

        # It ends with its socket.
        threading.Thread(target=serve, daemon=True).start()  # noqa: TID251
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        for one in open_ones:
            one.close()


def test_nobody_is_there(tmp_path: Path) -> None:
    assert "cannot be reached: No such file" in refusal("--bus", f"unix://{tmp_path}/none")
    assert "cannot be reached" in refusal("--bus", f"redis://127.0.0.1:{free_port()}")


def test_a_name_that_nobody_knows() -> None:
    assert "a name that is not known" in refusal("--bus", "redis://engine.invalid")


def test_a_password_that_is_wrong_or_missing(engine: Server) -> None:
    with Plain(engine.path) as plain:
        plain.must("CONFIG", "SET", "requirepass", "right")
    url = f"unix://{engine.path}"

    assert "wants a password. Set bus.password" in refusal("--bus", url)
    said = refusal("--bus", url, CACHECAST_BUS_PASSWORD="hunter2")
    assert "refuses user or password" in said
    assert "hunter2" not in said


def test_an_acl_user_who_may_not(engine: Server) -> None:
    with Plain(engine.path) as plain:
        plain.must("ACL", "SETUSER", "weak", "on", ">pw", "~other:*", "+@all")
    said = refusal(
        "--bus", f"unix://{engine.path}", "--bus-username", "weak", CACHECAST_BUS_PASSWORD="pw"
    )
    assert "ACL" in said
    assert "+config|get" in said


@pytest.mark.parametrize(
    ("setting", "value", "remedy"),
    [
        ("save", "60 1", 'CONFIG SET save ""'),
        ("appendonly", "yes", "CONFIG SET appendonly no"),
        ("maxmemory-policy", "allkeys-lru", "CONFIG SET maxmemory-policy noeviction"),
    ],
)
def test_one_that_writes_or_evicts(engine: Server, setting: str, value: str, remedy: str) -> None:
    with Plain(engine.path) as plain:
        plain.must("CONFIG", "SET", setting, value)

    said = refusal("--bus", f"unix://{engine.path}")

    assert f"{setting} is" in said
    assert remedy in said


def test_a_replica(engine: Server) -> None:
    with Plain(engine.path) as plain:
        plain.must("REPLICAOF", "127.0.0.1", str(free_port()))

    said = refusal("--bus", f"unix://{engine.path}")

    assert "is a replica" in said
    assert "bus.sentinel" in said


def test_one_that_reads_a_data_set() -> None:
    answer = b"-LOADING Redis is loading the dataset in memory\r\n"
    with answering(answer) as port:
        said = refusal("--bus", f"redis://127.0.0.1:{port}")
    assert "loading a data set" in said


def test_one_that_is_too_old() -> None:
    answer = b"-ERR unknown command 'HELLO'\r\n"
    with answering(answer) as port:
        said = refusal("--bus", f"redis://127.0.0.1:{port}")
    assert "Redis 7.0 or any Valkey is needed" in said


def test_another_kind_of_server() -> None:
    with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        said = refusal("--bus", f"redis://127.0.0.1:{port}")
    assert "no RESP3" in said


def test_one_that_says_nothing() -> None:
    began = time.monotonic()
    with answering(None) as port:
        said = refusal("--bus", f"redis://127.0.0.1:{port}")
    assert f"cannot join the others by 127.0.0.1:{port}/0. Nothing was heard" in said
    assert "bus check" in said
    assert time.monotonic() - began < LIMIT_S


def test_tls_with_the_wrong_authority_and_with_none(tmp_path: Path) -> None:
    """Debian's Redis speaks TLS."""
    ours, other = trustme.CA(), trustme.CA()
    ours.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    other.cert_pem.write_to_path(str(tmp_path / "other.pem"))
    issued = ours.issue_cert("localhost", "127.0.0.1")
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    port = free_port()
    options = (
        "--port", "0", *STRICT, "--tls-port", str(port), "--bind", "127.0.0.1",
        "--tls-auth-clients", "no", "--tls-cert-file", str(tmp_path / "cert.pem"),
        "--tls-key-file", str(tmp_path / "key.pem"), "--tls-ca-cert-file", str(tmp_path / "ca.pem"),
    )  # fmt: skip
    with Server(binary_of("redis"), *options) as server:
        url = f"rediss://127.0.0.1:{port}"
        for said in (
            refusal("--bus", url),
            refusal("--bus", url, "--bus-tls-ca", str(tmp_path / "other.pem")),
        ):
            assert "certificate is refused" in said
            assert "bus.tls_ca" in said
        assert "bus.tls_ca" in refusal("--bus", url, "--bus-tls-ca", str(tmp_path / "none.pem"))
        plain = refusal("--bus", f"redis://127.0.0.1:{port}")
        assert "engine" in plain
        del server


def test_plain_where_tls_is_wanted(engine: Server) -> None:
    with Plain(engine.path) as plain:
        port = free_port()
        plain.must("CONFIG", "SET", "port", port)

    assert "Does that port speak TLS" in refusal("--bus", f"rediss://127.0.0.1:{port}")
