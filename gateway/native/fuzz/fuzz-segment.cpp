// Any vnet header and frame from a TAP: what is cut lies within the frame, adds up to it, and each
// segment may carry the claim that it leaves with.
//
// Input: policy (1), vnet header (10), frame.
#include <algorithm>
#include <array>
#include <vector>

#include "fuzz/require.hpp"
#include "l2/offload.hpp"
#include "l2/segment.hpp"
#include "test/l2-vnet-validator.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace pairwire;
  using namespace pairwire::fuzz;
  if (size < 1 + kVnetHeaderSize) return 0;
  const auto header = read_vnet_header({data + 1, size - 1});
  const ConstBytes input(data + 1 + kVnetHeaderSize, size - 1 - kVnetHeaderSize);
  std::vector<std::uint8_t> frame(input.begin(), input.end());

  Segmenter segmenter({(data[0] & 1) != 0, (data[0] & 2) != 0});
  if (segmenter.begin(*header, frame) != SegmentStatus::kOk) {
    require(segmenter.count() == 0);
    require(std::ranges::equal(frame, input));
    return 0;
  }
  require(segmenter.count() >= 1);
  const bool super = header->gso_kind() != vnet::kGsoNone;
  const judge::Anatomy whole = judge::dissect(input);
  std::vector<std::uint8_t> payload;
  std::vector<std::vector<std::uint8_t>> segments;
  for (std::size_t i = 0; i < segmenter.count(); ++i) {
    std::vector<std::uint8_t> segment(segmenter.largest());
    segment.resize(segmenter.write(i, segment));
    require(!segment.empty());
    require(vnet_header_for(segment, segmenter.claim()).has_value());
    if (super) {
      const judge::Anatomy anatomy = judge::dissect(segment);
      require(anatomy.complete && anatomy.exact && anatomy.payload == whole.payload);
      payload.insert(payload.end(), segment.begin() + static_cast<std::ptrdiff_t>(anatomy.payload),
                     segment.end());
    } else {
      require(segmenter.count() == 1 && std::ranges::equal(segment, frame));
    }
    segments.push_back(std::move(segment));
  }
  if (super) {
    require(std::ranges::equal(payload, input.subspan(whole.payload, whole.end - whole.payload)));
  }
  for (std::size_t i = 0; i < segmenter.count(); ++i) {
    require(std::ranges::equal(segmenter.cut_in_place(i), segments[i]));
  }
  return 0;
}
