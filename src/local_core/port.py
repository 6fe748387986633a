"""How a server begins and ends to listen: on a port of its own, over stops too, and without losing a socket."""

from __future__ import annotations

import asyncio
import socket
import weakref

_OWNERS: weakref.WeakSet[object] = weakref.WeakSet()


def hold_port(owner: object, port: int) -> int:
    """Bind a port, without listening, until its owner is no more; once is enough.

    While its server is stopped no other program is given the port, and a client that connects is refused.

    Args:
        owner: What listens there, with the address reused (`SO_REUSEADDR`).
        port: 0 chooses a free one.

    Returns:
        the port.

    Raises:
        OSError: another program has it.
    """
    if owner in _OWNERS:
        return port
    held = socket.socket()
    weakref.finalize(owner, held.close)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind(("127.0.0.1", port))
    except OSError as error:
        held.close()
        raise OSError(error.errno, f"port {port} of 127.0.0.1: {str(error.strerror).lower()}") from None
    _OWNERS.add(owner)
    number: int = held.getsockname()[1]
    return number


async def stop_listening(server: asyncio.Server) -> None:
    """Close a server; a connection that it has just accepted is served first, so that it can be cut.

    asyncio (3.11) leaves a socket open for good that it has accepted, and not yet set up, when its server is closed.
    """
    for listening in server.sockets:
        asyncio.get_running_loop().remove_reader(listening.fileno())
    for _step in range(5):  # from a socket that was accepted to the first line of what serves it
        await asyncio.sleep(0)
    server.close()
