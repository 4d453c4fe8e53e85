"""The doctor: healthy deployments are found healthy, and every fault is named with its remedy.

Faults are real wherever Debian's nginx or HAProxy can make them, in front of a real engine; the
saboteur makes the rest. Examinations run in this process, which they do not patch, and some beside
each other: they wait far longer than they work.
"""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
import trustme
from rich.console import Console

from cachecast_load.doctor import PROBES, examine, print_page, to_json
from cachecast_load.doctor.findings import Kind
from cachecast_load.doctor.lines import Answer
from cachecast_load.doctor.looks import looks_like
from cachecast_load.plan.target import make_target
from tests.loadtest.conftest import SECRET, start_engine, start_saboteur
from tests.loadtest.proxies import free_port, haproxy, nginx

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

APP = {"app_id": "4242", "key": "app-key", "secret": SECRET}


def look(url, idle_s=0.2, **options):
    """Examine a target; returns its outcome."""
    outcome = examine(make_target(**{"url": url, **APP, **options}, needs_api=False), idle_s)
    assert SECRET not in to_json(outcome)
    return outcome


def names(outcome, *kinds):
    return [found.name for found in outcome.findings if found.kind in (kinds or (Kind.WRONG,))]


def the(outcome, name):
    return next(found for found in outcome.findings if found.name == name)


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(16) as pool:
        yield pool
        pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="module", autouse=True)
def early(request):
    """Begin with what will be waited for, where most of it will be."""
    if len(request.session.items) > 40:
        for name in ("sabotaged", "front", "secure"):
            request.getfixturevalue(name)


@pytest.fixture(scope="module")
def healthy():
    server = start_engine()
    yield server
    server.end()


# --- what is healthy ----------------------------------------------------------------------------


def test_an_engine_is_found_healthy_with_everything_there_is(healthy, command, tmp_path):
    done = command(
        "doctor", healthy.url, "--app-id", "4242", "--key", "app-key", "--idle", 0.2,
        "--json", tmp_path / "found.json", COLUMNS="80",
    )  # fmt: skip
    found = json.loads((tmp_path / "found.json").read_text())

    assert done.code == 0, done.out
    assert max(map(len, done.out.splitlines())) <= 80
    assert not [line for line in done.out.splitlines() if line != line.rstrip()]
    assert "Nothing is wrong." in done.out
    assert {finding["kind"] for finding in found["findings"]} == {"works", "note"}
    assert {finding["name"] for finding in found["findings"] if finding["kind"] == "works"} == {
        "upgrade", "clock", "signatures", "heartbeat", "versions", "kinds", "cache.miss", "events",
        "publish.info", "frames", "cache.replay", "cache.info", "exclusion", "presence",
        "client-events", "signin", "to-user", "terminate", "batch", "queries", "limits", "idle",
    }  # fmt: skip
    assert SECRET not in (tmp_path / "found.json").read_text()
    assert all("doctor-" in channel for channel in found["cached"])
    # It is said what was not looked for, and how to ask for it.
    assert "--idle 55" in done.out


def test_without_the_secret_it_says_what_can_be_said(healthy):
    outcome = look(healthy.url, secret="", app_id="")
    assert outcome.exit_code == 0
    assert names(outcome, Kind.UNKNOWN) == ["api.unsigned"]
    assert "no app id was given" in the(outcome, "api.unsigned").text
    assert {"upgrade", "kinds", "api.there"} <= set(names(outcome, Kind.WORKS))
    assert outcome.published == 0


