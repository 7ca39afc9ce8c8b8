/** What a gateway counted while something happened, from its status. */
import { expect } from 'vitest';
import type { Lab } from '../../../scripts/laboratory/lab.js';
import { waitFor } from '../../../scripts/laboratory/processes.js';

export type Drops = Readonly<Record<string, number>>;

/** Drops by reason so far. */
export async function dropsOf(lab: Lab, host: string): Promise<Drops> {
  return (await lab.port(host)).drops;
}

/** Reasons and how much each has grown. */
export function growth(before: Drops, after: Drops): Drops {
  return Object.fromEntries(
    Object.entries(after)
      .map(([reason, count]) => [reason, count - (before[reason] ?? 0)] as const)
      .filter(([, count]) => count !== 0),
  );
}

/**
 * Runs an action and expects exactly these drops on a host, and no others. Reasons in `besides` may grow,
 * too: what the host's own kernel sends in the background.
 */
export async function expectDrops(
  lab: Lab,
  host: string,
  wanted: Drops,
  action: () => void | Promise<void>,
  besides: readonly string[] = [],
): Promise<void> {
  const before = await dropsOf(lab, host);
  await action();
  const total = (drops: Drops) => Object.values(drops).reduce((sum, count) => sum + count, 0);
  const relevant = (drops: Drops) =>
    Object.fromEntries(Object.entries(drops).filter(([reason]) => !besides.includes(reason)));
  let grown: Drops = {};
  await waitFor(
    async () => {
      grown = relevant(growth(before, await dropsOf(lab, host)));
      return total(grown) >= total(wanted);
    },
    { what: `drops ${JSON.stringify(wanted)} on ${host}`, timeoutMs: 5_000 },
  ).catch(() => undefined); // the comparison below says more
  expect(grown, `drops on ${host}`).toEqual(wanted);
}
