// See merge.hpp.
#include "l2/merge.hpp"

#include <cstring>

#include "l2/offload.hpp"
#include "l2/wire.hpp"

namespace pairwire {

namespace {

/// Flags that end a super-frame; GRO takes the frame that has them and flushes.
constexpr std::uint8_t kEnding = tcp_flag::kPsh | tcp_flag::kFin;

/// Flags with which a segment stays alone.
constexpr std::uint8_t kAlone = tcp_flag::kSyn | tcp_flag::kRst | tcp_flag::kUrg;

constexpr std::uint16_t kDontFragment = 0x4000;

}  // namespace

std::optional<Bytes> Merger::prepare(std::size_t length, std::uint64_t origin) noexcept {
  forget_placed();
  pending_.reset();
  if (empty()) {
    if (buffer_.size() < kFrameOffset || length > buffer_.size() - kFrameOffset) {
      return std::nullopt;
    }
    pending_ = Pending{Pending::State::kPlaced, length, origin, {}};
    return buffer_.subspan(kFrameOffset, length);
  }
  // A longer or an empty one would be refused anyway; this way it needs no copy.
  const std::size_t head = overlap();
  if (!open_ || origin != origin_ || length <= head || length - head > gso_size_) {
    return std::nullopt;
  }
  const std::size_t grown = length_ + length - head;
  // same_headers() always reads kMaxHead bytes, so some must be left behind a short frame.
  if (grown - parsed_.l3_offset > kMaxIpLength ||
      grown + kMaxHead > buffer_.size() - kFrameOffset) {
    return std::nullopt;
  }
  std::memcpy(saved_.data(), frame() + length_ - kMaxHead, kMaxHead);
  pending_ = Pending{Pending::State::kPlaced, length, origin, {}};
  return buffer_.subspan(kFrameOffset + length_ - head, length);
}

MergeResult Merger::commit(ChecksumClaim claim) noexcept {
  if (!pending_) return MergeResult::kMalformed;
  if (pending_->state == Pending::State::kRefused) return MergeResult::kRefused;
  pending_->claim = claim;
  if (empty()) {
    const Pending pending = *pending_;
    pending_.reset();
    return start(pending);
  }
  const std::size_t head = overlap();
  const std::size_t payload = pending_->length - head;
  if (!fits({frame() + length_ - head, pending_->length}, claim)) {
    // The bet was lost; the frame waits for carry_over().
    open_ = false;
    pending_->state = Pending::State::kRefused;
    return MergeResult::kRefused;
  }
  pending_.reset();
  length_ += payload;
  ++segments_;
  next_sequence_ += static_cast<std::uint32_t>(payload);
  const bool ends = payload < gso_size_ || (tcp_flags_ & kEnding) != 0;
  open_ = !ends && segments_ < kMaxMergedSegments;
  return MergeResult::kMerged;
}

MergeResult Merger::carry_over() noexcept {
  if (!pending_ || pending_->state != Pending::State::kRefused || !empty()) {
    return MergeResult::kMalformed;
  }
  const Pending pending = *pending_;
  pending_.reset();
  const std::size_t head = parsed_.payload_offset;
  // Its other bytes first: they lie behind their goal, and the two may overlap.
  std::memmove(frame() + head, frame() + length_, pending.length - head);
  std::memcpy(frame(), saved_.data() + kMaxHead - head, head);
  return start(pending);
}

/// Exchanges the end of the super-frame with the first bytes of the pending frame.
void Merger::swap_overlap() noexcept {
  std::uint8_t* const end = frame() + length_;
  const auto saved = saved_;
  std::memcpy(saved_.data(), end - kMaxHead, kMaxHead);
  std::memcpy(end - kMaxHead, saved.data(), kMaxHead);
}

/// Gives the super-frame its end back when a placed frame turns out to be none.
void Merger::forget_placed() noexcept {
  if (!pending_ || pending_->state != Pending::State::kPlaced) return;
  pending_.reset();
  if (!empty()) std::memcpy(frame() + length_ - kMaxHead, saved_.data(), kMaxHead);
}

MergeResult Merger::start(const Pending& pending) noexcept {
  parsed_ = parse_frame({frame(), pending.length});
  const auto header = vnet_header_for(parsed_, pending.claim);
  if (!header) return MergeResult::kMalformed;
  single_header_ = *header;
  segments_ = 1;
  length_ = pending.length;
  origin_ = pending.origin;
  claim_ = pending.claim;
  open_ = can_grow();
  return MergeResult::kStarted;
}

/// Whether the first frame can be that of a train; sets what the next needs.
bool Merger::can_grow() noexcept {
  const ParsedFrame& parsed = parsed_;
  const std::uint8_t* const first = frame();
  // No IP options and extension headers: GRO of Linux does not join such
  // IPv4 packets, and a routing header changes the pseudo-header. No group
  // destinations: nothing that is sent to them is worth it.
  const std::uint16_t smallest = parsed.is_tcp() ? kMinTcpGsoSize : kMinUdpGsoSize;
  if (buffer_.size() < kFrameOffset + kMaxHead || !may_be_partial(parsed) ||
      parsed.has_ip_options || parsed.payload_offset > kMaxHead ||
      parsed.payload_length < smallest || (first[0] & 0x01) != 0) {
    return false;
  }
  const ConstBytes ip(first + parsed.l3_offset, parsed.l4_offset - parsed.l3_offset);
  // The header is going to be written anew, which must not repair a broken one.
  if (parsed.ip_version == 4 && !checksum_holds(ip)) return false;

  const std::uint8_t* const l4 = first + parsed.l4_offset;
  if (parsed.is_tcp()) {
    const std::uint8_t flags = l4[offset::kTcpFlags];
    const bool whole = (flags & tcp_flag::kAck) != 0 && (flags & (kAlone | kEnding)) == 0;
    if (!whole || ((flags & tcp_flag::kCwr) != 0 && !options_.ecn)) return false;
    tcp_flags_ = flags;
    next_sequence_ = load_be32(l4 + offset::kTcpSequence) + parsed.payload_length;
  } else {
    if (!options_.udp) return false;
    tcp_flags_ = 0;
  }
  set_mask();
  std::memcpy(head_.data(), first, kMaxHead);
  gso_size_ = parsed.payload_length;
  id_run_ = IdRun::kUnknown;
  // A complete checksum is verified when there is something to join: a frame
  // that stays alone is verified by the kernel.
  first_verified_ = claim_ == ChecksumClaim::kPartial;
  return true;
}

/// Sets what tcp_gro_receive() and inet_gro_receive() compare, which is everything but the fields
/// taken out here; lengths_and_order_hold() looks at those.
void Merger::set_mask() noexcept {
  const auto take_out = [this](std::size_t at, std::size_t size) {
    std::memset(&mask_[at], 0, size);
  };
  mask_.fill(0xff);
  const std::size_t l3 = parsed_.l3_offset;
  const std::size_t l4 = parsed_.l4_offset;
  if (parsed_.ip_version == 4) {
    take_out(l3 + offset::kIpv4TotalLength, 2);
    take_out(l3 + offset::kIpv4Id, 2);
    take_out(l3 + offset::kIpv4Checksum, 2);
  } else {
    take_out(l3 + offset::kIpv6PayloadLength, 2);
  }
  if (parsed_.is_tcp()) {
    take_out(l4 + offset::kTcpSequence, 4);
    take_out(l4 + offset::kTcpFlags, 1);
  } else {
    take_out(l4 + offset::kUdpLength, 2);
  }
  take_out(l4_checksum_offset(parsed_), 2);
  take_out(parsed_.payload_offset, kMaxHead - parsed_.payload_offset);
}

/// Whether every header field that may not differ is equal to the first frame's.
/// So the candidate needs no parse of its own: its structure is the same.
bool Merger::same_headers(const std::uint8_t* candidate) const noexcept {
  const std::uint8_t* const first = head_.data();
  std::uint64_t difference = 0;
  for (std::size_t i = 0; i < kMaxHead; i += 8) {
    std::uint64_t a = 0;
    std::uint64_t b = 0;
    std::uint64_t mask = 0;
    std::memcpy(&a, first + i, 8);
    std::memcpy(&b, candidate + i, 8);
    std::memcpy(&mask, &mask_[i], 8);
    difference |= (a ^ b) & mask;
  }
  return difference == 0;
}

/// How the ids run with this frame, `nullopt` if it breaks the run: they count up
/// by one; with DF they may also stay the same (inet_gro_receive()).
std::optional<Merger::IdRun> Merger::next_id_run(const std::uint8_t* candidate) const noexcept {
  const std::uint8_t* const first = head_.data() + parsed_.l3_offset;
  const std::uint16_t first_id = load_be16(first + offset::kIpv4Id);
  const std::uint16_t id = load_be16(candidate + parsed_.l3_offset + offset::kIpv4Id);
  const bool atomic = (load_be16(first + offset::kIpv4Fragment) & kDontFragment) != 0;
  if (id_run_ != IdRun::kConstant && id == static_cast<std::uint16_t>(first_id + segments_)) {
    return IdRun::kCounting;
  }
  if (id_run_ != IdRun::kCounting && atomic && id == first_id) return IdRun::kConstant;
  return std::nullopt;
}

/// Whether a placed frame continues the super-frame; whatever the answer, the super-frame has its
/// end back, and saved_ the first bytes of the other.
bool Merger::fits(ConstBytes candidate, ChecksumClaim claim) noexcept {
  IdRun id_run = id_run_;
  const std::uint8_t flags =
      parsed_.is_tcp() ? candidate[parsed_.l4_offset + offset::kTcpFlags] : std::uint8_t{0};
  bool fit = claim == claim_ && same_headers(candidate.data()) &&
             lengths_and_order_hold(candidate, id_run);
  if (fit && claim == ChecksumClaim::kComplete) {
    ParsedFrame parsed = parsed_;
    parsed.payload_length = static_cast<std::uint32_t>(candidate.size() - parsed_.payload_offset);
    fit = l4_checksum_holds(candidate, parsed);
  }
  swap_overlap();
  // The first frame is in one piece again only now.
  if (fit && !first_verified_) {
    first_verified_ = fit = l4_checksum_holds({frame(), length_}, parsed_);
  }
  if (fit) {
    id_run_ = id_run;
    tcp_flags_ = static_cast<std::uint8_t>(tcp_flags_ | (flags & kEnding));
  }
  return fit;
}

/// The fields that same_headers() leaves out. Sets `id_run` as the candidate continues it.
bool Merger::lengths_and_order_hold(ConstBytes candidate, IdRun& id_run) const noexcept {
  const std::uint8_t* const ip = &candidate[parsed_.l3_offset];
  const std::uint8_t* const l4 = &candidate[parsed_.l4_offset];
  const std::size_t ip_length = candidate.size() - parsed_.l3_offset;
  // Lengths must say exactly what is there: no padding behind joined payload.
  if (parsed_.ip_version == 4) {
    const auto run = next_id_run(candidate.data());
    if (!run || load_be16(ip + offset::kIpv4TotalLength) != ip_length ||
        !checksum_holds({ip, l4})) {
      return false;
    }
    id_run = *run;
  } else if (load_be16(ip + offset::kIpv6PayloadLength) != ip_length - kIpv6HeaderSize) {
    return false;
  }
  if (parsed_.is_udp()) {
    return load_be16(l4 + offset::kUdpLength) == candidate.size() - parsed_.l4_offset;
  }
  // CWR of the first frame stands for itself; on any other it begins a new train.
  const auto expected = static_cast<std::uint8_t>(tcp_flags_ & ~tcp_flag::kCwr);
  const auto flags = static_cast<std::uint8_t>(l4[offset::kTcpFlags] & ~kEnding);
  return flags == expected && load_be32(l4 + offset::kTcpSequence) == next_sequence_;
}

std::optional<MergedFrame> Merger::finish() noexcept {
  if (empty()) return std::nullopt;
  forget_placed();
  MergedFrame merged;
  merged.header = single_header_;
  merged.segments = segments_;
  merged.frame = {frame(), length_};
  if (segments_ > 1) {
    rewrite_headers();
    merged.header = partial_checksum_header(parsed_);
    merged.header.gso_size = static_cast<std::uint16_t>(gso_size_);
    if (parsed_.is_udp()) {
      merged.header.gso_type = vnet::kGsoUdpL4;
    } else {
      merged.header.gso_type = parsed_.ip_version == 4 ? vnet::kGsoTcpV4 : vnet::kGsoTcpV6;
      if ((tcp_flags_ & tcp_flag::kCwr) != 0) merged.header.gso_type |= vnet::kGsoEcn;
    }
  }
  const auto packet = buffer_.subspan(kFrameOffset - kVnetHeaderSize, kVnetHeaderSize + length_);
  write_vnet_header(packet.first<kVnetHeaderSize>(), merged.header);
  merged.packet = packet;
  // length_ stays: carry_over() finds the refused frame behind it.
  segments_ = 0;
  open_ = false;
  return merged;
}

/// Makes the first frame's headers those of the whole; the L4 checksum becomes
/// partial, as tcp_gro_complete() leaves it.
void Merger::rewrite_headers() noexcept {
  std::uint8_t* const ip = frame() + parsed_.l3_offset;
  std::uint8_t* const l4 = frame() + parsed_.l4_offset;
  parsed_.ip_length = static_cast<std::uint32_t>(length_ - parsed_.l3_offset);
  parsed_.payload_length = static_cast<std::uint32_t>(length_ - parsed_.payload_offset);
  if (parsed_.ip_version == 4) {
    store_be16(ip + offset::kIpv4TotalLength, static_cast<std::uint16_t>(parsed_.ip_length));
    write_ipv4_checksum({ip, l4});
  } else {
    store_be16(ip + offset::kIpv6PayloadLength,
               static_cast<std::uint16_t>(parsed_.ip_length - kIpv6HeaderSize));
  }
  if (parsed_.is_tcp()) {
    l4[offset::kTcpFlags] = tcp_flags_;
  } else {
    store_be16(l4 + offset::kUdpLength, static_cast<std::uint16_t>(parsed_.l4_length()));
  }
  write_partial_checksum({frame(), length_}, parsed_);
}

}  // namespace pairwire
