/** The gateway's own files: made once, readable by the owner only, numbers that only grow. */
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  loadIdentity,
  makeKeys,
  signMembership,
  writeMembership,
} from '../../../gateway/identity.js';
import { gatewayPaths } from '../../../gateway/paths.js';
import { GatewayState } from '../../../gateway/state.js';
import { parseId } from '../../../src/protocol/ids.js';
import { SUBNET, TestOperator } from './support/records.js';

let dir = '';
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'pairwire-identity-'));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

describe('identity', () => {
  const alice = parseId('alice');

  it('keys are made once', () => {
    const paths = gatewayPaths(dir);
    const keys = makeKeys(paths);
    const text = readFileSync(paths.identity, 'utf8');
    expect(makeKeys(paths).signPublic).toEqual(keys.signPublic);
    expect(readFileSync(paths.identity, 'utf8')).toBe(text);
  });

  it('files that others may read are refused', () => {
    const paths = gatewayPaths(dir);
    makeKeys(paths);
    chmodSync(paths.identity, 0o640);
    expect(() => makeKeys(paths)).toThrow(expect.objectContaining({ code: 'FILE_MODE' }));
  });

  it('a membership must be ours: subnet, id, operator and keys', () => {
    const paths = gatewayPaths(dir);
    const operator = new TestOperator();
    const keys = makeKeys(paths);
    writeMembership(paths, signMembership(SUBNET, alice, operator.grant('alice', []), keys));
    const load = (id = alice, from = operator) => loadIdentity(paths, SUBNET, id, from.public);
    expect(load().member.id).toBe('alice');
    expect(() => load(parseId('bob'))).toThrow('is of alice, not bob');
    expect(() => load(alice, new TestOperator())).toThrow('signature');
    rmSync(paths.channel);
    makeKeys(paths);
    expect(() => load()).toThrow('made with other keys');
    writeFileSync(paths.membership, 'nonsense', { mode: 0o600 });
    expect(() => load()).toThrow('not a membership');
  });
});

describe('state', () => {
  it('sequences only grow, over restarts and clocks that go back', () => {
    const { state } = gatewayPaths(dir);
    const first = new GatewayState(state);
    expect(first.nextBootSequence(1_000.7)).toBe(1_000);
    expect(first.nextBootSequence(500)).toBe(1_001);
    expect(first.nextControlEpoch(7)).toBe(7);
    const again = new GatewayState(state);
    expect(again.nextBootSequence(0)).toBe(1_002);
    expect(again.nextControlEpoch(7)).toBe(8);
    writeFileSync(state, '{', { mode: 0o600 });
    expect(() => new GatewayState(state)).toThrow('state.json is damaged');
  });
});
