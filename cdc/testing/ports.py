"""Free TCP ports for servers that tests start."""

from __future__ import annotations

import random
import socket

TRIES = 300


def free_ports(count: int, among: range) -> list[int]:
    """Return TCP ports of 127.0.0.1 that nobody listens on, fewer than ``count`` where no more are found.

    They are chosen at random, so that processes started together rarely collide.
    """
    found: list[int] = []
    for port in random.sample(among, TRIES):
        if len(found) == count:
            break
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
    return found
