/**
 * Policy by key, docs/protocol.md 3.9: who may have a key with whom, and who takes part in group traffic.
 * Part of the settings that the operator signs, decided here and nowhere else: key servers give no key for a
 * pair that is denied, and gateways take none whatever a server says.
 */
import { z } from 'zod';
import { type Id, idSchema } from './ids.js';
import type { Grant, Settings } from './records.js';

/** Limits of a policy; see docs/limits.md. */
const MAX_POLICY_GROUPS = 64;
const MAX_POLICY_RULES = 256;
const MAX_POLICY_MEMBERS = 256;
/** Tags of one grant. */
export const MAX_TAGS = 16;

/** What stands in a rule for every member. */
export const EVERYBODY = '*';

/** What a grant calls its member, for policies. */
export const tagSchema = z.string().regex(/^[a-z0-9][a-z0-9._-]{0,30}$/);

const groupSchema = z.strictObject({
  members: z.array(idSchema).max(MAX_POLICY_MEMBERS).default([]),
  /** Members with one of these tags in their grant. */
  tags: z.array(tagSchema).max(MAX_TAGS).default([]),
});

const betweenSchema = z.tuple([z.string(), z.string()]);

const ruleSchema = z.union([
  z.strictObject({ allow: betweenSchema }),
  z.strictObject({ deny: betweenSchema }),
]);

/** Who may talk to whom. Rules are looked at in their order, and the first that fits both members decides. */
export const policySchema = z
  .strictObject({
    default: z.enum(['allow', 'deny']).default('allow'),
    groups: z
      .record(tagSchema, groupSchema)
      .refine((groups) => Object.keys(groups).length <= MAX_POLICY_GROUPS, 'too many groups')
      .default({}),
    rules: z.array(ruleSchema).max(MAX_POLICY_RULES).default([]),
    /** Groups whose members neither send nor get group traffic. */
    silent: z.array(z.string()).max(MAX_POLICY_GROUPS).default([]),
  })
  .superRefine((policy, context) => {
    const named = [...policy.rules.flatMap(sidesOf), ...policy.silent];
    for (const name of named) {
      if (name === EVERYBODY || Object.hasOwn(policy.groups, name)) continue;
      context.addIssue({ code: 'custom', message: `there is no group "${name}"` });
    }
  });
export type Policy = z.infer<typeof policySchema>;
export type PolicyRule = z.infer<typeof ruleSchema>;

/** What of a member a policy looks at. */
export interface Subject {
  readonly id: Id;
  readonly tags: readonly string[];
}

/** A member as policies see it, by its id and the grant that the operator signed. */
export function subjectOf(id: Id, { tags }: Pick<Grant, 'tags'>): Subject {
  return { id, tags: tags ?? [] };
}

/** A decision, with the rule that made it; undefined: none did, and the default counts. */
export interface Decision {
  readonly allowed: boolean;
  readonly rule: number | undefined;
}

/** Whether two members may have a key. Symmetric, for the key is one. */
export function decide(policy: Policy | undefined, one: Subject, other: Subject): Decision {
  if (policy === undefined) return { allowed: true, rule: undefined };
  for (const [index, rule] of policy.rules.entries()) {
    const [left, right] = sidesOf(rule);
    const fits =
      (inGroup(policy, left, one) && inGroup(policy, right, other)) ||
      (inGroup(policy, left, other) && inGroup(policy, right, one));
    if (fits) return { allowed: 'allow' in rule, rule: index };
  }
  return { allowed: policy.default === 'allow', rule: undefined };
}

/** Whether a member takes part in group traffic. */
export function inGroupTraffic(policy: Policy | undefined, member: Subject): boolean {
  return policy === undefined || !policy.silent.some((name) => inGroup(policy, name, member));
}

/** True if two policies say the same. */
export function samePolicy(one: Policy | undefined, other: Policy | undefined): boolean {
  return JSON.stringify(one) === JSON.stringify(other);
}

/** The groups that a member is in, in the order of their names. */
export function groupsOf(policy: Policy, member: Subject): string[] {
  return Object.keys(policy.groups)
    .filter((name) => inGroup(policy, name, member))
    .sort();
}

/**
 * How group frames are sealed: under a policy that keeps anybody from anybody each copy has its own key,
 * because the group key would open what the policy closes.
 */
export function groupModeOf(settings: Settings): Settings['group']['mode'] {
  const { policy } = settings;
  if (policy === undefined) return settings.group.mode;
  const closes =
    policy.default === 'deny' ||
    policy.silent.length > 0 ||
    policy.rules.some((rule) => 'deny' in rule);
  return closes ? 'pairwise' : settings.group.mode;
}

/** The two groups of a rule. */
export function sidesOf(rule: PolicyRule): readonly [string, string] {
  return 'allow' in rule ? rule.allow : rule.deny;
}

function inGroup(policy: Policy, name: string, { id, tags }: Subject): boolean {
  if (name === EVERYBODY) return true;
  const group = policy.groups[name];
  return (
    group !== undefined &&
    (group.members.includes(id) || group.tags.some((tag) => tags.includes(tag)))
  );
}
