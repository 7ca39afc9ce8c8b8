/** control.sock: who asks or answers without end is cut off, and everybody else is served. */
import { mkdtempSync, rmSync } from 'node:fs';
import { connect, createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { askGateway, ControlSocket } from '../../../../gateway/status/socket.js';

describe('the control socket', () => {
  let dir: string;
  let path: string;
  const opened: { close(): unknown }[] = [];
  beforeEach(() => {
    dir = mkdtempSync(join(tmpdir(), 'pairwire-control-'));
    path = join(dir, 'control.sock');
  });
  afterEach(async () => {
    for (const one of opened.splice(0)) await one.close();
    rmSync(dir, { recursive: true, force: true });
  });

  /** Writes a question as bytes. @returns everything that is answered, at the latest when it ends */
  function exchange(question: string): Promise<string> {
    return new Promise((resolve) => {
      const socket = connect(path);
      let text = '';
      socket.setEncoding('utf8');
      socket.on('data', (chunk: string) => {
        text += chunk;
        if (text.endsWith('\n')) socket.end();
      });
      socket.on('error', () => {});
      socket.on('close', () => resolve(text));
      socket.write(question);
    });
  }

  it('a question of 64 KiB is answered; a longer one, and one without end, ends its connection alone', async () => {
    const control = new ControlSocket(path, async (verb) => ({ verb }));
    await control.listen();
    opened.push(control);
    const question = '{"do":"status"}';
    expect(await exchange(`${question.padEnd(65_535)}\n`)).toContain('"verb":"status"');
    expect(await exchange(`${question.padEnd(65_536)}\n`)).toBe('');
    expect(await exchange('x'.repeat(200_000))).toBe('');
    expect(await askGateway(path, 'status')).toMatchObject({ verb: 'status' });
  });

  it('who says nothing, or not all of a question, is cut off after a while', async () => {
    const control = new ControlSocket(path, async (verb) => ({ verb }), 300);
    await control.listen();
    opened.push(control);
    expect(await exchange('{"do":')).toBe('');
    expect(await exchange('')).toBe('');
    expect(await exchange('{"do":"status"}\n')).toContain('"verb":"status"');
  });

  it('an answer of up to 64 MiB is read, however it is cut; one without end is not waited for', async () => {
    const whole = 64 * 1_048_576;
    let size = whole;
    const server: Server = createServer((socket) => {
      socket.on('error', () => {});
      socket.write('{"ok":true,"pad":"');
      socket.write(`${'x'.repeat(size - '{"ok":true,"pad":""}'.length)}"}`);
      if (size <= whole) socket.write('\n');
    });
    await new Promise<void>((resolve) => server.listen(path, resolve));
    opened.push(server);
    const answer = await askGateway(path, 'status');
    expect(String(answer.pad).length).toBe(whole - 20);
    size = whole + 1;
    await expect(askGateway(path, 'status')).rejects.toMatchObject({
      code: 'GATEWAY_NOT_RUNNING',
      message: 'the gateway answers without end',
    });
  }, 60_000);
});
