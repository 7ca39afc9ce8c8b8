/**
 * What `pairwire status --json` prints: field names are stable, fields are only ever added.
 * Times are milliseconds since 1970 unless the name says otherwise; nothing secret is in it.
 */
import { z } from 'zod';

const count = z.number();
const maybe = <T extends z.ZodType>(schema: T) => schema.nullable();

const trafficSchema = z.object({
  frames: count,
  bytes: count,
  framesPerSecond: count,
  bitsPerSecond: count,
});
export type Traffic = z.infer<typeof trafficSchema>;

const peerStatusSchema = z.object({
  id: z.string(),
  role: maybe(z.string()),
  /** ready: may be heard; absent: no boot record yet; refused: a record or the KMS contradicted, see refusal; unconfirmed: the KMS was not heard yet. */
  state: z.enum(['ready', 'absent', 'refused', 'unconfirmed']),
  refusal: maybe(z.object({ code: z.string(), message: z.string() })),
  online: z.boolean(),
  index: maybe(count),
  bootSequence: count,
  macs: z.array(z.string()),
  ips: z.array(z.string()),
  /** Generation of the pair key that the control plane holds. */
  pwId: maybe(count),
  /** The data plane can seal to this peer. */
  hasKey: z.boolean(),
  /** Generation that the data plane sends with. */
  sendPwId: maybe(count),
  alive: z.boolean(),
  /** How frames go there: an endpoint that answered, the relay, or nothing has answered yet. */
  /** `routed`: wherever routers lead, at level `ip`. */
  path: z.enum(['direct', 'relay', 'probing', 'routed']),
  endpoint: maybe(z.string()),
  endpoints: z.array(z.string()),
  rttMs: maybe(count),
  /** Longest outer packet on the way to this peer; not proved: assumed until a probe has answered. */
  pathMtu: maybe(count),
  pathMtuProved: z.boolean(),
  heardMsAgo: maybe(count),
  tx: trafficSchema,
  rx: trafficSchema,
});
export type PeerStatus = z.infer<typeof peerStatusSchema>;

const portStatusSchema = z.object({
  name: z.string(),
  kind: z.string(),
  interface: z.string(),
  transport: z.string(),
  /** Null on the transport `ethernet`, which has a subnet tag instead. */
  udpPort: maybe(count),
  subnetTag: maybe(count),
  mtu: count,
  underlayMtu: count,
  underlayInterface: maybe(z.string()),
  macs: z.array(z.string()),
  endpoints: z.array(z.string()),
  /** Null without one. `seen`: our address as it said, before the key server checked it. */
  relay: maybe(
    z.object({
      address: z.string(),
      registered: z.boolean(),
      rttMs: maybe(count),
      seen: maybe(z.string()),
    }),
  ),
  suite: z.string(),
  backend: maybe(z.string()),
  offload: maybe(z.boolean()),
  /** Our own sender index and boot key number; null until registered. */
  index: maybe(count),
  boot: maybe(count),
  /** Age of the boot key; one that was there before the control plane counts from when that came. */
  bootAgeMs: maybe(count),
  /** How often a fresh boot key replaced another without loss. */
  bootRenewals: count,
  group: z.object({ mode: z.string(), pwId: maybe(count) }),
  tx: trafficSchema,
  rx: trafficSchema,
  /** What a plain port does; null for a host port. */
  plain: maybe(
    z.object({
      bridge: z.string(),
      broadcast: z.string(),
      stp: z.string(),
      /** forward; standby: another plain port of this bridge forwards (loopOther; null: it listens first); blocked: it hears itself. */
      loop: maybe(z.string()),
      loopOther: maybe(z.string()),
      /** Addresses that the port knows on its plain side. */
      learned: count,
      reports: count,
      /** Reported addresses that the key server did not take. */
      reportsRefused: count,
      /** Frames from outside with a member's own source, as far as they were told of. */
      spoofed: count,
      overflow: count,
    }),
  ),
  /** What a link port knows of other subnets; null for ports of other kinds. Their link ports stand among the peers, as NET/ID. */
  link: maybe(
    z.object({
      level: z.string(),
      /** Net id of our subnet, and what is in it. */
      net: z.string(),
      prefixes: z.array(z.string()),
      nets: z.array(
        z.object({
          net: z.string(),
          subnet: maybe(z.string()),
          /** What may cross: configuration and both key servers agree. */
          prefixes: z.array(z.string()),
          /** Generation of the net key, and of the one that is being prepared. */
          pwId: maybe(count),
          nextPwId: maybe(count),
          /** Why nothing crosses. */
          refusal: maybe(z.object({ code: z.string(), message: z.string() })),
        }),
      ),
    }),
  ),
  /** What the key server told of the plain side: members' own addresses, addresses behind plain ports. */
  outside: z.object({ own: count, behind: count }),
  /** The address guard: which MAC address announces which IP address, and what it refused or answered. */
  guard: z.object({
    /** IP addresses that are bound, as the key server told. */
    bindings: count,
    /** Whether questions for them are answered here. */
    answers: z.boolean(),
    answered: z.object({ arp: count, nd: count }),
    /** Frames by kind, from members and from this side. */
    refused: z.object({ arp: count, nd: count, ra: count, redirect: count, dhcp: count }),
    /** Addresses of our own that the key server was told of, and those that it did not take. */
    claims: count,
    claimsRefused: count,
    claimsOver: count,
    /** Refused frames that the key server was told of. */
    reported: count,
  }),
  drops: z.record(z.string(), count),
  counters: z.record(z.string(), count),
  peers: z.array(peerStatusSchema),
});
export type PortStatus = z.infer<typeof portStatusSchema>;

