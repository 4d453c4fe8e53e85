"""Deployments that the load test is run against: other people's servers, and ours as it is put up.

Each is a context manager that gives the options of `cachecast load run`; everything it starts
listens on loopback only and ends with it. `MISSING` says what to install.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import trustme

from tests.loadtest.conftest import start_engine, start_saboteur
from tests.loadtest.saboteur import APP_ID, KEY, MASTER_KEY, SECRET

HERE = Path(__file__).parent
SOKETI = HERE / "node_modules" / "@soketi" / "soketi" / "bin" / "server.js"
#: How long a cached value lives: a run that waits for its end must not take half an hour.
TTL_S = 3
_READY_S = 30.0
_NGINX = """
daemon off;
pid {folder}/pid;
error_log stderr warn;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port}{tls};
        {certificate}
        location /realtime/ {{
            proxy_pass http://{inner}{stripped};
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $http_connection;
            proxy_set_header Host $http_host;
            proxy_read_timeout 180s;
        }}
    }}
}}
"""


@dataclass(frozen=True)
class Deployment:
    """Something to aim at.

    Attributes:
        options: of `cachecast load run`.
        version: what it is, for a table of results.
    """

    options: tuple[str, ...]
    version: str


def free_port() -> int:
    """Return a port that nothing listens at right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def why_missing(name: str) -> str | None:
    """Return what to install before a deployment can be put up; None if it can."""
    if name == "soketi":
        if shutil.which("node") is None:
            return "Node is not installed"
        return None if SOKETI.exists() else "npm ci --prefix tests/targets"
    if name == "sockudo":
        return None if _sockudo() else "cargo install sockudo (.ci/sockudo does), or set SOCKUDO"
    if name in ("nginx-kept", "nginx-stripped", "everything"):
        return None if _nginx() else "Debian's nginx is not installed"
    return None


@contextmanager
def soketi() -> Iterator[Deployment]:
    """soketi, with its cluster's discovery kept to this machine and to itself."""
    port, metrics = free_port(), free_port()
    app = {"id": APP_ID, "key": KEY, "secret": SECRET, "enableClientMessages": True}
    config = {
        "host": "127.0.0.1",
        "port": port,
        "adapter.driver": "local",
        # Or it announces itself by UDP on every network, and listens to whoever does the same.
        "cluster.address": "127.0.0.1",
        "cluster.broadcast": "127.0.0.1",
        "cluster.port": free_port(),
        "metrics.enabled": True,
        "metrics.host": "127.0.0.1",
        "metrics.port": metrics,
        "channelLimits.cacheTtl": TTL_S,
        "appManager.array.apps": [app],
    }
    version = json.loads((SOKETI.parents[1] / "package.json").read_text())["version"]
    with TemporaryDirectory() as folder:
        path = Path(folder, "soketi.json")
        path.write_text(json.dumps(config))
        with _process(["node", str(SOKETI), "start", f"--config={path}"], port, folder):
            yield Deployment(_aim(port, metrics=metrics), f"soketi {version}")


@contextmanager
def sockudo() -> Iterator[Deployment]:
    """sockudo, without its rate limits, which are twenty connections a minute by default."""
    port, metrics = free_port(), free_port()
    app = {"id": APP_ID, "key": KEY, "secret": SECRET, "enable_client_messages": True}
    config = {
        "host": "127.0.0.1",
        "port": port,
        "adapter": {"driver": "local"},
        "app_manager": {"driver": "memory", "array": {"apps": [{**app, "enabled": True}]}},
        "cache": {"driver": "memory", "memory": {"ttl": TTL_S}},
        "queue": {"driver": "memory"},
        "rate_limiter": {"enabled": False},
        "metrics": {"enabled": True, "host": "127.0.0.1", "port": metrics},
    }
    program = _sockudo()
    assert program is not None
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    with TemporaryDirectory() as folder:
        path = Path(folder, "config.json")
        path.write_text(json.dumps(config))
        with _process([program, "--config", str(path)], port, folder):
            yield Deployment(_aim(port, metrics=metrics), version.stdout.strip())


@contextmanager
def cachecast(*options: str) -> Iterator[Deployment]:
    """Put up the engine of this tree."""
    server = start_engine("--cache-ttl", str(TTL_S), *options)
    try:
        yield Deployment(_aim(_port_of(server.url)), "Cachecast")
    finally:
        server.end()


