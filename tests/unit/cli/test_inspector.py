"""Where the inspector's token comes from."""

from __future__ import annotations

import pytest

from cachecast.cli.inspector import inspector_terms
from cachecast.config import ServerConfig, load_config
from cachecast.errors import ConfigError

TOKEN = "t0ken-of-the-tests-1234"


def test_there_is_none_unless_it_is_asked_for():
    assert inspector_terms(ServerConfig(), {}) is None


def test_a_token_is_made_once_and_the_next_process_keeps_it():
    environ = {}
    first = inspector_terms(ServerConfig(inspector=True), environ)
    assert len(first.token) >= 32
    assert inspector_terms(ServerConfig(inspector=True), environ).token == first.token
    assert inspector_terms(ServerConfig(inspector=True), {}).token != first.token
    # And the configuration, which is read from the environment too, is none the wiser.
    assert load_config(environ=environ).server.inspector_token is None


def test_the_operators_token_turns_it_on():
    options = ServerConfig(inspector_token=TOKEN, inspector_hosts=("Inside.Example",))
    terms = inspector_terms(options, {})
    assert terms.token == TOKEN
    assert terms.hosts == {"inside.example"}
    assert not terms.shows_payloads
    assert TOKEN not in repr(terms)


@pytest.mark.parametrize(
    "token", ["", "short", "x" * 201, "with a space in it", "tökén-tökén-tökén"]
)
def test_a_weak_token_is_refused(token):
    with pytest.raises(ConfigError, match="16 to 200"):
        load_config(flags={"CACHECAST_INSPECTOR_TOKEN": token or None},
                    environ={}) if token else ServerConfig(inspector_token="").check()  # fmt: skip
