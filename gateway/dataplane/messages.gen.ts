/**
 * What the control plane and the data plane say to each other.
 *
 * Made by scripts/generate.ts from gateway/dataplane/schema.json: change that file.
 * The C++ side is gateway/native/control/messages.gen.hpp. Frame: 4-byte big-endian length,
 * then one MessagePack map {t, id?, ...fields}; commands and answers carry id, events none.
 */
import { z } from 'zod';

/** A longer message closes the connection. */
export const MAX_MESSAGE = 1048576;

const u8 = z.int().min(0).max(0xff);
const u16 = z.int().min(0).max(0xffff);
const u32 = z.int().min(0).max(0xffff_ffff);
/** At most 2^53 - 1, so that both languages hold it exactly. */
const u64 = z.int().min(0).max(Number.MAX_SAFE_INTEGER);
const i64 = z.int().min(-Number.MAX_SAFE_INTEGER).max(Number.MAX_SAFE_INTEGER);

/** A text of at most so many bytes in UTF-8. */
const text = (limit: number) =>
  z.string().refine((value) => Buffer.byteLength(value, 'utf8') <= limit, `at most ${limit} bytes`);
const bytes = (size: number) =>
  z.custom<Uint8Array>(
    (value) => value instanceof Uint8Array && value.length === size,
    `${size} bytes`,
  );
const bytesUpTo = (limit: number) =>
  z.custom<Uint8Array>(
    (value) => value instanceof Uint8Array && value.length <= limit,
    `at most ${limit} bytes`,
  );

export const endpointSchema = z.strictObject({
  ip: bytesUpTo(16),
  port: u16,
});
export type Endpoint = z.infer<typeof endpointSchema>;

export const bootSchema = z.strictObject({
  boot: u32,
  public: bytes(32),
  index: u32,
  send: z.boolean(),
});
export type Boot = z.infer<typeof bootSchema>;

export const pairKeySchema = z.strictObject({
  peer: text(127),
  boot: u32,
  peerIndex: u32,
  pwId: u64,
  kidSend: u16,
  kidReceive: u16,
  send: z.boolean(),
});
export type PairKey = z.infer<typeof pairKeySchema>;

export const groupKeySchema = z.strictObject({
  pwId: u64,
  send: z.boolean(),
});
export type GroupKey = z.infer<typeof groupKeySchema>;

export const portStateSchema = z.strictObject({
  port: u16,
  subnet: text(63),
  member: text(63),
  boots: z.array(bootSchema).max(8),
  pairKeys: z.array(pairKeySchema).max(16384),
  groupKeys: z.array(groupKeySchema).max(8),
  nets: z.array(text(63)).max(65),
});
export type PortState = z.infer<typeof portStateSchema>;

export const behindEntrySchema = z.strictObject({
  vlan: u16,
  mac: bytes(6),
  ms: u32,
  pinned: z.boolean(),
});
export type BehindEntry = z.infer<typeof behindEntrySchema>;

export const prefixSchema = z.strictObject({
  ip: bytesUpTo(16),
  bits: u8,
});
export type Prefix = z.infer<typeof prefixSchema>;

export const bindingSchema = z.strictObject({
  ip: bytesUpTo(16),
  mac: bytes(6),
});
export type Binding = z.infer<typeof bindingSchema>;

export const behindKeySchema = z.strictObject({
  vlan: u16,
  mac: bytes(6),
});
export type BehindKey = z.infer<typeof behindKeySchema>;

export const learnedEntrySchema = z.strictObject({
  vlan: u16,
  mac: bytes(6),
  ageMs: u32,
});
export type LearnedEntry = z.infer<typeof learnedEntrySchema>;

export const counterSchema = z.strictObject({
  name: text(40),
  value: u64,
});
export type Counter = z.infer<typeof counterSchema>;

export const peerStatsSchema = z.strictObject({
  peer: text(127),
  index: u32,
  endpoint: endpointSchema,
  relayed: z.boolean(),
  confirmed: z.boolean(),
  alive: z.boolean(),
  rttUs: u32,
  pathMtu: u32,
  pathMtuProved: z.boolean(),
  heardMsAgo: u64,
  txFrames: u64,
  txBytes: u64,
  rxFrames: u64,
  rxBytes: u64,
  pwId: u64,
  hasKey: z.boolean(),
});
export type PeerStats = z.infer<typeof peerStatsSchema>;

