"""A port of 127.0.0.1 that a server has for as long as it lives, over its stops and new starts too."""

from __future__ import annotations

import socket
import weakref

_OWNERS: weakref.WeakSet[object] = weakref.WeakSet()


def hold_port(owner: object, port: int) -> int:
    """Bind a port, without listening, until its owner is no more; once is enough.

    While its server is stopped nobody else is given the port, and a client that connects is refused.

    Args:
        owner: What listens there, with the address reused (`SO_REUSEADDR`).
        port: 0 chooses a free one.

    Returns:
        the port.

    Raises:
        OSError: somebody else has it.
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
