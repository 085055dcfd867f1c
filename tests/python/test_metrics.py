"""What Prometheus makes of `/metrics`."""

import shutil
import subprocess

import openai
import pytest

from processes import ROOT

PROMTOOL = shutil.which("promtool") or str(ROOT / ".tools/promtool")


def test_promtool_accepts_the_metrics(launch, connect, http):
    if not shutil.which(PROMTOOL):
        pytest.skip("promtool is missing; hint: apt-get install prometheus")
    sim = launch.sim()
    services = {"dependencies": [{"name": "db", "url": f"{sim.url}/health"}]}
    backstop = launch.backstop(sim, health={"interval": "200ms"}, **services)
    client = connect(backstop, max_retries=0)
    chat = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
    client.chat.completions.create(**chat)
    for _ in client.chat.completions.create(stream=True, **chat):
        pass
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**{**chat, "model": "nobody"})
    sim.fault("status", status=500)
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(**chat)
    page = http.get(f"{backstop.admin}/metrics").raise_for_status()
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    check = subprocess.run([PROMTOOL, "check", "metrics"], input=page.text, capture_output=True, text=True)
    assert (check.returncode, check.stdout + check.stderr) == (0, ""), page.text
