"""Releases between real llama.cpp servers, under the traffic of the official SDK.

What is compared are rates of events, not times: on a busy machine real models are as slow as it pleases them.
"""

import contextlib
import json
import pathlib
import random
import struct
import subprocess
import sys
import threading

import pytest

from processes import BACKSTOP, LLAMA_SERVER, Backstop, Llama, eventually

sys.path.append(str(pathlib.Path(LLAMA_SERVER).parent))
from llama_server import model_path

# Each of them the sound model answers in ten tokens or less, by itself.
PROMPTS = ["What is 2+2? Answer with one number.", "Name one animal.", "Name a fruit."]
MOST_TOKENS = 16

RATES = [{"metric": "error_rate"}, {"metric": "empty_rate"}, {"metric": "length_rate"}]
QUICK = {
    "steps": [{"weight": "50%", "hold": "1s", "min_requests": 10}, {"weight": "100%", "min_requests": 5}],
    "bake": "1s",
    "warmup": "0s",
    "guardrails": RATES,
}
# It stays at the first step: what ends it is the version itself.
HALF = {**QUICK, "steps": [{"weight": "50%", "hold": "1h"}, {"weight": "100%"}], "verify": "2s"}
HEALTH = {"interval": "500ms", "timeout": "2s", "slow_start": "0s"}
# So long a new version's bad answers wait before they count, since an old one's may be so late.
TIMEOUTS = {"first_token": "5s", "inter_token": "10s", "response": "30s"}


class Traffic:
    """Clients that ask until the end of the block, each after its last answer, half of them for streams."""

    def __init__(self, connect, gateway):
        # Without attempts of its own: what fails here was lost.
        self.client = connect(gateway, max_retries=0, timeout=60)
        self.answers: list[tuple[str, str, str]] = []
        self.lost: list[Exception] = []
        self.done = threading.Event()
        self.threads = [threading.Thread(target=self.ask_on, args=[number]) for number in range(4)]

    def ask(self, prompt: str, stream: bool) -> tuple[str, str, str]:
        """Version, text and why it ended."""
        raw = self.client.chat.completions.with_raw_response.create(
            model="chat",
            messages=[{"role": "user", "content": prompt}],
            temperature=0,
            max_tokens=MOST_TOKENS,
            stream=stream,
        )
        answer = raw.parse()
        version = raw.headers["x-backstop-version"]
        if not stream:
            (choice,) = answer.choices
            return version, choice.message.content, choice.finish_reason
        choices = [choice for chunk in answer for choice in chunk.choices]
        return version, "".join(choice.delta.content or "" for choice in choices), choices[-1].finish_reason

    def ask_on(self, number: int) -> None:
        rng = random.Random(number)
        while not self.done.is_set():
            try:
                self.answers.append(self.ask(rng.choice(PROMPTS), stream=number % 2 == 0))
            except Exception as error:
                self.lost.append(error)

    def by(self, version: str) -> list[tuple[str, str]]:
        return [(text, reason) for name, text, reason in list(self.answers) if name == version]

    def __enter__(self) -> "Traffic":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def stop(self) -> None:
        """Everybody has had whole answers, whichever version gave them."""
        self.done.set()
        for thread in self.threads:
            thread.join(90)
        assert not self.lost, self.lost
        assert all(reason in ("stop", "length") for _, _, reason in self.answers), self.answers


