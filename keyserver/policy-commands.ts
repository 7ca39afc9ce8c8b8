/** `pairwire policy`: who may have keys with whom (docs/protocol.md 3.9). */
import type { Command } from 'commander';
import { stringify } from 'yaml';
import { action, type OutputTarget, printFields } from '../src/cli/output.js';
import type { Id } from '../src/protocol/ids.js';
import {
  decide,
  groupModeOf,
  groupsOf,
  inGroupTraffic,
  type Policy,
  policySchema,
  type Subject,
  sidesOf,
} from '../src/protocol/policy.js';
import type { Settings } from '../src/protocol/records.js';
import { PairwireError } from '../src/runtime/errors.js';
import { loadYaml } from '../src/settings/load-yaml.js';
import { changeSettings, withSettings } from './change-settings.js';
import { example, usable } from './command-tools.js';
import { subjectFor } from './registry/policy.js';
import type { Store } from './storage/store.js';

interface PolicyFlags {
  readonly dir: string;
  readonly operatorKey?: string;
  readonly file?: string;
}

/** Adds the commands about the policy. */
export function policyCommands(program: Command): void {
  const command = program
    .command('policy')
    .description(
      'who may have keys with whom: show it, change it, ask what it says of two members',
    );
  changing(command.command('set <file>'), 'sign and install the policy of a YAML file')
    .addHelpText('after', example('pairwire policy set --dir /etc/pairwire/east policy.yaml'))
    .action(
      action(async (target, file: string, flags: PolicyFlags) => {
        const policy = loadYaml(file, policySchema);
        print(target, await install(flags, policy));
      }),
    );
  changing(command.command('clear'), 'let everybody have keys with everybody again')
    .addHelpText('after', example('pairwire policy clear --dir /etc/pairwire/east'))
    .action(action(async (target, flags: PolicyFlags) => print(target, await install(flags))));
  command
    .command('show')
    .description('print the policy in force, as `set` takes it')
    .requiredOption('--dir <dir>', 'folder of the key server')
    .option('--json', 'print JSON')
    .addHelpText('after', example('pairwire policy show --dir /etc/pairwire/east'))
    .action(
      action((target, flags: PolicyFlags) =>
        withSettings(flags.dir, (settings) => print(target, settings)),
      ),
    );
  command
    .command('test <member> <other>')
    .description('say whether two members may talk, and which rule decides it')
    .requiredOption('--dir <dir>', 'folder of the key server')
    .option('--file <file>', 'a policy to try, instead of the one in force')
    .option('--json', 'print JSON')
    .addHelpText('after', example('pairwire policy test --dir /etc/pairwire/east alice printer-1'))
    .action(
      action((target, one: string, other: string, flags: PolicyFlags) =>
        withSettings(flags.dir, async (settings, store) => {
          const policy =
            flags.file === undefined ? settings.policy : loadYaml(flags.file, policySchema);
          const [a, b] = [await memberOf(store, one), await memberOf(store, other)];
          if (a.id === b.id) {
            throw new PairwireError('USAGE', 'a policy is about two members', {
              hint: 'name two different ones; `pairwire members` lists them',
            });
          }
          explain(target, policy, a, b);
        }),
      ),
    );
}

function changing(command: Command, about: string): Command {
  return command
    .description(about)
    .requiredOption('--dir <dir>', 'folder of the key server')
    .option('--operator-key <file>', 'operator key, if it is not where the configuration says')
    .option('--json', 'print JSON');
}

function install(flags: PolicyFlags, policy?: Policy): Promise<Settings> {
  return changeSettings(flags, ({ policy: _before, ...rest }, version) => ({
    ...rest,
    version,
    ...(policy === undefined ? {} : { policy }),
  }));
}

function print(target: OutputTarget, settings: Settings): void {
  const { policy, version } = settings;
  if (target.json) {
    printFields(target, { version, groupMode: groupModeOf(settings), policy: policy ?? null });
    return;
  }
  if (policy === undefined) {
    target.out('# no policy: everybody may have keys with everybody\n');
    return;
  }
  const mode = groupModeOf(settings) === 'pairwise' ? 'each copy under its own key' : 'one key';
  target.out(`# settings version ${version}; group frames: ${mode}\n${stringify(policy)}`);
}

function explain(target: OutputTarget, policy: Policy | undefined, a: Subject, b: Subject): void {
  const { allowed, rule } = decide(policy, a, b);
  const by = policy === undefined || rule === undefined ? undefined : policy.rules[rule];
  let reason = 'there is no policy';
  if (policy !== undefined) reason = `no rule fits, and the default is ${policy.default}`;
  if (by !== undefined && rule !== undefined) {
    reason = `rule ${rule + 1}: ${allowed ? 'allow' : 'deny'} ${sidesOf(by).join(' - ')}`;
  }
  const about = (one: Subject): string => {
    const groups = policy === undefined ? [] : groupsOf(policy, one);
    const silent = inGroupTraffic(policy, one) ? '' : ', kept out of group traffic';
    const tags = one.tags.length === 0 ? '' : ` (tags ${one.tags.join(', ')})`;
    return `${groups.length === 0 ? 'in no group' : `in ${groups.join(', ')}`}${tags}${silent}`;
  };
  const group = allowed && inGroupTraffic(policy, a) && inGroupTraffic(policy, b);
  printFields(target, { allowed, group, reason, [a.id]: about(a), [b.id]: about(b) });
}

async function memberOf(store: Store, id: string): Promise<Subject> {
  const member = await store.member(usable(id, 'member') as Id);
  if (member === undefined) {
    throw new PairwireError('NOT_FOUND', `there is no member ${id}`, {
      hint: 'pairwire members lists them',
    });
  }
  return subjectFor(member);
}
