"""What a service signs for its own clients: subscriptions, sign-in, ciphertext.

For embedders whose auth endpoint lives in the same process as the broker. The newest key of the app
signs, so that a rotation begins to use a key as soon as it is configured.
"""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING

from cachecast.errors import BadMessageError, BadRequestError
from cachecast.protocol import auth, encryption
from cachecast.protocol.http_api import encode_data, is_socket_id, read_channel
from cachecast.protocol.identity import read_member, read_user

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cachecast.apps import App

__all__ = ["authenticate_user", "authorize_channel", "encrypt"]


def authorize_channel(
    app: App,
    socket_id: str,
    channel: str,
    user_id: str | None,
    user_info: object,
    encryption_master_key: str | None,
) -> dict[str, str]:
    """The answer of a channel authorization endpoint; see ``Broker.authorize_channel``."""
    name = read_channel(channel, app)
    if not is_socket_id(socket_id):
        raise BadRequestError(f"Invalid socket id {socket_id[:64]!r}\n")
    channel_data = None
    if name.is_presence:
        if not user_id:
            raise BadRequestError("A presence channel needs a user_id\n")
        info = {} if user_info is None else {"user_info": user_info}
        channel_data = encode_data({"user_id": user_id, **info})
        _check_identity(read_member, channel_data)
    pair = app.key_pairs[-1]
    text = auth.subscription_text(socket_id, channel, channel_data)
    answer = {"auth": f"{pair.key}:{auth.sign(pair.secret.encode(), text.encode())}"}
    if channel_data is not None:
        answer["channel_data"] = channel_data
    if name.is_encrypted:
        if encryption_master_key is None:
            raise BadRequestError("An encrypted channel needs an encryption_master_key\n")
        key = encryption.parse_master_key(encryption_master_key)
        answer["shared_secret"] = b64encode(encryption.channel_key(key, channel)).decode()
    return answer


def authenticate_user(app: App, socket_id: str, user_data: Mapping[str, object]) -> dict[str, str]:
    """The answer of a user authentication endpoint; see ``Broker.authenticate_user``."""
    if not is_socket_id(socket_id):
        raise BadRequestError(f"Invalid socket id {socket_id[:64]!r}\n")
    text = encode_data(user_data)
    _check_identity(read_user, text, app)
    pair = app.key_pairs[-1]
    signed = auth.sign(pair.secret.encode(), auth.signin_text(socket_id, text).encode())
    return {"auth": f"{pair.key}:{signed}", "user_data": text}


def _check_identity(read: Callable[..., object], *args: object) -> None:
    """Sign nothing that the broker would refuse."""
    try:
        read(*args)
    except BadMessageError as error:
        raise BadRequestError(f"{error.message}\n") from None


def encrypt(encryption_master_key: str, channel: str, data: object) -> str:
    """Ciphertext for an encrypted channel; see ``Broker.encrypt``."""
    key = encryption.parse_master_key(encryption_master_key)
    return encryption.encrypt(encryption.channel_key(key, channel), encode_data(data))
