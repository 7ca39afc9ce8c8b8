/**
 * Specification constants: what two machines must agree on (docs/protocol.md).
 * Implementation constants stand beside the queues and tables that they size.
 */

export const PROTOCOL_VERSION = 1;

/** Sizes in bytes. */
export const KEY_SIZE = 32;
export const MAC_SIZE = 6;
export const SHIM_SIZE = 16;
export const INNER_HEADER_SIZE = 8;
export const TAG_SIZE = 16;
/** What a sealed frame is longer than its payload: 40. */
export const FRAME_OVERHEAD = SHIM_SIZE + INNER_HEADER_SIZE + TAG_SIZE;

/** EtherType of the `ethernet` transport (IEEE 802 local experimental 1) and protocol number of `ip` (RFC 3692). */
export const ETHERTYPE = 0x88b5;
export const IP_PROTOCOL = 253;

/** Sealed-frame kinds, docs/protocol.md 2.1. */
export const FrameKind = { pair: 1, group: 2, net: 3, path: 4, relay: 5 } as const;
export type FrameKind = (typeof FrameKind)[keyof typeof FrameKind];

export const FLAG_FRAGMENT = 0x80;
/** Parts that a frame is cut in at most. */
export const MAX_PARTS = 3;
export const FLAG_GROUP = 0x40;
/** EtherType of sealed frames on the transport `ethernet`: IEEE 802, local experiments. */
export const ETHERTYPE_SEALED = 0x88b5;
export const SUBNET_TAG_MASK = 0x3f;

/** Ticks of the time inside a frame, per second. */
export const FRAME_TICKS_PER_SECOND = 256;

/** Limits of one traffic key, docs/protocol.md 3.4. */
export const MAX_FRAMES_PER_KEY = 2n ** 36n;
export const MAX_BYTES_PER_KEY = 2n ** 46n;

export const SUITES = ['aes-256-gcm', 'chacha20-poly1305'] as const;
export type Suite = (typeof SUITES)[number];

/** Labels of derivations and signatures. A label is never reused. */
export const LABEL = {
  pair: 'pairwire/1 pair',
  net: 'pairwire/1 net',
  group: 'pairwire/1 group',
  kid: 'pairwire/1 kid',
  mac: 'pairwire/1 mac',
  psk: 'pairwire/1 psk',
  grant: 'pairwire/1 grant',
  identity: 'pairwire/1 identity',
  member: 'pairwire/1 member',
  boot: 'pairwire/1 boot',
  settings: 'pairwire/1 settings',
  audit: 'pairwire/1 audit',
  auditHead: 'pairwire/1 audit head',
  auditSign: 'pairwire/1 audit sign',
  channel: 'pairwire/1 channel',
  probe: 'pairwire/1 loop probe',
  peering: 'pairwire/1 peering',
  netMark: 'pairwire/1 net mark',
  envelope: 'pairwire/1 envelope',
  dek: 'pairwire/1 dek',
  ticket: 'pairwire/1 ticket',
  kmsAudit: 'pairwire/1 kms audit',
  kmsIdentity: 'pairwire/1 kms identity',
  kmsDocument: 'pairwire/1 kms document',
  kmsTicket: 'pairwire/1 kms ticket',
  kmsExchange: 'pairwire/1 kms exchange',
  identityChange: 'pairwire/1 identity change',
  backup: 'pairwire/1 backup',
  rowMac: 'pairwire/1 row mac',
  rowTerm: 'pairwire/1 row term',
  rowHead: 'pairwire/1 row head',
} as const;

/** What tells two net keys of one number apart, docs/protocol.md 9.2. */
export const NET_MARK_SIZE = 16;

/** The relay's protocol, docs/protocol.md section 2.6: key shared with the key server, receipt. */
export const RELAY_KEY_SIZE = 32;
export const RECEIPT_SIZE = 72;
