"""docs/examples for nginx, HAProxy and Caddy: what is copied from there works with Debian's own.

The files are taken as they stand, but for addresses and paths. The doctor of the load test says
whether anything is wrong with the deployment: it connects, subscribes on every kind of channel,
publishes, reads, waits, and looks at certificates and headers.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme

from cachecast_load.doctor import examine
from cachecast_load.doctor.findings import Kind
from cachecast_load.plan.target import make_target
from tests.cluster.nodes import free_port, node_process

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
APP = {"app_id": "4242", "key": "app-key", "secret": "change-this"}
CONFIG = """
[server]
trusts_proxy = true

[[apps]]
id = "4242"
key = "app-key"
secret = "change-this"
is_tls_only = true
allows_client_events = true
"""

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def nginx(folder: Path, text: str) -> list[str]:
    folders = "\n".join(
        f"{kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    path = folder / "nginx.conf"
    path.write_text(
        f"daemon off; pid {folder}/pid; error_log stderr crit;\n"
        f"events {{}}\nhttp {{ access_log off; {folders}\n{text}\n}}\n"
    )
    return ["nginx", "-c", str(path), "-e", "stderr"]


def haproxy(folder: Path, text: str) -> list[str]:
    path = folder / "haproxy.cfg"
    path.write_text(text)
    return ["haproxy", "-db", "-q", "-f", str(path)]


def caddy(folder: Path, text: str) -> list[str]:
    path = folder / "Caddyfile"
    path.write_text("{\n  admin off\n  auto_https off\n}\n" + text)
    return ["caddy", "run", "--config", str(path), "--adapter", "caddyfile"]


PROXIES = {"nginx.conf": nginx, "haproxy.cfg": haproxy, "Caddyfile": caddy}


@contextmanager
def running(command: list[str], port: int, folder: Path) -> Iterator[None]:
    found = shutil.which(command[0], path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        reason = f"Debian's {command[0]} is not installed"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    process = subprocess.Popen(
        [found, *command[1:]],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"HOME": str(folder), "XDG_DATA_HOME": str(folder)},
    )
    try:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            assert process.poll() is None, f"{command[0]} does not take the example"
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.02)
        yield
        assert process.poll() is None, f"{command[0]} has ended"
    finally:
        process.terminate()
        process.wait(20)


class Place:
    """An example's addresses and files, and what they are here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.node, self.other = free_port(), free_port(), free_port()
        authority = trustme.CA()
        certificate = authority.issue_cert("localhost", "127.0.0.1")
        certificate.private_key_pem.write_to_path(folder / "key")
        for blob in certificate.cert_chain_pems:
            blob.write_to_path(folder / "cert", append=True)
        certificate.private_key_and_cert_chain_pem.write_to_path(folder / "both")
        authority.cert_pem.write_to_path(folder / "ca")
        (folder / "cachecast.toml").write_text(CONFIG)

    def here(self, text: str) -> str:
        """The text, with every address and path of the example replaced; each must be there."""
        for name, there in {
            "/etc/ssl/ws.example.org.with-key.pem": f"{self.folder}/both",
            "/etc/ssl/ws.example.org.pem": f"{self.folder}/cert",
            "/etc/ssl/ws.example.org.key": f"{self.folder}/key",
            "listen 443 ssl": f"listen 127.0.0.1:{self.port} ssl",
            "server_name ws.example.org": "server_name localhost",
            "bind :443": f"bind 127.0.0.1:{self.port}",
            "ws.example.org {": f"https://localhost:{self.port} {{\n    bind 127.0.0.1",
            "127.0.0.1:6001": f"127.0.0.1:{self.node}",
            "127.0.0.1:6003": f"127.0.0.1:{self.other}",
        }.items():
            text = text.replace(name, there)
        assert "example.org" not in "\n".join(
            line for line in text.splitlines() if not line.lstrip().startswith("#")
        )
        return text

    def examine(self, **options: object) -> list[str]:
        """What the doctor finds wrong."""
        outcome = examine(
            make_target(
                **{"url": f"wss://localhost:{self.port}", **APP, **options},
                ca_file=str(self.folder / "ca"), needs_api=False,
            ),
            0.2,
        )  # fmt: skip
        return [str(found) for found in outcome.findings if found.kind is Kind.WRONG]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@contextmanager
def deployed(
    place: Place, name: str, text: str | None = None, *, port: int | None = None
) -> Iterator[None]:
    text = (EXAMPLES / name).read_text() if text is None else text
    with ExitStack() as stack:
        stack.enter_context(
            node_process("--config", str(place.folder / "cachecast.toml"), "--port",
                         str(port or place.node), "--control", "off")
        )  # fmt: skip
        command = PROXIES[name](place.folder, place.here(text))
        stack.enter_context(running(command, place.port, place.folder))
        yield


@pytest.mark.parametrize("name", PROXIES)
def test_behind_what_is_shown_nothing_is_wrong(place: Place, name: str) -> None:
    """TLS ends at the proxy, and an app that takes nothing else is served."""
    with deployed(place, name):
        assert place.examine() == []


#: What somebody leaves out -> what the doctor says of it.
LEFT_OUT = {
    "upgrade headers": (
        "nginx.conf", "        proxy_set_header Upgrade $http_upgrade;\n", "", "pgrade",
    ),
    "the scheme": (
        "nginx.conf", "        proxy_set_header X-Forwarded-Proto $scheme;\n", "",
        "X-Forwarded-Proto",
    ),
    "the scheme at HAProxy": (
        "haproxy.cfg", "    http-request set-header X-Forwarded-Proto https\n", "",
        "X-Forwarded-Proto",
    ),
    "room for bodies": ("nginx.conf", "client_max_body_size 4m", "client_max_body_size 8k", "413"),
}  # fmt: skip


@pytest.mark.parametrize("what", LEFT_OUT)
def test_what_is_left_out_is_named(place: Place, what: str) -> None:
    name, line, instead, words = LEFT_OUT[what]
    text = (EXAMPLES / name).read_text()
    assert line in text
    with deployed(place, name, text.replace(line, instead)):
        found = place.examine()
    assert any(words in one for one in found), found


#: How an example names its second node.
SECOND = {
    "nginx.conf": ("    # server 127", "    server 127"),
    "haproxy.cfg": ("    # server b", "    server b"),
    "Caddyfile": ("reverse_proxy 127.0.0.1:6001", "reverse_proxy 127.0.0.1:6001 127.0.0.1:6003"),
}


@pytest.mark.parametrize("name", PROXIES)
def test_a_node_that_is_gone_is_passed_over(place: Place, name: str) -> None:
    """Nobody answers at the first one's address."""
    line, both = SECOND[name]
    text = (EXAMPLES / name).read_text()
    assert line in text
    with deployed(place, name, text.replace(line, both), port=place.other):
        assert place.examine() == []
