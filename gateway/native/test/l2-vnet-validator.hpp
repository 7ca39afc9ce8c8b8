// An independent judge of vnet headers, for tests and fuzzers.
//
// Written from the RFCs and from virtio_net_hdr_to_skb() of Linux, not from l2/: it shares no code
// with what it judges. It states what finding C7 asks for: whatever a peer sends, the
// kernel only gets a header that names the real checksum field of a real TCP or UDP header, and
// never becomes a packet amplifier.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "l2/vnet-header.hpp"

namespace pairwire::judge {

/// What a slow and simple look at a frame finds.
struct Anatomy {
  bool complete = false;  ///< an unfragmented IP packet with a whole TCP or UDP header
  bool exact = false;     ///< nothing stands behind the TCP segment or UDP datagram
  bool tcp = false;
  int ip_version = 0;
  std::size_t ip = 0;
  std::size_t l4 = 0;
  std::size_t payload = 0;
  std::size_t end = 0;
};

/// Reads big-endian numbers one after another; after a read past the end everything is zero.
class Cursor {
 public:
  explicit Cursor(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}
  std::size_t at() const { return at_; }
  bool failed() const { return failed_; }
  void skip(std::size_t n) {
    if (n > bytes_.size() - at_) {
      failed_ = true;
      n = bytes_.size() - at_;
    }
    at_ += n;
  }
  unsigned number(std::size_t size) {
    const std::size_t from = at_;
    skip(size);
    if (failed_) return 0;
    unsigned value = 0;
    for (std::size_t i = from; i < at_; ++i) value = value * 256 + bytes_[i];
    return value;
  }

 private:
  std::span<const std::uint8_t> bytes_;
  std::size_t at_ = 0;
  bool failed_ = false;
};

inline Anatomy dissect(std::span<const std::uint8_t> frame) {
  Anatomy result;
  Cursor cursor(frame);
  cursor.skip(12);
  unsigned type = cursor.number(2);
  for (int tag = 0; tag < 2 && (type == 0x8100 || type == 0x88a8); ++tag) {
    cursor.skip(2);
    type = cursor.number(2);
  }
  if (cursor.failed() || (type != 0x0800 && type != 0x86dd)) return result;

  result.ip = cursor.at();
  unsigned protocol = 0;
  const unsigned first = cursor.number(1);
  if (type == 0x0800) {
    if (first < 0x45 || first > 0x4f) return result;
    cursor.skip(1);
    result.end = result.ip + cursor.number(2);
    cursor.skip(2);
    if ((cursor.number(2) & 0x3fff) != 0) return result;
    cursor.skip(1);
    protocol = cursor.number(1);
    result.ip_version = 4;
    Cursor l4(frame);
    l4.skip(result.ip + (first & 15U) * 4U);
    if (l4.failed()) return result;
    cursor = l4;
  } else {
    if (first / 16 != 6) return result;
    cursor.skip(3);
    result.end = result.ip + 40 + cursor.number(2);
    protocol = cursor.number(1);
    cursor.skip(33);
    result.ip_version = 6;
    int walked = 0;
    while ((protocol == 0 && walked == 0) || protocol == 43 || protocol == 60) {
      // Like the parser it gives up after 8; where to stop is a matter of taste, not of safety.
      if (walked++ == 8) return result;
      protocol = cursor.number(1);
      const unsigned eights = cursor.number(1);
      cursor.skip(6 + 8 * eights);
      if (cursor.failed()) return result;
    }
  }
  if (cursor.failed() || result.end > frame.size()) return result;
  result.l4 = cursor.at();
  result.tcp = protocol == 6;
  std::size_t l4_end = result.end;
  if (protocol == 6) {
    cursor.skip(12);
    const std::size_t size = cursor.number(1) / 16 * 4;
    if (cursor.failed() || size < 20) return result;
    result.payload = result.l4 + size;
  } else if (protocol == 17) {
    cursor.skip(4);
    const std::size_t size = cursor.number(2);
    if (cursor.failed() || size < 8) return result;
    result.payload = result.l4 + 8;
    l4_end = result.l4 + size;
  } else {
    return result;
  }
  if (result.payload > l4_end || l4_end > result.end) return result;
  result.complete = true;
  result.exact = l4_end == result.end && result.end == frame.size();
  return result;
}

/// The Internet checksum, word by word (RFC 1071, section 4.1), not complemented.
inline unsigned slow_sum(std::span<const std::uint8_t> bytes, unsigned sum = 0) {
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    sum += i % 2 == 0 ? bytes[i] * 256U : bytes[i];
    sum = (sum & 0xffff) + (sum >> 16);
  }
  return (sum & 0xffff) + (sum >> 16);
}

