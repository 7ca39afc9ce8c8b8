/**
 * Pins: what this gateway saw once and will not see changed (docs/protocol.md section 5).
 * Operator key, id -> identity document, MAC -> id, highest boot sequence of each id, version
 * of the settings. A key server that contradicts a pin is not believed, whatever it signs.
 *
 * `check...` changes nothing; `accept...` writes. Writes reach the disk within a second and at
 * `flush`, so a burst of a thousand new members is one file, not a thousand.
 */
import { existsSync } from 'node:fs';
import { z } from 'zod';
import { type Id, idSchema } from '../../src/protocol/ids.js';
import { type MacAddress, macSchema } from '../../src/protocol/mac.js';
import type { BootRecord, VerifiedMember } from '../../src/protocol/records.js';
import { PairwireError } from '../../src/runtime/errors.js';
import { readSecretFile, writeFileAtomic } from '../../src/runtime/files.js';

const WRITE_DELAY_MS = 500;
/** Members of another subnet that are remembered: its operator could sign any number. */
const MAX_FOREIGN = 1_024;
/** Revoked ids that are remembered: no signature of the operator stands behind one, so a hostile server could name any number. */
const MAX_REVOKED = 100_000;

const hex = (bytes: number) => z.string().regex(new RegExp(`^[0-9a-f]{${bytes * 2}}$`));

const memberPinSchema = z.strictObject({
  /** SHA-256 of the identity document. */
  identity: hex(32),
  /** Highest boot sequence seen, 0 before the first. */
  sequence: z.int().nonnegative(),
  /** The boot key of that sequence: two keys under one sequence are a contradiction too. */
  boot: hex(32).optional(),
  /** The KMS remembers that document for that id. */
  confirmed: z.literal(true).optional(),
});

const pinsSchema = z.strictObject({
  version: z.literal(1),
  operator: hex(32),
  /** Of another subnet than our own: its name. */
  subnet: idSchema.optional(),
  settings: z.strictObject({ version: z.int().nonnegative(), digest: hex(32).optional() }),
  members: z.array(z.tuple([idSchema, memberPinSchema])),
  macs: z.array(z.tuple([macSchema, idSchema])),
  /** Number of the last revocation, and who was revoked. */
  revocation: z.int().nonnegative().default(0),
  revoked: z.array(idSchema).default([]),
});

type MemberPin = z.infer<typeof memberPinSchema>;

/** The pins of one subnet. */
export class Pins {
  readonly #path: string | undefined;
  readonly #operator: string;
  readonly #subnet: Id | undefined;
  readonly #members = new Map<Id, MemberPin>();
  readonly #macs = new Map<MacAddress, Id>();
  readonly #revoked = new Set<Id>();
  #revocation = 0;
  #settings: { version: number; digest?: string | undefined } = { version: 0 };
  #timer: NodeJS.Timeout | undefined;
  #dirty = false;
  /** Called when a write fails; the pins in memory hold all the same. */
  onWriteError: (thrown: unknown) => void = () => {};
  /** Called for each member that is revoked and can't be remembered for want of room. */
  onRevokedOver: (id: Id) => void = () => {};

  /**
   * @param path undefined keeps the pins in memory (tests)
   * @param subnet of another subnet than our own: its name, which is pinned, too
   * @throws PairwireError PIN_MISMATCH if operator key or subnet are not the pinned ones
   */
  constructor(path: string | undefined, operator: Uint8Array, subnet?: Id) {
    this.#path = path;
    this.#operator = Buffer.from(operator).toString('hex');
    this.#subnet = subnet;
    if (path === undefined || !existsSync(path)) {
      this.#dirty = true;
      return;
    }
    const stored = readPins(path);
    if (stored.subnet !== subnet) {
      throw new PairwireError('PIN_MISMATCH', 'this is not the subnet seen before', {
        where: path,
        hint: 'if another subnet is linked now under that net id, remove this file and start again',
      });
    }
    if (stored.operator !== this.#operator) {
      throw new PairwireError('PIN_MISMATCH', 'the operator key is not the one seen before', {
        where: path,
        hint: 'if the operator key was really replaced, join again in an empty directory',
      });
    }
    this.#settings = stored.settings;
    for (const [id, pin] of stored.members) this.#members.set(id, pin);
    for (const [mac, id] of stored.macs) this.#macs.set(mac, id);
    for (const id of stored.revoked) this.#revoked.add(id);
    this.#revocation = stored.revocation;
  }

  /** Whether these are pins of that subnet and operator. */
  isOf(subnet: Id, operator: Uint8Array): boolean {
    return this.#subnet === subnet && this.#operator === Buffer.from(operator).toString('hex');
  }

  /** The version below which settings are refused. */
  get settingsVersion(): number {
    return this.#settings.version;
  }

  /** The highest boot sequence seen of a member, 0 if none. */
  bootSequence(id: Id): number {
    return this.#members.get(id)?.sequence ?? 0;
  }

  /** Whether a member was seen before. */
  isPinned(id: Id): boolean {
    return this.#members.has(id);
  }

  /** Whether the KMS has confirmed the pinned identity. */
  isConfirmed(id: Id): boolean {
    return this.#members.get(id)?.confirmed === true;
  }

  /** Number of the last revocation that was heard of. */
  get revocation(): number {
    return this.#revocation;
  }

