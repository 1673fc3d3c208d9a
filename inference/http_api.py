"""HTTP for the runtimes that are asked over it: a pool of connections, deadlines, retries, one pause for all.

Every request has one deadline, retries and pauses included; a server that goes silent costs that and no more. Only
what another try may mend at once is tried again here: a connection that broke, and the statuses by which a server says
"not now". A server that asks for a longer pause than :data:`PATIENCE_S` is reported to the caller, who has better
things to do with the time. A 429 holds back every request to that server, not only the one that was told.

What a status means for a row is decided elsewhere (:mod:`inference.api_errors`): here replies are bytes.
Sources: RFC 9110 (statuses, Retry-After), and ``retry-after-ms`` as the OpenAI API sends it.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address

import httpx

from inference.errors import EmbedError, ModelFailed, ModelMisconfigured, ModelOverloaded, ModelUnavailable

TRIES = 3
PATIENCE_S = 5.0
"""The longest pause that is spent here, waiting; a longer one is the caller's."""
FIRST_PAUSE_S = 0.2
CONNECT_S = 10.0
IDLE_S = 30.0
"""How long an idle connection is kept: a lull between two rows should not cost a TLS handshake."""
MOST_CONNECTIONS = 64
MOST_REPLY_BYTES = 256 << 20
NOT_NOW = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
"""Statuses after which the same request may well succeed. 529 is what some APIs say for "overloaded"."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply, whole. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpApi:
    """One server spoken to over HTTP/1.1. Needs a running event loop from its first request on."""

    def __init__(
        self,
        origin: str,
        *,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Name the server; nothing is reached yet.

        Args:
            origin: ``http://host:port`` or ``https://host:port``; it is named in messages, so it holds no secret.
            timeout_s: deadline of one request in seconds, unless a request brings its own.
            headers: sent with every request; they may hold a secret and are shown nowhere.
            tls: how to check the server; by default against the file that SSL_CERT_FILE names, or certifi's list.

        Raises:
            ModelMisconfigured: the origin is not a URL.
        """
        self.origin = origin.rstrip("/")
        try:
            self._nearby = is_loopback(self.origin)
        except httpx.InvalidURL as error:
            raise ModelMisconfigured(f"{self.origin} is not a URL ({error}).", reason="bad_url") from None
        self.proven = False
        """Whether this server has answered anything yet: then a broken handshake is an outage, not a wrong URL."""
        self._timeout_s = timeout_s
        self._headers = dict(headers or {})
        self._tls = tls
        self._client: httpx.AsyncClient | None = None
        self._closed = False
        self._paused_until = 0.0

    async def send(
        self,
        method: str,
        path: str,
        content: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        deadline: float | None = None,
        tries: int = TRIES,
    ) -> Reply:
        """Send a request and return the reply, whatever its status.

        Args:
            method: ``GET`` or ``POST``; a request may be sent more than once, so it must not add anything up.
            path: with its query, from the first slash on.
            content: body.
            headers: added to those of every request.
            deadline: on the clock of :func:`time.monotonic`; by default the timeout from now.
            tries: how often it is sent at most.

        Raises:
            ModelUnavailable: no connection, a broken one, or no reply in time.
            ModelOverloaded: the server asked for a pause that is not over yet.
            ModelMisconfigured: its certificate is not trusted, or it does not speak TLS.
            ModelFailed: the reply is not HTTP, or larger than any reply should be.
        """
        ends = time.monotonic() + self._timeout_s if deadline is None else deadline
        for attempt in range(1, tries + 1):
            last = attempt == tries
            await self._wait_out(ends)
            try:
                reply = await self._once(method, path, content, headers or {}, ends)
            except ModelUnavailable as error:
                if last or error.reason != "broken":
                    raise
                continue  # an idle connection that the server closed just now, most often: no pause
            if reply.status not in NOT_NOW:
                return reply
            pause = self._pause(reply, attempt)
            if last or pause > PATIENCE_S or time.monotonic() + pause >= ends:
                return reply
            await asyncio.sleep(pause)
        raise AssertionError("the last try returns or raises")

    async def peek(self, path: str, within_s: float) -> Reply:
        """Ask once for something that need not be there.

        Raises:
            EmbedError: it is not to be had.
        """
        return await self.send("GET", path, deadline=time.monotonic() + min(within_s, self._timeout_s), tries=1)

    def open(self) -> None:
        """Allow requests again after :meth:`close`."""
        self._closed = False

    async def close(self) -> None:
        """Close every connection; requests in flight and later ones fail as unavailable."""
        self._closed = True
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _wait_out(self, ends: float) -> None:
        """Wait until the server may be asked again.

        Raises:
            ModelOverloaded: that is longer than anybody should wait here.
        """
        while (left := self._paused_until - time.monotonic()) > 0:
            if left > PATIENCE_S or time.monotonic() + left >= ends:
                raise ModelOverloaded(
                    f"{self.origin} asked to be left alone for {left:.0f} s more.",
                    reason="rate_limited",
                    retry_after_s=left,
                )
            await asyncio.sleep(left)

    def _pause(self, reply: Reply, attempt: int) -> float:
        asked = retry_after_s(reply.headers)
        pause = FIRST_PAUSE_S * 2.0 ** (attempt - 1) * random.uniform(0.75, 1.25) if asked is None else asked
        if reply.status == 429:
            self._paused_until = max(self._paused_until, time.monotonic() + pause)
        return pause

    async def _once(self, method: str, path: str, content: bytes, headers: Mapping[str, str], ends: float) -> Reply:
        if self._closed:
            raise self._gone()
        client = self._connected()
        try:
            async with (
                asyncio.timeout(max(0.001, ends - time.monotonic())),
                client.stream(method, self.origin + path, content=content or None, headers=headers) as response,
            ):
                body = await self._body(response)
                self.proven = True
                return Reply(response.status_code, response.headers, body)
        except (TimeoutError, httpx.TimeoutException):
            raise ModelUnavailable(f"{self.origin} did not answer in time.", reason="timeout") from None
        except httpx.DecodingError as error:
            raise ModelFailed(f"{self.origin} sent a reply that cannot be unpacked.", reason="bad_reply") from error
        except (httpx.TransportError, httpx.StreamError, RuntimeError) as error:
            raise self._explain(error, client) from error

    async def _body(self, response: httpx.Response) -> bytes:
        parts, size = [], 0
        async for part in response.aiter_bytes():
            size += len(part)
            if size > MOST_REPLY_BYTES:
                raise ModelFailed(f"{self.origin} sent more than {MOST_REPLY_BYTES >> 20} MiB.", reason="bad_reply")
            parts.append(part)
        return b"".join(parts)

    def _explain(self, error: Exception, client: httpx.AsyncClient) -> EmbedError:
        words = str(error) or "the connection was closed at once"
        if client is not self._client:
            return self._gone()
        if isinstance(error, RuntimeError) and not isinstance(error, httpx.StreamError):
            raise error
        if "CERTIFICATE_VERIFY_FAILED" in words:
            return ModelMisconfigured(
                f"{self.origin} shows a certificate that is not trusted here: set SSL_CERT_FILE to its CA file.",
                reason="certificate",
            )
        if not self.proven and ("WRONG_VERSION_NUMBER" in words or "RECORD_LAYER_FAILURE" in words):
            plain = self.origin.replace("https://", "http://", 1)
            return ModelMisconfigured(f"{self.origin} does not speak TLS on that port: try {plain}.", reason="not_tls")
        if isinstance(error, httpx.ConnectError | httpx.ProxyError):
            return ModelUnavailable(f"{self.origin} cannot be reached ({words}).", reason="unavailable")
        return ModelUnavailable(f"The connection to {self.origin} broke ({type(error).__name__}).", reason="broken")

    def _gone(self) -> ModelUnavailable:
        return ModelUnavailable(f"The connection to {self.origin} was closed.", reason="closed")

    def _connected(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = httpx.AsyncClient(
                headers={"User-Agent": "walvec", **self._headers},
                # Reading the list of certificate authorities takes longer than a request; plain HTTP needs none.
                verify=self._tls if self._tls is not None else self.origin.startswith("https"),
                # The deadline bounds a request as a whole; only connecting has a bound of its own.
                timeout=httpx.Timeout(None, connect=min(CONNECT_S, self._timeout_s)),
                limits=httpx.Limits(
                    max_connections=MOST_CONNECTIONS,
                    max_keepalive_connections=MOST_CONNECTIONS,
                    keepalive_expiry=IDLE_S,
                ),
                trust_env=not self._nearby,  # a proxy is of no use on the way to this machine
            )
        return self._client


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a reply asks to wait, never negative; None where it does not say."""
    milliseconds, value = headers.get("retry-after-ms", ""), headers.get("retry-after", "")
    for text, unit in ((milliseconds, 1000.0), (value, 1.0)):
        if text.replace(".", "", 1).isdecimal():
            return float(text) / unit
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    aware = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
    return max(0.0, (aware - datetime.now(UTC)).total_seconds())


def is_loopback(origin: str) -> bool:
    """Return whether a URL leads to this machine."""
    host = httpx.URL(origin).host
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
