// See segment.hpp.
#include "l2/segment.hpp"

#include <algorithm>
#include <cstring>

#include "l2/offload.hpp"
#include "l2/wire.hpp"

namespace pairwire {

namespace {

/// Flags that stand in the first or last segment only (RFC 3168, section
/// 6.1.2: CWR is sent once; a receiver acts on PSH and FIN where they stand).
constexpr std::uint8_t kFirstOnly = tcp_flag::kCwr;
constexpr std::uint8_t kLastOnly = tcp_flag::kPsh | tcp_flag::kFin;

/// Whether the header's checksum fields name the L4 header that we found.
bool names_l4_checksum(const VnetHeader& header, const ParsedFrame& parsed) noexcept {
  return header.needs_checksum() && parsed.kind == FrameKind::kTransport &&
         header.csum_start == parsed.l4_offset &&
         std::size_t{header.csum_start} + header.csum_offset == l4_checksum_offset(parsed);
}

bool kind_matches(std::uint8_t gso_kind, const ParsedFrame& parsed) noexcept {
  switch (gso_kind) {
    case vnet::kGsoTcpV4:
      return parsed.is_tcp() && parsed.ip_version == 4;
    case vnet::kGsoTcpV6:
      return parsed.is_tcp() && parsed.ip_version == 6;
    default:
      return parsed.is_udp();
  }
}

}  // namespace

SegmentStatus Segmenter::begin(const VnetHeader& header, Bytes frame) noexcept {
  count_ = 0;
  head_length_ = 0;
  switch (header.gso_kind()) {
    case vnet::kGsoNone:
      return header.has_ecn() ? SegmentStatus::kMalformed : begin_single(header, frame);
    case vnet::kGsoTcpV4:
    case vnet::kGsoTcpV6:
      return begin_super(header, frame);
    case vnet::kGsoUdpL4:
      return header.has_ecn() ? SegmentStatus::kMalformed : begin_super(header, frame);
    default:
      return SegmentStatus::kUnsupported;
  }
}

SegmentStatus Segmenter::begin_single(const VnetHeader& header, Bytes frame) noexcept {
  if (!parse_ethernet(frame)) return SegmentStatus::kMalformed;
  claim_ = ChecksumClaim::kComplete;
  if (header.needs_checksum()) {
    const ParsedFrame parsed = parse_frame(frame);
    const bool ours = names_l4_checksum(header, parsed);
    if (ours && parsed.is_tcp() && may_be_partial(parsed) && policy_.tcp_partial) {
      claim_ = ChecksumClaim::kPartial;
    } else {
      // As skb_checksum_help() does it: the field holds the pseudo-header's
      // sum, which is added with the rest. This is right for protocols that we
      // don't know, and behind an IPv6 routing header. Padding is not summed up.
      const std::size_t field = std::size_t{header.csum_start} + header.csum_offset;
      const std::size_t end = ours ? parsed.l4_end() : frame.size();
      if (header.csum_start < kEthernetHeaderSize || field + 2 > end) {
        return SegmentStatus::kMalformed;
      }
      ChecksumSum sum;
      sum.add(frame.subspan(header.csum_start, end - header.csum_start));
      store_be16(&frame[field], sum.nonzero_checksum());
    }
  }
  frame_ = frame;
  payload_ = frame;
  count_ = 1;
  return SegmentStatus::kOk;
}

SegmentStatus Segmenter::begin_super(const VnetHeader& header, Bytes frame) noexcept {
  parsed_ = parse_frame(frame);
  if (!kind_matches(header.gso_kind(), parsed_) || !names_l4_checksum(header, parsed_) ||
      header.gso_size == 0 || parsed_.l4_trailer != 0 || parsed_.payload_offset > kMaxHead) {
    return SegmentStatus::kMalformed;
  }
  frame_ = frame;
  payload_ = frame.subspan(parsed_.payload_offset, parsed_.payload_length);
  gso_size_ = header.gso_size;
  const std::size_t count = (payload_.size() + gso_size_ - 1) / gso_size_;
  if (count > kMaxSegments) return SegmentStatus::kMalformed;

  head_length_ = parsed_.payload_offset;
  std::memcpy(head_.data(), frame.data(), head_length_);
  if (parsed_.ip_version == 4) {
    std::uint8_t* const ip = &head_[parsed_.l3_offset];
    first_id_ = load_be16(ip + offset::kIpv4Id);
    store_be16(ip + offset::kIpv4TotalLength, 0);
    store_be16(ip + offset::kIpv4Id, 0);
    store_be16(ip + offset::kIpv4Checksum, 0);
    ipv4_sum_ = {};
    ipv4_sum_.add(std::span(ip, parsed_.l4_offset - parsed_.l3_offset));
  }
  if (parsed_.is_tcp()) {
    std::uint8_t* const tcp = &head_[parsed_.l4_offset];
    first_sequence_ = load_be32(tcp + offset::kTcpSequence);
    tcp_flags_ = tcp[offset::kTcpFlags];
    claim_ = policy_.tcp_partial ? ChecksumClaim::kPartial : ChecksumClaim::kComplete;
  } else {
    claim_ = policy_.uso_partial ? ChecksumClaim::kPartial : ChecksumClaim::kComplete;
  }
  // The kernel's field holds the pseudo-header's sum with the length of
  // the whole; taking that length out also works behind a routing header.
  pseudo_sum_ = {};
  pseudo_sum_.add_word(load_be16(&head_[l4_checksum_offset(parsed_)]));
  pseudo_sum_.add_word(static_cast<std::uint16_t>(~parsed_.l4_length()));

  count_ = std::max<std::size_t>(count, 1);
  return SegmentStatus::kOk;
}

std::size_t Segmenter::largest() const noexcept {
  if (count_ == 0) return 0;
  return count_ == 1 ? head_length_ + payload_.size() : head_length_ + gso_size_;
}

ConstBytes Segmenter::slice(std::size_t index) const noexcept {
  if (head_length_ == 0) return payload_;
  const std::size_t at = index * gso_size_;
  return payload_.subspan(at, std::min(gso_size_, payload_.size() - at));
}

void Segmenter::write_head(std::size_t index, ConstBytes payload, Bytes head) const noexcept {
  std::memcpy(head.data(), head_.data(), head_length_);
  const std::size_t ip_header = parsed_.l4_offset - parsed_.l3_offset;
  const std::size_t l4_length = head_length_ - parsed_.l4_offset + payload.size();
  std::uint8_t* const ip = &head[parsed_.l3_offset];
  if (parsed_.ip_version == 4) {
    const auto total = static_cast<std::uint16_t>(ip_header + l4_length);
    const auto id = static_cast<std::uint16_t>(first_id_ + index);
    ChecksumSum sum = ipv4_sum_;
    sum.add_word(total);
    sum.add_word(id);
    store_be16(ip + offset::kIpv4TotalLength, total);
    store_be16(ip + offset::kIpv4Id, id);
    store_be16(ip + offset::kIpv4Checksum, sum.checksum());
  } else {
    store_be16(ip + offset::kIpv6PayloadLength,
               static_cast<std::uint16_t>(ip_header + l4_length - kIpv6HeaderSize));
  }

  std::uint8_t* const l4 = &head[parsed_.l4_offset];
  if (parsed_.is_tcp()) {
    std::uint8_t flags = tcp_flags_;
    if (index != 0) flags = static_cast<std::uint8_t>(flags & ~kFirstOnly);
    if (index + 1 != count_) flags = static_cast<std::uint8_t>(flags & ~kLastOnly);
    l4[offset::kTcpFlags] = flags;
    store_be32(l4 + offset::kTcpSequence,
               static_cast<std::uint32_t>(first_sequence_ + index * gso_size_));
  } else {
    store_be16(l4 + offset::kUdpLength, static_cast<std::uint16_t>(l4_length));
  }

  ChecksumSum sum = pseudo_sum_;
  sum.add_word(static_cast<std::uint16_t>(l4_length));
  std::uint8_t* const field = &head[l4_checksum_offset(parsed_)];
  store_be16(field, sum.fold());
  if (claim_ == ChecksumClaim::kComplete) {
    // The field already holds the pseudo-header's share.
    ChecksumSum all;
    all.add(head.subspan(parsed_.l4_offset, head_length_ - parsed_.l4_offset));
    all.add(payload);
    store_be16(field, all.nonzero_checksum());
  }
}

Segment Segmenter::cut(std::size_t index, Head head) const noexcept {
  const ConstBytes payload = slice(index);
  if (head_length_ != 0) write_head(index, payload, head);
  return {head_length_, payload, claim_};
}

ConstBytes Segmenter::cut_in_place(std::size_t index) noexcept {
  const ConstBytes payload = slice(index);
  if (head_length_ == 0) return payload;
  const Bytes segment = frame_.subspan(index * gso_size_, head_length_ + payload.size());
  write_head(index, payload, segment.first(head_length_));
  return segment;
}

std::size_t Segmenter::write(std::size_t index, Bytes out) const noexcept {
  std::array<std::uint8_t, kMaxHead> head;
  const Segment segment = cut(index, head);
  if (segment.size() > out.size()) return 0;
  std::memcpy(out.data(), head.data(), segment.head_length);
  // An empty payload may have no address, which memcpy may not be given.
  if (!segment.payload.empty()) {
    std::memcpy(out.data() + segment.head_length, segment.payload.data(), segment.payload.size());
  }
  return segment.size();
}

}  // namespace pairwire
