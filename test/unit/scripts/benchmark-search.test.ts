/** The search for the highest loss-free packet rate, on tunnels whose limit is known. */
import { describe, expect, it } from 'vitest';
import { lossFreeRate, type Probe } from '../../../scripts/benchmark/search.js';

const LIMIT = 0.001;
const OPTIONS = { lossLimit: LIMIT, precision: 0.03, confirmations: 2 };

interface Asked {
  readonly pps: number;
  readonly length: 'short' | 'long';
}

/** A tunnel that passes `capacity` packets a second, behind a sender that can offer `offer`. */
function bed(
  capacity: number,
  offer: number,
  distort?: (asked: Asked, n: number) => number | undefined,
) {
  const asked: Asked[] = [];
  const probe = async (pps: number, length: Asked['length']): Promise<Probe> => {
    asked.push({ pps, length });
    const offered = pps === 0 ? offer : Math.min(pps, offer);
    const loss =
      distort?.({ pps: offered, length }, asked.length) ??
      Math.max(0, (offered - capacity) / offered);
    return { offered, received: offered * (1 - loss), loss };
  };
  return { asked, probe };
}

describe('the search for the loss-free rate', () => {
  it.each([700, 4_000, 90_000, 640_000, 1_900_000])(
    'finds a limit of %i/s from below',
    async (limit) => {
      const { probe } = bed(limit, 2_000_000);
      const { pps, generatorLimit } = await lossFreeRate({ ...OPTIONS, probe });
      expect(pps).toBeLessThanOrEqual(limit * (1 + LIMIT * 1.01));
      expect(pps).toBeGreaterThan(limit * 0.96);
      expect(generatorLimit).toBe(false);
    },
  );

  it('finds it again from where it was found before, in fewer runs', async () => {
    const cold = await lossFreeRate({ ...OPTIONS, probe: bed(50_000, 2_000_000).probe });
    const near = await lossFreeRate({
      ...OPTIONS,
      probe: bed(50_000, 2_000_000).probe,
      near: cold.pps,
    });
    expect(near.pps).toBeGreaterThan(48_000);
    expect(near.probes).toBeLessThanOrEqual(cold.probes);
  });

  it('says so when the sender is at its end before the tunnel is', async () => {
    const { probe } = bed(5_000_000, 1_000_000);
    const result = await lossFreeRate({ ...OPTIONS, probe });
    expect(result).toMatchObject({ pps: 1_000_000, generatorLimit: true });
  });

  it('goes on past a sender that was held up, and finds the limit of the tunnel behind it', async () => {
    // On a busy machine a tenth of what is due is not sent.
    const probe = async (pps: number): Promise<Probe> => {
      const offered = pps === 0 ? 400_000 : pps * 0.9;
      const loss = Math.max(0, (offered - 50_000) / offered);
      return { offered, received: offered * (1 - loss), loss };
    };
    const { pps, generatorLimit } = await lossFreeRate({ ...OPTIONS, probe, near: 10_000 });
    expect(pps).toBeGreaterThan(48_000);
    expect(pps).toBeLessThanOrEqual(50_000 * (1 + LIMIT * 1.01));
    expect(generatorLimit).toBe(false);
  });

  it('stops where the sender does not get on, however much is wanted', async () => {
    const probe = async (pps: number): Promise<Probe> => {
      const offered = Math.min(pps, 70_000);
      return { offered, received: offered, loss: 0 };
    };
    const result = await lossFreeRate({ ...OPTIONS, probe, near: 50_000 });
    expect(result).toMatchObject({ pps: 70_000, generatorLimit: true });
    expect(result.probes).toBeLessThan(12);
  });

  it('reports what was offered, not what was wanted', async () => {
    // A sender that always falls 3 % behind.
    const probe = async (pps: number): Promise<Probe> => {
      const offered = pps === 0 ? 400_000 : pps * 0.97;
      const loss = Math.max(0, (offered - 100_000) / offered);
      return { offered, received: offered * (1 - loss), loss };
    };
    const { pps } = await lossFreeRate({ ...OPTIONS, probe });
    expect(pps).toBeLessThanOrEqual(100_000 * (1 + LIMIT * 1.01));
  });

  it('does not let one hiccup in each rate lower the result', async () => {
    const seen = new Set<number>();
    const hiccup = ({ pps, length }: Asked): number | undefined => {
      if (length === 'long' || seen.has(pps)) return undefined;
      seen.add(pps);
      return Math.max(0.01, (pps - 100_000) / pps);
    };
    const { pps } = await lossFreeRate({
      ...OPTIONS,
      probe: bed(100_000, 1_000_000, hiccup).probe,
    });
    expect(pps).toBeGreaterThan(95_000);
  });

  it('does not believe a lucky short run: the winner has to hold in long ones', async () => {
    // Short runs hold up to 200,000/s because queues swallow them; in the long run 100,000/s pass.
    const lucky = ({ pps, length }: Asked): number => {
      const capacity = length === 'short' ? 200_000 : 100_000;
      return Math.max(0, (pps - capacity) / pps);
    };
    const { asked, probe } = bed(0, 1_000_000, lucky);
    const { pps } = await lossFreeRate({ ...OPTIONS, probe });
    expect(pps).toBeLessThanOrEqual(100_100);
    expect(pps).toBeGreaterThan(75_000);
    const last = asked.slice(-OPTIONS.confirmations);
    expect(last.every(({ length }) => length === 'long')).toBe(true);
  });

  it('gives 0 for a tunnel that loses at every rate', async () => {
    const { probe } = bed(0, 1_000_000, () => 0.5);
    const { pps } = await lossFreeRate({ ...OPTIONS, probe });
    expect(pps).toBe(0);
  });
});
