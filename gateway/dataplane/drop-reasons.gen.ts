/**
 * Why a frame was dropped: names as in the counters of the data plane, each with a sentence.
 *
 * Made by scripts/generate.ts from gateway/native/core/drop-reasons.hpp: change that file.
 */
export const DROP_REASONS = {
  malformed: 'Length, version, kind, flags or reserved bits are not as specified.',
  foreign_subnet: 'The subnet tag of the frame is not ours.',
  unknown_index: 'No member with this sender index is known.',
  reflected: 'The sender index is our own.',
  unknown_kid: 'No key of this sender has this kid.',
  stale_kid: "The kid is one of the sender's last 8 retired keys.",
  lease_over: 'The lease of the key is over.',
  replayed: 'The counter was accepted before or has left the window.',
  not_authentic: 'The tag does not fit.',
  not_fresh: 'The time inside is too far from ours.',
  before_group_key: 'A group frame is older than the installation of its key.',
  wrong_source_mac: 'The inner source MAC address does not belong to the sender.',
  wrong_destination: 'The inner destination MAC address is not one of ours.',
  group_unicast_mac: 'A group frame has a unicast MAC destination.',
  group_unicast_ip: 'A group frame carries a unicast IP destination.',
  hold_full: 'The hold queue had no room while a key was asked for.',
  hold_expired: 'The frame waited too long for a key.',
  hold_off: 'There is no key yet, and holding is turned off.',
  no_such_member: 'Nobody owns the destination MAC address.',
  tap_source_mac: 'A frame from a TAP has a source MAC address that is not its own.',
  loop: 'A TAP delivered our own EtherType or a packet for our own endpoint.',
  oversize: 'The frame does not fit the path, not even in 3 parts.',
  no_endpoint: 'No underlay address of the member is known.',
  no_key: 'No usable key for the destination is held.',
  counter_limit: 'The traffic key has sealed as much as it may.',
  send_failed: 'The kernel did not take the sealed frame.',
  tap_write_failed: 'The kernel did not take the opened frame at the TAP.',
  orphaned: 'The keys were wiped because the control plane stayed away too long.',
  storm: 'Storm control: more group frames than the limit.',
  fragment_expired: 'Other parts of the frame did not come within 500 ms.',
  inner_ethertype_own: 'The opened frame carries our own EtherType.',
  fragment_evicted: 'A part gave way to newer ones of its sender: 64 sets, 256 KiB.',
  not_our_relay: 'A relayed frame came from elsewhere than the relay in use.',
  no_relay: 'The member is reached by relay, and none takes our frames now.',
  plain_spoof: "A frame from the plain side has a member's own source address.",
  plain_not_for_members: 'A frame from the plain side is for nobody in the subnet.',
  plain_own_destination: "A frame for a member's own address does not leave a plain port.",
  plain_broadcast: 'A group frame does not leave this plain port as configured.',
  plain_reserved: 'A frame of bridges among themselves does not cross a plain port.',
  plain_standby: 'Another plain port forwards, or this one is blocked or listens first.',
  pinned_elsewhere: 'The inner source address is pinned behind another plain port.',
  arp_spoof: 'ARP that is malformed or claims an address of another.',
  nd_spoof: 'Neighbour discovery that is malformed, hides or claims an address of another.',
  ra_guard: 'A router advertisement from a member without the right `router`.',
  redirect_guard: 'An ICMPv6 redirect from a member without the right `router`.',
  dhcp_guard: "A DHCP server's message from a member without the right `dhcp`.",
  net_source: 'The source of a packet is not in the subnet that it comes from.',
  net_destination: 'The destination of a packet is in no subnet that it may go to.',
  net_not_ip: 'A frame at a link port carries no unicast IP packet.',
  net_clear: 'What came to a link port from outside is not sealed and may not pass.',
  net_source_route: 'A packet that names a way of its own does not cross a link.',
  net_outer: 'The packet inside is not what its outer header says.',
} as const;

export type DropReason = keyof typeof DROP_REASONS;

/** The names, in the order of the data plane's list. */
export const DROP_REASON_NAMES = Object.keys(DROP_REASONS) as readonly DropReason[];
