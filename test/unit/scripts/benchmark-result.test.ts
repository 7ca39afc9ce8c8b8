/** What the benchmark makes of its values: medians, the table of targets, the chart, the README's block. */
import { describe, expect, it } from 'vitest';
import { chart } from '../../../scripts/benchmark/chart.js';
import { readmes } from '../../../scripts/benchmark/readme.js';
import { withBlock } from '../../../scripts/benchmark/readme-block.js';
import { terminalReport } from '../../../scripts/benchmark/report.js';
import {
  type FigureName,
  type Result,
  type Row,
  resultSchema,
} from '../../../scripts/benchmark/result.js';
import { figureOf, median } from '../../../scripts/benchmark/statistics.js';
import {
  comparisonsFor,
  type TargetLine,
  targetLines,
} from '../../../scripts/benchmark/targets.js';

type Figures = Partial<Record<FigureName, number>>;

function row(name: string, kind: Row['kind'], layer: 2 | 3, figures: Figures): Row {
  const entries = Object.entries(figures).map(([figure, value]) => [figure, figureOf([value])]);
  return { name, kind, layer, figures: Object.fromEntries(entries), generatorLimits: [] };
}

const ROWS: readonly Row[] = [
  row('raw veth', 'ceiling', 2, { tcp1Gbit: 40, pps64: 900_000, idleP50Us: 20 }),
  row('pairwire (encryption off)', 'ceiling', 2, { tcp1Gbit: 10 }),
  row('pairwire', 'own', 2, {
    tcp1Gbit: 8,
    pps64: 300_000,
    idleP50Us: 60,
    firstPingExtraMs: 3,
    packetMemoryMB: 20,
  }),
  row('pairwire (10,000 members)', 'own', 2, { tcp1Gbit: 7.2, packetMemoryMB: 90 }),
  row('wireguard-go', 'peer', 3, { tcp1Gbit: 2, pps64: 100_000, idleP50Us: 90 }),
  row('nebula', 'peer', 3, { tcp1Gbit: 1.5, pps64: 160_000, idleP50Us: 95 }),
  row('fastd (TAP)', 'peer', 2, { tcp1Gbit: 0.8, pps64: 90_000, idleP50Us: 70 }),
];
const newer = row('wireguard-go 0.0.20250522', 'peer', 3, { tcp1Gbit: 2.5, idleP50Us: 120 });

const result = (rows: readonly Row[]): Result => ({
  schema: 2,
  when: '2026-01-02T03:04:05.000Z',
  version: '0.1.0',
  mode: 'full',
  rounds: 5,
  congestionControl: 'cubic',
  minutes: 20,
  machine: { cpu: 'CPU', cores: 2, memoryGB: 4, kernel: '6.1', system: 'Debian', node: 'v20' },
  rows: [...rows],
});

function line(rows: readonly Row[], words: string): TargetLine {
  const found = targetLines(result(rows)).filter(({ what }) => what.includes(words));
  expect(found).toHaveLength(1);
  return found[0] as TargetLine;
}

describe('a figure', () => {
  it('is the median, with the extremes kept', () => {
    expect(figureOf([5, 1, 100])).toEqual({ median: 5, min: 1, max: 100, values: [5, 1, 100] });
    expect(median([4, 1, 2, 100])).toBe(3);
    expect(() => median([])).toThrow();
  });
});

