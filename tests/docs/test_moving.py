"""What the pages on moving and on frameworks show, with the libraries that they name.

Each client configuration is the page's own, but for the port, and is given to the unmodified
library; then a value that was published before has to come.
"""

from __future__ import annotations

import json
import re
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from pusher import Pusher

from cachecast.config import FileConfig, load_config
from tests.docs.pages import DOCS, snippet, snippets
from tests.e2e.conftest import HERE as E2E
from tests.e2e.conftest import require_node
from tests.e2e.server import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LIBRARIES = """
import Echo from "laravel-echo";
import { createRequire } from "node:module";
const Pusher = createRequire(import.meta.url)("pusher-js");
const PusherJS = Pusher;
globalThis.window = { Pusher };
const show = (data) => console.log("price", data.eur);
"""
#: What makes a client that is only configured show the price, by the variable that it is in.
BIND = {
    name: f'{name}.subscribe("cache-prices").bind("tick", show);' for name in ("pusher", "client")
}
BIND |= {
    name: f'{name}.channel("cache-prices").listen(".tick", show);'
    for name in ("echo", "laravelEcho")
}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., ServerProcess]]:
    """Start servers with configurations of pages, each once; every test publishes its own value."""
    processes: dict[str, ServerProcess] = {}

    def start_(configuration: str = "") -> ServerProcess:
        if configuration not in processes:
            folder = tmp_path_factory.mktemp("server")
            path = folder / "cachecast.toml"
            path.write_text(re.sub(r"^(port|host) = .*\n", "", configuration, flags=re.MULTILINE))
            arguments = ("--config", str(path)) if configuration else ()
            processes[configuration] = ServerProcess(folder, *arguments)
        return processes[configuration]

    yield start_
    for process in processes.values():
        process.stop()


