/** The status of the gateway in a directory, asked over its control socket. */
import { loadGatewayConfig } from '../config.js';
import { gatewayPaths, runPaths } from '../paths.js';
import { type Status, statusSchema } from './snapshot.js';
import { askGateway, notUnderstood } from './socket.js';

/** @throws PairwireError CONFIG_NOT_FOUND, GATEWAY_NOT_RUNNING */
export function readStatus(dir: string): Promise<Status> {
  return askStatus(controlSocketOf(dir));
}

/** The status of the gateway that listens on a socket. @throws PairwireError GATEWAY_NOT_RUNNING or what it answered */
export async function askStatus(path: string, timeoutMs?: number): Promise<Status> {
  const answer = await askGateway(path, 'status', timeoutMs);
  const parsed = statusSchema.safeParse(answer.status);
  if (!parsed.success) throw notUnderstood(path, parsed.error);
  return parsed.data;
}

/** The control socket of the gateway in a directory. */
export function controlSocketOf(dir: string): string {
  return runPaths(loadGatewayConfig(gatewayPaths(dir).config).run).control;
}
