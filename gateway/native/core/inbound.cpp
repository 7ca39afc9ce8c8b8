// The way of a frame from the underlay to the TAP. All steps are (sequential) in one worker;
// several workers could share the tables, because a replay window takes care of itself.
//
//  1. batch          one recvmmsg; each message is a train of frames that UDP_GRO joined
//  2. receive        shim, sender, key, lease: docs/protocol.md section 4, steps 1 to 5
//  3. hold           no key: the frame waits, and the control plane is told, within budgets
//  4. receive_inner  a place behind the previous frame of the super-frame (l2/merge)
//  5. open           replay window, tag, replay window again: steps 6 to 8
//  6. check_*        description, time, addresses, the address guard: steps 9 to 12
//  7. commit         the frame is part of the super-frame, or starts the next one
//  8. write_out      one write to the TAP for each super-frame, with a vnet header that is made
//  from
//                    nothing but our own parse (threats.md C7)
//
// Path frames leave at step 4: receive_path. So do parts of frames that were too long for their
// path: receive_part; the frame comes back at step 6 when all of them are here.
//
// The functions in this file stand in the order in which a frame meets them. Nothing here
// allocates, locks (but for the window's few nanoseconds) or makes a system call for a frame.
#include "core/inbound.hpp"

#include <algorithm>
#include <compare>
#include <cstring>

#include "core/associated-data.hpp"
#include "core/relay-client.hpp"
#include "core/wire-port.hpp"
#include "io/tap.hpp"
#include "io/wait.hpp"
#include "l2/group-guard.hpp"
#include "l2/headers.hpp"
#include "l2/offload.hpp"

