"""Commands that need no server: what is signed, what a configuration is worth."""

from __future__ import annotations

import os
import tomllib

import pytest
from click.testing import CliRunner

from cachecast.apps import App
from cachecast.cli import cachecast
from cachecast.errors import ConfigError

KEY, SECRET = "278d425bdf160c739803", "7ad3773142a6692b25b8"
CREDENTIALS = ["--app-id", "3", "--key", KEY, "--secret", SECRET]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("CACHECAST_"):
            monkeypatch.delenv(name)


def run(*arguments, **options):
    result = CliRunner().invoke(cachecast, arguments, **options)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


# --- sign: the vectors of protocol.md 2.4 and 6.2, from Pusher's own pages


@pytest.mark.parametrize(
    ("arguments", "text", "signature"),
    [
        (("channel", "1234.1234", "private-foobar"), "1234.1234:private-foobar",
         "58df8b0c36d6982b82c3ecf6b4662e34fe8c25bba48f5369f135bf843651c3a4"),
        (("channel", "1234.1234", "presence-foobar",
          '{"user_id":10,"user_info":{"name":"Mr. Pusher"}}'),
         '1234.1234:presence-foobar:{"user_id":10,"user_info":{"name":"Mr. Pusher"}}',
         "afaed3695da2ffd16931f457e338e6c9f2921fa133ce7dac49f529792be6304c"),
        (("user", "1234.1234", '{"id":"12345"}'), '1234.1234::user::{"id":"12345"}',
         "4708d583dada6a56435fb8bc611c77c359a31eebde13337c16ab43aa6de336ba"),
    ],
)  # fmt: skip
def test_signatures_of_clients_are_pushers_own(arguments, text, signature):
    result = run("sign", *arguments, *CREDENTIALS)
    assert result.exit_code == 0
    assert result.stdout == f"string to sign:\n{text}\n\nauth: {KEY}:{signature}\n"


@pytest.mark.parametrize("path", ["/apps/3/events", "events", "/events"])
def test_signature_of_a_request_is_pushers_own(path):
    body = '{"name":"foo","channels":["project-3"],"data":"{\\"some\\":\\"data\\"}"}'
    result = run(
        "sign", "request", "post", path, "--body", body, "--timestamp", "1353088179", *CREDENTIALS
    )
    assert result.exit_code == 0
    assert (
        "string to sign:\nPOST\n/apps/3/events\n"
        f"auth_key={KEY}&auth_timestamp=1353088179&auth_version=1.0"
        "&body_md5=ec365a775a4cd0599faeb73354201b6f\n\n"
        "auth_signature: da454824c97ba181a32ccc17a72625ba02771f50b50e1e7430e47a1f3f457e6c\n"
    ) in result.stdout
    assert "request target:\n/apps/3/events?" in result.stdout


def test_odd_app_id_is_encoded_as_every_command_sends_it():
    result = run("sign", "request", "GET", "channels", "--app-id", "i d", *CREDENTIALS[2:])
    assert "string to sign:\nGET\n/apps/i%20d/channels\n" in result.stdout


def test_parameters_are_signed_decoded_and_sent_encoded():
    result = run(
        "sign", "request", "GET", "channels", "--param", "info=user_count,x", "--timestamp", "1",
        *CREDENTIALS,
    )  # fmt: skip
    assert "auth_version=1.0&info=user_count,x\n" in result.stdout
    assert "info=user_count%2Cx" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("channel", "1.2", "presence-x"), "CHANNEL_DATA is missing"),
        (("channel", "1.2", "presence-cache-x"), "CHANNEL_DATA is missing"),
        (("channel", "1.2", "presence-x", "user"), "must be a JSON object with a user_id"),
        (("channel", "1.2", "presence-x", "[]"), "must be a JSON object with a user_id"),
        (("channel", "1.2", "presence-x", '{"id":"1"}'), "must be a JSON object with a user_id"),
        (("channel", "12", "private-x"), "SOCKET_ID must look like 1234.5678, is '12'"),
        (("user", "1.", '{"id":"1"}'), "SOCKET_ID must look like"),
        (("user", "1.2", "{}"), "id is a non-empty string"),
        (("user", "1.2", '{"id":1}'), "id is a non-empty string"),
        (("user", "1.2", '{"id":""}'), "id is a non-empty string"),
        (("user", "1.2", "ann"), "id is a non-empty string"),
    ],
)
def test_what_no_server_would_accept_is_not_signed(arguments, fault):
    result = run("sign", *arguments, *CREDENTIALS)
    assert result.exit_code == 2
    assert fault in " ".join(result.stderr.split())
    assert result.stdout == ""


def test_presence_without_data_is_signed_where_it_is_meant():
    """On a connection that is signed in the user comes from there (protocol.md 2.4)."""
    result = run("sign", "channel", "1.2", "presence-x", "", *CREDENTIALS)
    assert result.exit_code == 0
    assert result.stdout.startswith("string to sign:\n1.2:presence-x\n\nauth: ")


def test_public_channel_is_said_to_need_no_signature():
    result = run("sign", "channel", "1.2", "cache-x", *CREDENTIALS)
    assert result.stderr == "cachecast: cache-x is public: it needs no signature\n"


def test_secret_is_never_printed():
    for arguments in (
        ("channel", "1.1", "private-a"),
        ("user", "1.1", '{"id":"1"}'),
        ("request", "GET", "x"),
    ):
        assert SECRET not in run("sign", *arguments, *CREDENTIALS).output


# --- generate app


