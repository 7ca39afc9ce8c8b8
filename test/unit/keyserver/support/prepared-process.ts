/**
 * Key servers and KMSs as processes that are loaded before they are needed (prepared-process.mjs).
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { compiledFile } from '../../../programs/key-server.js';

const PROGRAM = fileURLToPath(new URL('prepared-process.mjs', import.meta.url));
const RUNS = {
  keyserver: ['keyserver/run', 'runKeyServer'],
  kms: ['keyserver/kms/run', 'runKms'],
} as const;

export class PreparedProcess {
  readonly #child: ChildProcess;
  readonly #loaded: Promise<void>;
  readonly #ended: Promise<unknown>;
  #waiting: { readonly text: string; readonly found: () => void }[] = [];
  /** What it has written to its log. */
  log = '';

  /** Begins to load. */
  constructor(what: keyof typeof RUNS) {
    const [path, name] = RUNS[what];
    const module = pathToFileURL(compiledFile(`${path}.js`)).href;
    const child = spawn(process.execPath, [PROGRAM, module, name], {
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    this.#child = child;
    this.#ended = once(child, 'close');
    this.#loaded = new Promise((resolve) => child.stdout.once('data', () => resolve()));
    child.stdin.on('error', () => undefined);
    child.stderr.on('data', (chunk: Buffer) => {
      this.log += chunk.toString();
      for (const { text, found } of this.#waiting) if (this.log.includes(text)) found();
    });
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  get running(): boolean {
    return this.#child.exitCode === null && this.#child.signalCode === null;
  }

  /** Has it run a folder; settles when it has begun to. */
  async run(dir: string): Promise<void> {
    await Promise.race([this.#loaded, this.#ended]);
    this.#child.stdin?.write(`${dir}\n`);
  }

  /** Waits for a line of its log. @throws Error with the log if it ends before */
  async said(text: string): Promise<void> {
    if (this.log.includes(text)) return;
    const found = new Promise<boolean>((resolve) => {
      this.#waiting.push({ text, found: () => resolve(true) });
    });
    if (await Promise.race([found, this.#ended.then(() => false)])) return;
    throw new Error(`the process ended: ${this.log}`);
  }

  /** Sends a signal and goes on. */
  signal(name: NodeJS.Signals): void {
    this.#child.kill(name);
  }

  /** Ends it; kill -9 by default. */
  async end(signal: NodeJS.Signals = 'SIGKILL'): Promise<number | null> {
    this.#waiting = [];
    if (this.running) this.#child.kill(signal);
    await this.#ended;
    return this.#child.exitCode;
  }
}
