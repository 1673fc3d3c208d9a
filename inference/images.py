r"""Images that rows name: by URL, by path, or as the bytes themselves. Fetched with the guards that strangers call for.

A row's text is ``http(s)://…``, an absolute path, or PostgreSQL's ``\x…``. URLs reach public addresses only
(:mod:`inference.egress`), redirects are followed twice and looked at anew, and no proxy stands in between, for it would
resolve names by itself. Paths lead below the folders that were allowed and through no symbolic link. Nothing is held
that is larger than the bound, and nothing is handed on that does not begin as an image.

What will not change by itself (no such file, an address that is not allowed, something that is no image) is the row's
fault; what may (a server that is away, slow, or busy) is a failure that is tried again.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import quote, urljoin, urlsplit

import httpcore
import httpx

from inference.egress import Allowed, GuardedBackend
from inference.errors import ModelFailed, TextRefused
from inference.http_api import retry_after_s
from inference.image_kinds import check_image

TIMEOUT_S = 15.0
MOST_BYTES = 20_000_000
CONNECT_S = 10.0
REDIRECTS = 2
PAUSE_S = 5.0
"""Before a server that was away is asked again."""
LONGEST_PAUSE_S = 60.0
LONGEST_URL = 8_192
CONNECTIONS = 32
MOVED = frozenset({301, 302, 303, 307, 308})
NOT_THE_ROWS = frozenset({errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM, errno.ESTALE})
TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class ImageRules:
    """What rows may name. ``roots`` are the folders whose files may be read; none: no file at all."""

    allowed: Allowed = field(default_factory=Allowed)
    roots: tuple[Path, ...] = ()
    most_bytes: int = MOST_BYTES
    timeout_s: float = TIMEOUT_S


class ImageReader:
    """Reads what rows name. Needs a running event loop from its first use on."""

    def __init__(self, rules: ImageRules) -> None:
        """Take the rules; nothing is reached yet."""
        self._rules = rules
        self._pool: httpcore.AsyncConnectionPool | None = None

    async def read(self, text: str) -> bytes:
        """Return the image that a row's text names.

        Raises:
            TextRefused: it is not allowed, not there, too large, or no image.
            ModelFailed: it is not to be had now.
        """
        named = text.strip()
        if named.startswith("\\x"):
            content = self._from_hex(named)
        elif named[:8].lower().startswith(("http://", "https://")):
            content = await self._from_url(named)
        elif named.startswith("/"):
            content = await asyncio.to_thread(self._from_file, named)
        else:
            raise TextRefused(
                "An image is named by an http:// or https:// URL or an absolute path, or is a bytea.", reason="no_image"
            )
        check_image(content)
        return content

    async def close(self) -> None:
        """Close the connections."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.aclose()

    # -- bytes as text ----------------------------------------------------------------------------------------------

    def _from_hex(self, text: str) -> bytes:
        if len(text) > 2 + 2 * self._rules.most_bytes:
            raise self._too_large()
        try:
            return bytes.fromhex(text[2:])
        except ValueError:
            raise TextRefused("The bytea's digits are not hexadecimal.", reason="no_image") from None

    # -- files ------------------------------------------------------------------------------------------------------

    def _from_file(self, text: str) -> bytes:
        root, parts = self._below(text)
        try:
            descriptor = _open_below(root, parts)
        except OSError as error:
            if error.errno in NOT_THE_ROWS:
                why = f"The image file cannot be read ({error.strerror})."
                raise ModelFailed(why, reason="image_unavailable", retry_after_s=PAUSE_S) from None
            raise TextRefused(
                f"The image file cannot be opened ({error.strerror}); links are not followed.", reason="image_missing"
            ) from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise TextRefused("The path names no file.", reason="image_missing")
            if status.st_size > self._rules.most_bytes:
                raise self._too_large()
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                content = file.read(self._rules.most_bytes + 1)
        finally:
            os.close(descriptor)
        if len(content) > self._rules.most_bytes:  # it grew meanwhile
            raise self._too_large()
        return content

    def _below(self, text: str) -> tuple[Path, Sequence[str]]:
        """Return the folder that a path is below, and what leads on from there."""
        path = PurePosixPath(text)
        if ".." not in path.parts and "\0" not in text:
            for root in self._rules.roots:
                for form in (root, root.resolve()):
                    if path.is_relative_to(form) and path != PurePosixPath(form):
                        return root.resolve(), path.relative_to(form).parts
        raise TextRefused(
            "The path is below no folder whose files may be read: WALVEC_IMAGE_ROOTS names them.", reason="path_refused"
        )

    # -- URLs -------------------------------------------------------------------------------------------------------

    async def _from_url(self, url: str) -> bytes:
        try:
            async with asyncio.timeout(self._rules.timeout_s):
                for _ in range(REDIRECTS + 1):
                    found = await self._get(_checked(url))
                    if isinstance(found, bytes):
                        return found
                    url = urljoin(url, found)
        except (TimeoutError, httpcore.TimeoutException):
            raise self._away("did not answer in time") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.PoolTimeout) as error:
            raise self._away(f"cannot be reached ({type(error).__name__})") from None
        except httpcore.UnsupportedProtocol:
            raise TextRefused("An image's URL begins with http:// or https://.", reason="bad_url") from None
        raise TextRefused(f"The URL leads on more than {REDIRECTS} times.", reason="redirects")

    async def _get(self, url: str) -> bytes | str:
        """Return the body, or where the server says that it is."""
        if self._pool is None:
            self._pool = httpcore.AsyncConnectionPool(
                ssl_context=httpx.create_ssl_context(),  # as for the runtimes: SSL_CERT_FILE, else certifi's list
                max_connections=CONNECTIONS,
                max_keepalive_connections=CONNECTIONS // 4,
                keepalive_expiry=5.0,
                network_backend=GuardedBackend(self._rules.allowed),
            )
        headers: dict[bytes | str, bytes | str] = {
            "Host": urlsplit(url).netloc,
            "User-Agent": "walvec",
            "Accept": "image/*",
            "Accept-Encoding": "identity",
        }
        limits = {"timeout": {"connect": CONNECT_S}}
        async with self._pool.stream("GET", url, headers=headers, extensions=limits) as response:
            said = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
            if response.status in MOVED and said.get("location"):
                return said["location"]
            self._refuse(response.status, said)
            parts, size = [], 0
            async for part in response.aiter_stream():
                size += len(part)
                if size > self._rules.most_bytes:
                    raise self._too_large()
                parts.append(part)
        return b"".join(parts)

    def _refuse(self, status: int, said: dict[str, str]) -> None:
        """Raise for a reply that cannot be an image, before its body is read."""
        if status in TRY_AGAIN:
            raise self._away(f"answers {status}", min(retry_after_s(said) or PAUSE_S, LONGEST_PAUSE_S))
        if status != 200:
            raise TextRefused(f"The image's server answers {status}.", reason="image_missing")
        kind = said.get("content-type", "").partition(";")[0].strip().lower()
        if kind and not kind.startswith("image/") and kind not in ("application/octet-stream", "binary/octet-stream"):
            raise TextRefused(f"The image's server sends {kind[:40]}, not an image.", reason="not_an_image")
        if said.get("content-encoding", "identity").lower() != "identity":
            raise TextRefused("The image's server sends it compressed once more.", reason="not_an_image")
        length = said.get("content-length", "")
        if length.isdecimal() and int(length) > self._rules.most_bytes:
            raise self._too_large()

    def _away(self, what: str, pause_s: float = PAUSE_S) -> ModelFailed:
        return ModelFailed(f"The image's server {what}.", reason="image_unavailable", retry_after_s=pause_s)

    def _too_large(self) -> TextRefused:
        return TextRefused(f"The image is larger than {self._rules.most_bytes:,} bytes.", reason="image_too_large")


