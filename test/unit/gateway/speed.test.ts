/** `pairwire bench`: the real program measures this machine. */
import { describe, expect, it } from 'vitest';
import { measureSpeed } from '../../../gateway/speed.js';
import { SUITES } from '../../../src/protocol/constants.js';

describe('measuring this machine', () => {
  it('gives every suite with every library that is here, for the same sizes', async () => {
    const speeds = await measureSpeed();
    const backends = [...new Set(speeds.map((one) => one.backend))];
    expect(backends).toContain('libcrypto');
    const sizes = [...new Set(speeds.map((one) => one.size))];
    expect(sizes).toEqual([64, 256, 1420, 8900]);
    const rows = speeds.map(({ backend, suite, size }) => `${backend} ${suite} ${size}`);
    expect(rows.toSorted()).toEqual(
      backends
        .flatMap((backend) =>
          SUITES.flatMap((suite) => sizes.map((size) => `${backend} ${suite} ${size}`)),
        )
        .toSorted(),
    );
    for (const one of speeds) {
      expect(one.sealNs).toBeGreaterThan(0);
      expect(one.openNs).toBeGreaterThan(0);
      // 8 bits a byte, ns to s: the rate is the other way to say the same.
      expect(one.gbitPerSecond).toBeCloseTo((one.size * 8) / one.sealNs, 1);
    }
  });
});
