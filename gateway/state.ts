/**
 * state.json: the two numbers that must only grow over all starts of this gateway. They are on
 * disk before they are used, so a crash skips a number and never repeats one. Also the subnet's tag,
 * so that a start disturbs no traffic of a data plane that runs on.
 */
import { existsSync } from 'node:fs';
import { z } from 'zod';
import { PairwireError } from '../src/runtime/errors.js';
import { readSecretFile, writeFileAtomic } from '../src/runtime/files.js';

/** 6 bits of a frame, docs/protocol.md 2.1. */
const MAX_TAG = 63;

const stateSchema = z.object({
  bootSequence: z.int().nonnegative().default(0),
  controlEpoch: z.int().nonnegative().default(0),
  tag: z.int().min(0).max(MAX_TAG).default(0),
});

/** Boot sequence and controller epoch of a gateway. */
export class GatewayState {
  readonly #path: string;
  #state: z.infer<typeof stateSchema>;

  constructor(path: string) {
    this.#path = path;
    this.#state = existsSync(path) ? readState(path) : stateSchema.parse({});
  }

  /** The sequence of the next boot record: above all before it, and above those of a lost disk. */
  nextBootSequence(serverNowMs: number): number {
    const bootSequence = Math.max(this.#state.bootSequence + 1, Math.floor(serverNowMs));
    this.#write({ ...this.#state, bootSequence });
    return bootSequence;
  }

  /** The epoch with which this controller attaches to the data plane. */
  nextControlEpoch(wallMs: number): number {
    const controlEpoch = Math.max(this.#state.controlEpoch + 1, Math.floor(wallMs));
    this.#write({ ...this.#state, controlEpoch });
    return controlEpoch;
  }

  /** Subnet tag of the `ethernet` transport as the key server last told it; 0 before that. */
  get tag(): number {
    return this.#state.tag;
  }

  /** Keeps the tag; true if it is another than before. */
  setTag(tag: number): boolean {
    if (tag === this.#state.tag) return false;
    this.#write({ ...this.#state, tag });
    return true;
  }

  #write(state: z.infer<typeof stateSchema>): void {
    writeFileAtomic(this.#path, `${JSON.stringify(state)}\n`);
    this.#state = state;
  }
}

function readState(path: string): z.infer<typeof stateSchema> {
  try {
    return stateSchema.parse(JSON.parse(readSecretFile(path).toString('utf8')));
  } catch (cause) {
    if (cause instanceof PairwireError) throw cause;
    throw new PairwireError('FILE_UNREADABLE', 'state.json is damaged', {
      where: path,
      hint: "remove it: the boot sequence then continues from the key server's time",
      cause,
    });
  }
}
