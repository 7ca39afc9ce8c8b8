/** Policy by key: one decision for a pair, whoever asks, and a group mode that does not undo it. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { parseId } from '../../../../src/protocol/ids.js';
import {
  decide,
  groupModeOf,
  groupsOf,
  inGroupTraffic,
  policySchema,
  type Subject,
} from '../../../../src/protocol/policy.js';
import { type Settings, settingsSchema } from '../../../../src/protocol/records.js';
import { loadYaml } from '../../../../src/settings/load-yaml.js';

const member = (id: string, ...tags: string[]): Subject => ({
  id: parseId(id),
  tags,
});

const office = policySchema.parse({
  groups: {
    office: { tags: ['office'] },
    printers: { members: ['printer-1', 'printer-2'] },
    guests: { tags: ['guest'] },
    boss: { members: ['alice'] },
  },
  rules: [
    { allow: ['boss', '*'] },
    { deny: ['guests', 'guests'] },
    { allow: ['guests', 'printers'] },
    { deny: ['guests', '*'] },
  ],
  silent: ['guests'],
});
const alice = member('alice', 'office');
const bob = member('bob', 'office');
const printer = member('printer-1');
const guest = member('guest-1', 'guest');
const other = member('guest-2', 'guest');

const settings = (more: Partial<Settings>): Settings =>
  settingsSchema.parse({
    subnet: 'east',
    version: 1,
    suite: 'aes-256-gcm',
    freshnessMs: 0,
    hold: 0,
    leaseSeconds: 60,
    verify: 'verify',
    group: { mode: 'shared', replicate: 256 },
    unknown: 'refuse',
    ...more,
  });

describe('a policy', () => {
  it.each([
    ['two of the office', member('carol', 'office'), bob, true, undefined],
    ['a guest and a printer', guest, printer, true, 2],
    ['a guest and the office', guest, bob, false, 3],
    ['a guest and the boss, by an earlier rule', guest, alice, true, 0],
    ['two guests', guest, other, false, 1],
    ['a printer and the office', printer, bob, true, undefined],
  ])('decides by the first rule that fits: %s', (_what, one, two, allowed, rule) => {
    expect(decide(office, one, two)).toEqual({ allowed, rule });
    expect(decide(office, two, one)).toEqual({ allowed, rule });
  });

  it('has a default for those whom no rule is about', () => {
    const closed = { ...office, default: 'deny' as const };
    expect(decide(closed, bob, printer).allowed).toBe(false);
    expect(decide(closed, guest, printer).allowed).toBe(true);
    expect(decide(undefined, bob, printer).allowed).toBe(true);
  });

  it('keeps members out of group traffic, by tag', () => {
    expect([alice, printer, guest].map((one) => inGroupTraffic(office, one))).toEqual([
      true,
      true,
      false,
    ]);
    expect(groupsOf(office, alice)).toEqual(['boss', 'office']);
  });

  it('of the examples does what it says', () => {
    const policy = loadYaml('config/examples/policy.yaml', policySchema);
    expect(decide(policy, guest, printer).allowed).toBe(true);
    expect([bob, other].map((one) => decide(policy, guest, one).allowed)).toEqual([false, false]);
    expect(decide(policy, alice, printer).allowed).toBe(true);
  });

  it('that closes anything has no group key', () => {
    const mode = (policy: unknown) => groupModeOf(settings({ policy: policySchema.parse(policy) }));
    expect(groupModeOf(settings({}))).toBe('shared');
    expect(mode({})).toBe('shared');
    expect(mode({ rules: [{ allow: ['*', '*'] }] })).toBe('shared');
    expect(mode({ rules: [{ deny: ['*', '*'] }] })).toBe('pairwise');
    expect(mode({ default: 'deny' })).toBe('pairwise');
    expect(mode({ groups: { quiet: {} }, silent: ['quiet'] })).toBe('pairwise');
    expect(groupModeOf(settings({ group: { mode: 'pairwise', replicate: 256, rekey: 60 } }))).toBe(
      'pairwise',
    );
  });

  it.each([
    ['a rule about a group that is not there', { rules: [{ deny: ['office', '*'] }] }],
    ['a silent group that is not there', { silent: ['office'] }],
    ['a rule that neither allows nor denies', { rules: [{}] }],
    ['one that does both', { rules: [{ allow: ['*', '*'], deny: ['*', '*'] }] }],
    ['an unknown word', { rule: [] }],
    ['a name out of a prototype', { rules: [{ deny: ['constructor', '*'] }] }],
    ['no id', { groups: { a: { members: ['A B'] } } }],
    ['too many rules', { rules: Array(257).fill({ deny: ['*', '*'] }) }],
  ])('is refused: %s', (_what, policy) => {
    expect(policySchema.safeParse(policy).success).toBe(false);
  });

  it('is the same from both ends, and allows whoever could talk when a rule that denies is taken away', () => {
    const names = ['a', 'b', 'c'];
    const side = fc.constantFrom(...names, '*');
    const rule = fc.oneof(
      fc.record({ allow: fc.tuple(side, side) }),
      fc.record({ deny: fc.tuple(side, side) }),
    );
    const subject = fc.record({
      id: fc.constantFrom('m1', 'm2', 'm3').map(parseId),

      tags: fc.subarray(names),
    });
    const groups = Object.fromEntries(names.map((name) => [name, { tags: [name] }]));
    fc.assert(
      fc.property(
        fc.array(rule, { maxLength: 6 }),
        fc.constantFrom('allow' as const, 'deny' as const),
        subject,
        subject,
        (rules, fallback, one, two) => {
          const policy = policySchema.parse({ default: fallback, groups, rules });
          const decision = decide(policy, one, two);
          expect(decide(policy, two, one)).toEqual(decision);
          if (decision.allowed) {
            const fewer = { ...policy, rules: policy.rules.filter((each) => 'allow' in each) };
            expect(decide(fewer, one, two).allowed).toBe(true);
          }
        },
      ),
    );
  });
});