export const portStatsSchema = z.strictObject({
  port: u16,
  drops: z.array(counterSchema).max(64),
  counters: z.array(counterSchema).max(64),
  backend: text(20),
  suite: text(20),
  tap: text(15),
  mtu: u16,
  offload: z.boolean(),
  relay: endpointSchema,
  relayRegistered: z.boolean(),
  relayRttUs: u32,
  seen: endpointSchema,
  kind: text(8),
  loop: text(10),
  loopOther: text(63),
  learned: u32,
  behind: u32,
  peers: z.array(peerStatsSchema).max(16384),
});
export type PortStats = z.infer<typeof portStatsSchema>;

/** Downwards, by type. */
export const commandSchemas = {
  /** Claims control. An older or equal epoch is refused; the connection of the former controller is cut off. */
  attach: z.strictObject({ t: z.literal('attach'), id: u32, epoch: u64 }),
  /** Opens the connection for `stats` only. */
  observe: z.strictObject({ t: z.literal('observe'), id: u32 }),
  /** Makes a port or changes it. Devices are named as the broker delivered them: transport `udp` uses udpPort, `ethernet` device (an interface) and tag, `ip` (of `link` only) device, a wire. spinUs: how long its threads look for more before they sleep; underlayMtu: what the interface below `udp` gives, where the search for each path's MTU begins; 0 for no search. helpers: threads that help with sealing and opening, 255 for as many as suit the machine. kind: `host`, `plain` or `link`, which fixes what the port is until it is removed. net: of `link`, the net id of our subnet. pass: of `ip`, the IP protocols that cross in clear besides ARP and neighbour discovery, TCP and UDP never; elsewhere: what the operator says may be behind other nets, whether key servers agree or not: nothing goes there or comes from there in clear. The three after it are about `plain`: broadcast, which group frames of members leave it, `all`, `essential` or `none`; stp, whether frames for 01:80:c2:00:00:00 `pass` or are dropped (`drop`); learnSeconds, after how long an address that was not seen again is forgotten. rights: what the own member's grant allows, bit 0 `router` (router advertisements, redirects), bit 1 `dhcp` (what a DHCP server says). bit 2, which is no right: the policy keeps the member out of group traffic. answer: ARP requests and neighbour solicitations for bound addresses are answered here. pairwise: each copy of a group frame is sealed under its receiver's pair key, and no group key is needed. */
  'port.set': z.strictObject({
    t: z.literal('port.set'),
    id: u32,
    port: u16,
    subnet: text(63),
    member: text(63),
    tap: text(15),
    transport: text(10),
    udpPort: u16,
    underlayMtu: u16,
    device: text(15),
    macs: z.array(bytes(6)).max(64),
    suite: text(20),
    backend: text(20),
    spinUs: u16,
    helpers: u8,
    tag: u8,
    freshnessMs: u32,
    holdFrames: u16,
    holdMs: u16,
    holdBytes: u32,
    stormFrames: u32,
    kind: text(8),
    net: text(63),
    pass: bytesUpTo(16),
    elsewhere: z.array(prefixSchema).max(1024),
    broadcast: text(10),
    stp: text(4),
    learnSeconds: u16,
    rights: u8,
    answer: z.boolean(),
    pairwise: z.boolean(),
    broadcasts: z.array(bytesUpTo(16)).max(16),
  }),
  /** Takes a port away and wipes its keys. */
  'port.remove': z.strictObject({ t: z.literal('port.remove'), id: u32, port: u16 }),
  /** Makes a boot key pair. The private half stays inside. */
  'boot.make': z.strictObject({ t: z.literal('boot.make'), id: u32, port: u16 }),
  /** The sender index that the key server drew for a boot record. The first boot key with an index is sent with at once, a later one after afterMs, because peers need time to hear of it; to a peer that uses it already, or that has no key with us yet, at once. Saying it again puts nothing off. */
  'boot.index': z.strictObject({
    t: z.literal('boot.index'),
    id: u32,
    port: u16,
    boot: u32,
    index: u32,
    afterMs: u32,
  }),
  /** Forgets a boot key and every key made with it, after graceMs. Saying it again puts nothing off. */
  'boot.drop': z.strictObject({
    t: z.literal('boot.drop'),
    id: u32,
    port: u16,
    boot: u32,
    graceMs: u32,
  }),
  /** Key-server time minus CLOCK_BOOTTIME, ms, and the boot time of the sample. */
  clock: z.strictObject({ t: z.literal('clock'), id: u32, offsetMs: i64, sampledBootMs: u64 }),
  /** All keys of the port are good until this key-server time, ms. */
  lease: z.strictObject({ t: z.literal('lease'), id: u32, port: u16, notAfterMs: u64 }),
  /** A member that may be heard. A new index adds to the old one, which the data plane retires 10 s later. Endpoints in order of preference. relayFirst: none of them is on a network of ours. plain: its token has the role `plain`, so that it may send what machines behind it say: from any source that is neither a member's own nor pinned behind another. rights: of its grant, as in port.set. */
  'peer.set': z.strictObject({
    t: z.literal('peer.set'),
    id: u32,
    port: u16,
    peer: text(127),
    index: u32,
    boot: bytes(32),
    macs: z.array(bytes(6)).max(64),
    endpoints: z.array(endpointSchema).max(8),
    online: z.boolean(),
    relayFirst: z.boolean(),
    plain: z.boolean(),
    rights: u8,
  }),
  /** A link port of another subnet that may be heard, for a port of kind `link`. peer: NET/ID, which is what it is called in all other messages; key.pair gives it the net key. */
  'link.set': z.strictObject({
    t: z.literal('link.set'),
    id: u32,
    port: u16,
    net: text(63),
    peer: text(127),
    index: u32,
    boot: bytes(32),
    endpoints: z.array(endpointSchema).max(8),
    online: z.boolean(),
  }),
  /** Which IP prefixes are behind a net, for a port of kind `link`; net empty: ours. Replaces what was told of that net before. A packet from or to another address neither leaves nor comes in. */
  'routes.set': z.strictObject({
    t: z.literal('routes.set'),
    id: u32,
    port: u16,
    net: text(63),
    prefixes: z.array(prefixSchema).max(64),
  }),
  /** Forgets a member, its keys and addresses at once. */
  'peer.remove': z.strictObject({
    t: z.literal('peer.remove'),
    id: u32,
    port: u16,
    peer: text(127),
  }),
  /** Derives and installs both traffic keys of a pair, under this boot key and the older ones that are still held, and for every start of the peer. A key already held is left as it is. `send`: also send with it from now on. The answer is about this boot key and the peer's current start. */
  'key.pair': z.strictObject({
    t: z.literal('key.pair'),
    id: u32,
    port: u16,
    peer: text(127),
    boot: u32,
    key: bytes(32),
    pwId: u64,
    send: z.boolean(),
  }),
  /** Installs the group key: for sending with own boot (if `send`), for receiving from every known peer. */
  'key.group': z.strictObject({
    t: z.literal('key.group'),
    id: u32,
    port: u16,
    key: bytes(32),
    pwId: u64,
    send: z.boolean(),
  }),
  /** Sends with this generation from now on; peer empty: the group key. */
  'key.use': z.strictObject({
    t: z.literal('key.use'),
    id: u32,
    port: u16,
    peer: text(127),
    pwId: u64,
  }),
  /** Forgets a generation and older ones after graceMs; peer empty: the group key. */
  'key.drop': z.strictObject({
    t: z.literal('key.drop'),
    id: u32,
    port: u16,
    peer: text(127),
    pwId: u64,
    graceMs: u32,
  }),
  /** No key for this address for so long; frames held for it are dropped (`no_such_member`). */
  'mac.refuse': z.strictObject({
    t: z.literal('mac.refuse'),
    id: u32,
    port: u16,
    mac: bytes(6),
    ms: u32,
  }),
  /** Addresses that are members' own, those with a tombstone included: they are never behind a plain port. reset: a new list begins. more: it goes on in the next command; with the first that says false it is complete, and what it did not name is forgotten. A plain port does nothing before its first complete list. */
  'own.set': z.strictObject({
    t: z.literal('own.set'),
    id: u32,
    port: u16,
    reset: z.boolean(),
    more: z.boolean(),
    macs: z.array(bytes(6)).max(8192),
  }),
  /** These are nobody's own any more. */
  'own.remove': z.strictObject({
    t: z.literal('own.remove'),
    id: u32,
    port: u16,
    macs: z.array(bytes(6)).max(8192),
  }),
  /** Addresses behind the plain port of this peer: learned there, or unknown ones that are given to it. ms: how long that counts, 0 until it is forgotten. pinned: frames with this source are accepted from this peer alone. An own address of a member always goes before. Of more than a data plane holds the oldest goes. */
  'behind.set': z.strictObject({
    t: z.literal('behind.set'),
    id: u32,
    port: u16,
    peer: text(127),
    entries: z.array(behindEntrySchema).max(4096),
  }),
  /** These are behind nobody any more. */
  'behind.forget': z.strictObject({
    t: z.literal('behind.forget'),
    id: u32,
    port: u16,
    entries: z.array(behindKeySchema).max(4096),
  }),
  /** Addresses that are bound: the IP address (4 or 16 bytes) is announced by this MAC address only. Replaces what was bound to the same IP address. reset, more: as in own.set; what a complete list did not name is bound no longer. */
  'bind.set': z.strictObject({
    t: z.literal('bind.set'),
    id: u32,
    port: u16,
    reset: z.boolean(),
    more: z.boolean(),
    entries: z.array(bindingSchema).max(4096),
  }),
  /** These IP addresses are bound no longer. */
  'bind.remove': z.strictObject({
    t: z.literal('bind.remove'),
    id: u32,
    port: u16,
    ips: z.array(bytesUpTo(16)).max(4096),
  }),
  /** A key of loop probes, made from the group key of this generation; the two newest are kept. */
  'probe.key': z.strictObject({
    t: z.literal('probe.key'),
    id: u32,
    port: u16,
    key: bytes(32),
    pwId: u64,
  }),
  /** The relay of a port on `udp`, and the ticket to register with (docs/protocol.md 2.5); no addresses: none. Says hello at once, so it is repeated when own addresses have changed. */
  'relay.set': z.strictObject({
    t: z.literal('relay.set'),
    id: u32,
    port: u16,
    addresses: z.array(endpointSchema).max(4),
    index: u32,
    notAfterMs: u64,
    ticket: bytes(32),
  }),
  /** Counters and peers of all ports. */
  stats: z.strictObject({ t: z.literal('stats'), id: u32 }),
  /** Forgets all keys, peers and ports. */
  wipe: z.strictObject({ t: z.literal('wipe'), id: u32 }),
} as const;

