"""The node's side of the control socket: who may ask, what can be asked, and the answer."""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar

import msgspec
import structlog
import trio

from cachecast import __version__
from cachecast.control.line import PROTOCOL_VERSION, Line, Reply, Request
from cachecast.control.place import foreign_user
from cachecast.errors import ControlError, EngineError

if TYPE_CHECKING:
    from cachecast.control.place import Place

__all__ = ["Action", "Call", "ControlDesk"]

#: Number of callers that are answered at a time; the next is told so.
MAX_CALLS: Final = 8

#: Seconds for a caller to say what it wants, and again to take the answer.
WORDS_LIMIT_S: Final = 5.0

#: Seconds before the next try where nobody can be let in.
PAUSE_S: Final = 10.0

_log = structlog.get_logger("cachecast.control")

T = TypeVar("T")


class Call:
    """What a caller asks for.

    Attributes:
        line: conversation with the caller, for what needs more than a question and an answer.
            Whoever uses it bounds how long it waits there.
    """

    def __init__(self, request: Request, line: Line) -> None:
        self.line = line
        self._body = request.body

    def read(self, kind: type[T]) -> T:
        """What came with the question.

        Raises:
            ControlError: it is something else than ``kind``.
        """
        try:
            return msgspec.msgpack.decode(self._body, type=kind)
        except msgspec.DecodeError as error:
            raise ControlError(f"What was asked cannot be understood: {error}.") from None


#: What is done for a verb: gives the body of the answer, or raises an EngineError, whose text is
#: the answer then. It is not cancelled when the caller goes.
Action = Callable[[Call], Awaitable[object]]


class ControlDesk:
    """Answers those who come to a control socket; :meth:`run` is its task.

    Queue: :data:`MAX_CALLS` callers; whoever comes then is told so, and counted by nobody.
    """

    def __init__(self, place: Place) -> None:
        """Make it; ``place`` stays the caller's to close."""
        self.place = place
        self._actions: dict[str, Action] = {}
        self._n_calls = 0
        self._accepting = trio.CancelScope()
        self._has_answered = trio.Event()

    def add(self, verb: str, action: Action) -> None:
        """Have a verb carried out."""
        self._actions[verb] = action

    @property
    def is_stopped(self) -> bool:
        """Whether it takes no more callers; who is talked with for long should be let go."""
        return self._accepting.cancel_called

    def stop(self) -> None:
        """Take no more callers, for another process does. Never yields."""
        self._accepting.cancel()

    async def wait_answered(self) -> None:
        """Wait, after :meth:`stop`, until all who came before have been answered."""
        await self._has_answered.wait()

    async def run(self) -> None:
        """Answer for ever, or until :meth:`stop`; if cancelled, callers are not answered."""
        listener = trio.socket.from_stdlib_socket(self.place.listener)
        async with trio.open_nursery() as nursery:
            with self._accepting:
                await self._accept(listener, nursery)
            self.place.leave()
        self._has_answered.set()

    async def _accept(self, listener: trio.socket.SocketType, nursery: trio.Nursery) -> NoReturn:
        while True:
            try:
                sock, _ = await listener.accept()
            except OSError as error:
                # No more files may be opened, mostly; it is no reason to end the node.
                _log.warning("control paused", error=str(error))
                await trio.sleep(PAUSE_S)
            else:
                nursery.start_soon(self._serve, sock)

    async def _serve(self, sock: trio.socket.SocketType) -> None:
        line = Line(sock)
        self._n_calls += 1
        try:
            reply = await self._answer(sock, line)
            with trio.move_on_after(WORDS_LIMIT_S):
                await line.send(reply)
        except ControlError:
            pass  # it has gone
        finally:
            self._n_calls -= 1
            line.close()

    async def _answer(self, sock: trio.socket.SocketType, line: Line) -> Reply:
        try:
            user = foreign_user(sock, is_caller=True)
        except OSError:
            raise ControlError("The caller has gone.") from None
        if user is not None:
            _log.warning("control refused: another user's process", user=user)
            return Reply(f"This node is not {user}'s: only the user it runs as, or root, may ask.")
        if self._n_calls > MAX_CALLS:
            return Reply(f"The node is busy with {MAX_CALLS} others who ask; try again.")
        try:
            with trio.fail_after(WORDS_LIMIT_S):
                request, _ = await line.receive(Request)
        except trio.TooSlowError:
            return Reply(f"Nothing was asked within {WORDS_LIMIT_S:g} seconds.")
        if request.version != PROTOCOL_VERSION:
            return Reply(
                f"This node is Cachecast {__version__} and speaks version {PROTOCOL_VERSION} of "
                f"the control protocol, not {request.version}: ask with its own `cachecast`."
            )
        action = self._actions.get(request.verb)
        if action is None:
            return Reply(f"This node, Cachecast {__version__}, cannot {request.verb[:64]!r}.")
        try:
            return Reply("", msgspec.Raw(msgspec.msgpack.encode(await action(Call(request, line)))))
        except EngineError as error:
            return Reply(str(error).strip() or type(error).__name__)
        except Exception as error:  # noqa: BLE001 - one caller must not end the node
            _log.error("control failed", verb=request.verb, traceback=traceback.format_exc())
            return Reply(f"The node failed at it, see its log: {type(error).__name__}.")
