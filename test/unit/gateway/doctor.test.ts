/** doctor: what it does not look at, it says. */
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { loadGatewayConfig } from '../../../gateway/config.js';
import { checkRoutes, MAX_ROUTES } from '../../../gateway/doctor.js';

const example = new URL('../../../config/gateway.example.yaml', import.meta.url).pathname;

it('the ways to 64 members are looked at; of more, how many were not', async () => {
  const config = { ...loadGatewayConfig(join(example)), servers: [] };
  const look = (members: number) =>
    checkRoutes({
      config,
      status: {
        ports: [
          {
            peers: Array.from({ length: members }, (_, at) => ({
              endpoint: `127.0.${at >> 8}.${(at & 255) + 1}:7900`,
              endpoints: [],
            })),
          },
        ],
      },
    });
  const all = await look(MAX_ROUTES);
  expect(all).toMatchObject({ state: 'ok' });
  expect(JSON.stringify(all)).not.toContain('not looked at');
  expect(JSON.stringify(await look(MAX_ROUTES + 3))).toContain('64 addresses');
  expect(JSON.stringify(await look(MAX_ROUTES + 3))).toContain('3 more were not looked at');
});
