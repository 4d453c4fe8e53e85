"""Who may look into a node: a token, sessions of browsers, and where a request comes from.

The rules of this file. The token is compared in constant time, and a guess that fails takes one of
few tries, which come back slowly; when there are none, nothing is compared. A browser shows the
token once and gets a session, in a cookie that scripts cannot read and other sites cannot send. It
is signed by the token and kept nowhere else, so it holds in the process that takes over, too.
What changes something also needs the session's second secret, in a header, which no form and no
other origin can set. And a browser that was led here by a name that is not ours (DNS rebinding), or
by a page of somebody else, gets nothing.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections import deque
from hmac import compare_digest, digest
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, urlsplit

import msgspec

from cachecast.errors import AuthError, BadRequestError, LimitError
from cachecast.protocol.rate_limit import TokenBucket

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachecast.server.http_messages import Request

__all__ = ["PATH", "Access", "Session", "is_inspectors"]

#: Path under which everything of the inspector lies.
PATH: Final = "/inspector"

#: Guesses that may fail in one go, and how many come back each second.
FAILED_TRIES: Final = 10
TRIES_PER_S: Final = 0.5

#: Seconds that a session lasts.
SESSION_S: Final = 12 * 3600

#: Number of sessions that were ended before their time and are remembered; their browsers have
#: forgotten them.
MAX_LEFT: Final = 64

#: Name of the header with the second secret of a session.
CSRF_HEADER: Final = b"x-cachecast-csrf"


def is_inspectors(path: str) -> bool:
    """Whether a path is the inspector's."""
    return path == PATH or path.startswith(f"{PATH}/")


class Session(msgspec.Struct, frozen=True):
    """A caller that was let in.

    Attributes:
        csrf: the second secret of a browser's session; None for who shows the token itself.
    """

    csrf: str | None

    def __repr__(self) -> str:  # type: ignore[explicit-override]  # typing.override needs Python 3.12
        """Keep the secret out of logs."""
        return "Session()"


