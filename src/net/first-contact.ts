/**
 * What a key server and two members say to each other when one of these asks for the key with the other, for the first time, on a channel in memory: from
 * encoding over sealing, opening and decoding to the schemas, for either side of it. It is for rehearsals (runtime/rehearsal.ts): who
 * is named in it does not exist.
 */
import { encodeMessage } from '../protocol/channel/codec.js';
import { ClientConnection, ServerConnection } from '../protocol/channel/connection.js';
import { generateKeyPair } from '../protocol/channel/keys.js';
import { OutputBuffer } from '../protocol/channel/output.js';
import { KEY_SIZE } from '../protocol/constants.js';
import { parseId } from '../protocol/ids.js';
import { defaultMac } from '../protocol/mac.js';
import {
  answerSchemas,
  type KeyAnswer,
  type PeerRecord,
  pushSchema,
  requestSchema,
} from '../protocol/messages.js';
import { ServerClock, ServerTime, SystemClock } from '../runtime/clock.js';
import { PairwireError } from '../runtime/errors.js';

/** Of a signed record, bytes. */
const RECORD_BODY = 300;
const SUBNET = parseId('rehearsal');

/** Who meets. */
export interface Meeting {
  readonly asker: PeerRecord;
  readonly asked: PeerRecord;
}

/** A member's record of the size that records have, with nothing in it that holds. */
export function recordOf(name: string, index: number): PeerRecord {
  const signed = { b: new Uint8Array(RECORD_BODY), s: new Uint8Array(64) };
  return {
    id: parseId(name),
    role: 'host',
    online: true,
    membership: signed,
    boot: signed,
    index,
    ips: [],
    endpoints: [{ ip: new Uint8Array(4), port: 1 }],
  };
}

/** Two ends of a channel with nothing but memory between them. */
export class FirstContact {
  readonly #client: ClientConnection;
  readonly #server: ServerConnection;
  readonly #toServer = new OutputBuffer();
  readonly #toClient = new OutputBuffer();
  readonly #meeting: Meeting;
  /** What came, of each kind. */
  #heard = 0;
  #id = 0;

  constructor(meeting: Meeting = { asker: recordOf('asker', 1), asked: recordOf('asked', 2) }) {
    this.#meeting = meeting;
    const clock = new SystemClock();
    const [own, far] = [generateKeyPair(), generateKeyPair()];
    const events = { closed: () => {} };
    this.#client = new ClientConnection(
      { staticKeys: own, serverKey: far.publicKey, clock, time: new ServerTime(clock) },
      this.#toServer,
      {
        ...events,
        opened: () => this.#ask(),
        message: (message) => {
          if (message.t === 'ok') answerSchemas['key.mac'].parse(message);
          else pushSchema.parse(message);
          this.#heard += 1;
        },
      },
    );
    this.#server = new ServerConnection(
      { staticKeys: far, clock, time: new ServerClock(clock) },
      this.#toClient,
      {
        ...events,
        hello: () => this.#server.accept(),
        confirmed: () => {},
        message: (message) => {
          requestSchema.parse(message);
          this.#heard += 1;
        },
      },
    );
    this.#client.start();
    this.#carry();
  }

  /** A request, its answer, and what the other member is told. @throws PairwireError if one of them did not come through */
  play(): void {
    this.#heard = 0;
    this.#ask();
    this.#carry();
    const { asker, asked } = this.#meeting;
    const key = new Uint8Array(KEY_SIZE);
    const answer: KeyAnswer = { t: 'ok', id: this.#id, kind: 'pair', peer: asked, key, pwId: 1 };
    this.#server.send(encodeMessage(answer));
    this.#carry();
    const changes = [
      { kind: 'member', seq: 1, member: asker },
      { kind: 'pair', seq: 2, peer: asker.id, key, pwId: 1 },
    ];
    this.#server.send(encodeMessage({ t: 'changes', epoch: new Uint8Array(8), changes }));
    this.#carry();
    if (this.#heard === 3) return;
    throw new PairwireError('CHANNEL_MALFORMED', 'a message of the rehearsal was not taken');
  }

  #ask(): void {
    this.#id += 1;
    const { asker, asked } = this.#meeting;
    const mac = defaultMac(SUBNET, asked.id);
    this.#client.send(
      encodeMessage({ t: 'key.mac', id: this.#id, requester: asker.id, mac, vlan: 0 }),
    );
  }

  /** Carries bytes both ways until there are none. */
  #carry(): void {
    for (;;) {
      const [up, down] = [this.#toServer.take(), this.#toClient.take()];
      if (up.length + down.length === 0) return;
      for (const piece of up) this.#server.receive(piece);
      for (const piece of down) this.#client.receive(piece);
    }
  }
}
