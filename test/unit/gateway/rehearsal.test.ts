/** A gateway's rehearsal goes through what it will really do, and leaves nothing behind. */
import { expect, it } from 'vitest';
import { gatewayRehearsal } from '../../../gateway/rehearsal.js';

it('each part plays to its end, again and again, and leaves no timer, socket or file', async () => {
  const before = process.getActiveResourcesInfo().toSorted();
  const parts = gatewayRehearsal();
  expect(Object.keys(parts)).toEqual(['channel', 'data plane', 'member']);
  for (let round = 0; round < 3; round += 1) {
    for (const [name, part] of Object.entries(parts)) {
      await expect(Promise.resolve(part()), name).resolves.toBeUndefined();
    }
  }
  expect(process.getActiveResourcesInfo().toSorted()).toEqual(before);
});
