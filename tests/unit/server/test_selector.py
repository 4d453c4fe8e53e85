"""Two selectors that do the same."""

from __future__ import annotations

import socket

import pytest

from cachecast.server.selector import READ, WRITE, PortableSelector, open_selector


@pytest.mark.parametrize("make", [open_selector, PortableSelector])
def test_what_is_watched_for_is_told(make):
    selector, outer = make(), make()
    one, other = socket.socketpair()
    with one, other:
        fd = one.fileno()
        outer.register(selector.fileno(), READ)
        selector.register(fd, READ)
        assert selector.poll(0, 1) == outer.poll(0, 1) == []
        other.send(b"x")
        assert selector.poll(0, 1) == [(fd, READ)]
        assert outer.poll(0, 1) == [(selector.fileno(), READ)]
        selector.modify(fd, WRITE)
        assert selector.poll(0, 1) == [(fd, WRITE)]
        selector.modify(fd, READ | WRITE)
        assert selector.poll(0, 1) == [(fd, READ | WRITE)]
        selector.unregister(fd)
        assert selector.poll(0, 1) == outer.poll(0, 1) == []
    selector.close()
    outer.close()