def _checked(url: str) -> str:
    """Return a URL in ASCII.

    Raises:
        TextRefused: it is none that is fetched.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        host = host if host.isascii() else host.encode("idna").decode()
        port = parts.port
    except (ValueError, UnicodeError):
        raise TextRefused("The image's URL is not a URL.", reason="bad_url") from None
    if parts.scheme.lower() not in ("http", "https") or not host or len(url) > LONGEST_URL:
        raise TextRefused("An image's URL begins with http:// or https:// and names a host.", reason="bad_url")
    if parts.username is not None or parts.password is not None:
        raise TextRefused("An image's URL holds no user and no password.", reason="bad_url")
    literal = f"[{host}]" if ":" in host else host
    target = _ascii(parts.path or "/") + (f"?{_ascii(parts.query)}" if parts.query else "")
    return f"{parts.scheme.lower()}://{literal}{f':{port}' if port else ''}{target}"


def _ascii(text: str) -> str:
    """Return a path or query with everything escaped that a request line cannot hold; escapes stay as they are."""
    return quote(text, safe="/%:=&?@!$'()*+,;~-._[]")


def _open_below(root: Path, parts: Sequence[str]) -> int:
    """Open a file for reading, step by step from a folder on; a link on the way is an error, wherever it leads."""
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for place, part in enumerate(parts, 1):
            folder = os.O_DIRECTORY if place < len(parts) else os.O_NONBLOCK  # a pipe would keep us waiting
            below = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | folder, dir_fd=at)
            os.close(at)
            at = below
    except OSError:
        os.close(at)
        raise
    return at
