// Merging: streams come out as they went in, and hostile frames never make a bad vnet header.
#include <doctest/doctest.h>

#include "l2/merge.hpp"
#include "l2/offload.hpp"
#include "l2/segment.hpp"
#include "test/l2-frames.hpp"

namespace pairwire::test {
namespace {

struct Sealed {
  Frame frame;
  ChecksumClaim claim = ChecksumClaim::kComplete;
  std::uint64_t origin = 1;
};

struct Written {
  VnetHeader header;
  Frame frame;
  std::size_t segments = 0;
};

/// What a worker does with frames that opened.
class Receiver {
 public:
  explicit Receiver(MergeOptions options) : options_(options), merger_(buffer_, options) {}

  void take(const Sealed& sealed) {
    auto place = merger_.prepare(sealed.frame.size(), sealed.origin);
    if (!place) {
      flush();
      place = merger_.prepare(sealed.frame.size(), sealed.origin);
    }
    REQUIRE(place);
    std::ranges::copy(sealed.frame, place->begin());
    const MergeResult result = merger_.commit(sealed.claim);
    if (result == MergeResult::kMalformed) ++malformed;
    if (result != MergeResult::kRefused) return;
    flush();
    if (merger_.carry_over() == MergeResult::kMalformed) ++malformed;
  }

  /// A frame whose tag turns out wrong: it was written, and is wiped.
  void fail(std::size_t length, std::uint64_t origin) {
    if (auto place = merger_.prepare(length, origin)) std::ranges::fill(*place, std::uint8_t{0});
  }

  void flush() {
    const auto merged = merger_.finish();
    if (!merged) return;
    CHECK(merged->packet.data() + kVnetHeaderSize == merged->frame.data());
    CHECK(read_vnet_header(merged->packet) == merged->header);
    const char* const wrong =
        judge::validate_vnet_header(merged->header, merged->frame, {options_.ecn, options_.udp});
    REQUIRE_MESSAGE(wrong == nullptr, wrong);
    written.push_back(
        {merged->header, Frame(merged->frame.begin(), merged->frame.end()), merged->segments});
  }

  std::vector<Written> written;
  std::size_t malformed = 0;

