/** The result as tables: on the terminal, and as Markdown for the README. */
import Table from 'cli-table3';
import { type FigureName, placeOf, type Result, type Row, value } from './result.js';
import { type TargetLine, targetLines } from './targets.js';

const HEAD = [
  'tunnel',
  'layer',
  'TCP 1',
  'TCP 4',
  'TCP back',
  'CPU s/GB',
  '64 B kpps',
  '512 B',
  '1400 B',
  'idle us',
  'p99',
  'loaded us',
  'p99',
  'MB',
] as const;

/** What stands below the first table, on the terminal. */
const LEGEND = [
  'TCP in Gbit/s: one stream, four, one the other way. CPU: of the whole machine beyond what raw veth needs.',
  'kpps: 1,000 packets a second with at most 0.1 % loss, size of the IP packet; + where the generator was at its end.',
  'Round trips: median and 99th percentile. MB: a host, what carries packets + what only controls.',
].join('\n');

const number = (figure: number | undefined, digits: number): string =>
  figure === undefined ? '-' : figure.toFixed(digits);

/** Cells of one row behind its name and layer. */
function cells(row: Row): string[] {
  const rate = (name: FigureName): string => {
    const pps = value(row, name);
    const plus = row.generatorLimits.includes(name) ? '+' : '';
    return pps === undefined ? '-' : `${(pps / 1000).toFixed(0)}${plus}`;
  };
  const throughput = (name: FigureName) => number(value(row, name), 2);
  const control = value(row, 'controlMemoryMB') ?? 0;
  return [
    throughput('tcp1Gbit'),
    throughput('tcp4Gbit'),
    throughput('tcpReverseGbit'),
    number(value(row, 'cpuAboveVethSecondsPerGB'), 2),
    rate('pps64'),
    rate('pps512'),
    rate('pps1400'),
    number(value(row, 'idleP50Us'), 0),
    number(value(row, 'idleP99Us'), 0),
    number(value(row, 'loadedP50Us'), 0),
    number(value(row, 'loadedP99Us'), 0),
    number(value(row, 'packetMemoryMB'), 0) + (control > 0 ? `+${control.toFixed(0)}` : ''),
  ];
}

/** Debian's part of a version says nothing to a reader. */
function title(row: Row): string {
  const version = row.version === undefined ? '' : ` ${row.version.replace(/[-+~].*$/, '')}`;
  return `${row.name}${version}${row.failed === undefined ? '' : ' (failed)'}`;
}

/** Both tables for a terminal. */
export function terminalReport(result: Result): string {
  const table = new Table({ head: [...HEAD], style: { head: [], border: [], compact: true } });
  for (const row of result.rows) {
    table.push([row.name, row.layer, ...cells(row)]);
    if (row.failed !== undefined) {
      table.push(['', { colSpan: HEAD.length - 1, content: `failed: ${row.failed}` }]);
    }
  }
  const targets = new Table({
    head: ['what', 'target', 'measured', 'met', ''],
    style: { head: [], border: [], compact: true },
  });
  for (const line of targetLines(result)) {
    targets.push([line.what, wanted(line), measured(line), verdict(line), line.note]);
  }
  return `${table.toString()}\n${LEGEND}\n\n${targets.toString()}\n`;
}

function wanted(line: TargetLine): string {
  const { target, unit } = line;
  if (target?.least !== undefined) return `>= ${target.least} ${unit}`;
  if (target?.most !== undefined) return `<= ${target.most} ${unit}`;
  return '-';
}

function measured(line: TargetLine): string {
  if (line.measured === undefined) return '-';
  return `${line.measured.toFixed(line.unit === 'MB' ? 0 : 2)} ${line.unit}`;
}

function verdict(line: TargetLine): string {
  if (line.met === undefined) return '-';
  return line.met ? 'yes' : 'no';
}

/** The newest run as a section of the README, without its markers. */
export function markdownReport(result: Result): string {
  const columns: readonly [string, (row: Row) => string][] = [
    ['tunnel', title],
    ['layer', (row) => `${row.layer}`],
    ['TCP, Gbit/s', (row) => cells(row)[0] ?? '-'],
    ['4 streams', (row) => cells(row)[1] ?? '-'],
    ['64-byte kpps', (row) => cells(row)[4] ?? '-'],
    ['1400-byte kpps', (row) => cells(row)[6] ?? '-'],
    ['round trip, us', (row) => cells(row)[7] ?? '-'],
    ['loaded, us', (row) => cells(row)[9] ?? '-'],
    ['CPU s/GB', (row) => cells(row)[3] ?? '-'],
  ];
  const line = (words: readonly string[]) => `| ${words.join(' | ')} |`;
  const runs = result.mode === 'full' ? `${result.rounds} rounds` : `${result.rounds} short rounds`;
  const targets = targetLines(result).filter((one) => one.target !== undefined);
  return [
    `![Throughput, packet rate and round trip of each tunnel](docs/bench/latest.svg)`,
    '',
    `Medians of ${runs} on ${result.when.slice(0, 10)}: ${placeOf(result)}; both`,
    'ends and the load generator on the same machine. Ratios within one run are what counts.',
    '',
    line(columns.map(([head]) => head)),
    `|${columns.map(() => '---|').join('')}`,
    ...result.rows.map((row) => line(columns.map(([, cell]) => cell(row)))),
    '',
    line(['target', 'wanted', 'measured', 'met', 'against']),
    '|---|---|---|---|---|',
    ...targets.map((one) => line([one.what, wanted(one), measured(one), verdict(one), one.note])),
  ].join('\n');
}
