/**
 * The laboratory's command line; run it by scripts/lab.
 *
 *   up FILE [--name NAME] | down NAME | list | status NAME | shell NAME HOST | exec NAME HOST -- CMD...
 */
import { spawnSync } from 'node:child_process';
import { basename } from 'node:path';
import { Command } from 'commander';
import { Lab } from './laboratory/lab.js';
import { isAlive } from './laboratory/processes.js';
import { listLabs, readState } from './laboratory/state.js';
import { readTopology } from './laboratory/topology.js';

const program = new Command('lab')
  .description('Network-namespace laboratories: topologies, key servers, gateways')
  .addHelpText(
    'after',
    `
Example:
  scripts/lab up config/lab/three-hosts.yaml --name three
  scripts/lab exec three alice -- ping -c 3 198.51.100.12
  scripts/lab down three`,
  );

program
  .command('up')
  .description('build a topology and start what it names')
  .argument('<file>', 'topology, for instance config/lab/three-hosts.yaml')
  .option('--name <name>', 'name of the laboratory (default: name of the file)')
  .option('--bare', 'the network only, no key servers and gateways')
  .action(async (file: string, options: { name?: string; bare?: boolean }) => {
    const topology = readTopology(file);
    const name =
      options.name ??
      basename(file)
        .replace(/\.ya?ml$/, '')
        .slice(0, 16);
    const log = (line: string): void => console.log(`lab ${name}: ${line}`);
    await Lab.create(topology, { name, log, startPrograms: options.bare !== true });
    log(`up. A shell in a host: scripts/lab shell ${name} ${Object.keys(topology.hosts)[0]}`);
  });

program
  .command('down')
  .description('end all of its processes, take its namespaces away; no error if there is none')
  .argument('[name]', 'name of the laboratory')
  .option('--all', 'every laboratory')
  .action(async (name: string | undefined, options: { all?: boolean }) => {
    const names = options.all === true ? listLabs() : name === undefined ? [] : [name];
    if (names.length === 0 && options.all !== true) throw new Error('which? scripts/lab list');
    for (const one of names) {
      if (!listLabs().includes(one)) {
        console.log(`lab ${one}: is not up`);
        continue;
      }
      await Lab.open(one).destroy();
      console.log(`lab ${one}: down`);
    }
  });

program
  .command('list')
  .description('the laboratories that are up')
  .action(() => {
    for (const name of listLabs()) {
      const state = readState(name);
      const running = state.processes.filter(isAlive).length;
      console.log(`${name}\t${Object.keys(state.topology.hosts).join(' ')}\t${running} processes`);
    }
  });

program
  .command('status')
  .description('hosts, processes and logs of a laboratory')
  .argument('<name>', 'name of the laboratory')
  .action((name: string) => {
    const state = readState(name);
    for (const [host, { kind, interfaces }] of Object.entries(state.topology.hosts)) {
      const places = interfaces.map(
        (one) => `${one.name}@${one.segment} ${one.addresses.join(' ')}`,
      );
      console.log(`${host} (${kind})  ${places.join(', ')}`);
      for (const one of state.processes.filter((entry) => entry.host === host)) {
        console.log(`  ${isAlive(one) ? 'runs' : 'gone'}  ${one.pid}  ${one.label}  ${one.log}`);
      }
    }
  });

program
  .command('shell')
  .description('a shell in a host')
  .argument('<name>', 'name of the laboratory')
  .argument('<host>', 'host or segment')
  .action((name: string, host: string) => {
    inside(Lab.open(name), host, [process.env.SHELL ?? '/bin/bash']);
  });

program
  .command('exec')
  .description('a command in a host')
  .argument('<name>', 'name of the laboratory')
  .argument('<host>', 'host or segment')
  .argument('<command...>', 'the command, behind --')
  .action((name: string, host: string, command: string[]) => {
    inside(Lab.open(name), host, command);
  });

function inside(lab: Lab, host: string, argv: readonly string[]): void {
  const [ip, ...rest] = lab.argvIn(host, argv);
  const { status } = spawnSync(ip ?? 'ip', rest, {
    stdio: 'inherit',
    env: { ...process.env, PS1: `${host}@${lab.name}# ` },
  });
  process.exitCode = status ?? 1;
}

try {
  await program.parseAsync();
} catch (error) {
  console.error(`lab: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = 1;
}
