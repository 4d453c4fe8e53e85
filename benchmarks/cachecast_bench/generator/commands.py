"""The verbs a generator understands, and the run that does the measuring.

State: streams by channel name, and crews (a group and its clients) by name. Each verb takes the
keyword arguments of its method as JSON and returns JSON. A *run* publishes by one plan or several
at once, while clients may connect or churn; it takes four snapshots of every counter and of the CPU
time of the server's processes:

    start -- warm-up -- opened -- measured -- closed -- deliveries drain -- drained

Paced plans are measured from start to drained, so that each delivery is counted with the work it
caused; flat plans from opened to closed, where the server is in full swing.
"""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING, Any

from cachecast_bench.dialects import open_dialect
from cachecast_bench.generator.churning import Churning
from cachecast_bench.generator.connecting import Connecting
from cachecast_bench.generator.loop import Loop
from cachecast_bench.generator.publishing import Publishing
from cachecast_bench.generator.report import Crew, Plan, connect_report, mark, run_report
from cachecast_bench.generator.stream import (
    MARK_SIZE,
    N_EPOCHS,
    Group,
    Stream,
    payload_of,
)
from cachecast_bench.generator.subscriber import JoinedSubscriber, Subscriber

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from cachecast_bench.dialects import Dialect
    from cachecast_bench.dialects.base import Handshake

_PATIENCE_S = 10.0
"""How long a drain waits for the next delivery before it calls the rest lost."""

_DRAIN_LOOK_NS = 50_000_000

_NAP_PACED_NS = 1_000_000
_NAP_FLAT_NS = 10_000_000
"""Flat out, the server is ahead of us by the window anyway: longer strides let more frames be read
at once."""

_START_DELAY_NS = 1_000_000
_CATCH_UP_S = 5.0
"""How long a schedule that fell behind may take to send what was planned; then it was not kept."""

_CONNECT_LIMIT_S = 120.0


