/** What an endurance run has shown: one verdict for each check. */
import type { StreamResult } from '../laboratory/stream.js';
import { type Level, levelOf, type Point } from './level.js';
import type { ProcessSample, Sample } from './samples.js';

export interface Verdict {
  readonly check: string;
  readonly ok: boolean;
  readonly detail: string;
}

const MiB = 1 << 20;
/** What a process may grow in the time looked at: a JavaScript heap settles slowly, C++ hardly at all. */
const MEMORY_ALLOWANCE = { node: 16 * MiB, native: 2 * MiB } as const;
const DESCRIPTOR_ALLOWANCE = 3;
/** A stream may be silent so long around a restart. */
const MAX_SILENCE_MS = 15_000;

/** Reasons that honest members never cause, restarts or not. */
const NEVER = [
  'malformed',
  'reflected',
  'replayed',
  'not_authentic',
  'not_fresh',
  'wrong_source_mac',
  'wrong_destination',
  'group_unicast_mac',
  'group_unicast_ip',
  'loop',
  'counter_limit',
  'tap_write_failed',
  'orphaned',
  'storm',
  'inner_ethertype_own',
] as const;

/** What the traffic came to. */
export interface TrafficResult {
  readonly streams: Readonly<Record<string, StreamResult>>;
  /** Datagrams lost in the quiet end of the run, by stream. */
  readonly lostAtEnd: Readonly<Record<string, number>>;
  /** Bytes of each TCP run, and whether a restart fell into it. */
  readonly tcp: readonly { readonly bytes: number; readonly disturbed: boolean }[];
  readonly newMembers: number;
  readonly failures: readonly string[];
  readonly restarts: number;
}

/** @param quietFrom when the restarts had ended and their effects were over, seconds */
export function judge(
  samples: readonly Sample[],
  traffic: TrafficResult,
  quietFrom: number,
): Verdict[] {
  return [
    ...processVerdicts(samples),
    ...counterVerdicts(samples, quietFrom),
    ...trafficVerdicts(traffic),
  ];
}

/** Memory and descriptors, of the longest life of each process. */
function processVerdicts(samples: readonly Sample[]): Verdict[] {
  const lives = new Map<string, Map<string, { at: number; sample: ProcessSample }[]>>();
  for (const { at, processes } of samples) {
    for (const sample of processes) {
      const ofRole = lives.get(sample.role) ?? new Map();
      lives.set(sample.role, ofRole);
      ofRole.set(sample.life, [...(ofRole.get(sample.life) ?? []), { at, sample }]);
    }
  }
  return [...lives].flatMap(([role, ofRole]) => {
    const longest = [...ofRole.values()].reduce((a, b) => (b.length > a.length ? b : a));
    const points = (value: (sample: ProcessSample) => number): Point[] =>
      longest.map(({ at, sample }) => ({ at, value: value(sample) }));
    const isNode = /control$|keyserver$/.test(role);
    const memory = points(({ rssBytes }) => rssBytes);
    const rss = levelOf(memory, isNode ? MEMORY_ALLOWANCE.node : MEMORY_ALLOWANCE.native);
    const descriptors = levelOf(
      points((sample) => sample.descriptors),
      DESCRIPTOR_ALLOWANCE,
    );
    const last = memory.at(-1)?.value ?? 0;
    const seconds = Math.round((longest.at(-1)?.at ?? 0) - (longest[0]?.at ?? 0));
    const mebibytes = (bytes: number) => `${(bytes / MiB).toFixed(1)} MiB`;
    const told = (level: Level, growth: string) =>
      level.enough
        ? `${growth} of growth in ${seconds} s`
        : `lived ${seconds} s, too short to tell`;
    return [
      {
        check: `memory of ${role}`,
        ok: rss.level,
        detail: `${mebibytes(last)}; ${told(rss, mebibytes(rss.growth))}`,
      },
      {
        check: `descriptors of ${role}`,
        ok: descriptors.level,
        detail: `${longest.at(-1)?.sample.descriptors}; ${told(descriptors, descriptors.growth.toFixed(1))}`,
      },
    ];
  });
}

function counterVerdicts(samples: readonly Sample[], quietFrom: number): Verdict[] {
  const hosts = new Set(samples.flatMap(({ gateways }) => gateways.map(({ host }) => host)));
  const verdicts: Verdict[] = [];
  for (const host of hosts) {
    const own = samples.flatMap(({ at, gateways }) =>
      gateways.filter((one) => one.host === host).map((one) => ({ at, one })),
    );
    // A new data plane counts from 0, so each reason's highest value is looked at.
    const highest = (reason: string) =>
      Math.max(0, ...own.map(({ one }) => one.drops[reason] ?? 0));
    const bad = NEVER.filter((reason) => highest(reason) > 0);
    verdicts.push({
      check: `drops of ${host} that must not be`,
      ok: bad.length === 0,
      detail: bad.length === 0 ? 'none' : bad.map((one) => `${one} ${highest(one)}`).join(', '),
    });
    const quiet = own.filter(({ at }) => at >= quietFrom);
    const [first, last] = [quiet[0]?.one.drops ?? {}, quiet.at(-1)?.one.drops ?? {}];
    const grown = Object.keys(last).filter((reason) => (last[reason] ?? 0) > (first[reason] ?? 0));
    verdicts.push({
      check: `drops of ${host} stand still when nothing is restarted`,
      ok: quiet.length >= 2 && grown.length === 0,
      detail: grown.length === 0 ? `over ${quiet.length} samples` : grown.join(', '),
    });
    const lost = own.at(-1)?.one;
    const events = (lost?.eventsLost ?? 0) + (lost?.eventsRefused ?? 0);
    verdicts.push({
      check: `events of ${host}`,
      ok: events === 0,
      detail: `${events} lost or refused`,
    });
  }
  return verdicts;
}

function trafficVerdicts(traffic: TrafficResult): Verdict[] {
  const verdicts: Verdict[] = [];
  for (const [name, { sent, lost, repeated, silences }] of Object.entries(traffic.streams)) {
    const longest = Math.max(0, ...silences.map(([, ms]) => ms));
    const atEnd = traffic.lostAtEnd[name] ?? 0;
    verdicts.push({
      check: `stream ${name}`,
      ok: repeated === 0 && atEnd === 0 && longest < MAX_SILENCE_MS,
      detail: `${sent} sent, ${lost} lost in restarts, ${atEnd} at the end, ${repeated} repeated, longest silence ${longest} ms`,
    });
  }
  const broken = traffic.tcp.filter(({ bytes, disturbed }) => bytes === 0 && !disturbed).length;
  const bytes = traffic.tcp.reduce((sum, one) => sum + one.bytes, 0);
  verdicts.push({
    check: 'TCP',
    ok: traffic.tcp.length > 0 && broken === 0 && bytes > 0,
    detail: `${traffic.tcp.length} runs, ${(bytes / MiB).toFixed(0)} MiB, ${broken} broken without a restart`,
  });
  verdicts.push({
    check: 'activities',
    ok: traffic.failures.length === 0 && traffic.newMembers > 0 && traffic.restarts > 0,
    detail: [
      `${traffic.newMembers} new members, ${traffic.restarts} restarts`,
      ...traffic.failures,
    ].join('; '),
  });
  return verdicts;
}
