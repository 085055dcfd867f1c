"""What the official SDK makes of everything that can go wrong, and that it does not hammer a server in trouble.

The SDK tries again by itself after 408, 409, 429 and 5xx. Once Backstop has spent its own attempts it says so, and
the SDK obeys: the server sees Backstop's attempts and no more.
"""

import json
import time

import httpx
import openai
import pytest

from processes import eventually

MESSAGES = [{"role": "user", "content": "Tell me about rivers."}]
# Of the configuration in conftest.py: one attempt and two more.
ATTEMPTS = 3


def chat(client, **options):
    return client.chat.completions.create(**{"model": "chat", "messages": MESSAGES, **options})


def check(error: openai.APIStatusError, status: int, code: str | None) -> None:
    """Every field that clients look at is there."""
    assert error.status_code == status
    assert error.code == code
    assert error.message
    body = error.response.json()["error"]
    assert set(body) >= {"message", "type", "param", "code"}
    assert body["message"] and body["type"]


def fails(kind: type[openai.APIStatusError], status: int, code: str | None, client, **options):
    with pytest.raises(openai.APIStatusError) as caught:
        chat(client, **options)
    assert type(caught.value) is kind
    check(caught.value, status, code)
    return caught.value


# The client's mistakes: answered by Backstop, never sent on.


def test_unknown_model(client, sim):
    error = fails(openai.NotFoundError, 404, "model_not_found", client, model="chatt")
    assert error.param == "model"
    assert "chatt" in error.message and "chat" in error.message
    assert sim.requests() == []


@pytest.mark.parametrize("model", [None, 7, ["chat"]])
def test_model_of_the_wrong_kind(client, sim, model):
    error = fails(openai.BadRequestError, 400, "invalid_request_body", client, model=model)
    assert error.param == "model"
    assert sim.requests() == []


def test_missing_model(client, sim):
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", cast_to=object, body={"messages": MESSAGES})
    check(caught.value, 400, "invalid_request_body")
    assert caught.value.param == "model"
    assert sim.requests() == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"model":"chat"}x',
        b'{"model":"ch\xffat"}',
        b'{"model":"chat","a":NaN}',
        b"[" * 100_000,
    ],
    ids=lambda body: repr(body[:20]),
)
def test_malformed_body(client, sim, body):
    with pytest.raises(openai.BadRequestError) as caught:
        headers = {"content-type": "application/json"}
        client.post("/chat/completions", cast_to=object, content=body, options={"headers": headers})
    check(caught.value, 400, "invalid_request_body")
    assert sim.requests() == []


def test_wrong_method(backstop, sim, http):
    answer = http.get(f"{backstop.url}/v1/chat/completions")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert answer.json()["error"]["code"] == "method_not_allowed"
    assert sim.requests() == []


def test_unknown_path(connect, backstop):
    client = connect(backstop).with_options(base_url=f"{backstop.url}/api")
    fails(openai.NotFoundError, 404, "unknown_path", client)


def test_wrong_content_type(client, sim):
    for name, value in [("type", "text/plain"), ("encoding", "gzip")]:
        headers = {f"content-{name}": value}
        fails(openai.APIStatusError, 415, f"unsupported_content_{name}", client, extra_headers=headers)
    assert sim.requests() == []


@pytest.mark.parametrize("size", [17 << 20, 40 << 20])
def test_too_large(client, sim, size):
    messages = [{"role": "user", "content": "x" * size}]
    fails(openai.APIStatusError, 413, "request_too_large", client, messages=messages)
    assert sim.requests() == []
    # And the next one, perhaps on the same connection, is fine.
    assert chat(client, max_tokens=2).choices[0].message.content


def test_just_below_too_large(client, sim):
    size = (16 << 20) - 4096
    answer = chat(client, messages=[{"role": "user", "content": "x" * size}], max_tokens=2)
    assert answer.choices[0].message.content
    assert len(sim.requests()[-1]["body"]) > size


# The server's refusals are the client's business: passed on as they are, and never repeated.


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, openai.BadRequestError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (413, openai.APIStatusError),
        (422, openai.UnprocessableEntityError),
    ],
)
def test_refused_by_the_server(client, sim, status, kind, stream):
    sim.fault("status", status=status, message="not like this")
    with pytest.raises(openai.APIStatusError) as caught:
        chat(client, stream=stream)
    assert type(caught.value) is kind
    assert caught.value.status_code == status
    assert "not like this" in caught.value.message
    assert len(sim.requests()) == 1


