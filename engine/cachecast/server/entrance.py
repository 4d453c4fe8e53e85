"""The door of the inspector, of one process or several: the page, sessions, and who may go on.

Who is behind it (:mod:`.inspector` of one process, or the parent of several) answers what lies
under ``/inspector/api`` once the caller has been let in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

import msgspec

from cachecast.errors import AuthError, BadRequestError, RemoteProtocolError
from cachecast.server.access import PATH, Access
from cachecast.server.http_messages import Later, Response, text_response
from cachecast.server.pages import find_page

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from cachecast.server.http_messages import Request
    from cachecast.server.streaming import Stream

__all__ = ["HEADERS", "Entrance", "InspectorTerms", "allow", "json_response", "refusal"]

_POLICY: Final = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "connect-src 'self'",
    "img-src 'self'",
    "form-action 'self'",
    "base-uri 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
)

#: Headers of every answer: nothing is kept, framed or taken for something else.
HEADERS: Final = (
    "Cache-Control: no-store",
    "X-Content-Type-Options: nosniff",
    "X-Frame-Options: DENY",
    "Referrer-Policy: no-referrer",
    "Cross-Origin-Resource-Policy: same-origin",
    f"Content-Security-Policy: {'; '.join(_POLICY)}",
)

#: What changes something, and is asked for with POST.
ACTIONS: Final = frozenset({"publish", "disconnect"})


class InspectorTerms(msgspec.Struct, frozen=True):
    """How a node is looked into.

    Attributes:
        token: the secret that lets people in; not empty.
        hosts: names by which browsers may come besides addresses and localhost.
        shows_payloads: whether they see what is published.
        keeps_figures: whether figures are kept over time.
    """

    token: str
    hosts: frozenset[str] = frozenset()
    shows_payloads: bool = False
    keeps_figures: bool = True

    def __repr__(self) -> str:  # type: ignore[explicit-override]  # typing.override needs Python 3.12
        """Keep the token out of logs."""
        return "InspectorTerms()"


class Entrance(ABC):
    """Answers whoever is not let in, and hands on the others. Never yields."""

    #: Number of processes that can be looked into.
    n_workers = 1

    def __init__(
        self,
        terms: InspectorTerms,
        now: Callable[[], float],
        unix_now: Callable[[], float],
        refusals: Counter[str],
    ) -> None:
        """Make it.

        Args:
            terms: how people get in.
            now: function that gives the broker's seconds.
            unix_now: function that gives the wall time in seconds.
            refusals: counter of refusals by code.
        """
        self.terms = terms
        self._access = Access(terms.token, terms.hosts, now, unix_now)
        self._refusals = refusals

    def answer(self, request: Request) -> Response | Later | Stream:
        """Answer a request whose path is the inspector's. Never yields."""
        try:
            self._access.check_place(request)
            answer = self._answer(request)
        except RemoteProtocolError as error:
            self._refusals[f"inspector {error.http_status}"] += 1
            answer = refusal(error)
        if not isinstance(answer, Later):
            answer.headers += HEADERS
        return answer

    def _answer(self, request: Request) -> Response | Later | Stream:
        path = request.path.removeprefix(PATH)
        page = find_page(path)
        if page is not None:
            allow(request, "GET", "HEAD")
            return page
        if path == "/session":
            allow(request, "POST")
            cookie = self._access.enter(request)
            return Response(303, b"", "", (cookie, f"Location: {PATH}"))
        if not path.startswith("/api/"):
            raise BadRequestError("404 NOT FOUND", http_status=404)
        session = self._access.find(request)
        name = path.removeprefix("/api/")
        if name == "leave" or name in ACTIONS:
            allow(request, "POST")
            self._access.check_action(request, session)
            if name == "leave":
                answer = json_response({})
                answer.headers = (self._access.leave(request),)
                return answer
            return self._act(name, request)
        allow(request, "GET")
        if name == "session":
            shows = self.terms.shows_payloads
            said = {"csrf": session.csrf, "shows_payloads": shows, "workers": self.n_workers}
            return json_response(said)
        return self._read(name, request)

    @abstractmethod
    def _act(self, name: str, request: Request) -> Response | Later:
        """Carry out one of :data:`ACTIONS`, for somebody who was let in."""

    @abstractmethod
    def _read(self, name: str, request: Request) -> Response | Later | Stream:
        """Show something to somebody who was let in."""


def allow(request: Request, *methods: str) -> None:
    """Refuse other methods.

    Raises:
        BadRequestError: 405; it is another one.
    """
    if request.method not in methods:
        raise BadRequestError(f"This path takes {' and '.join(methods)}", http_status=405)


def json_response(value: object) -> Response:
    """An answer that a page reads."""
    return Response(200, msgspec.json.encode(value))


def refusal(error: RemoteProtocolError) -> Response:
    """Why it was not done."""
    response = text_response(error.http_status, error.message.rstrip("\n"))
    if isinstance(error, AuthError):
        response.headers = ('WWW-Authenticate: Bearer realm="cachecast"',)
    elif error.http_status == 429:
        response.headers = ("Retry-After: 5",)
    return response
