"""More than is allowed or can be done, as the official SDK sees it: the right error, and a wait that is worth it."""

import concurrent.futures

import httpx
import openai
import pytest

from processes import eventually
from test_access import CHAT, key


def limited(launch, server, **limits):
    return launch.backstop(server, file={"keys": [key("a", "sk-a", limits=limits)]})


def waiting(backstop) -> int:
    page = httpx.get(f"{backstop.admin}/metrics").raise_for_status().text
    (line,) = [line for line in page.splitlines() if line.startswith("backstop_admission_queue_length{")]
    return int(line.split()[-1])


def test_beyond_a_rate_limit(launch, sim, connect):
    backstop = limited(launch, sim, requests_per_minute=1)
    client = connect(backstop, api_key="sk-a", max_retries=0)
    raw = client.chat.completions.with_raw_response.create(**CHAT)
    assert raw.headers["x-ratelimit-limit-requests"] == "1"
    assert raw.headers["x-ratelimit-remaining-requests"] == "0"
    assert raw.headers["x-ratelimit-reset-requests"].endswith("s")
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(**CHAT)
    error = caught.value
    assert (error.code, error.type) == ("rate_limit_exceeded", "rate_limit_error")
    assert "this API key reached: 1 requests per minute" in error.message
    assert 1 <= int(error.response.headers["retry-after"]) <= 60
    assert len(sim.requests()) == 1


def test_the_sdk_comes_back_when_it_is_told_to(launch, sim, connect):
    backstop = limited(launch, sim, requests_per_minute=30)
    client = connect(backstop, api_key="sk-a", max_retries=0)
    with pytest.raises(openai.RateLimitError) as caught:
        while True:
            client.chat.completions.create(**CHAT)
    assert 0 < int(caught.value.response.headers["retry-after-ms"]) <= 2000, "one comes in every two seconds"
    # Once is enough. By its own rules it would come again after half a second, which is too soon.
    again = client.with_options(max_retries=1).chat.completions.create(**CHAT)
    assert again.choices[0].message.content


def test_a_request_that_never_fits_is_sent_once(launch, sim, connect):
    backstop = limited(launch, sim, tokens_per_minute=100)
    with pytest.raises(openai.BadRequestError) as caught:
        connect(backstop, api_key="sk-a").chat.completions.create(**CHAT, max_tokens=1000)
    assert caught.value.code == "request_exceeds_rate_limit"
    assert backstop.totals()["refused"] == 1 and not sim.requests()


def test_an_overload_is_an_error_that_passes(launch, sim, connect):
    backstop = launch.backstop(sim, admission={"limit": 1, "queue": 0})
    client = connect(backstop, max_retries=0)
    stall = {"x-sim-fault": "stall=2"}
    first = client.chat.completions.create(**CHAT, stream=True, extra_headers=stall)
    next(iter(first))
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(**CHAT)
    assert (caught.value.status_code, caught.value.code, caught.value.type) == (503, "overloaded", "overloaded_error")
    assert int(caught.value.response.headers["retry-after"]) >= 1
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        patient = pool.submit(client.with_options(max_retries=3).chat.completions.create, **CHAT)
        eventually(lambda: backstop.totals()["failed"] >= 2, 30, "it was turned away once")
        first.close()
        assert patient.result(30).choices[0].message.content


def test_who_waits_is_served_in_turn(launch, sim, connect):
    backstop = launch.backstop(sim, admission={"limit": 1, "queue": 9})
    client = connect(backstop, max_retries=0)
    first = client.chat.completions.create(**CHAT, stream=True, extra_headers={"x-sim-fault": "stall=2"})
    next(iter(first))
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        later = []
        for count, priority in enumerate(["low", "normal", "high"], start=1):
            headers = {"x-priority": priority}
            later.append(pool.submit(client.chat.completions.create, **CHAT, extra_headers=headers))
            eventually(lambda: waiting(backstop) == count, 30, f"{count} wait")
        first.close()
        assert all(future.result(30).choices[0].message.content for future in later)
    assert [request["headers"].get("x-priority") for request in sim.requests()] == [None, "high", "normal", "low"]