export const statusSchema = z.object({
  schema: z.literal(1),
  version: z.string(),
  time: count,
  /** starting; up; degraded: traffic of known pairs goes on, see problems; stopping. */
  state: z.enum(['starting', 'up', 'degraded', 'stopping']),
  problems: z.array(z.object({ code: z.string(), message: z.string() })),
  subnet: z.string(),
  member: z.string(),
  role: z.string(),
  dir: z.string(),
  pid: count,
  since: count,
  operator: z.object({
    fingerprint: z.string(),
    /** Whether the operator key lies on the key server can't be seen from here. */
    location: z.literal('unknown'),
  }),
  /** The key server. connected: the channel is open, our boot key is registered, keys are leased. */
  server: z.object({
    connected: z.boolean(),
    state: z.enum(['connecting', 'open', 'down', 'stopped']),
    address: maybe(z.string()),
    rttMs: maybe(count),
    connects: count,
    registrations: count,
    epoch: maybe(z.string()),
    cursor: count,
    syncs: count,
    lastSync: maybe(count),
    pushes: count,
    lastError: maybe(z.string()),
    retryInMs: maybe(count),
    /** The head of its audit log that is known here, signed by `key`; both base64url. Null before the first. */
    audit: maybe(
      z.object({
        server: z.string(),
        seq: count,
        time: count,
        mac: z.string(),
        key: z.string(),
        /** The log that the server tells of has not the entry `seq` that it had before; `told`: where it ended then. */
        alarm: maybe(
          z.object({ kind: z.enum(['cut', 'changed', 'key']), seq: count, told: count }),
        ),
      }),
    ),
  }),
  lease: z.object({ notAfter: maybe(count), secondsLeft: maybe(count) }),
  clock: z.object({
    known: z.boolean(),
    serverTime: count,
    wallDifferenceMs: count,
    ageMs: maybe(count),
  }),
  settings: maybe(
    z.object({
      version: count,
      suite: z.string(),
      freshnessMs: count,
      hold: count,
      leaseSeconds: count,
      bootSeconds: count,
      verify: z.string(),
      groupMode: z.string(),
      unknown: z.string(),
      defaultPlain: maybe(z.string()),
    }),
  ),
  /**
   * Whether the KMS confirms who peers are; our own document there; peers that wait for it, are pinned without it, or were contradicted;
   * other key servers of the subnet whose KMS the settings do not name.
   */
  identities: z.object({
    mode: z.enum(['verify', 'off', 'unnamed']),
    own: z.enum(['kept', 'not yet', 'taken']),
    waiting: count,
    pinned: count,
    refused: count,
    unnamed: z.array(z.string()).default([]),
    problem: maybe(z.string()),
  }),
  dataPlane: z.object({
    state: z.enum(['connecting', 'attached', 'waiting', 'stopped']),
    instance: maybe(z.string()),
    uptimeMs: maybe(count),
    backends: z.array(z.string()),
    restarts: count,
    eventsLost: count,
    eventsRefused: count,
    commandsFailed: count,
  }),
  misses: z.record(z.string(), count),
  /** Records and answers of the key server that were not believed, by reason. */
  refusals: z.record(z.string(), count),
  ports: z.array(portStatusSchema),
});
/** The whole of it. */
export type Status = z.infer<typeof statusSchema>;

export const NO_TRAFFIC: Traffic = { frames: 0, bytes: 0, framesPerSecond: 0, bitsPerSecond: 0 };
