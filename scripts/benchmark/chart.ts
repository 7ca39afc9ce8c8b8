/** A bar chart of the benchmark's throughput as SVG: no library, because it is forty lines of text. */
import type { Row } from './main.js';

const WIDTH = 760;
const LABEL = 190;
const BAR = 22;
const GAP = 8;
const TOP = 40;

const xml = (text: string) =>
  text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('"', '&quot;');

/** One bar for each tunnel, longest first; the bare veth pair is left out, because it would dwarf the rest. */
export function chart(rows: readonly Row[]): string {
  const bars = rows
    .filter((row) => row.tcpGbit !== undefined && row.name !== 'raw veth')
    .sort((x, y) => (y.tcpGbit ?? 0) - (x.tcpGbit ?? 0));
  const longest = Math.max(...bars.map((row) => row.tcpGbit ?? 0), 1);
  const height = TOP + bars.length * (BAR + GAP) + GAP;
  const lines = bars.map((row, i) => {
    const y = TOP + i * (BAR + GAP);
    const value = row.tcpGbit ?? 0;
    const width = Math.max(1, Math.round((value / longest) * (WIDTH - LABEL - 90)));
    const fill = row.name.startsWith('pairwire') ? '#0b7285' : '#adb5bd';
    return [
      `<text x="${LABEL - 8}" y="${y + 16}" text-anchor="end">${xml(row.name)}</text>`,
      `<rect x="${LABEL}" y="${y}" width="${width}" height="${BAR}" fill="${fill}"/>`,
      `<text x="${LABEL + width + 6}" y="${y + 16}">${value.toFixed(2)}</text>`,
    ].join('\n');
  });
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${height}" font-family="sans-serif" font-size="13">`,
    `<rect width="${WIDTH}" height="${height}" fill="#ffffff"/>`,
    `<text x="12" y="24" font-size="15">One TCP stream, Gbit/s, both ends on one machine</text>`,
    ...lines,
    '</svg>\n',
  ].join('\n');
}
