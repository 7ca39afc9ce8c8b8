/**
 * A member with a modified client: enrolled for real, with real keys from the real key server, but
 * the program is this one. It tells the test every key that it has and seals whatever the test
 * wants.
 *
 *   test ── 127.0.0.1 ── Unix socket ── socat in the host ── key server   secure channel
 *   test ── stdin/stdout of a program in the host ── underlay             sealed frames
 */
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { connect, createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { makeKeys, signMembership } from '../../../gateway/identity.js';
import { gatewayPaths } from '../../../gateway/paths.js';
import type { Lab } from '../../../scripts/laboratory/lab.js';
import { waitFor } from '../../../scripts/laboratory/processes.js';
import { ChannelClient } from '../../../src/net/channel-client.js';
import { FLAG_GROUP, FrameKind, LABEL } from '../../../src/protocol/constants.js';
import {
  type Description,
  frameTime,
  PLAIN_DESCRIPTION,
  sealFrame,
} from '../../../src/protocol/frame.js';
import { type Id, parseId } from '../../../src/protocol/ids.js';
import { ipToBytes } from '../../../src/protocol/ip.js';
import { groupTrafficKey, pairTrafficKey, type TrafficKey } from '../../../src/protocol/kdf.js';
import {
  BROADCAST_MAC,
  defaultMac,
  type MacAddress,
  macFromBytes,
  macToBytes,
} from '../../../src/protocol/mac.js';
import { answerSchemas, type KeyAnswer, type PeerRecord } from '../../../src/protocol/messages.js';
import { generateRawKeyPair } from '../../../src/protocol/public-keys.js';
import { bootRecordSchema, type Grant, grantSchema } from '../../../src/protocol/records.js';
import { readUnverified, signRecord } from '../../../src/protocol/signed.js';
import { parseToken } from '../../../src/protocol/token.js';
import { publishIdentity } from './publish-identity.js';
import { SealedPort } from './sealed-port.js';
import { ETHERNET } from './topologies.js';

/** How long a request of this client may take, ms. */
const PATIENCE_MS = 10_000;
const BOOT_LIFETIME_MS = 86_400_000;

/** A sealed frame and, for an Ethernet, the outer addresses that it was sealed with. */
export interface SealedFrame {
  readonly bytes: Buffer;
  readonly destination: MacAddress;
  readonly source: MacAddress;
}

/** The other end of a pair as the key server described it, with the pair key. */
export interface KnownPeer {
  readonly id: Id;
  readonly boot: Uint8Array;
  readonly index: number;
  readonly macs: readonly MacAddress[];
  readonly key: Uint8Array;
  readonly pwId: bigint;
}

export class ModifiedMember {
  readonly mac: MacAddress;
  private counters = new Map<number, bigint>();

  private constructor(
    readonly subnet: Id,
    readonly id: Id,
    readonly client: ChannelClient,
    readonly boot: { readonly privateKey: Uint8Array; readonly publicKey: Uint8Array },
    readonly index: number,
    /** Subnet tag, on an Ethernet. */
    readonly tag: number,
    readonly port: SealedPort,
    private readonly close: () => void,
  ) {
    this.mac = defaultMac(subnet, id);
  }

  /** Enrols with a token, registers a boot key and tells its endpoint. */
  static async join(
    lab: Lab,
    place: { readonly host: string; readonly address: string; readonly port: number },
    subnetName: string,
    idText: string,
    options: readonly string[] = [],
  ): Promise<ModifiedMember> {
    const subnet = parseId(subnetName);
    const id = parseId(idText);
    const dir = mkdtempSync(join(tmpdir(), 'pairwire-modified-'));
    const token = parseToken(await lab.token(subnet, id, options));
    const grant: Grant = readUnverified(LABEL.grant, token.grant, grantSchema);
    const server = token.servers[0];
    if (server === undefined) throw new Error('the token names no server');
    const relay = await openRelay(lab, place.host, `${server.host}:${server.port}`, dir);
    const keys = makeKeys(gatewayPaths(dir));
    const client = new ChannelClient({
      servers: [{ host: '127.0.0.1', port: relay.port, publicKey: Buffer.from(server.key) }],
      staticKeys: keys.channel,
      token: { id: grant.tokenId, psk: token.psk },
    });
    client.start();
    const membership = signMembership(subnet, id, token.grant, keys);
    await client.request(
      { t: 'enrol', membership },
      { timeoutMs: PATIENCE_MS, parse: (answer) => answerSchemas.enrol.parse(answer) },
    );
    client.forgetToken();
    await waitFor(() => client.time.known, { what: 'a time sample of the key server' });
    const boot = generateRawKeyPair('x25519');
    const record = signRecord(
      LABEL.boot,
      {
        subnet,
        id,
        boot: boot.publicKey,
        sequence: client.time.now(),
        macs: grant.macs.length > 0 ? grant.macs : [defaultMac(subnet, id)],
        notAfter: client.time.now() + BOOT_LIFETIME_MS,
      },
      keys.sign,
    );
    const registered = await client.request(
      { t: 'register', boot: record, machine: randomBytes(16), nonce: randomBytes(16) },
      { timeoutMs: PATIENCE_MS, parse: (answer) => answerSchemas.register.parse(answer) },
    );
    await publishIdentity(client, keys.channel, membership, registered.settings);
    const endpoints = [{ ip: ipToBytes(place.address), port: place.port }];
    if (!ETHERNET) await client.request({ t: 'endpoints', endpoints });
    const port = await SealedPort.open(lab, place.host, place.port);
    const tag = ETHERNET ? registered.tag : 0;
    return new ModifiedMember(subnet, id, client, boot, registered.index, tag, port, () => {
      client.stop();
      port.close();
      relay.close();
      rmSync(dir, { recursive: true, force: true });
    });
  }

  /** Asks for the key to the owner of an address, in the name of `requester`. @throws RequestError the server's refusal */
  askKey(mac: MacAddress, requester: string = this.id): Promise<KeyAnswer> {
    return this.client.request(
      { t: 'key.mac', requester, mac },
      { timeoutMs: PATIENCE_MS, parse: (answer) => answerSchemas['key.mac'].parse(answer) },
    );
  }

  /** Gets the pair key to a member. */
  async pairWith(id: string): Promise<KnownPeer> {
    const answer = await this.askKey(defaultMac(this.subnet, parseId(id)));
    if (answer.kind !== 'pair') throw new Error('the key server answered with a group key');
    return knownPeer(answer.peer, answer.key, BigInt(answer.pwId));
  }

  /** Gets the group key. */
  async group(): Promise<{ readonly key: Uint8Array; readonly pwId: bigint }> {
    const answer = await this.askKey(BROADCAST_MAC);
    if (answer.kind !== 'group') throw new Error('the key server answered with a pair key');
    return { key: answer.key, pwId: BigInt(answer.pwId) };
  }

  /** Our traffic keys with a peer: towards it, and from it. */
  trafficKeys(peer: KnownPeer): { readonly to: TrafficKey; readonly from: TrafficKey } {
    const own = { id: this.id, boot: this.boot.publicKey };
    const other = { id: peer.id, boot: peer.boot };
    const common = {
      pairKey: peer.key,
      ownBootPrivate: this.boot.privateKey,
      peerBoot: peer.boot,
      subnet: this.subnet,
      pwId: peer.pwId,
    };
    return {
      to: pairTrafficKey({ ...common, from: own, to: other }),
      from: pairTrafficKey({ ...common, from: other, to: own }),
    };
  }

  /** Key of group frames that we send, or that another member with this boot key sends. */
  groupTraffic(
    group: { readonly key: Uint8Array; readonly pwId: bigint },
    from: { readonly id: string; readonly boot: Uint8Array } = {
      id: this.id,
      boot: this.boot.publicKey,
    },
  ): TrafficKey {
    return groupTrafficKey({ groupKey: group.key, subnet: this.subnet, from, pwId: group.pwId });
  }

  /** Seals a whole inner frame, by default as an honest client would. */
  seal(
    key: TrafficKey,
    frame: Uint8Array,
    changes: {
      readonly kind?: FrameKind;
      readonly flags?: number;
      readonly index?: number;
      readonly counter?: bigint;
      readonly timeMs?: number;
      readonly tag?: number;
      readonly description?: Partial<Description>;
    } = {},
  ): SealedFrame {
    const next = this.counters.get(key.kid) ?? 0n;
    if (changes.counter === undefined) this.counters.set(key.kid, next + 1n);
    const isGroup = (frame[0] ?? 0) & 1;
    const kind = changes.kind ?? FrameKind.pair;
    const flags = changes.flags ?? (isGroup ? FLAG_GROUP : 0);
    // On an Ethernet the addresses of unicast are the outer ones, and all else is broadcast.
    const outside = ETHERNET && kind === FrameKind.pair && (flags & FLAG_GROUP) === 0;
    const source = macFromBytes(frame.subarray(6, 12));
    const destination = outside ? macFromBytes(frame.subarray(0, 6)) : BROADCAST_MAC;
    const aadTail = ETHERNET
      ? Buffer.concat([macToBytes(destination), macToBytes(source)])
      : Buffer.alloc(0);
    const bytes = sealFrame({
      suite: 'aes-256-gcm',
      key: key.key,
      shim: {
        kind,
        flags: flags | (changes.tag ?? this.tag),
        kid: key.kid,
        index: changes.index ?? this.index,
        counter: changes.counter ?? next,
      },
      time: frameTime(changes.timeMs ?? this.client.time.now()),
      description: { ...PLAIN_DESCRIPTION, ...changes.description },
      payload: outside ? frame.subarray(12) : frame,
      aadTail,
    });
    return { bytes, destination, source };
  }

  /** Leaves: closes the channel and the port. */
  leave(): void {
    this.close();
  }
}

function knownPeer(peer: PeerRecord, key: Uint8Array, pwId: bigint): KnownPeer {
  if (peer.boot === undefined || peer.index === undefined) {
    throw new Error(`${peer.id} has not registered a boot key yet`);
  }
  const boot = readUnverified(LABEL.boot, peer.boot, bootRecordSchema);
  return { id: peer.id, boot: boot.boot, index: peer.index, macs: boot.macs, key, pwId };
}

/** A TCP port of this process that leads to an address as seen from a host of the laboratory. */
export async function openRelay(
  lab: Lab,
  host: string,
  target: string,
  dir: string,
): Promise<{ readonly port: number; close(): void }> {
  const path = join(dir, 'relay');
  const socat = lab.spawn(host, [
    'socat',
    `UNIX-LISTEN:${path},fork,mode=600`,
    `TCP:${target},nodelay`,
  ]);
  await waitFor(() => canConnect(path), { what: 'the relay to the key server' });
  const server: Server = createServer((local) => {
    const remote = connect(path);
    local.setNoDelay(true);
    local.pipe(remote).pipe(local);
    local.on('error', () => remote.destroy());
    remote.on('error', () => local.destroy());
    local.on('close', () => remote.destroy());
    remote.on('close', () => local.destroy());
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const address = server.address();
  if (typeof address !== 'object' || address === null) throw new Error('the relay has no port');
  return {
    port: address.port,
    close: () => {
      server.close();
      void lab.stop(socat);
    },
  };
}

function canConnect(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path);
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });
}