@contextmanager
def behind_nginx(*, is_kept: bool, tls: bool = False, workers: int = 0) -> Iterator[Deployment]:
    """Cachecast below a path of nginx, which takes the path off or leaves it."""
    nginx = _nginx()
    assert nginx is not None
    options = ["--workers", str(workers)] if workers else []
    with TemporaryDirectory() as folder, cachecast(*options) as inner:
        # Workers of nginx that was started by root are somebody else.
        Path(folder).chmod(0o755)
        port, extra = free_port(), []
        if tls:
            extra = ["--ca-file", str(_certify(Path(folder)))]
        text = _NGINX.format(
            folder=folder,
            port=port,
            tls=" ssl" if tls else "",
            certificate=f"ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem;"
            if tls
            else "",
            inner=inner.options[1].removeprefix("ws://"),
            stripped="" if is_kept else "/",
        )
        Path(folder, "nginx.conf").write_text(text)
        command = [nginx, "-p", folder, "-c", f"{folder}/nginx.conf", "-e", "stderr"]
        with _process(command, port, folder):
            options = _aim(port, scheme="wss" if tls else "ws", path="/realtime")
            yield Deployment((*options, *extra), "Cachecast behind nginx")


@contextmanager
def with_tls() -> Iterator[Deployment]:
    """Cachecast with a certificate of a private authority."""
    with TemporaryDirectory() as folder:
        authority = _certify(Path(folder))
        options = ("--tls-cert", f"{folder}/cert.pem", "--tls-key", f"{folder}/key.pem")
        with cachecast(*options) as inner:
            aim = _aim(int(inner.options[1].rsplit(":", 1)[1]), scheme="wss")
            yield Deployment((*aim, "--ca-file", str(authority)), "Cachecast with TLS")


@contextmanager
def authorized(inner: Callable[[], object], body: str) -> Iterator[Deployment]:
    """A deployment whose subscriptions are signed by an endpoint that chooses the user ids."""
    endpoint = start_saboteur({"own_users": "each", "auth_body": body})
    try:
        with inner() as deployment:  # type: ignore[attr-defined]
            url = endpoint.url.replace("ws", "http", 1) + "/auth"
            extra = ("--auth-endpoint", url, "--auth-body", body)
            key = ("--encryption-key", base64.b64encode(MASTER_KEY).decode())
            yield Deployment((*deployment.options, *extra, *key), deployment.version)
    finally:
        endpoint.end()


DEPLOYMENTS: dict[str, Callable[[], object]] = {
    "soketi": soketi,
    "sockudo": sockudo,
    "cachecast": cachecast,
    "workers": lambda: cachecast("--workers", "2"),
    "nginx-kept": lambda: behind_nginx(is_kept=True),
    "nginx-stripped": lambda: behind_nginx(is_kept=False),
    "tls": with_tls,
    "auth-form": lambda: authorized(cachecast, "form"),
    "auth-json": lambda: authorized(cachecast, "json"),
    "everything": lambda: authorized(
        lambda: behind_nginx(is_kept=False, tls=True, workers=2), "json"
    ),
}


def _aim(port: int, *, scheme: str = "ws", path: str = "", metrics: int = 0) -> tuple[str, ...]:
    options = ["--target", f"{scheme}://127.0.0.1:{port}{path}", "--app-id", APP_ID, "--key", KEY]
    if metrics:
        options += ["--metrics-url", f"http://127.0.0.1:{metrics}/metrics"]
    return tuple(options)


def _port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1])


def _certify(folder: Path) -> Path:
    """Write a certificate for 127.0.0.1 and return the file of its authority."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    return folder / "ca.pem"


def _nginx() -> str | None:
    return shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")


def _sockudo() -> str | None:
    return os.environ.get("SOCKUDO") or shutil.which("sockudo")


@contextmanager
def _process(command: list[str], port: int, folder: str) -> Iterator[None]:
    """Run a server until the block ends; begin when it accepts connections."""
    with ExitStack() as stack:
        log = stack.enter_context(Path(folder, "log").open("w+"))
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        stack.callback(_end, process)
        deadline = time.monotonic() + _READY_S
        while not _accepts(port):
            if process.poll() is not None or time.monotonic() > deadline:
                log.seek(0)
                raise AssertionError(f"{command[0]} did not get ready: {log.read()[-2000:]}")
            time.sleep(0.05)
        yield


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
