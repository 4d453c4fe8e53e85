"""A configuration says what is wrong, where, and what to do about it."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Any

import pytest

from cachecast import config
from cachecast.config import (
    DEMO_APP,
    App,
    BrokerConfig,
    BusConfig,
    FileConfig,
    ServerConfig,
    load_config,
)
from cachecast.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

_APP = App(id="1", key="k", secret="s")


def test_with_nothing_given_the_demonstration_app_is_served_on_loopback() -> None:
    """Issue section 5: id 4242, key app-key, secret app-secret, port 6001."""
    loaded = load_config()

    assert loaded.apps == (DEMO_APP,)
    assert (DEMO_APP.id, DEMO_APP.key, DEMO_APP.secret) == ("4242", "app-key", "app-secret")
    assert (loaded.server.host, loaded.server.port) == ("127.0.0.1", 6001)
    assert loaded.is_demo


def test_the_demonstration_credentials_are_recognised_wherever_they_stand() -> None:
    """Copied into a file they are as public as before."""
    assert FileConfig(apps=(_APP, App(id="7", keys=DEMO_APP.key_pairs))).is_demo
    assert FileConfig(apps=(App(id="7", key="mine", secret=DEMO_APP.secret),)).is_demo
    assert not FileConfig(apps=(_APP,)).is_demo


def test_a_file_is_read_with_its_apps_and_its_server(tmp_path: Path) -> None:
    """Every section of it."""
    path = tmp_path / "cachecast.toml"
    path.write_text(
        'cache_ttl_s = 60\n[server]\nport = 7000\n[[apps]]\nid = "1"\nkey = "k"\nsecret = "s"\n'
        '[[apps]]\nid = "2"\n[[apps.keys]]\nkey = "k2"\nsecret = "s2"\n'
    )

    loaded = load_config(path)

    assert loaded.cache_ttl_s == 60
    assert loaded.server.port == 7000
    assert [app.id for app in loaded.apps] == ["1", "2"]
    assert not loaded.is_demo


def test_flags_beat_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    """Each for itself; an absent flag takes nothing away."""
    path = tmp_path / "cachecast.toml"
    path.write_text(
        'cluster = "file"\n[server]\nhost = "file"\nport = 1\nadmin_port = 1\n'
        '[[apps]]\nid = "1"\nkey = "k"\nsecret = "s"\n'
    )

    loaded = load_config(
        path,
        environ={"CACHECAST_HOST": "env", "CACHECAST_PORT": "2", "PATH": "/bin"},
        flags={"CACHECAST_PORT": 3, "CACHECAST_HOST": None},
    )

    assert loaded.cluster == "file"
    assert loaded.server.admin_port == 1
    assert loaded.server.host == "env"
    assert loaded.server.port == 3


def test_the_environment_has_only_text_and_that_is_enough() -> None:
    """Numbers, booleans and the absence of a value can be said in text."""
    loaded = load_config(
        environ={
            "CACHECAST_PORT": "6100",
            "CACHECAST_CACHE_TTL": "12.5",
            "CACHECAST_LOCK_MEMORY": "true",
            "CACHECAST_ADMIN_PORT": "null",
        }
    )

    assert loaded.server.port == 6100
    assert loaded.cache_ttl_s == 12.5
    assert loaded.server.locks_memory is True
    assert loaded.server.admin_port is None


def test_an_app_from_outside_replaces_those_of_the_file(tmp_path: Path) -> None:
    """The environment and flags describe one app, whole."""
    path = tmp_path / "cachecast.toml"
    path.write_text('[[apps]]\nid = "1"\nkey = "k"\nsecret = "s"\n')

    loaded = load_config(
        path,
        environ={"CACHECAST_APP_ID": "9", "CACHECAST_APP_KEY": "a"},
        flags={"CACHECAST_APP_SECRET": "b"},
    )

    assert [(app.id, app.key, app.secret) for app in loaded.apps] == [("9", "a", "b")]


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("port = 1", "port"),
        ("server = 5", "server"),
        ("[server]\nport = 'x'", "server.port"),
        ("[server]\nport = 65536", "server.port"),
        ("[server]\nadmin_port = -1", "server.admin_port"),
        ("[server]\nadmin_port = 6001", "server.admin_port"),
        ("[server]\nhost = ''", "server.host"),
        ("[server]\nhost = '0.0.0.0:80'", "server.host"),
        ("[server]\nadmin_host = ''", "server.admin_host"),
        ("cluster = ''", "cluster"),
        ("cluster = 'eu '", "cluster"),
        ("[server]\nlog_format = 'xml'", "server.log_format"),
        ("[server]\nlog_level = 'loud'", "server.log_level"),
        ("[server]\nworkers = 0", "server.workers"),
        ("[server]\nworkers = 1025", "server.workers"),
        ("[server]\nworkers = 'many'", "server.workers"),
        ("[server]\nworkers = ''", "server.workers"),
        ("[server]\nworkers = true", "server.workers"),
        ("[server]\ntls_cert = 'a.pem'", "server.tls_cert"),
        ("[server]\ndrain_s = -1", "server.drain_s"),
        ("[server]\ndrain_s = nan", "server.drain_s"),
        ("[server]\nuds = ''", "server.uds"),
        ("[server]\nis_uds_only = true", "server.is_uds_only"),
        ("[server]\ndrain_s = 20", "server.exit_limit_s"),
        ("[server]\ndrain_code = 4000", "server.drain_code"),
        ("[server]\nexit_limit_s = inf", "server.exit_limit_s"),
        ("cache_ttl_s = 1801", "cache_ttl_s"),
        ("cache_ttl_s = nan", "cache_ttl_s"),
        ("activity_timeout_s = 0.5", "activity_timeout_s"),
        ("activity_timeout_s = inf", "activity_timeout_s"),
        ("close_timeout_s = nan", "close_timeout_s"),
        ("max_message_bytes = 0", "max_message_bytes"),
        ("max_connections = 0", "max_connections"),
        ("[[apps]]\nid = '1'", "apps[0].key"),
        ("[[apps]]\nid = '1'\nkey = 'k'\nsecret = 's'\nport = 2", "apps[0].port"),
    ],
)
def test_a_faulty_file_is_explained(tmp_path: Path, text: str, field: str) -> None:
    """The field is named as it stands in the file, and the rule with it."""
    good = "[[apps]]\nid = '1'\nkey = 'k'\nsecret = 's'\n"
    path = tmp_path / "cachecast.toml"
    path.write_text(text + "\n" + (good if "apps" not in text else ""))

    with pytest.raises(ConfigError) as caught:
        load_config(path, environ={"CACHECAST_CLUSTER": ""})

    assert caught.value.field == field
    assert caught.value.rule


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 1", "prot: there is no such field. `cachecast check-config --fields` lists"),
        ("cache_ttl = 1", "cache_ttl: there is no such field. Is cache_ttl_s meant?"),
        ("port = 1", "port: there is no such field. It belongs in [server]."),
        ("[server]\nid = '1'", "server.id: there is no such field. It belongs in [[apps]]."),
        ("[server]\ncluster_s = 1", "server.cluster_s: there is no such field."),
        ("[server]\nmax_headers = 1", "It belongs at the top, before the first table."),
        ("[[apps]]\nkey = 'k'", "apps[0].id: is required."),
        ("[[apps]]\nid = 1", "apps[0].id: must be text in quotes, is a whole number."),
        ("[apps]\nid = '1'", "apps: must be a list, is a table."),
        ("apps = [5]", "apps[0]: must be a table, is a whole number."),
        ("server = 5", "server: must be a table, is a whole number."),
        ("max_connections = 1.5", "must be a whole number, is a number with a fraction."),
        ("[server]\nhas_admin = 'x'", "server.has_admin: must be true or false, is text."),
        (
            "[[apps]]\nid = '1'\nwebhooks = [{url = 'http://a', events = ['miss']}]",
            "apps[0].webhooks[0].events[0]: Invalid enum value 'miss'. There are channel_occupied,",
        ),
        (
            "[[apps]]\nid = '1'\nwebhooks = [{uri = 'http://a'}]",
            "apps[0].webhooks[0].uri: there is no such field. Is url meant?",
        ),
    ],
)
def test_a_fault_is_told_in_words_for_people_who_write_toml(
    tmp_path: Path, text: str, words: str
) -> None:
    """Not in those of the library that found it, and with what was probably meant."""
    path = tmp_path / "cachecast.toml"
    path.write_text(text)

    with pytest.raises(ConfigError) as caught:
        load_config(path)

    assert str(caught.value).startswith(words) or words in str(caught.value)


def test_a_fault_of_the_environment_or_of_a_flag_names_it() -> None:
    """Whoever has no file knows the field under another name."""
    app = {"CACHECAST_APP_ID": "a/b", "CACHECAST_APP_KEY": "k", "CACHECAST_APP_SECRET": "s"}
    for environ, flags, words in [
        ({"CACHECAST_PORT": "x"}, {}, "is text. It was set by CACHECAST_PORT."),
        ({"CACHECAST_PORT": "1"}, {"CACHECAST_PORT": "99999"}, "It was set by --port."),
        ({"CACHECAST_CACHE_TTL": "1801"}, {}, "out. It was set by CACHECAST_CACHE_TTL."),
        ({"CACHECAST_LOCK_MEMORY": "y"}, {}, "is text. It was set by CACHECAST_LOCK_MEMORY."),
        ({}, app, "It was set by --app-id."),
    ]:
        with pytest.raises(ConfigError) as caught:
            load_config(environ=environ, flags=flags)

        assert words in str(caught.value)


def test_an_empty_variable_is_an_absent_one() -> None:
    """`CACHECAST_PORT=` is how compose files say that."""
    loaded = load_config(environ=dict.fromkeys(config.ENVIRONMENT, ""))

    assert loaded == load_config()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Absent, not UTF-8 or not TOML: each says which file and why."""
    binary, broken = tmp_path / "binary.toml", tmp_path / "broken.toml"
    binary.write_bytes(b"\xff\xfe")
    broken.write_text("a = = b")

    for path, words in [
        (tmp_path / "absent.toml", "cannot be read: No such file or directory.$"),
        (binary, "cannot be read"),
        (broken, "not valid TOML"),
    ]:
        with pytest.raises(ConfigError, match=words) as caught:
            load_config(path)
        assert caught.value.field == str(path)