def test_ctrl_c_gives_what_was_found(healthy):
    """The second target takes connections and says nothing: its second one is the upgrade."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mute.settimeout(60)
        process = subprocess.Popen(
            [sys.executable, "-m", "cachecast_load", "doctor", healthy.url,
             f"ws://127.0.0.1:{mute.getsockname()[1]}", "--app-id", "4242", "--key", "app-key"],
            env={**os.environ, "CACHECAST_LOADTEST_SECRET": SECRET},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        held = [mute.accept()[0] for _ in range(2)]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        for sock in held:
            sock.close()
    assert process.returncode == 2
    assert "Stopped before its end" in out
    assert "A client is welcome" in out
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--target is missing"),
        (["ws://127.0.0.1:1"], "--key is missing"),
        (["127.0.0.1:1", "--key", "k"], "no scheme"),
        (["ws://127.0.0.1:1", "--key", "k", "--json", "/proc/no/such"], "--json /proc/no/such"),
    ],
)
def test_bad_usage_is_a_sentence(command, options, words):
    done = command("doctor", *options)
    assert done.code == 3
    assert words in done.out


# --- who is refused, and why --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"key": "nobody"}, ["key.unknown"]),
        ({"app_id": "99"}, ["app-id.unknown"]),
        ({"secret": "not-it"}, ["secret.wrong"]),
    ],
)
def test_key_secret_and_app_id_are_told_apart(healthy, wrong, expected):
    outcome = look(healthy.url, **wrong)
    assert names(outcome) == expected
    assert outcome.exit_code == 1


def test_an_api_of_another_deployment_is_told_by_the_key(healthy, new_engine):
    other = new_engine("--app-id", "4242", "--app-key", "other-key", "--app-secret", SECRET)
    outcome = look(healthy.url, api_url=other.url.replace("ws", "http"))
    assert names(outcome) == ["key.unknown-api"]
    assert "belong to another deployment" in the(outcome, "key.unknown-api").text


def test_nodes_that_are_not_joined_are_named_by_the_way_that_failed(healthy, new_engine, pool):
    other = new_engine()
    apart = pool.submit(look, [healthy.url, other.url])
    # The same deployment by two names is one.
    again = look([healthy.url, healthy.url.replace("127.0.0.1", "localhost")])
    assert "several" in names(again, Kind.WORKS)
    assert names(apart.result()) == ["several.apart"] * 2
    assert "--bus" in the(apart.result(), "several.apart").remedy


#: What the saboteur does -> the finding that must come of it.
SABOTAGE = {
    "refuse 4000": ({"refuse_code": 4000}, "scheme.tls-only"),
    "refuse 4003": ({"refuse_code": 4003}, "app.disabled"),
    "refuse 4004": ({"refuse_code": 4004}, "app.quota"),
    "refuse 4005": ({"refuse_code": 4005}, "path.unknown"),
    "refuse 4006": ({"refuse_code": 4006}, "protocol.refused"),
    "refuse 4008": ({"refuse_code": 4008}, "protocol.query"),
    "refuse 4009": ({"refuse_code": 4009}, "connection.unauthorized"),
    "refuse 4100": ({"refuse_code": 4100}, "server.full"),
    "refuse 4299": ({"refuse_code": 4299}, "upgrade.refused"),
    "protocols": ({"protocols": [5, 6]}, "protocol.refused"),
    "dropped": ({"drop": True}, "key.unknown"),
    "garbage": ({"garbage": True}, "upgrade.broken"),
    "mute": ({"mute": True}, "upgrade.silent"),
    "silent": ({"silent": True}, "upgrade.timeout"),
    "no pong": ({"no_pong": True}, "heartbeat.event"),
    "open": ({"open_auth": True}, "auth.open"),
    "late": ({"late_events": 2.3}, "frames.late"),
    "joined": ({"joined_s": 2.6}, "frames.late"),
    "limit": ({"limit_bytes": 5000}, "limit.body"),
    "lose": ({"lose": 1000, "stride": 1}, "events.lost"),
    "respell": ({"respell": True}, "events.altered"),
    "misses": ({"false_miss": 1000}, "cache.replay"),
    "unsigned": ({"subscribe_error": True}, "secret.wrong-socket"),
    "members": ({"lose_member": 1000}, "presence.joined"),
    "echo": ({"echo": 1000}, "client-events.echo"),
    "503": ({"publish_status": 503}, "api.no-upstream"),
    "cut": ({"cut_after_s": 2}, "idle.proxy"),
    "clock ahead": ({"clock_s": 3000}, "clock.wrong"),
    "clock behind": ({"clock_s": -3000}, "clock.wrong"),
    "clock a little": ({"clock_s": 120}, "clock.skew"),
    "soketi's way": ({"status_in_body": True}, "api.status"),
    "honest": ({}, "idle.short"),
}


@pytest.fixture(scope="module")
def sabotaged(pool):
    """Examine a saboteur of each kind; returns the futures by name."""

    def job(faults):
        server = start_saboteur(faults)
        try:
            return look(server.url, idle_s=10 if "cut_after_s" in faults else 0.2)
        finally:
            server.end()

    return {name: pool.submit(job, faults) for name, (faults, _) in SABOTAGE.items()}


@pytest.mark.parametrize("name", SABOTAGE)
def test_what_a_saboteur_does_is_named(sabotaged, name):
    outcome = sabotaged[name].result()
    assert SABOTAGE[name][1] in names(outcome, Kind.WRONG, Kind.ABSENT, Kind.NOTE)
    assert outcome.took_s < 30
    if name.startswith("refuse"):
        assert names(outcome) == [SABOTAGE[name][1]]


@pytest.mark.parametrize(("name", "skew_s"), [("clock ahead", 3000), ("clock behind", -3000)])
def test_a_clock_that_is_off_is_measured_and_everything_else_is_examined(sabotaged, name, skew_s):
    outcome = sabotaged[name].result()
    assert names(outcome) == ["clock.wrong"]
    assert the(outcome, "clock.wrong").facts["skew_s"] == pytest.approx(skew_s, abs=30)
    assert ("ahead" if skew_s > 0 else "behind") in the(outcome, "clock.wrong").text
    assert "events" in names(outcome, Kind.WORKS)


def test_refusals_in_the_body_of_a_200_are_read(saboteur):
    assert "secret.wrong" in names(look(saboteur(status_in_body=True).url, secret="not-it"))


def test_a_clock_that_is_off_a_little_is_no_fault(sabotaged):
    outcome = sabotaged["clock a little"].result()
    assert names(outcome) == []
    assert the(outcome, "clock.skew").facts["skew_s"] == pytest.approx(120, abs=30)


def test_a_protocol_that_is_refused_is_named_with_those_that_are_not(sabotaged):
    text = the(sabotaged["protocols"].result(), "protocol.refused").text
    assert "It does speak version 6" in text


def test_frames_that_come_joined_are_told_from_late_ones(sabotaged):
    assert "all at once" in the(sabotaged["joined"].result(), "frames.late").text
    assert "all at once" not in the(sabotaged["late"].result(), "frames.late").text


def test_what_is_not_there_is_no_fault(sabotaged):
    """The saboteur has no sign-in, no batches, no list of users."""
    outcome = sabotaged["honest"].result()
    assert names(outcome) == []
    assert {"signin", "batch", "queries", "publish.info"} <= set(names(outcome, Kind.ABSENT))


@pytest.mark.parametrize(
    ("faults", "key", "expected"),
    [
        ({}, "app-key", []),
        ({"auth_status": 403}, "app-key", ["auth.refused"]),
        ({}, "other-key", ["auth.key"]),
    ],
)
def test_an_auth_endpoint_is_asked_and_its_signature_tried(
    sabotaged, saboteur, new_engine, faults, key, expected
):
    server = saboteur(**faults)
    url = server.url
    if key != "app-key":
        url = new_engine("--app-id", "4242", "--app-key", key, "--app-secret", SECRET).url
    endpoint = server.url.replace("ws", "http") + "/auth"
    outcome = look(url, key=key, secret="", auth_endpoint=endpoint)
    assert [name for name in names(outcome) if name.startswith("auth")] == expected
    assert ("auth" in names(outcome, Kind.WORKS)) is (not expected)


def test_a_wrong_key_closed_without_a_word_is_told_by_comparison(sabotaged):
    assert "as for a key that nobody has" in the(sabotaged["dropped"].result(), "key.unknown").text


# --- what is no Pusher server at all ------------------------------------------------------------


def test_another_kind_of_server_is_called_by_its_name():
    def banner():
        with suppress(OSError):  # closed by the test
            while True:
                client, _ = listener.accept()
                with client:
                    client.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as own:
        own.submit(banner)
        try:
            outcome = look(f"ws://127.0.0.1:{listener.getsockname()[1]}")
        finally:
            listener.shutdown(socket.SHUT_RDWR)
    assert names(outcome) == ["port.other"]
    assert "an SSH server" in the(outcome, "port.other").text


def test_nothing_that_a_target_quotes_is_shown_raw():
    """A server that sends back what it got, and a colour besides."""

    def mirror():
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client:
                    body = client.recv(65536) + f" {SECRET} \x1b[31mred\x07".encode()
                    head = f"HTTP/1.1 400 No\r\nContent-Length: {len(body)}\r\n\r\n"
                    client.sendall(head.encode() + body)

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as own:
        own.submit(mirror)
        try:
            url = f"ws://127.0.0.1:{listener.getsockname()[1]}"
            outcome = look(url, headers=("X-A: token-of-mine",))
        finally:
            listener.shutdown(socket.SHUT_RDWR)
    shown = io.StringIO()
    print_page(outcome, Console(file=shown, width=80))
    assert outcome.exit_code == 1
    for text in (shown.getvalue(), to_json(outcome)):
        assert not re.search(r"[\x00-\x09\x0b-\x1f]|\\u001b", text)
        assert SECRET not in text
        assert "token-of-mine" not in text


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(fault="x", first=b"-ERR unknown command"), "Redis"),
        (Answer(fault="x", first=b"\x15\x03\x01\x00\x02\x02\x46"), "TLS only"),
        (Answer(fault="x", first=b"\x00\x00\x12\x04\x00\x00"), "HTTP/2 only"),
        (Answer(status=400, body=b'{"code":0,"message":"Transport unknown"}'), "Socket.IO"),
        (Answer(status=200, body=b"# HELP go_gc_duration_seconds"), "Prometheus"),
        (Answer(status=404, body=b"<pre>Cannot GET /app/k</pre>"), "Express"),
        (Answer(status=404, body=b"404 NOT FOUND\n"), ""),
    ],
)
def test_servers_are_known_by_what_they_say(answer, words):
    assert words in looks_like(answer)
    assert words or not looks_like(answer)


def test_nobody_there_and_no_such_name_are_told_apart(command):
    outcome = look(f"ws://127.0.0.1:{free_port()}")
    assert names(outcome) == ["tcp.refused"]
    done = command("doctor", "ws://does-not-exist.invalid", "--key", "k")
    assert done.code == 1
    assert "cannot be resolved" in done.out


# --- proxies ------------------------------------------------------------------------------------

UPGRADE = (
    "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade;"
    ' proxy_set_header Connection "upgrade"; proxy_set_header Host $http_host;'
)


class Front:
    """One nginx with a server block for each fault, by its name."""

    def __init__(self, blocks):
        self.ports = {name: free_port() for name in blocks}
        self.servers = "\n".join(
            f"server {{ listen 127.0.0.1:{self.ports[name]}{' ssl' if 'ssl_' in block else ''};"
            f" {block} }}"
            for name, block in blocks.items()
        )

    def url(self, name, scheme="ws", path=""):
        return f"{scheme}://127.0.0.1:{self.ports[name]}{path}"


@pytest.fixture(scope="module")
def front(healthy, pool, tmp_path_factory):
    up = healthy.url.replace("ws", "http")
    (tmp_path_factory.mktemp("www") / "index.html").write_text("<title>Shop</title>")
    static = tmp_path_factory.getbasetemp()
    page = next(static.glob("www*"))
    front = Front(
        {
            "good": f"client_max_body_size 1m; location / {{ proxy_pass {up}; {UPGRADE} }}",
            "stripped": f"location /rt/ {{ proxy_pass {up}/; {UPGRADE} }}",
            "kept": f"location /rt/ {{ proxy_pass {up}; {UPGRADE} }}",
            "no-upgrade": f"location / {{ proxy_pass {up}; proxy_http_version 1.1; }}",
            "http10": f"location / {{ proxy_pass {up}; proxy_set_header Upgrade $http_upgrade; }}",
            "short": f"location / {{ proxy_pass {up}; {UPGRADE} proxy_read_timeout 1s; }}",
            "redirect": "location / { return 301 https://example.test$request_uri; }",
            "body": f"client_max_body_size 8k; location / {{ proxy_pass {up}; {UPGRADE} }}",
            "batch": f"client_max_body_size 64k; location / {{ proxy_pass {up}; {UPGRADE} }}",
            "closing": f"keepalive_timeout 0; location / {{ proxy_pass {up}; {UPGRADE} }}",
            "down": f"location / {{ proxy_pass http://127.0.0.1:{free_port()}; {UPGRADE} }}",
            "shop": f"root {page}; location / {{ try_files $uri /index.html; }}",
            "login": f'location / {{ auth_basic "x"; auth_basic_user_file /dev/null;'
            f" proxy_pass {up}; {UPGRADE} }}",
            "unneeded": f"location /app/ {{ proxy_pass {up}; {UPGRADE} }}",
            "unrouted": f"location /rt/ {{ proxy_pass {up}/; {UPGRADE} }}",
            "sockets-only": f"location /app/ {{ proxy_pass {up}; {UPGRADE} }}",
            "api-only": f"location /apps/ {{ proxy_pass {up}; }}",
        }
    )
    folder = tmp_path_factory.mktemp("nginx")
    with nginx(folder, front.servers, list(front.ports.values())):
        paths = {"stripped": "/rt", "kept": "/rt", "unneeded": "/rt"}
        front.looks = {
            name: pool.submit(
                look, front.url(name, path=paths.get(name, "")), 20 if name == "short" else 0.2
            )
            for name in front.ports
        }
        yield front


def test_behind_a_right_proxy_nothing_is_wrong(front):
    outcome = front.looks["good"].result()
    assert names(outcome) == []
    assert outcome.exit_code == 0


@pytest.mark.parametrize("name", ["stripped", "kept"])
def test_a_prefix_does_no_harm_where_the_server_takes_it(front, name):
    outcome = front.looks[name].result()
    assert names(outcome) == []
    # Which path must be signed is what people ask; our engine takes both where it sees both.
    assert the(outcome, "prefix").facts["whole_path"] is (name == "kept")


def test_a_forgotten_prefix_is_a_wrong_path(front):
    outcome = front.looks["unrouted"].result()
    assert names(outcome) == ["target.stranger", "api.stranger"]
    assert "route PREFIX/app/" in the(outcome, "target.stranger").remedy


def test_a_prefix_that_is_not_needed_is_named(front):
    outcome = front.looks["unneeded"].result()
    assert names(outcome)[0] == "prefix.unneeded"
    assert (
        f"Leave the prefix out: {front.url('unneeded')}" in the(outcome, "prefix.unneeded").remedy
    )


def test_a_prefix_that_must_be_signed_is_named_and_used(saboteur, tmp_path):
    """The saboteur verifies signatures over the path as it receives it, as some servers do."""
    server = saboteur()
    up = server.url.replace("ws", "http")
    proxy = Front({"kept": f"location /rt/ {{ proxy_pass {up}; {UPGRADE} }}"})
    with nginx(tmp_path, proxy.servers, list(proxy.ports.values())):
        outcome = look(proxy.url("kept", path="/rt"))
    assert names(outcome) == ["prefix.kept"]
    assert "slash at the end of proxy_pass" in the(outcome, "prefix.kept").remedy
    assert "events" in names(outcome, Kind.WORKS)


@pytest.mark.parametrize("name", ["no-upgrade", "http10"])
def test_missing_upgrade_headers_are_found_and_the_api_is_examined_all_the_same(front, name):
    outcome = front.looks[name].result()
    assert names(outcome) == ["upgrade.headers"]
    assert "proxy_set_header Upgrade" in the(outcome, "upgrade.headers").remedy
    assert {"signatures", "batch"} <= set(names(outcome, Kind.WORKS))


def test_an_idle_timeout_below_the_activity_timeout_is_measured(front):
    outcome = front.looks["short"].result()
    found = the(outcome, "idle.proxy")
    assert found.facts["code"] == 1006
    assert 0.9 < found.facts["quiet_s"] < 4
    assert found.facts["activity_timeout_s"] == 45
    assert "proxy_read_timeout" in found.remedy
    # It does not wait for what has ended already.
    assert outcome.took_s < 15


def test_a_redirect_to_https_is_followed_by_nobody(front):
    outcome = front.looks["redirect"].result()
    assert names(outcome) == ["redirect", "redirect"]
    assert "Use wss://example.test:443" in the(outcome, "redirect").remedy


@pytest.mark.parametrize("name", ["body", "batch"])
def test_a_proxys_limit_of_bodies_is_told_from_the_servers(front, name):
    outcome = front.looks[name].result()
    assert names(outcome) == ["limit.body"]
    assert "client_max_body_size" in the(outcome, "limit.body").remedy


def test_connections_that_are_not_kept_are_noted(front):
    outcome = front.looks["closing"].result()
    assert names(outcome) == []
    assert "api.closes" in names(outcome, Kind.NOTE)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("down", ["upgrade.no-upstream", "api.no-upstream"]),
        ("shop", ["target.stranger", "api.stranger"]),
        ("login", ["upgrade.forbidden", "api.stranger"]),
        ("sockets-only", ["api.stranger"]),
        ("api-only", ["upgrade.headers-or-port"]),
    ],
)
def test_what_stands_before_the_server_is_told_from_it(front, name, expected):
    outcome = front.looks[name].result()
    assert names(outcome) == expected
    if name == "shop":
        assert "a page titled 'Shop'" in the(outcome, "target.stranger").text


def test_haproxy_is_no_mystery_either(healthy, pool, tmp_path):
    at = {name: free_port() for name in ("good", "short", "redirect", "down", "deny")}
    up = healthy.url.removeprefix("ws://")
    haproxy_sections = f"""
