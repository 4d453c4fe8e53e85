"""The Pusher protocol as we speak it, against the worked examples of its documentation."""

import base64
import json

import pytest
from pusher import Pusher  # the official server library, as a witness
from pusher.crypto import generate_shared_secret

from cachecast_load.pusher import protocol as pusher
from cachecast_load.pusher.encryption import ChannelCipher, DecryptionError
from cachecast_load.pusher.protocol import Credentials

DOCUMENTED = Credentials("3", "278d425bdf160c739803", "7ad3773142a6692b25b8")


def test_the_documented_private_signature():
    assert pusher.subscribe_auth(DOCUMENTED, "1234.1234", "private-foobar") == (
        "278d425bdf160c739803:58df8b0c36d6982b82c3ecf6b4662e34fe8c25bba48f5369f135bf843651c3a4"
    )


def test_the_documented_presence_signature():
    data = '{"user_id":10,"user_info":{"name":"Mr. Pusher"}}'
    assert pusher.subscribe_auth(DOCUMENTED, "1234.1234", "presence-foobar", data) == (
        "278d425bdf160c739803:afaed3695da2ffd16931f457e338e6c9f2921fa133ce7dac49f529792be6304c"
    )


def test_the_documented_publish_signature():
    body = b'{"name":"foo","channels":["project-3"],"data":"{\\"some\\":\\"data\\"}"}'
    target = pusher.signed_target(DOCUMENTED, "POST", "/apps/3/events", body, 1353088179)
    assert "body_md5=ec365a775a4cd0599faeb73354201b6f" in target
    assert target.endswith(
        "&auth_signature=da454824c97ba181a32ccc17a72625ba02771f50b50e1e7430e47a1f3f457e6c"
    )


def test_a_prefix_is_sent_and_not_signed():
    """A proxy may take it off; the signature counts from `/apps/` on."""
    given = (DOCUMENTED, "POST", "/apps/3/events", b"{}", 1353088179)
    plain = pusher.signed_target(*given)
    assert pusher.signed_target(*given, prefix="/ws/apps") == "/ws/apps" + plain


@pytest.mark.parametrize(
    ("name", "is_cache", "needs_auth"),
    [
        ("a", False, False),
        ("cache-a", True, False),
        ("private-a", False, True),
        ("private-cache-a", True, True),
        ("private-encrypted-a", False, True),
        ("private-encrypted-cache-a", True, True),
        ("presence-a", False, True),
        ("presence-cache-a", True, True),
        ("cache-private-a", True, False),
        ("private-a-cache-b", False, True),
        ("my-cache-a", False, False),
    ],
)
def test_channel_kinds_are_told_by_their_anchored_prefix(name, is_cache, needs_auth):
    assert pusher.is_cache_channel(name) == is_cache
    assert pusher.needs_auth(name) == needs_auth


def test_what_a_client_does_after_each_class_of_close_code():
    assert pusher.after_close(4001) == pusher.after_close(4301) == pusher.STOP
    assert pusher.after_close(4100) == pusher.after_close(1006) == pusher.BACK_OFF
    assert pusher.after_close(4200) == pusher.after_close(4201) == pusher.AT_ONCE


def test_double_encoded_data_is_decoded_and_plain_text_is_kept():
    message = pusher.read_message(b'{"event":"e","data":"{\\"a\\":1}"}')
    assert message["data"] == {"a": 1}
    assert pusher.read_message(b'{"event":"e","data":"hello"}')["data"] == "hello"
    for bad in (b"[]", b"{}", b'{"event":5}', b"nonsense", b"\xff"):
        with pytest.raises(ValueError):  # noqa: PT011 - JSON's own or ours
            pusher.read_message(bad)


def test_credentials_never_show_their_secret():
    assert DOCUMENTED.secret not in repr(DOCUMENTED)
    assert DOCUMENTED.secret not in f"{DOCUMENTED}"


def test_encryption_is_the_one_of_the_official_library():
    official = Pusher("1", "k", "s", encryption_master_key_base64="YWJj" * 10 + "YWI=", ssl=False)
    key = official._pusher_client._encryption_master_key
    cipher = ChannelCipher.derive("private-encrypted-x", key)
    sealed = pusher.read_message(
        b'{"event":"e","data":' + _quoted(cipher.seal(b"plain")).encode() + b"}"
    )["data"]

    assert (
        base64.b64encode(generate_shared_secret(b"private-encrypted-x", key)).decode()
        == cipher.shared_secret
    )
    assert ChannelCipher.from_shared_secret(cipher.shared_secret).open(sealed) == b"plain"
    with pytest.raises(DecryptionError):
        ChannelCipher.derive("private-encrypted-y", key).open(sealed)
    with pytest.raises(DecryptionError):
        cipher.open("not an object")


def _quoted(text):
    return json.dumps(text)


@pytest.mark.parametrize(
    ("status", "body", "means"),
    [
        (200, b"{}", 200),
        (200, b'{"ok":true}', 200),
        (200, b'{"error":"The secret authentication failed","code":401}', 401),
        (200, b'{"error":"no","code":4001}', 400),
        (202, b'{"error":"no"}', 400),
        # What somebody published is nobody's error.
        (200, b'{"cache":{"data":"{\\"error\\":1}","ttl":3}}', 200),
        (200, b'"error"', 200),
        (200, b'an "error"', 200),
        (413, b'{"error":"no","code":401}', 413),
        (0, b"", 0),
    ],
)
def test_an_answer_may_mean_another_status(status, body, means):
    assert pusher.meant_status(status, body) == means
