// The way of a frame from the TAP to the underlay. All steps are (sequential): one worker does them
// for one queue of the TAP, so no flow is ever reordered. Several workers would share the tables
// and the keys' counters, and nothing else.
//
//  1. batch         read packets from the TAP: super-frames of up to 64 KiB with a vnet header
//  2. take          own source address? own frames coming back? group or unicast?
//                   At a plain port: take_from_plain_side, which also learns who is there.
//                   The address guard: what it says of addresses, routes and leases
//  3. take_unicast  destination -> member -> key;    take_group: storm limit, an answer from here,
//                   group key
//  4. hold_*        no key: the packet waits, as it is, and the control plane is told
//  5. begin         cut the super-frame into wire segments (l2/segment), number them, and reserve
//                   their places in the sender's arena
//  6. seal          each segment straight to its place; with a crew, several packets at once. A
//                   segment that is too long for the path is sealed in up to 3 parts
//  7. flush         one sendmmsg, in it one message with UDP_SEGMENT for each train
//
// Small frames: up to kReads packets are read in one batch, and neighbours of equal size to one
// member become a train as well.
//
// The functions in this file stand in the order in which a packet meets them. Nothing here
// allocates, locks or makes a system call for a frame, other than reading its packet.
#include "core/outbound.hpp"

#include <algorithm>
#include <cstring>

#include "core/associated-data.hpp"
#include "core/endpoint.hpp"
#include "core/outer-ip.hpp"
#include "core/wire-port.hpp"
#include "io/tap.hpp"
#include "io/wait.hpp"
#include "l2/headers.hpp"
#include "l2/mss-clamp.hpp"
#include "l2/too-big.hpp"

