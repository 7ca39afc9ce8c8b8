/** What tests of linked subnets ask: whether link ports have found each other, and what was on the way between them. */
import type { Capture } from '../../../scripts/laboratory/capture.js';
import type { Lab } from '../../../scripts/laboratory/lab.js';
import { waitFor } from '../../../scripts/laboratory/processes.js';

/** A busy machine takes its time until all link ports have their keys. */
const LINKED_MS = 60_000;

/** Waits until each of these link ports has a key for so many others, and a way to each that answers. */
export async function waitForLinks(lab: Lab, links: Readonly<Record<string, number>>) {
  await waitFor(
    async () => {
      for (const [name, wanted] of Object.entries(links)) {
        const { peers } = await lab.port(name);
        const ready = peers.filter(({ hasKey, path }) => hasKey && path === 'direct');
        if (ready.length !== wanted || peers.length !== wanted) return false;
      }
      return true;
    },
    { what: `links of ${Object.keys(links).join(', ')}`, timeoutMs: LINKED_MS, everyMs: 100 },
  );
}

/** How many packets of captures have this text in them; ends the captures. */
export async function packetsWith(captures: readonly Capture[], text: string): Promise<number> {
  const packets = (await Promise.all(captures.map((one) => one.stop()))).flat();
  return packets.filter(({ bytes }) => bytes.includes(text)).length;
}