/** Upwards, in answer to a command, by type. */
export const answerSchemas = {
  done: z.strictObject({ t: z.literal('done'), id: u32 }),
  attached: z.strictObject({
    t: z.literal('attached'),
    id: u32,
    instance: bytes(16),
    version: u16,
    backends: z.array(text(20)).max(4),
    ports: z.array(portStateSchema).max(16),
  }),
  'boot.made': z.strictObject({ t: z.literal('boot.made'), id: u32, boot: u32, public: bytes(32) }),
  'key.installed': z.strictObject({
    t: z.literal('key.installed'),
    id: u32,
    kidSend: u16,
    kidReceive: u16,
    fresh: z.boolean(),
  }),
  stats: z.strictObject({
    t: z.literal('stats'),
    id: u32,
    uptimeMs: u64,
    ports: z.array(portStatsSchema).max(16),
    eventsLost: u64,
  }),
  failed: z.strictObject({ t: z.literal('failed'), id: u32, why: text(200) }),
} as const;

/** Upwards, unasked, by type. */
export const eventSchemas = {
  /** A frame from the TAP for an address without a key (own address of the question: ours). vlan: of its outermost tag, 0 without one. */
  'miss.mac': z.strictObject({ t: z.literal('miss.mac'), port: u16, mac: bytes(6), vlan: u16 }),
  /** A group frame from the TAP and no group key to send with. */
  'miss.group': z.strictObject({ t: z.literal('miss.group'), port: u16 }),
  /** A frame with a sender index or kid that is not held. group: it was a group frame. */
  'miss.index': z.strictObject({
    t: z.literal('miss.index'),
    port: u16,
    index: u32,
    kid: u16,
    group: z.boolean(),
    from: endpointSchema,
  }),
  /** A peer answered a probe at another address, which is used from now on. */
  'endpoint.moved': z.strictObject({
    t: z.literal('endpoint.moved'),
    port: u16,
    peer: text(127),
    endpoint: endpointSchema,
  }),
  /** What the relay said of our address, for the key server, which alone can check it. */
  'relay.seen': z.strictObject({ t: z.literal('relay.seen'), port: u16, receipt: bytes(72) }),
  /** A peer with a key has not answered probes for 45 s. */
  'peer.silent': z.strictObject({ t: z.literal('peer.silent'), port: u16, peer: text(127) }),
  /** A traffic key for sending reached its rekey limit (docs/protocol.md 3.4); peer empty: the group key. */
  'key.worn': z.strictObject({ t: z.literal('key.worn'), port: u16, peer: text(127), pwId: u64 }),
  /** A frame opened under a newer generation than the one in use, so the peer was told to change: it is used from now on; peer empty: the group key. */
  'key.committed': z.strictObject({
    t: z.literal('key.committed'),
    port: u16,
    peer: text(127),
    pwId: u64,
  }),
  /** A peer has sent with this older generation for a second since we changed: it was not told. */
  'key.lagging': z.strictObject({
    t: z.literal('key.lagging'),
    port: u16,
    peer: text(127),
    pwId: u64,
  }),
  /** Sources that a plain port saw on its plain side: new ones at once, known ones again every third of learnSeconds while they are seen. */
  learned: z.strictObject({
    t: z.literal('learned'),
    port: u16,
    entries: z.array(learnedEntrySchema).max(256),
  }),
  /** Addresses that a plain port has forgotten: not seen for learnSeconds, or it went out of use. */
  unlearned: z.strictObject({
    t: z.literal('unlearned'),
    port: u16,
    entries: z.array(behindKeySchema).max(256),
  }),
  /** A plain port may `forward`, is `standby` (other: the member that forwards; empty: it listens first), or is `blocked`, because it heard itself. */
  'loop.state': z.strictObject({
    t: z.literal('loop.state'),
    port: u16,
    state: text(10),
    other: text(63),
  }),
  /** A frame from the plain side had a source that is a member's own. At most one a second for each port; all are counted. */
  spoof: z.strictObject({
    t: z.literal('spoof'),
    port: u16,
    mac: bytes(6),
    vlan: u16,
    kind: text(24),
  }),
  /** Our host has announced one of its addresses (ARP, neighbour discovery) that is not bound to the MAC address it names, so to nobody or to another one (then the frame is refused all the same, unless both are its own); or it is bound already and was not told of for 300 s. At most 20 a second for each port, and one address every 2 s. */
  claim: z.strictObject({ t: z.literal('claim'), port: u16, ip: bytesUpTo(16), mac: bytes(6) }),
  /** The address guard refused a frame. kind: `arp`, `nd`, `ra`, `redirect` or `dhcp`. peer: who sent it, empty if it came from our own host or bridge. mac: its source. ip: the address that it claimed, empty without one. At most 10 a second for each port; all are counted. */
  guarded: z.strictObject({
    t: z.literal('guarded'),
    port: u16,
    kind: text(10),
    peer: text(127),
    mac: bytes(6),
    ip: bytesUpTo(16),
  }),
  /** All keys were wiped: orphaned, or the machine was resumed from a snapshot. */
  'keys.wiped': z.strictObject({ t: z.literal('keys.wiped'), why: text(40) }),
  /** A line for the log of the control plane. */
  log: z.strictObject({ t: z.literal('log'), level: u8, text: text(500) }),
} as const;

