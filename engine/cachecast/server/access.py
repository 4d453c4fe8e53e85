"""Who may look into a node: a token, sessions of browsers, and where a request comes from.

The rules of this file. The token is compared in constant time, and a guess that fails takes one of
few tries, which come back slowly; when there are none, nothing is compared. A browser shows the
token once and gets a session, in a cookie that scripts cannot read and other sites cannot send.
What changes something also needs the session's second secret, in a header, which no form and no
other origin can set. And a browser that was led here by a name that is not ours (DNS rebinding), or
by a page of somebody else, gets nothing.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections import OrderedDict
from hmac import compare_digest
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

#: Number of browsers that are let in; past it the one that came first has to show the token again.
MAX_SESSIONS: Final = 64

#: Seconds that a session lasts.
SESSION_S: Final = 12 * 3600.0

#: Name of the header with the second secret of a session.
CSRF_HEADER: Final = b"x-cachecast-csrf"


def is_inspectors(path: str) -> bool:
    """Whether a path is the inspector's."""
    return path == PATH or path.startswith(f"{PATH}/")


class Session(msgspec.Struct, frozen=True):
    """A caller that was let in.

    Attributes:
        csrf: the second secret of a browser's session; None for who shows the token itself.
        ends_at: time until which it lasts, in the broker's seconds.
    """

    csrf: str | None
    ends_at: float

    def __repr__(self) -> str:  # type: ignore[explicit-override]  # typing.override needs Python 3.12
        """Keep the secret out of logs."""
        return "Session()"


class Access:
    """Decides who is let in. Never yields.

    Queue: :data:`MAX_SESSIONS` sessions; the oldest goes first, and its browser asks for the token.
    """

    def __init__(self, token: str, hosts: frozenset[str], now: Callable[[], float]) -> None:
        """Make it.

        Args:
            token: the secret; not empty.
            hosts: names, in lower case, by which browsers may come besides addresses and localhost.
            now: function that gives the broker's seconds.
        """
        self._token = token.encode()
        self._hosts = hosts
        self._now = now
        self._sessions: OrderedDict[str, Session] = OrderedDict()
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
        name, key = self._cookie_of(request), secrets.token_urlsafe(32)
        self._sessions[key] = Session(secrets.token_urlsafe(32), self._now() + SESSION_S)
        while len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)
        is_tls = request.headers.get(b"origin", b"").startswith(b"https:")
        return (
            f"Set-Cookie: {name}={key}; Path={PATH}; Max-Age={SESSION_S:.0f}; HttpOnly; "
            f"SameSite=Strict{'; Secure' * is_tls}"
        )

    def leave(self, request: Request) -> None:
        """End a browser's session; harmless without one."""
        self._sessions.pop(self._key_of(request), None)

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
            return Session(None, 0.0)
        session = self._sessions.get(self._key_of(request))
        if session is None or session.ends_at <= self._now():
            raise AuthError(
                "Show the token, as Authorization: Bearer TOKEN or in the form at " + PATH
            )
        return session

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
        name = self._cookie_of(request)
        for part in request.headers.get(b"cookie", b"").decode("latin-1").split(";"):
            found, _, value = part.strip().partition("=")
            if found == name:
                return value
        return ""

    def _cookie_of(self, request: Request) -> str:
        """Name of the cookie: browsers keep one jar for all ports of a machine."""
        host = request.headers.get(b"host", b"").decode("latin-1")
        try:
            port = urlsplit(f"//{host}").port
        except ValueError:
            port = None
        return f"cachecast-{port or 0}"
