/** The status of the gateway in a directory, asked over its control socket. */
import { loadGatewayConfig } from '../config.js';
import { gatewayPaths, runPaths } from '../paths.js';
import { type Status, statusSchema } from './snapshot.js';
import { askGateway } from './socket.js';

/** @throws PairwireError CONFIG_NOT_FOUND, GATEWAY_NOT_RUNNING */
export async function readStatus(dir: string): Promise<Status> {
  const answer = await askGateway(controlSocketOf(dir), 'status');
  return statusSchema.parse(answer.status);
}

/** The control socket of the gateway in a directory. */
export function controlSocketOf(dir: string): string {
  return runPaths(loadGatewayConfig(gatewayPaths(dir).config).run).control;
}
