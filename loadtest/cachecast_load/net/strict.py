"""`--strict`: the same wire on top of a complete WebSocket implementation (`websockets`, sans-I/O).

Costs about three times as much a frame as `frames.FastWire` and checks everything: UTF-8, reserved
bits, fragmentation, close codes, the handshake's every header. Run it once against a new target; a
fault it finds is the target's.
"""

from __future__ import annotations

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake, InvalidStatus, WebSocketException
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.uri import WebSocketURI

from cachecast_load.net.frames import MAX_MESSAGE, Message, UpgradeRefusedError, WireError


class StrictWire:
    """One client connection's wire, with the methods of `FastWire`."""

    __slots__ = ("_fragments", "_opcode", "_protocol", "tail")

    def __init__(self) -> None:
        self.tail = b""
        self._protocol: ClientProtocol | None = None
        self._fragments: list[bytes] = []
        self._opcode = 0

    def request(self, host: str, target: str, headers: list[tuple[str, str]]) -> bytes:
        """Return the upgrade request for `target` (path and query) at `host` (with its port)."""
        path, _, query = target.partition("?")
        name, _, port = host.rpartition(":")
        uri = WebSocketURI(secure=False, host=name, port=int(port), path=path, query=query)
        self._protocol = protocol = ClientProtocol(uri, max_size=MAX_MESSAGE)
        request = protocol.connect()
        del request.headers["Host"]  # assigning would add a second one
        request.headers["Host"] = host
        for header, value in headers:
            request.headers[header] = value
        protocol.send_request(request)
        return b"".join(protocol.data_to_send())

    def feed(self, data: bytes) -> list[Message]:
        """Take received bytes and return the complete messages in them as (opcode, payload).

        Raises:
            WireError: the implementation found a violation; the text is its own.
        """
        protocol = self._require()
        protocol.receive_data(data)
        messages: list[Message] = []
        for event in protocol.events_received():
            if isinstance(event, Response):
                self._check(protocol)
            elif isinstance(event, Frame):
                self._collect(event, messages)
        error = protocol.handshake_exc or protocol.parser_exc
        if isinstance(error, WebSocketException | UnicodeDecodeError):
            self._check(protocol)
            raise WireError(f"strict: {error}")
        # websockets answers pings and closes by itself; our client does too, so its copy is
        # dropped.
        protocol.data_to_send()
        return messages

    def _check(self, protocol: ClientProtocol) -> None:
        error = protocol.handshake_exc
        if isinstance(error, InvalidStatus):
            raise UpgradeRefusedError(error.response.status_code, error.response.reason_phrase)
        if isinstance(error, InvalidHandshake):
            raise WireError(f"strict: {error}")

    def _collect(self, frame: Frame, messages: list[Message]) -> None:
        if frame.opcode >= Opcode.CLOSE:
            messages.append((int(frame.opcode), bytes(frame.data)))
            return
        if frame.opcode is not Opcode.CONT:
            self._opcode = int(frame.opcode)
        self._fragments.append(bytes(frame.data))
        if frame.fin:
            payload = b"".join(self._fragments)
            self._fragments = []
            if self._opcode == Opcode.TEXT:
                try:
                    payload.decode()
                except UnicodeDecodeError as error:
                    raise WireError(f"strict: {error}") from error
            messages.append((self._opcode, payload))

    def text(self, payload: bytes) -> bytes:
        """Return a masked text frame."""
        self._require().send_text(payload)
        return self._out()

    def pong(self, payload: bytes) -> bytes:
        """Return the masked answer to a ping."""
        self._require().send_pong(payload)
        return self._out()

    def close(self, code: int) -> bytes:
        """Return a masked close frame."""
        self._require().send_close(code)
        return self._out()

    def _out(self) -> bytes:
        return b"".join(self._require().data_to_send())

    def _require(self) -> ClientProtocol:
        if self._protocol is None:
            raise WireError("the upgrade was not requested yet")
        return self._protocol
