/**
 * The gateway's commands: join, up, down, status, doctor, bench. This file only describes them; what
 * they do is loaded when one is called, so that `pairwire --help` is quick.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { type Command, InvalidArgumentError, Option } from 'commander';
import {
  action,
  EXIT,
  type OutputTarget,
  printFields,
  printJson,
  printRows,
} from '../src/cli/output.js';
import { readTokenInput } from '../src/cli/token-input.js';
import { idSchema } from '../src/protocol/ids.js';
import type { TransportKind } from './join.js';

const WATCH_MS = 1_000;
const DEFAULT_DIR = '/etc/pairwire/gateway';

/** Names of the commands below. */
export const GATEWAY_COMMANDS: readonly string[] = [
  'join',
  'up',
  'down',
  'status',
  'renew',
  'doctor',
  'bench',
];

interface DirOption {
  readonly dir: string;
}

interface JoinFlags extends DirOption {
  readonly tokenFile?: string;
  readonly id?: string;
  readonly interface: string;
  readonly address: readonly string[];
  readonly transport: TransportKind;
  readonly port?: number;
  readonly device?: string;
  readonly forward: readonly string[];
  readonly bridge?: string;
  readonly bridgePort: readonly string[];
  readonly prefix: readonly string[];
  readonly net: Readonly<Record<string, readonly string[]>>;
  readonly inside: readonly string[];
  readonly pass: readonly string[];
}

/** Adds the gateway's commands to the program. */
export function gatewayCommands(program: Command): void {
  withDir(program.command('join'))
    .summary('make this machine a member of a subnet')
    .description(
      'Enrols this machine with a join token and writes gateway.yaml and its keys. May be repeated after a failure.',
    )
    .argument('[token]', 'the join token, or - for standard input (better than the command line)')
    .option('--token-file <file>', 'read the token from a file')
    .option('--id <id>', 'our id, for a token that serves several')
    .option('--interface <name>', 'name of the interface to make', 'pw0')
    .option('--address <cidr>', 'address for the interface; may be repeated', collect, [])
    .addOption(
      new Option(
        '--transport <kind>',
        'what carries sealed frames: UDP, the Ethernet itself, or for a link their own IP header',
      )
        .choices(['udp', 'ethernet', 'ip'])
        .default('udp'),
    )
    .option('--port <number>', 'udp: port of the sealed frames (default: 51820)', portNumber)
    .option('--device <name>', 'underlay interface; ethernet and ip need one')
    .option(
      '--forward <name>',
      'an interface that packets may be forwarded to, as link0 beside a link port; repeatable',
      collect,
      [],
    )
    .option(
      '--bridge <name>',
      'role plain, and link on ip: the bridge of the machines outside; made if it is not there',
    )
    .option('--bridge-port <name>', 'an interface to put into the bridge; repeatable', collect, [])
    .option('--prefix <cidr>', 'role link: what is in our subnet; repeatable', collect, [])
    .option(
      '--net <id=cidr>',
      'role link: what may be behind another net; repeatable, also for one net',
      collectNet,
      {},
    )
    .option(
      '--inside <name>',
      'role link: an interface that leads into our subnet; repeatable',
      collect,
      [],
    )
    .option(
      '--pass <protocol>',
      'role link on ip: what crosses in clear besides ARP and neighbour discovery, as ospf; repeatable',
      collect,
      [],
    )
    .option('--json', 'print JSON')
    .addHelpText(
      'after',
      example(
        'pairwire token --id alice | ssh alice sudo pairwire join --dir /etc/pairwire/gateway -',
      ),
    )
    .action(action(runJoin));

  withDir(program.command('up'))
    .summary('run the gateway in the foreground')
    .description(
      [
        'Runs the gateway in the foreground. As root it starts device broker and data plane, then gives root up.',
        '',
        'SIGHUP reads gateway.yaml again without dropping traffic.',
        'SIGTERM and Ctrl-C end this process only: data plane and interface go on with the keys they have.',
        'pairwire down takes all of it away.',
      ].join('\n'),
    )
    .option('--check', 'check configuration and keys, change nothing')
    .option('--json', 'print JSON')
    .addHelpText('after', example('sudo pairwire up --dir /etc/pairwire/gateway'))
    .action(action(runUp));

  withDir(program.command('down'))
    .summary('take the gateway away: interface, keys, processes')
    .description(
      'Ends the gateway and everything that `up` started: interface, guard, data plane; keys are wiped.',
    )
    .option('--json', 'print JSON')
    .addHelpText('after', example('sudo pairwire down --dir /etc/pairwire/gateway'))
    .action(action(runDown));

  withDir(program.command('status'))
    .summary('what this gateway does')
    .description(
      'Shows the gateway: key server, ports, peers with their keys and paths, drops by reason.',
    )
    .option('--watch', 'show it again every second')
    .option('--json', 'print JSON; with --watch one object a line')
    .addHelpText('after', example('pairwire status --watch --dir /etc/pairwire/gateway'))
    .action(action(runStatus));

  withDir(program.command('renew'))
    .summary('make a fresh boot key now')
    .description(
      'Replaces the boot key of a running gateway, without loss, as happens by itself at the age that `pairwire settings --rekey-boot` sets. The old one is forgotten 13 s later: what members sealed for each other until then stays closed to whoever gets hold of keys after that.',
    )
    .option('--json', 'print JSON')
    .addHelpText('after', example('sudo pairwire renew --dir /etc/pairwire/gateway'))
    .action(action(runRenew));

  program
    .command('doctor')
    .summary('check this machine')
    .description(
      'Checks everything that a gateway needs of this machine, and says how to mend what is missing.',
    )
    .option('--dir <dir>', 'also check this gateway')
    .option('--json', 'print JSON')
    .addHelpText('after', example('sudo pairwire doctor --dir /etc/pairwire/gateway'))
    .action(action(runDoctor));

  program
    .command('bench')
    .summary('measure how fast this machine encrypts')
    .description(
      'Measures sealing and opening of frames on one core, for each library and suite that this machine has. A running gateway is not asked; busy cores make the figures worse.',
    )
    .option('--json', 'print JSON')
    .addHelpText('after', example('pairwire bench'))
    .action(action(runBench));
}

