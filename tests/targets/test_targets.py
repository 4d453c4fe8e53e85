"""Every profile against soketi, and against our own engine put up as people do: nothing is blamed.

The engine has two workers, is behind nginx that takes a path off, speaks TLS with a certificate of
a private authority, and subscriptions are signed by an endpoint that chooses the user ids. Each of
these alone, and sockudo, is what `python -m tests.targets` is for.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.loadtest.conftest import run_command
from tests.targets import deployments
from tests.targets.runs import KNOWN, PROFILES, failures, run, unsupported

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

BESIDE = 4


@pytest.fixture(scope="module")
def put_up():
    """Put up a deployment for the whole module; returns it."""
    up = {}

    def get(name):
        if name not in up:
            missing = deployments.why_missing(name)
            if missing and os.environ.get("CI") == "true":
                pytest.fail(missing)
            if missing:
                pytest.skip(missing)
            manager = deployments.DEPLOYMENTS[name]()
            up[name] = manager, manager.__enter__()
        return up[name][1]

    yield get
    for manager, _ in up.values():
        manager.__exit__(None, None, None)


@pytest.fixture(scope="module")
def runs(request, put_up, tmp_path_factory):
    """Begin all runs of the module; returns how to wait for one of them."""
    pool = ThreadPoolExecutor(BESIDE)
    begun = {}

    def get(name, profile):
        if not begun:
            for item in request.session.items:
                if item.originalname == test_every_profile_blames_nobody_for_what_is_right.__name__:
                    case = item.callspec.params
                    folder = tmp_path_factory.mktemp("run")
                    one = case["name"], case["profile"]
                    deployment = put_up(one[0])
                    begun[one] = pool.submit(run, deployment, one[1], folder)
        return begun[name, profile].result()

    yield get
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", ["soketi", "everything"])
def test_every_profile_blames_nobody_for_what_is_right(runs, name, profile):
    done = runs(name, profile)
    assert failures(done) <= KNOWN.get((name, profile), set()), done.out
    assert done.code == 0 or failures(done) or done.was_disturbed, done.out
    assert unsupported(done) == []
    assert done.figures["delivery.received"] > 0


def test_soketis_refusals_are_read_although_they_come_as_200(put_up, tmp_path):
    options = [*put_up("soketi").options, "--report", tmp_path, "--duration", 1, "--quiet"]
    done = run_command(tmp_path, "run", "fanout", *options, secret="not-the-secret")
    assert done.code == 2
    assert "refuses the signature (401): check --secret" in done.out


def test_soketis_lifetimes_are_not_told_and_said_to_be_assumed(put_up, tmp_path):
    options = [*put_up("soketi").options, "--report", tmp_path, "--duration", 1, "--quiet"]
    options += ["--subscribers", 30, "--joins", 5, "--rate", 50, "--channels", 4]
    done = run_command(tmp_path, "run", "cache-join", *options)
    assert len(unsupported(done)) == 1, done.out
    assert unsupported(done)[0].startswith("not supported: info=cache (how long values are kept")
    assert done.figures["server.rss_max_bytes"] > 1e6
