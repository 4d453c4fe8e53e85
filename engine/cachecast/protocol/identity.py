"""Who a client is: the ``channel_data`` and ``user_data`` that an app's server has signed for it.

Signed is not yet sound: people sign numbers as ids, and ``true`` as information about a user. What
cannot work later is refused here, with the field and its rule. A user that signs in must be one
that ``#server-to-user-ID`` can name, or nothing could ever be sent to it; a member of a presence
channel need not be (protocol.md 9.5). ``Broker.authenticate_user`` and ``authorize_channel`` read
what they have signed with the same functions, so that they sign nothing that would be refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from cachecast.errors import BadMessageError
from cachecast.protocol.channel_name import SERVER_TO_USER_PREFIX, is_user_id
from cachecast.protocol.json_text import read_json
from cachecast.protocol.messages import RULES, ChannelData, UserData, fault_of

if TYPE_CHECKING:
    from cachecast.apps import App
    from cachecast.handover.state import MemberState

__all__ = ["Member", "User", "read_member", "read_user", "read_user_data", "user_id_fault"]

_decode_channel_data = msgspec.json.Decoder(ChannelData).decode
_decode_user_data = msgspec.json.Decoder(UserData).decode


class Member(msgspec.Struct, frozen=True, gc=False):
    """The user that a presence subscription stands for.

    Attributes:
        user_id: the id as the authorizer signed it, string or number (protocol.md 9.5).
        user_info: JSON object, unread; None where the authorizer gave none.
    """

    user_id: str | int
    user_info: msgspec.Raw | None = None

    @property
    def key(self) -> str:
        """The id as text, which is what two connections of one user share."""
        return str(self.user_id)

    def export(self) -> MemberState:
        """The same in plain values."""
        return self.user_id, None if self.user_info is None else bytes(self.user_info)

    @classmethod
    def restore(cls, state: MemberState) -> Member:
        """A member that another process knew."""
        user_id, info = state
        return cls(user_id, None if info is None else msgspec.Raw(info))


class User(msgspec.Struct, frozen=True, gc=False):
    """The user that a connection signed in as.

    Attributes:
        id: non-empty text that ``#server-to-user-ID`` can name.
        user_data: the signed text, sent back in ``signin_success``.
        user_info: JSON object, unread, for presence channels to show; or None.
        watchlist: ids of other users, at most the app's limit.
        is_watchlist_cut: whether more ids were given than that (4302).
    """

    id: str
    user_data: str
    user_info: msgspec.Raw | None
    watchlist: tuple[str, ...]
    is_watchlist_cut: bool


def read_member(channel_data: str) -> Member:
    """Read the ``channel_data`` of a presence channel.

    Raises:
        BadMessageError: the text names the field and its rule.
    """
    try:
        data = read_json(_decode_channel_data, channel_data)
    except (ValueError, RecursionError) as error:
        raise BadMessageError(f"Invalid channel_data: {fault_of(error)}") from None
    if data.user_id == "":
        raise BadMessageError(f"Invalid channel_data: {RULES['user_id']}")
    return Member(data.user_id, _user_info(data.user_info, "channel_data"))


def read_user(user_data: str, app: App) -> User:
    """Read the ``user_data`` of a sign-in, within an app's limits.

    Raises:
        BadMessageError: the text names the field and its rule.
    """
    data = read_user_data(user_data)
    fault = user_id_fault(data.id, app)
    if fault is not None:
        raise BadMessageError(f"Invalid user_data: {fault}")
    distinct = tuple(dict.fromkeys(data.watchlist))
    limit = app.max_watchlist_ids
    return User(
        data.id,
        user_data,
        _user_info(data.user_info, "user_data"),
        distinct[:limit],
        len(distinct) > limit,
    )


def read_user_data(user_data: str) -> UserData:
    """Read ``user_data`` as far as no app's limits are needed for it.

    Raises:
        BadMessageError: it is no object with an ``id`` that is a string and not empty.
    """
    try:
        data = read_json(_decode_user_data, user_data)
    except (ValueError, RecursionError) as error:
        raise BadMessageError(f"Invalid user_data: {fault_of(error)}") from None
    if not data.id:
        raise BadMessageError(f"Invalid user_data: {RULES['id']}")
    return data


def user_id_fault(user_id: str, app: App) -> str | None:
    """What keeps ``#server-to-user-ID`` from naming a user, in words; None if nothing does."""
    if not user_id:
        return RULES["id"]
    limit = min(app.max_user_id_length, app.max_channel_name_length - len(SERVER_TO_USER_PREFIX))
    if len(user_id) > limit:
        return f"id is longer than {max(limit, 0)} characters"
    if not is_user_id(user_id):
        return "id has invalid characters; it may contain only A-Z a-z 0-9 _ - = @ , . ;"
    return None


def _user_info(info: msgspec.Raw, where: str) -> msgspec.Raw | None:
    """``user_info`` as it was signed; None where it is absent, or null, which says as much."""
    raw = bytes(info)
    if raw in {b"", b"null"}:
        return None
    if not raw.startswith(b"{"):
        raise BadMessageError(f"Invalid {where}: {RULES['user_info']}")
    return info
