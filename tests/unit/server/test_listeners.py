"""Opening listeners: addresses, what is taken, and what several processes share."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from functools import partial

import pytest

from cachecast import ConfigError
from cachecast.server.listeners import (
    open_admin_listener,
    open_listener,
    open_shared_listeners,
    path_of,
)
from tests.sockets.node import HOST

GET = b"GET /nowhere HTTP/1.1\r\n" + HOST + b"\r\n"


@pytest.mark.parametrize(
    "address",
    [
        "",
        "6001",
        ":6001",
        "localhost",
        "localhost:",
        "localhost:x",
        "localhost:70000",
        "[]:1",
        "h:-1",
    ],
)
def test_malformed_address_is_named(address):
    with pytest.raises(ConfigError, match="must be HOST:PORT") as caught:
        open_listener(address)
    assert caught.value.field == "address"


def test_taken_port_is_a_clear_error():
    with open_listener("127.0.0.1:0") as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError) as caught:
            open_listener(address)
    assert str(caught.value) == (
        f"address: cannot listen on {address}: Address already in use. "
        "Is another server running there?"
    )


def test_connections_are_spread_over_listeners_of_one_address():
    """By the kernel, and more evenly than by who comes first."""
    listeners = open_shared_listeners("127.0.0.1:0", 4)
    with ExitStack() as stack:
        for listener in listeners:
            stack.enter_context(listener)
            listener.setblocking(False)
        (port,) = {listener.getsockname()[1] for listener in listeners}
        for _ in range(400):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            client.sendall(b"x")
        accepted = []
        for listener in listeners:
            accepted.append(0)
            while accepted[-1] < 400:
                try:
                    stack.enter_context(listener.accept()[0])
                except BlockingIOError:
                    break
                accepted[-1] += 1
    assert sum(accepted) == 400
    assert min(accepted) > 50  # 100, but for an accident that nobody will live to see


def test_a_port_that_others_share_is_taken():
    """Else two nodes with workers would get each other's clients, and neither would know."""
    listeners = open_shared_listeners("127.0.0.1:0", 2)
    with listeners[0], listeners[1]:
        address = f"127.0.0.1:{listeners[0].getsockname()[1]}"
        for open_ in (partial(open_shared_listeners, number=2), open_listener):
            with pytest.raises(ConfigError, match="Is another server running there"):
                open_(address)


def test_an_admin_address_that_is_taken_falls_back_where_it_may():
    with open_listener("127.0.0.1:0") as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError):
            open_admin_listener(address, falls_back=False)
        with open_admin_listener(address, falls_back=True) as other:
            assert other.getsockname() != taken.getsockname()


def test_address_of_another_machine_is_a_clear_error():
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1:0"):
        open_listener("192.0.2.1:0")


@pytest.mark.skipif(not hasattr(socket, "TCP_DEFER_ACCEPT"), reason="not Linux")
def test_the_kernel_hands_a_connection_over_with_its_first_bytes():
    with open_listener("127.0.0.1:0") as listener, socket.socket() as client:
        listener.setblocking(False)
        client.connect(listener.getsockname())
        with pytest.raises(BlockingIOError):
            listener.accept()
        client.sendall(GET)
        listener.settimeout(10)
        accepted, _ = listener.accept()
        with accepted:
            accepted.setblocking(False)
            assert accepted.recv(1_000) == GET


def test_a_path_is_an_address_that_says_so(tmp_path):
    path = tmp_path / "node.sock"
    assert path_of(f"unix:{path}") == path
    assert path_of("127.0.0.1:0") is None
    with open_listener(f"unix:{path}") as taken:
        assert path_of(taken) is None
        with pytest.raises(ConfigError, match=r"server\.uds: another node listens .*--uds"):
            open_listener(f"unix:{path}")
