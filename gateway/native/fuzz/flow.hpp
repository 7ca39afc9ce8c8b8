// Frames that follow each other in one flow, so that trains form which a fuzzer would hardly find.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/bytes.hpp"
#include "test/l2-vnet-validator.hpp"

namespace pairwire::fuzz {

namespace detail {

inline void put16(std::vector<std::uint8_t>& frame, std::size_t at, unsigned value) {
  frame.at(at) = static_cast<std::uint8_t>(value >> 8);
  frame.at(at + 1) = static_cast<std::uint8_t>(value);
}

inline unsigned get16(const std::vector<std::uint8_t>& frame, std::size_t at) {
  return frame.at(at) * 256U + frame.at(at + 1);
}

}  // namespace detail

/// The frame that follows in the same flow, with right checksums.
inline void advance(std::vector<std::uint8_t>& frame, bool last, bool partial) {
  using detail::get16;
  using detail::put16;
  const judge::Anatomy anatomy = judge::dissect(frame);
  if (!anatomy.complete || !anatomy.exact) return;
  const auto payload = static_cast<unsigned>(frame.size() - anatomy.payload);
  if (last && payload > 1) {
    frame.pop_back();
    const std::size_t length = anatomy.ip + (anatomy.ip_version == 4 ? 2U : 4U);
    put16(frame, length, get16(frame, length) - 1);
    if (!anatomy.tcp) put16(frame, anatomy.l4 + 4, get16(frame, anatomy.l4 + 4) - 1);
  }
  if (anatomy.tcp) {
    const unsigned low = get16(frame, anatomy.l4 + 6) + payload;
    put16(frame, anatomy.l4 + 6, low);
    put16(frame, anatomy.l4 + 4, get16(frame, anatomy.l4 + 4) + (low >> 16));
  }
  if (anatomy.ip_version == 4) {
    put16(frame, anatomy.ip + 4, get16(frame, anatomy.ip + 4) + 1);
    put16(frame, anatomy.ip + 10, 0);
    const auto ip = ConstBytes(frame).subspan(anatomy.ip, anatomy.l4 - anatomy.ip);
    put16(frame, anatomy.ip + 10, ~judge::slow_sum(ip));
  }
  const judge::Anatomy now = judge::dissect(frame);
  const std::size_t field = now.l4 + (now.tcp ? 16U : 6U);
  const unsigned pseudo = judge::slow_pseudo_sum(frame, now);
  put16(frame, field, 0);
  put16(frame, field,
        partial ? pseudo : ~judge::slow_sum(ConstBytes(frame).subspan(now.l4), pseudo));
}

}  // namespace pairwire::fuzz