namespace pairwire {
namespace {

/// Packets of one batch: bounds how long the first of them waits for the last.
constexpr std::size_t kReads = 64;
/// Sealed bytes that leave at once, so that the receiver opens them while we seal the next. A
/// super-frame makes one full train and the beginning of another, which the next super-frame fills
/// up: four together are 5 messages instead of 8 (docs/performance.md).
constexpr std::size_t kFlushBytes = 4 * kMaxTrainBytes;
static_assert(kFlushBytes + kMaxTapPacket + kMaxTapPacket / 8 < UdpSender::kArena);
/// Packets that a crew seals at once, so sealed bytes that may leave together then.
constexpr std::size_t kPieces = 4;
static_assert(kPieces * (kMaxTapPacket + kMaxTapPacket / 8) < UdpSender::kArena);
/// Less than this is sealed before a helper has noticed.
constexpr std::size_t kWorthSharing = 8'192;
constexpr std::size_t kHoldKeys = 1024;
constexpr std::size_t kHoldFrames = 8192;
constexpr std::uint64_t kExpiryStepUs = 20'000;
/// The control thread is told of frames that are too long so often.
constexpr std::uint64_t kTooLongStepUs = 50'000;
/// ICMP answers to sources with one hash of their address modulo kAnswerBudgets.
constexpr std::uint32_t kAnswersPerSecond = 10;
constexpr std::size_t kAnswerBudgets = 256;

/// From a plain side it is asked so often about one address that nobody is known to have.
constexpr std::uint64_t kStrangerQuietUs = 2'000'000;
/// An address that others think elsewhere is told of so often while it is seen here.
constexpr std::uint64_t kMovedMs = 500;
/// An address that our host says is its own is told of so often: until it is bound, and then.
constexpr std::uint64_t kClaimQuietUs = 2'000'000;
constexpr std::uint64_t kRefreshMs = 300'000;
/// What was learned is told again three times before it would be forgotten.
constexpr std::uint64_t kTellsPerAge = 3;

/// What a packet of level `ip` is longer than the one inside, at most.
constexpr std::uint32_t kMostOnWire = kIpv6HeaderSize + kFrameOverhead;

/// What a frame is longer than its payload; null is an Ethernet.
std::size_t frame_overhead(const Endpoint* to) {
  return kFrameOverhead + (to != nullptr && to->relayed != 0 ? kRelayHeaderSize : 0);
}

Kind kind_for(const Peer& peer) {
  return peer.net != nullptr ? Kind::kNet : Kind::kPair;
}

/// Segments of one packet that can be numbered at once: far below the limit's margin.
static_assert(Segmenter::kMaxSegments * kMaxParts < SendCounter::kMargin);

/// The addresses of a frame as those that it travels under.
Endpoint ethernet_endpoint(ConstBytes frame) {
  return Endpoint::of_ethernet(MacAddress(frame.first<MacAddress::kSize>()),
                               MacAddress(frame.subspan<MacAddress::kSize, MacAddress::kSize>()));
}

/// Of all segments together, at most.
std::size_t bytes_of(const Segmenter& segmenter) {
  return segmenter.count() * segmenter.largest();
}

/// Frames that `bytes` bytes are sealed in if `room` of them fit each.
constexpr std::size_t parts_for(std::size_t bytes, std::size_t room) {
  return (bytes + room - 1) / room;
}

}  // namespace

Outbound::Outbound(WorkerShare& share, int tap, const Underlay& underlay, std::size_t hold_capacity,
                   Crew& crew)
    : share_(share),
      tap_(tap),
      ethernet_(underlay.is_ethernet()),
      wire_(underlay.is_wire()),
      sender_(underlay, share.drops),
      crew_(crew),
      // On an Ethernet each frame has a header of its own in the arena: sealed one by one.
      pieces_(crew.empty() || underlay.is_packet() ? 1 : kPieces),
      held_({kHoldKeys, kHoldFrames, hold_capacity - hold_capacity / 4, false}, boot_us()),
      held_group_({1, kHoldFrames, hold_capacity / 4, false}, boot_us()),
      clear_budget_(kClearFrames, kClearFrames),
      answer_budgets_(kAnswerBudgets, TokenBucket(kAnswersPerSecond, kAnswersPerSecond)),
      released_(new std::uint8_t[kMaxTapPacket]),
      group_(new std::uint8_t[kMaxTrainBytes]) {
  ready_.reserve(kHoldKeys);
  for (Piece& piece : pieces_) piece.packet.reset(new std::uint8_t[kMaxTapPacket]);
  if (share_.tables.settings().kind == PortKind::kPlain) {
    learned_ = std::make_unique<LearnedTable>(share_.tables.seed());
    share_.plain = std::make_unique<PlainShare>();
  }
}

void Outbound::end() {
  share_.drops.count(DropReason::hold_expired, held_.clear() + held_group_.clear());
}

// --- 1. Read ------------------------------------------------------------------------------------

bool Outbound::batch() {
  take_time();
  if (!held_.empty() || !held_group_.empty()) {
    look_at_held();
    expire_held();
  }
  if (learned_ != nullptr) look_at_learned();
  std::size_t reads = 0;
  while (reads < kReads) {
    std::size_t size = 0;
    std::uint8_t* const packet = pieces_[waiting_].packet.get();
    if (tap_read(tap_, Bytes(packet, kMaxTapPacket), size) != TapRead::kPacket) break;
    ++reads;
    take(Bytes(packet, size), false);
    if (waiting_ == pieces_.size()) seal_pieces();
    short_ = size <= kShortPacket;
    // Where the batch before was one packet, too, it leaves before another is looked for: that is a
    // system call, mostly in vain.
    if (reads == 1 && alone_ && short_) flush();
    if (waiting_ == 0 && sender_.pending() >= kFlushBytes) sender_.flush();
  }
  flush();
  tell_too_long();
  share_.holding.store(!held_.empty() || !held_group_.empty(), std::memory_order_seq_cst);
  if (reads != 0) {
    WorkerCounters::add(share_.counters.batches, 1);
    WorkerCounters::add(share_.counters.supers, reads);
    alone_ = reads == 1;
  }
  if (std::exchange(told_, false)) wake_up(share_.control_wake);
  return reads != 0;
}

void Outbound::take_time() {
  now_.us = boot_us();
  now_.ms = now_.us / 1000;
  const std::uint64_t server = share_.clock.server_ms(now_.ms);
  now_.time = frame_time(server);
  now_.lease = share_.tables.lease_good(server);
}

// --- 2. Look ------------------------------------------------------------------------------------

/// `packet` is a vnet header and a frame; `held` if it has waited already.
void Outbound::take(Bytes packet, bool held) {
  if (packet.size() < kVnetHeaderSize + kEthernetHeaderSize) {
    return share_.drops.count(DropReason::malformed);
  }
  const Bytes frame = packet.subspan(kVnetHeaderSize);
  const MacAddress destination(frame.subspan<0, MacAddress::kSize>());
  const MacAddress source(frame.subspan<MacAddress::kSize, MacAddress::kSize>());
  const PortSettings& settings = share_.tables.settings();
  if (settings.kind == PortKind::kPlain) {
    if (!take_from_plain_side(frame, held)) return;
  } else if (!wire_ && !settings.owns(source)) {
    return share_.drops.count(DropReason::tap_source_mac);
  }
  if (is_loop(frame, settings)) return share_.drops.count(DropReason::loop);
  if (settings.kind == PortKind::kLink) return take_for_net(packet);
  const VlanMac to{outer_vlan(frame), destination};
  if (learned_ != nullptr && !destination.is_group() && !is_for_members(to)) {
    return share_.drops.count(DropReason::plain_not_for_members);
  }
  Announcement what;
  if (may_announce(frame)) {
    what = read_announcement(frame);
    if (!passes_guard(what, source)) return;
  }
  if (destination.is_group()) return take_group(what, packet, held);
  take_unicast(to, packet, held);
}

/// The address guard, for a frame that enters here; `what` it says.
bool Outbound::passes_guard(const Announcement& what, const MacAddress& source) {
  if (what.kind == Announcement::Kind::kNone) return true;
  // Also of one that is bound to somebody else: who has given it up may have to be forgotten.
  if (learned_ == nullptr) claim(what, source);
  const auto reason = refuse_announcement(share_.tables, what, source, nullptr);
  if (!reason) return true;
  share_.drops.count(*reason);
  if (const auto event = guard_reports_.report(*reason, what, source, 0, now_.us)) put(*event);
  return false;
}

/// Our host says that an address is its own: the key server is told, so that it gets bound, and
/// again once in a while, so that it stays so.
void Outbound::claim(const Announcement& what, const MacAddress& source) {
  if (what.claimed.is_none() || what.claimed.is_group() || what.in_vlan ||
      what.kind == Announcement::Kind::kRouter) {
    return;
  }
  const Binding* const binding = share_.tables.binding(what.claimed);
  const bool bound = binding != nullptr && binding->mac == source;
  if (bound && now_.ms - binding->told_ms.load(std::memory_order_relaxed) < kRefreshMs) return;
  const std::uint64_t key =
      what.claimed.to_key(share_.tables.seed()) ^ (source.to_integer() * 0x9e3779b97f4a7c15U);
  if (claimed_.lately(key, now_.us, kClaimQuietUs)) return;
  if (!claim_budget_.take(now_.us)) return WorkerCounters::add(share_.counters.claims_over, 1);
  claimed_.note(key, now_.us);
  if (bound) binding->told_ms.store(now_.ms, std::memory_order_relaxed);
  WorkerEvent event;
  event.kind = WorkerEvent::Kind::kClaim;
  event.ip = what.claimed;
  event.mac = source;
  put(event);
}

/// Our own frames as plaintext: the underlay lies in the same bridge, or a route for the underlay
/// leads into the TAP (threats.md C11). A datagram is one of ours if it is from or to our port and
/// begins like a sealed frame: the port number alone may be used by somebody else inside.
bool Outbound::is_loop(ConstBytes frame, const PortSettings& settings) const {
  const ParsedFrame parsed = parse_frame(frame);
  if (parsed.ethertype == kEtherType) return true;
  if (ethernet_ || wire_) return false;
  if (!parsed.is_udp() || parsed.payload_length < kFrameOverhead) return false;
  const auto udp = frame.subspan(parsed.l4_offset);
  const auto port = [&](std::size_t at) {
    return static_cast<std::uint16_t>((udp[at] << 8) | udp[at + 1]);
  };
  if (port(0) != settings.udp_port && port(2) != settings.udp_port) return false;
  const ConstBytes payload = frame.subspan(parsed.payload_offset, parsed.payload_length);
  return parse_shim(payload, Transport::kUdp).has_value();
}

// --- 2, at a plain port -------------------------------------------------------------------------

/// A frame from the bridge. True if it may come in; where it goes is not looked at.
bool Outbound::take_from_plain_side(ConstBytes frame, bool held) {
  // Probes have a source that is a member's own, and are looked at whoever forwards.
  if (is_loop_probe(frame)) {
    take_probe(frame);
    return false;
  }
  if (!share_.tables.plain_side_open()) {
    share_.drops.count(DropReason::plain_standby);
    return false;
  }
  const VlanMac source{outer_vlan(frame),
                       MacAddress(frame.subspan<MacAddress::kSize, MacAddress::kSize>())};
  if (const auto reason = refuse_from_plain_side(share_.tables, frame, now_.ms)) {
    share_.drops.count(*reason);
    if (*reason == DropReason::plain_spoof && spoof_budget_.take(now_.us)) {
      WorkerEvent event;
      event.kind = WorkerEvent::Kind::kSpoof;
      event.mac = source.mac;
      event.vlan = source.vlan;
      put(event);
    }
    return false;
  }
  if (!held) learn(source);
  return true;
}

/// What it says, and whether it is authentic, is the control thread's to find out.
void Outbound::take_probe(ConstBytes frame) {
  if (!probe_budget_.take(now_.us)) return WorkerCounters::add(share_.plain->probes_over, 1);
  HeardProbe probe;
  probe.size = std::min(frame.size(), probe.bytes.size());
  std::copy_n(frame.begin(), probe.size, probe.bytes.begin());
  if (share_.plain->probes.put(probe)) told_ = true;
}

void Outbound::learn(const VlanMac& source) {
  LearnedTable::Entry* const entry = learned_->see(source, now_.ms);
  if (entry == nullptr) return WorkerCounters::add(share_.plain->learn_full, 1);
  const std::uint64_t age = now_.ms - entry->told_ms;
  if (entry->told_ms != 0) [[likely]] {
    if (age < kMovedMs) return;
    if (age < share_.tables.settings().learn_ms / kTellsPerAge) {
      // It has moved here, if others have it elsewhere.
      const Behind* const behind = share_.tables.behind(source, now_.ms);
      if (behind == nullptr || behind->member->self) return;
    }
  }
  if (tell_learned(source, now_.ms, false)) entry->told_ms = now_.ms;
}

bool Outbound::tell_learned(const VlanMac& address, std::uint64_t seen_ms, bool gone) {
  share_.plain->learned_now.store(learned_->size(), std::memory_order_relaxed);
  if (!share_.plain->learned.put({address.to_integer(), seen_ms, gone})) return false;
  told_ = true;
  return true;
}

/// When the control thread wants it: forgets what is old, or all of it if this port does not
/// forward, and tells what has not been told. What finds no room is told later.
void Outbound::look_at_learned() {
  PlainShare& plain = *share_.plain;
  if (!plain.look.load(std::memory_order_relaxed)) return;
  plain.look.store(false, std::memory_order_relaxed);
  const bool retell = plain.retell.exchange(false, std::memory_order_acq_rel);
  const bool open = share_.tables.plain_side_open();
  const std::uint64_t age = open ? share_.tables.settings().learn_ms : 0;
  learned_->sweep([&](const VlanMac& address, LearnedTable::Entry& entry) {
    if (!open || now_.ms - entry.seen_ms >= age) {
      return !tell_learned(address, entry.seen_ms, true);
    }
    // Somebody saw it elsewhere, later: its next frame here is news again.
    const Behind* const behind = share_.tables.behind(address, now_.ms);
    if (behind != nullptr && !behind->member->self) return false;
    if (retell) entry.told_ms = 0;
    if (entry.told_ms == 0 && tell_learned(address, entry.seen_ms, false)) {
      entry.told_ms = now_.ms;
    }
    return true;
  });
  plain.learned_now.store(learned_->size(), std::memory_order_relaxed);
}

/// Whether a unicast frame from the plain side has somebody in the subnet to go to. Of an address
/// that nobody is known to have it is asked once in a while: it may be behind another plain port.
bool Outbound::is_for_members(const VlanMac& destination) {
  const PortTables& tables = share_.tables;
  if (tables.settings().owns(destination.mac)) return false;
  if (tables.is_own(destination.mac)) return true;
  if (const Behind* const behind = tables.behind(destination, now_.ms)) {
    return !behind->member->self;
  }
  if (learned_->contains(destination) || tables.refused(destination.mac, now_.ms)) return false;
  if (asked_.lately(destination.to_integer(), now_.us, kStrangerQuietUs)) return false;
  if (stranger_budget_.take(now_.us)) {
    ask_for(destination);
  } else {
    WorkerCounters::add(share_.counters.unasked, 1);
  }
  return false;
}

// --- 3. Find the key ----------------------------------------------------------------------------

void Outbound::take_unicast(const VlanMac& destination, Bytes packet, bool held) {
  // What came first leaves first.
  if (!held && !held_.empty() && held_.has(destination.to_integer())) {
    release_unicast(destination.to_integer());
  }
  Peer* const peer = share_.tables.route(destination, now_.ms);
  SendKey* const key = peer == nullptr ? nullptr : peer->send.load(std::memory_order_acquire);
  if (key == nullptr) {
    if (held) return share_.drops.count(DropReason::no_key);
    return hold_unicast(destination, packet);
  }
  if (!now_.lease) return share_.drops.count(DropReason::lease_over);
  send_unicast(*peer, *key, packet);
}

/// What the kernel has routed to other subnets, or what members have sent to the router there. Keys
/// are there before any traffic is, or none is let out: nothing waits.
void Outbound::take_for_net(Bytes packet) {
  const ConstBytes frame = packet.subspan(kVnetHeaderSize);
  if (wire_ && crosses_in_clear(frame, share_.tables.settings(), share_.tables.routes()))
    return pass_in_clear(packet);
  const auto ethernet = parse_ethernet(frame);
  const auto ends = ip_ends(frame.subspan(kEthernetHeaderSize));
  if (!ethernet || !ends || ethernet->size != kEthernetHeaderSize ||
      ethernet->ethertype != ends->ethertype || ends->destination.is_group() ||
      (wire_ && ethernet->destination.is_group())) {
    return share_.drops.count(DropReason::net_not_ip);
  }
  const NetRoutes& routes = share_.tables.routes();
  const NetRoutes::Route* const to = routes.find(ends->destination);
  if (to == nullptr || to->net == nullptr) {
    return share_.drops.count(DropReason::net_destination);
  }
  const NetRoutes::Route* const from = routes.find(ends->source);
  if (from == nullptr || from->net != nullptr) return share_.drops.count(DropReason::net_source);
  Peer* const port = to->net->port.load(std::memory_order_acquire);
  SendKey* const key = port == nullptr ? nullptr : port->send.load(std::memory_order_acquire);
  if (key == nullptr) return share_.drops.count(DropReason::no_key);
  if (!now_.lease) return share_.drops.count(DropReason::lease_over);
  if (wire_) return send_over_ip(*to->net, *port, *key, packet);
  send_unicast(*port, *key, packet);
}

/// As it is, with its checksum complete. Nothing that may pass is ever a super-frame. Limited,
/// because two ways between the same two networks would be a loop that no loop probe finds.
void Outbound::pass_in_clear(Bytes packet) {
  if (!clear_budget_.take(now_.us)) return share_.drops.count(DropReason::storm);
  Segmenter& segmenter = pieces_[waiting_].segmenter;
  if (!begin(segmenter, packet)) return;
  if (segmenter.count() != 1 || segmenter.claim() != ChecksumClaim::kComplete) {
    return share_.drops.count(DropReason::malformed);
  }
  std::ranges::copy(segmenter.cut_in_place(0), sender_.reserve_frame(segmenter.size(0)).begin());
}

void Outbound::take_group(const Announcement& what, Bytes packet, bool held) {
  const PortSettings& settings = share_.tables.settings();
  const std::uint32_t rate = settings.storm_frames;
  if (rate != 0 && !held) {
    if (rate != storm_rate_) {
      storm_rate_ = rate;
      storm_ = TokenBucket(rate, rate);
    }
    if (!storm_.take(now_.us)) return share_.drops.count(DropReason::storm);
  }
  if (!what.asked.is_none()) {
    const ConstBytes frame = packet.subspan(kVnetHeaderSize);
    if (answer(what, MacAddress(frame.subspan<MacAddress::kSize, MacAddress::kSize>()))) return;
  }
  if ((settings.rights & kNoGroup) != 0) return share_.drops.count(DropReason::not_in_group);
  if (settings.pairwise) {
    if (!now_.lease) return share_.drops.count(DropReason::lease_over);
    return send_pairwise(packet);
  }
  SendKey* const key = share_.tables.group_send();
  if (key == nullptr) {
    if (held) return share_.drops.count(DropReason::no_key);
    return hold_group(packet);
  }
  if (!now_.lease) return share_.drops.count(DropReason::lease_over);
  send_group(*key, packet);
}

/// Answers for a neighbour whose address is known to be its own, as RFC 9161 does: the question
/// then need not go to everybody. False if it must.
bool Outbound::answer(const Announcement& question, const MacAddress& source) {
  const auto owner = answer_from_here(share_.tables, question, source, now_.ms);
  if (!owner) return false;
  std::array<std::uint8_t, kVnetHeaderSize + kNeighbourAnswerSize> packet{};
  const std::size_t size =
      write_neighbour_answer(question, source, *owner, is_router(share_.tables, *owner, now_.ms),
                             std::span(packet).last<kNeighbourAnswerSize>());
  if (!tap_write(tap_, ConstBytes(packet).first(kVnetHeaderSize + size))) {
    share_.drops.count(DropReason::tap_write_failed);
    return true;
  }
  WorkerCounters::add(
      question.asked.is_ipv4() ? share_.counters.answered_arp : share_.counters.answered_nd, 1);
  return true;
}

// --- 4. Hold ------------------------------------------------------------------------------------

void Outbound::ask_for(const VlanMac& destination) {
  asked_.note(destination.to_integer(), now_.us);
  WorkerEvent event;
  event.kind = WorkerEvent::Kind::kMissMac;
  event.mac = destination.mac;
  event.vlan = destination.vlan;
  put(event);
}

/// Unless it was done lately, or for too many others.
void Outbound::ask_once(const VlanMac& destination) {
  if (asked_.lately(destination.to_integer(), now_.us)) return;
  if (!ask_budget_.take(now_.us)) return WorkerCounters::add(share_.counters.unasked, 1);
  ask_for(destination);
}

void Outbound::hold_unicast(const VlanMac& destination, ConstBytes packet) {
  const PortSettings& settings = share_.tables.settings();
  if (settings.owns(destination.mac)) return share_.drops.count(DropReason::loop);
  if (share_.tables.refused(destination.mac, now_.ms)) {
    return share_.drops.count(DropReason::no_such_member);
  }
  const std::uint64_t number = destination.to_integer();
  ask_once(destination);
  if (settings.hold_frames == 0) return share_.drops.count(DropReason::hold_off);
  // The group's share is apart, so that neither can starve the other.
  const std::size_t limit = settings.hold_bytes - settings.hold_bytes / 4;
  std::uint64_t evicted = 0;
  if (held_.bytes() + packet.size() > limit ||
      held_.hold(number, packet, {}, settings.hold_frames,
                 now_.us + std::uint64_t{settings.hold_ms} * 1000,
                 evicted) == HoldQueue::Result::kFull) {
    return share_.drops.count(DropReason::hold_full);
  }
  WorkerCounters::add(share_.counters.held, 1);
}

void Outbound::hold_group(ConstBytes packet) {
  const PortSettings& settings = share_.tables.settings();
  if (!asked_.lately(0, now_.us)) {  // No address is 0.
    asked_.note(0, now_.us);
    put({});
  }
  if (settings.hold_frames == 0) return share_.drops.count(DropReason::hold_off);
  std::uint64_t evicted = 0;
  if (held_group_.bytes() + packet.size() > settings.hold_bytes / 4 ||
      held_group_.hold(0, packet, {}, settings.hold_frames,
                       now_.us + std::uint64_t{settings.hold_ms} * 1000,
                       evicted) == HoldQueue::Result::kFull) {
    return share_.drops.count(DropReason::hold_full);
  }
  WorkerCounters::add(share_.counters.held, 1);
}

/// After a change of the tables: sends what can be sent now, drops what nobody will ever take.
void Outbound::look_at_held() {
  const std::uint64_t version = share_.tables.version();
  if (version == version_) return;
  version_ = version;
  ready_.clear();
  held_.collect(ready_, [](std::uint64_t) { return true; });
  for (const std::uint64_t address : ready_) release_unicast(address);
  if (share_.tables.group_send() != nullptr) {
    held_group_.release(0, Bytes(released_.get(), kMaxTapPacket),
                        [&](Bytes packet, const HoldQueue::Note&) {
                          take(packet, true);
                          seal_pieces();
                        });
  }
}

/// If there is a key now. Does nothing if not.
void Outbound::release_unicast(std::uint64_t number) {
  const VlanMac destination = VlanMac::from_integer(number);
  const Peer* const peer = share_.tables.route(destination, now_.ms);
  if (peer == nullptr || peer->send.load(std::memory_order_acquire) == nullptr) {
    if (share_.tables.refused(destination.mac, now_.ms)) {
      share_.drops.count(DropReason::no_such_member, held_.drop(number));
    }
    return;
  }
  held_.release(number, Bytes(released_.get(), kMaxTapPacket),
                [&](Bytes packet, const HoldQueue::Note&) {
                  take(packet, true);
                  seal_pieces();  // The next one takes its place.
                  if (sender_.pending() >= kFlushBytes) sender_.flush();
                });
}

void Outbound::expire_held() {
  if (now_.us < next_expiry_us_) return;
  next_expiry_us_ = now_.us + kExpiryStepUs;
  const std::size_t expired = held_.expire(now_.us) + held_group_.expire(now_.us);
  if (expired != 0) share_.drops.count(DropReason::hold_expired, expired);
}

// --- 5. Cut -------------------------------------------------------------------------------------

/// False if the packet was dropped.
bool Outbound::begin(Segmenter& segmenter, Bytes packet) {
  const auto header = read_vnet_header(packet);
  const Bytes frame = packet.subspan(kVnetHeaderSize);
  if (!header || segmenter.begin(*header, frame) != SegmentStatus::kOk) {
    share_.drops.count(DropReason::malformed);
    return false;
  }
  if (segmenter.largest() + kFrameOverhead + kRelayHeaderSize > UdpSender::kMaxFrame) {
    share_.drops.count(DropReason::oversize);
    return false;
  }
  return true;
}

/// Machines on two plain sides have the MTU of their bridges: neither knows that what is longer
/// than `longest_frame` is cut on the way between.
void Outbound::fit_segments(Bytes packet, std::size_t longest_frame) {
  const auto header = read_vnet_header(packet);
  // A SYN is never one of the kernel's super-frames.
  if (!header || header->gso_type != vnet::kGsoNone) return;
  if (clamp_mss(packet.subspan(kVnetHeaderSize), longest_frame, header->needs_checksum())) {
    WorkerCounters::add(share_.counters.mss_clamped, 1);
  }
}

/// Reserves numbers for the `frames` that `bytes` bytes (at most, for they are only counted against
/// the key's limit) are sealed in; nothing (counted) if the key is used up.
std::optional<std::uint64_t> Outbound::take_numbers(SendKey& key, std::size_t frames,
                                                    std::size_t bytes, std::uint32_t peer) {
  const auto count = static_cast<std::uint32_t>(frames);
  const auto first = key.counter->take(count, bytes + frames * kInnerHeaderSize);
  if (key.counter->just_worn()) [[unlikely]] {
    WorkerEvent event;
    event.kind = WorkerEvent::Kind::kKeyWorn;
    event.peer = peer;
    event.number = key.pw_id;
    put(event);
  }
  if (!first) share_.drops.count(DropReason::counter_limit, count);
  return first;
}

/// How many frames the segments at hand are sealed in, if `room` bytes of each fit a frame and
/// `outside` bytes are not sealed. Nothing (counted) if one would need more than 3.
std::optional<std::size_t> Outbound::count_frames(const Segmenter& segmenter, std::size_t outside,
                                                  std::size_t room) {
  std::size_t frames = 0;
  for (std::size_t i = 0; i < segmenter.count(); ++i) {
    const std::size_t parts = parts_for(segmenter.size(i) - outside, room);
    if (parts > kMaxParts) {
      share_.drops.count(DropReason::oversize, segmenter.count());
      return std::nullopt;
    }
    frames += parts;
  }
  return frames;
}

/// Calls `use(bytes, part)` for the parts of a payload, of equal length but for the last one.
template <typename Use>
void Outbound::for_each_part(ConstBytes payload, std::size_t room, Use use) {
  const std::size_t parts = parts_for(payload.size(), room);
  if (parts <= 1) return use(payload, Part{});
  const std::size_t each = (payload.size() + parts - 1) / parts;
  for (std::size_t i = 0; i < parts; ++i) {
    const std::size_t size = std::min(each, payload.size() - i * each);
    use(payload.subspan(i * each, size), Part{true, static_cast<std::uint8_t>(i), i + 1 == parts});
  }
}

// --- 6. Seal ------------------------------------------------------------------------------------

/// Seals `segment`, which is number `place` of its packet, into `out`, which is as long as the
/// frame, padding included.
void Outbound::seal(Bytes out, const SendKey& key, Form form, const Endpoint& to,
                    std::uint64_t counter, ConstBytes segment, std::size_t place,
                    ChecksumClaim claim, Part part) const {
  if (to.relayed != 0) {
    const RelayUse* const relay = share_.tables.relay();
    // Not registered any more since the frame was begun: the relay refuses token 0.
    write_relay_header({RelayType::kForward, to.relayed, relay == nullptr ? 0 : relay->token},
                       out.first<kRelayHeaderSize>());
    out = out.subspan(kRelayHeaderSize);
  }
  const auto shim = out.first<kShimSize>();
  const std::uint8_t tag = share_.tables.settings().subnet_tag;
  const auto flags = static_cast<std::uint8_t>(tag | (part.fragment ? kFlagFragment : 0) |
                                               (form.inside ? kFlagGroupDestination : 0));
  write_shim({form.kind, flags, key.kid, key.index, counter}, shim);
  InnerHeader header;
  header.description.part = part.number;
  header.description.last_part = part.last;
  header.time = now_.time;
  header.description.partial_checksum = claim == ChecksumClaim::kPartial;
  header.description.train = static_cast<std::uint8_t>(std::min<std::size_t>(place, 255));
  // Only tiny frames on an Ethernet are padded.
  std::array<std::uint8_t, kMinEthernetFrame> padded{};
  const std::size_t body = out.size() - kFrameOverhead;
  if (body != segment.size()) {
    header.description.padding = static_cast<std::uint16_t>(body - segment.size());
    std::ranges::copy(segment, padded.begin());
    segment = ConstBytes(padded).first(body);
  }
  std::array<std::uint8_t, kInnerHeaderSize> head;
  write_inner_header(header, head);
  const AssociatedData aad(shim, to, Way::kSending, form.outer);
  key.aead->seal_parts(counter, aad.bytes(), head, segment,
                       out.subspan(kShimSize, kInnerHeaderSize + body), out.last<kFrameTagSize>());
}

void Outbound::send_unicast(Peer& peer, SendKey& key, Bytes packet) {
  const Endpoint* const to = peer.endpoint.load(std::memory_order_acquire);
  if (to == nullptr && !ethernet_) return share_.drops.count(DropReason::no_endpoint);
  if (to != nullptr && to->relayed != 0 && !relay_usable()) {
    return share_.drops.count(DropReason::no_relay);
  }
  const std::size_t overhead = frame_overhead(to);
  const bool inside = ethernet_ && carries_addresses(peer, packet.subspan(kVnetHeaderSize));
  if (inside && to == nullptr) return share_.drops.count(DropReason::no_endpoint);
  const std::size_t outside = outside_of(peer, inside);
  std::size_t limit = peer.max_frame.load(std::memory_order_relaxed);
  if (to != nullptr && to->relayed != 0) limit = std::min(limit, kMaxRelayedFrame);
  if (learned_ != nullptr) fit_segments(packet, limit - kFrameOverhead + outside);
  Segmenter& segmenter = pieces_[waiting_].segmenter;
  if (!begin(segmenter, packet)) return;
  if (segmenter.largest() - outside + kFrameOverhead > limit) [[unlikely]] {
    return send_unicast_cut(peer, key, packet, limit);
  }
  const auto first = take_numbers(key, segmenter.count(), bytes_of(segmenter), peer.number);
  if (!first) return;
  const std::size_t count = segmenter.count();
  const std::size_t size = count * (segmenter.largest() - outside + overhead);  // At most.
  if (!ethernet_ && !sender_.fits(count, size)) make_room();
  if (ethernet_) {
    send_unicast_ethernet(key, segmenter, *first, inside ? to : nullptr);
  } else if (sender_.fits(count, size)) {
    Piece& piece = pieces_[waiting_];
    piece.key = &key;
    piece.to = to;
    piece.first = *first;
    piece.kind = kind_for(peer);
    piece.outside = outside;
    piece.out = {};
    std::size_t used = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const Bytes room = sender_.reserve(*to, piece.segmenter.size(i) - outside + overhead);
      if (i == 0) piece.out = Bytes(room.data(), size);
      used += room.size();
    }
    piece.out = piece.out.first(used);  // Rooms lie behind each other until the next flush.
    keep_packet(piece, packet);
    ++waiting_;
  } else {
    // A super-frame of tiny segments: one by one, with as many flushes as it takes.
    Segmenter& tiny = pieces_[waiting_].segmenter;
    for (std::size_t i = 0; i < count; ++i) {
      const ConstBytes segment = ConstBytes(tiny.cut_in_place(i)).subspan(outside);
      seal(sender_.reserve(*to, segment.size() + overhead), key, kind_for(peer), *to, *first + i,
           segment, i, tiny.claim());
    }
  }
  if (to != nullptr && to->relayed != 0) WorkerCounters::add(share_.counters.relayed, count);
  count_sent(peer, count, packet.size() - kVnetHeaderSize);
}

