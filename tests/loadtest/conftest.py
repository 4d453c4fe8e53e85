"""Fixtures of the load test's tests: its command line, a saboteur, an engine, each a process.

Nothing here imports Locust: that would patch this process, in which other tests run Trio.
"""

import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.request import urlopen

import pytest

ROOT = Path(__file__).parents[2]
# Runs of the tests are nothing for the page of a job that runs the tests.
os.environ.pop("GITHUB_STEP_SUMMARY", None)
CREDENTIALS = ["--app-id", "4242", "--key", "app-key"]
SECRET = "app-secret"

#: Runs beside each other. Two cores are left with time to spare, so that few are INVALID.
N_BESIDE = 3


@dataclass
class Finished:
    """One finished command: exit code, what it printed, and the result it wrote, if any."""

    code: int
    out: str
    result: dict

    @property
    def figures(self):
        return self.result["figures"]

    @property
    def was_disturbed(self):
        """Whether the run says of itself that this machine, and not the target, limited it.

        What must then hold is that nothing is blamed on the target; not every amount is reached.
        """
        reasons = " ".join(self.result["verdict"]["reasons"])
        return self.code == 2 and bool(
            re.search("generator|late|still arriving|joins could not start", reasons)
        )


class Server:
    """A server of the tests, and where it listens."""

    def __init__(self, process, url):
        self.process = process
        self.url = url

    def faults(self):
        with urlopen(self.url.replace("ws", "http", 1) + "/faults") as answer:
            return json.load(answer)

    def end(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process.stdout.close()


def start_saboteur(faults):
    program = str(Path(__file__).with_name("saboteur.py"))
    process = subprocess.Popen(
        [sys.executable, program, json.dumps(faults)], stdout=subprocess.PIPE, text=True
    )
    return Server(process, process.stdout.readline().split()[1])


@pytest.fixture
def saboteur():
    """Start a saboteur with faults; returns its `Server`."""
    servers = []

    def start(**faults):
        servers.append(start_saboteur(faults))
        return servers[-1]

    yield start
    for server in servers:
        server.end()


@pytest.fixture(scope="module")
def module_saboteur():
    """The same, for runs of `begin`: they end with the module."""
    servers = []

    def start(**faults):
        servers.append(start_saboteur(faults))
        return servers[-1]

    yield start
    for server in servers:
        server.end()


def start_engine(*options):
    process = subprocess.Popen(
        [sys.executable, "-m", "cachecast", "serve", "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    )
    for line in process.stdout:
        if "ready on http" in line:
            url = next(word for word in line.split() if word.startswith("http"))
            return Server(process, url.rstrip(",").replace("http", "ws", 1))
    process.wait()
    raise AssertionError("the engine did not say that it is ready")


@pytest.fixture
def new_engine():
    """Start an engine with options of the test's own; returns its `Server`."""
    servers = []

    def start(*options):
        servers.append(start_engine(*map(str, options)))
        return servers[-1]

    yield start
    for server in servers:
        server.end()


@pytest.fixture(scope="module")
def engine():
    """One engine for a module's tests, with a cache lifetime of three seconds."""
    server = start_engine("--cache-ttl", "3")
    yield server
    server.end()


def run_command(directory, *arguments, secret=SECRET, timeout=90, **environment):
    """Run `python -m cachecast_load ...` to its end; `directory` takes its report, if any."""
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith("CACHECAST_LOADTEST")},
        "CACHECAST_LOADTEST_SECRET": secret,
        "COLUMNS": "200",
        **environment,
    }
    done = subprocess.run(
        [sys.executable, "-m", "cachecast_load", *map(str, arguments)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    out = done.stdout + done.stderr
    assert "Traceback" not in out, out
    assert secret not in out
    result = {}
    if (directory / "result.json").exists():
        result = json.loads((directory / "result.json").read_text())
        assert secret not in (directory / "result.json").read_text()
        assert secret not in (directory / "report.html").read_text()
    return Finished(done.returncode, out, result)


def run_profile(directory, profile, url, *arguments, **options):
    target = ["--target", url, *CREDENTIALS, "--report", directory, "--quiet"]
    return run_command(directory, "run", profile, *target, *arguments, **options)


@pytest.fixture
def command(tmp_path):
    """Run `python -m cachecast_load ...` to its end; returns `Finished`."""
    return partial(run_command, tmp_path)


@pytest.fixture
def run(tmp_path):
    """Run a profile against a server's URL, briefly and with few subscribers."""
    return partial(run_profile, tmp_path)


@pytest.fixture(scope="module")
def begin(tmp_path_factory):
    """Begin a run of a profile; returns its future.

    A run waits seven times as long as it works, so some are under way beside each other. For tests
    with many parameters; each of them waits for its own run and judges it.
    """
    pool = ThreadPoolExecutor(N_BESIDE)

    def call(profile, url, plan, *arguments):
        directory = tmp_path_factory.mktemp("run")
        (directory / "plan.toml").write_text(plan)
        plan_option = ["--plan", directory / "plan.toml"]
        return pool.submit(run_profile, directory, profile, url, *plan_option, *arguments)

    yield call
    pool.shutdown(cancel_futures=True)


def chosen(request, test):
    """Return the parameters of those cases of a test that were selected."""
    return [
        item.callspec.params for item in request.session.items if item.originalname == test.__name__
    ]
