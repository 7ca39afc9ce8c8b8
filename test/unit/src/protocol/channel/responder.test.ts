/** Tests of responder.ts: handshakes that were greeted and never answered. */
import { expect, it } from 'vitest';
import { generateKeyPair } from '../../../../../src/protocol/channel/keys.js';
import { HandshakeState } from '../../../../../src/protocol/channel/noise.js';
import {
  type Answered,
  type Greeted,
  InlineResponder,
} from '../../../../../src/protocol/channel/responder.js';

it('4,096 handshakes wait for their answer; with one more the oldest fails, and no other', () => {
  const server = generateKeyPair();
  const prologue = Buffer.from('limits');
  const initiator = new HandshakeState({
    pattern: 'IK',
    initiator: true,
    prologue,
    staticKeys: generateKeyPair(),
    remoteStatic: server.publicKey,
  });
  const noise = initiator.writeMessage(Buffer.from('hello'));
  const responder = new InlineResponder(server);
  const greet = (): number => {
    let greeted: Greeted | undefined;
    responder.greet({ pattern: 'IK', prologue, noise }, (it) => {
      greeted = it;
    });
    if (greeted === undefined) throw new Error('not authentic');
    return greeted.handle;
  };
  const finish = (handle: number): Answered | undefined => {
    let answered: Answered | undefined;
    responder.finish(handle, Buffer.from('welcome'), undefined, (it) => {
      answered = it;
    });
    return answered;
  };
  const handles = Array.from({ length: 4_096 }, greet);
  const [first = 0, second = 0, third = 0] = handles;
  expect(finish(first)).toBeDefined();
  greet(); // has the place of the first
  greet(); // takes that of the second
  expect(finish(second)).toBeUndefined();
  expect(finish(third)).toBeDefined();
  expect(finish(handles.at(-1) ?? 0)).toBeDefined();
}, 60_000);
