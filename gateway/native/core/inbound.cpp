// The way of a frame from the underlay to the TAP. All steps are (sequential) in one worker;
// several workers could share the tables, because a replay window takes care of itself.
//
//  1. batch          one recvmmsg; each message is a train of frames that UDP_GRO joined
//  2. receive        shim, sender, key, lease: docs/protocol.md section 4, steps 1 to 5
//  3. hold           no key: the frame waits, and the control plane is told, within budgets
//  4. receive_inner  a place behind the previous frame of the super-frame (l2/merge)
//  5. open           replay window, tag, replay window again: steps 6 to 8
//  6. check_*        description, time, addresses: steps 9 to 12
//  7. commit         the frame is part of the super-frame, or starts the next one
//  8. write_out      one write to the TAP for each super-frame, with a vnet header that is made
//  from
//                    nothing but our own parse (threats.md C7)
//
// Path frames leave at step 4: receive_path.
//
// The functions in this file stand in the order in which a frame meets them. Nothing here
// allocates, locks (but for the window's few nanoseconds) or makes a system call for a frame.
#include "core/inbound.hpp"

#include <algorithm>
#include <compare>
#include <cstring>

#include "io/tap.hpp"
#include "io/wait.hpp"
#include "l2/group-guard.hpp"
#include "l2/headers.hpp"
#include "l2/offload.hpp"