describe('the targets', () => {
  it('compare with the newer wireguard-go only if the user brought one', () => {
    expect(line(ROWS, 'newer wireguard-go')).not.toHaveProperty('met');
    expect(line(ROWS, 'newer wireguard-go').note).toContain('--peer');
    const with_ = line([...ROWS, newer], 'newer wireguard-go');
    expect(with_).toMatchObject({ met: true, note: 'wireguard-go 0.0.20250522' });
    expect(with_.measured).toBeCloseTo(3.2);
  });

  it("take the best of the other packaged peers, wireguard-go's being no part of them", () => {
    const packaged = line(ROWS, 'openvpn, tinc');
    expect(packaged.note).toBe('nebula');
    expect(packaged.measured).toBeCloseTo(8 / 1.5);
    expect(packaged.met).toBe(false);
    expect(line(ROWS, 'TCP, one stream, against the best layer-2 peer').note).toBe('fastd (TAP)');
  });

  it('judge ratios, shares, times and memory each by its own bound', () => {
    expect(line(ROWS, 'encryption off')).toMatchObject({ measured: 0.8, met: true });
    expect(line(ROWS, '64-byte')).toMatchObject({ note: 'nebula', met: false });
    expect(line(ROWS, 'round trip').measured).toBeCloseTo(60 / 90);
    expect(line(ROWS, 'round trip').met).toBe(false);
    expect(line([...ROWS, newer], 'round trip').met).toBe(true);
    expect(line(ROWS, 'first ping')).toMatchObject({ measured: 3, met: true });
    expect(line(ROWS, 'members in the tables instead of 1: TCP').met).toBe(false);
    expect(line(ROWS, 'memory')).toMatchObject({ measured: 70, met: true });
  });

  it('take what was measured in turns before a ratio of medians, for those rows and that figure only', () => {
    const rows = [...ROWS, newer];
    const comparisons = comparisonsFor(rows).map((one, at) => ({
      ...one,
      ratio: figureOf([0.9, 4, at + 1]),
    }));
    const lines = targetLines({ rows, comparisons });
    const of = (words: string) => lines.find(({ what }) => what.includes(words));
    expect(of('newer wireguard-go')).toMatchObject({ measured: 1, met: false });
    expect(of('encryption off')).toMatchObject({
      measured: 2,
      note: 'pairwire (encryption off), in turns',
    });
    expect(of('members in the tables instead of 1: TCP')).toMatchObject({ measured: 3, met: true });
    expect(of('round trip')).toMatchObject({ measured: 4, met: false });
    expect(of('64-byte')?.measured).toBeCloseTo(300 / 160);
    expect(of('openvpn, tinc')?.note).toBe('nebula');
  });

  it('are compared in turns only where both rows stand', () => {
    const compared = (rows: readonly Row[]) => comparisonsFor(rows).map(({ base }) => base);
    expect(compared(ROWS)).toEqual(['pairwire (encryption off)', 'pairwire', 'wireguard-go']);
    expect(compared([...ROWS, newer])).toContain('wireguard-go 0.0.20250522');
    const failed = ROWS.map((one) => (one.kind === 'own' ? { ...one, failed: 'no ping' } : one));
    expect(compared(failed)).toEqual([]);
  });

  it('never count what was not measured as met', () => {
    const without = ROWS.filter(({ kind }) => kind !== 'peer');
    for (const { measured, met } of targetLines(result(without))) {
      if (measured === undefined) expect(met).toBeUndefined();
    }
    expect(line(ROWS, 'ethernet').measured).toBeUndefined();
  });
});

describe('the report', () => {
  it('shows why a row failed, and marks rates at which the generator was at its end', () => {
    const failed: Row = { ...row('n2n', 'peer', 2, {}), failed: 'opening: no ping' };
    const limited: Row = { ...(ROWS[0] as Row), generatorLimits: ['pps64'] };
    const text = terminalReport(result([limited, failed]));
    expect(text).toContain('failed: opening: no ping');
    expect(text).toMatch(/\b900\+/);
  });

  it('keeps a result that its own schema takes', () => {
    const rows = [...ROWS, newer];
    const comparisons = comparisonsFor(rows).map((one) => ({ ...one, ratio: figureOf([1, 2]) }));
    const whole = { ...result(rows), comparisons };
    expect(resultSchema.parse(JSON.parse(JSON.stringify(whole)))).toEqual(whole);
  });
});

describe('the chart', () => {
  it('has a bar for each tunnel in each group and keeps them inside the picture', () => {
    const svg = chart(result(ROWS));
    const size = /viewBox="0 0 (\d+) (\d+)"/.exec(svg);
    const bars = [...svg.matchAll(/<rect x="([\d.]+)" y="(\d+)" width="([\d.]+)" height="18"/g)];
    const measured = ROWS.flatMap(({ figures }) =>
      (['tcp1Gbit', 'pps64', 'idleP50Us'] as const).filter((name) => figures[name] !== undefined),
    );
    expect(bars).toHaveLength(measured.length);
    for (const [, x, y, width] of bars) {
      expect(Number(x) + Number(width)).toBeLessThan(Number(size?.[1]));
      expect(Number(y)).toBeLessThan(Number(size?.[2]));
    }
  });

  it('lets no name break out of its text', () => {
    expect(chart(result([row('<b>&"', 'peer', 3, { tcp1Gbit: 1 })]))).toContain(
      '&lt;b>&amp;&quot;',
    );
  });
});

describe("the README's block", () => {
  const README =
    'before\n<!-- bench:begin (scripts/bench writes what follows) -->\nold\n<!-- bench:end -->\nafter\n';

  it('is replaced, the rest stays, and a second time changes nothing', () => {
    const once = withBlock(README, result(ROWS));
    expect(once).toMatch(/^before\n<!-- bench:begin/);
    expect(once).toMatch(/<!-- bench:end -->\nafter\n$/);
    expect(once).not.toContain('old');
    expect(once).toMatch(/\| pairwire \| 2 \| 8\.00 \|/);
    expect(withBlock(once, result(ROWS))).toBe(once);
  });

  it('refuses a text without both markers', () => {
    expect(() => withBlock('nothing here', undefined)).toThrow(/markers/);
    expect(() => withBlock(`${README}${README}`, undefined)).toThrow(/markers/);
  });

  it('in README.md shows the newest run of docs/bench', () => {
    const { now, wanted } = readmes();
    expect(now).toBe(wanted);
  });
});
