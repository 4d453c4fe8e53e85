"""The Pusher protocol and RFC 6455 without I/O: bytes <-> meaning.

Nothing in here knows a socket, a task or a clock: bytes and ``now`` come in, values and bytes go
out. Read ``channel_name`` and ``messages`` first, then ``session``.
"""