namespace pairwire {
namespace {

/// What strangers can make wait. docs/protocol.md wants no more; threats.md C10.
constexpr std::size_t kHeldPerKey = 4;
constexpr std::size_t kHeldFrames = 256;
constexpr std::size_t kHeldBytes = std::size_t{1} << 20;
constexpr int kHoldingWaitMs = 20;
constexpr int kFailedWaitMs = 200;
constexpr std::size_t kMaxDatagram = 65'536;  // Longer than any that UDP carries.

/// Events about unknown frames that one /32 or /64 may cause.
constexpr std::uint32_t kAsksPerSource = 20;
constexpr std::size_t kSourceBudgets = 256;

/// Path answers that members with one number modulo kAnswerBudgets may have passed on: far more
/// than are due to 9 probes a second, for some members that share a budget.
constexpr std::uint32_t kAnswersPerSecond = 64;
constexpr std::size_t kAnswerBudgets = 1024;

/// A peer that sends from elsewhere is told of so often.
constexpr std::uint64_t kElsewhereMs = 1000;

/// A frame that waits is counted as dropped when it is, and then under the reason it waits for.
constexpr std::size_t kReasonInNote = 18;

/// Waiting frames are found by what they wait for: index, kid and kind.
constexpr std::uint64_t hold_key(const Shim& shim) {
  return (std::uint64_t{shim.kind == Kind::kGroup} << 48) | (std::uint64_t{shim.kid} << 32) |
         shim.index;
}

void write_note(HoldQueue::Note& note, const Endpoint& from, DropReason reason) {
  std::copy(from.ip.begin(), from.ip.end(), note.begin());
  store_be<std::uint16_t>(std::span(note).subspan<16, 2>(), from.port);
  note[kReasonInNote] = static_cast<std::uint8_t>(reason);
}
Endpoint read_note(const HoldQueue::Note& note) {
  Endpoint from;
  std::copy_n(note.begin(), from.ip.size(), from.ip.begin());
  from.port = load_be<std::uint16_t>(std::span(note).subspan<16, 2>());
  return from;
}

}  // namespace

Inbound::Inbound(WorkerShare& share, int tap, UdpSocket udp, MergeOptions options)
    : share_(share),
      tap_(tap),
      udp_(udp),
      receiver_(udp),
      merge_buffer_(new std::uint8_t[Merger::kBufferSize]),
      merger_(Bytes(merge_buffer_.get(), Merger::kBufferSize), options),
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

void Inbound::run() {
  RcuDomain::Reader& reader = *share_.reader;
  bool sound = true;
  while (!share_.stop.load(std::memory_order_acquire)) {
    reader.online();
    while (batch() && !share_.stop.load(std::memory_order_relaxed)) reader.quiescent();
    reader.offline();
    if (!sound) static_cast<void>(wait_readable(share_.wake, share_.wake, kFailedWaitMs));
    sound = wait_readable(udp_.fd, share_.wake, held_.empty() ? -1 : kHoldingWaitMs);
  }
  held_.clear();  // Counts what still waited.
}

// --- 1. Receive ---------------------------------------------------------------------------------

bool Inbound::batch() {
  take_time();
  if (!held_.empty()) look_at_held();
  bool failed = false;
  const auto trains = receiver_.receive(failed);
  for (const UdpReceiver::Train& train : trains) {
    for (std::size_t at = 0; at < train.bytes.size(); at += train.frame_size) {
      const std::size_t size = std::min(train.frame_size, train.bytes.size() - at);
      receive(train.from, train.bytes.subspan(at, size), false);
    }
  }
  write_out();
  share_.holding.store(!held_.empty(), std::memory_order_seq_cst);
  if (!trains.empty()) WorkerCounters::add(share_.counters.batches, 1);
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

// --- 2. Steps 1 to 5 ----------------------------------------------------------------------------

/// One sealed frame. `held`: it has waited already.
void Inbound::receive(const Endpoint& from, ConstBytes datagram, bool held) {
  const auto shim = parse_shim(datagram, Transport::kUdp);
  if (!shim) return share_.drops.count(DropReason::malformed);  // Step 1; step 2 is ethernet's.

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

/// Collects the sender's keys with the frame's kid in `keys_`; two may have the same by chance.
bool Inbound::find_keys(const Shim& shim, const Incarnation& sender) {
  key_count_ = 0;
  // Net and relay frames are for ports of other kinds, which have keys of their own.
  if (shim.kind == Kind::kNet || shim.kind == Kind::kRelay) return false;
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
  if (shim.index == 0 || shim.kind == Kind::kNet || shim.kind == Kind::kRelay) {
    return share_.drops.count(reason);
  }
  const std::uint64_t key = hold_key(shim);
  TokenBucket& source = source_budgets_[((from.prefix() ^ seed_) * 0xbf58476d1ce4e5b9U) >> 56];
  static_assert(kSourceBudgets == 256);
  // Noted as asked only when it is: else a stranger whose budget is used up could keep the question
  // of an honest sender from ever being asked, by naming the same index and kid.
  if (!asked_.lately(key, now_.us) && source.take(now_.us) && ask_budget_.take(now_.us)) {
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
  if (held_.hold(key, datagram, note, std::min<std::size_t>(kHeldPerKey, settings.hold_frames),
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
    shim.kind = (key >> 48) != 0 ? Kind::kGroup : Kind::kPair;
    shim.kid = static_cast<std::uint16_t>(key >> 32);
    return find_keys(shim, *sender);
  });
  for (const std::uint64_t key : ready_) {
    held_.release(key, Bytes(released_.get(), kMaxDatagram),
                  [&](Bytes datagram, const HoldQueue::Note& note) {
                    receive(read_note(note), datagram, true);
                  });
  }
}

// --- 4. A place for the payload -----------------------------------------------------------------

void Inbound::receive_inner(const Shim& shim, const Incarnation& sender, const Endpoint& from,
                            ConstBytes datagram) {
  const std::size_t length = datagram.size() - kFrameOverhead;
  // Frames are joined only if one key opened them and their kind of destination is the same.
  const std::uint64_t origin =
      reinterpret_cast<std::uintptr_t>(keys_[0]) | std::uint64_t{shim.group_destination()};
  auto place = merger_.prepare(length, origin);
  if (!place) {
    write_out();
    place = merger_.prepare(length, origin);
    if (!place) return share_.drops.count(DropReason::malformed);
  }
  std::array<std::uint8_t, kInnerHeaderSize> head;
  const ReceiveKey* const key = open(shim, datagram, head, *place);
  if (key == nullptr) return;
  const auto inner = check_opened(shim, *key, head);
  if (!inner) return;
  if (shim.fragment()) return share_.drops.count(DropReason::fragment_unsupported);

  const Opened opened{shim, sender, *key, from, *inner};
  if (inner->description.padding != 0) return deliver_padded(opened, *place);
  if (length < kEthernetHeaderSize) return share_.drops.count(DropReason::malformed);
  if (!check_addresses(opened, *place)) return;

  const MergeResult result = merger_.commit(
      inner->description.partial_checksum ? ChecksumClaim::kPartial : ChecksumClaim::kComplete);
  if (result == MergeResult::kRefused) {
    write_out();
    if (merger_.carry_over() == MergeResult::kMalformed) {
      return share_.drops.count(DropReason::malformed);
    }
  } else if (result == MergeResult::kMalformed) {
    return share_.drops.count(DropReason::malformed);
  }
  heard(*sender.peer, from, length);
}

// --- 5. Steps 6 to 8 ----------------------------------------------------------------------------

/// Opens the frame under one of `keys_`; null (counted) if none fits.
const ReceiveKey* Inbound::open(const Shim& shim, ConstBytes datagram, AeadHead head, Bytes body) {
  const ConstBytes aad = datagram.first(kShimSize);
  const ConstBytes cipher =
      datagram.subspan(kShimSize, datagram.size() - kShimSize - kFrameTagSize);
  DropReason reason = DropReason::replayed;
  for (std::size_t i = 0; i < key_count_; ++i) {
    ReceiveKey& key = *keys_[i];
    if (!key.window->would_accept(shim.counter)) continue;
    if (!key.aead->open_parts(shim.counter, aad, cipher, datagram.last<kFrameTagSize>(), head,
                              body)) {
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
  if (key.group) {
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

/// `frame` has at least an Ethernet header.
bool Inbound::check_addresses(const Opened& opened, ConstBytes frame) {
  const auto refuse = [&](DropReason reason) {
    share_.drops.count(reason);
    return false;
  };
  const MacAddress destination(frame.first<MacAddress::kSize>());
  const MacAddress source(frame.subspan<MacAddress::kSize, MacAddress::kSize>());
  const PortSettings& settings = share_.tables.settings();
  if (!opened.sender.peer->owns(source)) return refuse(DropReason::wrong_source_mac);
  if (opened.shim.kind == Kind::kGroup) {
    if (!destination.is_group()) return refuse(DropReason::group_unicast_mac);
    if (group_frame_has_unicast_ip(frame, settings.broadcasts)) {
      return refuse(DropReason::group_unicast_ip);
    }
  } else if (!settings.owns(destination) &&
             !(destination.is_group() && opened.shim.group_destination())) {
    return refuse(DropReason::wrong_destination);
  }
  const auto ethernet = parse_ethernet(frame);
  if (!ethernet) return refuse(DropReason::malformed);
  if (ethernet->ethertype == kEtherType) return refuse(DropReason::inner_ethertype_own);
  return true;
}

/// A frame with padding, which no transport over UDP needs: by itself, through a copy.
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
  heard(*opened.sender.peer, opened.from, *size);
}

// --- Path frames --------------------------------------------------------------------------------

void Inbound::receive_path(const Shim& shim, const Incarnation& sender, const Endpoint& from,
                           ConstBytes datagram) {
  // Padding behind the payload may be as long as a datagram: probes for the MTU.
  std::array<std::uint8_t, kInnerHeaderSize> head;
  const Bytes payload(padded_.get(), datagram.size() - kFrameOverhead);
  const ReceiveKey* const key = open(shim, datagram, head, payload);
  if (key == nullptr) return;
  if (!check_opened(shim, *key, head)) return;
  const auto message = parse_path(payload);
  if (!message || shim.flags != 0) return share_.drops.count(DropReason::malformed);

  Peer& peer = *sender.peer;
  if (message->type == PathType::kProbe) {
    // Answered to where it came from, whatever we know of the peer: that is the question.
    const SendKey* const answer_key = peer.send.load(std::memory_order_acquire);
    if (answer_key != nullptr) {
      const auto answer = seal_path(*answer_key, {PathType::kAnswer, message->token}, now_.time);
      if (answer && !send_datagram(udp_, from, *answer)) {
        share_.drops.count(DropReason::send_failed);
      }
    }
  } else if (message->type == PathType::kAnswer) {
    peer.rx_ms.store(now_.ms, std::memory_order_relaxed);
    // A member must not be able to fill the ring of events with answers to nothing.
    if (!answer_budgets_[peer.number % kAnswerBudgets].take(now_.us)) return;
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

/// A frame of this peer was accepted.
void Inbound::heard(Peer& peer, const Endpoint& from, std::size_t bytes) {
  peer.rx_ms.store(now_.ms, std::memory_order_relaxed);
  if (bytes != 0) {
    peer.rx_frames.fetch_add(1, std::memory_order_relaxed);
    peer.rx_bytes.fetch_add(bytes, std::memory_order_relaxed);
    WorkerCounters::add(share_.counters.frames, 1);
    WorkerCounters::add(share_.counters.bytes, bytes);
  }
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