# The server's troubles: repeated by Backstop, then reported once.


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (502, openai.InternalServerError),
        (503, openai.InternalServerError),
        (504, openai.InternalServerError),
        (529, openai.InternalServerError),
    ],
)
def test_status_everywhere(client, sim, status, kind, stream):
    sim.fault("status", status=status, message="out of order")
    with pytest.raises(openai.APIStatusError) as caught:
        chat(client, stream=stream)
    error = caught.value
    assert type(error) is kind
    assert error.status_code == status
    assert "out of order" in error.message
    assert set(error.response.json()["error"]) >= {"message", "type", "param", "code"}
    assert error.response.headers["x-should-retry"] == "false"
    assert int(error.response.headers["x-backstop-attempts"]) == len(sim.requests()) <= ATTEMPTS


def test_retry_after_is_passed_on(client, sim):
    sim.fault("status", status=429, retry_after=120)
    began = time.monotonic()
    with pytest.raises(openai.RateLimitError) as caught:
        chat(client)
    assert caught.value.response.headers["retry-after"] == "120"
    assert time.monotonic() - began < 60
    assert len(sim.requests()) == int(caught.value.response.headers["x-backstop-attempts"])


def test_keys_of_the_operator_are_no_business_of_the_client(client, sim):
    """The server's 401 is about Backstop's key, not about the client's."""
    sim.fault("status", status=401, message="bad key sk-operator")
    error = fails(openai.InternalServerError, 502, "upstream_credentials", client)
    assert "sk-operator" not in error.response.text
    assert len(sim.requests()) <= ATTEMPTS


@pytest.mark.parametrize("stream", [False, True])
def test_one_good_server_is_enough(launch, connect, stream):
    bad, good = launch.sim(name="bad"), launch.sim(name="good")
    client = connect(launch.backstop(bad, good, balance="round_robin"), max_retries=0)
    expected = chat(connect(good)).choices[0].message.content
    for fault in [
        {"kind": "status", "status": 500},
        {"kind": "status", "status": 503},
        {"kind": "status", "status": 429},
        {"kind": "hangup", "how": "rst"},
        {"kind": "hangup", "how": "fin"},
        {"kind": "cut", "after": 0, "how": "rst"},
        {"kind": "cut", "after": 0, "how": "fin"},
        {"kind": "cut", "after": 0, "how": "end"},
        {"kind": "error_event", "after": 0},
        {"kind": "garbage", "after": 0},
    ]:
        bad.fault(**fault)
        for _ in range(4):
            answer = chat(client, stream=stream)
            if stream:
                text = "".join(c.choices[0].delta.content or "" for c in answer if c.choices)
            else:
                text = answer.choices[0].message.content
            assert text == expected, fault
        bad.clear_faults()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("how", ["fin", "rst"])
def test_connection_lost(client, sim, how, stream):
    sim.fault("hangup", how=how)
    error = fails(openai.InternalServerError, 502, "upstream_disconnected", client, stream=stream)
    assert int(error.response.headers["x-backstop-attempts"]) == ATTEMPTS
    assert len(sim.requests()) == ATTEMPTS


@pytest.mark.parametrize("how", ["fin", "rst", "end"])
def test_plain_answer_cut_short(client, sim, how):
    sim.fault("cut", after=3, how=how)
    with pytest.raises(openai.InternalServerError) as caught:
        chat(client)
    assert caught.value.status_code == 502
    check(caught.value, 502, caught.value.code)
    assert caught.value.code in {"upstream_disconnected", "upstream_malformed_answer"}
    assert len(sim.requests()) == ATTEMPTS


def test_plain_answer_of_garbage(client, sim):
    sim.fault("garbage", after=3)
    fails(openai.InternalServerError, 502, "upstream_malformed_answer", client)


def test_nothing_listens(launch, connect, sim):
    backstop = launch.backstop(sim, health={"interval": "500ms"})
    sim.kill()
    began = time.monotonic()
    client = connect(backstop, max_retries=0)
    with pytest.raises(openai.InternalServerError) as caught:
        chat(client)
    assert caught.value.status_code in {502, 503}
    check(caught.value, caught.value.status_code, caught.value.code)
    backstop.becomes(sim, "unhealthy", within=30)
    error = fails(openai.InternalServerError, 503, "no_healthy_endpoint", client)
    assert int(error.response.headers["retry-after"]) >= 1
    assert httpx.get(f"{backstop.url}/ready").status_code == 503
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(("stream", "code"), [(False, "response_timeout"), (True, "first_token_timeout")])
def test_silent_server(launch, connect, sim, stream, code):
    """Asked once: waiting for the same silence again would only double the wait."""
    backstop = launch.backstop(sim, timeouts={"first_token": "1s", "response": "1s"})
    sim.fault("no_answer")
    fails(openai.InternalServerError, 504, code, connect(backstop), stream=stream)
    assert len(sim.requests()) == 1
    eventually(lambda: sim.stats()["in_flight"] == 0, 10, "the server has been told to stop")


