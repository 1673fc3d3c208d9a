"""The daemon as a process: logs without secrets, signals, the HTTP server, and an exit status."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable

from cdc.app import Serve, calm_collector, secrets_of
from cdc.config import Settings
from cdc.daemon.daemon import Daemon
from cdc.daemon.plan import Plan
from cdc.errors import ConfigError
from cdc.foreground import until_signalled, use_threads
from cdc.postgres.connect import parse_dsn, secrets_in
from cdc.telemetry import logs
from cdc.telemetry.metrics import Metrics


def run(settings: Settings, plan: Plan, serve: Serve | None) -> int:
    """Run the daemon in the foreground until a signal comes; return the exit status.

    Args:
        settings: Everything that can be set.
        plan: What to do.
        serve: Starts the HTTP server; None: there is none.

    Raises:
        ConfigError: a setting, the control database or the role will not do (exit status 2).
    """
    logs.configure(settings.log_level, settings.log_format, secrets=secrets_of(settings))
    for url in (plan.uri, *plan.targets, plan.master[0] if plan.master else ""):
        with contextlib.suppress(ConfigError):
            logs.hide(secrets_in(parse_dsn(url)))
    asyncio.run(_run(settings, plan, serve))
    return 0


async def _run(settings: Settings, plan: Plan, serve: Serve | None) -> None:
    calm_collector()
    metrics = Metrics()
    daemon = Daemon(settings, plan, metrics, os.environ)
    use_threads()
    until_signalled(daemon.stop)
    hide: Callable[[], None] | None = serve(daemon.view, metrics) if serve is not None else None
    try:
        await daemon.run()
    finally:
        if hide is not None:
            hide()
