"""The alert rules, evaluated by Prometheus' own promtool."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cdc.status import EngineStatus, PipelineStatus, SlotStatus
from cdc.telemetry.catalogue import CATALOGUE
from cdc.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus"


@pytest.fixture(scope="module")
def promtool():
    found = shutil.which("promtool") or shutil.which("promtool", path=str(ROOT / ".cache" / "bin"))
    if found is None:
        pytest.fail("promtool is missing: run tools/setup.sh promtool")

    def run(*arguments, **options):
        return subprocess.run([found, *arguments], capture_output=True, text=True, timeout=60, **options)

    return run


def test_rules_do_what_their_tests_say(promtool):
    done = promtool("test", "rules", "walvec.rules.test.yml", cwd=RULES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_noticed_when_it_is_gone(promtool, tmp_path):
    rules = (RULES / "walvec.rules.yml").read_text()
    alerts = re.findall(r"alert: (\w+)", rules)
    assert len(alerts) == 12
    shutil.copy(RULES / "walvec.rules.test.yml", tmp_path)
    for alert in alerts:
        head, own, rest = rules.partition(f"      - alert: {alert}\n")
        (tmp_path / "walvec.rules.yml").write_text(
            head + re.sub(r".*?(?=      - alert:|\Z)", "", rest, count=1, flags=re.S)
        )
        assert own
        assert promtool("test", "rules", "walvec.rules.test.yml", cwd=tmp_path).returncode != 0, alert


def test_rules_use_only_metrics_that_exist():
    names = set()
    for metric in CATALOGUE:
        names |= (
            {metric.name} if metric.kind != "histogram" else {f"{metric.name}_{s}" for s in ("bucket", "count", "sum")}
        )
    rules = (RULES / "walvec.rules.yml").read_text()
    expressions = re.findall(r"^        expr: (.*?)^        (?:for|labels):", rules, re.MULTILINE | re.DOTALL)
    used = {name for expression in expressions for name in re.findall(r"\bwalvec_\w+", expression)}
    assert len(used) >= 12
    assert used <= names


def test_a_scrape_passes_promtools_lint(promtool):
    metrics = Metrics()
    metrics.publish(EngineStatus(SlotStatus("walvec", safe_bytes=1), (PipelineStatus("p"),)))
    text = metrics.exposition("text/plain")[0].decode()
    done = promtool("check", "metrics", input=text)
    assert done.returncode == 0, done.stdout + done.stderr
