/** `pairwire status` for people: what matters first, each drop reason with its sentence. */
import pc from 'picocolors';
import { type OutputTarget, printRows } from '../../src/cli/output.js';
import { DROP_REASONS } from '../dataplane/drop-reasons.gen.js';
import type { PortStatus, Status } from './snapshot.js';

/** Prints a status as text. */
export function printStatus(target: OutputTarget, status: Status): void {
  const paint = target.tty ? pc : pc.createColors(false);
  const line = (text: string): void => target.out(`${text}\n`);
  const state = status.state === 'up' ? paint.green('up') : paint.yellow(status.state);
  line(`${paint.bold(status.member)} in ${paint.bold(status.subnet)}: ${state}`);
  for (const problem of status.problems) line(`  ${paint.yellow('!')} ${problem.message}`);
  line(`  key server  ${keyServerText(status)}`);
  line(`  lease       ${leaseText(status)}`);
  line(`  clock       ${clockText(status)}`);
  line(`  believed    ${believedText(status)}`);
  line(`  identities  ${identitiesText(status)}`);
  line(`  data plane  ${dataPlaneText(status)}`);
  for (const port of status.ports) printPort(target, port, status.dataPlane.backends, line);
}

function printPort(
  target: OutputTarget,
  port: PortStatus,
  backends: readonly string[],
  line: (text: string) => void,
): void {
  const underlay = port.underlayInterface ?? '?';
  line('');
  line(
    `port ${port.name} (${port.kind}): ${port.interface} (${port.macs.join(' ')}), MTU ${port.mtu} over ${underlay} with ${port.underlayMtu}`,
  );
  line(
    `  ${transportText(port)}, ${port.suite} by ${port.backend ?? '?'}${others(port, backends)}, offload ${yesNo(port.offload)}`,
  );
  if (port.transport === 'udp') {
    line(`  told addresses: ${port.endpoints.join(' ') || 'none'}`);
    if (port.relay !== null) {
      const { address, registered, seen } = port.relay;
      line(`  relay: ${address}, ${registered ? `registered, sees ${seen ?? '?'}` : 'no answer'}`);
    }
  }
  if (port.link === null) {
    line(
      `  group key: ${port.group.pwId === null ? 'none' : `generation ${port.group.pwId}`} (${port.group.mode})`,
    );
  } else {
    for (const text of linkTexts(port.link)) line(`  ${text}`);
  }
  line(`  boot key: ${bootText(port)}`);
  if (port.plain !== null) line(`  plain side: ${plainText(port.plain)}`);
  if (port.link === null) line(`  address guard: ${guardText(port.guard)}`);
  line(`  sent ${trafficText(port.tx)}, received ${trafficText(port.rx)}`);
  line('');
  if (port.peers.length === 0) {
    line(port.link === null ? '  no members known yet' : '  no link ports of other nets known yet');
  } else printPeers(target, port);
  const drops = Object.entries(port.drops).filter(([, count]) => count > 0);
  if (drops.length === 0) return;
  line('');
  line('dropped:');
  for (const [reason, count] of drops) {
    line(`  ${String(count).padStart(10)}  ${reason.padEnd(20)}  ${sentenceOf(reason)}`);
  }
}

function transportText(port: PortStatus): string {
  if (port.udpPort !== null) return `${port.transport} port ${port.udpPort}`;
  if (port.transport === 'ip') return 'ip protocol 253';
  return `${port.transport}, subnet tag ${port.subnetTag ?? '?'}`;
}

function plainText(plain: NonNullable<PortStatus['plain']>): string {
  const { bridge, learned, broadcast, reportsRefused, spoofed } = plain;
  const refused = reportsRefused === 0 ? '' : `, ${reportsRefused} refused by the key server`;
  const pretended = spoofed === 0 ? '' : `, ${spoofed} frames with a member's own address`;
  return `bridge ${bridge}, ${loopText(plain)}, ${learned} addresses learned${refused}, broadcast ${broadcast}${pretended}`;
}

function linkTexts({ level, net, prefixes, nets }: NonNullable<PortStatus['link']>): string[] {
  const ours = `level ${level}, net ${net}: ${prefixes.join(' ')}`;
  return [ours, ...nets.map((other) => `to ${other.net}: ${netText(other)}`)];
}

function netText(net: NonNullable<PortStatus['link']>['nets'][number]): string {
  if (net.refusal !== null) return `nothing, because ${net.refusal.message}`;
  if (net.pwId === null) return 'nothing, there is no key yet';
  const next = net.nextPwId === null ? '' : `, ${net.nextPwId} prepared`;
  const what = net.prefixes.length === 0 ? 'no prefix that all agree on' : net.prefixes.join(' ');
  return `${what}, net key generation ${net.pwId}${next}`;
}

function guardText(guard: PortStatus['guard']): string {
  const { bindings, answers, answered, refused, claims, claimsRefused } = guard;
  const total = Object.values(refused).reduce((sum, frames) => sum + frames, 0);
  const not = claimsRefused === 0 ? '' : ` (${claimsRefused} refused by the key server)`;
  const local = answers
    ? `${answered.arp + answered.nd} questions answered here`
    : 'questions are not answered here';
  return `${bindings} IP addresses bound, ${claims} own ones told${not}, ${local}, ${total} frames refused`;
}

function loopText({ loop, loopOther }: NonNullable<PortStatus['plain']>): string {
  switch (loop) {
    case 'forward':
      return 'forwards';
    case 'standby':
      return loopOther === null ? 'listens for other plain ports' : `stands by for ${loopOther}`;
    case 'blocked':
      return 'blocked: it hears itself';
    default:
      return loop ?? 'not there yet';
  }
}