function withDir(command: Command): Command {
  return command.option('--dir <dir>', 'folder of the gateway', DEFAULT_DIR);
}

function example(text: string): string {
  return `\nExample:\n  ${text}`;
}

function collect(value: string, before: readonly string[]): string[] {
  return [...before, value];
}

function portNumber(text: string): number {
  const port = Number(text);
  if (Number.isInteger(port) && port >= 1 && port <= 65_535) return port;
  throw new InvalidArgumentError('a port is a number from 1 to 65535');
}

/** `ID=PREFIX`, collected by id. */
function collectNet(
  text: string,
  before: Readonly<Record<string, readonly string[]>>,
): Record<string, readonly string[]> {
  const [net = '', prefix, more] = text.split('=');
  if (prefix === undefined || more !== undefined || !idSchema.safeParse(net).success) {
    throw new InvalidArgumentError('write NET=PREFIX, as in west=203.0.113.0/24');
  }
  return { ...before, [net]: [...(before[net] ?? []), prefix] };
}

async function runJoin(
  target: OutputTarget,
  token: string | undefined,
  flags: JoinFlags,
): Promise<void> {
  const { join } = await import('./join.js');
  const text = readTokenInput(target, token, flags.tokenFile, 'pairwire join --dir DIR');
  const joined = await join({
    dir: flags.dir,
    token: text,
    ...(flags.id === undefined ? {} : { id: flags.id }),
    interface: flags.interface,
    addresses: flags.address,
    transport: flags.transport,
    ...(flags.port === undefined ? {} : { port: flags.port }),
    ...(flags.device === undefined ? {} : { device: flags.device }),
    ...(flags.bridge === undefined ? {} : { bridge: flags.bridge }),
    forward: flags.forward,
    bridgePorts: flags.bridgePort,
    prefixes: flags.prefix,
    nets: flags.net,
    inside: flags.inside,
    pass: flags.pass,
  });
  if (target.json) {
    printJson(target, joined);
    return;
  }
  printFields(target, {
    member: `${joined.member} of ${joined.subnet} (${joined.role})`,
    addresses: joined.macs,
    'key servers': joined.servers,
    configuration: joined.configKept ? `${joined.config} (kept as it was)` : joined.config,
  });
  target.err(`next: pairwire up --dir ${flags.dir}\n`);
}

