/**
 * The highest packet rate that arrives: a search by halving, which knows that machines have
 * hiccups (one bad run is tried again where it was nearly good) and that runs can be lucky (the winner
 * has to win again, longer, before it counts).
 */

/** What one run offered and lost. */
export interface Probe {
  /** Packets a second that were really sent. */
  readonly offered: number;
  /** Packets a second that arrived. */
  readonly received: number;
  /** Share of the packets that did not arrive. */
  readonly loss: number;
}

export interface SearchOptions {
  /** Runs `pps` packets a second, 0: as fast as can be sent; `long` for the confirmation. */
  readonly probe: (pps: number, length: 'short' | 'long') => Promise<Probe>;
  /** A share of loss up to this counts as none. */
  readonly lossLimit: number;
  /** The search ends when good and bad rate lie closer together than this share. */
  readonly precision: number;
  /** How many long runs the winner has to stand in a row. */
  readonly confirmations: number;
  /** Where to begin, from an earlier search on the same tunnel. */
  readonly near?: number;
}

export interface SearchResult {
  /** The lowest rate that was offered in the confirming runs; 0 if nothing held. */
  readonly pps: number;
  /** The tunnel took all that the generator could offer: the true figure may be higher. */
  readonly generatorLimit: boolean;
  readonly probes: number;
}

const LOWEST = 500;
/** A run that lost no more than this many times the limit is tried once more. */
const NEARLY = 20;
/** Offered less than this share of what was wanted: the sender was held up, or is at its end. */
const IN_STEP = 0.95;
/** More than this times what was offered before is progress. */
const PROGRESS = 1.05;
const CONFIRMATION_STEPS = 12;

/** Finds the highest rate with a loss within the limit. */
export async function lossFreeRate(options: SearchOptions): Promise<SearchResult> {
  const { lossLimit, precision } = options;
  let probes = 0;
  const run = async (pps: number, length: 'short' | 'long') => {
    probes += 1;
    return options.probe(Math.round(pps), length);
  };
  const holds = (probe: Probe) => probe.loss <= lossLimit;
  const behind = (probe: Probe, pps: number) => probe.offered < pps * IN_STEP;

  // Nothing above what can be offered at all needs a look.
  let ceiling = Number.POSITIVE_INFINITY;
  let next = options.near;
  if (next === undefined) {
    const flood = await run(0, 'short');
    ceiling = flood.offered;
    next = holds(flood) ? flood.offered : Math.max(flood.received, LOWEST);
  }

  let good = 0;
  let bad = Number.POSITIVE_INFINITY;
  let generatorLimit = false;
  let mostOffered = 0;
  while (good === 0 || bad / good > 1 + precision) {
    const first = await run(next, 'short');
    const again = holds(first) ? behind(first, next) : first.loss <= lossLimit * NEARLY;
    const probe = again ? await run(next, 'short') : first;
    if (holds(probe)) {
      // What was asked for, not what was offered: else a sender that lags a little keeps the range open for ever.
      good = Math.max(good, next);
      // Behind is no proof that the sender is at its end: a busy machine delays it. No progress is.
      const upwards = bad === Number.POSITIVE_INFINITY;
      const stuck = upwards && behind(probe, next) && probe.offered < mostOffered * PROGRESS;
      mostOffered = Math.max(mostOffered, probe.offered);
      generatorLimit = stuck || next >= ceiling;
      if (generatorLimit) break;
    } else {
      bad = Math.min(bad, next);
      if (bad <= LOWEST) return { pps: 0, generatorLimit: false, probes };
    }
    next = nextRate(good, bad, ceiling);
  }

  // The winner has to win again; each time it does not, a little less is asked.
  let wanted = good;
  for (let step = 0; step < CONFIRMATION_STEPS; step++) {
    const offered: number[] = [];
    while (offered.length < options.confirmations) {
      const probe = await run(wanted, 'long');
      if (!holds(probe)) break;
      offered.push(probe.offered);
    }
    if (offered.length === options.confirmations) {
      return { pps: Math.min(...offered), generatorLimit, probes };
    }
    generatorLimit = false;
    wanted *= step < 4 ? 1 - precision : 0.8;
  }
  return { pps: 0, generatorLimit: false, probes };
}

function nextRate(good: number, bad: number, ceiling: number): number {
  if (bad === Number.POSITIVE_INFINITY) return Math.min(good * 1.4, ceiling);
  if (good === 0) return Math.max(bad * 0.6, LOWEST);
  return Math.sqrt(good * bad);
}