def test_an_empty_file_serves_no_app_by_accident(tmp_path: Path) -> None:
    """The demonstration app is for those who gave nothing at all."""
    path = tmp_path / "cachecast.toml"
    path.write_text("")

    with pytest.raises(ConfigError, match="at least one app"):
        load_config(path)


@pytest.mark.parametrize("given", [{"ID"}, {"KEY", "SECRET"}, {"ID", "SECRET"}])
def test_half_an_app_from_outside_is_refused(given: set[str]) -> None:
    """Rather than served with the rest of another one."""
    environ = {f"CACHECAST_APP_{name}": "x" for name in given}

    with pytest.raises(ConfigError, match="must be given together"):
        load_config(environ=environ)


@pytest.mark.parametrize(
    ("apps", "field"),
    [
        ((), "apps"),
        ((_APP, App(id="1", key="k2", secret="s")), "apps[1].id"),
        ((_APP, App(id="2", key="k", secret="s")), "apps[1].key"),
        ((_APP, App(id="")), "apps[1].id"),
    ],
)
def test_apps_may_not_share_an_id_or_a_key(apps: tuple[App, ...], field: str) -> None:
    """A key finds one app."""
    with pytest.raises(ConfigError) as caught:
        BrokerConfig(apps=apps).check()

    assert caught.value.field == field


