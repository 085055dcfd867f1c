"""Real llama.cpp servers behind Backstop. At temperature 0 the same request gives the same text, so what a client
gets through Backstop must be what a server says when it is asked directly."""

import contextlib
import json
import os
import random
import signal
import threading
import time

import httpx
import openai
import pytest

from processes import Backstop, eventually

PROMPTS = ["Name three colours.", "What is a river?", "Count from one to five."]
# Small, and by default much quicker than a real operator would set it.
HEALTH = {"interval": "500ms", "timeout": "500ms", "stall": "3s", "slow_start": "0s"}


def ask(client, prompt=PROMPTS[0], tokens=16, stream=False, **extra) -> str:
    answer = client.chat.completions.create(
        model="chat",
        messages=[{"role": "user", "content": prompt}],
        temperature=0,
        max_tokens=tokens,
        stream=stream,
        # The text must not depend on what the server was asked before.
        extra_body={"cache_prompt": False, **extra},
    )
    if not stream:
        return answer.choices[0].message.content
    chunks = list(answer)
    assert chunks[-1].choices[0].finish_reason
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


@pytest.fixture(scope="session")
def expected(llamas):
    """What a server says by itself."""
    with openai.OpenAI(base_url=f"{llamas[0].url}/v1", api_key="unused") as client:
        return {prompt: ask(client, prompt) for prompt in PROMPTS}


@pytest.fixture
def gateway(tmp_path, llama_pair):
    """Backstop before both servers; a fault means another endpoint soon, not after the two minutes of the default."""
    timeouts = {"first_token": "8s", "inter_token": "8s", "response": "12s"}
    with Backstop(tmp_path, llama_pair, health=HEALTH, balance="round_robin", timeouts=timeouts) as backstop:
        for server in llama_pair:
            backstop.becomes(server, "healthy", within=30)
        yield backstop


@pytest.fixture
def client(connect, gateway):
    """Without attempts of its own: what fails here was lost."""
    return connect(gateway, max_retries=0, timeout=60)


@contextlib.contextmanager
def watching(gateway):
    """Yields a list that collects every state in which an endpoint is seen."""
    seen, done = [], threading.Event()

    def watch():
        with httpx.Client() as http:
            while not done.wait(0.1):
                for endpoint in http.get(f"{gateway.admin}/api/v1/endpoints").json():
                    seen.append((endpoint["url"], endpoint["state"], endpoint["reason"]))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("stream", [False, True])
def test_same_text_as_asked_directly(client, gateway, expected, stream):
    for prompt, text in expected.items():
        assert [ask(client, prompt, stream=stream) for _ in range(2)] == [text] * 2
    assert all(endpoint["requests"] >= 3 for endpoint in gateway.endpoints().values())


def test_usage_at_the_end_of_a_stream(client):
    messages = [{"role": "user", "content": PROMPTS[0]}]
    options = {"include_usage": True}
    stream = client.chat.completions.create(
        model="chat", messages=messages, max_tokens=5, stream=True, stream_options=options
    )
    last = list(stream)[-1]
    assert last.choices == [] and last.usage.completion_tokens == 5


def test_killed_between_requests(client, gateway, llama_pair, expected):
    victim, other = llama_pair
    ask(client), ask(client)
    victim.kill()
    for number in range(10):
        prompt = PROMPTS[number % len(PROMPTS)]
        for stream in (False, True):
            assert ask(client, prompt, stream=stream) == expected[prompt], (number, stream)
    gateway.becomes(victim, "unhealthy", within=10)
    assert gateway.state(other) == "healthy"
    totals = gateway.totals()
    assert (totals["failed"], totals["cut"]) == (0, 0)

    victim.restart()
    gateway.becomes(victim, "healthy", within=15)
    before = gateway.endpoints()[victim.url]["requests"]

    def served_again():
        assert ask(client) == expected[PROMPTS[0]]
        return gateway.endpoints()[victim.url]["requests"] > before

    # The breaker may still be open for its ten seconds.
    eventually(served_again, 30, "the restarted server serves again")


KILLS = int(os.environ.get("KILLS", "4"))


@pytest.mark.timeout(60 + 30 * KILLS)
def test_killed_in_the_middle_of_a_stream(client, connect, gateway, llama_pair, record_property):
    """The client gets one complete answer: what it had, and then exactly what the other server says to that."""
    rng = random.Random(20261122)
    gaps = []
    for cut in [rng.randrange(5, 290) for _ in range(KILLS)]:
        began = len(gateway.said())
        stream = client.chat.completions.create(
            model="chat",
            messages=[{"role": "user", "content": PROMPTS[1]}],
            temperature=0,
            max_tokens=300,
            stream=True,
            extra_body={"cache_prompt": False, "ignore_eos": True},
        )
        pieces, times, victim = [], [], None
        for chunk in stream:
            pieces.append(chunk.choices[0].delta.content or "")
            times.append(time.monotonic())
            if len(pieces) == cut:
                victim = next(server for server in llama_pair if server.metric("requests_processing") >= 1)
                victim.kill()
                killed = time.monotonic()
        text = "".join(pieces)
        assert chunk.choices[0].finish_reason == "length"
        (resumed,) = [json.loads(line) for line in gateway.said()[began:].splitlines() if '"stream resumed"' in line]
        assert (resumed["mode"], resumed["from"]) == ("continue", victim.url)
        prefix = text[: resumed["characters"]]
        (other,) = [server for server in llama_pair if server is not victim]
        # As a stream, too: in one piece llama.cpp repeats the beginning.
        direct = connect(other).chat.completions.create(
            model="chat",
            messages=[{"role": "user", "content": PROMPTS[1]}, {"role": "assistant", "content": prefix}],
            temperature=0,
            max_tokens=300 - resumed["tokens"],
            stream=True,
            extra_body={"cache_prompt": False, "ignore_eos": True},
        )
        direct = "".join(chunk.choices[0].delta.content or "" for chunk in direct)
        assert text == prefix + direct, (cut, resumed)
        assert "<|im" not in text
        gaps.append(next(at for at in times if at > killed + 0.005) - killed)
        victim.restart()
        gateway.becomes(victim, "healthy", within=15)
    # For information: from the kill to the next token.
    record_property("gaps", gaps)
    print("seconds from the kill to the next token:", [round(gap, 3) for gap in gaps])
    totals = gateway.totals()
    assert (totals["failed"], totals["cut"]) == (0, 0)


