// The offer in a SYN is lowered to what fits, wherever it stands, and nothing else changes.
#include <doctest/doctest.h>

#include "l2/checksum.hpp"
#include "l2/headers.hpp"
#include "l2/mss-clamp.hpp"
#include "test/l2-frames.hpp"

using namespace pairwire;
using namespace pairwire::test;

namespace {

constexpr unsigned kSyn = 0x02;

/// MSS 1,460 behind `before` and in front of `after` options.
FrameSpec syn(int version, Frame before = {}, Frame after = {}) {
  FrameSpec spec;
  spec.ip_version = version;
  spec.flags = kSyn;
  spec.tcp_options = std::move(before);
  append(spec.tcp_options, {2, 4, 1'460 >> 8, 1'460 & 0xff});
  append(spec.tcp_options, after);
  spec.tcp_options.resize((spec.tcp_options.size() + 3) / 4 * 4);
  return spec;
}

/// The same with another offer, which follows `before`.
Frame with_offer(FrameSpec spec, std::size_t before, std::size_t offer, bool partial = false) {
  put16(spec.tcp_options, before + 2, offer);
  return make_frame(spec, partial);
}

}  // namespace

TEST_CASE("MSS: lowered to what a frame may have, at even and odd places, tagged or not") {
  const std::vector<Frame> fronts = {{}, {1}, {1, 1}, {3, 3, 7}, {1, 3, 3, 7, 4, 2}};
  for (const int version : {4, 6}) {
    for (const std::vector<std::uint32_t>& tags :
         {std::vector<std::uint32_t>{}, {0x8100'0007U}, {0x88a8'0009U, 0x8100'0007U}}) {
      for (const Frame& front : fronts) {
        for (const bool partial : {false, true}) {
          FrameSpec spec = syn(version, front, {1, 4, 2});
          spec.tags = tags;
          Frame frame = make_frame(spec, partial);
          const std::size_t headers = 14 + 4 * tags.size() + (version == 4 ? 40 : 60);
          CHECK(clamp_mss(frame, headers + 1'357, partial));
          CHECK(frame == with_offer(spec, front.size(), 1'357, partial));
          CHECK_FALSE(clamp_mss(frame, headers + 1'357, partial));
        }
      }
    }
  }
}

TEST_CASE("MSS: the answer to a SYN too, and a path of any size") {
  FrameSpec spec = syn(4);
  spec.flags = kSyn | tcp_flag::kAck;
  for (std::size_t most = 1'460; most >= 536; --most) {
    Frame frame = make_frame(spec);
    CHECK(clamp_mss(frame, 54 + most, false) == (most < 1'460));
    REQUIRE(frame == with_offer(spec, 0, most));
  }
}

TEST_CASE("MSS: never below what every host must take") {
  for (const std::size_t longest : {std::size_t{0}, std::size_t{60}, std::size_t{500}}) {
    Frame four = make_frame(syn(4));
    CHECK(clamp_mss(four, longest, false));
    CHECK(four == with_offer(syn(4), 0, 536));
    Frame six = make_frame(syn(6));
    CHECK(clamp_mss(six, longest, false));
    CHECK(six == with_offer(syn(6), 0, 1'220));
  }
}

TEST_CASE("MSS: what is no SYN with an offer stays as it is") {
  const auto stays = [](const FrameSpec& spec) {
    const Frame before = make_frame(spec);
    Frame frame = before;
    CHECK_FALSE(clamp_mss(frame, 600, false));
    CHECK(frame == before);
  };
  FrameSpec established = syn(4);
  established.flags = tcp_flag::kAck;
  stays(established);
  FrameSpec fragment = syn(4);
  fragment.fragment = 0x2000;
  stays(fragment);
  FrameSpec udp = syn(4);
  udp.udp = true;
  stays(udp);
  for (const Frame& options : {Frame{}, Frame{0, 0, 0, 0, 2, 4, 9, 9}, Frame{2, 3, 9, 9},
                               Frame{8, 1, 2, 4}, Frame{1, 1, 2, 4}, Frame{1, 1, 1, 2}}) {
    FrameSpec spec = syn(4);
    spec.tcp_options = options;
    stays(spec);
  }
}
