// The official SDK for Node through Backstop.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import OpenAI from 'openai';

import { Launcher, eventually } from './processes.mjs';

const messages = [{ role: 'user', content: 'Tell me about rivers.' }];

const connect = ({ url }, options = {}) =>
  new OpenAI({ baseURL: `${url}/v1`, apiKey: 'unused', timeout: 60_000, ...options });

/** A test with a simulated server behind Backstop. */
function behind(name, body, { sim: options = [], ...settings } = {}) {
  test(name, { timeout: 120_000 }, async (t) => {
    const launcher = new Launcher();
    t.after(() => launcher.stop());
    const sim = await launcher.sim(...options);
    const backstop = await launcher.backstop([sim], settings);
    await body({ t, sim, backstop, client: connect(backstop), direct: connect(sim) });
  });
}

async function textOf(stream) {
  let text = '';
  for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? '';
  return text;
}

async function failure(promise, kind) {
  const error = await promise.then(
    () => assert.fail('it did not fail'),
    (error) => error,
  );
  assert.equal(error.constructor, kind, String(error));
  return error;
}

behind('plain chat', async ({ client, direct }) => {
  const answer = await client.chat.completions.create({ model: 'chat', messages });
  const expected = await direct.chat.completions.create({ model: 'chat', messages });
  assert.equal(answer.choices[0].message.content, expected.choices[0].message.content);
  assert.deepEqual(answer.usage, expected.usage);
});

behind('streamed chat with usage', async ({ client, direct }) => {
  const expected = await direct.chat.completions.create({ model: 'chat', messages });
  const stream = await client.chat.completions.create({
    model: 'chat',
    messages,
    stream: true,
    stream_options: { include_usage: true },
  });
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  const text = chunks.map((chunk) => chunk.choices[0]?.delta?.content ?? '').join('');
  assert.equal(text, expected.choices[0].message.content);
  assert.equal(new Set(chunks.map((chunk) => chunk.id)).size, 1);
  assert.deepEqual(chunks.at(-1).choices, []);
  assert.deepEqual(chunks.at(-1).usage, expected.usage);
});

behind('stream helper', async ({ client, direct }) => {
  const expected = await direct.chat.completions.create({ model: 'chat', messages });
  const text = await client.chat.completions.stream({ model: 'chat', messages }).finalContent();
  assert.equal(text, expected.choices[0].message.content);
});

behind('completions, responses and embeddings', async ({ client, direct, sim }) => {
  const prompt = { model: 'chat', prompt: 'Once upon a time', max_tokens: 20 };
  assert.equal(
    (await client.completions.create(prompt)).choices[0].text,
    (await direct.completions.create(prompt)).choices[0].text,
  );

  const response = await client.responses.create({ model: 'chat', input: 'Hello' });
  assert.equal(response.output_text, (await direct.responses.create({ model: 'chat', input: 'Hello' })).output_text);

  const input = { model: 'chat', input: ['one', 'two'] };
  const answer = await client.embeddings.create(input);
  // The SDK asks for base64 by itself and decodes it.
  assert.equal(JSON.parse((await sim.requests()).at(-1).body).encoding_format, 'base64');
  const expected = await direct.embeddings.create({ ...input, encoding_format: 'float' });
  for (const [i, { embedding }] of answer.data.entries()) {
    assert.equal(embedding.length, expected.data[i].embedding.length);
    embedding.forEach((value, at) => assert.ok(Math.abs(value - expected.data[i].embedding[at]) < 1e-6));
  }
});

behind(
  'models',
  async ({ client }) => {
    const models = [];
    for await (const model of client.models.list()) models.push(model.id);
    assert.deepEqual(models, ['chat', 'org/model']);
    assert.equal((await client.models.retrieve('org/model')).id, 'org/model');
    const error = await failure(client.models.retrieve('nothing'), OpenAI.NotFoundError);
    assert.equal(error.code, 'model_not_found');
  },
  { models: ['chat', 'org/model'] },
);

