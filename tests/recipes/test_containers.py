"""docs/examples/Dockerfile and compose.yml, without a container engine: none is on these machines.

What the Dockerfile says is done step by step under a folder that stands for the image's root, and
what the compose file says is started on loopback, with Debian's nginx and an engine of the tests.
Not seen by this: the images that they are based on, and the network between containers.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.cluster.engines import Plain, Server, binary_of
from tests.cluster.nodes import free_port
from tests.loadtest.proxies import nginx

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
APP = {"CACHECAST_APP_ID": "4242", "CACHECAST_APP_KEY": "key", "CACHECAST_APP_SECRET": "secret"}

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def instructions(text: str) -> list[tuple[str, str]]:
    lines = re.sub(r"\\\n", " ", text).splitlines()
    words = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    return [(name, rest) for name, rest in words]


class Image:
    """A Dockerfile, carried out under a folder for each stage."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.env, self.stages = folder, {}, {}
        self.user, self.command, self.health, self.stop = "root", [], "", ""
        for name, rest in instructions((EXAMPLES / "Dockerfile").read_text()):
            getattr(self, f"do_{name.lower()}")(rest)

    def here(self, text: str) -> str:
        """Paths of the image, and its Python."""
        text = re.sub(r"(?<![\w/.])/(opt|src)\b", rf"{self.root}/\1", text)
        return re.sub(r"^python\b", sys.executable, text)

    def do_from(self, rest: str) -> None:
        base, _, stage = rest.partition(" AS ")
        assert base.startswith("python:3.")
        self.root = self.folder / (stage or "final")
        self.root.mkdir()
        self.stages[stage or "final"] = self.root
        self.env, self.user = {}, "root"

    def do_copy(self, rest: str) -> None:
        *options, source, target = rest.split()
        there = ROOT if source == "." else Path(source)
        if options:
            there = self.stages[options[0].removeprefix("--from=")] / source.lstrip("/")
        goal = self.root / target.lstrip("/")
        goal.parent.mkdir(parents=True, exist_ok=True)
        if there == ROOT:
            goal.symlink_to(ROOT)  # as it would be copied, and nothing is written to it
        else:
            # A virtual environment knows its own path, which stays the same in the image.
            goal.symlink_to(there)

    def do_run(self, rest: str) -> None:
        if rest.startswith("useradd "):
            assert shlex.split(rest)[-1] == "cachecast"  # no account is made on this machine
            self.users = {"cachecast"}
            return
        subprocess.run(self.here(rest), shell=True, check=True, timeout=300)

    def do_user(self, rest: str) -> None:
        assert rest in self.users
        self.user = rest

    def do_env(self, rest: str) -> None:
        for pair in shlex.split(rest):
            name, _, value = pair.partition("=")
            self.env[name] = self.here(value).replace("$PATH", os.environ["PATH"])

    def do_expose(self, rest: str) -> None:
        self.port = rest

    def do_healthcheck(self, rest: str) -> None:
        self.health = rest.partition("CMD ")[2]

    def do_stopsignal(self, rest: str) -> None:
        self.stop = rest

    def do_entrypoint(self, rest: str) -> None:
        self.command = yaml.safe_load(rest)

    def do_cmd(self, rest: str) -> None:
        self.command = [*self.command, *yaml.safe_load(rest)]

    def healthy(self, port: int) -> bool:
        command = self.health.replace(f":{self.port}/", f":{port}/")
        return not subprocess.run(
            command, shell=True, env=os.environ | self.env, capture_output=True, check=False
        ).returncode

    @contextmanager
    def running(self, port: int, **environment: str) -> Iterator[subprocess.Popen[str]]:
        """As `docker run` would; only the address is loopback's."""
        assert self.env["CACHECAST_HOST"] == "0.0.0.0"
        loopback = {"CACHECAST_HOST": "127.0.0.1", "CACHECAST_PORT": str(port)}
        process = subprocess.Popen(
            self.command, env=os.environ | self.env | environment | loopback, text=True,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            assert any(line.startswith("Cachecast ready on") for line in process.stdout)
            yield process
        finally:
            process.terminate()
            code = process.wait(30)
            process.stdout.close()
        assert code == 0

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.command[0], *words], env=os.environ | self.env | environment,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return Image(tmp_path_factory.mktemp("image"))


