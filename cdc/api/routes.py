"""Routes: a request to a question for the engine, its answer to JSON."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import math
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

import cdc
from cdc.api import health, requests
from cdc.api.calls import Calls
from cdc.api.guard import Guard
from cdc.api.series import Series
from cdc.errors import ConfigError, PipelineFault, TimedOut, Unavailable, UnknownPipeline, WalvecError
from cdc.ports import EngineView
from cdc.telemetry.metrics import Metrics

SEARCH_TIMEOUT_S = 30.0
GRACE_S = 5.0
"""What ``sync`` gets on top of its own time limit, so that its answer is its own and not a broken wait."""

_PAGE = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
_STATUS_CODES: dict[type[Exception], int] = {
    requests.BadRequest: 400,
    ConfigError: 400,
    UnknownPipeline: 404,
    Unavailable: 503,
    PipelineFault: 503,
    TimedOut: 504,
}
_log = structlog.get_logger()
_Handler = Callable[[Request], Awaitable[Response]]


class Routes:
    """The application: one method per endpoint.

    Args:
        view: The engine, as seen from outside.
        metrics: What ``/metrics`` shows.
        search_timeout_s: Seconds until a search is given up.
    """

    def __init__(self, view: EngineView, metrics: Metrics, search_timeout_s: float = SEARCH_TIMEOUT_S) -> None:
        self._view = view
        self._metrics = metrics
        self._series = Series(metrics)
        self._calls = Calls()
        self._search_timeout_s = search_timeout_s

    def app(self, token: str | None, bound_host: str, started: Callable[[], None]) -> Starlette:
        """Return the ASGI application; it calls ``started`` once its loop runs."""

        @contextlib.asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            sampler = asyncio.create_task(self._sample())
            started()
            yield
            sampler.cancel()

        get: dict[str, _Handler] = {
            "/": self._page,
            "/metrics": self._exposition,
            "/livez": self._livez,
            "/readyz": self._readyz,
            "/healthz": self._healthz,
            "/status": self._status,
            "/series": self._series_json,
        }
        post: dict[str, _Handler] = {"/v1/search": self._search, "/v1/sync": self._sync}
        return Starlette(
            routes=[
                *(Route(path, _answering(path, handler), methods=["GET"]) for path, handler in get.items()),
                *(Route(path, _answering(path, handler), methods=["POST"]) for path, handler in post.items()),
            ],
            middleware=[
                Middleware(Guard, token=token, bound_host=bound_host),
                Middleware(GZipMiddleware, minimum_size=4096, compresslevel=1),
            ],
            exception_handlers={HTTPException: _http_error},
            lifespan=lifespan,
        )

    async def _sample(self) -> None:
        while True:
            self._series.sample(self._view.status(), time.monotonic(), time.time())
            await asyncio.sleep(1.0)

    async def _page(self, _: Request) -> Response:
        return Response(_PAGE, media_type="text/html", headers=_page_headers())

    async def _exposition(self, request: Request) -> Response:
        body, content_type = self._metrics.exposition(request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": content_type})

    async def _livez(self, _: Request) -> Response:
        check = health.loop_check(self._view.heartbeat_age_s())
        return _json({"status": check.status, "message": check.message}, 200 if check.status == "ok" else 503)

    async def _readyz(self, _: Request) -> Response:
        why = health.unready(self._view.status())
        return _json({"status": "error", "error": why} if why else {"status": "ok"}, 503 if why else 200)

    async def _healthz(self, _: Request) -> Response:
        checks = health.all_checks(self._view.status(), self._view.heartbeat_age_s())
        overall = health.worst(checks)
        listed = [{"name": c.name, "status": c.status, "message": c.message} for c in checks]
        return _json({"status": overall, "checks": listed}, 503 if overall == "error" else 200)

    async def _status(self, _: Request) -> Response:
        return _json(self._view.status().to_json())

    async def _series_json(self, _: Request) -> Response:
        status, age_s = self._view.status(), self._view.heartbeat_age_s()
        checks = [{"name": c.name, "status": c.status, "message": c.message} for c in health.all_checks(status, age_s)]
        return _json({"version": cdc.__version__, "checks": checks, **self._series.to_json(status)})

    async def _search(self, request: Request) -> Response:
        asked = requests.search_request(await _body(request))
        found = await self._calls.run(
            partial(
                self._view.search,
                asked.pipeline,
                query=asked.query,
                vector=asked.vector,
                k=asked.k,
                filter=asked.filter,
                ef=asked.ef,
            ),
            self._search_timeout_s,
        )
        return _json({"results": found})

    async def _sync(self, request: Request) -> Response:
        timeout_s = requests.sync_timeout_s(await _body(request))
        if await self._calls.run(partial(self._view.sync, timeout_s), timeout_s + GRACE_S):
            return _json({"synced": True})
        raise TimedOut(f"Not everything committed before the call was embedded within {timeout_s:g} s.")


async def _body(request: Request) -> bytes:
    """Return the request's body, read no further than the limit, whatever ``Content-Length`` says or leaves out."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > requests.MAX_BODY_BYTES:
            raise HTTPException(413)
    return bytes(body)


def _answering(route: str, handler: _Handler) -> _Handler:
    """Wrap ``handler`` so that every fault becomes a status code and one sentence, and never a traceback."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except HTTPException:
            raise
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        except asyncio.CancelledError:  # only the server's own end cancels a request
            return _json({"error": "The server is stopping."}, 503)
        except Exception as fault:
            code = next((c for kind, c in _STATUS_CODES.items() if isinstance(fault, kind)), 500)
            if isinstance(fault, WalvecError | requests.BadRequest):
                return _json({"error": str(fault)}, code)
            # Its message may quote a row or a secret; its type cannot.
            _log.error("http_request_failed", route=route, exception_type=type(fault).__name__)
            return _json({"error": "An unexpected fault; the log has its type."}, 500)

    return answer


async def _http_error(_: Request, fault: Exception) -> Response:
    assert isinstance(fault, HTTPException)
    sentences = {
        404: "There is nothing at this path.",
        405: "This path does not take this method.",
        413: f"The body is larger than {requests.MAX_BODY_BYTES} bytes.",
    }
    sentence = sentences.get(fault.status_code, str(fault.detail))
    return _json({"error": sentence}, fault.status_code, fault.headers)


def _json(content: object, status_code: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    body = json.dumps(_plain(content), default=str, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # A key column may hold half a surrogate pair only in theory; an answer must not fail on it.
    return Response(
        body.encode("utf-8", "replace"),
        status_code,
        {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", **(headers or {})},
        "application/json",
    )


def _plain(value: object) -> object:
    """Replace NaN and infinities, which JSON lacks, by null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _page_headers() -> dict[str, str]:
    """Return headers that let the page run its own script and style, talk to this server, and nothing else."""

    def digest(tag: str) -> str:
        found = re.search(rf"<{tag}>(.*?)</{tag}>", _PAGE, re.DOTALL)
        assert found is not None
        return "'sha256-" + base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode() + "'"

    policy = (
        f"default-src 'none'; script-src {digest('script')}; style-src {digest('style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