namespace pairwire {
namespace {

/// What strangers can make wait. docs/protocol.md wants no more; threats.md C10.
/// Of one key as many as a sender may hold and then release at once: its key comes to it in an
/// answer and to us in a push, and neither waits for the other.
constexpr std::size_t kHeldPerKey = 64;
constexpr std::size_t kHeldFrames = 256;
constexpr std::size_t kHeldBytes = std::size_t{1} << 20;

/// Frames of one train that a crew opens; a longer one has tiny frames, which are not worth it.
constexpr std::size_t kEarlyFrames = 128;
/// Less than this in a batch is opened before a helper has noticed.
constexpr std::size_t kWorthSharing = 8'192;

constexpr std::size_t kMaxDatagram = 65'536;  // Longer than any that UDP carries.

/// Events about unknown frames that one /32 or /64 may cause.
constexpr std::uint32_t kAsksPerSource = 20;
constexpr std::size_t kSourceBudgets = 256;

/// Path answers that members with one number modulo kAnswerBudgets may have passed on: far more
/// than are due to 9 probes a second, for some members that share a budget.
constexpr std::uint32_t kAnswersPerSecond = 64;
constexpr std::size_t kAnswerBudgets = 1024;

/// The shortest path that a router is believed: RFC 791 wants 68, and nobody has fewer than these.
/// What is sealed goes in up to 3 parts then.
constexpr std::uint32_t kLeastPathMtu = 576;
/// Complaints of routers that are looked into, and told, in a second.
constexpr std::uint32_t kComplaints = 1'000;
constexpr std::uint32_t kToldComplaints = 100;

/// A peer that sends from elsewhere is told of so often.
constexpr std::uint64_t kElsewhereMs = 1000;
/// One that sends under another generation than we do, so often.
constexpr std::uint64_t kOtherKeyMs = 50;

/// A frame that waits is counted as dropped when it is, and then under the reason it waits for.
constexpr std::size_t kReasonInNote = 18;
constexpr std::size_t kEthernetInNote = 19;
constexpr std::size_t kRelayedInNote = 20;

/// Waiting frames are found by what they wait for: index, kid and kind. Path frames are sealed with
/// the key that frames of members have, or of link ports at one.
std::uint64_t hold_key(const Shim& shim, bool link) {
  const Kind kind = shim.kind != Kind::kPath ? shim.kind : link ? Kind::kNet : Kind::kPair;
  return (std::uint64_t{static_cast<std::uint8_t>(kind)} << 48) | (std::uint64_t{shim.kid} << 32) |
         shim.index;
}

void write_note(HoldQueue::Note& note, const Endpoint& from, DropReason reason) {
  std::copy(from.ip.begin(), from.ip.end(), note.begin());
  store_be<std::uint16_t>(std::span(note).subspan<16, 2>(), from.port);
  note[kReasonInNote] = static_cast<std::uint8_t>(reason);
  note[kEthernetInNote] = from.ethernet ? 1 : 0;
  store_be<std::uint32_t>(std::span(note).subspan<kRelayedInNote, 4>(), from.relayed);
}
Endpoint read_note(const HoldQueue::Note& note) {
  Endpoint from;
  std::copy_n(note.begin(), from.ip.size(), from.ip.begin());
  from.port = load_be<std::uint16_t>(std::span(note).subspan<16, 2>());
  from.ethernet = note[kEthernetInNote] != 0;
  from.relayed = load_be<std::uint32_t>(std::span(note).subspan<kRelayedInNote, 4>());
  return from;
}

/// Kinds that have frames of one sender for one receiver.
bool is_unicast(Kind kind) {
  return kind == Kind::kPair || kind == Kind::kNet;
}
bool fits(const Peer& peer, Kind kind) {
  return kind == Kind::kPath || (kind == Kind::kNet) == (peer.net != nullptr);
}

/// An Ethernet carries the two addresses of most frames outside the seal; between subnets there is
/// no Ethernet header at all.
std::size_t outside_bytes(const Shim& shim, const Endpoint& from) {
  if (shim.kind == Kind::kNet) return kEthernetHeaderSize;
  return from.ethernet && has_outer_addresses(shim) ? 2 * MacAddress::kSize : 0;
}
/// As they stand at the front of the inner frame.
void write_addresses(const Endpoint& from, Bytes out) {
  std::ranges::copy(from.near_mac().bytes(), out.begin());
  std::ranges::copy(from.far_mac().bytes(), out.begin() + MacAddress::kSize);
}

}  // namespace

Inbound::Inbound(WorkerShare& share, int tap, const Underlay& underlay, MergeOptions options,
                 Crew& crew)
    : share_(share),
      tap_(tap),
      underlay_(underlay),
      receiver_(underlay),
      merge_buffer_(new std::uint8_t[Merger::kBufferSize]),
      merger_(Bytes(merge_buffer_.get(), Merger::kBufferSize), options),
      crew_(crew),
      // On an Ethernet each frame comes by itself: nothing to share.
      early_(crew.empty() || underlay.is_packet() ? 0 : UdpReceiver::kMessages * kEarlyFrames),
      look_budget_(kComplaints, kComplaints),
      complaint_budget_(kToldComplaints, kToldComplaints),
      clear_budget_(kClearFrames, kClearFrames),
      parts_(share.drops),
      held_({kHeldFrames, kHeldFrames, kHeldBytes, true}, boot_us(),
            [this](const HoldQueue::Note& note) {
              share_.drops.count(static_cast<DropReason>(note[kReasonInNote]));
            }),
      source_budgets_(kSourceBudgets, TokenBucket(kAsksPerSource, kAsksPerSource)),
      answer_budgets_(kAnswerBudgets, TokenBucket(kAnswersPerSecond, kAnswersPerSecond)),
      seed_(boot_us() * 0x9e3779b97f4a7c15U),
      released_(new std::uint8_t[kMaxDatagram]),
      padded_(new std::uint8_t[kVnetHeaderSize + kMaxDatagram]) {
  ready_.reserve(kHeldFrames);
}

void Inbound::end() {
  held_.clear();  // Counts what still waited.
  parts_.clear();
}

// --- 1. Receive ---------------------------------------------------------------------------------

bool Inbound::batch() {
  take_time();
  if (!held_.empty()) look_at_held();
  if (!parts_.empty()) parts_.expire(now_.us);
  bool failed = false;
  const auto trains = receiver_.receive(failed);
  const bool early = !early_.empty() && trains.size() > 1;
  if (early) open_early(trains);
  for (std::size_t i = 0; i < trains.size(); ++i) {
    const UdpReceiver::Train& train = trains[i];
    std::size_t number = 0;
    for (std::size_t at = 0; at < train.bytes.size(); at += train.frame_size, ++number) {
      const std::size_t size = std::min(train.frame_size, train.bytes.size() - at);
      early_at_ = early && number < kEarlyFrames ? &early_[i * kEarlyFrames + number] : nullptr;
      const Bytes bytes = train.bytes.subspan(at, size);
      underlay_.is_wire() ? receive_wire(bytes, false) : receive(train.from, bytes, false);
    }
  }
  early_at_ = nullptr;
  write_out();
  share_.holding.store(!held_.empty() || !parts_.empty(), std::memory_order_seq_cst);
  if (!trains.empty()) {
    WorkerCounters::add(share_.counters.batches, 1);
    lone_ = trains.size() == 1 && trains.front().bytes.size() <= kShortPacket;
  }
  if (std::exchange(told_, false)) wake_up(share_.control_wake);
  return !trains.empty();
}

void Inbound::take_time() {
  now_.us = boot_us();
  now_.ms = now_.us / 1000;
  const std::uint64_t server = share_.clock.server_ms(now_.ms);
  const std::uint32_t freshness = share_.tables.settings().freshness_ms;
  now_.time = frame_time(server);
  now_.check_time = freshness != 0;
  now_.tolerance = share_.clock.tolerance(freshness, now_.ms);
  now_.lease = share_.tables.lease_good(server);
}

// --- With a crew ---------------------------------------------------------------------------------

/// Opens the frames of a batch where they lie, train by train, by all who help. What it finds is
/// kept in `early_` and counts when the frame's turn comes: order, windows and every check stay
/// with the worker.
void Inbound::open_early(std::span<const UdpReceiver::Train> trains) {
  std::size_t bytes = 0;
  for (const UdpReceiver::Train& train : trains) bytes += train.bytes.size();
  std::fill_n(early_.begin(), trains.size() * kEarlyFrames, Early{});
  if (bytes < kWorthSharing) return;
  auto work = [&](std::size_t i) {
    open_train_early(trains[i], std::span(early_).subspan(i * kEarlyFrames, kEarlyFrames));
  };
  crew_.run(trains.size(), work);
}

/// Called by several threads, each with a train of its own; reads tables only.
void Inbound::open_train_early(const UdpReceiver::Train& train, std::span<Early> early) {
  std::size_t number = 0;
  for (std::size_t at = 0; at < train.bytes.size() && number < early.size();
       at += train.frame_size, ++number) {
    const Bytes frame =
        train.bytes.subspan(at, std::min(train.frame_size, train.bytes.size() - at));
    const auto shim = parse_shim(frame, underlay_.transport);
    if (!shim || !is_unicast(shim->kind) || !now_.lease) continue;
    const Incarnation* const sender = share_.tables.sender(shim->index);
    if (sender == nullptr || sender->peer == nullptr || !fits(*sender->peer, shim->kind)) continue;
    // Opening destroys what lies there, so only if there is no doubt about the key.
    const ReceiveKey* only = nullptr;
    std::size_t fitting = 0;
    for (const auto& place : sender->pair_keys) {
      const ReceiveKey* const key = place.load(std::memory_order_acquire);
      if (key == nullptr || key->kid != shim->kid) continue;
      only = key;
      ++fitting;
    }
    // A copy of an old frame must not cost more here than in its turn.
    if (fitting != 1 || !only->window->would_accept(shim->counter)) continue;
    Early& result = early[number];
    const Bytes cipher = frame.subspan(kShimSize, frame.size() - kShimSize - kFrameTagSize);
    result.key = only;
    const AssociatedData aad(frame.first<kShimSize>(), train.from, Way::kReceiving);
    result.authentic =
        only->aead->open_parts(shim->counter, aad.bytes(), cipher, frame.last<kFrameTagSize>(),
                               result.head, cipher.subspan(kInnerHeaderSize));
  }
}

// --- 2. Steps 1 to 5 ----------------------------------------------------------------------------

/// Level `ip`: a frame from the router. `held`: it has waited already.
void Inbound::receive_wire(Bytes frame, bool held) {
  const auto ethernet = parse_ethernet(frame);
  if (!ethernet) return share_.drops.count(DropReason::malformed);
  const bool ip = ethernet->vlan_count == 0 && (ethernet->ethertype == ethertype::kIpv4 ||
                                                ethernet->ethertype == ethertype::kIpv6);
  if (ip && !ethernet->destination.is_group()) {
    const Bytes packet = frame.subspan(kEthernetHeaderSize);
    if (const auto outer = parse_outer_ip(packet)) {
      if (outer->v6 != (ethernet->ethertype == ethertype::kIpv6)) {
        return share_.drops.count(DropReason::malformed);
      }
      return receive_over_ip(frame, *outer, held);
    }
    const auto error = parse_icmp_error(packet);
    if (error && error->protocol == kIpProtocol) return receive_complaint(frame, *error);
  }
  if (crosses_in_clear(frame, share_.tables.settings(), share_.tables.routes()))
    return deliver_in_clear(frame);
  share_.drops.count(DropReason::net_clear);
}

/// A sealed packet. What is not between the two subnets is not looked at further.
void Inbound::receive_over_ip(Bytes frame, const OuterIp& outer, bool held) {
  const std::size_t size = outer.addresses.size() / 2;
  const auto source = IpAddress::from(outer.addresses.first(size));
  const auto destination = IpAddress::from(outer.addresses.last(size));
  const NetRoutes& routes = share_.tables.routes();
  const NetRoutes::Route* const from = source ? routes.find(*source) : nullptr;
  if (from == nullptr || from->net == nullptr) return share_.drops.count(DropReason::net_source);
  const NetRoutes::Route* const to = destination ? routes.find(*destination) : nullptr;
  if (to == nullptr || to->net != nullptr) return share_.drops.count(DropReason::net_destination);
  // Where it is from counts for budgets only: it is answered by nobody.
  const auto where = Endpoint::from(source->bytes(), kIpProtocol);
  if (!where) return share_.drops.count(DropReason::net_source);
  wire_frame_ = frame;
  outer_ = outer;
  receive(*where, outer.sealed, held);
  wire_frame_ = {};
  outer_ = {};
}

/// A router on the way could not pass on what we sealed: told to whom the packet inside came from.
/// Only who has seen the packet can quote it; what is quoted and was not sent goes no further.
void Inbound::receive_complaint(ConstBytes frame, const IcmpError& error) {
  const auto refuse = [&] { share_.drops.count(DropReason::net_clear); };
  const std::size_t size = error.addresses.size() / 2;
  const auto far = IpAddress::from(error.addresses.last(size));
  const NetRoutes::Route* const to = far ? share_.tables.routes().find(*far) : nullptr;
  const ConstBytes packet = frame.subspan(kEthernetHeaderSize);
  // An error is for the source of what it quotes.
  if (to == nullptr || to->net == nullptr ||
      !std::ranges::equal(ip_addresses(packet).last(size), error.addresses.first(size))) {
    return refuse();
  }
  // Looking keeps the other direction waiting, so strangers may not have it done as often as they
  // like.
  if (!look_budget_.take(now_.us)) return refuse();
  const auto start = share_.tables.sent().find(error.addresses, error.payload);
  if (!start || !complaint_budget_.take(now_.us)) return refuse();
  IcmpError told = error;
  if (error.mtu) {
    const std::uint32_t overhead =
        static_cast<std::uint32_t>(outer_ip_size(error.v6)) + kFrameOverhead;
    const std::uint32_t least = error.v6 ? kLeastMtu : kLeastPathMtu;
    // RFC 1191, section 5: a router of before does not say how long it may be.
    const std::uint32_t mtu = std::max(*error.mtu == 0 ? kLeastMtu + overhead : *error.mtu, least);
    to->net->limit.shorten(std::min<std::uint32_t>(mtu, kMaxIpLength), now_.ms, kPathMtuMs);
    told.mtu = std::max(mtu - overhead, kLeastMtu);
  }
  std::array<std::uint8_t,
             kVnetHeaderSize + kEthernetHeaderSize + max_icmp_error(SentPackets::kStart)>
      out{};
  const Bytes answer = Bytes(out).subspan(kVnetHeaderSize);
  std::ranges::copy(frame.first(kEthernetHeaderSize), answer.begin());
  const std::size_t length =
      write_icmp_error(told, packet, start->view(), answer.subspan(kEthernetHeaderSize));
  write_out();
  if (!tap_write(tap_, ConstBytes(out).first(kVnetHeaderSize + kEthernetHeaderSize + length))) {
    return share_.drops.count(DropReason::tap_write_failed);
  }
  if (error.mtu) WorkerCounters::add(share_.counters.told_too_big, 1);
}

/// Neighbour discovery and what else may pass unsealed. Its checksums are complete: it came over an
/// Ethernet.
void Inbound::deliver_in_clear(ConstBytes frame) {
  if (frame.size() > kMaxDatagram) return share_.drops.count(DropReason::malformed);
  if (!clear_budget_.take(now_.us)) return share_.drops.count(DropReason::storm);
  std::fill_n(padded_.get(), kVnetHeaderSize, std::uint8_t{0});
  std::ranges::copy(frame, padded_.get() + kVnetHeaderSize);
  write_out();
  if (!tap_write(tap_, ConstBytes(padded_.get(), kVnetHeaderSize + frame.size()))) {
    share_.drops.count(DropReason::tap_write_failed);
  }
}

/// One sealed frame. `held`: it has waited already.
void Inbound::receive(const Endpoint& from, ConstBytes datagram, bool held) {
  if (is_relay_frame(datagram) && !underlay_.is_packet()) [[unlikely]] {
    return receive_relay(from, datagram);
  }
  const auto shim = parse_shim(datagram, underlay_.transport);
  // Step 1. Nothing but packets goes over a wire: there is no path to look for.
  if (!shim || (underlay_.is_wire() && shim->kind != Kind::kNet)) {
    return share_.drops.count(DropReason::malformed);
  }
  if (underlay_.is_ethernet() && shim->subnet_tag() != share_.tables.settings().subnet_tag) {
    return share_.drops.count(DropReason::foreign_subnet);  // Step 2.
  }

  const Incarnation* const sender = share_.tables.sender(shim->index);  // Step 3.
  if (sender == nullptr) {
    if (held) return share_.drops.count(DropReason::unknown_index);
    return hold(*shim, from, datagram, DropReason::unknown_index);
  }
  if (sender->peer == nullptr) return share_.drops.count(DropReason::reflected);

  if (!find_keys(*shim, *sender)) {  // Step 4.
    if (sender->is_stale(shim->kid)) return share_.drops.count(DropReason::stale_kid);
    if (held) return share_.drops.count(DropReason::unknown_kid);
    return hold(*shim, from, datagram, DropReason::unknown_kid);
  }
  if (!now_.lease) return share_.drops.count(DropReason::lease_over);  // Step 5.

  if (shim->kind == Kind::kPath) return receive_path(*shim, *sender, from, datagram);
  receive_inner(*shim, *sender, from, datagram);
}

/// What begins with a relay's header: the sealed frame in it goes its way as any other, with the
/// way back noted in `from`. The rest is the control thread's.
void Inbound::receive_relay(const Endpoint& from, ConstBytes datagram) {
  const RelayUse* const relay = share_.tables.relay();
  if (relay == nullptr || relay->address != from) {
    return share_.drops.count(DropReason::not_our_relay);
  }
  const auto header = parse_relay_header(datagram);
  if (!header || header->type == RelayType::kHello) {
    return share_.drops.count(DropReason::malformed);
  }
  if (header->type == RelayType::kForward) {
    early_at_ = nullptr;  // Nobody looks into these early.
    WorkerCounters::add(share_.counters.relayed, 1);
    Endpoint by_relay = from;
    by_relay.relayed = header->index;
    return receive(by_relay, datagram.subspan(kRelayHeaderSize), false);
  }
  // Who forges the relay's address must not be able to fill the ring.
  if (!relay_budget_.take(now_.us)) return WorkerCounters::add(share_.counters.relay_over, 1);
  WorkerEvent event;
  event.kind = WorkerEvent::Kind::kRelay;
  event.time_us = boot_us();
  std::ranges::copy(datagram, event.relay.begin());  // At most as long: the parser has seen to it.
  put(event);
}

/// Collects the sender's keys with the frame's kid in `keys_`; two may have the same by chance.
bool Inbound::find_keys(const Shim& shim, const Incarnation& sender) {
  key_count_ = 0;
  if (shim.kind == Kind::kRelay || !fits(*sender.peer, shim.kind)) return false;
  const auto& places = shim.kind == Kind::kGroup ? sender.group_keys : sender.pair_keys;
  for (const auto& place : places) {
    ReceiveKey* const key = place.load(std::memory_order_acquire);
    if (key != nullptr && key->kid == shim.kid) keys_[key_count_++] = key;
  }
  return key_count_ != 0;
}

// --- 3. Hold ------------------------------------------------------------------------------------

/// Nothing about this frame is known to be true, so it gets little: a place among 256, and a
/// question if its source has not asked too much. Outbound questions have a budget of their own.
/// A frame that is not held is dropped now, for `reason`; one that is, when it goes in vain.
void Inbound::hold(const Shim& shim, const Endpoint& from, ConstBytes datagram, DropReason reason) {
  // Who has a link port has no members as peers, and the other way round: nobody to be asked for.
  const bool link = share_.tables.settings().kind == PortKind::kLink;
  const bool ours = shim.kind == Kind::kPath || (shim.kind == Kind::kNet) == link;
  if (shim.index == 0 || shim.kind == Kind::kRelay || !ours) {
    return share_.drops.count(reason);
  }
  // Opened early, and the key went before its turn: what lies there is no sealed frame any more.
  if (early_at_ != nullptr && early_at_->key != nullptr) return share_.drops.count(reason);
  const std::uint64_t key = hold_key(shim, link);
  TokenBucket& source = source_budgets_[((from.prefix() ^ seed_) * 0xbf58476d1ce4e5b9U) >> 56];
  static_assert(kSourceBudgets == 256);
  // Noted as asked only when it is: else a stranger whose budget is used up could keep the question
  // of an honest sender from ever being asked, by naming the same index and kid.
  const bool ask = !asked_.lately(key, now_.us);
  const bool budget = ask && source.take(now_.us) && ask_budget_.take(now_.us);
  if (ask && !budget) WorkerCounters::add(share_.counters.unasked, 1);
  if (budget) {
    asked_.note(key, now_.us);
    WorkerEvent event;
    event.kind = WorkerEvent::Kind::kMissIndex;
    event.index = shim.index;
    event.kid = shim.kid;
    event.group = shim.kind == Kind::kGroup;
    event.from = from;
    put(event);
  }
  const PortSettings& settings = share_.tables.settings();
  if (settings.hold_frames == 0) return share_.drops.count(reason);
  HoldQueue::Note note{};
  write_note(note, from, reason);
  std::uint64_t evicted = 0;  // The queue itself tells of each.
  // On a wire its outer headers are needed again.
  const ConstBytes kept = underlay_.is_wire() ? ConstBytes(wire_frame_) : datagram;
  if (held_.hold(key, kept, note, std::min<std::size_t>(kHeldPerKey, settings.hold_frames),
                 now_.us + std::uint64_t{settings.hold_ms} * 1000,
                 evicted) == HoldQueue::Result::kFull) {
    return share_.drops.count(reason);
  }
  WorkerCounters::add(share_.counters.held, 1);
}

/// After a change of the tables: frames whose key has come are received once more.
void Inbound::look_at_held() {
  held_.expire(now_.us);  // Counts those that waited in vain.
  const std::uint64_t version = share_.tables.version();
  if (version == version_) return;
  version_ = version;
  ready_.clear();
  held_.collect(ready_, [&](std::uint64_t key) {
    const Incarnation* const sender = share_.tables.sender(static_cast<std::uint32_t>(key));
    if (sender == nullptr) return false;
    if (sender->peer == nullptr) return true;
    Shim shim;
    shim.kind = static_cast<Kind>(key >> 48);
    shim.kid = static_cast<std::uint16_t>(key >> 32);
    return find_keys(shim, *sender);
  });
  for (const std::uint64_t key : ready_) {
    held_.release(key, Bytes(released_.get(), kMaxDatagram),
                  [&](Bytes datagram, const HoldQueue::Note& note) {
                    if (underlay_.is_wire()) return receive_wire(datagram, true);
                    receive(read_note(note), datagram, true);
                  });
  }
}

// --- 4. A place for the payload -----------------------------------------------------------------

void Inbound::receive_inner(const Shim& shim, const Incarnation& sender, const Endpoint& from,
                            ConstBytes datagram) {
  if (shim.fragment()) [[unlikely]]
    return receive_part(shim, sender, from, datagram);
  const std::size_t outside = outside_bytes(shim, from);
  const std::size_t length = datagram.size() - kFrameOverhead + outside;
  const auto place = place_for(length, shim);
  if (!place) return;
  std::array<std::uint8_t, kInnerHeaderSize> head;
  const ReceiveKey* const key = open(shim, from, datagram, head, place->subspan(outside));
  if (key == nullptr) return;
  if (outside != 0) write_outside(shim, from, place->subspan(outside), place->first(outside));
  const auto inner = check_opened(shim, *key, head);
  if (!inner || !take_over(shim, *place)) return;

  const Opened opened{shim, sender, *key, from, *inner};
  if (inner->description.padding != 0) return deliver_padded(opened, *place);
  take_opened(
      opened, *place,
      inner->description.partial_checksum ? ChecksumClaim::kPartial : ChecksumClaim::kComplete);
}

/// Room for a frame in the merger; nothing (counted) if it is too long for any.
std::optional<Bytes> Inbound::place_for(std::size_t length, const Shim& shim) {
  // Frames are joined only if one key opened them and their kind of destination is the same.
  const std::uint64_t origin =
      reinterpret_cast<std::uintptr_t>(keys_[0]) | std::uint64_t{shim.group_destination()};
  auto place = merger_.prepare(length, origin);
  if (!place) {
    write_out();
    place = merger_.prepare(length, origin);
    if (!place) share_.drops.count(DropReason::malformed);
  }
  return place;
}

/// Step 12, and 7 of the list above, for a frame that lies in the merger's place.
void Inbound::take_opened(const Opened& opened, ConstBytes frame, ChecksumClaim claim) {
  if (frame.size() < kEthernetHeaderSize) return share_.drops.count(DropReason::malformed);
  if (!check_addresses(opened, frame)) return;
  const std::size_t length = frame.size();
  const MergeResult result = merger_.commit(claim);
  if (result == MergeResult::kRefused) {
    write_out();
    if (merger_.carry_over() == MergeResult::kMalformed) {
      return share_.drops.count(DropReason::malformed);
    }
  } else if (result == MergeResult::kMalformed) {
    return share_.drops.count(DropReason::malformed);
  }
  compare_generations(*opened.sender.peer, opened.key);
  heard(*opened.sender.peer, opened.from, length);
}

/// A part of a frame that was too long for its path. Each part passes steps 6 to 10 by itself, the
/// frame that they make all that follow.
void Inbound::receive_part(const Shim& shim, const Incarnation& sender, const Endpoint& from,
                           ConstBytes datagram) {
  std::array<std::uint8_t, kInnerHeaderSize> head;
  const Bytes body(padded_.get(), datagram.size() - kFrameOverhead);
  const ReceiveKey* const key = open(shim, from, datagram, head, body);
  if (key == nullptr) return;
  const auto inner = check_opened(shim, *key, head);
  if (!inner) return;
  const Description& description = inner->description;
  const auto size = payload_size(description, body.size());
  if (!size) return share_.drops.count(DropReason::malformed);
  WorkerCounters::add(share_.counters.parts, 1);
  heard(*sender.peer, from, 0);
  std::array<std::uint8_t, kEthernetHeaderSize> outside{};
  const Bytes front = Bytes(outside).first(outside_bytes(shim, from));
  if (!front.empty()) write_outside(shim, from, body, front);
  // The window stands for the key: it belongs to the key's bytes, and stays when the key object
  // goes.
  const auto whole = parts_.add({.sender = sender.peer->number,
                                 .key = key->window,
                                 .counter = shim.counter,
                                 .number = description.part,
                                 .last = description.last_part,
                                 .partial_checksum = description.partial_checksum,
                                 .journey = {outer_.ttl, outer_.congested()},
                                 .front = front,
                                 .payload = body.first(*size)},
                                now_.us);
  if (!whole) return;
  WorkerCounters::add(share_.counters.cut, 1);
  const auto place = place_for(whole->frame.size(), shim);
  if (!place) return;
  std::ranges::copy(whole->frame, place->begin());
  // One packet for many: RFC 3168, section 5.3, as RFC 6040 wants it before the headers are
  // compared.
  outer_.ttl = whole->journey.least_ttl;
  if (whole->journey.congested) outer_.traffic_class |= kCongested;
  if (!take_over(shim, *place)) return;
  take_opened({shim, sender, *key, from, *inner}, *place,
              whole->partial_checksum ? ChecksumClaim::kPartial : ChecksumClaim::kComplete);
}

// --- 5. Steps 6 to 8 ----------------------------------------------------------------------------

/// Opens the frame under one of `keys_`; null (counted) if none fits.
const ReceiveKey* Inbound::open(const Shim& shim, const Endpoint& from, ConstBytes datagram,
                                AeadHead head, Bytes body) {
  const AssociatedData aad(datagram.first<kShimSize>(), from, Way::kReceiving, outer_.addresses);
  const ConstBytes cipher =
      datagram.subspan(kShimSize, datagram.size() - kShimSize - kFrameTagSize);
  DropReason reason = DropReason::replayed;
  for (std::size_t i = 0; i < key_count_; ++i) {
    ReceiveKey& key = *keys_[i];
    if (!key.window->would_accept(shim.counter)) continue;
    const bool early = early_at_ != nullptr && early_at_->key != nullptr;
    // The bytes are no ciphertext any more: who opened them early has the only answer there is.
    if (early && early_at_->key != &key) continue;
    const bool authentic = early ? take_early(cipher, head, body)
                                 : key.aead->open_parts(shim.counter, aad.bytes(), cipher,
                                                        datagram.last<kFrameTagSize>(), head, body);
    if (!authentic) {
      reason = DropReason::not_authentic;
      continue;
    }
    if (key.window->accept(shim.counter)) return &key;
    // Another worker was faster with a copy of it.
    reason = DropReason::replayed;
    break;
  }
  share_.drops.count(reason);
  return nullptr;
}

/// What open_early() found about the frame at hand.
bool Inbound::take_early(ConstBytes opened, AeadHead head, Bytes body) const {
  if (!early_at_->authentic) return false;
  std::copy(early_at_->head.begin(), early_at_->head.end(), head.begin());
  std::copy_n(opened.begin() + kInnerHeaderSize, body.size(), body.begin());
  return true;
}

// --- 6. Steps 9 to 12 ---------------------------------------------------------------------------

/// Description and time. `head` is the opened header.
std::optional<InnerHeader> Inbound::check_opened(const Shim& shim, const ReceiveKey& key,
                                                 AeadConstHead head) {
  const auto inner = parse_inner_header(head);
  const bool parts = inner && (inner->description.part != 0 || inner->description.last_part);
  if (!inner || (parts && !shim.fragment())) {
    share_.drops.count(DropReason::malformed);
    return std::nullopt;
  }
  if (now_.check_time && !is_fresh(inner->time, now_.time, now_.tolerance)) {
    share_.drops.count(DropReason::not_fresh);
    return std::nullopt;
  }
  if (key.group && key.installed_ms != 0) {
    // Reckoned now, not when the key came: by then there may have been no time sample, or a bad
    // one.
    const FrameTime not_before =
        frame_time(share_.clock.server_ms(key.installed_ms)) - kGroupKeySlack;
    if (!std::is_gteq(compare_frame_times(inner->time, not_before))) {
      share_.drops.count(DropReason::before_group_key);
      return std::nullopt;
    }
  }
  return inner;
}

/// What stands in front of an opened payload and was not sealed.
void Inbound::write_outside(const Shim& shim, const Endpoint& from, ConstBytes body,
                            Bytes out) const {
  if (shim.kind != Kind::kNet) return write_addresses(from, out);
  // On a wire it is from the router and for whom that sent it to.
  if (!wire_frame_.empty()) {
    std::ranges::copy(wire_frame_.first(kEthernetHeaderSize), out.begin());
    return;
  }
  // The kernel takes what is for the TAP's own address; who it is from does not matter there.
  const PortSettings& settings = share_.tables.settings();
  const MacAddress mac = settings.macs.empty() ? MacAddress() : settings.macs.front();
  std::ranges::copy(mac.bytes(), out.begin());
  std::ranges::copy(mac.bytes(), out.begin() + MacAddress::kSize);
  const bool v6 = !body.empty() && (body.front() >> 4) == 6;
  store_be<std::uint16_t>(out.subspan<2 * MacAddress::kSize, 2>(),
                          v6 ? ethertype::kIpv6 : ethertype::kIpv4);
}

/// Level `ip`: what the way did to the packet. `frame` is opened, its Ethernet header written.
bool Inbound::take_over(const Shim& shim, Bytes frame) {
  if (wire_frame_.empty()) return true;
  const bool fits = shim.kind == Kind::kNet && frame.size() >= kEthernetHeaderSize &&
                    take_over_outer(outer_, frame.subspan(kEthernetHeaderSize));
  if (!fits) share_.drops.count(DropReason::net_outer);
  return fits;
}

/// Source and destination of a packet from another subnet.
bool Inbound::check_net(const Peer& peer, ConstBytes frame) {
  const auto refuse = [&](DropReason reason) {
    share_.drops.count(reason);
    return false;
  };
  const auto ends = ip_ends(frame.subspan(kEthernetHeaderSize));
  if (!ends || ends->destination.is_group() ||
      is_neighbour_discovery(frame.subspan(kEthernetHeaderSize))) {
    return refuse(DropReason::net_not_ip);
  }
  const NetRoutes& routes = share_.tables.routes();
  const NetRoutes::Route* const from = routes.find(ends->source);
  if (from == nullptr || from->net != peer.net) return refuse(DropReason::net_source);
  const NetRoutes::Route* const to = routes.find(ends->destination);
  if (to == nullptr || to->net != nullptr) return refuse(DropReason::net_destination);
  return true;
}

/// `frame` has at least an Ethernet header.
bool Inbound::check_addresses(const Opened& opened, ConstBytes frame) {
  const auto refuse = [&](DropReason reason) {
    share_.drops.count(reason);
    return false;
  };
  if (opened.shim.kind == Kind::kNet) return check_net(*opened.sender.peer, frame);
  const MacAddress destination(frame.first<MacAddress::kSize>());
  const MacAddress source(frame.subspan<MacAddress::kSize, MacAddress::kSize>());
  const PortTables& tables = share_.tables;
  const PortSettings& settings = tables.settings();
  const bool plain = settings.kind == PortKind::kPlain;
  if (!opened.sender.peer->owns(source)) {
    const auto reason =
        refuse_foreign_source(tables, *opened.sender.peer, {outer_vlan(frame), source}, now_.ms);
    if (reason) return refuse(*reason);
  }
  if (destination.is_group()) {
    const std::uint8_t rights =
        settings.rights | opened.sender.peer->rights.load(std::memory_order_relaxed);
    if ((rights & kNoGroup) != 0) return refuse(DropReason::not_in_group);
  }
  if (opened.shim.kind == Kind::kGroup) {
    if (!destination.is_group()) return refuse(DropReason::group_unicast_mac);
    if (group_frame_has_unicast_ip(frame, settings.broadcasts)) {
      return refuse(DropReason::group_unicast_ip);
    }
  } else if (destination.is_group()) {
    if (!opened.shim.group_destination()) return refuse(DropReason::wrong_destination);
  } else if (!plain && !settings.owns(destination)) {
    return refuse(DropReason::wrong_destination);
  }
  if (plain) {
    if (const auto reason = refuse_to_plain_side(tables, frame)) return refuse(*reason);
  }
  const auto ethernet = parse_ethernet(frame);
  if (!ethernet) return refuse(DropReason::malformed);
  if (ethernet->ethertype == kEtherType) return refuse(DropReason::inner_ethertype_own);
  return !may_announce(frame) || passes_guard(*opened.sender.peer, frame);
}

/// The address guard, for a frame that was received.
bool Inbound::passes_guard(const Peer& peer, ConstBytes frame) {
  const Announcement what = read_announcement(frame);
  const MacAddress source(frame.subspan<MacAddress::kSize, MacAddress::kSize>());
  const auto reason = refuse_announcement(share_.tables, what, source, &peer);
  if (!reason) return true;
  share_.drops.count(*reason);
  if (const auto event = guard_reports_.report(*reason, what, source, peer.number, now_.us)) {
    put(*event);
  }
  return false;
}

/// A frame with padding, as tiny ones on an Ethernet have: by itself, through a copy.
void Inbound::deliver_padded(const Opened& opened, ConstBytes body) {
  const auto size = payload_size(opened.inner.description, body.size());
  if (!size || *size < kEthernetHeaderSize) return share_.drops.count(DropReason::malformed);
  std::copy_n(body.begin(), *size, padded_.get() + kVnetHeaderSize);
  const Bytes whole(padded_.get() + kVnetHeaderSize, *size);
  if (!check_addresses(opened, whole)) return;
  const auto header =
      vnet_header_for(whole, opened.inner.description.partial_checksum ? ChecksumClaim::kPartial
                                                                       : ChecksumClaim::kComplete);
  if (!header) return share_.drops.count(DropReason::malformed);
  write_out();
  write_vnet_header(Bytes(padded_.get(), kVnetHeaderSize).first<kVnetHeaderSize>(), *header);
  if (!tap_write(tap_, ConstBytes(padded_.get(), kVnetHeaderSize + *size))) {
    return share_.drops.count(DropReason::tap_write_failed);
  }
  compare_generations(*opened.sender.peer, opened.key);
  heard(*opened.sender.peer, opened.from, *size);
}

// --- Path frames --------------------------------------------------------------------------------

void Inbound::receive_path(const Shim& shim, const Incarnation& sender, const Endpoint& from,
                           ConstBytes datagram) {
  // Padding behind the payload may be as long as a datagram: probes for the MTU.
  std::array<std::uint8_t, kInnerHeaderSize> head;
  const Bytes payload(padded_.get(), datagram.size() - kFrameOverhead);
  const ReceiveKey* const key = open(shim, from, datagram, head, payload);
  if (key == nullptr) return;
  if (!check_opened(shim, *key, head)) return;
  const auto message = parse_path(payload);
  if (!message || (shim.flags & ~kFlagSubnetTag) != 0) {
    return share_.drops.count(DropReason::malformed);
  }

  Peer& peer = *sender.peer;
  compare_generations(peer, *key);
  if (message->type == PathType::kProbe) {
    // Answered to where it came from, whatever we know of the peer: that is the question.
    const SendKey* const answer_key = peer.send.load(std::memory_order_acquire);
    if (answer_key != nullptr) {
      const auto answer = seal_path(*answer_key, from, {PathType::kAnswer, message->token},
                                    now_.time, share_.tables.settings().subnet_tag);
      if (answer && !send_sealed(underlay_, share_.tables, from, *answer)) {
        share_.drops.count(DropReason::send_failed);
      }
    }
  } else if (message->type == PathType::kAnswer) {
    peer.rx_ms.store(now_.ms, std::memory_order_relaxed);
    // A member must not be able to fill the ring of events with answers to nothing.
    if (!answer_budgets_[peer.number % kAnswerBudgets].take(now_.us)) {
      return WorkerCounters::add(share_.counters.answers_over, 1);
    }
    WorkerEvent event;
    event.kind = WorkerEvent::Kind::kPathAnswer;
    event.peer = peer.number;
    event.from = from;
    event.number = message->token;
    event.time_us = boot_us();
    put(event);
    return;  // Not `heard`: an answer from elsewhere is what a probe to elsewhere asked for.
  }
  heard(peer, from, 0);
}

/// While a pair, or the group, changes its key its members may send with different generations; and
/// who sends to a newer boot key of ours than the one that we send with knows that already.
void Inbound::compare_generations(Peer& peer, const ReceiveKey& key) {
  const SendKey* const ours =
      key.group ? share_.tables.group_send() : peer.send.load(std::memory_order_acquire);
  if (ours == nullptr || (ours->pw_id == key.pw_id && key.boot <= ours->boot)) [[likely]]
    return;
  // Who lags in the group catches up when it hears others, or by its next sync.
  if (key.group && key.pw_id < ours->pw_id) return;
  if (now_.ms - peer.other_key_ms.load(std::memory_order_relaxed) < kOtherKeyMs) return;
  peer.other_key_ms.store(now_.ms, std::memory_order_relaxed);
  WorkerEvent event;
  event.kind = WorkerEvent::Kind::kOtherKey;
  event.group = key.group;
  event.peer = peer.number;
  event.number = key.pw_id;
  event.index = key.boot;
  put(event);
}

/// A frame of this peer was accepted.
void Inbound::heard(Peer& peer, const Endpoint& from, std::size_t bytes) {
  peer.rx_ms.store(now_.ms, std::memory_order_relaxed);
  if (bytes != 0) {
    peer.rx_frames.fetch_add(1, std::memory_order_relaxed);
    peer.rx_bytes.fetch_add(bytes, std::memory_order_relaxed);
    WorkerCounters::add(share_.counters.frames, 1);
    WorkerCounters::add(share_.counters.bytes, bytes);
  }
  if (underlay_.is_packet()) return;  // Addresses are known; nothing roams.
  const Endpoint* const known = peer.endpoint.load(std::memory_order_acquire);
  if (known != nullptr && *known == from) [[likely]]
    return;
  if (now_.ms - peer.elsewhere_ms.load(std::memory_order_relaxed) < kElsewhereMs) return;
  peer.elsewhere_ms.store(now_.ms, std::memory_order_relaxed);
  WorkerEvent event;
  event.kind = WorkerEvent::Kind::kHeardElsewhere;
  event.peer = peer.number;
  event.from = from;
  put(event);
}

// --- 8. Write -----------------------------------------------------------------------------------

/// Ends the super-frame at hand, if there is one.
void Inbound::write_out() {
  const auto merged = merger_.finish();
  if (!merged) return;
  if (tap_write(tap_, merged->packet)) {
    WorkerCounters::add(share_.counters.supers, 1);
  } else {
    share_.drops.count(DropReason::tap_write_failed, merged->segments);
  }
}

void Inbound::put(const WorkerEvent& event) {
  share_.events.put(event);
  told_ = true;
}

}  // namespace pairwire
