"""The inspector in a real Chromium, with real clients behind every view."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import HERE, make_python_sdk, require_chromium
from tests.e2e.server import ServerProcess
from tests.e2e.witness import Witness
from tests.e2e.world import write_config

if TYPE_CHECKING:
    from pathlib import Path

TOKEN = "t0ken-of-the-tests-1234"

#: Id of a user who means no good, with a character that turns the direction of writing.
HOSTILE = "<img src=x onerror=alert(3)>\u202e"

#: Real seconds for a browser to start and to see seven views twice, on a busy machine.
LIMIT_S = 200


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S + 60)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_operator_sees_what_happens_and_no_client_runs_a_script(tmp_path: Path, workers: str):
    """Each view says what there is; a hostile name is text; it fits a telephone, light and dark."""
    chromium = require_chromium()
    config = str(write_config(tmp_path))
    server = ServerProcess(
        tmp_path, "--config", config, "--workers", workers,
        environ={
            "CACHECAST_INSPECTOR_TOKEN": TOKEN, "CACHECAST_INSPECTOR_SHOWS_PAYLOADS": "true"
        },
    )  # fmt: skip
    try:
        with Witness(server) as one, Witness(server) as other:
            for client in (one, other):
                client.subscribe("room-1")
                client.subscribe("cache-prices")
            one.subscribe("presence-room", {"user_id": HOSTILE, "user_info": {}})
            url = f"http://127.0.0.1:{server.admin_port}/inspector"
            make_python_sdk(server).trigger("cache-prices", "tick", {"eur": 1})
            command = [sys.executable, "-m", "tests.e2e.inspector_page", chromium, url, TOKEN]
            done = subprocess.run(
                [*command, str(tmp_path)], cwd=HERE.parents[1], capture_output=True,
                timeout=LIMIT_S, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr.decode()
            seen = json.loads(done.stdout)
            [gone] = [each for each in (one, other) if each.socket_id == seen["disconnected"]]
            assert gone.wait_closed() == 4009
    finally:
        server.stop()
    assert "not the token" in seen["fault"]
    assert "confirm" in seen["refused"]
    assert seen["published"] == "published"
    assert "onerror" in seen["console"]
    assert "<script>alert(2)</script>" in seen["console"]
    for place in ("members", "asked"):
        assert HOSTILE.replace("\u202e", r"\u202e") in seen["keys"][place]
    assert "session has ended" in seen["astray"]
    assert (seen["complaints"], seen["images"]) == ([], 0)
    views = seen["views"]
    overview = views["overview 1280"]["text"]
    assert ("Workers" in overview) == ("on all nodes" in overview) == (workers == "2")
    assert "connections" in views["overview 1280"]["text"]
    assert "room-1" in views["channels 1280"]["text"]
    assert "cache-prices" in views["cache 1280"]["text"]
    for client in (one, other):
        assert client.socket_id in views["connections 1280"]["text"]
    for name, view in views.items():
        if name.endswith(" 390"):
            assert view["width"] <= 390, name
            assert view["paper"] == "rgb(13, 17, 23)"
        else:
            assert view["paper"] == "rgb(255, 255, 255)"