@pytest.mark.parametrize("field", config._POSITIVE)
def test_every_limit_of_the_node_must_be_positive(field: str) -> None:
    """Zero would mean that nothing works, and says so at start-up."""
    fields: dict[str, Any] = {"apps": (_APP,), field: 0}

    with pytest.raises(ConfigError) as caught:
        BrokerConfig(**fields).check()

    assert caught.value.field == field


def test_a_server_with_tls_and_no_admin_passes() -> None:
    """The optional halves are optional."""
    ServerConfig(tls_cert="a", tls_key="b", admin_port=None, drain_s=0).check()


@pytest.mark.parametrize(("text", "workers"), [("4", "4"), ("auto", "auto")])
def test_workers_are_a_number_or_auto(text: str, workers: str) -> None:
    """The environment has only text; a file may have the number."""
    config = load_config(None, environ={"CACHECAST_WORKERS": text})
    assert config.server.workers == workers
    assert load_config(None).server.workers == 1
    ServerConfig(workers=4).check()


def test_every_environment_variable_reaches_a_field_that_exists() -> None:
    """A renamed field must take its variable along."""
    for variable, path in config.ENVIRONMENT.items():
        tables = {"server": ServerConfig, "bus": BusConfig, "app": App}
        kind = tables.get(path[0], FileConfig)

        assert path[-1] in kind.__struct_fields__, variable


