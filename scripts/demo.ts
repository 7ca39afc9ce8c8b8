/**
 * The demonstration; run it by scripts/demo. Two encrypted subnets with two members and a key server each, linked
 * through a router and a NAT box, a machine that can't encrypt behind a plain port, real programs, one line per
 * claim, captures of the underlay beside those of the inside, and a picture of what was built.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import pc from 'picocolors';
import { parseId } from '../src/protocol/ids.js';
import { defaultMac, macToBytes } from '../src/protocol/mac.js';
import { Lab } from './laboratory/lab.js';
import { cutOffloads } from './laboratory/network.js';
import { drawTopology } from './laboratory/picture.js';
import { run, waitFor } from './laboratory/processes.js';
import { listLabs } from './laboratory/state.js';
import { readTopology } from './laboratory/topology.js';

const NAME = `demo-${process.pid}`;
const SUBNET = 'east';
const SERVER = 'server-east';
const TOPOLOGY = 'config/lab/two-subnets.yaml';
const PICTURE = '.cache/demo.svg';
const BOB = '198.51.100.12';
const BOB_6 = '2001:db8:51::12';
const BOB_UNDERLAY = '192.0.2.12';
const PRINTER = '198.51.100.31';
const ALICE = '198.51.100.11';
/** In the other subnet. */
const CAROL = '203.0.113.13';
const CAROL_6 = '2001:db8:71::13';
const DAVE = '203.0.113.14';
/** Of no subnet. */
const STRANGER = '10.9.9.9';
const BROADCAST = '198.51.100.255';
const IPERF_SECONDS = 3;
/** Goes over TCP and in a broadcast; must never be seen outside. */
const SECRET = 'the-harvest-figures-are-4711';
const SHOUT = 'who-has-the-coffee-key';
/** Goes from one subnet to the other. */
const FAR_SECRET = 'the-vintage-figures-are-1147';
const LINK_MS = 30_000;
/** 16 bytes in each ping. */
const PING_HEX = '70696e672d7061796c6f61642d313131';

let failed = 0;
let claims = 0;

function title(text: string): void {
  console.log(`\n${pc.bold(text)}`);
}

function note(text: string): void {
  console.log(`  ${text}`);
}

function shown(lines: string): void {
  for (const line of lines.trimEnd().split('\n')) console.log(pc.dim(`    ${line.trimEnd()}`));
}

/** One line per claim. */
function claim(text: string, holds: boolean): void {
  claims += 1;
  if (!holds) failed += 1;
  console.log(`  ${holds ? pc.green('OK    ') : pc.red('FAILED')}  ${text}`);
}

/** A step that fails as a whole is a claim that does not hold; the rest goes on. */
async function step(text: string, action: () => Promise<void>): Promise<void> {
  title(text);
  try {
    await action();
  } catch (error) {
    if (interrupted) throw error;
    claim(`${text}: ${error instanceof Error ? error.message : String(error)}`, false);
  }
}

async function main(): Promise<void> {
  console.log(pc.bold('Pairwire: two encrypted Ethernet subnets, linked, and a plain machine'));
  note(
    'alice and bob share a wire in the east, carol and dave one in the west; each side has a key server.',
  );
  note(
    'Each has an interface pw0 in the encrypted subnet of its side, 198.51.100.0/24 or 203.0.113.0/24.',
  );
  note('printer knows nothing of all this: it stands behind edge, a gateway with a plain port.');
  note('Between the sides are a router and a NAT box; gw-east and gw-west link the two subnets.');

  title('Building the laboratory');
  const topology = readTopology(TOPOLOGY);
  mkdirSync('.cache', { recursive: true });
  writeFileSync(PICTURE, drawTopology(topology, 'Two encrypted subnets, linked'));
  note(`a picture of it: ${PICTURE}`);
  const lab = await Lab.create(topology, { name: NAME, log: (line) => note(line) });

  await step('Ping', () => showPing(lab));
  await step('Broadcast and multicast', () => showBroadcast(lab));
  await step('Throughput of one TCP stream', () => showThroughput(lab));
  await step('What a listener on the wire sees', () => showCaptures(lab));
  await step("A machine that can't encrypt", () => showPlainMachine(lab));
  await step('A machine that lies about its address', () => showForgedArp(lab));
  await step('The other subnet', () => showOtherSubnet(lab));
  await step('What is seen on the way to it', () => showFiveCaptures(lab));
  await step('What does not cross', () => showWhatDoesNotCross(lab));
  await step('A new key between the subnets', () => showNetRekey(lab));
  await step('Status', () => showStatus(lab));
}