class Commands:
    """All state of one generator, and its verbs."""

    def __init__(self, dialect: Dialect) -> None:
        self._loop = Loop()
        self._dialect = dialect
        self._streams: dict[str, Stream] = {}
        self._crews: dict[str, Crew] = {}
        self._epoch = 0

    @property
    def loop(self) -> Loop:
        """The loop that serves all sockets."""
        return self._loop

    def execute(self, request: dict[str, Any]) -> dict[str, Any]:
        """Carry out one request, `{"verb": name, ...arguments}`.

        Raises:
            ValueError: There is no such verb.
        """
        verb = request.pop("verb")
        verbs: dict[str, Callable[..., dict[str, Any]]] = {
            "connect": self.connect,
            "disconnect": self.disconnect,
            "run": self.run,
            "settle": self.settle,
        }
        if verb not in verbs:
            message = f"unknown verb {verb!r}"
            raise ValueError(message)
        return verbs[verb](**request)

    # -- clients

    def connect(self, **options: Any) -> dict[str, Any]:  # noqa: ANN401 - checked by what it calls
        """Connect clients and wait until all are through; see `_connecting` for the options."""
        connecting = self._connecting(**options)
        self._finish(connecting)
        return connect_report(connecting)

    def _finish(self, connecting: Connecting[Any]) -> None:
        """Let all clients get through, or run out of patience."""
        limit = time.monotonic_ns() + int(_CONNECT_LIMIT_S * 1e9)
        nap_ns, self._loop.nap_ns = self._loop.nap_ns, 0
        connecting.start()
        self._loop.run_while(lambda: not connecting.is_done, until_ns=limit)
        self._loop.nap_ns = nap_ns

    def _connecting(
        self,
        *,
        crew: str,
        channels: list[str],
        count: int,
        per_client: int = 1,
        in_flight: int = 256,
        n_probes: int = 0,
        wait_for_value: bool = False,
        receive_buffer: int = 0,
        bytes_per_s: int | None = None,
    ) -> Connecting[list[Stream]]:
        """Prepare `count` clients, each of which subscribes to `per_client` of `channels`.

        They are dealt out round robin. `n_probes` of them, evenly spread, record the delay of each
        delivery. `bytes_per_s` makes clients that read no faster than that (0: not at all); what
        they see is not judged, since a server may have to drop it.
        """
        streams = [self._stream(channel) for channel in channels]
        team = self._crews.setdefault(crew, Crew(crew))
        team.group.streams = list(
            {id(one): one for one in (*team.group.streams, *streams)}.values()
        )
        stride = max(1, count // n_probes) if n_probes else 0

        def handshakes() -> Iterator[tuple[Handshake, list[Stream]]]:
            wait_for = b"cc" if wait_for_value else None
            for i in range(count):
                mine = (
                    [streams[(i * per_client + j) % len(streams)] for j in range(per_client)]
                    if streams
                    else []
                )
                yield self._dialect.join([one.channel for one in mine], wait_for=wait_for), mine

        def on_client(sock: socket.socket, leftover: bytes, mine: list[Stream]) -> None:
            member = self._subscriber(sock, team.group, mine)
            member.answer = self._dialect.answer
            member.is_probe = bool(stride) and len(team.members) % stride == stride // 2
            team.members.append(member)
            self._attach(member, bytes_per_s)
            member.take(leftover)

        if bytes_per_s is not None:
            team.is_judged = False
        endpoint = self._dialect.endpoint
        return Connecting(
            self._loop,
            endpoint,
            handshakes(),
            on_client,
            in_flight=in_flight,
            receive_buffer=receive_buffer,
            resets_on_close=True,
        )

    def _subscriber(self, sock: socket.socket, group: Group, streams: list[Stream]) -> Subscriber:
        if self._dialect.has_constant_frames:
            return Subscriber(sock, group, streams, has_constant_frames=True)
        return JoinedSubscriber(sock, group, streams)

    def _attach(self, member: Subscriber, bytes_per_s: int | None) -> None:
        """Let the loop read for `member`; or, if it is to be slow, a timer, ten times a second."""
        fd = member.sock.fileno()

        def on_closed(one: Subscriber) -> None:
            one.group.ledger.closed += 1
            self._loop.remove(one.sock.fileno())
            one.sock.close()

        member.on_closed = on_closed
        if bytes_per_s is None:
            if member.is_probe:
                self._loop.promote(fd, member.on_readable)
            else:
                self._loop.hand_over(fd, member.on_readable)
            return
        self._loop.remove(fd)
        if bytes_per_s:
            self._read_slowly(member.sock, max(1, bytes_per_s // 10))

    def _read_slowly(self, sock: socket.socket, size: int) -> None:
        def on_timer() -> None:
            if sock.fileno() < 0:
                return
            try:
                if not sock.recv(size):
                    sock.close()
                    return
            except BlockingIOError:
                pass
            except OSError:
                sock.close()
                return
            self._loop.call_at(time.monotonic_ns() + 100_000_000, on_timer)

        on_timer()

    def _stream(self, channel: str) -> Stream:
        stream = self._streams.get(channel)
        if stream is None:
            stream = self._streams[channel] = Stream(channel, len(self._streams))
        return stream

    def disconnect(self, *, crew: str) -> dict[str, Any]:
        """Close all clients of `crew`; its channels stay known."""
        team = self._crews.pop(crew, Crew(crew))
        for member in team.members:
            if member.sock.fileno() >= 0:
                self._loop.remove(member.sock.fileno())
                member.sock.close()
        return {"n_closed": len(team.members)}

    def settle(self, *, seconds: float) -> dict[str, Any]:
        """Serve sockets for `seconds` without publishing.

        Pings are answered, stray messages seen.
        """
        until = time.monotonic_ns() + int(seconds * 1e9)
        self._loop.run_while(lambda: True, until_ns=until)
        return {"n_closed": sum(crew.group.ledger.closed for crew in self._crews.values())}

    # -- a run

    def run(
        self,
        *,
        plans: list[dict[str, Any]],
        seconds: float,
        warmup_s: float = 0.0,
        size: int = 256,
        pids: list[int] | None = None,
        connect: dict[str, Any] | None = None,
        churn: dict[str, Any] | None = None,
        patience_s: float | None = None,
    ) -> dict[str, Any]:
        """Publish by all `plans` at once for `warmup_s + seconds`, and report each.

        Args:
            plans: Each: `name`, `channels`, `crews` (whose deliveries are counted), `lines`
                (connections), and either `rate_per_s` or `window`; optionally `batch`, `skew`
                (Zipf), `gate_on_deliveries`, `visits` (a connection for each publish), `resumes`
                (which comes back with its TLS session).
            seconds: Length of the measured part; with `connect`, the run ends when all clients are
            through instead.
            warmup_s: Length of the part before it.
            size: Bytes of each payload.
            pids: Processes of the server, whose CPU time is taken at each snapshot.
            connect: Clients that connect meanwhile, see `connect`.
            churn: Clients that leave and come back meanwhile: `crew`, `rate_per_s`.
            patience_s: For a server that is expected to stall: how long it may take to accept what
                was planned, and then be silent before what has not arrived is called lost.

        Raises:
            ValueError: The payload is too small for the mark.
        """
        if size < MARK_SIZE:
            message = f"a payload needs at least {MARK_SIZE} bytes, not {size}"
            raise ValueError(message)
        is_ordered = all(options.get("lines", 1) == 1 for options in plans)
        self._begin_epoch(size, is_ordered=is_ordered)
        active = [self._plan(options) for options in plans]
        clients = self._connecting(**connect) if connect else None
        mover = self._churning(**churn) if churn else None
        self._loop.nap_ns = _NAP_PACED_NS if all(plan.is_paced for plan in active) else _NAP_FLAT_NS
        gc.collect()
        gc.disable()
        try:
            marks = self._measure(active, clients, mover, seconds, warmup_s, pids or [], patience_s)
        finally:
            gc.enable()
            self._loop.nap_ns = 0
        return run_report(active, clients, mover, marks, self._loop.lags_ns)

    def _begin_epoch(self, size: int, *, is_ordered: bool) -> None:
        self._epoch = (self._epoch + 1) % N_EPOCHS
        for stream in self._streams.values():
            stream.begin(self._epoch, size, is_ordered=is_ordered)
            if not self._dialect.has_constant_frames:
                first = payload_of(self._epoch, stream.index, 0, size)
                known = self._dialect.delivery(stream.channel, first)
                if known is not None:
                    stream.learn(known)
        for crew in self._crews.values():
            crew.group.begin()
            for member in crew.members:
                member.begin()
        self._loop.lags_ns.clear()

    def _plan(self, options: dict[str, Any]) -> Plan:
        streams = [self._stream(channel) for channel in options["channels"]]
        crews = [self._crews[name] for name in options["crews"]]
        n_members: dict[int, int] = {}
        for crew in crews:
            for member in crew.members:
                if member.sock.fileno() >= 0:
                    for index in member.streams:
                        n_members[index] = n_members.get(index, 0) + 1
        publishing = Publishing(
            self._loop,
            self._dialect_of(options.get("dialect_options", {})),
            streams,
            [crew.group for crew in crews],
            n_members,
            batch=options.get("batch", 1),
            skew=options.get("skew", 0.0),
            gate_on_deliveries=options.get("gate_on_deliveries", True),
        )
        n_lines = options.get("lines", 1)
        if options.get("visits") or self._dialect.endpoint.closes_after_answer:
            publishing.invite(n_lines, resumes=options.get("resumes", False))
        else:
            lines = publishing.connect(n_lines)
            self._finish(lines)
            if lines.n_failed:
                raise ConnectionError("; ".join(lines.errors))
        return Plan(options["name"], publishing, crews, options)

    def _dialect_of(self, options: dict[str, Any]) -> Dialect:
        """Return our dialect, or one with other options of its endpoint."""
        if not options:
            return self._dialect
        description = self._dialect.endpoint.to_json()
        return open_dialect({**description, "options": {**description["options"], **options}})

    def _churning(self, *, crew: str, rate_per_s: float) -> Churning:
        return Churning(self._loop, self._dialect, self._crews[crew].members, rate_per_s)

    def _measure(
        self,
        plans: list[Plan],
        clients: Connecting[list[Stream]] | None,
        mover: Churning | None,
        seconds: float,
        warmup_s: float,
        pids: list[int],
        patience_s: float | None,
    ) -> dict[str, dict[str, Any]]:
        loop = self._loop
        marks = {"start": mark(plans, pids)}
        start = time.monotonic_ns()
        for plan in plans:
            if plan.rate_per_s is not None:
                first = start + _START_DELAY_NS
                until = None if clients else first + int((warmup_s + seconds) * 1e9)
                plan.publishing.start_paced(plan.rate_per_s, first, until)
            else:
                plan.publishing.start_flat(plan.window)
        if mover is not None:
            mover.start()
        loop.run_while(lambda: True, until_ns=start + int(warmup_s * 1e9))
        for plan in plans:
            plan.delays_from = {crew.group.name: len(crew.group.delays_ns) for crew in plan.crews}
        marks["opened"] = mark(plans, pids)
        if clients is not None:
            self._finish(clients)
        else:
            until_ns = marks["opened"]["at_ns"] + int(seconds * 1e9)
            loop.run_while(lambda: True, until_ns=until_ns)
            behind = [plan.publishing for plan in plans if plan.is_paced]
            until_ns += int((patience_s or _CATCH_UP_S) * 1e9)
            loop.run_while(lambda: any(one.is_behind for one in behind), until_ns=until_ns)
        marks["closed"] = mark(plans, pids)
        for plan in plans:
            plan.delays_to = {crew.group.name: len(crew.group.delays_ns) for crew in plan.crews}
            plan.publishing.stop()
        if mover is not None:
            mover.stop()
        self._drain(plans, mover, patience_s or _PATIENCE_S)
        marks["drained"] = mark(plans, pids)
        return marks

    def _drain(self, plans: list[Plan], mover: Churning | None, patience_s: float) -> None:
        """Read until everything published has arrived, or nothing has for a while."""

        def is_waiting() -> bool:
            if mover is not None and mover.n_away:
                return True
            return any(
                plan.publishing.n_outstanding > 0
                or (
                    plan.publishing.n_replied < plan.publishing.n_published
                    and self._dialect.reply_counter()
                )
                for plan in plans
            )

        def progress() -> tuple[int, ...]:
            return tuple(
                plan.publishing.n_outstanding + -plan.publishing.n_replied for plan in plans
            )

        seen, moved_ns = progress(), time.monotonic_ns()
        while is_waiting():
            self._loop.turn(time.monotonic_ns() + _DRAIN_LOOK_NS)
            now = progress()
            if now != seen:
                seen, moved_ns = now, time.monotonic_ns()
            elif time.monotonic_ns() - moved_ns > patience_s * 1e9:
                return
