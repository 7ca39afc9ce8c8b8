/**
 * A topology as a picture (SVG): each segment is a bar, each host a box that hangs on it; hosts on two segments
 * stand between their bars.
 */
import type { Topology, TopologyGateway, TopologyHost } from './topology.js';

/** Pixels. */
const BOX = { width: 168, height: 96, gap: 16 } as const;
const LEFT = 92;
const TOP = 56;
const ROW = 168;
const LINE = 15;

const COLOURS = {
  member: '#dbeafe',
  link: '#c7d2fe',
  server: '#fef3c7',
  router: '#e5e7eb',
  plain: '#fee2e2',
} as const;
const LEGEND: Readonly<Record<keyof typeof COLOURS, string>> = {
  member: 'member of a subnet',
  link: 'link gateway',
  server: 'key server',
  router: 'router or NAT box',
  plain: 'knows nothing of encryption',
};

/** The picture of a topology. */
export function drawTopology(topology: Topology, title: string): string {
  const segments = Object.keys(topology.segments);
  const hosts = Object.entries(topology.hosts);
  const single = (segment: string) =>
    hosts.filter(([, host]) => places(host).length === 1 && places(host)[0] === segment);
  const between = hosts.filter(([, host]) => places(host).length > 1);
  const columns = Math.max(1, ...segments.map((segment) => single(segment).length));
  const barOf = (segment: string) => TOP + segments.indexOf(segment) * ROW;
  const column = (at: number) => LEFT + at * (BOX.width + BOX.gap);
  const width = column(columns + between.length) + BOX.gap;
  const height = TOP + segments.length * ROW + 40;

  const bars = segments.map(
    (segment) =>
      `<line x1="${LEFT - BOX.gap}" y1="${barOf(segment)}" x2="${width - BOX.gap}" y2="${barOf(segment)}" stroke="#374151" stroke-width="4"/>` +
      text(8, barOf(segment) + 5, segment, 'bold'),
  );
  const boxes: string[] = [];
  const wires: string[] = [];
  const wire = (x: number, from: number, to: number) =>
    wires.push(`<line x1="${x}" y1="${from}" x2="${x}" y2="${to}" stroke="#374151"/>`);
  for (const segment of segments) {
    single(segment).forEach(([name, host], at) => {
      const y = barOf(segment) + 32;
      wire(column(at) + BOX.width / 2, barOf(segment), y);
      boxes.push(box(topology, name, host, column(at), y));
    });
  }
  between.forEach(([name, host], at) => {
    const bar = places(host).map(barOf);
    const x = column(columns + at);
    const y = Math.min(...bar) + 32;
    wire(x + BOX.width / 2, Math.min(...bar), Math.max(...bar));
    boxes.push(box(topology, name, host, x, y));
  });
  const legend = Object.entries(LEGEND).map(([kind, what], at) => {
    const x = LEFT + at * 190;
    const colour = COLOURS[kind as keyof typeof COLOURS];
    return (
      `<rect x="${x}" y="${height - 30}" width="14" height="14" fill="${colour}" stroke="#374151"/>` +
      text(x + 20, height - 18, what)
    );
  });
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="sans-serif" font-size="11">`,
    `<title>${escaped(title)}</title>`,
    `<rect width="${width}" height="${height}" fill="#ffffff"/>`,
    text(8, 22, title, 'bold'),
    ...bars,
    ...wires,
    ...boxes,
    ...legend,
    '</svg>',
    '',
  ].join('\n');
}

/** Segments that a host is on, each once. */
function places(host: TopologyHost): string[] {
  return [...new Set(host.interfaces.map(({ segment }) => segment))];
}

/** What a host without a key server is. */
function kindOf(host: TopologyHost, gateways: readonly TopologyGateway[]): keyof typeof COLOURS {
  const isLink = ({ token }: TopologyGateway) => token[token.indexOf('--role') + 1] === 'link';
  if (gateways.some(isLink)) return 'link';
  if (gateways.length > 0) return 'member';
  return host.kind === 'plain' ? 'plain' : 'router';
}

function box(topology: Topology, name: string, host: TopologyHost, x: number, y: number): string {
  const gateways = topology.gateways.filter((one) => one.host === name);
  const servers = Object.entries(topology.keyServers).filter(([, one]) => one.host === name);
  const kind = servers.length > 0 ? 'server' : kindOf(host, gateways);
  const lines = [
    ...host.interfaces.flatMap(({ name: device, addresses }) =>
      addresses.filter((one) => !one.includes(':')).map((one) => `${device} ${one}`),
    ),
    ...gateways.map(({ interface: device, subnet, addresses }) => {
      const [inside = ''] = addresses.filter((one) => !one.includes(':'));
      return `${device} in ${subnet} ${inside}`;
    }),
    ...servers.map(([subnet]) => `key server of ${subnet}`),
    ...(host.masquerade === undefined ? [] : ['NAT']),
  ];
  return [
    `<rect x="${x}" y="${y}" width="${BOX.width}" height="${BOX.height}" rx="6" fill="${COLOURS[kind]}" stroke="#374151"/>`,
    text(x + 8, y + 18, name, 'bold'),
    ...lines.slice(0, 5).map((one, at) => text(x + 8, y + 18 + (at + 1) * LINE, one)),
  ].join('');
}

function text(x: number, y: number, words: string, weight = 'normal'): string {
  return `<text x="${x}" y="${y}" font-weight="${weight}">${escaped(words)}</text>`;
}

function escaped(words: string): string {
  return words.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
}