  /** Remembers that a member was revoked: it is not believed again, whatever a server says. */
  acceptRevocation(id: Id, number: number): void {
    if (this.#revoked.has(id) && number <= this.#revocation) return;
    if (this.#revoked.size < MAX_REVOKED) this.#revoked.add(id);
    else if (!this.#revoked.has(id)) this.onRevokedOver(id);
    this.#revocation = Math.max(this.#revocation, number);
    // The operator may give its addresses to another member.
    for (const [mac, owner] of this.#macs) if (owner === id) this.#macs.delete(mac);
    this.#touch();
  }

  /** The member that an address is pinned to. */
  ownerOf(mac: MacAddress): Id | undefined {
    return this.#macs.get(mac);
  }

  /** @throws PairwireError PIN_MISMATCH if identity or addresses contradict what was seen before */
  checkMember(member: VerifiedMember): void {
    if (this.#revoked.has(member.id)) {
      throw new PairwireError('RECORD_ROLLBACK', `${member.id} was revoked`, {
        where: member.id,
        hint: 'ids are not used again; was the database of the key server put back?',
      });
    }
    const pin = this.#members.get(member.id);
    if (pin === undefined && this.#subnet !== undefined && this.#members.size >= MAX_FOREIGN) {
      throw new PairwireError('PIN_MISMATCH', `${member.id} is one too many`, {
        where: member.id,
        hint: `more than ${MAX_FOREIGN} link ports were seen of that subnet; remove its pins to begin anew`,
      });
    }
    if (pin !== undefined && pin.identity !== member.identityDigest.toString('hex')) {
      throw mismatch(member.id, 'has another identity than before');
    }
    // Shared addresses are never pinned, so a pinned one is somebody's own, whatever rights this grant has.
    for (const mac of member.macs) {
      const owner = this.#macs.get(mac);
      if (owner !== undefined && owner !== member.id) {
        throw mismatch(member.id, `claims ${mac}, which belongs to ${owner}`);
      }
    }
  }

  /** @throws PairwireError PIN_MISMATCH if one sequence comes with two boot keys */
  checkBoot(member: VerifiedMember, boot: BootRecord): void {
    const pin = this.#members.get(member.id);
    const key = Buffer.from(boot.boot).toString('hex');
    if (pin?.sequence === boot.sequence && pin.boot !== undefined && pin.boot !== key) {
      throw mismatch(member.id, 'signed two boot keys under one sequence');
    }
  }

  /** Remembers what was checked. @param confirmed by the KMS, too */
  acceptMember(member: VerifiedMember, confirmed = false): void {
    const pin = this.#members.get(member.id);
    if (pin === undefined || (confirmed && pin.confirmed !== true)) {
      this.#members.set(member.id, {
        ...(pin ?? { identity: member.identityDigest.toString('hex'), sequence: 0 }),
        ...(confirmed ? { confirmed } : {}),
      });
      this.#touch();
    }
    if (member.grant.rights.includes('shared')) return;
    for (const mac of member.macs) {
      if (this.#macs.has(mac)) continue;
      this.#macs.set(mac, member.id);
      this.#touch();
    }
  }

  /** Remembers a boot record's sequence and key, if it is newer. */
  acceptBoot(member: VerifiedMember, boot: BootRecord): void {
    const pin = this.#members.get(member.id);
    if (pin === undefined || pin.sequence >= boot.sequence) return;
    this.#members.set(member.id, {
      ...pin,
      sequence: boot.sequence,
      boot: Buffer.from(boot.boot).toString('hex'),
    });
    this.#touch();
  }

  /** Remembers the settings' version. @throws PairwireError PIN_MISMATCH for two documents of one version */
  acceptSettings(version: number, digest: Buffer): void {
    const text = digest.toString('hex');
    if (this.#settings.version === version) {
      if (this.#settings.digest === undefined || this.#settings.digest === text) return;
      throw new PairwireError(
        'PIN_MISMATCH',
        `there are two settings documents of version ${version}`,
      );
    }
    if (this.#settings.version > version) return;
    this.#settings = { version, digest: text };
    this.#touch();
  }

  /** Writes what is not on disk yet. */
  flush(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (!this.#dirty || this.#path === undefined) return;
    const body: z.input<typeof pinsSchema> = {
      version: 1,
      operator: this.#operator,
      ...(this.#subnet === undefined ? {} : { subnet: this.#subnet }),
      settings: this.#settings,
      members: [...this.#members],
      macs: [...this.#macs],
      revocation: this.#revocation,
      revoked: [...this.#revoked],
    };
    writeFileAtomic(this.#path, `${JSON.stringify(body, undefined, 1)}\n`);
    this.#dirty = false;
  }

  #touch(): void {
    this.#dirty = true;
    if (this.#path === undefined || this.#timer !== undefined) return;
    this.#timer = setTimeout(() => {
      try {
        this.flush();
      } catch (thrown) {
        this.onWriteError(thrown);
      }
    }, WRITE_DELAY_MS);
    this.#timer.unref();
  }
}

function readPins(path: string): z.infer<typeof pinsSchema> {
  try {
    return pinsSchema.parse(JSON.parse(readSecretFile(path).toString('utf8')));
  } catch (cause) {
    if (cause instanceof PairwireError) throw cause;
    throw new PairwireError('FILE_UNREADABLE', 'pins.json is damaged', {
      where: path,
      hint: 'restore it from a backup; without it, every member would be believed anew',
      cause,
    });
  }
}

function mismatch(id: Id, what: string): PairwireError {
  return new PairwireError('PIN_MISMATCH', `${id} ${what}`, {
    where: id,
    hint: 'ask the operator; if the change is right, remove the entry from pins.json and start again',
  });
}