/// A packet with segments that are too long for the path, whose frames have `limit` bytes at most.
void Outbound::send_unicast_cut(Peer& peer, SendKey& key, Bytes packet, std::size_t limit) {
  if (waiting_ != 0) make_room();  // Frames are sealed as they are reserved here.
  Segmenter& segmenter = pieces_[waiting_].segmenter;
  const bool inside = ethernet_ && carries_addresses(peer, packet.subspan(kVnetHeaderSize));
  const std::size_t outside = outside_of(peer, inside);
  const std::size_t room = limit - kFrameOverhead;
  const Endpoint* const known = peer.endpoint.load(std::memory_order_acquire);
  // The sender keeps what it is told for minutes. While a direct path is still looked for, a relay
  // is no reason to tell it anything that can be done without.
  const bool may_change = known != nullptr && known->relayed != 0 &&
                          !peer.relay_settled.load(std::memory_order_relaxed);
  // A bridge has one MTU on all its sides, and its machines expect to be told nothing by it.
  const bool quiet = may_change || learned_ != nullptr;
  if (!quiet || parts_for(segmenter.largest() - outside, room) > kMaxParts) {
    tell_too_big(packet.subspan(kVnetHeaderSize), segmenter.largest(), room + outside);
  }
  const auto frames = count_frames(segmenter, outside, room);
  if (!frames) return;
  const auto first = take_numbers(key, *frames, bytes_of(segmenter), peer.number);
  if (!first) return;
  std::uint64_t counter = *first;
  for (std::size_t i = 0; i < segmenter.count(); ++i) {
    const ConstBytes segment = segmenter.cut_in_place(i);
    const Endpoint to = ethernet_ && !inside ? ethernet_endpoint(segment) : *known;
    for_each_part(segment.subspan(outside), room, [&](ConstBytes bytes, Part part) {
      const std::size_t size = bytes.size() + frame_overhead(&to);
      const Bytes out = sender_.reserve(to, ethernet_ ? std::max(size, kMinEthernetFrame) : size);
      seal(out, key, {kind_for(peer), inside}, to, counter++, bytes, i, segmenter.claim(), part);
      count_part(part);
    });
  }
  if (known != nullptr && known->relayed != 0) {
    WorkerCounters::add(share_.counters.relayed, *frames);
  }
  count_sent(peer, *frames, packet.size() - kVnetHeaderSize);
}

