/**
 * The result as a picture: three groups of bars over the same tunnels. Written as SVG text, without a
 * library, because it is a hundred lines of rectangles.
 */
import { type FigureName, placeOf, type Result, ROW, type Row } from './result.js';

interface Group {
  readonly title: string;
  readonly about: string;
  readonly figure: FigureName;
  readonly shown: (figure: number) => string;
}

const GROUPS: readonly Group[] = [
  {
    title: 'TCP, one stream',
    about: 'Gbit/s, longer is better',
    figure: 'tcp1Gbit',
    shown: (gbit) => gbit.toFixed(gbit < 10 ? 2 : 1),
  },
  {
    title: '64-byte packets',
    about: '1,000/s without loss, longer is better',
    figure: 'pps64',
    shown: (pps) => (pps / 1000).toFixed(0),
  },
  {
    title: 'Round trip, idle',
    about: 'median in us, shorter is better',
    figure: 'idleP50Us',
    shown: (us) => us.toFixed(0),
  },
];

const MARGIN = 24;
const LABELS = 208;
const GROUP = 236;
const GROUP_GAP = 22;
/** Right of the longest bar, for its figure. */
const FIGURE = 46;
const TOP = 112;
const PITCH = 30;
const BAR = 18;
const BOTTOM = 46;
const WIDTH = MARGIN * 2 + LABELS + GROUPS.length * GROUP + (GROUPS.length - 1) * GROUP_GAP;

const COLOUR = { ceiling: '#c9d1d9', own: '#0f766e', peer: '#7c8ea3' } as const;
const INK = '#1f2933';
const FAINT = '#64748b';
const LINE = '#e5e9ee';

const KIND: Record<Row['kind'], string> = {
  own: 'Pairwire',
  peer: 'others',
  ceiling: 'no encryption: what could be reached at most',
};

const xml = (text: string) =>
  text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('"', '&quot;');

/** The chart of a result. Rows keep their order in each group, so that one line is one tunnel. */
export function chart(result: Result): string {
  const { rows } = result;
  const height = TOP + rows.length * PITCH + BOTTOM;
  const place = `${result.when.slice(0, 10)}, Pairwire ${result.version}, both ends on ${placeOf(result)}`;
  const lines = [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" width="${WIDTH}" height="${height}" font-family="DejaVu Sans, Verdana, Helvetica, Arial, sans-serif" font-size="12" fill="${INK}">`,
    `<rect width="${WIDTH}" height="${height}" rx="6" fill="#ffffff"/>`,
    text(MARGIN, 36, 'Tunnels between the same two network namespaces', {
      size: 17,
      weight: 'bold',
    }),
    ...legend(56),
    ...rows.map((row, i) => label(row, i)),
    ...GROUPS.flatMap((group, i) => bars(group, rows, i, height)),
    text(MARGIN, height - 18, place, { size: 11, colour: FAINT }),
    '</svg>',
  ];
  return `${lines.join('\n')}\n`;
}

function legend(y: number): string[] {
  let x = MARGIN;
  return (['own', 'peer', 'ceiling'] as const).flatMap((kind) => {
    const entry = [
      `<rect x="${x}" y="${y - 10}" width="11" height="11" rx="2" fill="${COLOUR[kind]}"/>`,
      text(x + 17, y, KIND[kind], { size: 11, colour: FAINT }),
    ];
    x += 40 + KIND[kind].length * 6.6;
    return entry;
  });
}

function label(row: Row, i: number): string {
  const y = TOP + i * PITCH;
  const weight = row.name === ROW.own ? 'bold' : 'normal';
  return text(MARGIN + LABELS - 12, y + BAR / 2 + 4, row.name, { weight, anchor: 'end' });
}

function bars(group: Group, rows: readonly Row[], index: number, height: number): string[] {
  const left = MARGIN + LABELS + index * (GROUP + GROUP_GAP);
  const room = GROUP - FIGURE;
  // The bare veth pair would dwarf the rest: it is cut off where it leaves the picture.
  const others = rows.filter((row) => row.name !== ROW.veth);
  const ends = (some: readonly Row[]) => some.map((row) => row.figures[group.figure]?.max ?? 0);
  const longest = Math.max(...ends(others), 0) || Math.max(...ends(rows), 1);
  const scale = (figure: number) => (Math.min(figure, longest) / longest) * room;
  const lines = [
    text(left, 86, group.title, { size: 13, weight: 'bold' }),
    text(left, 101, group.about, { size: 11, colour: FAINT }),
    `<line x1="${left}" x2="${left}" y1="${TOP - 4}" y2="${height - BOTTOM}" stroke="${LINE}" stroke-width="2"/>`,
  ];
  for (const [i, row] of rows.entries()) {
    const y = TOP + i * PITCH;
    const figure = row.figures[group.figure];
    if (figure === undefined) {
      lines.push(text(left + 8, y + BAR / 2 + 4, 'failed', { colour: FAINT }));
      continue;
    }
    const width = Math.max(2, scale(figure.median));
    lines.push(
      `<rect x="${left}" y="${y}" width="${width.toFixed(1)}" height="${BAR}" rx="2" fill="${COLOUR[row.kind]}"/>`,
    );
    const cut = figure.median > longest;
    if (cut) lines.push(tear(left + width - 16, y));
    else if (figure.max > figure.min)
      lines.push(spread(left, y, scale(figure.min), scale(figure.max)));
    const end = cut ? width : Math.max(width, scale(figure.max));
    const plus = row.generatorLimits.includes(group.figure) ? '+' : '';
    lines.push(
      text(left + end + 6, y + BAR / 2 + 4, group.shown(figure.median) + plus, {
        weight: row.name === ROW.own ? 'bold' : 'normal',
      }),
    );
  }
  return lines;
}

/** The smallest and the largest of the runs. */
function spread(left: number, y: number, from: number, to: number): string {
  const middle = y + BAR / 2;
  const x = (offset: number) => (left + offset).toFixed(1);
  return `<path d="M${x(from)} ${middle}H${x(to)}M${x(from)} ${middle - 4}v8M${x(to)} ${middle - 4}v8" stroke="${INK}" stroke-opacity="0.55" fill="none"/>`;
}

/** Two slanted gaps: the bar is longer than it is drawn. */
function tear(x: number, y: number): string {
  return `<path d="M${x.toFixed(1)} ${y + BAR + 1}l5 -${BAR + 2}M${(x + 5).toFixed(1)} ${y + BAR + 1}l5 -${BAR + 2}" stroke="#ffffff" stroke-width="2"/>`;
}

function text(
  x: number,
  y: number,
  content: string,
  style: {
    readonly size?: number;
    readonly weight?: 'bold' | 'normal';
    readonly colour?: string;
    readonly anchor?: 'end';
  } = {},
): string {
  const attributes = [
    ...(style.size === undefined ? [] : [`font-size="${style.size}"`]),
    ...(style.weight === 'bold' ? ['font-weight="bold"'] : []),
    ...(style.colour === undefined ? [] : [`fill="${style.colour}"`]),
    ...(style.anchor === undefined ? [] : [`text-anchor="${style.anchor}"`]),
  ];
  return `<text x="${x.toFixed(1)}" y="${y}" ${attributes.join(' ')}>${xml(content)}</text>`;
}
