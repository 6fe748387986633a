"""A port that stays its server's."""

from __future__ import annotations

import gc
import socket

import pytest

from local_core.port import hold_port


class Owner:
    """Whoever listens on a port."""


def listening(port: int) -> socket.socket:
    """Listen on a port as servers do."""
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", port))
    server.listen()
    return server


def test_its_owner_listens_again_and_again() -> None:
    """Before, between and after, whoever connects is refused."""
    owner = Owner()
    port = hold_port(owner, 0)
    for _start in range(2):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        with listening(port), socket.create_connection(("127.0.0.1", port)):
            assert hold_port(owner, port) == port
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_nobody_else_is_given_it() -> None:
    """Of all the ports that are free, none is chosen twice."""
    owners = [Owner() for _ in range(200)]
    ports = [hold_port(owner, 0) for owner in owners]
    others = [socket.create_server(("127.0.0.1", 0)) for _ in range(200)]
    try:
        assert len({*ports, *(other.getsockname()[1] for other in others)}) == 400
    finally:
        for other in others:
            other.close()


def test_a_port_that_somebody_listens_on_is_refused() -> None:
    """With the port, and why."""
    with listening(0) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} of 127.0.0.1: address already in use"):
            hold_port(Owner(), port)


def test_it_is_free_when_its_owner_is_gone() -> None:
    """Who does not reuse addresses can have it then."""
    owner = Owner()
    port = hold_port(owner, 0)
    with socket.socket() as strict, pytest.raises(OSError, match="in use"):
        strict.bind(("127.0.0.1", port))
    del owner
    gc.collect()
    with socket.socket() as strict:
        strict.bind(("127.0.0.1", port))
