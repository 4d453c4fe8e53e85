"""Who a connection has signed in as; sign-in is wished for once and repeated on each connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from cachecast.client.credentials import ask
from cachecast.errors import AuthError, BadMessageError, EngineError
from cachecast.protocol.identity import read_user_data

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachecast.client.credentials import Credentials, SignInProof
    from cachecast.client.link import Link

__all__ = ["Identity"]

#: Text for whoever has not signed in; a wish that came to nothing is one that was never made.
_NOBODY: Final = "This client has not signed in"


class Identity:
    """The user of one client.

    Attributes:
        user_id: id of the user who is signed in on the present connection; None while nobody is.
        is_unanswered: whether the server's answer is due.
    """

    def __init__(
        self,
        credentials: Credentials,
        random: Callable[[], float],
        report: Callable[[str], None],
    ) -> None:
        self.user_id: str | None = None
        self.is_unanswered = False
        self._credentials = credentials
        self._random = random
        self._report = report
        self._is_wanted = False
        self._was_signed_in = False
        self._user_data: str | None = None
        self._asked_as = ""
        self._error: Callable[[], Exception] | None = None
        self._settled = trio.Event()

    # --- the wish

    async def sign_in(self, user_data: str | None, link: Link | None) -> str:
        """Sign in, now and on every later connection; returns the user id.

        If cancelled, nobody is signed in as far as this client is concerned.

        Raises:
            AuthError: refused, by the authenticator or by the server; or there is a user already.
        """
        if self._is_wanted:
            raise AuthError("This client has signed in already; a connection has one user")
        self._is_wanted = True
        self._user_data = user_data
        self._error = None
        self._settled = trio.Event()
        if link is not None:
            link.start_soon(self.request, link)
        try:
            return await self.wait_signed_in()
        finally:
            if self.user_id is None:
                self.forget()

    def forget(self) -> None:
        """Nobody is wished for any more; whoever waits learns that. Never yields."""
        self._is_wanted = False
        self._was_signed_in = False
        self.is_unanswered = False
        self.user_id = None
        self._settled.set()

    async def wait_signed_in(self) -> str:
        """Wait until the present or a later connection is signed in; returns the user id.

        Raises:
            AuthError: it was refused, or nobody wishes to sign in.
        """
        await trio.lowlevel.checkpoint()
        while self._is_wanted and self.user_id is None:
            await self._settled.wait()
        if self.user_id is None:
            raise AuthError(_NOBODY) if self._error is None else self._error()
        return self.user_id

    # --- what happens to it

    def on_connected(self, link: Link) -> None:
        """Sign in again."""
        if self._is_wanted:
            link.start_soon(self.request, link)

    def on_disconnected(self) -> None:
        """A new connection is nobody's."""
        self.user_id = None
        self.is_unanswered = False
        if self._is_wanted and self._settled.is_set():
            self._settled = trio.Event()

    async def request(self, link: Link) -> None:
        """Task of the link: obtain the proof, then ask the server."""
        try:
            proof = await self._prove(link)
            self._asked_as = _id_in(proof.user_data)
            self.is_unanswered = True
            data = {"auth": proof.auth, "user_data": proof.user_data}
            await link.send("pusher:signin", data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the next link asks again
        except AuthError as error:
            self.refuse(error.message, error.close_code, error)

    async def _prove(self, link: Link) -> SignInProof:
        return await ask(
            lambda: self._credentials.authenticate(link.socket_id, self._user_data),
            self._random,
            is_patient=self._was_signed_in,
        )

    def accept(self) -> None:
        """The server said yes."""
        if self.is_unanswered and self._is_wanted:
            self.is_unanswered = False
            self._was_signed_in = True
            self.user_id = self._asked_as
            self._settled.set()

    def refuse(self, text: str, code: int | None, cause: Exception | None = None) -> None:
        """The server, or the authenticator before it, said no."""

        def error() -> AuthError:
            made = AuthError(text, close_code=code)
            made.__cause__ = cause
            return made

        if self._was_signed_in:  # nobody waits in sign_in() any more
            self._report(f"Signing in again was refused: {text}")
        self._error = error
        self.forget()

    def finish(self, error: Callable[[], EngineError | trio.ClosedResourceError]) -> None:
        """The client has ended."""
        if self._is_wanted:
            self._error = error
            self.forget()


def _id_in(user_data: str) -> str:
    """Read the user's id as pusher-js does: a string, and not empty (protocol.md 5.1)."""
    try:
        return read_user_data(user_data).id
    except BadMessageError as error:
        raise AuthError(error.message) from None