class Access:
    """Decides who is let in. Never yields.

    Queue: :data:`MAX_LEFT` sessions that were ended; the oldest goes first.
    """

    def __init__(
        self,
        token: str,
        hosts: frozenset[str],
        now: Callable[[], float],
        unix_now: Callable[[], float],
    ) -> None:
        """Make it.

        Args:
            token: the secret; not empty.
            hosts: names, in lower case, by which browsers may come besides addresses and localhost.
            now: function that gives the broker's seconds.
            unix_now: function that gives the wall time in seconds.
        """
        self._token = token.encode()
        self._hosts = hosts
        self._now = now
        self._unix_now = unix_now
        self._left: deque[str] = deque(maxlen=MAX_LEFT)
        self._tries = TokenBucket(TRIES_PER_S, FAILED_TRIES, now())

    def check_place(self, request: Request) -> None:
        """Refuse a browser that somebody else sends.

        Raises:
            BadRequestError: 403 or 421; the text names the rule and the remedy.
        """
        host = request.headers.get(b"host", b"").decode("latin-1")
        if not self._is_ours(host):
            raise BadRequestError(
                f"The inspector is not called {host[:100]!r} here: ask for it by its address or as "
                "localhost, or add the name to server.inspector_hosts",
                http_status=421,
            )
        origin = request.headers.get(b"origin")
        if origin is not None:
            parts = origin.decode("latin-1").partition("://")
            if parts[0] not in {"http", "https"} or parts[2].lower() != host.lower():
                raise BadRequestError("Pages of other sites may not ask here", http_status=403)
        site = request.headers.get(b"sec-fetch-site", b"none")
        is_visit = request.headers.get(b"sec-fetch-mode") == b"navigate" and request.method == "GET"
        if site not in {b"same-origin", b"none"} and not is_visit:
            raise BadRequestError("Pages of other sites may not ask here", http_status=403)

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name == "localhost" or name.endswith(".localhost") or name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name.partition("%")[0])
        except ValueError:
            return False
        return True  # no name can be pointed elsewhere that is none

    def enter(self, request: Request) -> str:
        """Let a browser in that shows the token in a form.

        Returns:
            The line of the header that sets its cookie.

        Raises:
            AuthError: it is another token.
            LimitError: too many have been tried.
        """
        try:
            form = parse_qs(request.body.decode("latin-1"), max_num_fields=8)
        except ValueError:
            raise BadRequestError("The form has one field, token", http_status=400) from None
        self._compare((form.get("token") or [""])[-1].encode("utf-8", "replace"))
        said = f"{self._unix_now() + SESSION_S:.0f}.{secrets.token_urlsafe(16)}"
        return self._cookie(request, f"{said}.{self._sign('session', said)}", SESSION_S)

    def leave(self, request: Request) -> str:
        """End a browser's session; the line of the header that has it forgotten. Harmless twice."""
        self._left.append(self._key_of(request))
        return self._cookie(request, "", 0)

    def _cookie(self, request: Request, value: str, lasts_s: int) -> str:
        is_tls = request.headers.get(b"origin", b"").startswith(b"https:")
        return (
            f"Set-Cookie: {self._name_of(request)}={value}; Path={PATH}; Max-Age={lasts_s}; "
            f"HttpOnly; SameSite=Strict{'; Secure' * is_tls}"
        )

    def _sign(self, purpose: str, said: str) -> str:
        return digest(self._token, f"cachecast {purpose} {said}".encode(), "sha256").hex()

    def find(self, request: Request) -> Session:
        """Whose request it is.

        Raises:
            AuthError: nobody's that was let in.
            LimitError: too many tokens have been tried.
        """
        given = request.headers.get(b"authorization")
        if given is not None:
            scheme, _, token = given.partition(b" ")
            if scheme.lower() != b"bearer":
                raise AuthError("Authorization must be: Bearer TOKEN")
            self._compare(token.strip())
            return Session(None)
        key = self._key_of(request)
        said, _, signature = key.rpartition(".")
        if (
            not compare_digest(signature.encode(), self._sign("session", said).encode())
            or int(said.partition(".")[0]) <= self._unix_now()
            or key in self._left
        ):
            raise AuthError(
                "Show the token, as Authorization: Bearer TOKEN or in the form at " + PATH
            )
        return Session(self._sign("csrf", said))

    def check_action(self, request: Request, session: Session) -> None:
        """Refuse to change something for whom a browser may not mean to.

        Raises:
            BadRequestError: 403; the session's second secret is missing, or another one's.
        """
        if session.csrf is not None and not compare_digest(
            request.headers.get(CSRF_HEADER, b""), session.csrf.encode()
        ):
            raise BadRequestError(
                f"{CSRF_HEADER.decode()} is missing or of another session", http_status=403
            )

    def _compare(self, token: bytes) -> None:
        now = self._now()
        # Taken before and given back: who guesses on while there are no tries learns nothing.
        if not self._tries.take(now):
            raise LimitError(
                "Too many wrong tokens were tried: wait a few seconds",
                limit=FAILED_TRIES,
                unit="wrong tokens",
                http_status=429,
            )
        if not compare_digest(token, self._token):
            raise AuthError("That is not the token of this node's inspector")
        self._tries.take(now, -1.0)

    def _key_of(self, request: Request) -> str:
        name = self._name_of(request)
        for part in request.headers.get(b"cookie", b"").decode("latin-1").split(";"):
            found, _, value = part.strip().partition("=")
            if found == name:
                return value
        return ""

    def _name_of(self, request: Request) -> str:
        """Name of the cookie: browsers keep one jar for all ports of a machine."""
        host = request.headers.get(b"host", b"").decode("latin-1")
        try:
            port = urlsplit(f"//{host}").port
        except ValueError:
            port = None
        return f"cachecast-{port or 0}"
