// The way of a frame from the TAP to the underlay. All steps are (sequential): one worker does them
// for one queue of the TAP, so no flow is ever reordered. Several workers would share the tables
// and the keys' counters, and nothing else.
//
//  1. batch         read packets from the TAP: super-frames of up to 64 KiB with a vnet header
//  2. take          own source address? own frames coming back? group or unicast?
//  3. take_unicast  destination -> member -> key;    take_group: storm limit, group key
//  4. hold_*        no key: the packet waits, as it is, and the control plane is told
//  5. begin         cut the super-frame into wire segments (l2/segment)
//  6. seal          number each segment and seal it straight into the sender's arena
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

#include "core/endpoint.hpp"
#include "io/tap.hpp"
#include "io/wait.hpp"
#include "l2/headers.hpp"

namespace pairwire {
namespace {

/// Packets of one batch: bounds how long the first of them waits for the last.
constexpr std::size_t kReads = 64;
/// Sealed bytes that leave at once, so that the receiver opens them while we seal the next.
constexpr std::size_t kFlushBytes = 60'000;
constexpr std::size_t kHoldKeys = 1024;
constexpr std::size_t kHoldFrames = 8192;
constexpr std::uint64_t kExpiryStepUs = 20'000;
constexpr int kHoldingWaitMs = 20;
/// A device that gives errors is looked at again so often.
constexpr int kFailedWaitMs = 200;

/// Segments of one packet that can be numbered at once: far below the limit's margin.
static_assert(Segmenter::kMaxSegments < SendCounter::kMargin);

}  // namespace

Outbound::Outbound(WorkerShare& share, int tap, UdpSocket udp, std::size_t hold_capacity)
    : share_(share),
      tap_(tap),
      sender_(udp, share.drops),
      held_({kHoldKeys, kHoldFrames, hold_capacity - hold_capacity / 4, false}, boot_us()),
      held_group_({1, kHoldFrames, hold_capacity / 4, false}, boot_us()),
      packet_(new std::uint8_t[kMaxTapPacket]),
      released_(new std::uint8_t[kMaxTapPacket]),
      group_(new std::uint8_t[kMaxTrainBytes]) {
  ready_.reserve(kHoldKeys);
}

void Outbound::run() {
  RcuDomain::Reader& reader = *share_.reader;
  bool sound = true;
  while (!share_.stop.load(std::memory_order_acquire)) {
    reader.online();
    while (batch() && !share_.stop.load(std::memory_order_relaxed)) reader.quiescent();
    reader.offline();
    if (!sound) static_cast<void>(wait_readable(share_.wake, share_.wake, kFailedWaitMs));
    sound = wait_readable(tap_, share_.wake, wait_limit_ms());
  }
  share_.drops.count(DropReason::hold_expired, held_.clear() + held_group_.clear());
}

int Outbound::wait_limit_ms() const {
  return held_.empty() && held_group_.empty() ? -1 : kHoldingWaitMs;
}

// --- 1. Read ------------------------------------------------------------------------------------

bool Outbound::batch() {
  take_time();
  if (!held_.empty() || !held_group_.empty()) {
    look_at_held();
    expire_held();
  }
  std::size_t reads = 0;
  bool more = true;
  while (reads < kReads) {
    std::size_t size = 0;
    if (tap_read(tap_, Bytes(packet_.get(), kMaxTapPacket), size) != TapRead::kPacket) {
      more = false;
      break;
    }
    ++reads;
    take(Bytes(packet_.get(), size), false);
    if (sender_.pending() >= kFlushBytes) sender_.flush();
  }
  sender_.flush();
  share_.holding.store(!held_.empty() || !held_group_.empty(), std::memory_order_seq_cst);
  if (reads != 0) {
    WorkerCounters::add(share_.counters.batches, 1);
    WorkerCounters::add(share_.counters.supers, reads);
  }
  if (std::exchange(told_, false)) wake_up(share_.control_wake);
  return more;
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
  if (!settings.owns(source)) return share_.drops.count(DropReason::tap_source_mac);
  if (is_loop(frame, settings)) return share_.drops.count(DropReason::loop);
  if (destination.is_group()) return take_group(packet, held);
  take_unicast(destination, packet, held);
}

/// Our own frames as plaintext: the underlay lies in the same bridge, or a route for the underlay
/// leads into the TAP (threats.md C11). A datagram is one of ours if it is from or to our port and
/// begins like a sealed frame: the port number alone may be used by somebody else inside.
bool Outbound::is_loop(ConstBytes frame, const PortSettings& settings) const {
  const ParsedFrame parsed = parse_frame(frame);
  if (parsed.ethertype == kEtherType) return true;
  if (!parsed.is_udp() || parsed.payload_length < kFrameOverhead) return false;
  const auto udp = frame.subspan(parsed.l4_offset);
  const auto port = [&](std::size_t at) {
    return static_cast<std::uint16_t>((udp[at] << 8) | udp[at + 1]);
  };
  if (port(0) != settings.udp_port && port(2) != settings.udp_port) return false;
  const ConstBytes payload = frame.subspan(parsed.payload_offset, parsed.payload_length);
  return parse_shim(payload, Transport::kUdp).has_value();
}

// --- 3. Find the key ----------------------------------------------------------------------------

void Outbound::take_unicast(const MacAddress& destination, Bytes packet, bool held) {
  // What came first leaves first.
  if (!held && !held_.empty() && held_.has(destination.to_integer())) {
    release_unicast(destination.to_integer());
  }
  Peer* const peer = share_.tables.destination(destination);
  SendKey* const key = peer == nullptr ? nullptr : peer->send.load(std::memory_order_acquire);
  if (key == nullptr) {
    if (held) return share_.drops.count(DropReason::no_key);
    return hold_unicast(destination, packet);
  }
  if (!now_.lease) return share_.drops.count(DropReason::lease_over);
  send_unicast(*peer, *key, packet);
}

void Outbound::take_group(Bytes packet, bool held) {
  const std::uint32_t rate = share_.tables.settings().storm_frames;
  if (rate != 0 && !held) {
    if (rate != storm_rate_) {
      storm_rate_ = rate;
      storm_ = TokenBucket(rate, rate);
    }
    if (!storm_.take(now_.us)) return share_.drops.count(DropReason::storm);
  }
  SendKey* const key = share_.tables.group_send();
  if (key == nullptr) {
    if (held) return share_.drops.count(DropReason::no_key);
    return hold_group(packet);
  }
  if (!now_.lease) return share_.drops.count(DropReason::lease_over);
  send_group(*key, packet);
}

// --- 4. Hold ------------------------------------------------------------------------------------

void Outbound::hold_unicast(const MacAddress& destination, ConstBytes packet) {
  const PortSettings& settings = share_.tables.settings();
  if (settings.owns(destination)) return share_.drops.count(DropReason::loop);
  if (share_.tables.refused(destination, now_.ms)) {
    return share_.drops.count(DropReason::no_such_member);
  }
  const std::uint64_t number = destination.to_integer();
  if (!asked_.lately(number, now_.us) && ask_budget_.take(now_.us)) {
    asked_.note(number, now_.us);
    WorkerEvent event;
    event.kind = WorkerEvent::Kind::kMissMac;
    event.mac = destination;
    put(event);
  }
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
  for (const std::uint64_t mac : ready_) release_unicast(mac);
  if (share_.tables.group_send() != nullptr) {
    held_group_.release(0, Bytes(released_.get(), kMaxTapPacket),
                        [&](Bytes packet, const HoldQueue::Note&) { take(packet, true); });
  }
}

/// If there is a key now. Does nothing if not.
void Outbound::release_unicast(std::uint64_t number) {
  std::array<std::uint8_t, MacAddress::kSize> bytes;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<std::uint8_t>(number >> (8 * (bytes.size() - 1 - i)));
  }
  const MacAddress mac(bytes);
  const Peer* const peer = share_.tables.destination(mac);
  if (peer == nullptr || peer->send.load(std::memory_order_acquire) == nullptr) {
    if (share_.tables.refused(mac, now_.ms)) {
      share_.drops.count(DropReason::no_such_member, held_.drop(number));
    }
    return;
  }
  held_.release(number, Bytes(released_.get(), kMaxTapPacket),
                [&](Bytes packet, const HoldQueue::Note&) {
                  take(packet, true);
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
bool Outbound::begin(Bytes packet) {
  const auto header = read_vnet_header(packet);
  const Bytes frame = packet.subspan(kVnetHeaderSize);
  if (!header || segmenter_.begin(*header, frame) != SegmentStatus::kOk) {
    share_.drops.count(DropReason::malformed);
    return false;
  }
  if (segmenter_.largest() + kFrameOverhead > UdpSender::kMaxFrame) {
    share_.drops.count(DropReason::oversize);
    return false;
  }
  // An upper bound: it is only counted against the key's limit.
  total_bytes_ = segmenter_.count() * (segmenter_.largest() + kInnerHeaderSize);
  return true;
}

/// Reserves numbers for all segments at hand; nothing (counted) if the key is used up.
std::optional<std::uint64_t> Outbound::take_numbers(SendKey& key, std::uint32_t peer) {
  const auto count = static_cast<std::uint32_t>(segmenter_.count());
  const auto first = key.counter->take(count, total_bytes_);
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

// --- 6. Seal ------------------------------------------------------------------------------------

/// Seals `segment`, which is number `place` of its packet, into `out`, which is as long as the
/// frame.
void Outbound::seal(Bytes out, const SendKey& key, Kind kind, std::uint64_t counter,
                    ConstBytes segment, std::size_t place) {
  const auto shim = out.first<kShimSize>();
  write_shim({kind, 0, key.kid, key.index, counter}, shim);
  InnerHeader header;
  header.time = now_.time;
  header.description.partial_checksum = segmenter_.claim() == ChecksumClaim::kPartial;
  header.description.train = static_cast<std::uint8_t>(std::min<std::size_t>(place, 255));
  std::array<std::uint8_t, kInnerHeaderSize> head;
  write_inner_header(header, head);
  key.aead->seal_parts(counter, shim, head, segment,
                       out.subspan(kShimSize, kInnerHeaderSize + segment.size()),
                       out.last<kFrameTagSize>());
}

void Outbound::send_unicast(Peer& peer, SendKey& key, Bytes packet) {
  const Endpoint* const to = peer.endpoint.load(std::memory_order_acquire);
  if (to == nullptr) return share_.drops.count(DropReason::no_endpoint);
  if (!begin(packet)) return;
  const auto first = take_numbers(key, peer.number);
  if (!first) return;
  const std::size_t count = segmenter_.count();
  for (std::size_t i = 0; i < count; ++i) {
    const ConstBytes segment = segmenter_.cut_in_place(i);
    seal(sender_.reserve(*to, segment.size() + kFrameOverhead), key, Kind::kPair, *first + i,
         segment, i);
  }
  peer.tx_frames.fetch_add(count, std::memory_order_relaxed);
  peer.tx_bytes.fetch_add(packet.size() - kVnetHeaderSize, std::memory_order_relaxed);
  peer.tx_ms.store(now_.ms, std::memory_order_relaxed);
  WorkerCounters::add(share_.counters.frames, count);
  WorkerCounters::add(share_.counters.bytes, packet.size() - kVnetHeaderSize);
}

/// Sealed once, sent to every member that is online.
void Outbound::send_group(SendKey& key, Bytes packet) {
  if (!begin(packet)) return;
  const auto first = take_numbers(key, 0);
  if (!first) return;
  const std::size_t count = segmenter_.count();
  std::size_t used = 0;
  std::size_t frame_size = 0;
  std::size_t frames = 0;
  const auto send_train = [&] {
    const ConstBytes train(group_.get(), used);
    share_.tables.for_each_online([&](Peer& peer) {
      const Endpoint* const to = peer.endpoint.load(std::memory_order_acquire);
      if (to != nullptr) sender_.push(*to, train, frame_size, frames);
    });
    sender_.flush();  // The buffer is used again.
    used = frames = 0;
  };
  for (std::size_t i = 0; i < count; ++i) {
    const ConstBytes segment = segmenter_.cut_in_place(i);
    const std::size_t size = segment.size() + kFrameOverhead;
    // Only the last segment is shorter than the first, so a train ends for want of room only.
    if (frames == kMaxTrainFrames || used + size > kMaxTrainBytes) send_train();
    if (frames == 0) frame_size = size;
    seal(Bytes(group_.get() + used, size), key, Kind::kGroup, *first + i, segment, i);
    used += size;
    ++frames;
  }
  send_train();
  WorkerCounters::add(share_.counters.frames, count);
  WorkerCounters::add(share_.counters.bytes, packet.size() - kVnetHeaderSize);
}

void Outbound::put(const WorkerEvent& event) {
  share_.events.put(event);
  told_ = true;
}

}  // namespace pairwire
