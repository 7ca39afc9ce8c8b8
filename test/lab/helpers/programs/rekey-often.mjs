/**
 * Orders a renewal of all pair keys every INTERVAL ms over one channel, until SIGTERM; then says how many.
 *
 *     rekey-often.mjs KEY-SERVER-DIRECTORY INTERVAL
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { loadKeyServerConfig } from '../../../../dist/keyserver/config.js';
import { OperatorClient } from '../../../../dist/keyserver/operator-client.js';

const [dir = '', interval = ''] = process.argv.slice(2);
const operator = new OperatorClient(dir, loadKeyServerConfig(dir));
const ending = new AbortController();
process.on('SIGTERM', () => ending.abort());

let orders = 0;
for (let due = performance.now(); !ending.signal.aborted; due += Number(interval)) {
  // One that is held up does not make up for it by a burst.
  due = Math.max(due, performance.now() - Number(interval));
  await sleep(due - performance.now(), undefined, { signal: ending.signal }).catch(() => undefined);
  if (ending.signal.aborted) break;
  await operator.rekey({ a: undefined, b: undefined, force: false });
  orders += 1;
}
operator.close();
process.stdout.write(`${JSON.stringify({ orders })}\n`);
