"""The client side of a benchmark.

Thousands of subscribers and the publishers, in one process on a core of its own.

It must never be the bottleneck, so it is built the way the fastest client could be: non-blocking
sockets on epoll, one `recv_into` into one shared buffer for each readiness event, and one
comparison of memory to check what arrived. All subscribers of a channel are sent the same bytes,
and the generator, being the publisher too, knows which: so the stream each subscriber reads must
equal the stream that was published, byte by byte (`stream`). Only when a comparison fails is
anything parsed: that is where a lost, doubled, reordered or stale message gets its name.

Reading order:

- `stream`: what should arrive, what did arrive, and the ledger of the differences.
- `subscriber`: one client connection; probes are subscribers whose delays are recorded.
- `loop`: epoll twice; probes are always read first, so a backlog of the others never colours a
  delay.
- `connecting`: many handshakes at once, each driven by a dialect.
- `publishing`: the open schedule (paced), or as fast as the server takes it (flat).
- `churning`: subscribers that leave and come back at a steady rate.
- `commands`: the verbs that the benchmark sends through the pipe.
- `pipe`: the child's end of that pipe.
- `report`: what has arrived, in numbers that go back through it.
- `remote`: the other end of that pipe, the handle that scenarios hold.

Every module but `remote` runs in the child process, which imports neither trio nor the engine.
"""
