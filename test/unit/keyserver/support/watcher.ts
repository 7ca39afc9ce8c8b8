/** A member that watches its key server's audit log as a gateway does, with the gateway's own code. */
import { AuditHeads } from '../../../../gateway/control/audit-heads.js';
import type { Id } from '../../../../src/protocol/ids.js';
import { answerSchemas, pushSchema } from '../../../../src/protocol/messages.js';
import type { Signed } from '../../../../src/protocol/signed.js';
import type { TestMember } from './subnet.js';

export class Watcher {
  readonly heads: AuditHeads;
  readonly #member: TestMember;

  constructor(member: TestMember, server: Id) {
    this.#member = member;
    this.heads = new AuditHeads({ path: undefined, subnet: member.subnet.subnet, server });
    member.onPush = (message) => {
      const push = pushSchema.parse(message);
      if (push.t === 'changes' && push.audit !== undefined) this.heads.take(push.audit, undefined);
    };
  }

  /** Registers with the head that is known, or another one, and synchronises. */
  async come(head: Signed | undefined = this.heads.evidence): Promise<void> {
    const { seq = 0 } = this.heads.head ?? {};
    const shown = await registerWith(this.#member, head);
    if (shown !== undefined && this.heads.alarm === undefined) this.heads.take(shown, seq);
    await this.ask();
  }

  async ask(): Promise<void> {
    const floor = this.heads.head?.seq ?? 0;
    const { audit } = await this.#member.sync();
    if (audit !== undefined) this.heads.take(audit, floor);
  }
}

/** Registers the present boot key, naming a head. @returns what the log has in its place */
export async function registerWith(
  member: TestMember,
  audit: Signed | undefined,
  boot: Signed = member.bootRecord(),
): Promise<Signed | undefined> {
  const { machine, nonce } = member;
  const named = audit === undefined ? {} : { audit };
  const answer = await member.client.request(
    { t: 'register', boot, machine, nonce, ...named },
    { parse: (value) => answerSchemas.register.parse(value) },
  );
  return answer.audit;
}
