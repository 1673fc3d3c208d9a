"""Where the server listens: ``WALVEC_HTTP`` to a bound socket."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket

from cdc.errors import ConfigError


def parse(bind: str) -> tuple[str, int]:
    """Return ``(host, port)`` of ``host:port`` or ``[ipv6]:port``.

    Raises:
        ConfigError: it is neither.
    """
    host, colon, port = bind.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ConfigError(
            f"WALVEC_HTTP is {bind!r}, which is not an address and a port.",
            "Write it as 127.0.0.1:9464 (0.0.0.0:9464 for every interface), or off.",
        )
    return host, int(port)


def listen(bind: str) -> socket.socket:
    """Return a listening socket for ``bind``; port 0 takes any free port.

    Raises:
        ConfigError: the address is malformed, unknown, taken, or not allowed.
    """
    host, port = parse(bind)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as fault:
        raise ConfigError(
            f"WALVEC_HTTP is {bind!r}, but the name {host!r} is unknown here.", "Use an address of this machine."
        ) from fault
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(128)
    except OSError as fault:
        sock.close()
        raise ConfigError(f"WALVEC_HTTP is {bind!r}, but {_why(fault)}.", _remedy(fault)) from fault
    return sock


def is_loopback(host: str) -> bool:
    """Whether ``host`` (an address, a name, maybe in brackets) is this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def is_address(host: str) -> bool:
    """Whether ``host`` is an IP address in figures rather than a name."""
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _why(fault: OSError) -> str:
    if fault.errno == errno.EADDRINUSE:
        return "another process listens there"
    if fault.errno in (errno.EACCES, errno.EPERM):
        return "this user may not listen there"
    if fault.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address"
    return os.strerror(fault.errno).lower() if fault.errno else "it cannot be listened on"


def _remedy(fault: OSError) -> str:
    if fault.errno == errno.EADDRINUSE:
        return "Set WALVEC_HTTP to another port, or to off."
    return "Set WALVEC_HTTP to an address of this machine and a port above 1023, or to off."