def test_frozen(client, gateway, llama_pair, expected):
    """The process is there and the port is open, but nothing answers."""
    victim, other = llama_pair
    ask(client), ask(client)
    victim.signal(signal.SIGSTOP)
    marked = threading.Event()

    def wait_for_mark():
        gateway.becomes(victim, "unhealthy", within=15)
        marked.set()

    watcher = threading.Thread(target=wait_for_mark)
    watcher.start()
    try:
        for number in range(4):
            stream = number % 2 == 0
            assert ask(client, stream=stream) == expected[PROMPTS[0]]
        watcher.join()
        assert marked.is_set(), "not marked within the limit"
        assert gateway.state(other) == "healthy"
        before = gateway.endpoints()[victim.url]["requests"]
        for _ in range(4):
            assert ask(client) == expected[PROMPTS[0]]
        assert gateway.endpoints()[victim.url]["requests"] == before
    finally:
        victim.signal(signal.SIGCONT)
        watcher.join()
    gateway.becomes(victim, "healthy", within=30)
    totals = gateway.totals()
    assert (totals["failed"], totals["cut"]) == (0, 0)


def test_frozen_within_an_answer(client, gateway, llama_pair, expected):
    """A plain answer under way is given by the other server."""
    victim, _ = llama_pair
    texts = []

    def long():
        texts.append(ask(client, tokens=60, ignore_eos=True))

    # In turn, so one of the two is on the victim.
    threads = [threading.Thread(target=long) for _ in range(2)]
    for thread in threads:
        thread.start()
    eventually(lambda: victim.metric("requests_processing") >= 1, 20, "the victim works", every=0.01)
    victim.signal(signal.SIGSTOP)
    try:
        for thread in threads:
            thread.join(60)
        assert len(texts) == 2 and texts[0].startswith(expected[PROMPTS[0]][:10])
        gateway.becomes(victim, "unhealthy", within=15)
    finally:
        victim.signal(signal.SIGCONT)
    gateway.becomes(victim, "healthy", within=30)


def test_idle_is_not_stalled(client, gateway):
    ask(client), ask(client)
    with watching(gateway) as seen:
        # Longer than the limit for stalls.
        time.sleep(5)
    assert {state for _, state, _ in seen} == {"healthy"}, seen


@pytest.mark.parametrize("stream", [False, True])
def test_slow_is_not_stalled(tmp_path, llama_pair, connect, stream):
    """A long answer takes several times as long as the limit for stalls."""
    health = {**HEALTH, "stall": "1s"}
    timeouts = {"first_token": "60s", "inter_token": "60s", "response": "120s"}
    with Backstop(tmp_path, llama_pair[:1], health=health, timeouts=timeouts) as gateway:
        client = connect(gateway, max_retries=0, timeout=120)
        with watching(gateway) as seen:
            began = time.monotonic()
            assert ask(client, tokens=300, stream=stream, ignore_eos=True)
            took = time.monotonic() - began
        assert {state for _, state, _ in seen} == {"healthy"}, seen
        totals = gateway.totals()
        assert (totals["retries"], totals["failed"], totals["cut"]) == (0, 0, 0)
        # Else this has shown nothing.
        assert took > 2.0


def test_client_gone(gateway, llama_pair):
    """The server stops working on a stream that nobody reads. (Of a plain answer this server notices nothing until
    it is written, whoever closes the connection; test_errors.py shows that Backstop does close it.)"""
    tokens = 1500
    body = {
        "model": "chat",
        "messages": [{"role": "user", "content": PROMPTS[1]}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
    }

    def total(metric: str) -> float:
        return sum(server.metric(metric) for server in llama_pair)

    before = total("n_decode_total")
    with httpx.Client(timeout=60) as http, http.stream("POST", f"{gateway.url}/v1/chat/completions", json=body) as answer:
        lines = answer.iter_lines()
        for _ in range(10):
            next(lines)
        assert total("requests_processing") == 1
    eventually(lambda: total("requests_processing") == 0, 20, "no server works any more")
    # It was stopped, not finished.
    assert total("n_decode_total") - before < tokens - 100
    eventually(lambda: gateway.totals()["cancelled"] == 1, 10, "counted as cancelled")
    assert {endpoint["state"] for endpoint in gateway.endpoints().values()} == {"healthy"}
    assert gateway.totals()["failed"] == 0