/// The longest packet that is sent to a net: what the interface below takes, or less for a while
/// after a router has said so.
std::size_t Outbound::path_mtu(const Net& net) const {
  const std::uint32_t ours = share_.tables.settings().underlay_mtu;
  return net.limit.of(wire_limit_.of(ours, now_.ms), now_.ms);
}

/// Level `ip`: each segment becomes a packet with an outer IP header, in a frame with the addresses
/// that it has, so that it goes to the router that it was sent to.
void Outbound::send_over_ip(Net& net, Peer& peer, SendKey& key, Bytes packet) {
  const ConstBytes frame = packet.subspan(kVnetHeaderSize);
  const ConstBytes whole = frame.subspan(kEthernetHeaderSize);
  if (is_source_routed(whole)) return share_.drops.count(DropReason::net_source_route);
  const std::size_t outer_size = outer_ip_size((whole.front() >> 4) == 6);
  const std::size_t before = kEthernetHeaderSize + outer_size;
  const std::size_t mtu = path_mtu(net);
  if (mtu <= outer_size + kFrameOverhead) return share_.drops.count(DropReason::oversize);
  const std::size_t room = mtu - outer_size - kFrameOverhead;
  fit_segments(packet, room + kEthernetHeaderSize);
  Segmenter& segmenter = pieces_[waiting_].segmenter;
  if (!begin(segmenter, packet)) return;
  if (segmenter.largest() - kEthernetHeaderSize > room) [[unlikely]] {
    // No path is said to be shorter than what IPv6 wants of each; what is longer goes in parts.
    tell_too_big(frame, segmenter.largest(),
                 std::max<std::size_t>(room, kLeastMtu) + kEthernetHeaderSize);
  }
  const auto frames = count_frames(segmenter, kEthernetHeaderSize, room);
  if (!frames) return;
  const auto first = take_numbers(key, *frames, bytes_of(segmenter), peer.number);
  if (!first) return;
  share_.tables.sent().note(key.index, key.kid, *first, *frames, whole);
  std::uint64_t counter = *first;
  for (std::size_t i = 0; i < segmenter.count(); ++i) {
    const ConstBytes segment = segmenter.cut_in_place(i);
    const ConstBytes inner = segment.subspan(kEthernetHeaderSize);
    for_each_part(inner, room, [&](ConstBytes bytes, Part part) {
      const std::size_t sealed = bytes.size() + kFrameOverhead;
      const Bytes out = sender_.reserve_frame(before + sealed);
      std::ranges::copy(segment.first(kEthernetHeaderSize), out.begin());
      const Bytes outer = out.subspan(kEthernetHeaderSize, outer_size);
      write_outer_ip(inner, sealed, share_.tables.seed(), outer);
      seal(out.subspan(before), key, {Kind::kNet, false, ip_addresses(outer)}, {}, counter++, bytes,
           i, segmenter.claim(), part);
      count_part(part);
    });
    if (sender_.pending() >= kFlushBytes) sender_.flush();
  }
  count_sent(peer, *frames, frame.size());
}

