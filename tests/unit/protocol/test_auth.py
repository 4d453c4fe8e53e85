"""Signatures, by the official worked examples first (protocol.md 2.4 and 6.2)."""

from __future__ import annotations

from hashlib import md5
from itertools import permutations
from typing import TYPE_CHECKING
from urllib.parse import quote

import pusher  # type: ignore[import-untyped]  # it has no types
import pytest

from cachecast.errors import AuthError
from cachecast.protocol import auth
from tests.harness.lower import KEY, SECRET, SOCKET_ID, sign

if TYPE_CHECKING:
    from collections.abc import Callable

BODY = b'{"name":"foo","channels":["project-3"],"data":"{\\"some\\":\\"data\\"}"}'
BODY_MD5 = "ec365a775a4cd0599faeb73354201b6f"
SIGNATURE = "da454824c97ba181a32ccc17a72625ba02771f50b50e1e7430e47a1f3f457e6c"
THEN = 1_353_088_179
PARAMS = [
    ("auth_key", KEY),
    ("auth_timestamp", str(THEN)),
    ("auth_version", "1.0"),
    ("body_md5", BODY_MD5),
    ("auth_signature", SIGNATURE),
]


def _verify(
    params: list[tuple[str, str]] | None = None,
    *,
    body: bytes = BODY,
    unix_now: float = THEN,
    method: str = "POST",
    path: str = "/apps/3/events",
) -> None:
    auth.verify_request(
        method, path, auth.Query.of(params or PARAMS), body, SECRET.encode(), unix_now
    )


def _signed(
    method: str, path: str, params: list[tuple[str, str]], *, signs: str | None = None
) -> list[tuple[str, str]]:
    """The parameters with a signature made independently of the code under test."""
    text = signs or f"{method}\n{path}\n" + "&".join(f"{k}={v}" for k, v in params)
    return [*params, ("auth_signature", auth.sign(SECRET.encode(), text.encode()))]


# --- clients


@pytest.mark.parametrize(
    ("text", "signature"),
    [
        (
            auth.subscription_text(SOCKET_ID, "private-foobar"),
            "58df8b0c36d6982b82c3ecf6b4662e34fe8c25bba48f5369f135bf843651c3a4",
        ),
        (
            auth.subscription_text(
                SOCKET_ID, "presence-foobar", '{"user_id":10,"user_info":{"name":"Mr. Pusher"}}'
            ),
            "afaed3695da2ffd16931f457e338e6c9f2921fa133ce7dac49f529792be6304c",
        ),
        (
            auth.signin_text(SOCKET_ID, '{"id":"12345"}'),
            "4708d583dada6a56435fb8bc611c77c359a31eebde13337c16ab43aa6de336ba",
        ),
    ],
    ids=["private", "presence", "user"],
)
def test_the_official_vectors_hold(text: str, signature: str) -> None:
    """The three of Pusher's page, in the form that they really have."""
    assert auth.sign(SECRET.encode(), text.encode()) == signature
    auth.verify_client(f"{KEY}:{signature}", text, text, {KEY: SECRET.encode()}.get)


def test_empty_channel_data_is_not_signed() -> None:
    """Empty and absent are alike."""
    assert auth.subscription_text("1.2", "private-a", "") == "1.2:private-a"
    assert auth.subscription_text("1.2", "private-a", None) == "1.2:private-a"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (None, "Invalid format: auth must have the format key:signature"),
        ("", "Invalid format: auth must have the format key:signature"),
        (KEY, "Invalid format: auth must have the format key:signature"),
        ("other:00", "Invalid key in subscription auth data: 'other'"),
        (":00", "Invalid key in subscription auth data: ''"),
        (f"{KEY}:", "Invalid signature: Expected HMAC SHA256 hex digest of WORDS, but got "),
        (
            f"{KEY}:beef",
            "Invalid signature: Expected HMAC SHA256 hex digest of WORDS, but got beef",
        ),
        (sign("text").upper().replace(KEY.upper(), KEY), "Invalid signature"),
        (sign("text")[:-1], "Invalid signature"),
        (sign("text") + "0", "Invalid signature"),
        (sign("text") + ":0", "Invalid signature"),
        (sign("text") + "\n", "Invalid signature"),
        (sign("text", secret="other"), "Invalid signature"),
        (sign("texts"), "Invalid signature"),
        (f"{KEY}:ä\ud800", "Invalid signature"),
    ],
)
def test_a_signature_that_does_not_hold_is_refused_in_hosted_words(
    given: str | None, text: str
) -> None:
    """Forged, truncated, extended, in the wrong case or with another secret."""
    with pytest.raises(AuthError) as caught:
        auth.verify_client(given, "text", "WORDS", {KEY: SECRET.encode()}.get)

    assert str(caught.value).startswith(text)
    assert caught.value.close_code is None
    assert not caught.value.is_fatal


