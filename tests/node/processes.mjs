// The processes that tests talk to, each on its own port on loopback and ended by its own process id.

import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { setTimeout as sleep } from 'node:timers/promises';

const ROOT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');
const BACKSTOP = process.env.BACKSTOP_BIN ?? path.join(ROOT, 'target/debug/backstop');
const PYTHON = path.join(ROOT, process.env.VENV ?? '.venv', 'bin/python');

/** Polls until `condition` gives something true, which it returns. */
export async function eventually(condition, seconds, what) {
  const deadline = Date.now() + seconds * 1000;
  for (;;) {
    const result = await condition();
    if (result) return result;
    if (Date.now() > deadline) throw new Error(`not within ${seconds} s: ${what}`);
    await sleep(50);
  }
}

class Process {
  constructor(command, args) {
    this.output = '';
    this.child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    this.ended = new Promise((resolve) => this.child.once('close', resolve));
    this.gone = false;
    this.child.once('error', (error) => ((this.gone = true), (this.output += String(error))));
    this.child.once('exit', () => (this.gone = true));
    for (const stream of [this.child.stdout, this.child.stderr]) {
      stream.setEncoding('utf8').on('data', (text) => (this.output += text));
    }
  }

  async says(pattern, seconds = 30) {
    const look = () => {
      if (this.gone) throw new Error(`\`${this.child.spawnfile}\` ended:\n${this.output}`);
      return this.output.match(pattern);
    };
    return eventually(look, seconds, `${pattern} from \`${this.child.spawnfile}\``);
  }

  /** At once, as the kernel would. */
  async kill() {
    this.child.kill('SIGKILL');
    await this.ended;
  }

  async stop() {
    if (this.gone) return;
    this.child.kill('SIGTERM');
    const force = setTimeout(() => this.child.kill('SIGKILL'), 10_000);
    await this.ended;
    clearTimeout(force);
  }
}

/** Starts processes, and ends them in the opposite order when the test is over. */
export class Launcher {
  #stack = [];
  #folder = mkdtempSync(path.join(tmpdir(), 'backstop-node-'));

  #start(command, args) {
    const process = new Process(command, args);
    this.#stack.push(process);
    return process;
  }

  async sim(...options) {
    const process = this.#start(BACKSTOP, ['engine-sim', '--listen', '127.0.0.1:0', ...options]);
    const url = (await process.says(/listening on (\S+)\n/))[1];
    const call = async (path, init) => (await fetch(`${url}/sim/${path}`, init)).json();
    return {
      engine: 'sim',
      url,
      fault: (rule) => call('faults', { method: 'POST', body: JSON.stringify(rule) }),
      stats: () => call('stats'),
      /** What clients sent, without Backstop's own probes. */
      requests: async () =>
        (await call('requests')).requests.filter(({ headers }) => {
          const agent = headers.find(([name]) => name === 'user-agent')?.[1];
          return !agent?.startsWith('backstop-probe');
        }),
    };
  }

  async llama() {
    const process = this.#start(PYTHON, [path.join(ROOT, 'tests/engines/llama_server.py')]);
    const url = (await process.says(/listening on (\S+)\n/, 90))[1];
    return { engine: 'llama.cpp', url, kill: () => process.kill() };
  }

  /** The gateway with one service `chat`, whose one version runs on `servers`. */
  async backstop(servers, settings = {}) {
    const endpoints = servers.map(({ url, engine }) => ({ url, engine }));
    const service = {
      name: 'chat',
      versions: [{ name: 'v1', endpoints }],
      // Failures in quick succession are the point of many tests.
      breaker: { failures: 1000 },
      health: { interval: '500ms', slow_start: '0s' },
      retry: { attempts: 2, backoff: '10ms' },
      timeouts: { inter_token: '1s' },
      ...settings,
    };
    const config = {
      listen: '127.0.0.1:0',
      admin: { listen: '127.0.0.1:0' },
      store: 'memory:',
      services: [service],
    };
    const file = path.join(this.#folder, `backstop-${this.#stack.length}.yaml`);
    // JSON is YAML.
    writeFileSync(file, JSON.stringify(config));
    const process = this.#start(BACKSTOP, ['serve', '-c', file, '--log-format', 'json', '--drain', '2s']);
    const serving = JSON.parse((await process.says(/\{[^\n]*"message":"serving"[^\n]*\}\n/))[0]);
    const url = `http://${serving.listen}`;
    await eventually(async () => (await fetch(`${url}/ready`)).ok, 30, 'Backstop is ready');
    const totals = async () => (await (await fetch(`http://${serving.admin}/api/v1/services`)).json()).totals;
    return { url, totals };
  }

  async stop() {
    while (this.#stack.length) await this.#stack.pop().stop();
    rmSync(this.#folder, { recursive: true, force: true });
  }
}
