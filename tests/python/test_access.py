"""API keys, as the official SDK sends them."""

import hashlib

import openai
import pytest

CHAT = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}


def key(name: str, secret: str, **more) -> dict:
    return {"name": name, "hash": f"sha256:{hashlib.sha256(secret.encode()).hexdigest()}", **more}


@pytest.fixture
def guarded(launch, sim):
    keys = [key("a", "sk-a", tenant="t", services=["chat"]), key("b", "sk-b", services=[])]
    return launch.backstop(sim, file={"keys": keys})


def test_a_key_opens_the_service_and_stays_at_the_gateway(guarded, sim, connect):
    client = connect(guarded, api_key="sk-a")
    assert client.chat.completions.create(**CHAT).choices[0].message.content
    assert [model.id for model in client.models.list()] == ["chat"]
    assert all("authorization" not in request["headers"] for request in sim.requests())
    (line,) = [line for line in guarded.said().splitlines() if '"path":"/v1/chat/completions"' in line]
    assert '"key":"a"' in line and '"tenant":"t"' in line and "sk-a" not in guarded.said()


def test_an_unknown_key_is_an_authentication_error(guarded, sim, connect):
    with pytest.raises(openai.AuthenticationError) as caught:
        connect(guarded, api_key="sk-nobody").chat.completions.create(**CHAT)
    assert caught.value.code == "invalid_api_key"
    assert not sim.requests()


def test_a_key_for_nothing_is_a_permission_error(guarded, sim, connect):
    client = connect(guarded, api_key="sk-b")
    with pytest.raises(openai.PermissionDeniedError) as caught:
        client.chat.completions.create(**CHAT)
    assert caught.value.code == "service_not_allowed"
    assert not list(client.models.list()) and not sim.requests()