def test_a_refusal_repeats_little_of_what_it_refuses() -> None:
    """A kilobyte of signature comes back cut."""
    with pytest.raises(AuthError) as caught:
        auth.verify_client(f"{KEY}:{'x' * 10_000}", "text", "WORDS", {KEY: b"s"}.get)
    assert len(str(caught.value)) < 300
    with pytest.raises(AuthError) as caught:
        auth.verify_client("x" * 10_000 + ":00", "text", "WORDS", {KEY: b"s"}.get)
    assert len(str(caught.value)) < 300


# --- requests


def test_the_official_request_vector_holds() -> None:
    """POST /apps/3/events of Pusher's page."""
    assert md5(BODY).hexdigest() == BODY_MD5
    assert (
        auth.sign(SECRET.encode(), auth.request_text("POST", "/apps/3/events", PARAMS).encode())
        == SIGNATURE
    )
    _verify()


@pytest.mark.parametrize("params", list(permutations(PARAMS))[::17])
def test_parameters_may_come_in_any_order(params: tuple[tuple[str, str], ...]) -> None:
    """Python puts the signature second."""
    _verify(list(params))


@pytest.mark.parametrize("skew", [0, 599, -599, 599.999, -599.999])
def test_a_clock_may_be_less_than_ten_minutes_off(skew: float) -> None:
    """Either way."""
    _verify(unix_now=THEN + skew)


@pytest.mark.parametrize("skew", [600, -600, 86_400])
def test_at_ten_minutes_a_request_is_expired(skew: float) -> None:
    """The reference verifier refuses at 600 s; the text says both times."""
    with pytest.raises(AuthError) as caught:
        _verify(unix_now=THEN + skew)

    assert "Timestamp expired: Given timestamp (2012-11-16T17:49:39Z) not within 600s" in str(
        caught.value
    )
    assert caught.value.http_status == 401


@pytest.mark.parametrize(
    "stamp",
    [
        "",
        "x",
        "-1",
        "+1353088179",
        "1_353_088_179",
        "1353088179.0",
        " 1353088179",
        "١٣٥٣٠٨٨١٧٩",
        "9" * 13,
        "1e9",
    ],
)
def test_a_timestamp_is_whole_seconds_in_ascii_digits(stamp: str) -> None:
    """What int() would let through is still not a timestamp."""
    params = [(key, stamp if key == "auth_timestamp" else value) for key, value in PARAMS]

    with pytest.raises(AuthError, match="Invalid auth_timestamp"):
        _verify(params)


def test_a_timestamp_far_outside_the_calendar_is_only_expired() -> None:
    """And does not raise while it is being shown."""
    params = [(key, "9" * 12 if key == "auth_timestamp" else value) for key, value in PARAMS]

    with pytest.raises(AuthError, match=r"Given timestamp \(999999999999\)"):
        _verify(params)


@pytest.mark.parametrize(
    ("missing", "text"),
    [
        ("auth_version", "Version required"),
        ("auth_timestamp", "Timestamp required"),
        ("auth_signature", "Missing parameter: auth_signature"),
    ],
)
def test_a_missing_parameter_is_named(missing: str, text: str) -> None:
    """In the reference verifier's words and order."""
    with pytest.raises(AuthError, match=text):
        _verify([(key, value) for key, value in PARAMS if key != missing])


def test_another_version_is_not_supported() -> None:
    """Even when everything else would hold."""
    with pytest.raises(AuthError, match="Version not supported"):
        _verify([(key, "2.0" if key == "auth_version" else value) for key, value in PARAMS])


