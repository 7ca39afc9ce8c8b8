/**
 * Handshakes in a thread of their own, so that a flood of them takes no time from the channels
 * that are open. Messages 1 wait in two queues with a bound each: one for those that came with
 * a ticket or inside an open channel (a share that strangers can't take), one for all others.
 */
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import type { KeyPair } from '../protocol/channel/keys.js';
import type { Answered, Greeted, Greeting, Responder } from '../protocol/channel/responder.js';
import { PairwireError } from '../runtime/errors.js';

/** What goes to the thread and what comes back; id 0 says that it is ready. */
export type Job =
  | { readonly kind: 'greet'; readonly id: number; readonly greeting: Greeting }
  | {
      readonly kind: 'finish';
      readonly id: number;
      readonly handle: number;
      readonly payload: Uint8Array;
      readonly psk: Uint8Array | undefined;
    }
  | { readonly kind: 'drop'; readonly id: number; readonly handle: number };
export interface Result {
  readonly id: number;
  readonly greeted?: Greeted | undefined;
  readonly answered?: Answered | undefined;
}

/** Implementation constants. */
const MAX_QUEUE = 512;
/** A thread that ended is followed by the next one after this, ms. */
const RESTART_MS = 1_000;
/** Messages 1 that the thread has at a time: enough to keep it busy, few enough for the queues to matter. */
const AT_WORK = 8;
/** Of so many in a row, one is a stranger's if any waits. */
const RESERVED_IN_ROW = 3;

interface Waiting {
  readonly greeting: Greeting;
  readonly done: (greeted: Greeted | undefined) => void;
}

/** Computes the responder's half of handshakes elsewhere. */
export class HandshakeThread implements Responder {
  readonly #staticKeys: KeyPair;
  readonly #maxQueue: number;
  readonly #reserved: Waiting[] = [];
  readonly #strangers: Waiting[] = [];
  readonly #pending = new Map<number, (result: Result | undefined) => void>();
  #worker: Worker;
  #ready: Promise<void>;
  #nextId = 1;
  /** The highest that a thread gave: the next thread goes on behind it, so that none is two peers'. */
  #lastHandle = 0;
  #atWork = 0;
  #reservedInRow = 0;
  #closed = false;
  /** There is no thread until `#restart`. */
  #down = false;
  #restart: NodeJS.Timeout | undefined;

  constructor(staticKeys: KeyPair, maxQueue = MAX_QUEUE) {
    this.#staticKeys = staticKeys;
    this.#maxQueue = maxQueue;
    [this.#worker, this.#ready] = this.#start();
  }

  /** Settles when the thread runs. @throws PairwireError PLATFORM if it can't */
  get ready(): Promise<void> {
    return this.#ready;
  }

  /** Strangers' messages 1 that wait. */
  get waiting(): number {
    return this.#strangers.length;
  }

  /** All that wait. */
  get queued(): number {
    return this.#strangers.length + this.#reserved.length;
  }

  /** True if a message 1 would be taken. */
  hasRoom(reserved: boolean): boolean {
    return (reserved ? this.#reserved : this.#strangers).length < this.#maxQueue;
  }

  /** Queues a message 1; beyond the bound it fails at once. */
  greet(greeting: Greeting, done: (greeted: Greeted | undefined) => void, reserved = false): void {
    if (!this.hasRoom(reserved)) {
      done(undefined);
      return;
    }
    (reserved ? this.#reserved : this.#strangers).push({ greeting, done });
    this.#feed();
  }

  finish(
    handle: number,
    payload: Uint8Array,
    psk: Uint8Array | undefined,
    done: (answered: Answered | undefined) => void,
  ): void {
    if (this.#down) {
      done(undefined);
      return;
    }
    const id = this.#expect((result) => done(result?.answered));
    this.#post({ kind: 'finish', id, handle, payload, psk });
  }

  drop(handle: number): void {
    this.#post({ kind: 'drop', id: 0, handle });
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#restart);
    await this.#worker.terminate();
  }

  #feed(): void {
    while (this.#atWork < AT_WORK && !this.#down) {
      const next = this.#next();
      if (next === undefined) return;
      this.#atWork += 1;
      const id = this.#expect((result) => {
        this.#atWork -= 1;
        next.done(result?.greeted);
        this.#feed();
      });
      this.#post({ kind: 'greet', id, greeting: next.greeting });
    }
  }

  #next(): Waiting | undefined {
    const turn = this.#reservedInRow < RESERVED_IN_ROW || this.#strangers.length === 0;
    const reserved = turn ? this.#reserved.shift() : undefined;
    if (reserved !== undefined) {
      this.#reservedInRow += 1;
      return reserved;
    }
    this.#reservedInRow = 0;
    return this.#strangers.shift();
  }

  #expect(done: (result: Result | undefined) => void): number {
    const id = this.#nextId;
    this.#nextId += 1;
    this.#pending.set(id, done);
    return id;
  }

  #post(job: Job): void {
    if (!this.#closed && !this.#down) this.#worker.postMessage(job);
  }

  #start(): [Worker, Promise<void>] {
    const worker = startWorker({
      privateKey: this.#staticKeys.privateKey,
      publicKey: this.#staticKeys.publicKey,
      firstHandle: this.#lastHandle + 1,
    });
    const ready = new Promise<void>((resolve, reject) => {
      worker.on('message', (result: Result) => {
        if (result.id === 0) resolve();
        this.#lastHandle = Math.max(this.#lastHandle, result.greeted?.handle ?? 0);
        const done = this.#pending.get(result.id);
        this.#pending.delete(result.id);
        done?.(result);
      });
      worker.on('error', (cause) => {
        reject(new PairwireError('PLATFORM', 'the handshake thread failed', { cause }));
      });
      worker.on('exit', () => this.#gone(worker));
    });
    ready.catch(() => {});
    return [worker, ready];
  }

  /** What it had is lost, as if the datagrams had been; the next one goes on. */
  #gone(worker: Worker): void {
    if (this.#closed || worker !== this.#worker) return;
    const lost = [...this.#pending.values()];
    this.#pending.clear();
    this.#down = true;
    for (const done of lost) done(undefined);
    // One that can't even start must not keep a core busy with trying.
    this.#restart = setTimeout(() => {
      this.#down = false;
      [this.#worker, this.#ready] = this.#start();
      this.#feed();
    }, RESTART_MS);
  }
}

/**
 * Compiled, the thread's file is JavaScript. From the sources it needs tsx as the program itself does, or a folder with
 * all of it compiled, which starts in a fifth of the time: tests make one.
 */
function startWorker(data: Record<string, unknown>): Worker {
  if (!import.meta.url.endsWith('.ts')) {
    return new Worker(new URL('./handshake-worker.js', import.meta.url), { workerData: data });
  }
  const compiled = process.env.PAIRWIRE_TEST_COMPILED;
  if (compiled !== undefined) {
    return new Worker(join(compiled, 'src/net/handshake-worker.js'), { workerData: data });
  }
  const file = JSON.stringify(new URL('./handshake-worker.ts', import.meta.url).href);
  const code = `import('tsx/esm/api').then((tsx) => { tsx.register(); return import(${file}); });`;
  return new Worker(code, { eval: true, workerData: data });
}
