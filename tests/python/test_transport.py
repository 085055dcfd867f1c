"""TLS and HTTP/2 on both sides, with the official SDK and a private certificate authority."""

import os
import re
import signal
import ssl

import httpx
import openai
import pytest

MESSAGES = [{"role": "user", "content": "Tell me about rivers."}]


@pytest.fixture
def secured(launch, sim, identity):
    """Backstop with TLS, before the simulated server."""
    return launch.backstop(sim, identity=identity)


@pytest.fixture(params=[False, True], ids=["http1", "http2"])
def over_tls(request, connect, identity):
    """The SDK, in either version of HTTP."""

    def over_tls(server) -> openai.OpenAI:
        trust = ssl.create_default_context(cafile=identity.ca)
        return connect(server, http_client=openai.DefaultHttpxClient(verify=trust, http2=request.param))

    over_tls.version = "HTTP/2" if request.param else "HTTP/1.1"
    return over_tls


def text_of(stream) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def check(client, direct, version):
    expected = direct.chat.completions.create(model="chat", messages=MESSAGES).choices[0].message.content
    raw = client.chat.completions.with_raw_response.create(model="chat", messages=MESSAGES)
    assert raw.parse().choices[0].message.content == expected
    assert raw.http_response.http_version == version
    assert text_of(client.chat.completions.create(model="chat", messages=MESSAGES, stream=True)) == expected
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(model="nobody", messages=MESSAGES)


def test_clients_by_tls(over_tls, secured, direct):
    check(over_tls(secured), direct, over_tls.version)


def test_servers_by_tls(launch, connect, over_tls, secured, direct, identity):
    """A Backstop is a server like any other: one behind the other, by TLS and HTTP/2 between them."""
    front = launch.backstop(secured, identity=identity, endpoint={"tls": {"ca": identity.ca}, "protocol": "http2"})
    check(over_tls(front), direct, over_tls.version)


def test_a_broken_stream_raises(over_tls, secured, sim):
    sim.fault("cut", after=5, how="fin")
    received = []
    with pytest.raises(openai.APIError):
        for chunk in over_tls(secured).chat.completions.create(model="chat", messages=MESSAGES, stream=True):
            received.append(chunk)
    assert received


@pytest.mark.parametrize("ends", [signal.SIGTERM, signal.SIGUSR2], ids=["stop", "hand-over"])
def test_a_stream_outlives_the_process_that_ends(launch, identity, over_tls, ends):
    """Its library gives up a connection of HTTP/2 as soon as it is told to go; one that is idle does not even read."""
    sim = launch.sim("--itl", "20ms", "--tokens", "100")
    backstop = launch.backstop(sim, identity=identity, drain="10m")
    busy, idle = over_tls(backstop), over_tls(backstop)
    expected = busy.chat.completions.create(model="chat", messages=MESSAGES).choices[0].message.content
    assert idle.models.list().data
    stream = iter(busy.chat.completions.create(model="chat", messages=MESSAGES, stream=True))
    received = text_of([next(stream) for _ in range(5)])
    backstop.signal(ends)
    assert received + text_of(stream) == expected
    # Nobody holds up the end, nor does it take the next process with it.
    assert backstop.child.wait(60) == 0
    if ends == signal.SIGUSR2:
        successor = int(re.search(r'started a new process[^\n]*"pid":(\d+)', backstop.said())[1])
        try:
            for client in (busy, idle):
                assert client.models.list().data
        finally:
            os.kill(successor, signal.SIGTERM)


def test_an_unknown_authority_is_refused(connect, secured):
    client = connect(secured, max_retries=0)
    with pytest.raises(openai.APIConnectionError):
        client.chat.completions.create(model="chat", messages=MESSAGES)


def test_http_on_the_port_of_tls(secured):
    answer = httpx.get(secured.url.replace("https://", "http://") + "/v1/models")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "tls_required")


def test_a_wrong_authority_is_the_health_reason(launch, secured, other_identity):
    front = launch.backstop(
        secured, wait=False, endpoint={"tls": {"ca": other_identity.ca}}, health={"interval": "100ms", "down": 1}
    )
    assert front.becomes(secured, "unhealthy", 20) < 20
    assert "unknown authority; hint: `tls.ca`" in front.endpoints()[secured.url]["reason"]
