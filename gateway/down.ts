/**
 * `pairwire down`: asks the running gateway to take everything away; where none runs, does the
 * same by the broker and the data plane that an earlier one left.
 */
import { rmSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { messageOf, PairwireError } from '../src/runtime/errors.js';
import { loadGatewayConfig } from './config.js';
import { BrokerDevices } from './devices.js';
import { gatewayPaths, RUN_ROOT, type RunPaths, runPaths } from './paths.js';
import { answers, askGateway } from './status/socket.js';
import { isRoot } from './users.js';

/** For a process to end that has answered already. */
const END_TIMEOUT_MS = 5_000;
const DOWN_TIMEOUT_MS = 30_000;

/** What `down` found. */
export interface TakenDown {
  readonly was: 'gateway' | 'data plane only' | 'nothing';
}

/** @throws PairwireError PRIVILEGE, REFUSED */
export async function takeDown(dir: string): Promise<TakenDown> {
  const config = loadGatewayConfig(gatewayPaths(dir).config);
  const run = runPaths(config.run);
  if (await answers(run.control)) {
    await askGateway(run.control, 'down', DOWN_TIMEOUT_MS);
    await until(async () => !(await answers(run.control)));
    removeRunDirectory(run);
    return { was: 'gateway' };
  }
  try {
    // The broker ends the data plane, whose memory with its keys is gone then.
    await new BrokerDevices(run.dir, config).close();
    removeRunDirectory(run);
    return { was: 'data plane only' };
  } catch (thrown) {
    if (thrown instanceof PairwireError && thrown.code === 'DEVICES_GONE')
      return { was: 'nothing' };
    throw thrown instanceof PairwireError
      ? thrown
      : new PairwireError('DEVICES_GONE', messageOf(thrown), { where: run.dir, cause: thrown });
  }
}

/** Leaves no empty folders in /run, if we may; those that were configured stay. */
function removeRunDirectory(run: RunPaths): void {
  if (isRoot() && run.dir.startsWith(`${RUN_ROOT}/`)) {
    rmSync(run.dir, { recursive: true, force: true });
  }
}

async function until(condition: () => Promise<boolean>): Promise<void> {
  const end = performance.now() + END_TIMEOUT_MS;
  while (!(await condition()) && performance.now() < end) await sleep(20);
}