def test_a_container_is_healthy_once_it_serves_and_ends_in_order(image: Image) -> None:
    port = free_port()
    assert (image.user, image.stop) == ("cachecast", "SIGTERM")
    assert not image.healthy(port)
    with image.running(port, **APP):
        assert image.healthy(port)
        url = f"http://127.0.0.1:{port}"
        assert not image.run("publish", "cache-a", "tick", "1", "--url", url, **APP).returncode
        assert image.run("cache", "cache-a", "--url", url, **APP).stdout == "1\n"


def test_a_container_without_an_app_says_what_to_give_it(image: Image) -> None:
    """It listens on all addresses, where the demonstration app is not served."""
    done = image.run("serve")
    assert done.returncode == 1
    assert "cachecast generate app" in done.stderr


def compose(environment: dict[str, str]) -> dict[str, Any]:
    """The services, with variables filled in as compose does."""
    text = (EXAMPLES / "compose.yml").read_text()
    wanted = set(re.findall(r"\$\{(\w+)", text))
    assert wanted == set(environment)
    text = re.sub(r"\$\{(\w+)(?::\?[^}]*)?\}", lambda found: environment[found[1]], text)
    return yaml.safe_load(text)["services"]


def test_what_the_compose_file_starts_is_one_broker(image: Image, tmp_path: Path) -> None:
    """Its engine in memory only, its two nodes, and its proxy, which clients come to."""
    services = compose({"ENGINE_PASSWORD": "a-long-word", "APP_KEY": "key", "APP_SECRET": "secret"})
    node = services["node"]
    assert (EXAMPLES / node["build"]["context"]).resolve() == ROOT
    assert ROOT / node["build"]["dockerfile"] == EXAMPLES / "Dockerfile"
    engine_port, proxy_port, *ports = (free_port() for _ in range(2 + node["deploy"]["replicas"]))
    command = shlex.split(services["valkey"]["command"])
    assert command[0] == "valkey-server"
    environment = {
        name: value.replace("valkey:6379", f"127.0.0.1:{engine_port}")
        for name, value in node["environment"].items()
    }
    with ExitStack() as stack:
        password = command[command.index("--requirepass") + 1]
        at = command.index("--requirepass")
        engine = stack.enter_context(
            Server(binary_of("valkey"), "--port", str(engine_port), "--bind", "127.0.0.1",
                   *command[1:at], *command[at + 2 :])
        )  # fmt: skip
        with Plain(engine.path) as plain:
            plain.must("CONFIG", "SET", "requirepass", password)
        for port in ports:
            stack.enter_context(image.running(port, **environment))
        block = proxy_block(services["proxy"], proxy_port, ports)
        stack.enter_context(nginx(tmp_path, block, [proxy_port]))
        for _ in ports:  # nginx goes round
            done = image.run(
                "publish", "cache-a", "tick", "1", "--url", f"http://127.0.0.1:{proxy_port}",
                **environment,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
        for port in (proxy_port, *ports):
            done = image.run(
                "subscribe", "cache-a", "--count", "1", "--url", f"ws://127.0.0.1:{port}",
                **environment,
            )  # fmt: skip
            assert "tick" in done.stdout, done.stderr


def proxy_block(proxy: dict[str, Any], port: int, nodes: list[int]) -> str:
    """What the service's file says, at a port here and before these nodes."""
    source = proxy["volumes"][0].partition(":")[0]
    servers = " ".join(f"server 127.0.0.1:{node};" for node in nodes)
    text = (EXAMPLES / source).read_text()
    return text.replace("listen 80", f"listen 127.0.0.1:{port}").replace(
        "server node:6001;", servers
    )
