"""Who signs in, and whom they watch.

With other nodes a user is online while it is signed in on any of them. So they are asked, and told,
before the client is: once more by receipts, without a task.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec

from cachecast.bus.receipt import Receipt
from cachecast.errors import RemoteProtocolError
from cachecast.protocol.messages import Control

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachecast.broker.announcements import Announcements
    from cachecast.bus.seam import Bus
    from cachecast.channels.connection import Connection
    from cachecast.channels.hub import Hub
    from cachecast.protocol.session import User

__all__ = ["OUTAGE_TEXT", "SignIns"]

#: Text that a client hears that must come back, for only then can it be answered.
OUTAGE_TEXT: Final = "The other nodes cannot be reached, reconnect later"

#: Number of sign-ins of one connection that may wait for an earlier one to be answered.
MAX_SIGN_INS: Final = 10


class _UnderWay:
    """Of a connection whose sign-in is under way.

    Attributes:
        is_counted: whether the bus counts it as one of its user's.
        waiting: what else it signed in as since, the same user with another watchlist mostly.
    """

    __slots__ = ("is_counted", "waiting")

    def __init__(self) -> None:
        self.is_counted = False
        self.waiting: deque[User] = deque()


class SignIns:
    """The users of a node's connections."""

    def __init__(
        self,
        bus: Bus,
        announcements: Announcements,
        disconnect: Callable[[Connection, int, str], None],
    ) -> None:
        """Wire it up.

        Args:
            bus: bus that counts users where it is shared.
            announcements: news by which watchers are told where it is not.
            disconnect: function that closes a connection with a code and a reason.
        """
        self._bus = bus
        self._announcements = announcements
        self._disconnect = disconnect
        self._under_way: dict[Connection, _UnderWay] = {}

    def sign_in(self, hub: Hub, connection: Connection, user: User) -> None:
        """Sign a connection in, or give it another watchlist. Never yields.

        Args:
            hub: the app's hub.
            connection: connection that is authorized already.
            user: user that it signed in as, with the watchlist that the app allows.

        Raises:
            RemoteProtocolError: too many of its sign-ins wait for other nodes.
        """
        if hub.is_shared:
            self._sign_in_later(hub, connection, user)
            return
        session, watchlist = connection.session, user.watchlist
        # The index first: the connection may end at any put, and is taken out of it then.
        before, session.user = session.user, user
        if before is not None:
            hub.users.rewatch(connection, before, user)
        elif hub.users.add(connection, user):
            self._announcements.tell_watchers(hub, user.id, "online", connection)
        _confirm(hub, connection, user)
        if watchlist:
            online = [user_id for user_id in watchlist if hub.users.is_online(user_id)]
            _say_who_is_online(connection, watchlist, frozenset(online))

    def _sign_in_later(self, hub: Hub, connection: Connection, user: User) -> None:
        """Sign in where other nodes count, too; sign-ins of one connection one after the other.

        The session is the user's at once, for what comes behind it may need that. What it watches
        is in the index from the step on in which the bus says who is online.
        """
        session = connection.session
        state = self._under_way.get(connection)
        if state is not None:
            if len(state.waiting) >= MAX_SIGN_INS:
                raise RemoteProtocolError("Too many sign-ins at once")
            state.waiting.append(user)
            return
        state = self._under_way[connection] = _UnderWay()
        if session.user is not None:
            state.is_counted = True
            self._watch(hub, connection, state, user)
            return
        session.user = msgspec.structs.replace(user, watchlist=())
        hub.users.add(connection, session.user)
        receipt = self._bus.sign_in(hub.app.id, user.id)

        def settle() -> None:
            state.is_counted = receipt.fault is None
            if not hub.has(connection):
                if state.is_counted:
                    self._bus.sign_out(hub.app.id, user.id)
            elif state.is_counted:
                self._watch(hub, connection, state, user)
            else:
                self._disconnect(connection, 4100, OUTAGE_TEXT)

        receipt.when_done(settle)

    def _watch(self, hub: Hub, connection: Connection, state: _UnderWay, user: User) -> None:
        """The second half of it: confirm, and say who of the watchlist is online."""
        _confirm(hub, connection, user)
        receipt: Receipt[frozenset[str]] = Receipt.of(frozenset())
        if user.watchlist:
            receipt = self._bus.watch(hub.app.id, user.watchlist)

        def settle() -> None:
            session = connection.session
            before = session.user
            if before is None or not hub.has(connection):
                if receipt.fault is None and user.watchlist:
                    self._bus.unwatch(hub.app.id, user.watchlist)
                return
            if receipt.fault is not None:
                self._disconnect(connection, 4100, OUTAGE_TEXT)
                return
            session.user = user
            hub.users.rewatch(connection, before, user)
            if before.watchlist:
                self._bus.unwatch(hub.app.id, before.watchlist)
            if state.waiting:
                self._watch(hub, connection, state, state.waiting.popleft())
            else:
                del self._under_way[connection]
            if user.watchlist:
                _say_who_is_online(connection, user.watchlist, receipt.value)

        receipt.when_done(settle)

    def sign_out(self, hub: Hub, connection: Connection, user: User) -> None:
        """Sign out a connection that has ended; once each. Never yields."""
        is_gone = hub.users.remove(connection, user)
        if not hub.is_shared:
            if is_gone:
                self._announcements.tell_watchers(hub, user.id, "offline")
            return
        state = self._under_way.pop(connection, None)
        if state is None or state.is_counted:
            self._bus.sign_out(hub.app.id, user.id)
        if user.watchlist:
            self._bus.unwatch(hub.app.id, user.watchlist)


def _confirm(hub: Hub, connection: Connection, user: User) -> None:
    data = {"user_data": user.user_data}
    connection.say(Control("pusher:signin_success", data, is_object=True))
    if user.is_watchlist_cut and hub.app.allows_watchlists:
        limit = hub.app.max_watchlist_ids
        connection.refuse(
            RemoteProtocolError(
                f"Watchlist limit reached: the first {limit} ids are used", close_code=4302
            )
        )


def _say_who_is_online(
    connection: Connection, watchlist: tuple[str, ...], online: frozenset[str]
) -> None:
    """The present state of everyone who is watched (protocol.md 5.4)."""
    here = [user_id for user_id in watchlist if user_id in online]
    away = [user_id for user_id in watchlist if user_id not in online]
    events = [
        {"name": name, "user_ids": ids}
        for name, ids in (("online", here), ("offline", away))
        if ids
    ]
    connection.say(Control("pusher_internal:watchlist_events", {"events": events}))