@pytest.mark.parametrize("stream", [False, True])
def test_silent_server_and_a_good_one(launch, connect, stream):
    silent, good = launch.sim(name="silent"), launch.sim(name="good")
    timeouts = {"first_token": "1s", "response": "1s"}
    client = connect(launch.backstop(silent, good, balance="round_robin", timeouts=timeouts), max_retries=0)
    silent.fault("no_answer")
    for _ in range(4):
        answer = chat(client, stream=stream, max_tokens=3)
        assert list(answer) if stream else answer.choices[0].message.content


def test_total_timeout(launch, connect):
    sim = launch.sim("--itl", "100ms", "--tokens", "1000")
    backstop = launch.backstop(sim, timeouts={"total": "2s"})
    fails(openai.InternalServerError, 504, "total_timeout", connect(backstop))
    with pytest.raises(openai.APIError) as caught:
        list(chat(connect(backstop), stream=True))
    assert caught.value.code == "total_timeout"


def test_clients_own_timeout(client, backstop, sim):
    """The client gives up: the work is cancelled, and the server is not blamed."""
    sim.fault("no_answer")
    with pytest.raises(openai.APITimeoutError):
        chat(client.with_options(timeout=0.5, max_retries=0))
    eventually(lambda: sim.stats()["in_flight"] == 0, 10, "the server has been told to stop")
    eventually(lambda: backstop.totals()["cancelled"] == 1, 10, "counted as cancelled")
    assert backstop.state(sim) == "healthy"


# Within a stream.


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ({"kind": "cut", "after": 3, "how": "fin"}, "upstream_disconnected"),
        ({"kind": "cut", "after": 3, "how": "rst"}, "upstream_disconnected"),
        ({"kind": "cut", "after": 3, "how": "fin", "mid_event": True}, "upstream_disconnected"),
        ({"kind": "cut", "after": 3, "how": "end"}, "upstream_truncated"),
        ({"kind": "cut", "after": 3, "how": "end", "mid_event": True}, "upstream_truncated"),
        ({"kind": "error_event", "after": 3}, "upstream_stream_error"),
        ({"kind": "invalid_event", "after": 3}, "upstream_malformed_event"),
        ({"kind": "garbage", "after": 3}, "upstream_malformed_event"),
        ({"kind": "stall", "after": 3}, "upstream_stalled"),
    ],
    ids=lambda value: "-".join(str(v) for v in value.values()) if isinstance(value, dict) else "",
)
def test_error_within_a_stream(launch, connect, fault, code):
    # A token at a time, so that what came before the fault has been delivered.
    sim = launch.sim("--itl", "20ms")
    backstop = launch.backstop(sim, timeouts={"inter_token": "1s"})
    client = connect(backstop)
    whole = chat(connect(sim)).choices[0].message.content
    before = len(sim.requests())
    sim.fault(**fault)
    text = ""
    with pytest.raises(openai.APIError) as caught:
        for chunk in chat(client, stream=True):
            if chunk.choices:
                assert chunk.choices[0].finish_reason is None
                text += chunk.choices[0].delta.content or ""
    assert caught.value.code == code
    assert caught.value.message
    assert whole.startswith(text) and text != whole
    assert len(sim.requests()) == before + 1


@pytest.mark.parametrize("fault", ["cut", "error_event", "stall", "garbage"])
def test_bytes_of_a_failed_stream(launch, http, fault):
    """Whole events only, a valid error event at the end, no `[DONE]`, and a body that ends properly."""
    sim = launch.sim("--itl", "20ms")
    backstop = launch.backstop(sim, timeouts={"inter_token": "1s"})
    sim.fault(fault, after=3)
    body = {"model": "chat", "messages": MESSAGES, "stream": True}
    answer = http.post(f"{backstop.url}/v1/chat/completions", json=body)
    assert answer.status_code == 200
    events = answer.text.split("\n\n")
    assert events.pop() == ""
    data = [json.loads(event.removeprefix("data: ")) for event in events]
    assert "[DONE]" not in answer.text
    assert [("error" in item) for item in data] == [False] * (len(data) - 1) + [True]
    assert set(data[-1]["error"]) >= {"message", "type", "param", "code"}


def test_missing_end_mark_is_no_error(client, direct, sim):
    """A stream with a finish reason is complete."""
    expected = chat(direct).choices[0].message.content
    sim.fault("no_done")
    chunks = list(chat(client, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == expected
    assert chunks[-1].choices[0].finish_reason


def test_fault_that_passes(client, direct, sim):
    """One failure, and the next attempt brings the answer: the client sees nothing of it."""
    expected = chat(direct).choices[0].message.content
    sim.fault("status", status=500, times=1)
    raw = client.chat.completions.with_raw_response.create(model="chat", messages=MESSAGES)
    assert raw.headers["x-backstop-attempts"] == "2"
    assert raw.parse().choices[0].message.content == expected
