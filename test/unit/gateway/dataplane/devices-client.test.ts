/** The client of the device broker: an answer without end is not waited for. */
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { DevicesClient } from '../../../../gateway/dataplane/devices-client.js';

let dir: string;
let path: string;
let server: Server;
let answer: string;
beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), 'pairwire-devices-'));
  path = join(dir, 'devices.sock');
  server = createServer((socket) => {
    socket.on('error', () => {});
    socket.on('data', () => socket.write(answer));
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
});
afterEach(async () => {
  await new Promise((resolve) => server.close(resolve));
  rmSync(dir, { recursive: true, force: true });
});

it('an answer of 1 MiB is read; one byte more ends the connection, whatever it says', async () => {
  const guard = '{"ok":true,"guard":true';
  const whole = (size: number): string => `${guard}${' '.repeat(size - guard.length - 2)}}\n`;
  const client = await DevicesClient.connect(path);
  answer = whole(1_048_576);
  expect(await client.guard(true)).toBe(true);
  answer = whole(1_048_577);
  await expect(client.guard(true)).rejects.toMatchObject({
    code: 'DEVICES_GONE',
    message: 'an answer is too long',
  });
  // What was waited for is not answered by what comes later.
  await expect(client.guard(true)).rejects.toMatchObject({ code: 'DEVICES_GONE' });
  client.close();
});
