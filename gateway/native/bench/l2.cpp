// What l2/ costs for each frame: checksums, cutting a super-frame, joining its segments again.
#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "bench/harness.hpp"
#include "l2/group-guard.hpp"
#include "l2/merge.hpp"
#include "l2/offload.hpp"
#include "l2/segment.hpp"
#include "l2/wire.hpp"

namespace pairwire::bench {
namespace {

constexpr std::size_t kSegmentPayload = 1448;
constexpr std::size_t kSegments = 45;

/// A super-frame as a kernel hands it over: TCP with time stamps, or UDP.
struct Super {
  explicit Super(bool udp)
      : head(udp ? 14 + 20 + 8 : 14 + 20 + 32), frame(head + kSegments * kSegmentPayload, 0x5a) {
    constexpr std::array<std::uint8_t, 34> kFront{2, 0, 0,    0, 0, 1, 2,  0, 0,    0, 0,  2,
                                                  8, 0, 0x45, 0, 0, 0, 0,  1, 0x40, 0, 64, 6,
                                                  0, 0, 10,   0, 0, 1, 10, 0, 0,    2};
    std::ranges::copy(kFront, frame.begin());
    store_be16(&frame[16], static_cast<std::uint16_t>(frame.size() - 14));
    if (udp) {
      frame[23] = 17;
      store_be16(&frame[34 + 4], static_cast<std::uint16_t>(frame.size() - 34));
    } else {
      frame[34 + 12] = 0x80;
      frame[34 + 13] = 0x10;
    }
    write_ipv4_checksum(Bytes(frame).subspan(14, 20));
    write_partial_checksum(frame, parse_frame(frame));
    header = partial_checksum_header(parse_frame(frame));
    header.gso_type = udp ? vnet::kGsoUdpL4 : vnet::kGsoTcpV4;
    header.gso_size = kSegmentPayload;
  }

  std::size_t head;
  std::vector<std::uint8_t> frame;
  VnetHeader header;
};

/// One operation is one segment of 1,448 bytes; `begin` is shared by 45.
void cut_and_join(Runner& runner, bool udp, bool partial) {
  Super super(udp);
  const std::vector<Label> labels{{"protocol", udp ? "udp" : "tcp"},
                                  {"checksum", partial ? "partial" : "complete"}};
  Segmenter segmenter({partial, partial});
  std::array<std::uint8_t, Segmenter::kMaxHead> head;
  const auto begin = [&] {
    if (segmenter.begin(super.header, super.frame) != SegmentStatus::kOk) std::abort();
  };
  runner.measure("l2.segment", labels, [&](std::uint64_t i) {
    if (i % kSegments == 0) begin();
    const Segment segment = segmenter.cut(i % kSegments, head);
    keep(&segment);
  });

  begin();
  std::vector<std::vector<std::uint8_t>> train;
  for (std::size_t i = 0; i < kSegments; ++i) {
    train.emplace_back(segmenter.largest());
    train.back().resize(segmenter.write(i, train.back()));
  }
  // Opening is left out, but for the headers: they must be there to be compared. The payload
  // stays from the first round.
  std::vector<std::uint8_t> buffer(Merger::kBufferSize);
  Merger merger(buffer, {.ecn = false, .udp = true});
  const ChecksumClaim claim = segmenter.claim();
  for (const bool warm : {false, true}) {
    const auto operation = [&](std::uint64_t i) {
      const std::vector<std::uint8_t>& frame = train[i % kSegments];
      auto place = merger.prepare(frame.size(), 1);
      if (!place) {
        const auto merged = merger.finish();
        keep(&merged);
        place = merger.prepare(frame.size(), 1);
      }
      std::memcpy(place->data(), frame.data(), warm ? super.head : frame.size());
      if (merger.commit(claim) == MergeResult::kRefused) std::abort();
    };
    if (warm) {
      runner.measure("l2.merge", labels, operation);
    } else {
      for (std::uint64_t i = 0; i < kSegments; ++i) operation(i);
      (void)merger.finish();
    }
  }
}

const Registered registered([](Runner& runner) {
  const std::vector<std::uint8_t> bytes(65536, 0xa5);
  for (const std::size_t size : {std::size_t{20}, std::size_t{64}, kSegmentPayload, bytes.size()}) {
    runner.measure("l2.checksum", {{"size", size}}, [&](std::uint64_t) {
      const std::uint16_t sum = internet_checksum(ConstBytes(bytes).first(size));
      keep(&sum);
    });
  }

  const Super super(false);
  runner.measure("l2.parse", {}, [&](std::uint64_t) {
    const ParsedFrame parsed = parse_frame(super.frame);
    keep(&parsed);
  });
  runner.measure("l2.group_guard", {}, [&](std::uint64_t) {
    const bool refused = group_frame_has_unicast_ip(super.frame, {});
    keep(&refused);
  });
  for (const bool udp : {false, true}) {
    for (const bool partial : {true, false}) cut_and_join(runner, udp, partial);
  }
});

}  // namespace
}  // namespace pairwire::bench
