"""Who a client is allowed to be: signing with a secret, or asking somebody who has it.

A trusted program (a service, the command line) holds the app's secret and signs for itself. All
others ask their backend with the socket id and the channel, by a callable or by the HTTP endpoint
that pusher-js uses too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
import trio

from cachecast.client.wire import encode_data
from cachecast.errors import AuthError, BadMessageError, ConfigError, EngineError
from cachecast.protocol import auth, encryption
from cachecast.protocol.json_text import read_json

if TYPE_CHECKING:
    import httpx2

    from cachecast.protocol.channel_name import ChannelName

__all__ = [
    "Authorization",
    "Authorizer",
    "Credentials",
    "HttpEndpoint",
    "SignInProof",
    "UserAuthenticator",
    "ask",
    "channel_data_of",
]

T = TypeVar("T")

_decode_answer = msgspec.json.Decoder(dict[str, Any]).decode

#: Number of attempts to ask an authorizer again after a reconnection, and seconds before the first:
#: it often restarts with the server.
RETRIES: Final = 5
RETRY_FIRST_S: Final = 1.0

#: Seconds for an endpoint's whole answer, redirects included.
ANSWER_LIMIT_S: Final = 10.0
#: Bytes of an endpoint's answer at most; it holds a signature, a presence user and a key: some 2
#: KB.
MAX_ANSWER_BYTES: Final = 256 * 1024
#: Number of redirects followed; enough for http -> https -> the host's canonical name -> the
#: path's.
MAX_REDIRECTS: Final = 5
#: Seconds for giving an answer's connection back, also when cancelled.
CLOSE_LIMIT_S: Final = 1.0

#: Function ``(socket_id, channel)`` -> ``auth``, and ``channel_data`` or ``shared_secret`` where
#: needed. Raises :class:`~cachecast.errors.AuthError` to refuse; anything else counts as a passing
#: trouble.
Authorizer = Callable[[str, str], Awaitable[Mapping[str, str | None]]]

#: Function ``(socket_id)`` -> ``auth`` and ``user_data``, for signing in.
UserAuthenticator = Callable[[str], Awaitable[Mapping[str, str | None]]]


class Authorization(msgspec.Struct, frozen=True):
    """Leave to subscribe to one channel (protocol.md 2.4 and 8)."""

    auth: str
    channel_data: str | None = None
    shared_secret: str | None = None
    key: bytes | None = None

    def __repr__(self) -> str:  # type: ignore[explicit-override]  # typing.override needs Python 3.12
        """Say nothing: signatures and keys must not reach a log or a traceback."""
        return "Authorization(...)"


class SignInProof(msgspec.Struct, frozen=True):
    """Leave to sign in as one user (protocol.md 5.1)."""

    auth: str
    user_data: str

    def __repr__(self) -> str:  # type: ignore[explicit-override]  # typing.override needs Python 3.12
        """Say nothing, as above."""
        return "SignInProof(...)"


class Credentials:
    """Obtains authorizations in one of the ways that :func:`cachecast.client.connect` takes."""

    def __init__(
        self,
        key: str,
        *,
        secret: str | None = None,
        authorizer: Authorizer | None = None,
        user_authenticator: UserAuthenticator | None = None,
        encryption_master_key: str | bytes | None = None,
    ) -> None:
        if secret is not None and authorizer is not None:
            raise ConfigError("secret", "give one of secret, authorizer and auth_endpoint.")
        self._key = key
        self._secret = secret.encode() if secret is not None else None
        self._authorizer = authorizer
        self._user_authenticator = user_authenticator
        self._master_key = (
            encryption.parse_master_key(encryption_master_key)
            if isinstance(encryption_master_key, str)
            else encryption_master_key
        )

    @property
    def can_ask_again(self) -> bool:
        """Whether another attempt may bring another key for an encrypted channel."""
        return self._authorizer is not None

    async def authorize(
        self, socket_id: str, name: ChannelName, channel_data: str | None
    ) -> Authorization:
        """Obtain leave for one channel. If cancelled, nothing has happened here.

        Args:
            socket_id: id of the present connection; a signature is good for no other.
            name: name of a channel that needs authorization.
            channel_data: data of a presence channel, to be signed; an authorizer decides itself.

        Raises:
            AuthError: refused, or an answer that cannot be used.
            Exception: whatever else the authorizer raised.
        """
        if self._authorizer is not None:
            answer = _read(await self._authorizer(socket_id, name.text), Authorization)
        elif self._secret is not None:
            text = auth.subscription_text(socket_id, name.text, channel_data)
            signature = auth.sign(self._secret, text.encode())
            answer = Authorization(f"{self._key}:{signature}", channel_data)
        else:
            raise AuthError(
                "This channel needs authorization: give connect() a secret, an authorizer or an "
                "auth_endpoint"
            )
        if not name.is_encrypted:
            return answer
        return msgspec.structs.replace(answer, key=self._channel_key(name.text, answer))

    def _channel_key(self, channel: str, answer: Authorization) -> bytes:
        if answer.shared_secret is not None:
            try:
                return encryption.parse_key(answer.shared_secret)
            except BadMessageError as error:
                raise AuthError(f"Invalid shared_secret: {error.message}") from None
        if self._master_key is None:
            raise AuthError(
                "An encrypted channel needs a shared_secret from the authorizer, or an "
                "encryption_master_key"
            )
        return encryption.channel_key(self._master_key, channel)

    async def authenticate(self, socket_id: str, user_data: str | None) -> SignInProof:
        """Obtain leave to sign in.

        Args:
            socket_id: id of the present connection.
            user_data: JSON of the user, to be signed; an authenticator brings its own, so None
                there.

        Raises:
            AuthError: refused, or an answer that cannot be used, or no way to ask.
            Exception: whatever else the authenticator raised.
        """
        if self._user_authenticator is not None:
            return _read(await self._user_authenticator(socket_id), SignInProof)
        if self._secret is None or user_data is None:
            raise AuthError(
                "Signing in needs a secret and user_data, or a user_authenticator, or a "
                "user_auth_endpoint"
            )
        text = auth.signin_text(socket_id, user_data)
        return SignInProof(f"{self._key}:{auth.sign(self._secret, text.encode())}", user_data)


class HttpEndpoint:
    """The user's backend, asked as pusher-js asks: a form POST, a JSON answer.

    It may redirect, as a browser would follow: 307 and 308 repeat the POST, the others make a GET
    of it. The headers (a token, most likely) go to the endpoint's own origin and no further, and
    nothing goes from https to http.
    """

    def __init__(
        self, http: httpx2.AsyncClient, url: str, headers: Mapping[str, str] | None = None
    ) -> None:
        self._http = http
        self._url = url
        self._headers = dict(headers or {})

    async def authorize(self, socket_id: str, channel: str) -> Mapping[str, str | None]:
        """An :data:`Authorizer`."""
        return await self._ask({"socket_id": socket_id, "channel_name": channel})

    async def authenticate(self, socket_id: str) -> Mapping[str, str | None]:
        """A :data:`UserAuthenticator`."""
        return await self._ask({"socket_id": socket_id})

    async def _ask(self, form: dict[str, str]) -> Mapping[str, str | None]:
        with trio.move_on_after(ANSWER_LIMIT_S):
            return await self._follow(form)
        raise TimeoutError(f"{self._url} did not answer within {ANSWER_LIMIT_S:g} s")

    async def _follow(self, form: dict[str, str]) -> Mapping[str, str | None]:
        # Without compression, a bound on what is read is one on what it unfolds to.
        headers = {**self._headers, "Accept-Encoding": "identity"}
        request = self._http.build_request("POST", self._url, data=form, headers=headers)
        asked = self._url
        for _ in range(MAX_REDIRECTS + 1):
            status, body, location = await self._send(request)
            if location is None:
                return self._read(asked, status, body)
            url = request.url.join(location)
            if url.scheme not in {"http", "https"} or (request.url.scheme, url.scheme) == (
                "https", "http",
            ):  # fmt: skip
                raise AuthError(f"{asked} redirects to {url}, which is not followed")
            if _origin(url) != _origin(request.url):
                headers = {"Accept-Encoding": "identity"}
            asked = f"{url}, to which {self._url} redirects with {status},"
            if status in {307, 308} and request.method == "POST":
                request = self._http.build_request("POST", url, data=form, headers=headers)
            else:
                request = self._http.build_request("GET", url, headers=headers)
        raise AuthError(f"{self._url} redirects more than {MAX_REDIRECTS} times")

    async def _send(self, request: httpx2.Request) -> tuple[int, bytes, str | None]:
        """Status and body, or where it redirects to."""
        response = await self._http.send(request, stream=True, follow_redirects=False)
        try:
            if response.status_code in {301, 302, 303, 307, 308}:
                location = response.headers.get("location")
                if location is not None:
                    return response.status_code, b"", location
            if response.status_code >= 500:
                response.raise_for_status()  # passing trouble, not a refusal
            body = b""
            async with aclosing(response.aiter_bytes()) as parts:
                async for part in parts:
                    body += part
                    if len(body) > MAX_ANSWER_BYTES:
                        raise AuthError(
                            f"{request.url} answered with more than {MAX_ANSWER_BYTES} bytes, "
                            "which is no authorization"
                        )
            return response.status_code, body, None
        finally:
            # The rest is not read: the connection ends, if there is one.
            with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_LIMIT_S):
                await response.aclose()

    def _read(self, asked: str, status: int, body: bytes) -> Mapping[str, str | None]:
        if status != 200:
            text = body[:200].decode("utf-8", "replace").strip()
            raise AuthError(f"{asked} answered {status}: {text}", http_status=status)
        try:
            # Of any content: pusher-js ignores what else a backend says, and so does _read().
            return read_json(_decode_answer, body)
        except (ValueError, RecursionError) as error:
            raise AuthError(f"{asked} did not answer with an authorization: {error}") from None


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


async def ask(
    question: Callable[[], Awaitable[T]], random: Callable[[], float], *, is_patient: bool
) -> T:
    """Ask an authorizer or an authenticator, whatever it may raise.

    Args:
        question: function that asks; called once an attempt.
        random: function that draws evenly in 0 <= x < 1, for the jitter between attempts.
        is_patient: whether to ask again, :data:`RETRIES` times with backoff, after a failure that
            is no refusal. For what was in use before a reconnection: nobody is there to try again.

    Raises:
        AuthError: refused, or no answer was to be had.
    """
    failures = 0
    while True:
        try:
            return await question()
        except EngineError as error:
            if isinstance(error, AuthError):
                raise
            raise AuthError(f"The authorizer refused: {error}") from error
        # The authorizer is the user's own code and asks over a network of its own. Whatever it
        # raises concerns one channel or one user; the connection and the others must go on.
        except Exception as error:
            failures += 1
            if not is_patient or failures > RETRIES:
                text = f"The authorizer failed: {type(error).__name__}: {error}"
                raise AuthError(text) from error
        await trio.sleep(random() * RETRY_FIRST_S * 2.0**failures)


def _read(answer: Mapping[str, str | None], kind: type[T]) -> T:
    try:
        return msgspec.convert(dict(answer), kind)
    except (msgspec.ValidationError, TypeError, ValueError) as error:
        raise AuthError(f"The authorizer's answer cannot be used: {error}") from None


def channel_data_of(user_id: str | None, user_info: object) -> str | None:
    """``channel_data`` for one member; None for none (protocol.md 2.4)."""
    if user_id is None:
        return None
    data: dict[str, object] = {"user_id": user_id}
    if user_info is not None:
        data["user_info"] = user_info
    return encode_data(data)
