"""Where the Triton servers are, and how to be let in: URLs, certificates, headers."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from inference.errors import ModelMisconfigured

DEFAULT_PORTS = {"grpc": 8001, "grpcs": 8001, "http": 8000, "https": 443}


@dataclass(frozen=True, slots=True)
class Address:
    """One server. ``host`` may be a name with several addresses; ``path`` is what stands before ``/v2`` over HTTP."""

    scheme: str
    host: str
    port: int
    path: str = ""

    @property
    def url(self) -> str:
        """Return the address as the user writes it."""
        return f"{self.scheme}://{self._netloc}{self.path}"

    @property
    def target(self) -> str:
        """Return the address as gRPC writes it (grpc ``doc/naming.md``)."""
        return f"dns:///{self._netloc}"

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme.endswith("s")

    @property
    def is_http(self) -> bool:
        """Whether it is spoken to over HTTP rather than gRPC."""
        return self.scheme.startswith("http")

    @property
    def _netloc(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_urls(urls: Sequence[str]) -> list[Address]:
    """Read ``grpc(s)://host:port`` and ``http(s)://host:port/path``, each one URL or a comma-separated list.

    Raises:
        ModelMisconfigured: a URL that is none of these, or none at all.
    """
    parts = [part.strip() for url in urls for part in url.split(",") if part.strip()]
    if not parts:
        raise ModelMisconfigured(
            "The triton runtime has no server: set WALVEC_TRITON_URL=grpc://host:8001.", reason="bad_url"
        )
    return [_parse_url(part) for part in parts]


def _parse_url(url: str) -> Address:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise _bad_url("an entry of WALVEC_TRITON_URL is not a URL") from None
    if parts.scheme not in DEFAULT_PORTS or not host:
        raise _bad_url(
            "an entry of WALVEC_TRITON_URL is not of the form grpc://host:port, grpcs://, http:// or https://"
        )
    path = parts.path.rstrip("/")
    if parts.username is not None or parts.query or parts.fragment:
        raise _bad_url(
            f"the Triton URL for {host} may hold a host and a port and nothing else: "
            "credentials belong in WALVEC_TRITON_TOKEN or WALVEC_TRITON_HEADERS"
        )
    if path and not parts.scheme.startswith("http"):
        raise _bad_url(f"the Triton URL for {host} may hold a host and a port and nothing else")
    return Address(parts.scheme, host, port or DEFAULT_PORTS[parts.scheme], path.removesuffix("/v2"))


def _bad_url(what: str) -> ModelMisconfigured:
    return ModelMisconfigured(f"{what[0].upper()}{what[1:]}.", reason="bad_url")


@dataclass(frozen=True, slots=True)
class Access:
    """How to be let in: files in PEM (``ca_file`` to trust, ``cert_file`` and ``key_file`` to show), and headers.

    Headers may hold secrets: they are in no ``repr``.
    """

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def check(self, addresses: Sequence[Address]) -> None:
        """Prove that the files are there and fit the URLs.

        Raises:
            ModelMisconfigured: a file cannot be read, is no PEM, or a setting is of no use with these URLs.
        """
        if bool(self.cert_file) != bool(self.key_file):
            raise _bad_tls("WALVEC_TRITON_CERT_FILE and WALVEC_TRITON_KEY_FILE belong together: set both")
        if not (self.ca_file or self.cert_file):
            return
        if not any(address.tls for address in addresses):
            raise _bad_tls(
                "A certificate file for Triton is set, but its URL is not encrypted: use grpcs:// or https://"
            )
        for name in ("ca_file", "cert_file", "key_file"):
            self._read(name)
        try:
            self.context()
        except ssl.SSLError:
            raise _bad_tls(
                "WALVEC_TRITON_CA_FILE, WALVEC_TRITON_CERT_FILE or WALVEC_TRITON_KEY_FILE is not in PEM, or the key is "
                "not the certificate's, or it wants a passphrase"
            ) from None

    def pem(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Return authority, key and certificate as gRPC takes them, None for each that is not set."""
        return self._read("ca_file"), self._read("key_file"), self._read("cert_file")

    def context(self) -> ssl.SSLContext:
        """Return a TLS context; the system's authorities count where no file is set."""
        context = ssl.create_default_context(cafile=self.ca_file or None)
        if self.cert_file:
            context.load_cert_chain(self.cert_file, self.key_file, password="")
        return context

    def _read(self, name: str) -> bytes | None:
        path = getattr(self, name)
        if not path:
            return None
        try:
            return Path(path).read_bytes()
        except OSError as error:
            raise _bad_tls(
                f"WALVEC_TRITON_{name.upper()} names {path}, which cannot be read: {error.strerror}"
            ) from None


def _bad_tls(what: str) -> ModelMisconfigured:
    return ModelMisconfigured(f"{what}.", reason="tls")
