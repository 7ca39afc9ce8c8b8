/** `pairwire renew`: asks the running gateway for a fresh boot key. */
import { z } from 'zod';
import { loadGatewayConfig } from './config.js';
import { gatewayPaths, runPaths } from './paths.js';
import { askGateway } from './status/socket.js';

const answerSchema = z.looseObject({ boot: z.int() });

/** @throws PairwireError GATEWAY_NOT_RUNNING, REFUSED */
export async function renewBoot(dir: string): Promise<{ readonly boot: number }> {
  const { control } = runPaths(loadGatewayConfig(gatewayPaths(dir).config).run);
  const { boot } = answerSchema.parse(await askGateway(control, 'renew'));
  return { boot };
}
