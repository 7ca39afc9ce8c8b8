/** A key server that one host does not hear, while everybody else does. */
import type { Lab } from '../../../scripts/laboratory/lab.js';
import { SUBNET } from './topologies.js';

/**
 * What the key server says to a host by TCP is lost until `pass`. Its bare acknowledgements are not: else the
 * host's TCP, once a keep-alive was lost that way, would hold its questions back as well.
 */
export async function keepFrom(lab: Lab, host: string): Promise<{ pass: () => Promise<void> }> {
  const port = lab.keyServer(SUBNET).listen.split(':').at(-1) ?? '';
  const rules = `table inet keep { chain in { type filter hook input priority 0;
    tcp sport ${port} tcp flags & psh == psh drop; }; }`;
  await lab.exec(host, ['nft', '-f', '-'], { input: rules });
  return {
    pass: async () => {
      await lab.exec(host, ['nft', 'delete', 'table', 'inet', 'keep']);
    },
  };
}
