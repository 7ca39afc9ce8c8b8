/** State that is told to the data plane: commands whose answer says nothing, and lists that take several of them. */
import { messageOf, PairwireError } from '../../src/runtime/errors.js';
import type { CommandPort } from './client.js';
import type { CommandFields, CommandType } from './messages.gen.js';

/** What is wanted of the surroundings. */
export interface TellDeps {
  readonly dataPlane: CommandPort;
  readonly onCommandFailed: (error: PairwireError) => void;
}

/** What became of a command. */
export type Told = 'done' | 'refused' | 'gone';

/** Sends a command. A data plane that is gone is no failure: it is told everything when it is back. */
export async function tellDataPlane<T extends CommandType>(
  { dataPlane, onCommandFailed }: TellDeps,
  type: T,
  command: CommandFields<T>,
): Promise<Told> {
  try {
    await dataPlane.request(type, command);
    return 'done';
  } catch (thrown) {
    if (thrown instanceof PairwireError && thrown.code === 'DATAPLANE_GONE') return 'gone';
    const error =
      thrown instanceof PairwireError
        ? thrown
        : new PairwireError('DATAPLANE_PROTOCOL', messageOf(thrown), { cause: thrown });
    onCommandFailed(error);
    return 'refused';
  }
}

/** Cuts a list into parts of at most `size`. */
export function* batches<T>(items: readonly T[], size: number): Iterable<T[]> {
  for (let at = 0; at < items.length; at += size) yield items.slice(at, at + size);
}

/** A part of a list, as own.set and bind.set take it. */
export interface ListPart<T> {
  /** A new list begins, and replaces the one before when it has ended. */
  readonly reset: boolean;
  readonly more: boolean;
  readonly some: T[];
}

/** Cuts a list into parts. A `whole` one has at least one part, because the empty list is one too. */
export function* listParts<T>(
  items: readonly T[],
  size: number,
  whole: boolean,
): Iterable<ListPart<T>> {
  let reset = whole;
  for (let at = 0; at < items.length || reset; at += size) {
    yield { reset, more: at + size < items.length, some: items.slice(at, at + size) };
    reset = false;
  }
}
