/**
 * control.sock in the run directory (mode 0600): one JSON line asks, one answers.
 *
 *   {"do":"status"}  -> {"ok":true,"status":{...}}
 *   {"do":"reload"}  -> {"ok":true,"changed":[...]}
 *   {"do":"renew"}   -> {"ok":true,"boot":2}   a fresh boot key replaces the one before, without loss
 *   {"do":"down"}    -> {"ok":true}            devices and keys are gone when it is answered
 *   anything else    -> {"ok":false,"code":...,"message":...}
 */
import { chmodSync, rmSync } from 'node:fs';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { z } from 'zod';
import { messageOf, PairwireError } from '../../src/runtime/errors.js';

const MAX_LINE = 65_536;
const MAX_ANSWER = 64 * 1_048_576;
const IDLE_MS = 60_000;

const questionSchema = z.strictObject({ do: z.enum(['status', 'reload', 'renew', 'down']) });
/** What a control socket can be asked. */
export type ControlVerb = z.infer<typeof questionSchema>['do'];

const answerSchema = z.looseObject({
  ok: z.boolean(),
  code: z.string().optional(),
  message: z.string().optional(),
});

/** Answers questions on the control socket. */
export class ControlSocket {
  readonly #path: string;
  readonly #handle: (verb: ControlVerb) => Promise<Record<string, unknown>>;
  readonly #idleMs: number;
  readonly #sockets = new Set<Socket>();
  #server: Server | undefined;

  /** @param idleMs who neither asks nor is answered for so long is cut off */
  constructor(
    path: string,
    handle: (verb: ControlVerb) => Promise<Record<string, unknown>>,
    idleMs = IDLE_MS,
  ) {
    this.#path = path;
    this.#handle = handle;
    this.#idleMs = idleMs;
  }

  /** Listens. @throws PairwireError CONFLICT if a gateway already runs on this directory */
  async listen(): Promise<void> {
    if (await answers(this.#path)) {
      throw new PairwireError('CONFLICT', 'a gateway already runs on this directory', {
        where: this.#path,
        hint: 'see it with: pairwire status --dir DIR',
      });
    }
    rmSync(this.#path, { force: true });
    const server = createServer((socket) => this.#accept(socket));
    // Without a umask of 077 the socket would be open to others until the chmod.
    const umask = process.umask(0o077);
    try {
      await new Promise<void>((resolve, reject) => {
        server.once('error', reject);
        server.listen(this.#path, resolve);
      });
      chmodSync(this.#path, 0o600);
    } finally {
      process.umask(umask);
    }
    server.on('error', () => {});
    this.#server = server;
  }

  /** Stops listening. */
  async close(): Promise<void> {
    const server = this.#server;
    this.#server = undefined;
    if (server === undefined) return;
    const closed = new Promise<void>((resolve) => {
      server.close(() => resolve());
    });
    for (const socket of this.#sockets) socket.end();
    await closed;
  }

  #accept(socket: Socket): void {
    this.#sockets.add(socket);
    let buffered = '';
    let chain = Promise.resolve();
    socket.setEncoding('utf8');
    socket.setTimeout(this.#idleMs, () => socket.destroy());
    socket.on('error', () => socket.destroy());
    socket.on('close', () => this.#sockets.delete(socket));
    socket.on('data', (chunk: string) => {
      buffered += chunk;
      if (buffered.length > MAX_LINE) {
        socket.destroy();
        return;
      }
      const lines = buffered.split('\n');
      buffered = lines.pop() ?? '';
      for (const line of lines) {
        if (line.trim() === '') continue;
        chain = chain.then(async () => {
          const answer = await this.#answer(line);
          if (!socket.destroyed) socket.write(`${JSON.stringify(answer)}\n`);
        });
      }
    });
  }

  async #answer(line: string): Promise<Record<string, unknown>> {
    try {
      const question = questionSchema.safeParse(JSON.parse(line));
      if (!question.success) throw new PairwireError('USAGE', 'nobody knows this question');
      return { ok: true, ...(await this.#handle(question.data.do)) };
    } catch (thrown) {
      const code = thrown instanceof PairwireError ? thrown.code : 'USAGE';
      return { ok: false, code, message: messageOf(thrown) };
    }
  }
}

/** True if somebody accepts connections on the socket. */
export function answers(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path);
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });
}

/** Asks a running gateway. @throws PairwireError GATEWAY_NOT_RUNNING, or what the gateway answered */
export async function askGateway(
  path: string,
  verb: ControlVerb,
  timeoutMs = 15_000,
): Promise<Record<string, unknown>> {
  const line = await oneLine(path, `${JSON.stringify({ do: verb })}\n`, timeoutMs);
  const answer = readAnswer(line, path);
  if (!answer.ok) {
    throw new PairwireError('REFUSED', answer.message ?? 'the gateway refused', { where: path });
  }
  return answer;
}

/** @throws PairwireError GATEWAY_NOT_RUNNING: whatever listens there is no gateway */
function readAnswer(line: string, path: string): z.infer<typeof answerSchema> {
  try {
    return answerSchema.parse(JSON.parse(line));
  } catch (cause) {
    throw notUnderstood(path, cause);
  }
}

/** What speaks on a control socket is no gateway, or one of another version. */
export function notUnderstood(path: string, cause: unknown): PairwireError {
  return new PairwireError('GATEWAY_NOT_RUNNING', 'the answer is not that of a gateway', {
    where: path,
    hint: 'use the pairwire that runs it',
    cause,
  });
}

function oneLine(path: string, question: string, timeoutMs: number): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect(path);
    const parts: string[] = [];
    let length = 0;
    const failed = (message: string, hint: string, cause?: unknown): void => {
      socket.destroy();
      reject(new PairwireError('GATEWAY_NOT_RUNNING', message, { where: path, hint, cause }));
    };
    socket.setEncoding('utf8');
    socket.setTimeout(timeoutMs, () =>
      failed('the gateway does not answer', 'look at the log of pairwire up'),
    );
    socket.once('connect', () => socket.write(question));
    socket.on('data', (chunk: string) => {
      // Each piece is looked at once: an answer may have very many.
      const end = chunk.indexOf('\n');
      parts.push(end < 0 ? chunk : chunk.slice(0, end));
      length += parts.at(-1)?.length ?? 0;
      if (length > MAX_ANSWER) failed('the gateway answers without end', 'report this');
      if (end < 0) return;
      socket.destroy();
      resolve(parts.join(''));
    });
    socket.once('end', () => failed('the gateway hung up', 'look at the log of pairwire up'));
    socket.once('error', (cause: NodeJS.ErrnoException) => {
      const denied = cause.code === 'EACCES';
      failed(
        denied ? 'you may not ask this gateway' : 'no gateway runs on this directory',
        denied
          ? 'ask as root or as the user of the gateway'
          : 'start it with: pairwire up --dir DIR',
        cause,
      );
    });
  });
}
