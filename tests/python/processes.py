"""The processes that tests talk to: simulated and real model servers, and Backstop between them and the client.

Each listens on a port of its own on loopback, writes to a log file, and is ended by its own process id.
"""

import json
import os
import pathlib
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable

import httpx

ROOT = pathlib.Path(__file__).resolve().parents[2]
BACKSTOP = os.environ.get("BACKSTOP_BIN", str(ROOT / "target/debug/backstop"))
LLAMA_SERVER = str(ROOT / "tests/engines/llama_server.py")

# Every process of this run, so that a failed test can show what they said.
started: list["Process"] = []


def eventually(condition: Callable[[], object], within: float, what: str, every: float = 0.05):
    """Polls until `condition` returns something true, which it returns."""
    deadline = time.monotonic() + within
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within:.0f} s: {what} (last: {result!r})")
        time.sleep(every)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Process:
    def __init__(self, name: str, command: list[str], folder: pathlib.Path):
        self.name = name
        self.command = command
        self.log = folder / f"{name}-{len(started)}.log"
        self.child: subprocess.Popen | None = None
        started.append(self)

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def wait_for(self, pattern: str, within: float, since: int = 0) -> re.Match:
        def look():
            if self.child.poll() is not None:
                raise AssertionError(f"`{self.name}` ended with {self.child.returncode}:\n{self.said()[-4000:]}")
            return re.search(pattern, self.said()[since:])

        return eventually(look, within, f"`{pattern}` in the log of `{self.name}`")

    @property
    def alive(self) -> bool:
        return self.child is not None and self.child.poll() is None

    def signal(self, number: signal.Signals) -> None:
        self.child.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.child.wait(10)

    def stop(self) -> int | None:
        if self.child is None:
            return None
        if self.alive:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            try:
                self.child.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.child.returncode

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class Sim(Process):
    """A simulated model server."""

    engine = "sim"

    def __init__(self, folder: pathlib.Path, *options: str, name: str = "sim"):
        super().__init__(name, [BACKSTOP, "engine-sim", "--listen", "127.0.0.1:0", "--name", name, *options], folder)
        self.start()
        self.url = self.wait_for(r"listening on (\S+)", 30)[1]

    def fault(self, kind: str, **fields) -> None:
        httpx.post(f"{self.url}/sim/faults", json={"kind": kind, **fields}).raise_for_status()

    def clear_faults(self) -> None:
        httpx.delete(f"{self.url}/sim/faults").raise_for_status()

    def stats(self) -> dict:
        return httpx.get(f"{self.url}/sim/stats").raise_for_status().json()

    def requests(self) -> list[dict]:
        """What clients sent, without Backstop's own probes."""
        requests = httpx.get(f"{self.url}/sim/requests").raise_for_status().json()["requests"]
        for request in requests:
            request["headers"] = dict(request["headers"])
        return [r for r in requests if not r["headers"].get("user-agent", "").startswith("backstop-probe")]


class Llama(Process):
    """A real llama.cpp server with a small model, or that of a file. It keeps its port through `restart`."""

    engine = "llama.cpp"

    def __init__(self, folder: pathlib.Path, name: str = "llama", model: pathlib.Path | None = None):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, LLAMA_SERVER, "--port", str(self.port)]
        super().__init__(name, command + (["--model", str(model)] if model else []), folder)
        self.start()

    def ready(self, since: int = 0) -> "Llama":
        self.wait_for(r"listening on http://127\.0\.0\.1:\d+\n", 90, since)
        return self

    def restart(self) -> None:
        since = len(self.said())
        self.start()
        self.ready(since)

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.url}/metrics", timeout=10).raise_for_status().text
        return float(re.search(rf"^llamacpp:{name} (\S+)$", text, re.MULTILINE)[1])


class Identity:
    """Certificate and key of a server on this machine, and the certificate of a private authority."""

    def __init__(self, folder: pathlib.Path):
        folder.mkdir()
        self.ca, self.cert, self.key = (str(folder / f"{name}.pem") for name in ("ca", "cert", "key"))
        ca_key, request, names = folder / "ca-key.pem", folder / "request.pem", folder / "names"
        names.write_text("subjectAltName = IP:127.0.0.1")
        new = ["req", "-newkey", "rsa:2048", "-nodes"]
        self.openssl(*new, "-x509", "-days", "2", "-subj", f"/CN={folder.name}", "-keyout", ca_key, "-out", self.ca)
        self.openssl(*new, "-subj", "/CN=backstop", "-keyout", self.key, "-out", request)
        signed_by = ["-CA", self.ca, "-CAkey", ca_key, "-CAcreateserial"]
        self.openssl("x509", "-req", "-days", "2", "-in", request, *signed_by, "-extfile", names, "-out", self.cert)

    @staticmethod
    def openssl(*arguments) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)


class Backstop(Process):
    """The gateway with one service `chat`, whose one version runs on `servers`, by TLS if it has an `identity`.

    `settings` are the service's, `endpoint` those of each server, `file` those of the whole file.
    """

    engine = "openai"

    def __init__(
        self,
        folder: pathlib.Path,
        servers: list,
        drain: str = "2s",
        file: dict | None = None,
        endpoint: dict | None = None,
        identity: Identity | None = None,
        wait: bool = True,
        **settings,
    ):
        endpoints = [{"url": server.url, "engine": server.engine, **(endpoint or {})} for server in servers]
        service = {"name": "chat", "versions": [{"name": "v1", "endpoints": endpoints}], **settings}
        config = {
            "listen": "127.0.0.1:0",
            "admin": {"listen": "127.0.0.1:0"},
            "store": "memory:",
            "state_dir": str(folder / f"state-{len(started)}"),
            "services": [service],
            **(file or {}),
        }
        if identity:
            config["tls"] = {"cert": identity.cert, "key": identity.key}
        self.trust = ssl.create_default_context(cafile=identity.ca) if identity else True
        path = folder / f"backstop-{len(started)}.yaml"
        # JSON is YAML.
        path.write_text(json.dumps(config, indent=2))
        command = [BACKSTOP, "serve", "-c", str(path), "--log-format", "json", "--drain", drain]
        super().__init__("backstop", command, folder)
        self.config = path
        self.start()
        serving = json.loads(self.wait_for(r'\{[^\n]*"message":"serving"[^\n]*\}\n', 30)[0])
        self.url = f"{'https' if identity else 'http'}://{serving['listen']}"
        self.admin = f"http://{serving['admin']}"
        if wait:
            eventually(self.ready, 30, "Backstop is ready")

    def ready(self) -> bool:
        return httpx.get(f"{self.url}/ready", verify=self.trust).status_code == 200

    def endpoints(self) -> dict[str, dict]:
        """By URL."""
        found = httpx.get(f"{self.admin}/api/v1/endpoints").raise_for_status().json()
        return {endpoint["url"]: endpoint for endpoint in found}

    def state(self, server) -> str:
        return self.endpoints()[server.url]["state"]

    def becomes(self, server, state: str, within: float) -> float:
        """Waits for a state of a server; returns how long that took."""
        began = time.monotonic()
        eventually(lambda: self.state(server) == state, within, f"`{server.name}` is {state}", every=0.1)
        return time.monotonic() - began

    def totals(self) -> dict:
        return httpx.get(f"{self.admin}/api/v1/services").raise_for_status().json()["totals"]