 private:
  MergeOptions options_;
  Frame buffer_ = Frame(Merger::kBufferSize);
  Merger merger_;
};

/// The frames that a kernel makes of what was written, with complete checksums.
std::vector<Frame> cut_again(const std::vector<Written>& written) {
  std::vector<Frame> frames;
  for (const Written& one : written) {
    if (one.header.gso_type != 0) {
      const std::vector<Frame> segments = slow_segments(one.frame, one.header.gso_size);
      CHECK(segments.size() == one.segments);
      frames.insert(frames.end(), segments.begin(), segments.end());
      continue;
    }
    CHECK(one.segments == 1);
    frames.push_back(one.frame);
    if (one.header.flags != 0) write_checksum(frames.back(), false);
  }
  return frames;
}

std::vector<Sealed> cut(const FrameSpec& spec, std::size_t gso_size, bool partial) {
  Frame frame = make_frame(spec, true);
  Segmenter segmenter({partial, partial});
  REQUIRE(segmenter.begin(gso_header(frame, gso_size), frame) == SegmentStatus::kOk);
  std::vector<Sealed> result;
  for (std::size_t i = 0; i < segmenter.count(); ++i) {
    Frame segment(segmenter.largest());
    segment.resize(segmenter.write(i, segment));
    result.push_back({std::move(segment), segmenter.claim(), 1});
  }
  return result;
}

std::vector<Frame> completed(const std::vector<Sealed>& frames) {
  std::vector<Frame> result;
  for (const Sealed& sealed : frames) {
    result.push_back(sealed.frame);
    if (sealed.claim == ChecksumClaim::kPartial) write_checksum(result.back(), false);
  }
  return result;
}

/// Takes out what may change: the IPv4 id of a DF packet has no meaning (RFC 6864), and where it
/// stayed the same in a train it counts up after cutting again.
void forget_atomic_id(Frame& frame) {
  const judge::Anatomy anatomy = judge::dissect(frame);
  if (!anatomy.complete || anatomy.ip_version != 4) return;
  const auto ip = std::span(frame).subspan(anatomy.ip, anatomy.l4 - anatomy.ip);
  if ((ip[6] & 0x40) == 0 || judge::slow_sum(ip) != 0xffff) return;
  put16(frame, anatomy.ip + 4, 0);
  write_ip_checksum(frame, anatomy.ip, ip.size());
}

TEST_CASE("Merger: a train becomes the very super-frame that was cut") {
  Random random(8);
  std::size_t joined = 0;
  for (int round = 0; round < 1000; ++round) {
    const bool udp = chance(random, 3);
    // Datagrams are joined down to one byte, shorter than their own headers.
    const std::size_t smallest = udp ? (chance(random, 2) ? 1 : 60) : kMinTcpGsoSize;
    const std::size_t gso_size = between(random, smallest, smallest < 256 ? 256 : 1500);
    FrameSpec spec = random_spec(random, between(random, gso_size + 1, 40 * gso_size));
    spec.udp = udp;
    const bool partial = chance(random, 2);
    const Frame whole = make_frame(spec, true);
    Receiver receiver({.ecn = true, .udp = true});
    for (const Sealed& sealed : cut(spec, gso_size, partial)) {
      receiver.take(sealed);
      // Frames that fail to open in between leave no trace.
      if (chance(random, 3)) receiver.fail(between(random, 1, sealed.frame.size()), 1);
    }
    receiver.flush();
    REQUIRE(receiver.written.size() == 1);
    CHECK(receiver.written[0].frame == whole);
    const bool ecn = !spec.udp && (spec.flags & 0x80) != 0;
    CHECK(receiver.written[0].header == gso_header(whole, gso_size, ecn));
    joined += receiver.written[0].segments;
  }
  CHECK(joined > 5000);
}

TEST_CASE("Merger: any stream comes out as it went in") {
  Random random(9);
  std::size_t frames = 0;
  std::size_t writes = 0;
  for (int round = 0; round < 600; ++round) {
    const MergeOptions options{.ecn = chance(random, 2), .udp = chance(random, 2)};
    // One or two flows that each go on after each super-frame.
    std::vector<FrameSpec> flows;
    for (std::size_t i = between(random, 1, 2); i > 0; --i) {
      flows.push_back(random_spec(random, 0));
      flows.back().udp = chance(random, 4);
      // Equal shapes make the bet of prepare() come out wrong as late as possible.
      if (flows.size() == 2 && chance(random, 2)) {
        flows[1] = flows[0];
        flows[1].source_port++;
      }
    }
    std::vector<Sealed> stream;
    const std::size_t gso_size =
        chance(random, 8) ? between(random, 1, 80) : between(random, 200, 1500);
    for (int super = 0; super < 6; ++super) {
      FrameSpec& flow = flows[random.below(flows.size())];
      flow.payload = random.bytes(between(random, 1, 12 * gso_size));
      flow.flags = (flow.flags & 0x40U) | 0x10U | (chance(random, 3) ? 0x08U : 0U) |
                   (chance(random, 8) ? 0x01U : 0U) | (chance(random, 6) ? 0x80U : 0U) |
                   (chance(random, 20) ? 0x04U : 0U) | (chance(random, 20) ? 0x20U : 0U);
      if (chance(random, 5)) flow.acknowledgement++;
      if (chance(random, 9)) flow.window++;
      if (chance(random, 9)) flow.tos ^= 3U;
      const std::vector<Sealed> segments = cut(flow, gso_size, !chance(random, 4));
      flow.sequence += static_cast<std::uint32_t>(flow.payload.size());
      flow.id = (flow.id + static_cast<unsigned>(segments.size())) & 0xffff;
      stream.insert(stream.end(), segments.begin(), segments.end());
    }
    // Loss, reordering, duplicates, damage, other senders.
    const std::size_t trouble = between(random, 5, 60);
    for (std::size_t i = 0; i + 1 < stream.size(); ++i) {
      if (chance(random, trouble)) std::swap(stream[i], stream[i + 1]);
      if (chance(random, trouble)) stream[i + 1] = stream[i];
      if (chance(random, trouble)) stream.erase(stream.begin() + static_cast<std::ptrdiff_t>(i));
      if (chance(random, trouble) && stream[i].claim == ChecksumClaim::kComplete) {
        stream[i].frame[random.below(stream[i].frame.size())] ^= 0x04;
      }
      if (chance(random, trouble)) stream[i].origin = 2;
      if (chance(random, trouble) && stream[i].claim == ChecksumClaim::kComplete) {
        stream[i].frame.resize(stream[i].frame.size() + 3);
      }
    }
    Receiver receiver(options);
    for (const Sealed& sealed : stream) {
      receiver.take(sealed);
      if (chance(random, 10)) receiver.flush();
      if (chance(random, 5)) receiver.fail(between(random, 1, 1600), sealed.origin);
    }
    receiver.flush();
    CHECK(receiver.malformed == 0);
    std::vector<Frame> out = cut_again(receiver.written);
    std::vector<Frame> in = completed(stream);
    REQUIRE(out.size() == in.size());
    std::ranges::for_each(out, forget_atomic_id);
    std::ranges::for_each(in, forget_atomic_id);
    for (std::size_t i = 0; i < in.size(); ++i) REQUIRE(to_hex(out[i]) == to_hex(in[i]));
    frames += in.size();
    writes += receiver.written.size();
  }
  CHECK(writes * 3 < frames * 2);
}

/// How many frames two frames become.
std::size_t writes_for(const FrameSpec& a, const FrameSpec& b, MergeOptions options = {},
                       ChecksumClaim claim_a = ChecksumClaim::kPartial,
                       ChecksumClaim claim_b = ChecksumClaim::kPartial) {
  Receiver receiver(options);
  receiver.take({make_frame(a, claim_a == ChecksumClaim::kPartial), claim_a, 1});
  receiver.take({make_frame(b, claim_b == ChecksumClaim::kPartial), claim_b, 1});
  receiver.flush();
  CHECK(receiver.malformed == 0);
  return receiver.written.size();
}

TEST_CASE("Merger: each field that GRO compares keeps frames apart") {
  for (const int version : {4, 6}) {
    FrameSpec a;
    a.ip_version = version;
    a.payload = Frame(500, 1);
    a.tcp_options = Frame(12, 1);
    a.tags = {0x81000005};
    FrameSpec next = a;
    next.id++;
    next.sequence += 500;
    REQUIRE(writes_for(a, next) == 1);
    const auto apart = [&](auto change) {
      FrameSpec b = next;
      change(b);
      return writes_for(a, b) == 2;
    };
    CHECK(apart([](FrameSpec& f) { f.destination[5]++; }));
    CHECK(apart([](FrameSpec& f) { f.tags[0]++; }));
    CHECK(apart([](FrameSpec& f) { f.tags[0] ^= 0x2000; }));
    CHECK(apart([](FrameSpec& f) { f.tags.clear(); }));
    CHECK(apart([](FrameSpec& f) { f.tos = 1; }));
    CHECK(apart([](FrameSpec& f) { f.ttl--; }));
    CHECK(apart([](FrameSpec& f) { f.source_port++; }));
    CHECK(apart([](FrameSpec& f) { f.destination_port++; }));
    CHECK(apart([](FrameSpec& f) { f.sequence++; }));
    CHECK(apart([](FrameSpec& f) { f.sequence--; }));
    CHECK(apart([](FrameSpec& f) { f.acknowledgement++; }));
    CHECK(apart([](FrameSpec& f) { f.window++; }));
    CHECK(apart([](FrameSpec& f) { f.tcp_options[11]++; }));
    CHECK(apart([](FrameSpec& f) { f.tcp_options.resize(8); }));
    CHECK(apart([](FrameSpec& f) { f.payload.resize(501); }));
    CHECK(apart([](FrameSpec& f) { f.payload.clear(); }));
    for (const unsigned flag : {0x02U, 0x04U, 0x20U, 0x40U, 0x80U}) {
      CHECK(apart([&](FrameSpec& f) { f.flags |= flag; }));
    }
    CHECK(apart([](FrameSpec& f) { f.flags = 0; }));
    if (version == 4) {
      CHECK(apart([](FrameSpec& f) { f.id++; }));
      CHECK(apart([](FrameSpec& f) { f.fragment = 0; }));
      CHECK(apart([](FrameSpec& f) { f.fragment = 0xc000; }));
      CHECK(apart([](FrameSpec& f) { f.ip_options = Frame(4, 1); }));
    }
    CHECK(!apart([](FrameSpec& f) { f.flags |= 0x09; }));
    CHECK(!apart([](FrameSpec& f) { f.payload.resize(1); }));
    // The first one may not end a train, nor be what stays alone.
    for (const unsigned flag : {0x01U, 0x02U, 0x04U, 0x08U, 0x20U, 0x80U}) {
      FrameSpec first = a;
      FrameSpec second = next;
      first.flags |= flag;
      second.flags |= flag & 0x7fU;
      CHECK(writes_for(first, second) == 2);
    }
    // With ECN, CWR leads a train, but does not stand within one.
    FrameSpec first = a;
    first.flags |= 0x80;
    CHECK(writes_for(first, next, {.ecn = true}) == 1);
    next.flags |= 0x80;
    CHECK(writes_for(first, next, {.ecn = true}) == 2);
    CHECK(writes_for(a, next, {.ecn = true}) == 2);
  }
}

TEST_CASE("Merger: checksums") {
  FrameSpec a;
  a.payload = Frame(500, 1);
  FrameSpec b = a;
  b.id++;
  b.sequence += 500;
  constexpr auto kComplete = ChecksumClaim::kComplete;
  constexpr auto kPartial = ChecksumClaim::kPartial;
  CHECK(writes_for(a, b, {}, kComplete, kComplete) == 1);
  CHECK(writes_for(a, b, {}, kComplete, kPartial) == 2);
  CHECK(writes_for(a, b, {}, kPartial, kComplete) == 2);

  // A wrong one is not repaired, wherever it stands: both leave as they came.
  for (const int damaged : {0, 1}) {
    for (const std::size_t at : {std::size_t{24}, std::size_t{500}}) {
      std::array<Frame, 2> frames{make_frame(a), make_frame(b)};
      frames[static_cast<std::size_t>(damaged)][at] ^= 1;
      Receiver receiver({});
      for (const Frame& frame : frames) receiver.take({frame, kComplete, 1});
      receiver.flush();
      REQUIRE(receiver.written.size() == 2);
      CHECK(receiver.written[0].frame == frames[0]);
      CHECK(receiver.written[1].frame == frames[1]);
      CHECK(receiver.written[0].header == VnetHeader{});
    }
  }
}

TEST_CASE("Merger: IPv4 ids count up, or stay the same with DF") {
  FrameSpec a;
  a.payload = Frame(500, 1);
  FrameSpec b = a;
  b.sequence += 500;
  FrameSpec c = b;
  c.sequence += 500;
  const auto writes = [&](unsigned fragment, unsigned second, unsigned third) {
    Receiver receiver({});
    a.fragment = b.fragment = c.fragment = fragment;
    b.id = second & 0xffff;
    c.id = third & 0xffff;
    for (const FrameSpec* spec : {&a, &b, &c}) {
      receiver.take({make_frame(*spec, true), ChecksumClaim::kPartial, 1});
    }
    receiver.flush();
    return receiver.written.size();
  };
  CHECK(writes(0x4000, 2, 3) == 1);
  CHECK(writes(0x4000, 1, 1) == 1);
  CHECK(writes(0x4000, 2, 2) == 2);
  CHECK(writes(0x4000, 1, 3) == 2);
  CHECK(writes(0, 2, 3) == 1);
  CHECK(writes(0, 1, 1) == 3);
  a.id = 0xffff;
  CHECK(writes(0, 0x10000, 0x10001) == 1);
}

TEST_CASE("Merger: limits of size, number and origin") {
  FrameSpec spec;
  spec.sequence = 0xffffff00;  // Sequence numbers wrap.
  spec.payload = Frame(100 * 256, 5);
  Receiver many({});
  for (const Sealed& sealed : cut(spec, 256, true)) many.take(sealed);
  many.flush();
  REQUIRE(many.written.size() == 2);
  CHECK(many.written[0].segments == kMaxMergedSegments);

  // 45 segments of 1,448 bytes are 65,160; a 46th does not fit into the length field.
  spec.payload = Frame(44 * 1448, 5);
  Receiver large({});
  for (int i = 0; i < 2; ++i) {
    for (const Sealed& sealed : cut(spec, 1448, true)) large.take(sealed);
    spec.sequence += 44 * 1448;
    spec.id += 44;
  }
  large.flush();
  REQUIRE(large.written.size() == 2);
  CHECK(large.written[0].segments == 45);

  spec.payload = Frame(255, 5);
  FrameSpec next = spec;
  next.sequence += 255;
  next.id++;
  CHECK(writes_for(spec, next) == 2);

  spec.payload = Frame(600, 5);
  Receiver senders({});
  std::uint64_t origin = 1;
  for (Sealed sealed : cut(spec, 300, true)) {
    sealed.origin = origin++;
    senders.take(sealed);
  }
  senders.flush();
  CHECK(senders.written.size() == 2);

  spec.destination[0] |= 1;
  Receiver group({});
  for (const Sealed& sealed : cut(spec, 300, true)) group.take(sealed);
  group.flush();
  CHECK(group.written.size() == 2);
}

TEST_CASE("Merger: no frame where none was placed") {
  Frame buffer(Merger::kBufferSize);
  Merger merger(buffer);
  CHECK(merger.commit(ChecksumClaim::kComplete) == MergeResult::kMalformed);
  CHECK(merger.carry_over() == MergeResult::kMalformed);
  CHECK(!merger.finish());
  CHECK(!merger.prepare(buffer.size(), 1));
  REQUIRE(merger.prepare(10, 1));
  CHECK(merger.commit(ChecksumClaim::kComplete) == MergeResult::kMalformed);
  CHECK(merger.empty());
  Merger none({});
  CHECK(!none.prepare(100, 1));
}

TEST_CASE("Merger: hostile frames and claims never make a bad vnet header") {
  Random random(10);
  for (int round = 0; round < 3000; ++round) {
    Receiver receiver({.ecn = chance(random, 2), .udp = chance(random, 2)});
    FrameSpec spec = random_spec(random, between(random, 200, 900));
    spec.udp = chance(random, 3);
    spec.flags &= chance(random, 2) ? 0x50U : 0xffU;
    for (int i = 0; i < 8; ++i) {
      Frame frame = make_frame(spec, chance(random, 2));
      if (chance(random, 4)) {
        for (std::size_t n = between(random, 1, 3); n > 0; --n) {
          frame[random.below(std::min<std::size_t>(frame.size(), 90))] =
              static_cast<std::uint8_t>(random.below(256));
        }
      }
      if (chance(random, 10)) frame.resize(random.below(frame.size() + 20));
      const auto claim = chance(random, 4) ? ChecksumClaim::kComplete : ChecksumClaim::kPartial;
      const auto header = vnet_header_for(frame, claim);
      if (header) CHECK(judge::validate_vnet_header(*header, frame, {}) == nullptr);
      // The judge agrees on what may be partial, too.
      const judge::Anatomy anatomy = judge::dissect(frame);
      const bool allowed = claim == ChecksumClaim::kComplete ? frame.size() >= 14
                                                             : anatomy.complete && anatomy.exact;
      if (frame.size() >= 22) CHECK(header.has_value() == allowed);
      receiver.take({std::move(frame), claim, random.below(8) == 0 ? 2U : 1U});
      spec.sequence += static_cast<std::uint32_t>(spec.payload.size());
      spec.id = (spec.id + 1) & 0xffff;
    }
    receiver.flush();
  }
}

}  // namespace
}  // namespace pairwire::test