/// Tells the sender of an IP packet how long it may be, so that the next ones need not be cut.
/// `room` is for a whole frame.
void Outbound::tell_too_big(ConstBytes frame, std::size_t segment_size, std::size_t room) {
  const auto ethernet = parse_ethernet(frame);
  if (!ethernet) return;
  std::array<std::uint8_t, kVnetHeaderSize + kMaxTooBig> answer{};
  const std::size_t size =
      write_too_big(frame, segment_size - ethernet->size, room - ethernet->size,
                    Bytes(answer).subspan(kVnetHeaderSize));
  if (size == 0) return;
  // Source address of the packet, which is the destination of the answer.
  const bool v4 = ethernet->ethertype == ethertype::kIpv4;
  std::uint64_t hash = 0;
  for (const std::uint8_t byte : frame.subspan(
           ethernet->size + (v4 ? offset::kIpv4Source : offset::kIpv6Source), v4 ? 4 : 16)) {
    hash = (hash ^ byte) * 0x9e3779b97f4a7c15U;
  }
  static_assert(kAnswerBudgets == 256);
  if (!answer_budgets_[hash >> 56].take(now_.us)) return;
  if (!tap_write(tap_, ConstBytes(answer).first(kVnetHeaderSize + size))) {
    return share_.drops.count(DropReason::tap_write_failed);
  }
  WorkerCounters::add(share_.counters.told_too_big, 1);
}