/// Sum of the pseudo-header of a frame that dissect() calls exact.
inline unsigned slow_pseudo_sum(std::span<const std::uint8_t> frame, const Anatomy& anatomy) {
  const auto addresses = anatomy.ip_version == 4 ? frame.subspan(anatomy.ip + 12, 8)
                                                 : frame.subspan(anatomy.ip + 8, 32);
  unsigned sum = slow_sum(addresses, anatomy.tcp ? 6 : 17);
  sum += static_cast<unsigned>(anatomy.end - anatomy.l4);
  return (sum & 0xffff) + (sum >> 16);
}

/// What a super-frame may be.
struct Allowed {
  bool ecn = false;
  bool udp = false;
};

/// The first rule that the header breaks, or nullptr.
inline const char* validate_vnet_header(const VnetHeader& header,
                                        std::span<const std::uint8_t> frame, Allowed allowed) {
  if (frame.size() < 14) return "no Ethernet header";
  if (header.flags == 0) {
    return header == VnetHeader{} ? nullptr : "fields without a flag";
  }
  if (header.flags != 1) return "a flag other than NEEDS_CSUM";

  const Anatomy anatomy = dissect(frame);
  if (!anatomy.complete) return "no whole TCP or UDP header";
  if (!anatomy.exact) return "bytes behind the segment";
  if (header.csum_start != anatomy.l4) return "csum_start";
  if (header.csum_offset != (anatomy.tcp ? 16 : 6)) return "csum_offset";
  if (header.hdr_len != anatomy.payload) return "hdr_len";

  if (header.gso_type == 0) return header.gso_size == 0 ? nullptr : "gso_size without gso_type";
  const bool ecn = (header.gso_type & 0x80) != 0;
  const int type = header.gso_type & 0x7f;
  if (type != (anatomy.tcp ? (anatomy.ip_version == 4 ? 1 : 4) : 5)) return "gso_type";
  if (!anatomy.tcp && !allowed.udp) return "USO was not allowed";
  const std::size_t payload = frame.size() - anatomy.payload;
  if (header.gso_size < (anatomy.tcp ? 256 : 1)) return "gso_size too small";
  if (payload <= header.gso_size) return "a super-frame of one segment";
  if (payload > std::size_t{64} * header.gso_size) return "more than 64 segments";
  if (anatomy.end - anatomy.ip > 65535) return "IP packet too long";
  if (anatomy.ip_version == 4 &&
      slow_sum(frame.subspan(anatomy.ip, anatomy.l4 - anatomy.ip)) != 0xffff) {
    return "IPv4 header checksum";
  }
  const std::size_t field = anatomy.l4 + header.csum_offset;
  const unsigned partial = frame[field] * 256U + frame[field + 1];
  if (partial % 0xffff != slow_pseudo_sum(frame, anatomy) % 0xffff) return "pseudo-header sum";
  if (anatomy.tcp) {
    const unsigned flags = frame[anatomy.l4 + 13];
    if ((flags & 0x26) != 0) return "SYN, RST or URG in a super-frame";
    if (((flags & 0x80) != 0) != ecn) return "CWR without GSO_ECN or the other way round";
    if (ecn && !allowed.ecn) return "GSO_ECN was not allowed";
  } else if (ecn) {
    return "GSO_ECN for UDP";
  }
  if ((frame[0] & 1) != 0) return "a super-frame to a group";
  return nullptr;
}

}  // namespace pairwire::judge
