/**
 * The speed that was set as a target, and what a run says to it. What is near its target is compared in turns, the rest by the medians
 * of the whole run.
 */
import { type Comparison, type FigureName, type Result, ROW, type Row, value } from './result.js';

export interface TargetLine {
  readonly what: string;
  /** Undefined: no target, the ratio is told for information. */
  readonly target?: { readonly least?: number; readonly most?: number };
  readonly unit: 'x' | 'ms' | 'MB';
  readonly measured?: number;
  readonly met?: boolean;
  /** Against which row, or why there is no measured value. */
  readonly note: string;
}

/** Peers as Debian 12 packages them, wireguard-go apart: it is a target of its own. */
const PACKAGED = ['nebula', 'openvpn (TAP)', 'tinc (switch)', 'fastd (TAP)', 'n2n'];

/** Ratios to measure in turns, of the rows that there are. */
export function comparisonsFor(rows: readonly Row[]): Omit<Comparison, 'ratio'>[] {
  const newer = newerWireguard(rows)?.name;
  const wanted = [
    { row: ROW.own, base: newer, figure: 'tcp1Gbit' },
    { row: ROW.own, base: ROW.off, figure: 'tcp1Gbit' },
    { row: ROW.crowd, base: ROW.own, figure: 'tcp1Gbit' },
    { row: ROW.own, base: newer ?? ROW.wireguard, figure: 'idleP50Us' },
  ] as const;
  const stands = (name: string | undefined): name is string =>
    rows.some((one) => one.name === name && one.failed === undefined);
  return wanted.flatMap(({ row, base, figure }) =>
    stands(row) && stands(base) ? [{ row, base, figure }] : [],
  );
}

/** The wireguard-go that the user brought: newer than Debian's, so with GSO and GRO. */
function newerWireguard(rows: readonly Row[]): Row | undefined {
  return best(
    rows.filter((one) => one.kind === 'peer' && one.name.startsWith(`${ROW.wireguard} `)),
    'tcp1Gbit',
  );
}

/** All lines, also those that could not be measured. */
export function targetLines(result: Pick<Result, 'rows' | 'comparisons'>): TargetLine[] {
  const { rows, comparisons = [] } = result;
  const row = (name: string) => rows.find((one) => one.name === name);
  const own = row(ROW.own);
  const peers = rows.filter((one) => one.kind === 'peer');
  const packaged = peers.filter((one) => PACKAGED.includes(one.name));
  const layer2 = packaged.filter((one) => one.layer === 2);
  const wireguard = row(ROW.wireguard);
  const newer = newerWireguard(rows);
  const crowd = row(ROW.crowd);
  const ratio = ratioBy(comparisons);

  return [
    ratio('TCP, one stream, against a newer wireguard-go (GSO, GRO)', own, newer, 'tcp1Gbit', {
      target: { least: 3 },
      missing: 'give one with --peer PATH',
    }),
    ratio("TCP, one stream, against Debian's wireguard-go", own, wireguard, 'tcp1Gbit'),
    ratio(
      'TCP, one stream, against the best of openvpn, tinc, fastd, n2n, nebula',
      own,
      best(packaged, 'tcp1Gbit'),
      'tcp1Gbit',
      { target: { least: 8 } },
    ),
    ratio(
      'TCP, one stream, against the best layer-2 peer',
      own,
      best(layer2, 'tcp1Gbit'),
      'tcp1Gbit',
    ),
    ratio('TCP, one stream, against encryption off', own, row(ROW.off), 'tcp1Gbit', {
      target: { least: 0.7 },
    }),
    ratio(
      '64-byte packets without loss, against the best peer',
      own,
      best(peers, 'pps64'),
      'pps64',
      { target: { least: 2 } },
    ),
    ratio('round trip, idle, against wireguard-go', own, newer ?? wireguard, 'idleP50Us', {
      target: { most: 0.6 },
    }),
    ratio(
      'TCP over `ethernet`, against the best layer-2 peer',
      row(ROW.ethernet),
      best(layer2, 'tcp1Gbit'),
      'tcp1Gbit',
      { target: { least: 3 } },
    ),
    judged({
      what: 'first ping with no key cached, beyond the second',
      unit: 'ms',
      target: { most: 5 },
      measured: value(own, 'firstPingExtraMs'),
      note: 'key and neighbour are asked for',
    }),
    ratio('10,000 members in the tables instead of 1: TCP, one stream', crowd, own, 'tcp1Gbit', {
      target: { least: 0.95 },
    }),
    judged({
      what: '10,000 members in the tables instead of 1: memory of a host',
      unit: 'MB',
      target: { most: 100 },
      measured: difference(value(crowd, 'packetMemoryMB'), value(own, 'packetMemoryMB')),
      note: 'data plane and broker',
    }),
  ];
}

/** The row with the highest figure. */
export function best(rows: readonly Row[], name: FigureName): Row | undefined {
  return rows
    .filter((row) => value(row, name) !== undefined)
    .sort((x, y) => (value(y, name) ?? 0) - (value(x, name) ?? 0))[0];
}

interface RatioOptions {
  readonly target?: TargetLine['target'];
  readonly missing?: string;
}

/** A line for a figure of one row as a multiple of another's: as it was measured in turns, else by their medians. */
function ratioBy(comparisons: readonly Comparison[]) {
  return (
    what: string,
    row: Row | undefined,
    base: Row | undefined,
    name: FigureName,
    { target, missing }: RatioOptions = {},
  ): TargetLine => {
    const above = value(row, name);
    const below = value(base, name);
    const inTurns = comparisons.find(
      (one) => one.row === row?.name && one.base === base?.name && one.figure === name,
    );
    const ofMedians =
      above === undefined || below === undefined || below === 0 ? undefined : above / below;
    const measured = inTurns?.ratio.median ?? ofMedians;
    if (measured === undefined) {
      const note = missing ?? (above === undefined ? 'not in this run' : 'nothing to compare with');
      return judged({ what, unit: 'x', target, measured, note });
    }
    const note = `${base?.name}${inTurns === undefined ? '' : ', in turns'}`;
    return judged({ what, unit: 'x', target, measured, note });
  };
}

function difference(x: number | undefined, y: number | undefined): number | undefined {
  return x === undefined || y === undefined ? undefined : x - y;
}

function judged(line: {
  readonly what: string;
  readonly unit: TargetLine['unit'];
  readonly target: TargetLine['target'];
  readonly measured: number | undefined;
  readonly note: string;
}): TargetLine {
  const { what, unit, target, measured, note } = line;
  const known = {
    what,
    unit,
    note,
    ...(target === undefined ? {} : { target }),
  };
  if (measured === undefined) return known;
  if (target === undefined) return { ...known, measured };
  const met =
    measured >= (target.least ?? Number.NEGATIVE_INFINITY) &&
    measured <= (target.most ?? Number.POSITIVE_INFINITY);
  return { ...known, measured, met };
}