@pytest.mark.parametrize(
    ("node", "app", "field", "least"),
    [
        ({}, {"max_event_bytes": 1_048_000}, "apps[0].max_pending_bytes", 1_049_024),
        ({}, {"max_pending_bytes": 11_263}, "apps[0].max_pending_bytes", 11_264),
        (
            {"max_message_bytes": 10**8},
            {"max_presence_member_bytes": 2_000_000},
            "apps[0].max_pending_bytes",
            2_001_024,
        ),
        ({}, {"max_cache_bytes": 10_240}, "apps[0].max_cache_bytes", 11_264),
        (
            {},
            {"max_event_bytes": 3_000_000, "max_pending_bytes": 10**7},
            "max_body_bytes",
            3_001_024,
        ),
        ({"max_body_bytes": 10_000}, {}, "max_body_bytes", 11_264),
        ({"max_cache_bytes": 10_000}, {}, "max_cache_bytes", 11_264),
        ({"max_outbox_bytes": 1024 * 1024}, {}, "max_outbox_bytes", 1_049_600),
        ({"max_message_bytes": 2_047}, {}, "max_message_bytes", 2_048),
        ({}, {"max_user_id_length": 100_000}, "max_message_bytes", 101_024),
        (
            {},
            {"max_event_bytes": 65_000, "allows_client_events": True},
            "max_message_bytes",
            66_024,
        ),
    ],
)
def test_limits_that_contradict_each_other_are_refused(
    node: dict[str, Any], app: dict[str, Any], field: str, least: int
) -> None:
    """What one of them allows could never pass the other; the least value that would do is named.

    Also to an embedder, for it is the same check.
    """
    with pytest.raises(ConfigError) as caught:
        BrokerConfig(apps=(App(id="1", key="k", secret="s", **app),), **node).check()

    error = caught.value
    assert error.field == field
    assert f"must be at least {least}, is" in error.rule
    assert error.remedy.startswith("Raise it")
    scope, name = (app, field.removeprefix("apps[0].")) if "apps" in field else (node, field)
    scope[name] = least
    BrokerConfig(apps=(App(id="1", key="k", secret="s", **app),), **node).check()


def test_large_events_need_no_large_messages_where_clients_send_none() -> None:
    """Only client events come in messages."""
    app = App(id="1", key="k", secret="s", max_event_bytes=900_000)

    BrokerConfig(apps=(app,)).check()


# --- the bus

_KEY = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"


def test_the_engine_is_read_from_file_environment_and_flags(tmp_path: Path) -> None:
    """Flags beat the environment, field by field; white space separates a list in a text."""
    path = tmp_path / "cachecast.toml"
    path.write_text(
        '[bus]\nurls = ["valkey://file"]\nprefix = "p:"\nlease_s = 4\n'
        '[[apps]]\nid = "1"\nkey = "k"\nsecret = "s"\n'
    )

    loaded = load_config(
        path,
        environ={
            "CACHECAST_BUS": "valkey://a:1 valkey://b:2",
            "CACHECAST_BUS_PASSWORD": "of the environment",
            "CACHECAST_BUS_SEAL_KEY": _KEY,
        },
        flags={"CACHECAST_BUS_USERNAME": "of the flag"},
    ).bus

    assert loaded.urls == ("valkey://a:1", "valkey://b:2")
    assert (loaded.prefix, loaded.lease_s) == ("p:", 4)
    assert {(found.username, found.password) for found in loaded.primaries()} == {
        ("of the flag", "of the environment")
    }
    assert loaded.keys() == (bytes.fromhex(_KEY),)


