"""The HTTP server's thread: it shares only snapshots with the engine, so it answers also while the engine is stuck."""

from __future__ import annotations

import asyncio
import threading

import structlog
import uvicorn

from cdc.api import address
from cdc.api.routes import SEARCH_TIMEOUT_S, Routes
from cdc.errors import ConfigError, WalvecError
from cdc.ports import EngineView
from cdc.telemetry.metrics import Metrics

_log = structlog.get_logger()


class HttpServer:
    """Serves metrics, health, the status page, search and sync from a thread and event loop of its own.

    Args:
        bind: ``host:port``; port 0 takes any free one.
        token: The bearer token asked on all but ``/livez`` and ``/readyz``; None asks none.
        view: The engine, as seen from outside.
        metrics: What ``/metrics`` shows.
        search_timeout_s: Seconds until a search is given up.

    Raises:
        ConfigError: ``bind`` is malformed, or ``token`` cannot be sent in a header.
    """

    def __init__(
        self,
        bind: str = "127.0.0.1:9464",
        token: str | None = None,
        *,
        view: EngineView,
        metrics: Metrics,
        search_timeout_s: float = SEARCH_TIMEOUT_S,
    ) -> None:
        self._bind = bind
        self._host, _ = address.parse(bind)
        if token and not (token.isascii() and token.isprintable() and " " not in token):
            raise ConfigError("WALVEC_HTTP_TOKEN holds characters that no header can carry.", "Use letters and digits.")
        self._token = token or None
        self._routes = Routes(view, metrics, search_timeout_s)
        self._started = threading.Event()
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> str:
        """Listen, serve, and return the address as ``host:port``.

        Raises:
            ConfigError: the address is taken or not ours.
        """
        sock = address.listen(self._bind)
        host, port = sock.getsockname()[:2]
        bound = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        config = uvicorn.Config(
            self._routes.app(self._token, self._host, self._started.set),
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=256,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=1,
        )
        self._server = server = uvicorn.Server(config)

        def serve() -> None:
            try:
                asyncio.run(server.serve(sockets=[sock]))
            except (Exception, SystemExit) as fault:
                _log.error("http_failed", address=bound, exception_type=type(fault).__name__)
            finally:
                sock.close()

        self._thread = threading.Thread(target=serve, name="walvec-http", daemon=True)
        self._thread.start()
        if not self._started.wait(10.0):
            raise WalvecError(f"The HTTP server did not start on {bound} within 10 s.")
        _log.info("http_listening", address=bound)
        if self._token is None and not address.is_loopback(host):
            _log.warning("http_unprotected", address=bound, remedy="Set WALVEC_HTTP_TOKEN.")
        return bound

    def stop(self, timeout_s: float = 5.0) -> None:
        """Stop listening, end requests under way after a second, and wait for the thread. May be called twice."""
        if self._server is not None:
            self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(timeout_s)
            self._thread = None