export const commandSchema = z.discriminatedUnion('t', [
  commandSchemas.attach,
  commandSchemas.observe,
  commandSchemas['port.set'],
  commandSchemas['port.remove'],
  commandSchemas['boot.make'],
  commandSchemas['boot.index'],
  commandSchemas['boot.drop'],
  commandSchemas.clock,
  commandSchemas.lease,
  commandSchemas['peer.set'],
  commandSchemas['link.set'],
  commandSchemas['routes.set'],
  commandSchemas['peer.remove'],
  commandSchemas['key.pair'],
  commandSchemas['key.group'],
  commandSchemas['key.use'],
  commandSchemas['key.drop'],
  commandSchemas['mac.refuse'],
  commandSchemas['own.set'],
  commandSchemas['own.remove'],
  commandSchemas['behind.set'],
  commandSchemas['behind.forget'],
  commandSchemas['bind.set'],
  commandSchemas['bind.remove'],
  commandSchemas['probe.key'],
  commandSchemas['relay.set'],
  commandSchemas.stats,
  commandSchemas.wipe,
]);
export const answerSchema = z.discriminatedUnion('t', [
  answerSchemas.done,
  answerSchemas.attached,
  answerSchemas['boot.made'],
  answerSchemas['key.installed'],
  answerSchemas.stats,
  answerSchemas.failed,
]);
export const eventSchema = z.discriminatedUnion('t', [
  eventSchemas['miss.mac'],
  eventSchemas['miss.group'],
  eventSchemas['miss.index'],
  eventSchemas['endpoint.moved'],
  eventSchemas['relay.seen'],
  eventSchemas['peer.silent'],
  eventSchemas['key.worn'],
  eventSchemas['key.committed'],
  eventSchemas['key.lagging'],
  eventSchemas.learned,
  eventSchemas.unlearned,
  eventSchemas['loop.state'],
  eventSchemas.spoof,
  eventSchemas.claim,
  eventSchemas.guarded,
  eventSchemas['keys.wiped'],
  eventSchemas.log,
]);
/** Whatever the data plane sends: to be treated as hostile until it went through here. */
export const upwardSchema = z.discriminatedUnion('t', [answerSchema, eventSchema]);

