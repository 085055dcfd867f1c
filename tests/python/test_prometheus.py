"""A release that goes by what a real Prometheus makes of Backstop's own metrics."""

import json
import shutil
import subprocess

import httpx
import pytest

from processes import BACKSTOP, ROOT, Process, eventually, free_port
from test_metrics import PROMTOOL
from test_releases_llama import Released, Traffic

PROMETHEUS = shutil.which("prometheus") or str(ROOT / ".tools/prometheus")
TOKENS = (
    'sum(rate(backstop_tokens_total{service="$service",version="$version",direction="output"}[5s]))'
    ' / sum(rate(backstop_requests_total{service="$service",version="$version",outcome="answered"}[5s]))'
)
RELEASE = {
    "steps": [{"weight": "50%", "hold": "1h"}, {"weight": "100%"}],
    "warmup": "20s",
    "verify": "1s",
    "guardrails": [
        {"metric": "error_rate"},
        {"metric": "tokens_per_answer", "prometheus": TOKENS, "max": 6, "for": "2s"},
    ],
}


class Prometheus(Process):
    """It looks at a Backstop twice a second."""

    def __init__(self, folder, port: int, admin: str):
        config = folder / "prometheus.yml"
        job = {"job_name": "backstop", "static_configs": [{"targets": [admin.removeprefix("http://")]}]}
        # JSON is YAML.
        config.write_text(json.dumps({"global": {"scrape_interval": "500ms"}, "scrape_configs": [job]}))
        command = [PROMETHEUS, f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}"]
        super().__init__("prometheus", [*command, f"--web.listen-address=127.0.0.1:{port}"], folder)
        self.start()


def start(backstop) -> subprocess.CompletedProcess:
    command = [BACKSTOP, "release", "start", "chat", "--to", "v2", "--admin", backstop.admin]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_release_by_backstops_own_metrics(launch, connect, tmp_path):
    if not shutil.which(PROMETHEUS):
        pytest.skip("prometheus is missing; hint: apt-get install prometheus")
    stable = launch.sim("--tokens", "4", name="stable")
    canary = launch.sim("--tokens", "12", name="canary")
    port = free_port()
    file = {"prometheus": {"url": f"http://127.0.0.1:{port}", "interval": "500ms"}}
    with Released(tmp_path, [stable], [canary], RELEASE, file=file) as backstop:
        eventually(lambda: "the store is not open" not in start(backstop).stderr, 30, "the store is open")
        refused = start(backstop)
        assert refused.returncode == 1
        assert "`tokens_per_answer` is not available: Prometheus can't be reached" in refused.stderr
        with Prometheus(tmp_path, port, backstop.admin), Traffic(connect, backstop):
            started = eventually(lambda: start(backstop).returncode == 0, 60, "there is something to go by", every=0.5)
            assert started
            look = f"{backstop.admin}/api/v1/services/chat/release"
            status = eventually(
                lambda: (seen := httpx.get(look).json())["phase"] == "verifying" and seen, 60, "sent back"
            )
            assert status["cause"] == "regressed: tokens_per_answer", status
            (found,) = [it for it in status["evidence"]["metrics"] if it["metric"] == "tokens_per_answer"]
            assert found["figures"]["stable"] == pytest.approx(4), found
            assert found["figures"]["canary"] == pytest.approx(12), found
        page = httpx.get(f"{backstop.admin}/metrics").raise_for_status().text
        assert 'metric="tokens_per_answer",verdict="regressed"} 1' in page, page
        assert 'backstop_release_cause{service="chat",version="v2",cause="regressed"} 1' in page, page
        if shutil.which(PROMTOOL):
            check = subprocess.run([PROMTOOL, "check", "metrics"], input=page, capture_output=True, text=True)
            assert (check.returncode, check.stdout + check.stderr) == (0, ""), page