def test_generated_app_is_a_valid_configuration(tmp_path):
    outputs = {run("generate", "app", "--name", 'Kiosk "1"').stdout for _ in range(3)}
    assert len(outputs) == 3
    for text in outputs:
        (fields,) = tomllib.loads(text)["apps"]
        assert fields["name"] == 'Kiosk "1"'
        app = App(**fields)
        app.check("app")
        assert app.id.isdigit()  # Pusher's Python and Go libraries accept nothing else
    path = tmp_path / "c.toml"
    path.write_text("".join(outputs))
    assert run("check-config", str(path)).exit_code == 0


# --- check-config


def test_limits_that_workers_cannot_share_are_refused(tmp_path):
    """As `serve` would."""
    path = tmp_path / "c.toml"
    app = "[[apps]]\nid = '1'\nkey = 'k'\nsecret = 's'\n"
    path.write_text(f"max_connections = 3\n[server]\nworkers = 4\n{app}")
    with pytest.raises(ConfigError, match="max_connections: must be at least 4, is 3: 4 workers"):
        run("check-config", str(path))
    path.write_text(f"max_connections = 4\n[server]\nworkers = 4\n{app}")
    assert run("check-config", str(path)).exit_code == 0


def test_good_configuration_is_summed_up_without_secrets(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(f'[[apps]]\nid = "3"\nkey = "{KEY}"\nsecret = "{SECRET}"\n')
    result = run("check-config", str(path))
    assert result.stdout == "ok: listens on 127.0.0.1:6001; apps 3 (keys: 1)\n"


def test_file_is_found_where_serve_would_find_it(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(f'[server]\nport = 7000\n[[apps]]\nid = "3"\nkey = "{KEY}"\nsecret = "s"\n')
    result = run("check-config", env={"CACHECAST_CONFIG": str(path)})
    assert "127.0.0.1:7000" in result.stdout
    result = run("check-config", env={"CACHECAST_CONFIG": ""})
    assert "127.0.0.1:6001; apps 4242" in result.stdout


@pytest.mark.parametrize(
    ("text", "field", "rule", "remedy"),
    [
        ("cache_ttl_s = 1801", "cache_ttl_s", "at most 1800 seconds", "Lower it"),
        ("prot = 1", "prot", "no such field", "--fields"),
        ("[server]\ntls_cert = '/no'\ntls_key = '/no'", "server.tls_cert", "cannot be read", ""),
        ("[server]\nport = 70000", "server.port", "0 to 65535", ""),
        ("[server]\nport = 'x'", "server.port", "must be a whole number", ""),
        ("[server]\ntls_cert = 'x'", "server.tls_cert", "given together", ""),
        ("[server]\ndrain_s = 30", "server.exit_limit_s", "greater than server.drain_s", ""),
        ("[[apps]]\nid = '1'", "apps[0].key", "at least one key", "generate app"),
        (
            "[[apps]]\nid='1'\nkey='k'\nsecret='s'\ncache_ttl_s=1e9",
            "apps[0].cache_ttl_s",
            "1800",
            "",
        ),
        ("x = ", None, "is not valid TOML", ""),
        (
            '[[apps]]\nid="1"\nkey="k"\nsecret="s\\n"',
            "apps[0].keys",
            "the secret of key 'k' must not begin or end",
            "read from a file",
        ),
        ("[[apps]]\nid='1'\nkey='k#'\nsecret='s'", "apps[0].keys", "must not contain '?', '#'", ""),
        ("apps = []", "apps", "at least one app", "generate app"),
    ],
)
def test_fault_is_named_by_field_rule_and_remedy(tmp_path, text, field, rule, remedy):
    path = tmp_path / "c.toml"
    app = "" if "apps" in text else "\n[[apps]]\nid = '1'\nkey = 'k'\nsecret = 's'\n"
    path.write_text(text + app)
    with pytest.raises(ConfigError) as caught:
        run("check-config", str(path))
    assert caught.value.field == (field or str(path))
    assert rule in caught.value.rule
    assert remedy in caught.value.remedy


def test_fields_are_listed_as_a_file_has_them():
    lines = run("check-config", "--fields").stdout.splitlines()
    for line in (
        "  cache_ttl_s: number = 1800.0", "[server]", "  tls_cert: text", "  drain_s: number = 5.0",
        "[[apps]]", "  id: text", "  is_enabled: true or false = true",
        "  max_connections: whole number", "  allowed_origins: list = []", "[[apps.keys]]",
        "[[apps.webhooks]]", "  headers: table = {}",
    ):  # fmt: skip
        assert line in lines


def test_demonstration_credentials_beyond_loopback_are_a_fault(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(
        "[server]\nhost = '0.0.0.0'\n[[apps]]\nid='1'\nkey='app-key'\nsecret='app-secret'\n"
    )
    with pytest.raises(ConfigError, match="demonstration") as caught:
        run("check-config", str(path))
    assert caught.value.field == "server.host"


def test_a_user_that_could_not_sign_in_is_not_signed():
    """The signature would be good for nothing, and the rule is what whoever asks needs to hear."""
    result = run("sign", "user", "1.2", '{"id":"e:2"}', *CREDENTIALS)

    assert result.exit_code == 2
    assert "Invalid user_data: id has invalid characters" in result.output


def test_a_member_that_could_not_be_present_is_not_signed():
    """What Laravel's `return true` makes, for example."""
    result = run(
        "sign", "channel", "1.2", "presence-x", '{"user_id":1,"user_info":true}', *CREDENTIALS
    )

    assert result.exit_code == 2
    assert "user_info is invalid" in result.output
