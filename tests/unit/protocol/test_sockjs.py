"""SockJS's lines and paths, byte for byte."""

from __future__ import annotations

import json

import pytest

from cachecast.errors import BadMessageError, BadRequestError, RefusedError
from cachecast.protocol.messages import Control, Publication
from cachecast.protocol.sockjs import (
    Place,
    find_place,
    read_callback,
    read_form,
    read_introduction,
    read_messages,
    script,
)
from cachecast.protocol.wire import JSON_SOCKJS


@pytest.mark.parametrize("text", ["x", 'a"b\\c', "ä€😀", "a\nb\r\u2028\u0000", "\ufeff"])
def test_a_message_is_one_line_of_ascii_that_reads_back_as_it_was(text):
    frame = JSON_SOCKJS.event(Publication("tick", "x", text))
    assert frame.isascii()
    assert frame.count(b"\n") == 1
    assert frame.endswith(b"]\n")
    assert frame.startswith(b"a[")
    (message,) = json.loads(frame[1:])
    assert json.loads(message) == {"event": "tick", "channel": "x", "data": text}


def test_a_ping_is_the_protocols_own_and_a_goodbye_has_code_and_reason():
    assert JSON_SOCKJS.ping == JSON_SOCKJS.control(Control("pusher:ping", {}))
    assert JSON_SOCKJS.goodbye(4009, 'no "ä"') == b'c[4009,"no \\"\\u00e4\\""]\n'
    assert JSON_SOCKJS.goodbye(None) == b'c[1000,""]\n'
    said = JSON_SOCKJS.refusal(RefusedError("No", close_code=4001))
    assert said.startswith(b"a[")
    assert said.endswith(b'c[4001,"No"]\n')


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/pusher/app/k/1/s/xhr", ("xhr", "/pusher/app/k/1/s", "k")),
        ("/a/b/app/k%20y/999/s/xhr_streaming", ("xhr_streaming", "/a/b/app/k%20y/999/s", "k y")),
        ("/app/k/1/s/xhr_send", ("xhr_send", "/app/k/1/s", "k")),
        ("/pusher/1/s/xhr_send", ("xhr_send", "/pusher/1/s", None)),
        ("/pusher/1/s/jsonp", ("jsonp", "/pusher/1/s", None)),
        ("/pusher/1/s/jsonp_send", ("jsonp_send", "/pusher/1/s", None)),
        ("/pusher/info", ("info", "/pusher", None)),
        ("/info", None),
        ("/pusher/app/k", None),
        ("/pusher/s/xhr", None),
        ("/pusher/app/k/1.2/s/xhr", None),
        ("/pusher/app/k/1/s.x/xhr", None),
        ("/pusher/app/k/1//xhr", None),
        ("/pusher/app/k//s/xhr", None),
        ("/pusher/app/k/1/" + "s" * 512 + "/xhr", None),
    ],
)
def test_a_path_says_what_is_asked_of_which_session(path, place):
    assert find_place(path) == (None if place is None else Place(*place))


def test_messages_are_an_array_of_strings():
    assert read_messages(b"[]", 2) == []
    body = '["{\\"a\\":1}","ä\\ud83d"]'.encode()
    assert read_messages(body, 100) == [b'{"a":1}', "ä\ufffd".encode()]
    with pytest.raises(BadRequestError, match="more than 20 bytes"):
        read_messages(body, 20)


@pytest.mark.parametrize("body", [b"", b"{}", b'"x"', b"[1]", b'["x"', b"[" * 5_000, b"\xff"])
def test_whatever_else_is_refused(body):
    with pytest.raises(BadRequestError, match="JSON array of strings"):
        read_messages(body, 5_000)


def test_a_form_has_them_in_its_field():
    assert read_form(b"d=%5B%22a%2Bb+c%22%5D") == b'["a+b c"]'
    assert read_form(b'["x"]') == b'["x"]'


def test_a_callback_is_the_name_of_a_function_and_nothing_that_could_be_code():
    assert read_callback("c=_jp.a1b2") == "_jp.a1b2"
    for query in ("", "c=", "c=alert(1)", "c=a%3Cb", "c=" + "x" * 65, "c=%C3%A4"):
        assert read_callback(query) is None


def test_a_line_becomes_a_call():
    assert script("_jp.a", b'a["x"]\n') == b'/**/_jp.a("a[\\"x\\"]");\r\n'


def test_the_first_message_names_app_and_query():
    message = b'{"path":"/app/k%20y?protocol=7&client=js"}'
    assert read_introduction(message) == ("k y", "protocol=7&client=js")
    assert read_introduction(b'{"path":"/app/k"}') == ("k", "")


@pytest.mark.parametrize("message", [b"", b"{}", b'{"path":1}', b"[" * 5_000])
def test_a_first_message_that_names_none_is_refused_in_words(message):
    with pytest.raises(BadMessageError, match="The first message must be"):
        read_introduction(message)
