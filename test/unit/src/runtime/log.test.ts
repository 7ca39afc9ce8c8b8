/** No secret and no bytes reach a log; errors come with their code. */
import { Writable } from 'node:stream';
import { describe, expect, it } from 'vitest';
import { PairwireError } from '../../../../src/runtime/errors.js';
import { createLogger, SECRET_NAMES } from '../../../../src/runtime/log.js';

function captured(): { lines: string[]; log: ReturnType<typeof createLogger> } {
  const lines: string[] = [];
  const sink = new Writable({
    write(chunk: Buffer, _encoding, done) {
      lines.push(chunk.toString());
      done();
    },
  });
  return { lines, log: createLogger('test', { level: 'debug' }, sink) };
}

describe('log', () => {
  it('removes secrets by name at any depth, and bytes by kind', () => {
    const { lines, log } = captured();
    const secret = 'correct horse';
    for (const name of SECRET_NAMES) {
      log.info({ [name]: secret, a: { b: [{ [name]: secret }] } }, 'x');
    }
    log.info({ raw: Buffer.from(secret), list: [new Uint8Array(Buffer.from(secret))] }, 'x');
    log.info({ a: { b: { c: { d: { e: { key: secret } } } } } }, 'x');
    const text = lines.join('');
    expect(text).not.toContain(secret);
    expect(text).not.toContain(Buffer.from(secret).toString('base64'));
    expect(text).not.toMatch(/99,111,114/);
    expect(text).toContain('<13 bytes>');
  });

  it('writes one JSON object a line, with level names and error codes', () => {
    const { lines, log } = captured();
    log.warn({ err: new PairwireError('LIMIT', 'too much', { where: 'here' }) }, 'oh');
    log.trace('not at this level');
    expect(lines).toHaveLength(1);
    expect(JSON.parse(lines[0] ?? '')).toMatchObject({
      level: 'warn',
      name: 'test',
      msg: 'oh',
      err: { code: 'LIMIT', message: 'too much', where: 'here' },
    });
  });
});
