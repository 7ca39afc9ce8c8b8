/**
 * Ids of members, nets, servers, subnets and groups, docs/protocol.md section 1.
 * Only ASCII can occur, so equality of ids is equality of bytes.
 */
import { z } from 'zod';

declare const idBrand: unique symbol;
/** A checked id. The kind is part of the derivations (`typedId`), not of the string. */
export type Id = string & { readonly [idBrand]: true };

const ID_PATTERN = /^[a-z0-9][a-z0-9._-]{0,62}$/;

export const idSchema = z
  .string()
  .regex(
    ID_PATTERN,
    'an id has 1 to 63 characters of a-z, 0-9, dot, underscore and hyphen, and starts with a letter or digit',
  )
  .transform((text) => text as Id);

/** Parses an id. @throws ZodError that says what an id may look like */
export function parseId(text: string): Id {
  return idSchema.parse(text);
}

export type IdKind = 'member' | 'net' | 'server' | 'group';

/** The form in which an id enters a derivation: `member:alice`. */
export function typedId(kind: IdKind, id: string): string {
  return `${kind}:${id}`;
}

/** The unordered pair (a, b) in its stored order, smaller id first. @throws RangeError for pair(a, a), which does not exist */
export function orderedPair(a: Id, b: Id): readonly [Id, Id] {
  if (a === b) throw new RangeError('a member has no pair key with itself');
  return a < b ? [a, b] : [b, a];
}

/** The id of the one group of a subnet (ID_M of document 002). */
export const GROUP_ID = 'all' as Id;