void Outbound::count_sent(Peer& peer, std::size_t frames, std::size_t bytes) {
  peer.tx_frames.fetch_add(frames, std::memory_order_relaxed);
  peer.tx_bytes.fetch_add(bytes, std::memory_order_relaxed);
  peer.tx_ms.store(now_.ms, std::memory_order_relaxed);
  WorkerCounters::add(share_.counters.frames, frames);
  WorkerCounters::add(share_.counters.bytes, bytes);
}

/// The bytes of a packet from the TAP must outlive the next read: their buffer goes with the piece,
/// wherever it was read to. Held packets lie elsewhere and are sealed at once.
void Outbound::keep_packet(Piece& piece, ConstBytes packet) {
  for (Piece& other : pieces_) {
    if (other.packet.get() == packet.data()) return std::swap(piece.packet, other.packet);
  }
}

/// Sends everything that waits. The packet at hand, which does not yet, is then the first piece.
void Outbound::make_room() {
  const std::size_t at_hand = waiting_;
  flush();
  if (at_hand != 0) std::swap(pieces_[0], pieces_[at_hand]);
}

void Outbound::seal_piece(Piece& piece) const {
  Bytes out = piece.out;
  for (std::size_t i = 0; i < piece.segmenter.count(); ++i) {
    const ConstBytes segment = ConstBytes(piece.segmenter.cut_in_place(i)).subspan(piece.outside);
    const std::size_t size = segment.size() + frame_overhead(piece.to);
    seal(out.first(size), *piece.key, piece.kind, *piece.to, piece.first + i, segment, i,
         piece.segmenter.claim());
    out = out.subspan(size);
  }
}