async function showPing(lab: Lab): Promise<void> {
  const { stdout } = await lab.exec('alice', ['ping', '-n', '-c', '3', '-i', '0.2', BOB], {
    check: false,
  });
  const times = [...stdout.matchAll(/icmp_seq=(\d+) .*time=([\d.]+) ms/g)];
  shown(times.map((match) => match[0]).join('\n'));
  const [first, second] = times.map((match) => Number(match[2]));
  claim('the first ping is answered: it waited while the key was fetched', times[0]?.[1] === '1');
  if (first !== undefined && second !== undefined) {
    note(`first ${first.toFixed(2)} ms, second ${second.toFixed(2)} ms`);
  }
  const six = await lab.exec('alice', ['ping', '-n', '-c', '2', '-i', '0.2', BOB_6], {
    check: false,
  });
  claim('IPv6 works alike', six.stdout.includes('2 received'));
}

async function showBroadcast(lab: Lab): Promise<void> {
  const tap = await lab.capture('bob', { interface: 'pw0' });
  const shout = ['socat', '-u', '-', `UDP4-DATAGRAM:${BROADCAST}:9999,broadcast`];
  await lab.exec('alice', shout, { input: SHOUT });
  const heard = await tap
    .waitForPacket((packet) => packet.bytes.includes(SHOUT), 'the broadcast', 3_000)
    .then(() => true)
    .catch(() => false);
  await tap.stop();
  claim("bob hears alice's broadcast", heard);
  const { stdout } = await lab.exec(
    'alice',
    ['ping', '-n', '-c', '2', '-i', '0.3', 'ff02::1%pw0'],
    {
      check: false,
    },
  );
  const answers = new Set([...stdout.matchAll(/from (fe80::[0-9a-f:]+)/g)].map((m) => m[1]));
  const others = await Promise.all(['bob', 'gw-east'].map((host) => linkLocal(lab, host)));
  claim(
    'bob and gw-east both answer an IPv6 multicast ping',
    others.every((address) => address !== undefined && answers.has(address)),
  );
}

async function linkLocal(lab: Lab, host: string): Promise<string | undefined> {
  const { stdout } = await lab.exec(host, ['ip', '-6', 'address', 'show', 'pw0', 'scope', 'link']);
  return /inet6 (\S+)\//.exec(stdout)?.[1];
}

async function showThroughput(lab: Lab): Promise<void> {
  const plain = await iperf(lab, BOB_UNDERLAY, 5201);
  const sealed = await iperf(lab, BOB, 5202);
  note(`without encryption, on the wire itself  ${(plain / 1e9).toFixed(2)} Gbit/s`);
  note(`inside the encrypted subnet             ${(sealed / 1e9).toFixed(2)} Gbit/s`);
  note('(both ends, and both data planes, share the processors of this machine)');
  claim('a TCP stream runs inside the subnet', sealed > 0);
}

/** Bits per second of one stream from alice to bob. */
async function iperf(lab: Lab, address: string, port: number): Promise<number> {
  const server = lab.spawn('bob', ['iperf3', '-s', '-1', '-p', String(port), '-B', address]);
  await waitFor(
    async () => (await lab.exec('bob', ['ss', '-Hltn', `sport = :${port}`])).stdout !== '',
    { what: 'iperf3 to listen' },
  );
  const argv = ['iperf3', '-J', '-c', address, '-p', String(port), '-t', String(IPERF_SECONDS)];
  const { stdout } = await lab.exec('alice', argv, { timeoutMs: 30_000 });
  await lab.stop(server);
  const rate = /"sum_received":\s*\{[^}]*"bits_per_second":\s*([\d.e+]+)/.exec(stdout)?.[1];
  return Number(rate ?? 0);
}