behind('mistakes of the client', async ({ client, sim }) => {
  const chat = (fields) => client.chat.completions.create({ model: 'chat', messages, ...fields });

  let error = await failure(chat({ model: 'chatt' }), OpenAI.NotFoundError);
  assert.deepEqual([error.status, error.code, error.param], [404, 'model_not_found', 'model']);
  assert.match(error.message, /chatt/);
  assert.ok(error.type && error.requestID);

  error = await failure(chat({ model: undefined }), OpenAI.BadRequestError);
  assert.deepEqual([error.status, error.code, error.param], [400, 'invalid_request_body', 'model']);

  error = await failure(
    client.chat.completions.create({ model: 'chat', messages }, { headers: { 'content-type': 'text/plain' } }),
    OpenAI.APIError,
  );
  assert.deepEqual([error.status, error.code], [415, 'unsupported_content_type']);

  assert.deepEqual(await sim.requests(), []);
});

for (const [status, kind] of [
  [400, OpenAI.BadRequestError],
  [403, OpenAI.PermissionDeniedError],
  [422, OpenAI.UnprocessableEntityError],
  [429, OpenAI.RateLimitError],
  [500, OpenAI.InternalServerError],
  [503, OpenAI.InternalServerError],
]) {
  behind(`the server answers ${status}`, async ({ client, sim }) => {
    await sim.fault({ kind: 'status', status, message: 'out of order' });
    for (const stream of [false, true]) {
      const before = (await sim.requests()).length;
      const error = await failure(client.chat.completions.create({ model: 'chat', messages, stream }), kind);
      assert.equal(error.status, status);
      assert.match(error.message, /out of order/);
      // Backstop's own attempts, and none of the SDK's on top.
      const sent = (await sim.requests()).length - before;
      assert.equal(sent, Number(error.headers.get('x-backstop-attempts')));
      assert.ok(status < 429 ? sent === 1 : sent <= 3, `${sent} requests`);
    }
  });
}

for (const fault of [
  { kind: 'cut', after: 3, how: 'fin' },
  { kind: 'cut', after: 3, how: 'rst' },
  { kind: 'cut', after: 3, how: 'end' },
  { kind: 'error_event', after: 3 },
  { kind: 'invalid_event', after: 3 },
  { kind: 'garbage', after: 3 },
  { kind: 'stall', after: 3 },
]) {
  behind(
    `error within a stream: ${Object.values(fault).join(' ')}`,
    async ({ client, direct, sim }) => {
      const whole = await textOf(await direct.chat.completions.create({ model: 'chat', messages, stream: true }));
      await sim.fault(fault);
      let text = '';
      const read = async () => {
        for await (const chunk of await client.chat.completions.create({ model: 'chat', messages, stream: true })) {
          assert.equal(chunk.choices[0].finish_reason, null);
          text += chunk.choices[0].delta.content ?? '';
        }
      };
      const error = await failure(read(), OpenAI.APIError);
      assert.ok(error.code && error.message && error.type, String(error));
      assert.ok(whole.startsWith(text) && text !== whole);
    },
    { sim: ['--itl', '20ms'] },
  );
}

behind(
  'a stream that the client leaves is cancelled',
  async ({ client, sim, backstop }) => {
    const stream = await client.chat.completions.create({ model: 'chat', messages, stream: true, max_tokens: 1000 });
    for await (const chunk of stream) {
      if (chunk.choices[0].delta.content) break;
    }
    await eventually(async () => (await sim.stats()).cancelled === 1, 10, 'the server has been told to stop');
    await eventually(async () => (await backstop.totals()).cancelled === 1, 10, 'counted as cancelled');
  },
  { sim: ['--itl', '50ms'] },
);

test('real llama.cpp servers, one of them killed', { timeout: 240_000 }, async (t) => {
  const launcher = new Launcher();
  t.after(() => launcher.stop());
  const servers = [await launcher.llama(), await launcher.llama()];
  const backstop = await launcher.backstop(servers, { balance: 'round_robin', timeouts: {} });
  const request = {
    model: 'chat',
    messages: [{ role: 'user', content: 'Name three colours.' }],
    temperature: 0,
    max_tokens: 16,
    cache_prompt: false,
  };
  const expected = (await connect(servers[0]).chat.completions.create(request)).choices[0].message.content;
  const client = connect(backstop, { maxRetries: 0 });
  const bothWays = async () => {
    assert.equal((await client.chat.completions.create(request)).choices[0].message.content, expected);
    assert.equal(await textOf(await client.chat.completions.create({ ...request, stream: true })), expected);
  };
  await bothWays();
  await bothWays();
  await servers[1].kill();
  for (let i = 0; i < 5; i++) await bothWays();
  const { failed, cut, answered } = await backstop.totals();
  assert.deepEqual({ failed, cut, answered }, { failed: 0, cut: 0, answered: 14 });
});
