"""A link to one primary that comes back: one connection after the other, each greeted first.

The owner hears UP and DOWN, strictly in turn: every connection that was up goes DOWN before the
next one is UP, and between them nothing is handed over. A lost connection lost messages, and there
is no other sign of that.

There are two links to each primary: one for commands, one for messages together with the reads and
barriers that must be in order with them. Valkey 9.0.0 to 9.1.1 tears frames when one connection
publishes 16 KiB to a topic that it is subscribed to.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec
import trio

from cachecast.bus.dial import Dialler, introduce
from cachecast.bus.faults import (
    DownError,
    LinkError,
    LostError,
    ReplicaError,
    UnfitError,
    UnreachableError,
)
from cachecast.bus.resp import Connection, Limits

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Sequence

    from cachecast.bus.resp import Reply
    from cachecast.bus_config import Primary

__all__ = ["About", "Link"]

#: Seconds of the waits between attempts: the first after a good connection, and the longest, a
#: third of the grace of a new epoch: who comes behind it brings nothing back.
FIRST_WAIT_S: Final = 0.05
LONGEST_WAIT_S: Final = 0.5

#: Seconds that a connection must live to be a good one; what ends sooner counts as a failure.
GOOD_AFTER_S: Final = 1.0

OLDEST: Final = (7, 0)

_INFO: Final = re.compile(r"^(\w+):(.*?)\r?$", re.MULTILINE)


class About(msgspec.Struct, frozen=True):
    """What the engine says of itself.

    Attributes:
        product: name of the engine, ``redis`` or ``valkey``.
        version: version of the engine.
        run_id: id of the process; another one after every restart.
        n_overflows: number of clients whose output buffer ran over since its start; -1 where the
            engine does not count them (Redis 7.0).
        has_overflowed: whether one more client's buffer ran over while this link was lost: probably
            ours.
    """

    product: str
    version: str
    run_id: str
    n_overflows: int = -1
    has_overflowed: bool = False


class Link:
    """Keeps one connection to a primary.

    Attributes:
        connection: greeted connection; None while the link is down.
        fault: reason why the link is down; None while it is up, or before the first attempt ended.
        about: what is known of the engine of the newest connection that was up.
        n_ups: number of connections that were up.
        n_failures: number of attempts that failed since the last good connection.
        n_overflows: number of losses that the engine's output buffer explains.
    """

    def __init__(
        self,
        primary: Primary,
        *,
        random: Callable[[], float],
        limits: Limits | None = None,
        name: str = "cachecast",
        tls: ssl.SSLContext | None = None,
        sentinel_username: str = "",
        sentinel_password: str = "",
        on_message: Callable[[bytes, bytes], None] | None = None,
        greet: Callable[[Connection], Awaitable[None]] | None = None,
        on_up: Callable[[Connection], None] | None = None,
        on_down: Callable[[LinkError], None] | None = None,
    ) -> None:
        """Prepare; :meth:`run` does the rest.

        Args:
            primary: address of the primary.
            random: function that draws evenly in 0 <= x < 1, for the waits between attempts.
            limits: limits of each connection.
            name: name of the connection in the engine's ``CLIENT LIST``.
            tls: terms of TLS, see :func:`~cachecast.bus.dial.tls_context`.
            sentinel_username: user name for the Sentinels.
            sentinel_password: password for the Sentinels.
            on_message: function called with every published message, see ``Connection``.
            greet: function awaited on every new connection before it counts as up: hello,
                subscribing again. A ``LinkError`` ends the attempt. Together with connecting it may
                take ``connect_limit_s`` twice.
            on_up: function called with every greeted connection; neither raises nor blocks.
            on_down: function called with the reason when a connection that was up has ended, after
                its calls got theirs; not when :meth:`run` is cancelled.
        """
        self._primary = primary
        self._random = random
        self._limits = limits or Limits()
        self._name = name
        self._dialler = Dialler(
            primary,
            tls=tls,
            sentinel_username=sentinel_username,
            sentinel_password=sentinel_password,
        )
        self._on_message = on_message
        self._greet = greet
        self._on_up = on_up
        self._on_down = on_down
        self._up = trio.Event()
        self.connection: Connection | None = None
        self.fault: LinkError | None = None
        self.about: About | None = None
        self.n_ups = 0
        self.n_failures = 0
        self.n_overflows = 0

    def send(
        self, arguments: Sequence[bytes | str | int], on_reply: Callable[[Reply], None] | None
    ) -> None:
        """Send on the present connection; see ``Connection.send``.

        Raises:
            DownError: there is none.
        """
        self.require().send(arguments, on_reply)

    async def call(self, *arguments: bytes | str | int) -> Reply:
        """Call on the present connection; see ``Connection.call``.

        Raises:
            DownError: there is none.
        """
        return await self.require().call(*arguments)

    def require(self) -> Connection:
        """The present connection.

        Raises:
            DownError: there is none.
        """
        if self.connection is None:
            why = f" {self.fault}" if self.fault else ""
            raise DownError(f"There is no link to the engine {self._primary.name}.{why}")
        return self.connection

    async def wait_up(self) -> Connection:
        """The next connection that is up, or the present one; bound it by a cancel scope."""
        while self.connection is None:
            await self._up.wait()
        return self.connection

    async def run(self) -> NoReturn:
        """Connect, and connect again, until cancelled."""
        while True:
            began = trio.current_time()
            n_ups = self.n_ups
            self.fault = await self._live()
            is_good = self.n_ups > n_ups and trio.current_time() - began >= GOOD_AFTER_S
            self.n_failures = 0 if is_good else self.n_failures + 1
            # Half of it at least: a thousand links that were lost together do not come together.
            wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(self.n_failures, 16))
            await trio.sleep(wait_s * (0.5 + 0.5 * self._random()))

    async def _live(self) -> LinkError:
        """One connection, from the attempt to its end; gives why it ended."""
        limit_s = self._limits.connect_limit_s
        try:
            with trio.fail_after(limit_s):
                stream = await self._dialler.connect()
        except trio.TooSlowError:
            return self._too_slow("did not answer")
        except LinkError as fault:
            return fault
        connection = Connection(stream, limits=self._limits, on_message=self._on_message)
        about: About | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.run)
                try:
                    with trio.fail_after(limit_s):
                        found = await self._ask_about(connection)
                        if self._greet is not None:
                            await self._greet(connection)
                except LinkError as fault:
                    connection.end(fault)
                except trio.TooSlowError:
                    connection.end(self._too_slow("did not complete the greeting"))
                else:
                    if connection.fault is None:
                        about = found
                        self._rise(connection, about)
        finally:
            self.connection = None
            if about is not None:
                self._up = trio.Event()
        assert connection.fault is not None
        if about is not None and self._on_down is not None:
            self._on_down(connection.fault)
        return connection.fault

    def _rise(self, connection: Connection, about: About) -> None:
        before, self.about = self.about, about
        if (
            isinstance(self.fault, LostError)
            and before is not None
            and before.run_id == about.run_id
            and before.n_overflows < about.n_overflows
        ):
            self.n_overflows += 1
            self.about = msgspec.structs.replace(about, has_overflowed=True)
        self.connection = connection
        self.fault = None
        self.n_ups += 1
        self._up.set()
        if self._on_up is not None:
            self._on_up(connection)

    async def _ask_about(self, connection: Connection) -> About:
        primary = self._primary
        said = await introduce(connection, primary.username, primary.password, self._name)
        product, version = (_text(said.get(field)) for field in (b"server", b"version"))
        if _text(said.get(b"mode")) == "cluster":
            raise UnfitError(
                f"The engine {primary.name} is a member of a Redis Cluster, whose slots break "
                "batches. Use one or several independent primaries."
            )
        if _text(said.get(b"role")) != "master":
            raise ReplicaError(
                f"The engine {primary.name} is a replica and takes no writes. Give the primary's "
                "address, or Sentinels with bus.sentinel, which know it."
            )
        if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST:
            raise UnfitError(
                f"The engine {primary.name} is {product} {version}. Redis 7.0 or any Valkey is "
                "needed."
            )
        if primary.database:
            await connection.call("SELECT", primary.database)
        facts = dict(
            re.findall(r"^(\w+):(.*?)\r?$", _text(await connection.call("INFO")), re.MULTILINE)
        )
        return About(
            product,
            version,
            facts.get("run_id", ""),
            int(facts.get("client_output_buffer_limit_disconnections", -1)),
        )

    def _too_slow(self, what: str) -> UnreachableError:
        is_tls = any(endpoint.is_tls for endpoint in self._primary.endpoints)
        return UnreachableError(
            f"The engine {self._primary.name} {what} within {self._limits.connect_limit_s:g} s."
            + (" Does that port speak TLS?" if is_tls else "")
        )


def _text(reply: object) -> str:
    """A reply as text, however the engine sent it."""
    if isinstance(reply, bytes):
        return reply.decode("utf-8", "replace")
    return "" if reply is None else str(reply)
