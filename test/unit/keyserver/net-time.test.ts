/** The time that frames between subnets carry: key servers and link ports come to the same one. */
import { describe, expect, it } from 'vitest';
import { linkAhead as aheadAtLink } from '../../../gateway/link/net-time.js';
import { keptAhead, linkAhead } from '../../../keyserver/nets/net-time.js';
import type { Net } from '../../../keyserver/storage/store.js';
import { parseId } from '../../../src/protocol/ids.js';
import { MAX_NET_AHEAD_MS } from '../../../src/protocol/messages.js';

const contact = {
  ...{ subnet: parseId('x'), member: parseId('x'), servers: [] },
  operator: Buffer.alloc(32),
};

/** A net whose key is made there if its name comes before `m`, else here. */
function net(name: string, ahead: number | undefined): Net {
  const asked = name < 'm';
  const far = { subnet: parseId(name), operator: Buffer.alloc(32), ports: [] };
  return {
    ...{ net: parseId(name), local: [], told: [], pwId: 1, oldest: 1, reason: '', createdAt: 0 },
    ...{ dueAt: 0, next: undefined, serial: 1, changed: 1, key: Buffer.alloc(32) },
    member: asked ? undefined : parseId(name),
    contact: asked ? contact : undefined,
    far: ahead === undefined ? far : { ...far, ahead },
  };
}

describe('the time of frames between subnets', () => {
  const own = parseId('m');

  it.each([
    ['nobody is linked', [], 0],
    ['all others ask us', [net('x', undefined), net('z', undefined)], 0],
    ['one makes the key', [net('b', -60_000), net('x', undefined)], -60_000],
    ['the smallest one decides', [net('c', 5_000), net('b', -60_000)], -60_000],
    ['also if its clock is like ours', [net('c', 5_000), net('b', undefined)], 0],
    ['what one says that asks us counts for nothing', [net('x', 7_000)], 0],
  ] as const)('is the same to the key server and to its link ports: %s', (_name, nets, ahead) => {
    expect(linkAhead(nets)).toBe(ahead);
    const told = nets.map((one) => ({ net: one.net, ahead: one.far?.ahead }));
    expect(aheadAtLink(own, told)).toBe(ahead);
    expect(aheadAtLink(own, [...told].reverse())).toBe(ahead);
  });

  it('is not that of a net whose link has ended, of which link ports are not told', () => {
    const ended = { ...net('b', -60_000), key: undefined };
    expect(linkAhead([ended, net('c', 5_000)])).toBe(5_000);
  });

  it('stays while a measurement is nearly the same, and follows another one', () => {
    expect(keptAhead(undefined, 400)).toBeUndefined();
    expect(keptAhead(undefined, -60_000.4)).toBe(-60_000);
    expect(keptAhead(-60_000, -60_450)).toBe(-60_000);
    expect(keptAhead(-60_000, -60_600)).toBe(-60_600);
    expect(keptAhead(-60_000, 3)).toBe(3);
    expect(keptAhead(-60_000, undefined)).toBe(-60_000);
  });

  it('is never further away than it may be, whatever another key server says', () => {
    expect(keptAhead(undefined, MAX_NET_AHEAD_MS)).toBe(MAX_NET_AHEAD_MS);
    expect(keptAhead(undefined, MAX_NET_AHEAD_MS + 1)).toBeUndefined();
    expect(keptAhead(5_000, -MAX_NET_AHEAD_MS - 1)).toBe(5_000);
  });
});
