/** The thread that computes handshakes (src/net/handshakes.ts): jobs in, results out, in order. */
import type { KeyObject } from 'node:crypto';
import { parentPort, workerData } from 'node:worker_threads';
import { InlineResponder } from '../protocol/channel/responder.js';
import type { Job, Result } from './handshakes.js';

const { privateKey, publicKey, firstHandle } = workerData as {
  privateKey: KeyObject;
  publicKey: Uint8Array;
  firstHandle: number;
};
const keys = { privateKey, publicKey: Buffer.from(publicKey) };
const responder = new InlineResponder(keys, firstHandle);
const answer = (result: Result): void => parentPort?.postMessage(result);

parentPort?.on('message', (job: Job) => {
  const { id } = job;
  switch (job.kind) {
    case 'greet':
      responder.greet(job.greeting, (greeted) => answer({ id, greeted }));
      break;
    case 'finish':
      responder.finish(job.handle, job.payload, job.psk, (answered) => {
        answer({ id, answered });
        // It was copied.
        job.psk?.fill(0);
        answered?.initiatorKey.fill(0);
        answered?.responderKey.fill(0);
        answered?.otpKey.fill(0);
      });
      break;
    case 'drop':
      responder.drop(job.handle);
      break;
  }
});
answer({ id: 0 });