async function showCaptures(lab: Lab): Promise<void> {
  for (const host of ['alice', 'bob', 'edge', 'gw-east', 'gw-west', 'carol'])
    await cutOffloads(lab.namespace(host), 'eth0');
  const outside = await lab.capture('east');
  const inside = await lab.capture('bob', { interface: 'pw0' });
  await lab.exec('alice', ['ping', '-n', '-c', '2', '-i', '0.2', '-p', PING_HEX, BOB]);
  const text = await sendText(lab, `${SECRET}\n`.repeat(200));
  claim('a text over TCP from alice to bob arrives unchanged', text);
  await lab.exec('alice', ['socat', '-u', '-', `UDP4-DATAGRAM:${BROADCAST}:9999,broadcast`], {
    input: SHOUT,
  });
  await inside.waitForPacket((packet) => packet.bytes.includes(SHOUT), 'the broadcast', 3_000);
  const seenInside = await inside.stop();
  const seenOutside = await outside.stop();

  note(`inside, at pw0 of bob (${seenInside.length} packets):`);
  shown(await excerpt(inside.file));
  note(`outside, on the wire (${seenOutside.length} packets):`);
  shown(await excerpt(outside.file));

  const expected =
    'udp.port == 7000 or udp.port == 7010 or tcp.port == 7100 or arp or icmpv6 or igmp';
  const rest = await run(['tshark', '-r', outside.file, '-Y', `not (${expected})`]);
  claim(
    'on the wire tshark sees sealed frames and secure-channel records only',
    rest.stdout.trim() === '',
  );
  const markers: Record<string, Buffer> = {
    'the payload of a ping': Buffer.from(PING_HEX, 'hex'),
    'a text sent over TCP': Buffer.from(SECRET),
    'a broadcast': Buffer.from(SHOUT),
    'the MAC address of pw0 of alice': macToBytes(defaultMac(SUBNET, parseId('alice'))),
    'the MAC address of pw0 of bob': macToBytes(defaultMac(SUBNET, parseId('bob'))),
  };
  const insideFile = readFileSync(inside.file);
  const outsideFile = readFileSync(outside.file);
  for (const [what, marker] of Object.entries(markers)) {
    const within = insideFile.includes(marker);
    claim(
      `${what}: found inside, and nowhere on the wire`,
      within && !outsideFile.includes(marker),
    );
  }
}

async function showPlainMachine(lab: Lab): Promise<void> {
  const office = await lab.capture('office');
  const wire = await lab.capture('east');
  const there = await lab.exec(
    'alice',
    ['ping', '-n', '-c', '3', '-i', '0.2', '-p', PING_HEX, PRINTER],
    { check: false },
  );
  claim('alice reaches printer by its address in the subnet', there.stdout.includes('3 received'));
  const back = await lab.exec('printer', ['ping', '-n', '-c', '3', '-i', '0.2', BOB], {
    check: false,
  });
  claim('and printer reaches bob, as if all were on one wire', back.stdout.includes('3 received'));
  const text = await sendText(lab, `${SECRET}\n`.repeat(20));
  claim('meanwhile alice and bob talk as before', text);
  await office.stop();
  await wire.stop();
  const inOffice = readFileSync(office.file);
  const onWire = readFileSync(wire.file);
  const ping = Buffer.from(PING_HEX, 'hex');
  claim(
    "alice's ping to printer is in clear on printer's wire only",
    inOffice.includes(ping) && !onWire.includes(ping),
  );
  claim("nothing that alice and bob say gets to printer's wire", !inOffice.includes(SECRET));
  const { stdout } = await lab.pairwire(SERVER, ['macs', '--dir', lab.serverDir(SUBNET)]);
  shown(stdout);
}

/** Says by ARP, to all on its wire and beyond, that an IP address is the machine's own. */
const LIE = [
  'import socket, sys',
  's = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)',
  's.bind(("eth0", 0))',
  'mac = s.getsockname()[4]',
  'ip = socket.inet_aton(sys.argv[1])',
  'arp = bytes.fromhex("0001080006040002") + mac + ip + b"\\xff" * 6 + ip',
  's.send(b"\\xff" * 6 + mac + bytes.fromhex("0806") + arp)',
].join('\n');

