/** Bound IP addresses as the data plane is told of them: all of them, and none that is not bound any more. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { CommandPort } from '../../../../gateway/dataplane/client.js';
import type {
  AnswerTo,
  CommandFields,
  CommandType,
} from '../../../../gateway/dataplane/messages.gen.js';
import { Bindings } from '../../../../gateway/guard/bindings.js';
import { ipToText } from '../../../../src/protocol/ip.js';
import { type MacAddress, macFromBytes } from '../../../../src/protocol/mac.js';

const MACS = ['02:00:00:00:00:01', '02:00:00:00:00:02', '02:00:00:00:00:03'] as MacAddress[];
const [A, B, C] = MACS as [MacAddress, MacAddress, MacAddress];
const nth = (at: number): string => `10.0.${at >> 8}.${at & 255}`;

/** What a data plane would know from the commands that came. */
class Heard implements CommandPort {
  bound = new Map<string, string>();
  commands = 0;
  #coming: Map<string, string> | undefined;

  request<T extends CommandType>(type: T, fields: CommandFields<T>): Promise<AnswerTo<T>> {
    this.commands += 1;
    const { reset, more, entries, ips } = fields as Partial<
      CommandFields<'bind.set'> & CommandFields<'bind.remove'>
    >;
    if ((entries?.length ?? 0) > 4_096 || (ips?.length ?? 0) > 4_096) throw new Error('too long');
    if (type === 'bind.set') {
      if (reset === true) this.#coming = new Map();
      for (const { ip, mac } of entries ?? []) {
        (this.#coming ?? this.bound).set(ipToText(ip), macFromBytes(mac));
      }
      if (more === false && this.#coming !== undefined) {
        this.bound = this.#coming;
        this.#coming = undefined;
      }
    } else {
      for (const ip of ips ?? []) this.bound.delete(ipToText(ip));
    }
    return Promise.resolve({} as AnswerTo<T>);
  }
}

function bench() {
  const heard = new Heard();
  const bindings = new Bindings({
    port: 1,
    dataPlane: { request: (type, fields) => heard.request(type, fields) },
    onCommandFailed: (error) => {
      throw error;
    },
  });
  return { heard, bindings };
}

describe('bound IP addresses', () => {
  it('are told whole after the first synchronisation, in few commands, and again to each data plane', async () => {
    const { heard, bindings } = bench();
    heard.bound.set('10.9.9.9', A);
    await bindings.installAll();
    bindings.beginFull();
    for (let at = 0; at < 5_000; at += 1) bindings.take(nth(at), A, at + 1);
    bindings.flush();
    // A data plane that outlived its control plane knows more than half a list.
    expect([...heard.bound.keys()]).toEqual(['10.9.9.9']);
    bindings.endFull();
    expect(heard.bound.size).toBe(5_000);
    expect(heard.commands).toBe(2);
    bindings.detached();
    heard.bound.clear();
    bindings.take('10.9.0.1', B, 6_000);
    bindings.flush();
    expect(heard.bound.size).toBe(0);
    await bindings.installAll();
    expect(heard.bound.size).toBe(5_001);
  });

  it('are none if the key server names none', async () => {
    const { heard, bindings } = bench();
    heard.bound.set('10.9.9.9', A);
    await bindings.installAll();
    bindings.beginFull();
    bindings.endFull();
    expect(heard.bound.size).toBe(0);
  });

  it('change with each change, however late or doubled it comes', async () => {
    const { heard, bindings } = bench();
    await bindings.installAll();
    bindings.beginFull();
    bindings.endFull();
    bindings.take('10.0.0.1', A, 5);
    bindings.take('10.0.0.1', B, 7);
    bindings.take('10.0.0.1', A, 6);
    bindings.flush();
    expect(heard.bound.get('10.0.0.1')).toBe(B);
    bindings.take('10.0.0.1', undefined, 9);
    bindings.take('10.0.0.1', C, 8);
    bindings.take('fe80::1', C, 10);
    bindings.flush();
    expect([...heard.bound]).toEqual([['fe80::1', C]]);
    expect(bindings.size).toBe(1);
  });

  it('that a server which was put back does not name are gone, and returned to be told again', async () => {
    const { heard, bindings } = bench();
    await bindings.installAll();
    bindings.beginFull();
    bindings.take('10.0.0.1', A, 50);
    bindings.take('10.0.0.2', B, 51);
    expect(bindings.endFull()).toEqual([]);
    bindings.beginFull();
    // The other store's numbers are lower.
    bindings.take('10.0.0.2', C, 3);
    expect(bindings.endFull()).toEqual([{ ip: '10.0.0.1', mac: A }]);
    expect([...heard.bound]).toEqual([['10.0.0.2', C]]);
  });

  it('are not more than a data plane takes, whatever the server says', () => {
    const { bindings } = bench();
    const many = (): void => {
      for (let at = 0; at < 70_000; at += 1)
        bindings.take(`10.${at >> 16}.${(at >> 8) & 255}.${at & 255}`, A, at);
    };
    expect(many).toThrow('too many');
    expect(bindings.size).toBe(65_536);
  });

  it('are the same here and there after any changes, restarts and synchronisations', async () => {
    const step = fc.oneof(
      { weight: 6, arbitrary: fc.record({ ip: fc.nat(5), mac: fc.option(fc.nat(2)) }) },
      { weight: 1, arbitrary: fc.constantFrom('full', 'detach', 'attach', 'flush') },
    );
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 40 }), async (steps) => {
        const { heard, bindings } = bench();
        const truth = new Map<string, MacAddress>();
        const full = (): void => {
          bindings.beginFull();
          for (const [ip, mac] of truth) bindings.take(ip, mac, seq);
          bindings.endFull();
        };
        let seq = 0;
        await bindings.installAll();
        full();
        for (const one of steps) {
          if (one === 'full') full();
          else if (one === 'flush') bindings.flush();
          else if (one === 'attach') await bindings.installAll();
          else if (one === 'detach') {
            bindings.detached();
            heard.bound.clear();
          } else {
            seq += 1;
            const mac = one.mac === null ? undefined : MACS[one.mac];
            if (mac === undefined) truth.delete(nth(one.ip));
            else truth.set(nth(one.ip), mac);
            bindings.take(nth(one.ip), mac, seq);
          }
        }
        await bindings.installAll();
        expect(Object.fromEntries(heard.bound)).toEqual(Object.fromEntries(truth));
      }),
    );
  });
});
