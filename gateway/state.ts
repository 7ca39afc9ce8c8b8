/**
 * state.json: the two numbers that must only grow over all starts of this gateway. They are on
 * disk before they are used, so a crash skips a number and never repeats one.
 */
import { existsSync } from 'node:fs';
import { z } from 'zod';
import { PairwireError } from '../src/runtime/errors.js';
import { readSecretFile, writeFileAtomic } from '../src/runtime/files.js';

const stateSchema = z.object({
  bootSequence: z.int().nonnegative().default(0),
  controlEpoch: z.int().nonnegative().default(0),
});

/** Boot sequence and controller epoch of a gateway. */
export class GatewayState {
  readonly #path: string;
  #state: z.infer<typeof stateSchema>;

  constructor(path: string) {
    this.#path = path;
    this.#state = existsSync(path) ? readState(path) : { bootSequence: 0, controlEpoch: 0 };
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