async function showForgedArp(lab: Lab): Promise<void> {
  const neighbour = async (): Promise<string> =>
    (await lab.exec('alice', ['ip', 'neigh', 'show', BOB, 'dev', 'pw0'])).stdout;
  const bob = defaultMac(SUBNET, parseId('bob'));
  await lab.exec('alice', ['ping', '-n', '-c', '1', BOB], { check: false });
  const before = await neighbour();
  await lab.exec('printer', ['python3', '-c', LIE, BOB]);
  const refused = await waitFor(async () => ((await lab.port('edge')).drops.arp_spoof ?? 0) > 0, {
    what: 'edge to refuse it',
  })
    .then(() => true)
    .catch(() => false);
  claim("printer says that bob's address is its own: edge refuses that", refused);
  const after = await neighbour();
  claim(
    "and alice's frames for bob still go to bob",
    [before, after].every((one) => one.includes(bob)),
  );
  const list = async (name: string): Promise<string> =>
    (await lab.pairwire(SERVER, [name, '--dir', lab.serverDir(SUBNET)])).stdout;
  const written = await waitFor(async () => (await list('audit')).includes('arp_spoof'), {
    what: 'the key server to write it down',
  })
    .then(() => true)
    .catch(() => false);
  claim('the key server has written it down', written);
  shown(await list('ip'));
}

async function showOtherSubnet(lab: Lab): Promise<void> {
  await waitFor(
    async () => (await lab.port('gw-east/link')).peers.some((peer) => peer.path === 'direct'),
    { what: 'the link', timeoutMs: LINK_MS },
  );
  const reaches = async (from: string, to: string) => {
    const argv = ['ping', '-n', '-c', '3', '-i', '0.2', '-W', '2', to];
    return (await lab.exec(from, argv, { check: false })).stdout.includes(' 3 received');
  };
  claim(
    'alice in the east reaches carol in the west, behind the NAT box',
    await reaches('alice', CAROL),
  );
  claim('and dave reaches alice', await reaches('dave', ALICE));
  claim('IPv6 crosses alike', await reaches('alice', CAROL_6));
  claim(
    'printer, which can not encrypt, reaches dave by the same way',
    await reaches('printer', DAVE),
  );
  const argv = ['traceroute', '-n', '-q', '1', '-w', '3', '-m', '6', CAROL];
  const { stdout } = await lab.exec('alice', argv, { check: false });
  shown(stdout);
  const hops = [...stdout.matchAll(/^ *\d+ +(\S+)/gm)].map((match) => match[1]);
  claim(
    'on the way are the two link gateways, and nothing is seen of the routers between',
    hops.length === 3 && hops[0] === '198.51.100.1' && hops[2] === CAROL,
  );
}

/** In both subnets, at each side of the router and beyond the NAT box, and where nothing is encrypted. */
async function showFiveCaptures(lab: Lab): Promise<void> {
  const inside = await Promise.all(
    ['alice', 'carol'].map((host) => lab.capture(host, { interface: 'pw0' })),
  );
  const outside = await Promise.all(
    ['east', 'core', 'west', 'office'].map((segment) => lab.capture(segment)),
  );
  const text = await sendText(lab, `${FAR_SECRET}\n`.repeat(200), 'carol', CAROL);
  claim('a text over TCP from alice to carol arrives unchanged', text);
  const files = await Promise.all(
    [...inside, ...outside].map(async (capture) => {
      await capture.stop();
      return readFileSync(capture.file);
    }),
  );
  const [alice, carol, east, core, west, office] = files.map((file) => file.includes(FAR_SECRET));
  claim('it is in clear at the two members', alice === true && carol === true);
  claim('not on the wire in the east', east === false);
  claim('not between the router and the NAT box', core === false);
  claim('not on the wire in the west', west === false);
  claim("and not on printer's wire, which is plain", office === false);
}

async function showWhatDoesNotCross(lab: Lab): Promise<void> {
  await lab.exec('alice', ['ip', 'address', 'add', `${STRANGER}/32`, 'dev', 'lo']);
  const tap = await lab.capture('carol', { interface: 'pw0', filter: `host ${STRANGER}` });
  await lab.exec(
    'alice',
    ['ping', '-n', '-c', '3', '-i', '0.2', '-W', '1', '-I', STRANGER, CAROL],
    {
      check: false,
    },
  );
  const { drops } = await lab.port('gw-east/link');
  claim(
    "a packet with a source outside of alice's subnet does not cross, and is counted",
    (await tap.stop()).length === 0 && (drops.net_source ?? 0) === 3,
  );
  const wire = await lab.capture('east', { filter: 'net 203.0.113.0/24' });
  await lab.exec('gw-east', ['ip', 'link', 'set', 'link0', 'down']);
  await lab.exec('alice', ['ping', '-n', '-c', '3', '-i', '0.2', '-W', '1', CAROL], {
    check: false,
  });
  await lab.exec('gw-east', ['ip', 'link', 'set', 'link0', 'up']);
  claim('while the link is down nothing goes round it in clear', (await wire.stop()).length === 0);
}

