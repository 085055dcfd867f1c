"""TLS and HTTP/2 on both sides, with the official SDK and a private certificate authority."""

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