@pytest.mark.parametrize(
    "change",
    [
        {"method": "PUT"},
        {"path": "/apps/4/events"},
        {"path": "/apps/3/events/"},
        {"path": "/apps/%33/events"},
    ],
)
def test_method_and_path_are_signed_as_they_stand(change: dict[str, str]) -> None:
    """The error shows what should have been signed: the thing people debug most."""
    with pytest.raises(AuthError, match=r'you should have sent HmacSHA256Hex\("') as caught:
        _verify(**change)  # type: ignore[arg-type]  # only text is changed

    assert "\\nauth_key=" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "params",
    [
        [*PARAMS, ("extra", "1")],
        [*PARAMS[1:], ("auth_key", "other")],
        [*PARAMS[:-1], ("auth_signature", SIGNATURE.upper())],
        [*PARAMS[:-1], ("auth_signature", SIGNATURE[:-1])],
        [*PARAMS[:-1], ("auth_signature", "ä\udcff")],
    ],
)
def test_every_parameter_is_signed(params: list[tuple[str, str]]) -> None:
    """None may be added, changed or cut."""
    with pytest.raises(AuthError, match="Invalid signature"):
        _verify(params)


def test_the_body_is_what_its_md5_says() -> None:
    """A signed MD5 with another body protects nothing unless it is compared."""
    with pytest.raises(AuthError, match="Invalid body_md5"):
        _verify(body=BODY + b" ")


def test_a_body_without_md5_is_refused() -> None:
    """Nothing would protect it."""
    params = _signed("POST", "/p", PARAMS[:3])

    auth.verify_request("POST", "/p", auth.Query.of(params), b"", SECRET.encode(), THEN)
    with pytest.raises(AuthError, match="Missing parameter: body_md5"):
        auth.verify_request("POST", "/p", auth.Query.of(params), b"x", SECRET.encode(), THEN)


def test_the_md5_of_nothing_on_a_get_is_signed_and_right() -> None:
    """Pusher's Python library sends it."""
    params = _signed("GET", "/p", [*PARAMS[:3], ("body_md5", "d41d8cd98f00b204e9800998ecf8427e")])

    auth.verify_request("GET", "/p", auth.Query.of(params), b"", SECRET.encode(), THEN)


@pytest.mark.parametrize(
    "query", ["info=cache,subscription_count", "info=cache%2Csubscription_count"]
)
def test_a_comma_may_be_encoded_or_raw(query: str) -> None:
    """PHP encodes it, Python does not; both signed the comma."""
    base = [*PARAMS[:3], ("info", "cache,subscription_count")]
    signature = _signed("GET", "/p", base)[-1][1]
    raw = "&".join(f"{k}={v}" for k, v in PARAMS[:3]) + f"&auth_signature={signature}&{query}"

    auth.verify_request("GET", "/p", auth.parse_query(raw), b"", SECRET.encode(), THEN)


def test_array_parameters_are_signed_in_the_order_they_were_given() -> None:
    """The reference signer sorts by key alone (protocol.md 6.2)."""
    params = [*PARAMS[:3], ("channels[]", "b"), ("channels[]", "a")]

    assert auth.request_text("POST", "/p", params).endswith("&channels[]=b&channels[]=a")
    auth.verify_request(
        "POST", "/p", auth.Query.of(_signed("POST", "/p", params)), b"", SECRET.encode(), THEN
    )


def test_keys_are_sorted_and_signed_in_lower_case() -> None:
    """Whatever case they were sent in, the signature itself left out."""
    params = auth.parse_query("B=X&a=Y&AUTH_SIGNATURE=z&%43=W")

    assert auth.request_text("GET", "/p", params.pairs) == "GET\n/p\na=Y&b=X&c=W"
    signed = auth.sign_request(KEY, SECRET.encode(), "GET", "/p", {"Info": "x"}, b"", THEN)
    auth.verify_request(
        "GET", "/p", auth.Query.of(list(signed.items())), b"", SECRET.encode(), THEN
    )


@pytest.mark.parametrize("case", [str.upper, str.title])
def test_names_are_read_in_any_case_as_they_are_signed(case: Callable[[str], str]) -> None:
    """The reference verifier turns them all to lower case first (protocol.md 6.2)."""
    query = "&".join(f"{case(key)}={value}" for key, value in PARAMS)

    _verify(auth.parse_query(query).pairs)
    with pytest.raises(AuthError, match="Invalid signature"):
        _verify(auth.parse_query(query + "&" + case("info") + "=x").pairs)


def test_a_missing_or_unknown_key_is_named() -> None:
    """Before anything else is looked at."""
    with pytest.raises(AuthError, match="Missing parameter: auth_key") as missing:
        auth.verify_request("GET", "/p", auth.Query.of([]), b"", SECRET.encode(), THEN)
    with pytest.raises(AuthError, match="Unknown auth_key") as unknown:
        auth.verify_request("GET", "/p", auth.Query.of(PARAMS), b"", None, THEN)

    assert (missing.value.http_status, unknown.value.http_status) == (401, 400)


