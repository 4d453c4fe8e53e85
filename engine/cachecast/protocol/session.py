"""One client's conversation, without I/O: a message in, a request, an answer or a refusal out.

A Session owns the socket id and knows what its client may do: which channels it is in, as which
user, how fast it may talk. It knows neither who else is there nor how messages travel; what it
cannot answer alone it returns as a request for the Broker. A broken rule is raised as an error
that says how to answer.

It trusts nothing: every field is typed, every name parsed, every signature verified before it is
looked into, and ten bad messages in ten seconds end the connection (protocol.md 9.5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from cachecast.errors import (
    AuthError,
    BadMessageError,
    ClientEventError,
    RefusedError,
    RemoteProtocolError,
    SubscriptionError,
    clip,
)
from cachecast.handover.state import SessionState, UserState
from cachecast.protocol import auth
from cachecast.protocol.channel_name import ChannelName, Kind, parse_channel_name
from cachecast.protocol.identity import Member, User, read_member, read_user
from cachecast.protocol.messages import (
    ClientMessage,
    Control,
    Publication,
    SignInData,
    SubscribeData,
    UnsubscribeData,
    too_large_text,
)
from cachecast.protocol.rate_limit import TokenBucket

if TYPE_CHECKING:
    from cachecast.apps import App

__all__ = [
    "ClientEvent",
    "Member",
    "Request",
    "Session",
    "SignIn",
    "Subscribe",
    "Subscribed",
    "Unsubscribe",
    "User",
]

#: Bad messages in as many seconds that end a connection with 4009.
MAX_FAULTS: Final = 10
FAULT_WINDOW_S: Final = 10.0

#: Messages that may come in one burst, and for each channel that a connection may have: a library
#: that reconnects subscribes to everything at once.
MESSAGE_BURST: Final = 2_000
MESSAGES_PER_CHANNEL: Final = 2


class Subscribe(msgspec.Struct, frozen=True, gc=False):
    """Join a channel; authorized already."""

    name: ChannelName
    member: Member | None = None


class Unsubscribe(msgspec.Struct, frozen=True, gc=False):
    """Leave a channel that the session is in."""

    channel: str


class ClientEvent(msgspec.Struct, frozen=True, gc=False):
    """Relay an event to the channel's other subscribers; nothing forgeable is in it."""

    publication: Publication


class SignIn(msgspec.Struct, frozen=True, gc=False):
    """Become a user; verified already."""

    user: User


Request = Subscribe | Unsubscribe | ClientEvent | SignIn

_PONG: Final = Control("pusher:pong", {})


class Subscribed(Protocol):
    """What a session sees of one of its subscriptions."""

    @property
    def is_joined(self) -> bool:
        """Whether it has been answered; until then it counts, and nothing can be sent by it."""

    @property
    def name(self) -> ChannelName:
        """The channel's name."""

    @property
    def member(self) -> Member | None:
        """The user that it stands for on a presence channel; else None."""


