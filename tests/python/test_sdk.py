"""The official SDK against a simulated server through Backstop: everything that works."""

import asyncio
import json

import openai
import pytest

MESSAGES = [{"role": "user", "content": "Tell me about rivers."}]


def text_of(stream) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_chat(client, direct):
    answer = client.chat.completions.create(model="chat", messages=MESSAGES)
    expected = direct.chat.completions.create(model="chat", messages=MESSAGES)
    assert answer.choices[0].message.content == expected.choices[0].message.content
    assert answer.choices[0].finish_reason == expected.choices[0].finish_reason
    assert answer.usage == expected.usage


def test_response_headers(client):
    raw = client.chat.completions.with_raw_response.create(model="chat", messages=MESSAGES)
    assert raw.headers["x-backstop-version"] == "v1"
    assert raw.headers["x-backstop-attempts"] == "1"
    assert raw.headers["x-request-id"] == raw.parse()._request_id


def test_streamed_chat(client, direct):
    chunks = list(client.chat.completions.create(model="chat", messages=MESSAGES, stream=True))
    expected = direct.chat.completions.create(model="chat", messages=MESSAGES)
    assert text_of(chunks) == expected.choices[0].message.content
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == expected.choices[0].finish_reason
    assert all(chunk.usage is None for chunk in chunks)


def test_stream_helper(client, direct):
    with client.chat.completions.stream(model="chat", messages=MESSAGES) as stream:
        final = stream.get_final_completion()
    expected = direct.chat.completions.create(model="chat", messages=MESSAGES)
    assert final.choices[0].message.content == expected.choices[0].message.content


def test_streamed_usage(client, direct):
    options = {"include_usage": True}
    stream = client.chat.completions.create(model="chat", messages=MESSAGES, stream=True, stream_options=options)
    chunks = list(stream)
    expected = direct.chat.completions.create(model="chat", messages=MESSAGES)
    assert chunks[-1].choices == []
    assert chunks[-1].usage == expected.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_events_cut_anywhere(launch, connect):
    """Writes that end within events and within characters."""
    sim = launch.sim("--chunk-bytes", "7", "--tokens", "200")
    messages = [{"role": "user", "content": "汉字 🙂 café"}]
    streamed = connect(launch.backstop(sim)).chat.completions.create(model="chat", messages=messages, stream=True)
    expected = connect(sim).chat.completions.create(model="chat", messages=messages)
    assert text_of(streamed) == expected.choices[0].message.content


@pytest.mark.parametrize("stream", [False, True])
def test_completions(client, direct, stream):
    answer = client.completions.create(model="chat", prompt="Once upon a time", max_tokens=20, stream=stream)
    expected = direct.completions.create(model="chat", prompt="Once upon a time", max_tokens=20)
    text = "".join(chunk.choices[0].text for chunk in answer) if stream else answer.choices[0].text
    assert text == expected.choices[0].text


def test_embeddings_as_base64(client, direct, sim):
    """The SDK asks for base64 by itself and decodes it."""
    answer = client.embeddings.create(model="chat", input=["one", "two"])
    assert json.loads(sim.requests()[-1]["body"])["encoding_format"] == "base64"
    expected = direct.embeddings.create(model="chat", input=["one", "two"], encoding_format="float")
    assert [e.embedding for e in answer.data] == [pytest.approx(e.embedding, abs=1e-6) for e in expected.data]


def test_responses(client, direct):
    answer = client.responses.create(model="chat", input="Tell me about rivers.")
    expected = direct.responses.create(model="chat", input="Tell me about rivers.")
    assert answer.output_text == expected.output_text != ""
    assert answer.usage == expected.usage


def test_streamed_responses(client, direct):
    events = list(client.responses.create(model="chat", input="Tell me about rivers.", stream=True))
    expected = direct.responses.create(model="chat", input="Tell me about rivers.")
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == expected.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.completed"


def test_models(launch, connect):
    backstop = launch.backstop(launch.sim(), models=["chat", "org/model"])
    client = connect(backstop)
    assert [model.id for model in client.models.list()] == ["chat", "org/model"]
    assert client.models.retrieve("chat").id == "chat"
    assert client.models.retrieve("org/model").object == "model"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nothing")
    assert caught.value.code == "model_not_found"


def test_unknown_fields_and_names_arrive(client, sim):
    client.chat.completions.create(
        model="chat",
        messages=[{"role": "user", "content": "hi", "name": "ann"}],
        max_tokens=3,
        extra_body={"top_k": 7, "nested": {"deep": [1, None, "ä"]}},
        extra_headers={"x-team": "blue"},
    )
    request = sim.requests()[-1]
    body = json.loads(request["body"])
    assert body["top_k"] == 7 and body["nested"] == {"deep": [1, None, "ä"]}
    assert body["messages"][0]["name"] == "ann"
    assert request["headers"]["x-team"] == "blue"


def test_client_key_stays_here(connect, backstop, sim):
    connect(backstop, api_key="sk-of-the-client").chat.completions.create(model="chat", messages=MESSAGES)
    assert "authorization" not in sim.requests()[-1]["headers"]


def test_async_client(backstop, direct):
    expected = direct.chat.completions.create(model="chat", messages=MESSAGES).choices[0].message.content

    async def plain(client):
        answer = await client.chat.completions.create(model="chat", messages=MESSAGES)
        return answer.choices[0].message.content

    async def streamed(client):
        stream = await client.chat.completions.create(model="chat", messages=MESSAGES, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def many():
        async with openai.AsyncOpenAI(base_url=f"{backstop.url}/v1", api_key="unused") as client:
            return await asyncio.gather(*(ask(client) for ask in [plain, streamed] * 25))

    assert asyncio.run(many()) == [expected] * 50


def test_two_servers_share_the_work(launch, connect):
    sims = [launch.sim(name="a"), launch.sim(name="b")]
    client = connect(launch.backstop(*sims, balance="round_robin"))
    for _ in range(10):
        client.chat.completions.create(model="chat", messages=MESSAGES, max_tokens=3)
    assert [len(sim.requests()) for sim in sims] == [5, 5]
