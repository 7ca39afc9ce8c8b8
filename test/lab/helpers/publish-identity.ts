/** What a member does with its identity document so that others hear it (docs/protocol.md 11.7, 11.8), for members that are programs of ours. */
import type { ChannelClient } from '../../../src/net/channel-client.js';
import type { KeyPair } from '../../../src/protocol/channel/keys.js';
import { LABEL } from '../../../src/protocol/constants.js';
import { ask } from '../../../src/protocol/kms-exchange.js';
import { answerSchemas } from '../../../src/protocol/messages.js';
import { settingsSchema } from '../../../src/protocol/records.js';
import { readUnverified, type Signed } from '../../../src/protocol/signed.js';

/**
 * Has it sealed by the KMS that the settings name, and stored with the key server; nothing to do where they name none.
 * @throws Error with the KMS's answer
 */
export async function publishIdentity(
  client: ChannelClient,
  channel: KeyPair,
  membership: Signed,
  settings: Signed,
): Promise<void> {
  const [kms] = readUnverified(LABEL.settings, settings, settingsSchema).kms ?? [];
  if (kms === undefined) return;
  const { ticket } = await client.request(
    { t: 'identity.get', ids: [] },
    { parse: (answer) => answerSchemas['identity.get'].parse(answer) },
  );
  const question = ask(kms.key, channel, { t: 'identity.seal', ticket, membership });
  const { message } = await client.request(
    { t: 'kms.exchange', message: question.message },
    { parse: (answer) => answerSchemas['kms.exchange'].parse(answer) },
  );
  const answer = question.answer(message);
  if (answer.t !== 'sealed') throw new Error(`the KMS answers ${JSON.stringify(answer)}`);
  const { document, dek } = answer;
  await client.request({ t: 'identity.put', document, dek });
}
