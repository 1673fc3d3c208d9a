"""Who may ask: a bearer token where one is set, and no web pages of other sites where none is."""

from __future__ import annotations

import base64
import binascii
import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from cdc.api.address import is_address, is_loopback

OPEN = frozenset({"/livez", "/readyz"})
"""What an orchestrator must always be able to ask."""


class Guard:
    """ASGI middleware that answers 401 without the token and 403 to a web page of another site.

    With a token, ``Authorization: Bearer <token>`` is asked for; a browser cannot send that for a page, so the token as
    the password of HTTP Basic does too (RFC 7617), with any user name.
    Without one, the port trusts whoever can reach it. A browser on this machine can, for any page it shows, so a name
    that somebody else's DNS points here (DNS rebinding) and requests sent from other origins are refused.

    Args:
        app: The application behind.
        token: The bearer token, or None.
        bound_host: The host part of where the server listens.
    """

    def __init__(self, app: ASGIApp, token: str | None, bound_host: str) -> None:
        self._app = app
        self._token = token.encode() if token else None
        self._local = is_loopback(bound_host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on one request."""
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(headers)
        if refusal is not None:
            await refusal(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, headers: Headers) -> JSONResponse | None:
        if self._token is not None:
            if hmac.compare_digest(_presented(headers.get("authorization", "")), self._token):
                return None
            return _unauthorized()
        host = headers.get("host", "")
        if self._local and not _is_own_name(host):
            return _forbidden(
                "This server answers only to localhost and to addresses; set WALVEC_HTTP_TOKEN for names."
            )
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return _forbidden("This server does not answer to pages of other sites unless WALVEC_HTTP_TOKEN is set.")
        return None


def _unauthorized() -> JSONResponse:
    sentence = "This endpoint needs the token of WALVEC_HTTP_TOKEN as a bearer token."
    reply = JSONResponse({"error": sentence}, 401, {"WWW-Authenticate": 'Bearer realm="walvec"'})
    # A header of its own: browsers read one challenge per header, though RFC 9110 allows a list.
    reply.headers.append("WWW-Authenticate", 'Basic realm="walvec", charset="UTF-8"')
    return reply


def _forbidden(sentence: str) -> JSONResponse:
    return JSONResponse({"error": sentence}, 403)


def _is_own_name(host: str) -> bool:
    try:
        name = urlsplit("//" + host).hostname or ""
    except ValueError:
        return False
    return is_loopback(name) or is_address(name)


def _presented(authorization: str) -> bytes:
    scheme, _, credentials = authorization.strip().partition(" ")
    credentials = credentials.strip()
    if scheme.lower() == "bearer":
        return credentials.encode("latin-1", "replace")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(credentials, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""
