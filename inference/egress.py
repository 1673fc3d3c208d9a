"""Where a row may send us: names are resolved here, each address is looked at, and one that passed is connected to.

Whoever writes a row chooses its URL, and must not reach through us what only this machine can reach: services on this
host, the private network, a cloud's metadata. The look and the connection use the same answer of the resolver, so a
name that changes its mind in between gains nothing. Networks follow the registries of IANA (RFC 6890 and its updates).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import httpcore

from inference.errors import ModelMisconfigured, TextRefused

Address = IPv4Address | IPv6Address
_TRANSLATED = ip_network("64:ff9b::/96")
"""NAT64 (RFC 6052): the IPv4 address stands in the last 32 bits."""
_METADATA = frozenset({ip_address("168.63.129.16")})
"""Azure's host, which has a public address; the other clouds' are link-local or private."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """Exceptions from the rule that only public addresses may be reached.

    A host's name stands for every address that it has; a network, or a single address, for itself.
    """

    names: frozenset[str] = frozenset()
    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Allowed:
        """Read names, addresses and networks with commas between.

        Raises:
            ModelMisconfigured: an entry is none of them.
        """
        names, networks = set(), []
        for entry in filter(None, (part.strip().strip("[]").lower() for part in text.split(","))):
            try:
                networks.append(ip_network(entry, strict=False))
            except ValueError:
                if not all(c.isalnum() or c in "-._" for c in entry):
                    raise ModelMisconfigured(
                        f"{entry!r} is no host, address or network (10.0.0.0/8).", reason="bad_host"
                    ) from None
                names.add(entry.rstrip("."))
        return cls(frozenset(names), tuple(networks))

    def takes(self, host: str, address: Address) -> bool:
        """Return whether an address that is not public may be reached, under this name."""
        return host.lower().rstrip(".") in self.names or any(
            address.version == network.version and address in network for network in self.networks
        )


def is_public(address: Address) -> bool:
    """Return whether an address is one of the public Internet, whatever form it is dressed in."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if inner is None and address in _TRANSLATED:
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address.is_site_local:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved and address not in _METADATA


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Connects to hosts whose every address passes, and to no other."""

    def __init__(self, allowed: Allowed) -> None:
        """Take exceptions from the rule."""
        self._allowed = allowed
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Resolve a host, look at its addresses, and connect to the first that answers.

        Raises:
            TextRefused: an address of it is not public.
            httpcore.ConnectError: there is no such host now, or none of its addresses answers.
        """
        last: Exception = httpcore.ConnectError("no address")
        for address in await self._addresses(host, port):
            try:
                return await self._inner.connect_tcp(str(address), port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                last = error
        raise last

    async def _addresses(self, host: str, port: int) -> list[Address]:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise httpcore.ConnectError(f"the name cannot be resolved ({error.strerror})") from error
        except UnicodeError as error:
            raise TextRefused("The URL's host is not a name.", reason="bad_url") from error
        addresses = [ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
        for address in addresses:
            if not is_public(address) and not self._allowed.takes(host, address):
                raise TextRefused(
                    "The URL leads to an address that is not public: add its host to WALVEC_IMAGE_HOSTS if it may.",
                    reason="address_refused",
                )
        return list(dict.fromkeys(addresses))

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        """Refuse: no URL leads to a socket of this machine."""
        raise httpcore.UnsupportedProtocol("unix sockets")

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)