function bootText(port: PortStatus): string {
  if (port.boot === null || port.bootAgeMs === null) return 'none';
  const replaced = port.bootRenewals === 0 ? '' : `, replaced ${port.bootRenewals} times`;
  return `number ${port.boot}, ${duration(Math.floor(port.bootAgeMs / 1_000))} old${replaced}`;
}

/** Backends that could encrypt as well. */
function others(port: PortStatus, backends: readonly string[]): string {
  const rest = backends.filter((one) => one !== port.backend);
  return rest.length === 0 ? '' : ` (also here: ${rest.join(', ')})`;
}

function printPeers(target: OutputTarget, port: PortStatus): void {
  const rows = port.peers.map((peer) => ({
    id: peer.id,
    state: peer.state === 'refused' ? `refused (${peer.refusal?.code ?? '?'})` : peer.state,
    online: peer.online,
    path: peer.path,
    key: peer.pwId === null ? '-' : String(peer.pwId),
    endpoint: peer.endpoint ?? '-',
    rtt: peer.rttMs === null ? '-' : `${peer.rttMs.toFixed(2)} ms`,
    pathMtu: peer.pathMtu === null ? '-' : `${peer.pathMtu}${peer.pathMtuProved ? '' : ' ?'}`,
    sent: trafficText(peer.tx),
    received: trafficText(peer.rx),
  }));
  printRows(
    { ...target, json: false },
    [
      { field: 'id', title: 'peer' },
      { field: 'state', title: 'state' },
      { field: 'online', title: 'online' },
      { field: 'key', title: 'key generation' },
      { field: 'path', title: 'path' },
      { field: 'endpoint', title: 'endpoint' },
      { field: 'rtt', title: 'round trip' },
      { field: 'pathMtu', title: 'path MTU' },
      { field: 'sent', title: 'sent' },
      { field: 'received', title: 'received' },
    ],
    rows,
  );
}

/** The sentence that belongs to a drop reason. */
export function sentenceOf(reason: string): string {
  return Object.entries(DROP_REASONS).find(([name]) => name === reason)?.[1] ?? '';
}

function keyServerText(status: Status): string {
  const { server } = status;
  const rtt = server.rttMs === null ? '' : `, round trip ${server.rttMs.toFixed(1)} ms`;
  const error = server.lastError === null ? '' : `: ${server.lastError}`;
  const at = server.address === null ? '' : ` at ${server.address}`;
  return `${server.state}${at}${rtt}${error}`;
}

function leaseText(status: Status): string {
  const left = status.lease.secondsLeft;
  if (left === null) return 'none yet';
  return left > 0 ? `keys are good for ${duration(left)} without a key server` : 'over: no traffic';
}

function clockText(status: Status): string {
  const { clock } = status;
  if (!clock.known) return 'key-server time is not known yet';
  const age =
    clock.ageMs === null ? 'never sampled well' : `sampled ${duration(clock.ageMs / 1_000)} ago`;
  return `${clock.wallDifferenceMs} ms from the wall clock, ${age}`;
}

function believedText(status: Status): string {
  const verify = status.settings?.verify ?? 'not known yet';
  return `operator key ${status.operator.fingerprint}, verify: ${verify} (whether that key lies on the key server can't be seen from here)`;
}

function identitiesText({ identities, settings }: Status): string {
  const { mode, own, waiting, pinned, refused, unnamed, problem } = identities;
  if (settings === null) return 'not known yet';
  if (mode === 'off') return 'the KMS is not asked who peers are (verify: off)';
  if (mode === 'unnamed') {
    return 'the KMS is not asked who peers are: the settings name none of our key server';
  }
  const open = [
    ...(waiting > 0 ? [`${waiting} peers wait, without traffic`] : []),
    ...(pinned > 0 ? [`${pinned} pinned before and not confirmed`] : []),
    ...(refused > 0 ? [`${refused} contradicted`] : []),
    ...(unnamed.length > 0
      ? [`not asked about members of ${unnamed.join(', ')}: no KMS named`]
      : []),
    ...(problem === null ? [] : [problem]),
  ];
  const rest = open.length === 0 ? 'all peers confirmed' : open.join(', ');
  return `the KMS confirms who peers are: ${rest}; our own document: ${own}`;
}

function dataPlaneText(status: Status): string {
  const { dataPlane } = status;
  const uptime = dataPlane.uptimeMs === null ? '' : `, up ${duration(dataPlane.uptimeMs / 1_000)}`;
  const lost = dataPlane.eventsLost + dataPlane.eventsRefused;
  return `${dataPlane.state}${uptime}, restarts ${dataPlane.restarts}${lost > 0 ? `, events lost ${lost}` : ''}`;
}

function trafficText(traffic: { bytes: number; bitsPerSecond: number }): string {
  return `${scaled(traffic.bytes, 1_024, ['B', 'KiB', 'MiB', 'GiB', 'TiB'])} (${scaled(traffic.bitsPerSecond, 1_000, ['bit/s', 'kbit/s', 'Mbit/s', 'Gbit/s'])})`;
}

function scaled(value: number, step: number, units: readonly string[]): string {
  let rest = value;
  let at = 0;
  while (rest >= step && at < units.length - 1) {
    rest /= step;
    at += 1;
  }
  return `${at === 0 ? rest : rest.toFixed(1)} ${units[at] ?? ''}`;
}

function duration(seconds: number): string {
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7_200) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3_600)} h`;
}

function yesNo(value: boolean | null): string {
  if (value === null) return '?';
  return value ? 'on' : 'off';
}