async function runUp(
  target: OutputTarget,
  flags: DirOption & { readonly check?: boolean },
): Promise<void> {
  const { checkGateway, runGateway } = await import('./up.js');
  if (flags.check === true) {
    const checked = checkGateway(flags.dir);
    printFields(target, { ...checked });
    return;
  }
  await runGateway(flags.dir, target);
}

async function runDown(target: OutputTarget, flags: DirOption): Promise<void> {
  const { takeDown } = await import('./down.js');
  const done = await takeDown(flags.dir);
  if (target.json) printJson(target, done);
  else target.out(`${done.was === 'nothing' ? 'nothing was up' : 'the gateway is down'}\n`);
}

async function runRenew(target: OutputTarget, flags: DirOption): Promise<void> {
  const { renewBoot } = await import('./renew.js');
  const done = await renewBoot(flags.dir);
  if (target.json) printJson(target, done);
  else target.out(`boot key ${done.boot} replaces the one before\n`);
}

async function runStatus(
  target: OutputTarget,
  flags: DirOption & { readonly watch?: boolean },
): Promise<void> {
  const { readStatus } = await import('./status/read.js');
  const { printStatus } = await import('./status/table.js');
  if (flags.watch !== true) {
    const status = await readStatus(flags.dir);
    if (target.json) printJson(target, status);
    else printStatus(target, status);
    return;
  }
  for (;;) {
    const status = await readStatus(flags.dir);
    if (target.json) {
      target.out(`${JSON.stringify(status)}\n`);
    } else {
      if (target.tty) target.out('\u001b[H\u001b[2J');
      printStatus(target, status);
    }
    await sleep(WATCH_MS);
  }
}

async function runBench(target: OutputTarget): Promise<void> {
  const { measureSpeed } = await import('./speed.js');
  const rows = await measureSpeed();
  if (target.json) {
    printJson(target, { results: rows });
    return;
  }
  printRows(
    target,
    [
      { field: 'suite', title: 'suite' },
      { field: 'backend', title: 'library' },
      { field: 'size', title: 'bytes' },
      { field: 'seal', title: 'seal ns' },
      { field: 'open', title: 'open ns' },
      { field: 'rate', title: 'Gbit/s' },
    ],
    rows.map((row) => ({
      suite: row.suite,
      backend: row.backend,
      size: row.size,
      seal: row.sealNs.toFixed(0),
      open: row.openNs.toFixed(0),
      rate: row.gbitPerSecond.toFixed(2),
    })),
  );
}

async function runDoctor(target: OutputTarget, flags: { readonly dir?: string }): Promise<void> {
  const { examine } = await import('./doctor.js');
  const findings = await examine(flags.dir);
  const failed = findings.filter((finding) => finding.state === 'fail');
  if (target.json) {
    printJson(target, { ok: failed.length === 0, findings });
  } else {
    const { default: pc } = await import('picocolors');
    const paint = target.tty ? pc : pc.createColors(false);
    const colours = { ok: paint.green, warn: paint.yellow, fail: paint.red };
    for (const finding of findings) {
      const state = colours[finding.state](finding.state.padEnd(4));
      target.out(`${state}  ${finding.check.padEnd(13)}  ${finding.message}\n`);
      if (finding.fix !== null) target.out(`${' '.repeat(21)}-> ${finding.fix}\n`);
    }
  }
  if (failed.length > 0) process.exitCode = EXIT.failed;
}