export type CommandType = keyof typeof commandSchemas;
export type AnswerType = keyof typeof answerSchemas;
export type EventType = keyof typeof eventSchemas;
export type CommandOf<T extends CommandType> = z.infer<(typeof commandSchemas)[T]>;
export type AnswerOf<T extends AnswerType> = z.infer<(typeof answerSchemas)[T]>;
export type EventOf<T extends EventType> = z.infer<(typeof eventSchemas)[T]>;
export type Command = z.infer<typeof commandSchema>;
export type Answer = z.infer<typeof answerSchema>;
export type Event = z.infer<typeof eventSchema>;
export type Upward = z.infer<typeof upwardSchema>;
/** A command's own fields, without the envelope. */
export type CommandFields<T extends CommandType> = Omit<CommandOf<T>, 't' | 'id'>;

/** What a command is answered by when it succeeds; `failed` otherwise. */
export const ANSWER_TO = {
  attach: 'attached',
  observe: 'done',
  'port.set': 'done',
  'port.remove': 'done',
  'boot.make': 'boot.made',
  'boot.index': 'done',
  'boot.drop': 'done',
  clock: 'done',
  lease: 'done',
  'peer.set': 'done',
  'link.set': 'done',
  'routes.set': 'done',
  'peer.remove': 'done',
  'key.pair': 'key.installed',
  'key.group': 'done',
  'key.use': 'done',
  'key.drop': 'done',
  'mac.refuse': 'done',
  'own.set': 'done',
  'own.remove': 'done',
  'behind.set': 'done',
  'behind.forget': 'done',
  'bind.set': 'done',
  'bind.remove': 'done',
  'probe.key': 'done',
  'relay.set': 'done',
  stats: 'stats',
  wipe: 'done',
} as const satisfies Record<CommandType, AnswerType>;
export type AnswerTo<T extends CommandType> = AnswerOf<(typeof ANSWER_TO)[T]>;
