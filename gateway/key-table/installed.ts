/** What the data plane was told already, so that it is not told again. */
import { createHash } from 'node:crypto';
import { fields } from '../../src/protocol/fields.js';
import { messageOf, PairwireError } from '../../src/runtime/errors.js';
import type { CommandFields } from '../dataplane/messages.gen.js';

/** What makes one installation of a key differ from another, without keeping the key. */
export function keyFingerprint(
  key: CommandFields<'key.pair'>,
  peerIndex: number,
  peerBoot: Uint8Array,
): string {
  const values = fields(key.key, key.pwId, key.boot, peerIndex, peerBoot);
  const digest = createHash('sha256').update(values).digest('base64');
  values.fill(0);
  return digest;
}

/** A command as text. */
export function fingerprint(value: unknown): string {
  return JSON.stringify(value, (_name, part: unknown) =>
    part instanceof Uint8Array ? Buffer.from(part).toString('base64') : part,
  );
}

/** What was thrown while a record was read, as an error that names its kind. */
export function asPairwireError(thrown: unknown): PairwireError {
  return thrown instanceof PairwireError
    ? thrown
    : new PairwireError('RECORD_MALFORMED', messageOf(thrown), { cause: thrown });
}
