// Frames for the tests of l2/, and slow and simple counterparts of what l2/ does.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <vector>

#include "l2/vnet-header.hpp"
#include "test/l2-vnet-validator.hpp"
#include "test/support.hpp"

namespace pairwire::test {

using Frame = std::vector<std::uint8_t>;

inline void append(Frame& to, std::initializer_list<unsigned> bytes) {
  for (const unsigned byte : bytes) to.push_back(static_cast<std::uint8_t>(byte));
}
inline void append(Frame& to, std::span<const std::uint8_t> bytes) {
  to.insert(to.end(), bytes.begin(), bytes.end());
}
inline void append16(Frame& to, std::size_t value) {
  append(to, {static_cast<unsigned>(value >> 8) & 0xff, static_cast<unsigned>(value) & 0xff});
}
inline void append32(Frame& to, std::uint32_t value) {
  append16(to, value >> 16);
  append16(to, value & 0xffff);
}
inline void put16(Frame& in, std::size_t at, std::size_t value) {
  in.at(at) = static_cast<std::uint8_t>(value >> 8);
  in.at(at + 1) = static_cast<std::uint8_t>(value);
}
inline unsigned get16(const Frame& in, std::size_t at) {
  return in.at(at) * 256U + in.at(at + 1);
}

/// What a frame is made of; the defaults make a plain TCP segment.
struct FrameSpec {
  Frame destination{0x02, 0, 0, 0, 0, 1};
  std::vector<std::uint32_t> tags;  ///< TPID and TCI
  int ip_version = 4;
  unsigned tos = 0;
  unsigned ttl = 64;
  unsigned id = 1;
  unsigned fragment = 0x4000;
  Frame ip_options;  ///< IPv4: a multiple of 4 bytes
  /// IPv6: whole headers; the last one's next header field is set here.
  std::vector<Frame> extensions;
  std::vector<unsigned> extension_types;
  bool udp = false;
  unsigned source_port = 40000;
  unsigned destination_port = 443;
  std::uint32_t sequence = 1000;
  std::uint32_t acknowledgement = 77;
  unsigned flags = 0x10;
  unsigned window = 500;
  Frame tcp_options;  ///< a multiple of 4 bytes
  Frame payload;
};

/// Writes the checksum, or only the pseudo-header's sum, into a frame that has a TCP or UDP header.
inline void write_checksum(Frame& frame, bool partial) {
  const judge::Anatomy anatomy = judge::dissect(frame);
  const std::size_t field = anatomy.l4 + (anatomy.tcp ? 16U : 6U);
  const unsigned pseudo = judge::slow_pseudo_sum(frame, anatomy);
  put16(frame, field, 0);
  if (partial) {
    put16(frame, field, pseudo);
    return;
  }
  const auto l4 = std::span(frame).subspan(anatomy.l4, anatomy.end - anatomy.l4);
  const unsigned checksum = ~judge::slow_sum(l4, pseudo) & 0xffff;
  put16(frame, field, checksum == 0 ? 0xffff : checksum);
}

inline void write_ip_checksum(Frame& frame, std::size_t ip, std::size_t size) {
  put16(frame, ip + 10, 0);
  put16(frame, ip + 10, ~judge::slow_sum(std::span(frame).subspan(ip, size)) & 0xffff);
}

inline Frame make_frame(const FrameSpec& spec, bool partial = false) {
  Frame l4;
  append16(l4, spec.source_port);
  append16(l4, spec.destination_port);
  if (spec.udp) {
    append16(l4, 8 + spec.payload.size());
    append16(l4, 0);
  } else {
    append32(l4, spec.sequence);
    append32(l4, spec.acknowledgement);
    append(l4, {static_cast<unsigned>((20 + spec.tcp_options.size()) / 4) << 4, spec.flags});
    append16(l4, spec.window);
    append32(l4, 0);
    append(l4, spec.tcp_options);
  }
  append(l4, spec.payload);

  Frame frame = spec.destination;
  append(frame, {0x02, 0, 0, 0, 0, 2});
  for (const std::uint32_t tag : spec.tags) append32(frame, tag);
  const unsigned protocol = spec.udp ? 17 : 6;
  if (spec.ip_version == 4) {
    append16(frame, 0x0800);
    const std::size_t ip = frame.size();
    const std::size_t size = 20 + spec.ip_options.size();
    append(frame, {0x40U + static_cast<unsigned>(size / 4), spec.tos});
    append16(frame, size + l4.size());
    append16(frame, spec.id);
    append16(frame, spec.fragment);
    append(frame, {spec.ttl, protocol, 0, 0, 10, 1, 2, 3, 10, 1, 2, 4});
    append(frame, spec.ip_options);
    write_ip_checksum(frame, ip, size);
  } else {
    append16(frame, 0x86dd);
    Frame extensions;
    for (std::size_t i = 0; i < spec.extensions.size(); ++i) {
      Frame header = spec.extensions[i];
      header.at(0) = static_cast<std::uint8_t>(
          i + 1 < spec.extensions.size() ? spec.extension_types[i + 1] : protocol);
      append(extensions, header);
    }
    append32(frame, 0x60000000U | (spec.tos << 20) | 0x12345U);
    append16(frame, extensions.size() + l4.size());
    append(frame, {spec.extensions.empty() ? protocol : spec.extension_types[0], spec.ttl});
    for (unsigned i = 0; i < 32; ++i) append(frame, {i < 16 ? 0xfdU : 0xfcU});
    append(frame, extensions);
  }
  append(frame, l4);
  if (judge::dissect(frame).complete) write_checksum(frame, partial);
  return frame;
}

/// The vnet header that a kernel gives this super-frame.
inline VnetHeader gso_header(const Frame& frame, std::size_t gso_size, bool ecn = false) {
  const judge::Anatomy anatomy = judge::dissect(frame);
  const int type = anatomy.tcp ? (anatomy.ip_version == 4 ? 1 : 4) : 5;
  VnetHeader header;
  header.flags = 1;
  header.gso_type = static_cast<std::uint8_t>(type | (ecn ? 0x80 : 0));
  header.gso_size = static_cast<std::uint16_t>(gso_size);
  header.hdr_len = static_cast<std::uint16_t>(anatomy.payload);
  header.csum_start = static_cast<std::uint16_t>(anatomy.l4);
  header.csum_offset = anatomy.tcp ? 16 : 6;
  return header;
}

/// What a network card with TSO would send, with complete checksums. Makes each segment from
/// the whole frame by cutting bytes out and setting fields one by one.
inline std::vector<Frame> slow_segments(const Frame& frame, std::size_t gso_size) {
  const judge::Anatomy anatomy = judge::dissect(frame);
  const std::size_t total = frame.size() - anatomy.payload;
  std::vector<Frame> segments;
  for (std::size_t at = 0; at == 0 || at < total; at += gso_size) {
    const std::size_t size = std::min(gso_size, total - at);
    const bool last = at + size == total;
    const auto from = frame.begin();
    Frame segment(from, from + static_cast<std::ptrdiff_t>(anatomy.payload));
    segment.insert(segment.end(), from + static_cast<std::ptrdiff_t>(anatomy.payload + at),
                   from + static_cast<std::ptrdiff_t>(anatomy.payload + at + size));
    if (anatomy.ip_version == 4) {
      put16(segment, anatomy.ip + 2, segment.size() - anatomy.ip);
      put16(segment, anatomy.ip + 4, get16(frame, anatomy.ip + 4) + segments.size());
      write_ip_checksum(segment, anatomy.ip, anatomy.l4 - anatomy.ip);
    } else {
      put16(segment, anatomy.ip + 4, segment.size() - anatomy.ip - 40);
    }
    if (anatomy.tcp) {
      const std::uint32_t sequence = (std::uint32_t{get16(frame, anatomy.l4 + 4)} << 16) +
                                     get16(frame, anatomy.l4 + 6) + static_cast<std::uint32_t>(at);
      put16(segment, anatomy.l4 + 4, sequence >> 16);
      put16(segment, anatomy.l4 + 6, sequence & 0xffff);
      std::uint8_t& flags = segment[anatomy.l4 + 13];
      if (!last) flags &= 0xf6;
      if (at != 0) flags &= 0x7f;
    } else {
      put16(segment, anatomy.l4 + 4, segment.size() - anatomy.l4);
    }
    write_checksum(segment, false);
    segments.push_back(std::move(segment));
  }
  return segments;
}

inline bool chance(Random& random, std::size_t one_in) {
  return random.below(one_in) == 0;
}
inline std::size_t between(Random& random, std::size_t from, std::size_t to) {
  return from + random.below(to - from + 1);
}

/// A frame of any shape that a super-frame may have.
inline FrameSpec random_spec(Random& random, std::size_t payload) {
  FrameSpec spec;
  spec.ip_version = chance(random, 2) ? 4 : 6;
  for (std::size_t i = random.below(3); i > 0; --i) {
    spec.tags.push_back((chance(random, 2) ? 0x81000000U : 0x88a80000U) |
                        static_cast<std::uint32_t>(random.below(4096)));
  }
  spec.tos = static_cast<unsigned>(random.below(256));
  spec.id = static_cast<unsigned>(random.below(65536));
  spec.fragment = chance(random, 2) ? 0x4000 : 0;
  spec.sequence = static_cast<std::uint32_t>(random.below(0xffffffff));
  spec.flags = 0x10U | (chance(random, 3) ? 0x08U : 0U) | (chance(random, 6) ? 0x01U : 0U) |
               (chance(random, 4) ? 0x80U : 0U) | (chance(random, 3) ? 0x40U : 0U);
  spec.tcp_options = random.bytes(4 * random.below(11));
  spec.payload = random.bytes(payload);
  return spec;
}

}  // namespace pairwire::test
