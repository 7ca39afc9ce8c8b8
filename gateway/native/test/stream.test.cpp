// The claim of the bulk path: whatever the loss, exactly the wire segments that arrived come out of
// the far TAP, each once, in their order, with the same flags and right checksums.
//
//   random super-frames -> Outbound -> sealed datagrams -> loss, copies, damage, another order,
//   other trains -> Inbound -> packets for the TAP -> cut again as a kernel would
//
// What should come out is reckoned by slow_segments() (l2-frames.hpp), which shares nothing with
// l2/. Every round has a seed of its own, which a failure names: PAIRWIRE_STREAM_SEED=N runs that
// round alone, PAIRWIRE_STREAM_ROUNDS=N more of them.
#include <doctest/doctest.h>

#include <cstdlib>
#include <map>
#include <set>
#include <string>

#include "test/lab.hpp"

namespace pairwire::test {
namespace {

/// What a kernel hands over at the near TAP, and what a wire would carry of it.
struct Packet {
  VnetHeader header;
  Frame frame;
  std::vector<Frame> segments;
};

std::uint64_t number_from(const char* variable, std::uint64_t otherwise) {
  const char* const text = std::getenv(variable);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

/// TCP options of any length that the header may have: real ones, padded with NOPs. The kernel puts
/// odd lengths (a window scale, SACK blocks) where it likes.
Frame tcp_options(Random& random) {
  Frame options;
  if (chance(random, 2)) {
    append(options, {8, 10});  // Time stamps.
    append(options, random.bytes(8));
  }
  if (chance(random, 3)) {
    append(options, {5, 10});  // SACK, one block.
    append(options, random.bytes(8));
  }
  if (chance(random, 4)) append(options, {3, 3, static_cast<unsigned>(random.below(15))});
  if (chance(random, 4)) {
    append(options, {254, 7, 0xf9, 0x89});  // An experiment of odd length (RFC 6994).
    append(options, random.bytes(3));
  }
  while (options.size() % 4 != 0) options.push_back(1);
  return options;
}

/// Hop-by-hop or destination options with a PadN of the right length.
Frame extension(std::size_t eights) {
  Frame header(8 * (eights + 1));
  header[1] = static_cast<std::uint8_t>(eights);
  header[2] = 1;
  header[3] = static_cast<std::uint8_t>(header.size() - 4);
  return header;
}

/// One connection or one stream of datagrams, with its state.
class Flow {
 public:
  Flow(Random& random, unsigned number) : random_(random) {
    spec_ = random_spec(random, 0);
    spec_.udp = chance(random, 3);
    spec_.source_port = 40'000 + number;
    spec_.tcp_options = tcp_options(random);
    counts_id_ = chance(random, 2) || spec_.fragment == 0;
    if (chance(random, 6)) {
      spec_.ip_options = Frame(4 * between(random, 1, 10), 1);
      spec_.extensions = {
          extension(chance(random, 3) ? between(random, 30, 100) : random.below(3))};
      spec_.extension_types = {chance(random, 2) ? 0U : 60U};
    }
    gso_size_ = chance(random, 6)   ? between(random, 8, 300)
                : chance(random, 4) ? between(random, 1500, 8900)
                                    : between(random, 257, 1500);
    // The flags of a connection at rest; AE (NS) and ECE stay for a while when they are set.
    spec_.flags = 0x10;
    accurate_ = chance(random, 6) ? 1 : 0;
  }

  Packet next() {
    if (!spec_.udp) set_flags();
    const std::size_t most = std::min<std::size_t>(60'000, gso_size_ * 64);
    std::size_t size =
        chance(random_, 4) ? random_.below(2 * gso_size_) : between(random_, 1, most);
    // Without a short segment at its end the next packet may continue it, if all else fits.
    if (chance(random_, 3)) size = std::max(size / gso_size_, std::size_t{1}) * gso_size_;
    spec_.payload = random_.bytes(size);
    if (!spec_.udp && chance(random_, 8)) spec_.payload.clear();
    Packet packet;
    packet.frame = make_frame(spec_, true);
    if (accurate_ != 0 && !spec_.udp) set_accurate(packet.frame);
    if (spec_.payload.size() > gso_size_) {
      packet.header = gso_header(packet.frame, gso_size_);
      packet.segments = slow_segments(packet.frame, gso_size_);
      // An MTU below 1280 has no TAP; what is longer than it, no wire.
    } else if (chance(random_, 2)) {
      packet.header = gso_header(packet.frame, 0);
      packet.header.gso_type = 0;
      packet.segments = {packet.frame};
      write_checksum(packet.segments[0], false);
    } else {
      write_checksum(packet.frame, false);
      packet.segments = {packet.frame};
    }
    spec_.sequence += static_cast<std::uint32_t>(spec_.payload.size());
    if (counts_id_) {
      spec_.id = (spec_.id + static_cast<unsigned>(packet.segments.size())) & 0xffff;
    }
    return packet;
  }

 private:
  void set_flags() {
    const bool ece = (spec_.flags & 0x40U) != 0;
    spec_.flags = 0x10U | (ece != chance(random_, 8) ? 0x40U : 0U) |
                  (chance(random_, 3) ? 0x08U : 0U) | (chance(random_, 12) ? 0x01U : 0U) |
                  (chance(random_, 8) ? 0x80U : 0U) | (chance(random_, 20) ? 0x20U : 0U) |
                  (chance(random_, 40) ? 0x04U : 0U);
    if (chance(random_, 12)) accurate_ ^= 1U;
    if (chance(random_, 5)) spec_.acknowledgement++;
    if (chance(random_, 9)) spec_.window++;
    // A router on the way marks CE.
    if (chance(random_, 9))
      spec_.tos = (spec_.tos & 0xfcU) | static_cast<unsigned>(random_.below(4));
    if (!spec_.tcp_options.empty() && spec_.tcp_options[0] == 8 && chance(random_, 3)) {
      spec_.tcp_options[5]++;
    }
    // A retransmission, or a gap that the far end has yet to see filled.
    if (chance(random_, 10)) spec_.sequence -= static_cast<std::uint32_t>(random_.below(3000));
  }

  /// The bit that was NS (RFC 3540) and is AE (RFC 9768).
  static void set_accurate(Frame& frame) {
    frame[judge::dissect(frame).l4 + 12] |= 1;
    write_checksum(frame, true);
  }

  Random& random_;
  FrameSpec spec_;
  bool counts_id_ = false;
  unsigned accurate_ = 0;
  std::size_t gso_size_ = 0;
};

/// Something else between the bulk: another EtherType, a fragment, ICMP, LLC.
Packet odd_frame(Random& random) {
  Packet packet;
  FrameSpec spec = random_spec(random, random.below(200));
  spec.ip_version = 4;
  packet.frame = make_frame(spec);
  const std::size_t ip = 14 + 4 * spec.tags.size();
  switch (random.below(4)) {
    case 0:  // The second type for local experiments (IEEE 802); the first is ours.
      put16(packet.frame, ip - 2, 0x88b6);
      break;
    case 1:  // LLC: a length instead of a type.
      put16(packet.frame, ip - 2, packet.frame.size() - ip);
      break;
    case 2:  // A fragment.
      put16(packet.frame, ip + 6, 0x2000 + random.below(100));
      write_ip_checksum(packet.frame, ip, 20);
      break;
    default:  // Another protocol.
      packet.frame[ip + 9] = 1;
      write_ip_checksum(packet.frame, ip, 20);
  }
  packet.segments = {packet.frame};
  return packet;
}

/// Frames with the same answer have an order among them.
std::string flow_of(const Frame& frame) {
  const judge::Anatomy anatomy = judge::dissect(frame);
  if (!anatomy.complete) return "other";
  return to_hex(std::span(frame).subspan(anatomy.l4, 2)) + (anatomy.tcp ? "tcp" : "udp");
}

/// The id of a DF packet that is no fragment means nothing (RFC 6864, section 4.1), and a kernel
/// that cuts the super-frame again counts it up.
void forget_atomic_id(Frame& frame) {
  const judge::Anatomy anatomy = judge::dissect(frame);
  if (!anatomy.complete || anatomy.ip_version != 4 || (frame[anatomy.ip + 6] & 0x40) == 0) return;
  const std::size_t size = anatomy.l4 - anatomy.ip;
  CHECK(judge::slow_sum(std::span(frame).subspan(anatomy.ip, size)) == 0xffff);
  put16(frame, anatomy.ip + 4, 0);
  write_ip_checksum(frame, anatomy.ip, size);
}

/// Hands datagrams to Bob, neighbours of equal size in trains of any length.
class Courier {
 public:
  Courier(Pair& pair, Random& random)
      : pair_(pair), random_(random), sender_(UdpSocket::of(pair.alice.udp.get()), drops_) {}

  void deliver(const Frame& sealed) {
    const Bytes place = sender_.reserve(loopback(pair_.bob.udp_port), sealed.size());
    std::ranges::copy(sealed, place.begin());
    if (chance(random_, 12)) sender_.flush();
    if (chance(random_, 40) || sender_.pending() > 100'000) flush();
  }
  /// The end of a batch.
  void flush() {
    sender_.flush();
    pair_.bob.pump_in();
  }

 private:
  Pair& pair_;
  Random& random_;
  DropCounters drops_;
  UdpSender sender_;
};

struct Tally {
  std::size_t segments = 0;  ///< that arrived
  std::size_t writes = 0;    ///< packets at the far TAP
  std::set<std::string> seen;
};

/// What reaches Bob's socket, as indices into the sealed frames, and what happens to each.
struct Arrival {
  std::size_t index = 0;
  bool damaged = false;
};

std::vector<Arrival> impair(Random& random, std::size_t count) {
  std::vector<Arrival> arrivals;
  const bool clean = chance(random, 4);
  const std::size_t trouble = between(random, 5, 400);
  for (std::size_t i = 0; i < count; ++i) {
    if (!clean && chance(random, trouble)) continue;
    if (!clean && chance(random, trouble)) arrivals.push_back({i, true});
    arrivals.push_back({i});
    if (!clean && chance(random, trouble)) arrivals.push_back({i});
  }
  if (clean) return arrivals;
  for (std::size_t i = 0; i < arrivals.size(); ++i) {
    if (!chance(random, trouble)) continue;
    // Some are late by a few, some by many: another path, a retransmission on the link layer.
    const std::size_t far = chance(random, 3) ? 200 : 4;
    const std::size_t to = std::min(arrivals.size() - 1, i + random.below(far));
    std::swap(arrivals[i], arrivals[to]);
  }
  return arrivals;
}

/// The ends may have different libraries.
void set_backends(Pair& pair, Random& random) {
  std::vector<Backend> backends;
  for (const Backend one : {Backend::kIpsecMb, Backend::kLibcrypto}) {
    if (backend_available(one)) backends.push_back(one);
  }
  if (backends.empty()) return;
  for (Node* const node : {&pair.alice, &pair.bob}) {
    auto settings = node->settings();
    settings->backend = backends[random.below(backends.size())];
    node->tables.set_settings(std::move(settings));
  }
}

void check_packet(const TapPacket& packet) {
  const char* const wrong =
      judge::validate_vnet_header(packet.header, packet.frame, {.ecn = false, .udp = true});
  REQUIRE_MESSAGE(wrong == nullptr, wrong);
}

/// What the far kernel forwards: cut by the slow cutter, checksums completed.
std::vector<Frame> cut_again(const TapPacket& packet) {
  if (packet.header.gso_type != 0) return slow_segments(packet.frame, packet.header.gso_size);
  std::vector<Frame> one{packet.frame};
  if (packet.header.flags != 0) write_checksum(one[0], false);
  return one;
}

void note_shape(const Frame& segment, std::set<std::string>& seen) {
  const judge::Anatomy anatomy = judge::dissect(segment);
  if (!anatomy.complete) {
    seen.insert("other");
    return;
  }
  seen.insert((anatomy.tcp ? "tcp" : "udp") + std::to_string(anatomy.ip_version));
  seen.insert("tags " + std::to_string((anatomy.ip - 14) / 4));
  if (!anatomy.tcp) return;
  for (unsigned bit = 0; bit < 8; ++bit) {
    if ((segment[anatomy.l4 + 13] >> bit & 1) != 0) seen.insert("flag " + std::to_string(bit));
  }
  if ((segment[anatomy.l4 + 12] & 1) != 0) seen.insert("flag 8");
}

/// For a readable failure.
std::string drops_of(const Node& node) {
  std::string text;
  for (std::size_t i = 0; i < kDropReasonCount; ++i) {
    const auto reason = static_cast<DropReason>(i);
    if (node.drops(reason) == 0) continue;
    text.append(drop_reason_name(reason)).append(" ").append(std::to_string(node.drops(reason)));
  }
  return text;
}

void run_round(std::uint64_t seed, Tally& tally) {
  Random random(seed);
  Pair pair(chance(random, 3) ? Suite::kChaCha20Poly1305 : Suite::kAes256Gcm);
  set_backends(pair, random);
  pair.install_pair();

  std::vector<Flow> flows;
  for (unsigned i = 0; i <= random.below(5); ++i) flows.emplace_back(random, i);
  std::vector<Frame> wire;    // What a wire would carry, all of it.
  std::vector<Frame> sealed;  // The same, as Alice sealed it.
  for (std::size_t i = between(random, 2, 25); i > 0; --i) {
    const Packet packet =
        chance(random, 6) ? odd_frame(random) : flows[random.below(flows.size())].next();
    wire.insert(wire.end(), packet.segments.begin(), packet.segments.end());
    pair.alice.from_host(packet.header, packet.frame);
    if (!chance(random, 4)) pair.alice.pump_out();
    const auto some = pair.intercept();
    sealed.insert(sealed.end(), some.begin(), some.end());
  }
  pair.alice.pump_out();
  const auto rest = pair.intercept();
  sealed.insert(sealed.end(), rest.begin(), rest.end());
  CHECK(drops_of(pair.alice) == "");
  REQUIRE(sealed.size() == wire.size());
  for (std::size_t i = 0; i < sealed.size(); ++i) {
    // Numbered in the order of the wire, and no longer than it must be.
    REQUIRE(parse_shim(sealed[i], Transport::kUdp)->counter == i);
    REQUIRE(sealed[i].size() == wire[i].size() + kFrameOverhead);
  }

  std::map<std::string, std::vector<Frame>> expected;
  std::map<std::string, std::vector<Frame>> got;
  std::vector<bool> arrived(sealed.size());
  std::uint64_t replayed = 0;
  std::uint64_t damaged = 0;
  const auto collect = [&] {
    while (const auto packet = pair.bob.to_host()) {
      check_packet(*packet);
      ++tally.writes;
      for (Frame& segment : cut_again(*packet)) got[flow_of(segment)].push_back(std::move(segment));
    }
  };
  Courier courier(pair, random);
  std::size_t since = 0;
  for (const Arrival& arrival : impair(random, sealed.size())) {
    Frame frame = sealed[arrival.index];
    if (arrival.damaged) {
      frame[between(random, 8, frame.size() - 1)] ^= 0x10;
      // A copy of what came before is refused before it is opened, unless its counter was hit.
      courier.deliver(frame);
      ++damaged;
      continue;
    }
    courier.deliver(frame);
    if (arrived[arrival.index]) {
      ++replayed;
      continue;
    }
    arrived[arrival.index] = true;
    expected[flow_of(wire[arrival.index])].push_back(wire[arrival.index]);
    note_shape(wire[arrival.index], tally.seen);
    ++tally.segments;
    if (++since % 64 == 0) collect();
  }
  courier.flush();
  collect();

  CHECK(pair.bob.drops(DropReason::replayed) + pair.bob.drops(DropReason::not_authentic) ==
        replayed + damaged);
  CHECK(pair.bob.all_drops() == replayed + damaged);
  CHECK(got.size() == expected.size());
  for (auto& [flow, frames] : expected) {
    std::vector<Frame>& out = got[flow];
    CAPTURE(flow);
    REQUIRE(out.size() == frames.size());
    for (std::size_t i = 0; i < frames.size(); ++i) {
      forget_atomic_id(frames[i]);
      forget_atomic_id(out[i]);
      CAPTURE(i);
      REQUIRE(to_hex(out[i]) == to_hex(frames[i]));
    }
  }
}

TEST_CASE("stream: what arrived comes out as it was, whatever was lost") {
  const std::uint64_t only = number_from("PAIRWIRE_STREAM_SEED", 0);
  const std::uint64_t rounds = only != 0 ? 1 : number_from("PAIRWIRE_STREAM_ROUNDS", 250);
  Tally tally;
  for (std::uint64_t i = 0; i < rounds; ++i) {
    const std::uint64_t seed = only != 0 ? only : i + 1;
    CAPTURE(seed);
    run_round(seed, tally);
  }
  MESSAGE(tally.segments << " segments in " << tally.writes << " writes");
  if (only != 0) return;
  // The generator did not leave out anything, and joining really happened.
  for (const char* const shape :
       {"tcp4", "tcp6", "udp4", "udp6", "other", "tags 0", "tags 1", "tags 2", "flag 0", "flag 2",
        "flag 3", "flag 4", "flag 5", "flag 6", "flag 7", "flag 8"}) {
    CHECK_MESSAGE(tally.seen.contains(shape), shape);
  }
  CHECK(tally.writes * 4 < tally.segments * 3);
}

}  // namespace
}  // namespace pairwire::test
