/**
 * The heads of the audit log that members name when they register (docs/protocol.md 6.5). Only this server
 * can have signed one, so a head that the log contradicts shows that it was cut, changed or put back; and whatever else a
 * member says is refused and stands in the log with its name.
 */
import { type AuditHead, openAuditHead, storedHead } from '../src/protocol/audit-head.js';
import type { Id } from '../src/protocol/ids.js';
import type { Signed } from '../src/protocol/signed.js';
import { whyNotInLog } from './audit.js';
import type { AuditWitnesses } from './audit-witnesses.js';
import { Refusal, refusing } from './refusal.js';
import { TokenBuckets } from './registry/token-bucket.js';
import type { Services } from './services.js';

/** Heads of a member that are looked at, besides the newest one, which costs nothing: so many at once, then one in 10 s. */
const HEAD_BURST = 10;
const HEADS_PER_SECOND = 0.1;

/** Looks at the heads that members know. */
export class AuditIntake {
  readonly #services: Services;
  readonly #witnesses: AuditWitnesses;
  readonly #signPublic: Buffer;
  readonly #rate = new TokenBuckets(HEAD_BURST, HEADS_PER_SECOND);

  /** @param signPublic the key that heads of this server are signed with */
  constructor(services: Services, witnesses: AuditWitnesses, signPublic: Buffer) {
    this.#services = services;
    this.#witnesses = witnesses;
    this.#signPublic = signPublic;
  }

  /**
   * @returns for a head that is not in the log, one that shows it: the log's own entry there, or its newest head if it is shorter
   * @throws Refusal for what is no head of this server, or too many of them
   */
  async look(id: Id, record: Signed): Promise<Signed | undefined> {
    const { store, server, audit, now, elapsed = now } = this.#services;
    if (isSame(record, audit.head)) return undefined;
    if (!this.#rate.take(id, elapsed())) {
      throw new Refusal('limit', 'audit_head', 'too many heads of the audit log; wait');
    }
    const head = this.#open(record);
    const why = await whyNotInLog(store, server, head.seq, head.mac);
    if (why === undefined || head.time <= (this.#witnesses.settledAt ?? -1)) return undefined;
    const { seq } = head;
    const mac = Buffer.from(head.mac).toString('base64url');
    audit.contradicted({ witness: id, seq, mac, at: now(), record: storedHead(record) }, why);
    const [entry] = await store.listAudit(server, seq - 1, 1);
    if (entry?.seq === seq) return audit.headAt(entry);
    return entry === undefined ? audit.head : undefined;
  }

  #open(record: Signed): AuditHead {
    const { store, server } = this.#services;
    const head = refusing('audit_head', () => openAuditHead(store.meta.subnet, record));
    if (head.server !== server || !this.#signPublic.equals(head.sign)) {
      throw new Refusal('refused', 'audit_head', 'no head of this server', { server: head.server });
    }
    return head;
  }
}

function isSame(a: Signed, b: Signed | undefined): boolean {
  return b !== undefined && Buffer.compare(a.s, b.s) === 0 && Buffer.compare(a.b, b.b) === 0;
}