async function showNetRekey(lab: Lab): Promise<void> {
  const generation = async () => (await lab.port('gw-west/link')).link?.nets[0]?.pwId ?? 0;
  const before = await generation();
  const ping = lab.exec('alice', ['ping', '-n', '-c', '40', '-i', '0.1', CAROL], { check: false });
  await lab.pairwire(SERVER, ['rekey', '--dir', lab.serverDir(SUBNET), '--net', 'west']);
  const { stdout } = await ping;
  claim('both sides have another key', (await generation()) === before + 1);
  claim('and not one of 40 pings was lost meanwhile', stdout.includes(' 40 received'));
  shown((await lab.pairwire(SERVER, ['peer', 'list', '--dir', lab.serverDir(SUBNET)])).stdout);
  shown(
    (await lab.pairwire('gw-east', ['status', '--dir', lab.gatewayDir('gw-east/link')])).stdout,
  );
}

async function sendText(lab: Lab, text: string, to = 'bob', address = BOB): Promise<boolean> {
  const send = async () => {
    await waitFor(
      async () => (await lab.exec(to, ['ss', '-Hltn', 'sport = :8080'])).stdout !== '',
      { what: 'socat to listen' },
    );
    await lab.exec('alice', ['socat', '-u', '-', `TCP:${address}:8080`], { input: text });
  };
  const [received] = await Promise.all([
    lab.exec(to, ['socat', '-u', 'TCP-LISTEN:8080,reuseaddr', '-']),
    send(),
  ]);
  return received.stdout === text;
}

/** A few lines of a capture, as tshark shows them. */
async function excerpt(file: string): Promise<string> {
  const columns = ['_ws.col.Source', '_ws.col.Destination', '_ws.col.Protocol', '_ws.col.Info'];
  const fields = columns.flatMap((column) => ['-e', column]);
  const filter = 'icmp or (udp and not icmpv6) or tcp';
  const argv = ['tshark', '-r', file, '-Y', filter, '-T', 'fields', '-E', 'separator=|', ...fields];
  const { stdout } = await run(argv, { check: false });
  return stdout
    .split('\n')
    .slice(0, 6)
    .map((line) => {
      const [source = '', destination = '', protocol = '', info = ''] = line.split('|');
      const place = `${source.padEnd(15)} ${destination.padEnd(15)} ${protocol.padEnd(6)}`;
      return `${place} ${info}`.slice(0, 96);
    })
    .join('\n');
}

async function showStatus(lab: Lab): Promise<void> {
  const args = ['status', '--dir', lab.gatewayDir('bob')];
  const { stdout } = await lab.pairwire('bob', args);
  shown(stdout);
  const { drops } = await lab.port('bob');
  const bad = ['not_authentic', 'malformed', 'wrong_source_mac', 'replayed'];
  claim(
    'no frame was refused as forged or replayed',
    bad.every((reason) => (drops[reason] ?? 0) === 0),
  );
}

let interrupted = false;

/** Takes the laboratory down, whoever made how much of it. */
async function takeDown(): Promise<void> {
  if (listLabs().includes(NAME)) await Lab.open(NAME).destroy();
}

for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.on(name, () => {
    if (interrupted) return;
    interrupted = true;
    console.log('\ninterrupted: taking the laboratory down');
    // What main() is doing meanwhile fails, and then it ends.
    void takeDown();
  });
}

let crashed = false;
try {
  await main();
} catch (error) {
  crashed = true;
  if (!interrupted) console.error(pc.red(error instanceof Error ? error.message : String(error)));
}
if (failed > 0 && !interrupted && listLabs().includes(NAME)) {
  title('Logs');
  shown(Lab.open(NAME).logTails());
}
await takeDown();
if (interrupted) process.exit(130);
console.log(
  `\n${claims - failed} of ${claims} claims hold${crashed ? '; the demonstration did not get to its end' : ''}. ` +
    `Try it yourself: scripts/lab up ${join(TOPOLOGY)}`,
);
process.exit(failed > 0 || crashed ? 1 : 0);
