/**
 * The subnet's security settings in force: the newest version that the operator signed.
 * Installing a version may change what members can see; then the records concerned get new
 * change numbers in the same transaction.
 */
import type { KeyObject } from 'node:crypto';
import type { Id } from '../src/protocol/ids.js';
import { samePolicy } from '../src/protocol/policy.js';
import { type Settings, verifySettings } from '../src/protocol/records.js';
import type { Signed } from '../src/protocol/signed.js';
import { PairwireError } from '../src/runtime/errors.js';
import { Refusal, refusing } from './refusal.js';
import { applyPolicy } from './registry/policy.js';
import type { Store, StoreTransaction } from './storage/store.js';

/** The settings with the record that members get. */
export interface InForce {
  readonly settings: Settings;
  readonly record: Signed;
  readonly changed: number;
}

/** Holds the settings in force. */
export class CurrentSettings {
  readonly #subnet: Id;
  readonly #operator: KeyObject;
  #inForce: InForce;

  private constructor(subnet: Id, operator: KeyObject, inForce: InForce) {
    this.#subnet = subnet;
    this.#operator = operator;
    this.#inForce = inForce;
  }

  /** Loads the newest settings of a store. @throws PairwireError RECORD_SIGNATURE ..., STORE_FAILED if there are none */
  static async load(store: Store, operator: KeyObject): Promise<CurrentSettings> {
    const stored = await store.settings();
    if (stored === undefined) {
      throw new PairwireError('STORE_FAILED', 'the database holds no settings', {
        hint: 'make the subnet with `pairwire init`',
      });
    }
    const { subnet } = store.meta;
    const settings = verifySettings(subnet, stored.record, operator, stored.version);
    return new CurrentSettings(subnet, operator, {
      settings,
      record: stored.record,
      changed: stored.changed,
    });
  }

  get settings(): Settings {
    return this.#inForce.settings;
  }

  get inForce(): InForce {
    return this.#inForce;
  }

  /** True if every member sees every other, false if only those it shares a key with. */
  showsAll(talkers: number): boolean {
    return talkers <= this.#inForce.settings.group.replicate;
  }

  /**
   * Installs a newer version.
   * @param also is done in the same transaction
   * @returns the version, and whether this was a change (the version in force again is none)
   * @throws Refusal for a record that is not the operator's, or older
   */
  async install(
    store: Store,
    record: Signed,
    now: number,
    also?: (tx: StoreTransaction, version: number) => Promise<void>,
  ): Promise<{ readonly version: number; readonly changed: boolean }> {
    const before = this.#inForce;
    const next = refusing('settings_record', () =>
      verifySettings(this.#subnet, record, this.#operator, before.settings.version),
    );
    if (next.version === before.settings.version) {
      if (Buffer.compare(record.b, before.record.b) !== 0) {
        throw new Refusal('refused', 'settings_record', 'other settings have this version already');
      }
      return { version: next.version, changed: false };
    }
    const changed = await store.write(async (tx) => {
      // Another request may have got in between: what is newest is decided by the store.
      const stored = await tx.settings();
      const last =
        stored === undefined
          ? before.settings
          : verifySettings(this.#subnet, stored.record, this.#operator, stored.version);
      if (last.version >= next.version) {
        throw new Refusal('refused', 'settings_record', 'newer settings have come meanwhile');
      }
      const number = await installSettings(tx, record, next, last, now);
      await also?.(tx, next.version);
      return number;
    });
    if (next.version > this.#inForce.settings.version) {
      this.#inForce = { settings: next, record, changed };
    }
    return { version: next.version, changed: true };
  }
}

/** Age at which the group key is renewed, ms; 0: not by age. */
export function groupInterval(rekey: Settings['group']['rekey']): number {
  return typeof rekey === 'number' ? rekey * 1_000 : 0;
}

/**
 * Stores verified settings; whatever comes into somebody's view by them is renumbered.
 * @param before the settings in force until now, undefined for the first ones
 * @returns the change number
 */
export async function installSettings(
  tx: StoreTransaction,
  record: Signed,
  next: Settings,
  before: Settings | undefined,
  now: number,
): Promise<number> {
  const changed = await tx.nextChange();
  await tx.insertSettings({ version: next.version, record, changed }, now);
  if (before !== undefined) {
    const { talkers } = await tx.counters();
    const shownBefore = talkers <= before.group.replicate;
    const shownNow = talkers <= next.group.replicate;
    if (!shownBefore && shownNow) await tx.renumberMembers();
    if (before.hold === 0 && next.hold > 0) await tx.renumberKeys();
    if (before.rekeySeconds !== next.rekeySeconds) {
      await tx.redatePairs(next.rekeySeconds * 1_000);
      await tx.redateNets(next.rekeySeconds * 1_000);
    }
    if (before.group.rekey !== next.group.rekey) {
      await tx.redateGroup(groupInterval(next.group.rekey));
    }
    if (!samePolicy(before.policy, next.policy)) await applyPolicy(tx, next.policy);
  }
  return changed;
}
