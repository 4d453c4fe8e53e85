"""Clients that do next to nothing, as many as a process may have: the other side of `held`.

A generator checks every byte of a stream and keeps what that takes; a holder keeps a socket and two
numbers a client, so that some ten thousand of them are no load of their own. Several holders, each
with a loopback address and so with ports of its own, hold more than one process may have open.

    holding      a client, and all of a holder
"""