/// After it, packets and places may be used again.
void Outbound::seal_pieces() {
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < waiting_; ++i) bytes += pieces_[i].out.size();
  auto work = [this](std::size_t i) { seal_piece(pieces_[i]); };
  if (bytes >= kWorthSharing) {
    crew_.run(waiting_, work);
  } else {
    for (std::size_t i = 0; i < waiting_; ++i) work(i);
  }
  waiting_ = 0;
}

void Outbound::flush() {
  seal_pieces();
  sender_.flush();
}

/// The interface below was given a smaller MTU: the path is looked at, before the next frames come.
void Outbound::tell_too_long() {
  const auto to = sender_.take_too_long();
  // Nobody says how short it is now. What every path takes, it takes, too.
  if (to && wire_) return wire_limit_.shorten(kLeastMtu + kMostOnWire, now_.ms, kPathMtuMs);
  if (!to || now_.us < next_too_long_us_) return;
  next_too_long_us_ = now_.us + kTooLongStepUs;
  WorkerEvent event;
  event.kind = WorkerEvent::Kind::kTooLong;
  event.from = *to;
  put(event);
}

/// Bytes at the front of a segment that are not sealed: an Ethernet has most addresses outside, and
/// between subnets only the IP packet travels.
std::size_t Outbound::outside_of(const Peer& peer, bool inside) const {
  if (peer.net != nullptr) return kEthernetHeaderSize;
  return ethernet_ && !inside ? 2 * MacAddress::kSize : 0;
}

/// Whether a frame from or to a machine behind a plain port is at hand. On an Ethernet its own
/// addresses are no outer ones: the switches below would learn them where a member is.
bool Outbound::carries_addresses(const Peer& peer, ConstBytes frame) const {
  return !peer.owns(MacAddress(frame.first<MacAddress::kSize>())) ||
         !share_.tables.settings().owns(
             MacAddress(frame.subspan<MacAddress::kSize, MacAddress::kSize>()));
}

/// The addresses of the frame itself become the outer ones, and are not sealed once more; or those
/// of `inside` do, if it is given.
void Outbound::send_unicast_ethernet(SendKey& key, Segmenter& segmenter, std::uint64_t first,
                                     const Endpoint* inside) {
  if (inside != nullptr) {
    for (std::size_t i = 0; i < segmenter.count(); ++i) {
      const ConstBytes segment = segmenter.cut_in_place(i);
      seal(sender_.reserve(*inside, segment.size() + kFrameOverhead), key, {Kind::kPair, true},
           *inside, first + i, segment, i, segmenter.claim());
    }
    return;
  }
  for (std::size_t i = 0; i < segmenter.count(); ++i) {
    const ConstBytes segment = segmenter.cut_in_place(i);
    const Endpoint to = ethernet_endpoint(segment);
    const ConstBytes payload = segment.subspan(2 * MacAddress::kSize);
    const std::size_t size = std::max(payload.size() + kFrameOverhead, kMinEthernetFrame);
    seal(sender_.reserve(to, size), key, Kind::kPair, to, first + i, payload, i, segmenter.claim());
  }
}

/// The longest frame that every member online can get. On a LAN it is the same for all; elsewhere
/// a path counts for as much as was proved, because there may be members that we share no pair key
/// with, and nobody would find out that they get nothing.
std::size_t Outbound::group_limit(const Segmenter& segmenter) const {
  std::uint32_t limit = kNoFrameLimit;
  if (segmenter.largest() + kFrameOverhead <= kSafeFrame) return limit;
  share_.tables.for_each_online([&](const Peer& peer) {
    const auto& of_peer = ethernet_ ? peer.max_frame : peer.proved_frame;
    limit = std::min(limit, of_peer.load(std::memory_order_relaxed));
  });
  return limit;
}

