// Opened bytes and claims of hostile peers, one after another: every vnet header that would reach
// the kernel passes the judge (finding C7), and no payload is lost or made up.
//
// Input: options (1), then operations. An operation is a byte of bits below and, without kNext, a
// length (2) and a frame. With kNext the frame is what follows the last one in its flow; so trains
// form by themselves. kPatch: then three times position (1) and value (1).
#include <algorithm>
#include <cstring>
#include <vector>

#include "fuzz/flow.hpp"
#include "fuzz/require.hpp"
#include "l2/merge.hpp"
#include "l2/offload.hpp"
#include "test/l2-vnet-validator.hpp"

namespace {

using namespace pairwire;
using namespace pairwire::fuzz;
using Frame = std::vector<std::uint8_t>;

constexpr unsigned kPartial = 0x01;
constexpr unsigned kOtherOrigin = 0x02;
constexpr unsigned kNext = 0x04;
constexpr unsigned kPatch = 0x08;
constexpr unsigned kFlush = 0x10;
constexpr unsigned kFailsToOpen = 0x20;
constexpr unsigned kLast = 0x40;

/// A merger whose output is checked.
class Receiver {
 public:
  explicit Receiver(unsigned options)
      : allowed_{(options & 1) != 0, (options & 2) != 0},
        merger_(buffer_, {.ecn = allowed_.ecn, .udp = allowed_.udp}) {}

  void take(const Frame& frame, ChecksumClaim claim, std::uint64_t origin, bool opens) {
    auto place = merger_.prepare(frame.size(), origin);
    if (!place) {
      flush();
      place = merger_.prepare(frame.size(), origin);
    }
    require(place.has_value() && place->size() == frame.size());
    std::ranges::copy(frame, place->begin());
    if (!opens) return;
    MergeResult result = merger_.commit(claim);
    if (result == MergeResult::kRefused) {
      flush();
      result = merger_.carry_over();
    }
    const auto header = vnet_header_for(frame, claim);
    require(header.has_value() == (result != MergeResult::kMalformed));
    if (!header) return;
    require(judge::validate_vnet_header(*header, frame, {}) == nullptr);
    // Until it is joined a frame leaves as it came; joined, it adds its payload.
    if (result == MergeResult::kStarted) {
      expected_ = frame;
    } else {
      const std::size_t payload = judge::dissect(frame).payload;
      expected_.insert(expected_.end(), frame.begin() + static_cast<std::ptrdiff_t>(payload),
                       frame.end());
      joined_ = true;
    }
  }

  void flush() {
    const auto merged = merger_.finish();
    if (!merged) return;
    require(judge::validate_vnet_header(merged->header, merged->frame, allowed_) == nullptr);
    require(joined_ == (merged->header.gso_type != 0) && joined_ == (merged->segments > 1));
    require(merged->frame.size() == expected_.size());
    const std::size_t same = joined_ ? judge::dissect(merged->frame).payload : 0;
    require(std::memcmp(&merged->frame[same], &expected_[same], expected_.size() - same) == 0);
    joined_ = false;
  }

 private:
  judge::Allowed allowed_;
  Frame buffer_ = Frame(Merger::kBufferSize);
  Merger merger_;
  Frame expected_;
  bool joined_ = false;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::uint8_t* const end = data + size;
  const auto next = [&]() -> unsigned { return data == end ? 0U : *data++; };
  Receiver receiver(next());
  Frame frame;
  while (data != end) {
    const unsigned operation = next();
    const bool partial = (operation & kPartial) != 0;
    if ((operation & kNext) != 0) {
      advance(frame, (operation & kLast) != 0, partial);
    } else {
      const unsigned length = next() * 256 + next();
      const auto there = std::min<std::size_t>(length, static_cast<std::size_t>(end - data));
      frame.assign(data, data + there);
      data += there;
    }
    if ((operation & kPatch) != 0 && !frame.empty()) {
      for (int i = 0; i < 3; ++i) {
        const std::size_t at = next() % frame.size();
        frame[at] = static_cast<std::uint8_t>(next());
      }
    }
    if ((operation & kFlush) != 0) receiver.flush();
    receiver.take(frame, partial ? ChecksumClaim::kPartial : ChecksumClaim::kComplete,
                  (operation & kOtherOrigin) != 0 ? 2 : 1, (operation & kFailsToOpen) == 0);
  }
  receiver.flush();
  return 0;
}