class Session:
    """One client of one app. Slots only, and nothing built before it is needed.

    Attributes:
        app: the app whose key it connected with.
        socket_id: ``digits.digits``; server libraries refuse anything else (1.4).
        subscriptions: channel name -> subscription; kept by who carries its requests out.
        user: set once signed in.
        active_at: the time when the client was last heard, in the broker's seconds.
    """

    __slots__ = (
        "_event_bucket",
        "_faults",
        "_message_bucket",
        "active_at",
        "app",
        "socket_id",
        "subscriptions",
        "user",
    )

    def __init__(self, app: App, socket_id: str, now: float) -> None:
        self.app = app
        self.socket_id = socket_id
        self.subscriptions: dict[str, Subscribed] = {}
        self.user: User | None = None
        self.active_at = now
        self._event_bucket: TokenBucket | None = None
        self._message_bucket: TokenBucket | None = None
        self._faults: list[float] | None = None

    def __repr__(self) -> str:  # type: ignore[explicit-override]  # typing.override needs Python 3.12
        """Name the socket, not what it carries."""
        return f"Session({self.app.id}, {self.socket_id})"

    def serve(self, app: App) -> None:
        """Go by other terms of the same app from now on; rates begin anew."""
        self.app = app
        self._event_bucket = self._message_bucket = None

    def touch(self, now: float) -> None:
        """Note a sign of life: a message before it is read, or a ping or pong, which cost as much.

        Raises:
            RefusedError: there are more of them than a client has any reason for.
        """
        self.active_at = now
        if self._message_bucket is None:
            self._message_bucket = self._new_message_bucket(now)
        if not self._message_bucket.take(now):
            raise RefusedError(
                f"Too many messages: more than {self.app.messages_per_s:g} per second"
            )

    def _new_message_bucket(self, now: float) -> TokenBucket:
        app = self.app
        burst = max(MESSAGE_BURST, MESSAGES_PER_CHANNEL * app.max_channels_per_connection)
        return TokenBucket(app.messages_per_s, burst, now)

    def _new_event_bucket(self, now: float) -> TokenBucket:
        rate = self.app.client_events_per_s
        return TokenBucket(rate, max(1.0, rate), now)

    def receive(self, message: ClientMessage, now: float) -> Request | Control | None:
        """Understand one message; its sender has been touched for it.

        Args:
            message: what the client said.
            now: the present, in the broker's seconds.

        Returns:
            A request, the answer itself, or None where there is nothing to do.

        Raises:
            RemoteProtocolError: how to answer it stands in the error.
        """
        event = message.event
        if event.startswith("client-"):
            return self._client_event(message, now)
        if event == "pusher:ping":
            return _PONG
        if event == "pusher:pong":
            return None
        handler = _HANDLERS.get(event)
        if handler is None:
            raise RemoteProtocolError(f"Unsupported event received on socket: {clip(event, 200)}")
        return handler(self, message)

    def _subscribe(self, message: ClientMessage) -> Request:
        data = message.data_as(SubscribeData)
        if data.channel in self.subscriptions:
            raise RemoteProtocolError(f"Existing subscription to channel {data.channel}")
        try:
            return self._authorize(data)
        except SubscriptionError:
            raise
        except RemoteProtocolError as error:
            # Every refusal is told on the channel too: Echo's .error() hears only that (2.9).
            raise SubscriptionError(error.message, channel=data.channel) from None

    def _authorize(self, data: SubscribeData) -> Subscribe:
        name = parse_channel_name(data.channel, self.app.max_channel_name_length)
        limit = self.app.max_channels_per_connection
        if len(self.subscriptions) >= limit:
            raise SubscriptionError(
                f"Too many subscriptions: this connection may have {limit} channels",
                channel=name.text,
                kind="LimitReached",
                status=4100,
            )
        if name.kind is Kind.SERVER_TO_USER:
            if self.user is None or self.user.id != name.user_id:
                raise AuthError("Only the signed-in user may subscribe to its own channel")
            return Subscribe(name)
        if not name.needs_auth:
            return Subscribe(name)
        channel_data = data.channel_data or None
        text = auth.subscription_text(self.socket_id, name.text, channel_data)
        auth.verify_client(data.auth, text, text, self.app.secret_of)
        member = self._member(name, channel_data) if name.is_presence else None
        return Subscribe(name, member)

    def _member(self, name: ChannelName, channel_data: str | None) -> Member:
        if channel_data is None:
            if self.user is None:
                raise SubscriptionError(
                    "Missing parameter: data.channel_data, required for presence channels "
                    "unless the connection is signed in",
                    channel=name.text,
                )
            member = Member(self.user.id, self.user.user_info)
        else:
            member = read_member(channel_data)
        too_long = len(member.key) > self.app.max_user_id_length
        info_bytes = len(bytes(member.user_info)) if member.user_info is not None else 0
        if too_long or info_bytes > self.app.max_presence_member_bytes:
            raise SubscriptionError(
                f"user_id is longer than {self.app.max_user_id_length} characters"
                if too_long
                else f"user_info is larger than {self.app.max_presence_member_bytes} bytes",
                channel=name.text,
                kind="LimitReached",
                status=4301,
            )
        return member

    def _unsubscribe(self, message: ClientMessage) -> Request:
        channel = message.data_as(UnsubscribeData).channel
        if channel not in self.subscriptions:
            raise RemoteProtocolError(
                f"No current subscription to channel {clip(channel, 200)}, "
                "or subscription in progress"
            )
        return Unsubscribe(channel)

    def _client_event(self, message: ClientMessage, now: float) -> Request:
        channel, app = message.channel, self.app
        if not channel or not bytes(message.data):
            raise BadMessageError("Invalid client event (must contain channel and data)")
        if not app.allows_client_events:
            raise ClientEventError(
                "To send client events, you must enable this feature in the Settings page of "
                "your dashboard.",
                channel,
            )
        edge = self.subscriptions.get(channel)
        if edge is None or not edge.is_joined:
            raise ClientEventError(
                f"Cannot broadcast client event (connection not subscribed to channel "
                f"{clip(channel, 200)})",
                channel,
            )
        if not edge.name.allows_client_events:
            raise ClientEventError(
                "Client event rejected - only supported on private and presence channels", channel
            )
        self._check_client_event_size(message)
        if self._event_bucket is None:
            self._event_bucket = self._new_event_bucket(now)
        if not self._event_bucket.take(now):
            raise ClientEventError(
                f"Client event rejected: more than {app.client_events_per_s:g} per second",
                channel,
                4301,
            )
        # Built anew: whatever else the client put into its message stays behind (section 4).
        user_id = edge.member.user_id if edge.member is not None else None
        return ClientEvent(
            Publication(message.event, channel, message.data, user_id, self.socket_id)
        )

    def _check_client_event_size(self, message: ClientMessage) -> None:
        app = self.app
        if len(message.event) > app.max_event_name_length:
            raise ClientEventError(
                f"Event name is longer than {app.max_event_name_length} characters",
                message.channel or "",
            )
        if len(bytes(message.data)) > app.max_event_bytes:
            raise ClientEventError(too_large_text(app.max_event_bytes), message.channel or "")

    def _sign_in(self, message: ClientMessage) -> Request:
        if not self.app.allows_sign_in:
            raise RemoteProtocolError("Sign-in is not enabled for this app")
        data = message.data_as(SignInData)
        text = auth.signin_text(self.socket_id, data.user_data)
        try:
            auth.verify_client(data.auth, text, text, self.app.secret_of)
        except AuthError as error:
            error.close_code = 4009
            raise
        user = read_user(data.user_data, self.app)
        if self.user is not None and self.user.id != user.id:
            raise RemoteProtocolError("Connection is already signed in as another user")
        return SignIn(user)

    def note_fault(self, now: float) -> None:
        """Count a message that could not be understood.

        Raises:
            RefusedError: it was one too many; 4009 makes libraries stop.
        """
        self._faults = [at for at in self._faults or () if now - at < FAULT_WINDOW_S]
        self._faults.append(now)
        if len(self._faults) >= MAX_FAULTS:
            raise RefusedError(
                f"Too many invalid messages: {MAX_FAULTS} within {FAULT_WINDOW_S:.0f} seconds"
            )

    # --- handing over

    def export(self) -> SessionState:
        """What a successor of this process needs to go on; subscriptions are their channels'."""
        return SessionState(
            self.socket_id,
            self.active_at,
            None if self.user is None else _export_user(self.user),
            None if self._message_bucket is None else self._message_bucket.export(),
            None if self._event_bucket is None else self._event_bucket.export(),
            self._faults,
        )

    @classmethod
    def restore(cls, app: App, state: SessionState) -> Session:
        """Go on with a conversation that another process began."""
        session = cls(app, state.socket_id, state.active_at)
        if state.user is not None:
            session.user = _restore_user(state.user)
        if state.messages is not None:
            session._message_bucket = session._new_message_bucket(state.active_at)
            session._message_bucket.restore(state.messages)
        if state.events is not None:
            session._event_bucket = session._new_event_bucket(state.active_at)
            session._event_bucket.restore(state.events)
        session._faults = state.faults
        return session


def _export_user(user: User) -> UserState:
    info = None if user.user_info is None else bytes(user.user_info)
    return UserState(user.id, user.user_data, info, user.watchlist, user.is_watchlist_cut)


def _restore_user(state: UserState) -> User:
    info = None if state.user_info is None else msgspec.Raw(state.user_info)
    return User(state.id, state.user_data, info, state.watchlist, state.is_watchlist_cut)


_HANDLERS = {
    "pusher:subscribe": Session._subscribe,  # noqa: SLF001 - the table is part of the class
    "pusher:unsubscribe": Session._unsubscribe,  # noqa: SLF001
    "pusher:signin": Session._sign_in,  # noqa: SLF001
}