def test_a_signature_may_leave_out_what_a_proxy_has_put_in_front() -> None:
    """It counts over the path as received, and over its tail; over nothing else."""
    path, tail = "/behind/apps/3/events", "/apps/3/events"

    _verify(path=tail)
    auth.verify_request("POST", path, auth.Query.of(PARAMS), BODY, SECRET.encode(), THEN, tail=tail)
    whole = _signed("POST", path, PARAMS[:-1])
    auth.verify_request("POST", path, auth.Query.of(whole), BODY, SECRET.encode(), THEN, tail=tail)
    for other in ("/apps/4/events", "/3/events"):
        with pytest.raises(AuthError, match="Invalid signature") as caught:
            auth.verify_request(
                "POST", path, auth.Query.of(PARAMS), BODY, SECRET.encode(), THEN, tail=other
            )
        assert f"(or the same with {other} for the path)" in str(caught.value)
    with pytest.raises(AuthError, match=r"Invalid signature.*your_secret_key\), but you"):
        auth.verify_request("POST", path, auth.Query.of(PARAMS), BODY, SECRET.encode(), THEN)


@pytest.mark.parametrize(
    ("query", "pairs"),
    [
        ("", []),
        ("a=1&b=2", [("a", "1"), ("b", "2")]),
        ("b=2&a=1&b=3", [("b", "2"), ("a", "1"), ("b", "3")]),
        ("a", [("a", "")]),
        ("a=&&=b&", [("a", ""), ("", "b")]),
        ("a=b=c", [("a", "b=c")]),
        ("a=%3D%26%25", [("a", "=&%")]),
        ("a+b=c+d", [("a b", "c d")]),
        ("a=%C3%A4%ZZ%", [("a", "ä%ZZ%")]),
        ("a=%FF", [("a", "\ufffd")]),
        ("channels%5B%5D=x", [("channels[]", "x")]),
        ("Ab=Cd&%45=%46", [("ab", "Cd"), ("e", "F")]),
    ],
)
def test_a_query_is_decoded_into_pairs_in_order(query: str, pairs: list[tuple[str, str]]) -> None:
    """The signed text is built from decoded values."""
    parsed = auth.parse_query(query)

    assert parsed.pairs == pairs
    assert parsed.named == dict(pairs)  # of those given twice the last


@pytest.mark.parametrize("body", [b"", b"{}"])
def test_what_we_sign_we_accept(body: bytes) -> None:
    """The CLI and the client sign with the same hand."""
    given = auth.sign_request(
        KEY, SECRET.encode(), "POST", "/p", {"info": "a b&c"}, body, THEN + 0.9
    )
    query = "&".join(f"{key}={quote(value)}" for key, value in given.items())

    auth.verify_request("POST", "/p", auth.parse_query(query), body, SECRET.encode(), THEN)
    assert given["auth_timestamp"] == str(THEN)
    assert ("body_md5" in given) is bool(body)


def test_the_python_library_signs_what_we_verify() -> None:
    """``pusher`` from PyPI as a witness: a GET with an MD5 of nothing, and a publish."""
    library = pusher.Pusher("3", KEY, SECRET)._pusher_client
    for method, request in [
        ("GET", library.channels_info.make_request(prefix_filter="presence-")),
        ("POST", library.trigger.make_request(["a", "b"], "ev", {"x": "ä"})),
    ]:
        params = [(key, str(value)) for key, value in request.query_params.items()]
        stamp = float(dict(params)["auth_timestamp"])

        auth.verify_request(
            method, request.path, auth.Query.of(params), request.body, SECRET.encode(), stamp
        )


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("presence-a=b@c,d.e;f_g", "presence-a=b@c,d.e;f_g"),
        ("#server-to-user-1", "%23server-to-user-1"),
        ("a b/c?d%e", "a%20b%2Fc%3Fd%25e"),
        ("é", "%C3%A9"),
    ],
)
def test_a_part_of_a_signed_path_is_encoded_no_more_than_it_must_be(text: str, part: str) -> None:
    """A proxy that writes the path anew writes it so, and what it writes is what is verified."""
    assert auth.quote_part(text) == part