frontend good
  bind 127.0.0.1:{at["good"]}
  default_backend engine
frontend short
  bind 127.0.0.1:{at["short"]}
  default_backend hasty
frontend redirect
  bind 127.0.0.1:{at["redirect"]}
  http-request redirect scheme https
frontend down
  bind 127.0.0.1:{at["down"]}
  default_backend nobody
  retries 0
frontend deny
  bind 127.0.0.1:{at["deny"]}
  http-request deny deny_status 403
backend engine
  server a {up}
backend hasty
  timeout tunnel 1s
  server a {up}
backend nobody
  retries 0
  server a 127.0.0.1:{free_port()}
"""
    with haproxy(tmp_path, haproxy_sections, list(at.values())):
        found = {
            name: pool.submit(look, f"ws://127.0.0.1:{port}", 20 if name == "short" else 0.2)
            for name, port in at.items()
        }
        found = {name: names(outcome.result()) for name, outcome in found.items()}
    assert found == {
        "good": [],
        "short": ["idle.proxy"],
        "redirect": ["redirect", "redirect"],
        "down": ["upgrade.no-upstream", "api.no-upstream"],
        "deny": ["upgrade.forbidden", "api.stranger"],
    }


# --- TLS ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def secure(healthy, pool, tmp_path_factory):
    """nginx with a certificate for each fault, and the authority to trust."""
    folder = tmp_path_factory.mktemp("tls")
    root, private = trustme.CA(), trustme.CA(organization_name="Somebody Else")
    middle = root.create_child_ca()
    over = datetime.now(UTC) - timedelta(days=3)
    soon = datetime.now(UTC) + timedelta(days=5)
    leaves = {
        "good": root.issue_cert("127.0.0.1"),
        "soon": root.issue_cert("127.0.0.1", not_after=soon),
        "expired": root.issue_cert("127.0.0.1", not_after=over),
        "name": root.issue_cert("other.test"),
        "private": private.issue_cert("127.0.0.1"),
        "incomplete": middle.issue_cert("127.0.0.1"),
        "chain": middle.issue_cert("127.0.0.1"),
    }
    up = healthy.url.replace("ws", "http")
    blocks = {}
    for name, leaf in leaves.items():
        pems = leaf.cert_chain_pems[:1] if name == "incomplete" else leaf.cert_chain_pems
        (folder / f"{name}.pem").write_bytes(b"".join(pem.bytes() for pem in pems))
        leaf.private_key_pem.write_to_path(folder / f"{name}.key")
        blocks[name] = (
            f"ssl_certificate {folder}/{name}.pem; ssl_certificate_key {folder}/{name}.key;"
            f" location / {{ proxy_pass {up}; {UPGRADE} }}"
        )
    blocks["old"] = (
        f"ssl_certificate {folder}/good.pem; ssl_certificate_key {folder}/good.key;"
        f" ssl_protocols TLSv1.1; ssl_ciphers DEFAULT@SECLEVEL=0; location / {{ proxy_pass {up}; }}"
    )
    (folder / "self.pem").write_bytes(root.cert_pem.bytes())
    root.private_key_pem.write_to_path(folder / "self.key")
    blocks["self"] = blocks["good"].replace("/good.", "/self.")
    root.cert_pem.write_to_path(folder / "ca.pem")
    front = Front(blocks)
    front.authority = str(folder / "ca.pem")
    with nginx(folder, front.servers, list(front.ports.values())):
        front.looks = {
            name: pool.submit(look, front.url(name, "wss"), ca_file=front.authority)
            for name in front.ports
        }
        front.bare_looks = {
            name: pool.submit(look, front.url(name, "wss"), **options)
            for name, options in {"self": {}, "chain": {}, "private": {"verify": False}}.items()
        }
        yield front


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("good", []), ("chain", []), ("expired", ["tls.expired"]), ("name", ["tls.name"]),
        ("private", ["tls.incomplete"]), ("incomplete", ["tls.incomplete"]),
        ("old", ["tls.version"]),
    ],
)  # fmt: skip
def test_faults_of_certificates_are_told_apart(secure, name, expected):
    outcome = secure.looks[name].result()
    assert names(outcome) == expected
    # One fault must not hide the others: the rest is examined without the check.
    assert ("events" in names(outcome, Kind.WORKS)) is (name != "old")


def test_an_authority_nobody_knows_and_a_certificate_of_ones_own(secure):
    assert names(secure.bare_looks["self"].result()) == ["tls.self-signed"]
    unknown = secure.bare_looks["chain"].result()
    assert names(unknown) == ["tls.private"]
    assert "--ca-file" in the(unknown, "tls.private").remedy
    careless = secure.bare_looks["private"].result()
    assert names(careless) == []
    assert "tls.insecure" in names(careless, Kind.NOTE)


def test_what_a_certificate_says_is_shown(secure):
    outcome = secure.looks["name"].result()
    assert "is for other.test, not for 127.0.0.1" in the(outcome, "tls.name").text
    soon = secure.looks["soon"].result()
    assert names(soon) == []
    assert the(soon, "tls.soon").facts["days"] == pytest.approx(5, abs=0.2)


def test_tls_where_none_is_and_none_where_it_is(secure, healthy):
    assert names(look(healthy.url.replace("ws", "wss"))) == ["tls.none"]
    outcome = look(secure.url("good"))
    assert names(outcome)[0] == "scheme.needs-tls"
    assert f"Use {secure.url('good', 'wss')}" in the(outcome, "scheme.needs-tls").remedy


def test_a_forwarded_scheme_that_is_missing_or_believed_from_anybody(tmp_path, new_engine, pool):
    (tmp_path / "engine.toml").write_text(
        "[server]\ntrusts_proxy = true\n"
        '[[apps]]\nid = "4242"\nkey = "app-key"\nsecret = "app-secret"\nis_tls_only = true\n'
    )
    engine = new_engine("--config", tmp_path / "engine.toml")
    up = engine.url.replace("ws", "http")
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    leaf.private_key_pem.write_to_path(tmp_path / "key.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    tls = f"ssl_certificate {tmp_path}/cert.pem; ssl_certificate_key {tmp_path}/key.pem;"
    says = "proxy_set_header X-Forwarded-Proto $scheme;"
    proxy = Front(
        {
            "missing": f"{tls} location / {{ proxy_pass {up}; {UPGRADE} }}",
            "said": f"{tls} location / {{ proxy_pass {up}; {UPGRADE} {says} }}",
            "plain": f"location / {{ proxy_pass {up}; {UPGRADE} {says} }}",
        }
    )
    authority_file = str(tmp_path / "ca.pem")
    with nginx(tmp_path, proxy.servers, list(proxy.ports.values())):
        missing, said, plain, forged = (
            pool.submit(look, url, ca_file=authority_file)
            for url in (
                proxy.url("missing", "wss"), proxy.url("said", "wss"), proxy.url("plain"),
                engine.url,
            )
        )  # fmt: skip
        missing, said, plain, forged = (one.result() for one in (missing, said, plain, forged))
    assert names(missing) == ["forwarded.missing", "forwarded.missing-api"]
    assert "which proves it" in the(missing, "forwarded.missing").text
    assert names(said) == []
    assert names(plain) == ["scheme.tls-only", "scheme.tls-only-api"]
    assert names(forged) == ["forwarded.forged", "scheme.tls-only-api"]


# --- the table is the documentation -------------------------------------------------------------


def test_every_probe_has_a_name_of_its_own():
    assert len({probe.name for probe in PROBES}) == len(PROBES)