@contextmanager
def node(folder: Path, name: str, text: str) -> Iterator[subprocess.Popen[str]]:
    """A program in Node that finds the libraries, and is ended."""
    program = require_node()
    if not (folder / "node_modules").exists():
        (folder / "node_modules").symlink_to(E2E / "node_modules")
    (folder / name).write_text(text)
    with subprocess.Popen(
        [program, name], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def line(program: subprocess.Popen[str]) -> str:
    assert program.stdout is not None
    return program.stdout.readline().strip()


def publish(server: ServerProcess, app: dict[str, str], channel: str = "cache-prices") -> None:
    client = Pusher(
        app["id"], app["key"], app["secret"], host="127.0.0.1", port=server.port, ssl=False
    )
    client.trigger(channel, "tick", {"eur": 1.08})


DEMO = {"id": "4242", "key": "app-key", "secret": "app-secret"}
PUSHER = {"id": "1234567", "key": "0123456789abcdef0123", "secret": "change-this"}


@pytest.mark.parametrize(
    ("page", "words", "variable", "app", "port"),
    [
        ("moving-from-pusher.md", "wsHost", "pusher", PUSHER, "6001"),
        ("moving-from-soketi.md", "PusherJS", "client", DEMO, "6001"),
        ("moving-from-soketi.md", "Echo", "laravelEcho", DEMO, "6001"),
        ("moving-from-reverb.md", "Echo", "echo", DEMO, "8080"),
        ("laravel.md", "Echo", None, DEMO, "6001"),
        ("rails.md", "wsHost", None, DEMO, "6001"),
    ],
    ids=["pusher", "soketi", "soketi-echo", "reverb-echo", "laravel", "rails"],
)
def test_a_client_configuration_works(
    start: Callable[..., ServerProcess],
    tmp_path: Path,
    page: str,
    words: str,
    variable: str | None,
    app: dict[str, str],
    port: str,
) -> None:
    """As it stands on its page; a late joiner gets the value."""
    configurations = [one.text for one in snippets(DOCS / page, "toml") if "[[apps]]" in one.text]
    server = start(*configurations[:1])
    publish(server, app)
    text = snippet(page, "js", words).replace(port, str(server.port))

    with node(tmp_path, "client.mjs", LIBRARIES + text + BIND.get(variable or "", "")) as client:
        assert line(client) == "price 1.08"


@pytest.mark.parametrize("transport", [None, "xhr_streaming", "xhr_polling"])
def test_the_client_of_transports_connects_by_each_of_them(
    start: Callable[..., ServerProcess], tmp_path: Path, transport: str | None
) -> None:
    """As it is shown, on ports of the test, and with the way named that is to be taken."""
    server = start()
    publish(server, DEMO)
    ports = f"forceTLS: false, wsPort: {server.port}, httpPort: {server.port},"
    named = f'enabledTransports: ["{transport}"],' if transport else ""
    text = snippet("transports.md", "js").replace("ws.example.org", "127.0.0.1")
    text = text.replace("cluster: '',", f"cluster: '', {ports} {named}")

    with node(tmp_path, "client.mjs", LIBRARIES + text + BIND["pusher"]) as client:
        assert line(client) == "price 1.08"


def test_servers_of_pusher_publish_here(
    start: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    """Python's library, Node's, and both at once, on the configuration of the page."""
    page = "moving-from-pusher.md"
    server = start(snippet(page, "toml"))
    python = snippet(page, "python", "pusher.Pusher(").replace("6001", str(server.port))
    names: dict[str, object] = {}
    exec(python, names)

    def cached() -> object:
        client = Pusher(*PUSHER.values(), host="127.0.0.1", port=server.port, ssl=False)
        return json.loads(client.channel_info("cache-prices", ["cache"])["cache"]["data"])

    assert cached() == {"eur": 1.08}

    exec(snippet(page, "python", "def publish"), names)
    names["publish"]([names["client"]], "cache-prices", "tick", {"eur": 1.1})  # type: ignore[operator]
    assert cached() == {"eur": 1.1}

    script = snippet(page, "js", 'require("pusher")').replace("6001", str(server.port))
    script = f"(async () => {{ {script} console.log('done'); }})();"
    with node(tmp_path, "server.cjs", script) as program:
        assert line(program) == "done"
    assert cached() == {"eur": 1.09}


def test_soketis_apps_and_ours_are_the_same(tmp_path: Path) -> None:
    """The two blocks of the page say one thing."""
    page = "moving-from-soketi.md"
    theirs = json.loads(snippet(page, "json"))["appManager.array.apps"][0]
    path = tmp_path / "cachecast.toml"
    path.write_text(snippet(page, "toml"))
    (ours,) = load_config(path).apps

    assert (ours.id, ours.key, ours.secret) == (theirs["id"], theirs["key"], theirs["secret"])
    assert ours.allows_client_events == theirs["enableClientMessages"]
    assert ours.max_connections == theirs["maxConnections"]
    assert list(ours.webhooks[0].events) == theirs["webhooks"][0]["event_types"]


@pytest.mark.parametrize("page", ["pusher", "soketi", "reverb"])
def test_the_settings_that_are_named_exist(page: str) -> None:
    """Of ours, in the right column of the tables."""
    from cachecast.apps import App, Webhook  # noqa: PLC0415
    from cachecast.config import BusConfig, ServerConfig  # noqa: PLC0415

    fields = {
        field.name
        for kind in (FileConfig, ServerConfig, BusConfig, App, Webhook)
        for field in msgspec.structs.fields(kind)
    }
    text = (DOCS / f"moving-from-{page}.md").read_text()
    rows = re.findall(r"^\|[^|]+\|([^|]+)\|", text.partition("## 2. Servers")[0], re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([a-z]+(?:_[a-z]+)+)`", row)}
    assert len(named) > 5
    assert named <= fields


def test_node_publishes_signs_and_takes_webhooks(
    start: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    """Both programs of the page, and the webhook of a channel that somebody joined."""
    backend = snippet("node.md", "js", "createServer").replace("3000, ", "0, ")
    backend = backend.replace('"ready"', '"ready", server.address().port')
    require_node()
    app = (
        '[[apps]]\nid = "4242"\nkey = "app-key"\nsecret = "app-secret"\n'
        'webhooks = [{ url = "http://127.0.0.1:PORT/pusher/webhooks" }]\n'
    )
    # The broker has to know the backend's port and the backend the broker's: one of them is chosen.
    port = _free_port()
    server = start(app.replace("PORT", str(port)))
    backend = backend.replace("listen(0,", f"listen({port},").replace("6001", str(server.port))
    with node(tmp_path, "server.mjs", backend) as program:
        assert line(program) == f"ready {port}"
        client = snippet("node.md", "js", "pusher:cache_miss")
        client = client.replace("6001", str(server.port)).replace("3000", str(port))
        with node(tmp_path, "client.cjs", client) as page:
            assert line(page) == "price 1.08"
            assert line(program) == "channel_occupied private-cache-prices"
        reader = snippet("node.md", "js", 'info: "cache"').replace("6001", str(server.port))
        with node(tmp_path, "reader.cjs", reader) as page:
            assert line(page) == "1.08"


def _free_port() -> int:
    import socket  # noqa: PLC0415

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
