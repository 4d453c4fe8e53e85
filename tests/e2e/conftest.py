"""Servers and SDKs for the end-to-end tests; each is started once and ended by its pid.

Without Node or Chromium the tests that need them are skipped, and say so: ``make test`` needs only
Python. Where ``CI`` is true nothing is skipped: a missing SDK is a failure there.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pusher import Pusher

from tests.e2e.clients import Backend, JsClient
from tests.e2e.program import Program
from tests.e2e.server import ServerProcess
from tests.e2e.world import MAIN, MASTER_KEY, Credentials, write_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).parent

#: Longer than conftest's for others: a browser may have to start first.
TEST_LIMIT_S = 100


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(TEST_LIMIT_S))


def _miss(reason: str) -> None:
    """Skip for want of a component, but never in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}, and CI skips nothing", pytrace=False)
    pytest.skip(reason)


def require_node() -> str:
    """Return the path of node, or skip."""
    node = shutil.which("node")
    if node is None:
        _miss("Node is not installed")
    if not (HERE / "node_modules" / ".package-lock.json").exists():
        _miss("the npm SDKs are not installed: npm ci --prefix tests/e2e")
    return str(node)


def require_chromium() -> str:
    """Return the path of Debian's Chromium, or skip."""
    found = (
        os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    )
    if found is None:
        _miss("Chromium is not installed")
    return str(found)


@pytest.fixture(scope="session", params=["1", "2"], ids=["alone", "workers"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """One node with every app of world.py, without webhooks; as one process, then as two."""
    directory = tmp_path_factory.mktemp("server")
    config = str(write_config(directory))
    process = ServerProcess(directory, "--config", config, "--workers", request.param)
    yield process
    process.stop()


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Start servers with options of their own."""
    processes: list[ServerProcess] = []

    def start(*arguments: str, max_files: int | None = None) -> ServerProcess:
        processes.append(ServerProcess(tmp_path, *arguments, max_files=max_files))
        return processes[-1]

    yield start
    for process in processes:
        process.stop()


@pytest.fixture(scope="session")
def backend_program() -> Iterator[Program]:
    """Node with the npm `pusher` library: an application's backend."""
    program = Program([require_node(), "javascript/backend.js"], HERE)
    yield program
    program.end()


@pytest.fixture(scope="session")
def node_clients() -> Iterator[Program]:
    """Node with pusher-js and laravel-echo."""
    program = Program([require_node(), "javascript/clients.js"], HERE)
    yield program
    program.end()


@pytest.fixture(scope="session")
def chromium_clients(backend_program: Program) -> Iterator[Program]:
    """Chromium, whose pages come from the backend."""
    origin = f"http://127.0.0.1:{backend_program.ready['port']}"
    command = [sys.executable, "browser.py", require_chromium(), origin]
    program = Program(command, HERE)
    yield program
    program.end()


@pytest.fixture(params=["node", "chromium"])
def clients(request: pytest.FixtureRequest) -> Program:
    """pusher-js where the test's users are: in Node, then in Chromium."""
    program: Program = request.getfixturevalue(f"{request.param}_clients")
    return program


@pytest.fixture
def open_backend(backend_program: Program) -> Callable[..., Backend]:
    """Set up an application's backend for an app on a server."""

    def open_(server: ServerProcess, app: Credentials = MAIN) -> Backend:
        return Backend(backend_program, server, app)

    return open_


@pytest.fixture
def backend(open_backend: Callable[..., Backend], server: ServerProcess) -> Backend:
    """The main app's backend on the session's server."""
    return open_backend(server)


@pytest.fixture
def open_client(clients: Program, backend: Backend) -> Iterator[Callable[..., JsClient]]:
    """Open pusher-js clients; they are closed after the test."""
    yield from _open_clients(clients, backend)


@pytest.fixture
def open_node_client(node_clients: Program, backend: Backend) -> Iterator[Callable[..., JsClient]]:
    """The same in Node only, for what does not depend on where pusher-js runs."""
    yield from _open_clients(node_clients, backend)


@pytest.fixture
def open_page(chromium_clients: Program, backend: Backend) -> Iterator[Callable[..., JsClient]]:
    """The same in Chromium only."""
    yield from _open_clients(chromium_clients, backend)


def _open_clients(program: Program, backend: Backend) -> Iterator[Callable[..., JsClient]]:
    opened: list[JsClient] = []

    def open_(**options: object) -> JsClient:
        connects = options.pop("connects", True)
        client = JsClient(program, options.pop("backend", backend), **options)  # type: ignore[arg-type]
        opened.append(client)
        if connects:
            client.wait_state("connected")
        return client

    yield open_
    for client in opened:
        client.close()


@pytest.fixture
def python_sdk(server: ServerProcess) -> Pusher:
    """The PyPI `pusher` library, pointed at the session's server."""
    return make_python_sdk(server)


def make_python_sdk(server: ServerProcess, app: Credentials = MAIN) -> Pusher:
    return Pusher(
        app_id=app.id,
        key=app.key,
        secret=app.secret,
        host="127.0.0.1",
        port=server.port,
        ssl=server.is_tls,
        encryption_master_key_base64=MASTER_KEY,
    )
