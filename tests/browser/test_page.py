"""The status page in a real browser."""

import os
import re
import shutil
import subprocess

import httpx
import pytest

from cdc.api.server import HttpServer
from cdc.status import EngineStatus, HealthCheck, PipelineState, PipelineStatus, SlotState, SlotStatus
from cdc.telemetry.metrics import Metrics

NASTY = 'odd."<img src=x onerror=alert(1)>"'
STATUS = EngineStatus(
    slot=SlotStatus("walvec", SlotState.STREAMING, retained_bytes=3 << 20, oldest_unacked_seconds=0.012),
    pipelines=(
        PipelineStatus("public.articles", model="all-minilm-l6-v2", state=PipelineState.READY, source_records=12873),
        PipelineStatus("shop.products", state=PipelineState.BACKFILLING, backfill_done=250, backfill_total=1000),
        PipelineStatus(NASTY, state=PipelineState.ERROR, reason="The table has no primary key."),
        PipelineStatus("manuals", source_type="volume", scans_completed=12),
    ),
    checks=(HealthCheck("database", "ok", "PostgreSQL 18.6"),),
    recent_errors=({"pipeline": NASTY, "key": {"id": 7}, "message": "Refused.", "attempts": 1},),
)


class View:
    def status(self):
        return STATUS

    def heartbeat_age_s(self):
        return 0.2

    def search(self, pipeline, **question):
        return []

    def sync(self, timeout_s):
        return True


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """Return a function from an address to (the page's DOM after its script ran, what the browser complained of)."""
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.fail("Chromium is missing: run tools/setup.sh chromium, or set CHROMIUM to its program")

    def run(url: str, *options: str) -> tuple[str, str]:
        command = [
            *(program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *(
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--disable-dev-shm-usage",
            ),
            *("--no-proxy-server", "--enable-logging=stderr", "--window-size=1200,1500", "--virtual-time-budget=3000"),
            *(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}", *options, url),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)

    return run


def served(token=None):
    metrics = Metrics()
    metrics.publish(STATUS)
    metrics.embedded("public.articles", 10, 100)
    server = HttpServer("127.0.0.1:0", token, view=View(), metrics=metrics)
    return server, server.start()


def test_the_page_shows_the_status(browse):
    server, bound = served()
    try:
        dom, complaints = browse(f"http://{bound}/", "--dump-dom")
    finally:
        server.stop()
    assert complaints == ""
    text = re.sub(r"<script.*?</script>|<[^>]+>", " ", dom, flags=re.DOTALL)
    for shown in (
        "streaming",
        "public.articles",
        "12,873",
        "250 of 1,000 rows",
        "12 scans",
        "PostgreSQL 18.6",
        "Refused.",
    ):
        assert shown in text, shown
    assert dom.count('<path class="a"') == 4
    assert "3.0 MiB" in text
    assert "<img" not in dom, "a pipeline's name became markup"
    assert "&lt;img src=x" in dom
    assert re.search(r'id="banner"[^>]* hidden', dom)
    assert re.search(r'<svg role="img" aria-label="Rows per second over the last', dom)


def test_the_page_works_behind_a_token(browse):
    server, bound = served("a-long-token")
    try:
        dom, _ = browse(f"http://anyone:a-long-token@{bound}/", "--dump-dom")
        refused, _ = browse(f"http://{bound}/status", "--dump-dom")
    finally:
        server.stop()
    assert "public.articles" in dom
    assert "public.articles" not in refused


def test_the_page_says_when_nobody_answers(browse, tmp_path):
    server, bound = served()
    page = tmp_path / "page.html"
    try:
        page.write_text(httpx.get(f"http://{bound}/", trust_env=False).text)
    finally:
        server.stop()
    dom, _ = browse(page.as_uri(), "--dump-dom")
    banner = re.search(r'<p id="banner"[^>]*>([^<]*)', dom)
    assert banner is not None
    assert "No answer from walvec" in banner[1]
    assert "hidden" not in banner[0]