def test_without_urls_a_node_is_alone() -> None:
    """And nothing else of [bus] is needed."""
    assert load_config().bus.primaries() == ()
    assert load_config().bus.keys() == ()


def test_a_wrong_value_of_the_bus_names_field_rule_and_what_set_it() -> None:
    """As everywhere."""
    with pytest.raises(ConfigError, match=r"bus\.urls.*must begin with.*set by CACHECAST_BUS"):
        load_config(environ={"CACHECAST_BUS": "http://a"})
    with pytest.raises(ConfigError, match=r"bus\.sentinel.*needs the addresses"):
        load_config(flags={"CACHECAST_BUS_SENTINEL": "mymaster"})
    with pytest.raises(ConfigError, match=r"bus\.lease_s.*at least twice"):
        load_config(environ={"CACHECAST_BUS_LEASE_S": "1"})


def test_keys_and_passwords_may_stand_in_files_of_their_own(tmp_path: Path) -> None:
    """For secrets that are mounted; an unreadable one is named, its content never."""
    keys, password = tmp_path / "keys", tmp_path / "password"
    keys.write_text(f"{_KEY}\n{_KEY[::-1]}\n")
    password.write_text("secret\n")
    loaded = BusConfig(
        urls=("valkeys://user@a:6379,b:6379",),
        password_file=str(password),
        seal_key_file=str(keys),
    )
    loaded.check()

    assert len(loaded.keys()) == 2
    assert [(found.name, found.password) for found in loaded.primaries()] == [
        ("a:6379/0", "secret"),
        ("b:6379/0", "secret"),
    ]
    keys.write_text("no-key-at-all\n")
    with pytest.raises(ConfigError, match="32 bytes") as caught:
        loaded.check()
    assert "no-key-at-all" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        BusConfig(seal_key_file=str(tmp_path / "none")).check()
    with pytest.raises(ConfigError, match="together"):
        BusConfig(seal_key=(_KEY,), seal_key_file=str(keys)).check()
    assert _KEY not in repr(BusConfig(seal_key=(_KEY,)))


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ("a = " + "[" * 20_000, "is nested too deeply"),
        ("max_connections = " + "9" * 5_000, "is not valid TOML"),
        ("max_connections = 1" + "0" * 30, r"must be less than 2\^63"),
        ("cache_ttl_s = 1" + "0" * 400, "out of range"),
    ],
)
def test_a_hostile_file_is_refused_in_words(tmp_path, head, words):
    """At a start it would be a traceback; read again by a node that serves, its end."""
    path = tmp_path / "c.toml"
    path.write_text(f"{head}\n[[apps]]\nid = '1'\nkey = 'k'\nsecret = 's'\n")
    with pytest.raises(ConfigError, match=words):
        load_config(path)
    app = App(id="1", key="k", secret="s", max_event_bytes=2**70)
    with pytest.raises(ConfigError, match=r"max_event_bytes: must be less than 2\^63"):
        app.check("apps[0]")


def test_a_file_without_an_end_is_not_read_to_it():
    with pytest.raises(ConfigError, match="File too large"):
        load_config(pathlib.Path("/dev/zero"))


def test_a_text_may_take_the_place_of_the_files(tmp_path):
    """Faults name the file all the same."""
    path = tmp_path / "c.toml"
    text = "max_connections = 7\n[[apps]]\nid = '1'\nkey = 'k'\nsecret = 's'\n"
    assert load_config(path, text=text).max_connections == 7
    with pytest.raises(ConfigError, match=r"c\.toml: is not valid TOML"):
        load_config(path, text="nonsense")
