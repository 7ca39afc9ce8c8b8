/** The trace of key requests in the log of the key server (level debug). */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import type { Lab } from '../../../scripts/laboratory/lab.js';
import { stateDir } from '../../../scripts/laboratory/state.js';

const requestSchema = z.object({
  requester: z.string(),
  mac: z.string().optional(),
  index: z.number().optional(),
  kid: z.number().optional(),
});
/** (ID_n, MAC) of a sender, or (ID_n, sender index, kid) of a receiver. */
export type KeyRequest = z.infer<typeof requestSchema>;

/** All requests so far, in their order. */
export async function keyRequests(lab: Lab): Promise<KeyRequest[]> {
  const dir = join(stateDir(lab.name), 'logs');
  const logs = readdirSync(dir).filter((file) => file.includes('-keyserver-'));
  return logs.flatMap((file) =>
    readFileSync(join(dir, file), 'utf8')
      .split('\n')
      .flatMap((line) => {
        if (!line.startsWith('{') || !line.includes('"key request ')) return [];
        const parsed = requestSchema.safeParse(JSON.parse(line));
        return parsed.success ? [parsed.data] : [];
      }),
  );
}