/// Sealed once, sent to every member that is online.
void Outbound::send_group(SendKey& key, Bytes packet) {
  Segmenter& segmenter = pieces_[waiting_].segmenter;
  if (!begin(segmenter, packet)) return;
  const std::size_t room = group_limit(segmenter) - kFrameOverhead;
  const auto count = count_frames(segmenter, 0, room);
  if (!count) return;
  const auto first = take_numbers(key, *count, bytes_of(segmenter), 0);
  if (!first) return;
  seal_pieces();  // What came before leaves before.
  WorkerCounters::add(share_.counters.frames, *count);
  WorkerCounters::add(share_.counters.bytes, packet.size() - kVnetHeaderSize);
  if (ethernet_) return send_group_ethernet(key, segmenter, *first, room);
  std::size_t used = 0;
  std::size_t frame_size = 0;
  std::size_t frames = 0;
  bool closed = false;  // A shorter frame can only be the last of a train.
  const auto send_train = [&] {
    const ConstBytes train(group_.get(), used);
    share_.tables.for_each_online([&](Peer& peer) {
      const Endpoint* const to = peer.endpoint.load(std::memory_order_acquire);
      if (to == nullptr) return;
      if (to->relayed != 0) return relay_train(*to, train, frame_size);
      sender_.push(*to, train, frame_size, frames);
    });
    sender_.flush();  // The buffer is used again.
    used = frames = 0;
    closed = false;
  };
  std::uint64_t counter = *first;
  for (std::size_t i = 0; i < segmenter.count(); ++i) {
    for_each_part(segmenter.cut_in_place(i), room, [&](ConstBytes bytes, Part part) {
      const std::size_t size = bytes.size() + kFrameOverhead;
      if (frames != 0 && (closed || size > frame_size || frames == kMaxTrainFrames ||
                          used + size > kMaxTrainBytes)) {
        send_train();
      }
      if (frames == 0) frame_size = size;
      closed = size < frame_size;
      seal(Bytes(group_.get() + used, size), key, Kind::kGroup, {}, counter++, bytes, i,
           segmenter.claim(), part);
      used += size;
      ++frames;
      count_part(part);
    });
  }
  send_train();
}

/// `group.mode: pairwise`: a copy for each member that is online, under the key that it shares with
/// us alone. Who has no key with us gets none, and is asked for.
void Outbound::send_pairwise(Bytes packet) {
  if (waiting_ != 0) make_room();  // Frames are sealed as they are reserved here.
  Segmenter& segmenter = pieces_[waiting_].segmenter;
  if (!begin(segmenter, packet)) return;
  for (std::size_t i = 0; i < segmenter.count(); ++i) {
    const ConstBytes segment = segmenter.cut_in_place(i);
    share_.tables.for_each_online([&](Peer& peer) {
      if ((peer.rights.load(std::memory_order_relaxed) & kNoGroup) == 0) {
        send_copy(peer, segment, i, segmenter.claim());
      }
    });
  }
}

/// `segment` of a group frame, which is number `place` of its packet, to one member.
void Outbound::send_copy(Peer& peer, ConstBytes segment, std::size_t place, ChecksumClaim claim) {
  SendKey* const key = peer.send.load(std::memory_order_acquire);
  if (key == nullptr) {
    const MacList* const macs = peer.macs.load(std::memory_order_acquire);
    if (macs != nullptr && !macs->empty()) ask_once({0, macs->front()});
    return share_.drops.count(DropReason::no_key);
  }
  const Endpoint* const to = peer.endpoint.load(std::memory_order_acquire);
  if (to == nullptr) return share_.drops.count(DropReason::no_endpoint);
  if (to->relayed != 0 && !relay_usable()) return share_.drops.count(DropReason::no_relay);
  std::size_t limit = peer.max_frame.load(std::memory_order_relaxed);
  if (to->relayed != 0) limit = std::min(limit, kMaxRelayedFrame);
  const std::size_t room = limit - kFrameOverhead;
  const std::size_t parts = parts_for(segment.size(), room);
  if (parts > kMaxParts) return share_.drops.count(DropReason::oversize);
  const auto first = take_numbers(*key, parts, segment.size(), peer.number);
  if (!first) return;
  std::uint64_t counter = *first;
  for_each_part(segment, room, [&](ConstBytes bytes, Part part) {
    const std::size_t size = bytes.size() + frame_overhead(to);
    const Bytes out = sender_.reserve(*to, ethernet_ ? std::max(size, kMinEthernetFrame) : size);
    seal(out, *key, {kind_for(peer), true}, *to, counter++, bytes, place, claim, part);
    count_part(part);
  });
  if (to->relayed != 0) WorkerCounters::add(share_.counters.relayed, parts);
  count_sent(peer, parts, segment.size());
}

/// A copy of sealed group frames, each behind a header of its own.
void Outbound::relay_train(const Endpoint& to, ConstBytes train, std::size_t frame_size) {
  const RelayUse* const relay = share_.tables.relay();
  if (!relay_usable()) return share_.drops.count(DropReason::no_relay);
  for (std::size_t at = 0; at < train.size(); at += frame_size) {
    const ConstBytes frame = train.subspan(at, std::min(frame_size, train.size() - at));
    const Bytes room = sender_.reserve(to, kRelayHeaderSize + frame.size());
    write_relay_header({RelayType::kForward, to.relayed, relay->token},
                       room.first<kRelayHeaderSize>());
    std::ranges::copy(frame, room.begin() + kRelayHeaderSize);
    WorkerCounters::add(share_.counters.relayed, 1);
  }
}

/// Whether the relay takes frames from us.
bool Outbound::relay_usable() const {
  const RelayUse* const relay = share_.tables.relay();
  return relay != nullptr && relay->token != 0;
}

/// Once, as broadcast: a switch that looks for memberships can't see them inside, and would not
/// pass on a frame to the group's own address (threats.md M15).
void Outbound::send_group_ethernet(SendKey& key, Segmenter& segmenter, std::uint64_t first,
                                   std::size_t room) {
  for (std::size_t i = 0; i < segmenter.count(); ++i) {
    const ConstBytes segment = segmenter.cut_in_place(i);
    const MacAddress source(segment.subspan<MacAddress::kSize, MacAddress::kSize>());
    const PortSettings& settings = share_.tables.settings();
    // Of a machine behind us the switches below need not know.
    const bool ours = settings.owns(source) || settings.macs.empty();
    const Endpoint to =
        Endpoint::of_ethernet(MacAddress::broadcast(), ours ? source : settings.macs.front());
    for_each_part(segment, room, [&](ConstBytes bytes, Part part) {
      seal(sender_.reserve(to, bytes.size() + kFrameOverhead), key, Kind::kGroup, to, first++,
           bytes, i, segmenter.claim(), part);
      count_part(part);
    });
  }
}

void Outbound::count_part(Part part) {
  if (!part.fragment) return;
  WorkerCounters::add(share_.counters.parts, 1);
  if (part.last) WorkerCounters::add(share_.counters.cut, 1);
}

void Outbound::put(const WorkerEvent& event) {
  share_.events.put(event);
  told_ = true;
}

}  // namespace pairwire