class Released(Backstop):
    """Backstop with two versions, `v1` on some servers and `v2` on others, or on the same ones with another request."""

    def __init__(
        self, folder, stable: list, canary: list, release: dict, request: dict | None = None, **settings
    ):
        def version(name: str, servers: list) -> dict:
            return {"name": name, "endpoints": [{"url": it.url, "engine": it.engine} for it in servers]}

        versions = [version("v1", stable), {**version("v2", canary), "request": request or {}}]
        settings = {"health": HEALTH, "timeouts": TIMEOUTS, **settings}
        super().__init__(folder, [], versions=versions, release=release, **settings)

    def order(self, *command: str) -> str:
        run = [BACKSTOP, "release", *command, "--admin", self.admin]
        done = subprocess.run(run, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def status(self) -> dict:
        return json.loads(self.order("status", "chat", "--json"))

    def comes_to(self, phase: str, within: float) -> dict:
        def look():
            status = self.status()
            assert status["phase"] == phase or not status["ended"], status
            return status if status["phase"] == phase else None

        return eventually(look, within, f"the release is {phase}", every=0.25)


# How most tensors are stored: in blocks of 32 weights, with 4 bytes of scale and 16 of weights.
Q4_1, BLOCK, SCALE = 3, 20, 4


def cut(data: bytearray) -> bytearray:
    """As after a download that did not end."""
    return data[: len(data) // 2]


def scrambled(data: bytearray) -> bytearray:
    """Random weights in one layer, on the scale of the right ones: it loads, and no check sees anything wrong."""
    tensors, begin = tensors_of(data)
    rng = random.Random(20261122)
    for (name, kind, offset), (_, _, end) in zip(tensors, tensors[1:]):
        if name.startswith("blk.1.") and kind == Q4_1:
            for byte in range(SCALE, BLOCK):
                place = slice(begin + offset + byte, begin + end, BLOCK)
                data[place] = rng.randbytes(len(data[place]))
    return data


def tensors_of(data: bytearray) -> tuple[list[tuple[str, int, int]], int]:
    """Name, type and offset of each tensor, and where the offsets begin. The list of them comes right before the
    data; it is found by the name of the first, so that what the file has before it need not be understood."""
    (count,) = struct.unpack_from("<Q", data, 8)
    at = data.find(b"token_embd.weight") - 8
    tensors = []
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", data, at)
        name = data[at + 8 : at + 8 + length].decode()
        at += 8 + length
        (dimensions,) = struct.unpack_from("<I", data, at)
        at += 4 + 8 * dimensions
        tensors.append((name, *struct.unpack_from("<IQ", data, at)))
        at += 12
    return tensors, (at + 31) // 32 * 32


@pytest.fixture
def damaged(tmp_path):
    """Makes damaged copies of the model, which are too large to be kept."""
    made = []

    def damaged(damage) -> pathlib.Path:
        made.append(tmp_path / f"{damage.__name__}.gguf")
        made[-1].write_bytes(damage(bytearray(pathlib.Path(model_path()).read_bytes())))
        return made[-1]

    yield damaged
    for path in made:
        path.unlink()


@pytest.fixture
def release(tmp_path, connect, llama_pair):
    """Begins a release under traffic. It needs `llama_pair`, whose end waits for idle servers, to end before that."""
    with contextlib.ExitStack() as stack:

        def release(*servers, **settings) -> tuple[Released, Traffic]:
            gateway = stack.enter_context(Released(tmp_path, *servers, **settings))
            traffic = stack.enter_context(Traffic(connect, gateway))
            eventually(lambda: traffic.by("v1"), 60, "the old version answers")
            gateway.order("start", "chat", "--to", "v2")
            return gateway, traffic

        yield release


def sent_back_by(metric: str, gateway: Released, traffic: Traffic) -> None:
    """It goes back because of this metric and no other, the report says so, and then it gets nothing any more."""
    status = gateway.comes_to("rolled back", within=90)
    assert status["cause"].startswith(f"regressed: {metric}"), status
    report = gateway.order("report", "chat")
    assert f"v2 was sent back (regressed: {metric}" in report
    told = [line.split(" | ") for line in report.splitlines() if "| **regressed** |" in line]
    assert [line[0] for line in told] == [f"| {metric}"], report
    only_the_old_one(traffic)


def only_the_old_one(traffic: Traffic) -> None:
    traffic.stop()
    for stream in (False, True) * 3:
        version, text, reason = traffic.ask(PROMPTS[0], stream)
        assert (version, reason) == ("v1", "stop") and text


def test_as_good_is_promoted(release, llama_pair):
    gateway, traffic = release(llama_pair[:1], llama_pair[1:], release=QUICK)
    gateway.comes_to("promoted", within=90)
    assert "v2 took the place of v1" in gateway.order("report", "chat")
    assert traffic.ask(PROMPTS[0], stream=False)[0] == "v2"
    assert set(traffic.by("v1")) & set(traffic.by("v2")), "the same text from both"


def test_a_file_that_does_not_load_gets_nothing(release, llama_pair, damaged, tmp_path):
    """The server never comes up, so there is nothing to compare; the release gives up when it is too old."""
    with Llama(tmp_path, "never-up", model=damaged(cut)) as broken:
        assert broken.child.wait(60) != 0 and "model is corrupted or incomplete" in broken.said()
        gateway, traffic = release(llama_pair[:1], [broken], release={**QUICK, "max_age": "3s", "verify": "2s"})
        waiting = gateway.status()
        assert (waiting["phase"], waiting["share"]) == ("waiting", 0), waiting
        gateway.comes_to("rolled back", within=60)
        assert not traffic.by("v2")
        report = gateway.order("report", "chat")
        assert "v2 is held up: v2 is not ready" in report and "v2 was sent back (expired)" in report, report


def test_a_file_that_does_not_load_any_more_is_a_hard_stop(release, llama_pair, damaged, tmp_path):
    """The file is overwritten under a running server, which then starts anew: nobody waits for statistics."""
    with Llama(tmp_path, "in-place") as server:
        server.ready()
        # Errors wait for `first_token` before they count, so that it is not they that tell.
        timeouts = {**TIMEOUTS, "first_token": "30s"}
        gateway, traffic = release(llama_pair[:1], [server], release=HALF, timeouts=timeouts)
        eventually(lambda: traffic.by("v2"), 60, "the new version answers")
        server.kill()
        server.command += ["--model", str(damaged(cut))]
        server.start()
        status = gateway.comes_to("rolled back", within=90)
        assert server.child.wait(30) != 0 and "model is corrupted or incomplete" in server.said()
        # Depending on when it is looked at: it refuses connections, or fails while it loads.
        assert status["cause"].startswith("hard stop: none of its endpoints can serve: "), status
        assert status["cause"] in gateway.order("report", "chat")
        only_the_old_one(traffic)


def test_rubbish_is_sent_back(release, llama_pair, damaged, tmp_path):
    """It answers 200, in time, with text. What tells is the length: random weights do not find the one token of 49,152
    that ends an answer, so each goes on until `max_tokens`, where the sound model ends by itself."""
    with Llama(tmp_path, "scrambled", model=damaged(scrambled)) as server:
        server.ready()
        gateway, traffic = release(llama_pair[:1], [server], release={**HALF, "verify": "60s"})
        sent_back_by("length_rate", gateway, traffic)
        assert "v1 is as well as before the release" in gateway.order("report", "chat")
        states = {endpoint["state"] for endpoint in gateway.endpoints().values()}
        assert states <= {"healthy", "draining", "isolated"}, "no check has seen anything"
    assert not set(traffic.by("v1")) & set(traffic.by("v2")), "what it said was rubbish"


@pytest.mark.parametrize(
    "metric, change",
    [
        ("length_rate", {"system": "You are a poet. Answer with a long poem."}),
        # Someone wanted short answers: the token that ends one, 2, is always the likeliest.
        ("empty_rate", {"params": {"logit_bias": {"2": 100}}}),
    ],
    ids=["endless", "empty"],
)
def test_a_prompt_is_released_like_a_model(release, llama_pair, metric, change):
    """The same servers for both versions: only what it is asked differs."""
    gateway, traffic = release(llama_pair, llama_pair, release=HALF, request=change)
    sent_back_by(metric, gateway, traffic)
