/**
 * Gateways of a protocol model: the real tables, with a data plane of which only what it holds and sends with is
 * modelled, by the rules that gateway/native/test/tables.test.cpp holds the real one to.
 */
import { expect } from 'vitest';
import type { CommandPort } from '../../../../gateway/dataplane/client.js';
import type {
  AnswerTo,
  CommandFields,
  CommandType,
} from '../../../../gateway/dataplane/messages.gen.js';
import { PeerTable } from '../../../../gateway/key-table/peer-table.js';
import { Pins } from '../../../../gateway/key-table/pins.js';
import { Verifier } from '../../../../gateway/key-table/verifier.js';
import type { Change } from '../../../../src/protocol/messages.js';
import { importPublic } from '../../../../src/protocol/public-keys.js';
import { NOW, SUBNET, type TestOperator, type TestPeer } from '../../gateway/support/records.js';

/** The keys of one pair, or of the group: what is held, and what is sent with: the latest choice among that. */
export class HeldKeys {
  /** Generation to key, for receiving. */
  readonly held = new Map<number, string>();
  /** The generation that was sent with when it was last looked at. */
  sentWith = 0;
  readonly #chosen = new Map<number, number>();
  #choices = 0;
  #leaving: number[] = [];

  get send(): number | undefined {
    const chosen = [...this.#chosen].toSorted(([, one], [, other]) => other - one);
    return chosen[0]?.[0];
  }

  install({ key, pwId, send }: { key: Uint8Array; pwId: number; send: boolean }): void {
    const text = Buffer.from(key).toString('hex');
    expect(this.held.get(pwId) ?? text, 'one generation is one key').toBe(text);
    this.held.set(pwId, text);
    if (send) this.choose(pwId);
  }

  choose(pwId: number): void {
    this.#choices += 1;
    this.#chosen.set(pwId, this.#choices);
  }

  drop(pwId: number, graceMs: number): void {
    if (graceMs === 0) this.#forget(pwId);
    else this.#leaving.push(pwId);
  }

  /** The grace period of dropped generations is over. */
  grace(): void {
    for (const pwId of this.#leaving.splice(0)) this.#forget(pwId);
  }

  clear(): void {
    this.held.clear();
    this.#chosen.clear();
    this.sentWith = 0;
    this.#leaving = [];
  }

  #forget(pwId: number): void {
    for (const held of [...this.held.keys()].filter((one) => one <= pwId)) {
      this.held.delete(held);
      this.#chosen.delete(held);
    }
  }
}

export class ModelPlane implements CommandPort {
  readonly pair = new HeldKeys();
  readonly group = new HeldKeys();
  #boot = 1;

  get boot(): number {
    return this.#boot;
  }

  request<T extends CommandType>(type: T, fields: CommandFields<T>): Promise<AnswerTo<T>> {
    if (type === 'key.pair') this.pair.install(fields as CommandFields<'key.pair'>);
    if (type === 'key.group') this.group.install(fields as CommandFields<'key.group'>);
    if (type === 'key.drop') {
      const { peer, pwId, graceMs } = fields as CommandFields<'key.drop'>;
      (peer === '' ? this.group : this.pair).drop(pwId, graceMs);
    }
    return Promise.resolve({ kidSend: 1, kidReceive: 2 } as unknown as AnswerTo<T>);
  }

  /** The grace periods of dropped generations are over. */
  grace(): void {
    this.pair.grace();
    this.group.grace();
  }

  /** It dies: another one has another boot key and holds nothing. */
  restart(): number {
    this.pair.clear();
    this.group.clear();
    this.#boot += 1;
    return this.#boot;
  }
}

/** One gateway, with one peer. */
export class ModelGateway {
  readonly plane = new ModelPlane();
  readonly table: PeerTable;
  readonly inbox: Change[] = [];
  readonly #record: ReturnType<TestPeer['record']>;
  /** The database was put back: its next synchronisation is from nothing. */
  anew = false;

  constructor(
    readonly self: TestPeer,
    readonly peer: TestPeer,
    operator: TestOperator,
  ) {
    this.table = new PeerTable({
      self: { id: self.id, tags: [] },
      port: 1,
      verifier: new Verifier({
        subnet: SUBNET,
        operator: importPublic('ed25519', operator.public),
        pins: new Pins(undefined, operator.public),
        now: () => NOW,
      }),
      dataPlane: this.plane,
      acceptsEndpoint: () => true,
      isNear: () => true,
      onRefused: (_id, error) => {
        throw error;
      },
      onDenied: () => {},
      onCommandFailed: (error) => {
        throw error;
      },
      onPrepared: () => {},
      onGroupPrepared: () => {},
      onAddress: () => {},
    });
    this.#record = peer.record(7, 1);
    this.table.takeMember(this.#record);
  }

  async start(): Promise<void> {
    await this.table.installAll(this.plane.boot);
  }

  /** Another data plane takes the place of this one. */
  async restart(): Promise<void> {
    this.table.detached();
    await this.table.installAll(this.plane.restart());
  }

  take(change: Change): void {
    if (change.kind === 'pair') this.table.takePair(change.peer, change, change.seq);
    if (change.kind === 'group') this.table.takeGroup(change, change.seq);
  }

  /** A synchronisation whose answer has these changes. */
  sync(changes: readonly Change[]): void {
    if (this.anew) {
      this.table.beginFull();
      this.table.takeMember(this.#record, 1);
    }
    for (const change of changes) this.take(change);
    if (this.anew) this.table.endFull();
    this.anew = false;
  }

  /** What becomes of a message on its way to it. */
  pass(how: 'deliver' | 'lose' | 'double', at: number): void {
    const index = at % Math.max(1, this.inbox.length);
    const change = this.inbox[index];
    if (change === undefined) return;
    if (how !== 'double') this.inbox.splice(index, 1);
    if (how !== 'lose') this.take(change);
  }
}

/** Every key that a server made, by generation; a database that was put back may have made two. */
export class MadeKeys {
  readonly #keys = new Map<number, Set<string>>();
  /** A database that was put back gives numbers that it has forgotten to other keys. */
  again = false;

  note(one: { readonly pwId: number; readonly key: Uint8Array } | undefined): void {
    if (one === undefined) return;
    const keys = this.#keys.get(one.pwId) ?? new Set();
    keys.add(Buffer.from(one.key).toString('hex'));
    if (!this.again) expect(keys.size, 'no number is used for two keys').toBe(1);
    this.#keys.set(one.pwId, keys);
  }

  /** Holds what is true at every moment of what a data plane holds. */
  check(keys: HeldKeys): void {
    const send = keys.send ?? 0;
    expect(send, 'no end goes back').toBeGreaterThanOrEqual(keys.sentWith);
    keys.sentWith = send;
    for (const [pwId, key] of keys.held) {
      expect(
        this.#keys.get(pwId)?.has(key),
        'no end accepts a key that the server did not make',
      ).toBe(true);
    }
  }
}
