// A whole receiver with its tables, fed by a stranger, by a real member with any plaintext, and by
// that member's own sender with any packet from its TAP, while keys come and go.
//
// What must hold: no vnet header that the judge refuses reaches the kernel (finding C7); nothing is
// delivered that a stranger sealed, nor twice, nor from another address than the sender's, nor to
// one that is not ours; each datagram is delivered, waits, or is counted as dropped, once; and what
// an honest sender seals opens.
//
// Input: options (1), then operations, a byte each with what follows it; see `Operation`.
#include <algorithm>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "core/associated-data.hpp"
#include "fuzz/flow.hpp"
#include "fuzz/input.hpp"
#include "fuzz/require.hpp"
#include "test/lab.hpp"

namespace {

using namespace pairwire;
using namespace pairwire::fuzz;
using test::Frame;
using test::Node;
using test::Pair;

enum Operation : unsigned {
  kRaw,      ///< length (2), a datagram as it is
  kSealed,   ///< bits (1), more (1), then as the bits say: see `Hostile`
  kFromTap,  ///< bits (1), vnet header (10), length (2), a frame: through Alice's own sender
  kReplay,   ///< which (1), position (1), value (1): an earlier datagram, or one byte of it other
  kControl,  ///< which (1), argument (1): see `change_tables`
  kDeliver,  ///< what lies in the socket is received
  kOperations
};

/// Bits of kSealed: what the member's frame is like.
enum Hostile : unsigned {
  kGroupKey = 0x01,
  kPathKind = 0x02,
  kOddFlags = 0x04,      ///< flags (1)
  kOddHeader = 0x08,     ///< time and description (8)
  kOddCounter = 0x10,    ///< added to the next one, 16 bits with a sign
  kOwnAddresses = 0x20,  ///< bytes 0 to 11 are Bob's and Alice's addresses
  kNext = 0x40,          ///< no length and payload, but what follows the last one in its flow
  kPatch = 0x80,         ///< position (1) and value (1): one byte of the sealed frame is changed
};
/// And of the second byte.
enum More : unsigned {
  kPartial = 0x01,
  kLast = 0x02,
  kBroadcast = 0x04,
  kOtherSource = 0x08,
  kOtherDestination = 0x10,
};

class Scene {
 public:
  explicit Scene(unsigned options)
      : ethernet_((options & 1) != 0),
        lan_(ethernet_ ? make_lan() : std::pair<UniqueFd, UniqueFd>{}),
        pair_(node_options(std::move(lan_.first), options, false),
              node_options(std::move(lan_.second), options, true)) {
    if ((options & 4) != 0) {
      auto settings = pair_.bob.settings();
      settings->hold_frames = 0;
      pair_.bob.tables.set_settings(std::move(settings));
    }
    if ((options & 8) == 0) {
      pair_.install_pair();
      pair_.install_group();
    }
  }

  void raw(const Frame& datagram) { put_on_wire(datagram); }

  /// As a member whose program is modified.
  void sealed(Input& input) {
    const unsigned bits = input.byte();
    const unsigned more = input.byte();
    const bool group = (bits & kGroupKey) != 0;
    const SendKey* const key = group ? pair_.alice.tables.group_send()
                               : pair_.alice.tables.peer("bob")
                                   ? pair_.alice.tables.peer("bob")->send.load()
                                   : nullptr;
    if (key == nullptr) return;
    Shim shim{group                     ? Kind::kGroup
              : (bits & kPathKind) != 0 ? Kind::kPath
                                        : Kind::kPair,
              static_cast<std::uint8_t>((bits & kOddFlags) != 0 ? input.byte() : 0), key->kid,
              key->index, 0};
    if (ethernet_) shim.flags |= Node::kTag;
    std::array<std::uint8_t, kInnerHeaderSize> head{};
    InnerHeader honest;
    honest.time = pair_.time_now();
    honest.description.partial_checksum = (more & kPartial) != 0;
    write_inner_header(honest, head);
    if ((bits & kOddHeader) != 0) {
      const Frame odd = input.bytes(kInnerHeaderSize);
      std::ranges::copy(odd, head.begin());
    }
    std::uint64_t& next = counters_[group ? 1 : 0];
    shim.counter = next++;
    if ((bits & kOddCounter) != 0) {
      shim.counter += static_cast<std::uint64_t>(static_cast<std::int16_t>(input.number()));
    }
    if ((bits & kNext) != 0) {
      advance(flow_, (more & kLast) != 0, (more & kPartial) != 0);
    } else {
      flow_ = input.bytes();
      if ((bits & kOwnAddresses) != 0) set_addresses(flow_, (more & kBroadcast) != 0);
      if ((more & kOtherDestination) != 0 && !flow_.empty()) flow_[0] ^= 0x40;
      if ((more & kOtherSource) != 0 && flow_.size() > 11) flow_[11] ^= 0x40;
    }
    Frame payload = flow_;
    const bool outside = ethernet_ && has_outer_addresses(shim) && payload.size() >= 12;
    if (outside) payload.erase(payload.begin(), payload.begin() + 12);
    Frame frame(payload.size() + kFrameOverhead);
    const std::span all(frame);
    write_shim(shim, all.first<kShimSize>());
    const Endpoint to =
        Endpoint::of_ethernet(group ? MacAddress::broadcast() : Pair::kBob, Pair::kAlice);
    const AssociatedData aad(all.first<kShimSize>(), ethernet_ ? to : Endpoint{}, Way::kSending);
    key->aead->seal_parts(shim.counter, aad.bytes(), head, payload,
                          all.subspan(kShimSize, payload.size() + kInnerHeaderSize),
                          all.last<kFrameTagSize>());
    bool intact = true;
    if ((bits & kPatch) != 0) {
      const std::size_t at = input.byte() % frame.size();
      const std::uint8_t value = input.byte();
      intact = frame[at] == value;
      frame[at] = value;
    }
    // Only the first copy may be delivered, so numbers are counted, not frames.
    if (intact) authentic_.insert({key->kid, shim.counter});
    if (shim.fragment() || shim.kind == Kind::kPath) exact_ = false;
    if (ethernet_)
      frame.insert(frame.begin(), {0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2, 0x88, 0xb5});
    if (ethernet_ && group) std::fill_n(frame.begin(), 6, std::uint8_t{0xff});
    sent_.push_back(frame);
    put_on_wire(frame);
  }

  /// As an honest member whose kernel sends anything.
  void from_tap(Input& input) {
    const unsigned more = input.byte();
    Frame header = input.bytes(kVnetHeaderSize);
    header.resize(kVnetHeaderSize);
    Frame frame = input.bytes();
    set_addresses(frame, (more & kBroadcast) != 0);
    deliver();
    const std::uint64_t before = dropped_in_vain();
    const auto parsed = read_vnet_header(header);
    require(parsed.has_value());
    if (!pair_.alice.outbound) pair_.alice.start_sending();
    pair_.alice.from_host(*parsed, frame);
    pair_.alice.pump_out();
    const std::uint64_t sealed = pair_.alice.out.counters.frames.load();
    // Numbers of the sender's own counter, which it shares with what `sealed` takes.
    for (std::uint64_t i = tap_frames_; i < sealed; ++i) authentic_.insert({~0U, i});
    on_wire_ += sealed - std::exchange(tap_frames_, sealed);
    deliver();
    // A counter that the modified program used before is the one thing that may go wrong.
    require(dropped_in_vain() == before);
  }

  void replay(Input& input) {
    const std::size_t which = input.byte();
    const std::size_t at = input.byte();
    const std::uint8_t value = input.byte();
    if (sent_.empty()) return;
    Frame frame = sent_[which % sent_.size()];
    if (at < frame.size()) frame[at] = value;
    exact_ = exact_ && !ethernet_;  // Another outer address is nobody's: not counted.
    put_on_wire(frame);
  }

  void change_tables(unsigned which, std::uint8_t argument) {
    Node& alice = pair_.alice;
    Node& bob = pair_.bob;
    deliver();
    const std::uint64_t pw_id = argument % 8U;
    const std::uint64_t now = boot_ms();
    try {
      switch (which % 10) {
        case 0:
          pair_.install_pair(pw_id);
          break;
        case 1:
          pair_.install_group(pw_id);
          break;
        case 2:
          bob.tables.drop_key("alice", pw_id, 0, now);
          break;
        case 3:
          bob.tables.drop_key("", pw_id, 0, now);
          break;
        case 4:
          bob.tables.remove_peer("alice");
          break;
        case 5:
          bob.know(alice, (argument & 1) != 0);
          break;
        case 6:
          bob.tables.set_lease((argument & 1) != 0 ? 0 : Node::kServerMs + 3'600'000);
          break;
        case 7:
          bob.tables.drop_boot(bob.boot, 0, boot_ms());
          break;
        case 8:
          alice.tables.use_key(argument < 128 ? "bob" : "", pw_id);
          break;
        default:
          bob.tables.run_timers(now + argument * 1000ULL);
      }
    } catch (const CommandError&) {
      // Said, and nothing changed.
    }
    // Another key: numbers begin again.
    if (which % 10 < 2 || which % 10 == 8) counters_ = {4096, 4096};
  }

  void deliver() {
    pair_.bob.pump_in();
    while (const auto packet = pair_.bob.to_host()) check_packet(*packet);
    static_cast<void>(pair_.bob.events());
    pair_.alice.events();
    std::array<std::uint8_t, 2048> answer;
    while (recv(pair_.alice.underlay().fd, answer.data(), answer.size(), MSG_DONTWAIT) >= 0) {
    }
  }

  void end() {
    deliver();
    Node& bob = pair_.bob;
    bob.inbound->end();
    const std::uint64_t delivered = bob.in.counters.frames.load();
    std::uint64_t dropped = 0;
    for (std::size_t i = 0; i < kDropReasonCount; ++i)
      dropped += bob.in.drops.get(static_cast<DropReason>(i));
    require(bob.in.drops.get(DropReason::tap_write_failed) == 0);
    require(delivered <= authentic_.size());
    require(segments_ == delivered);
    require(delivered + dropped <= on_wire_);
    // An Ethernet's frames for others, and what a path frame says, are not counted.
    if (exact_ && !ethernet_) require(delivered + dropped == on_wire_);
  }

 private:
  static Node::Options node_options(UniqueFd lan, unsigned options, bool receives) {
    Node::Options one;
    one.lan = std::move(lan);
    one.suite = (options & 2) != 0 ? Suite::kChaCha20Poly1305 : Suite::kAes256Gcm;
    one.sends = false;  // Alice's sender is made when it is needed.
    one.receives = receives;
    return one;
  }
  static std::pair<UniqueFd, UniqueFd> make_lan() {
    int pair[2];
    require(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) == 0);
    return {UniqueFd(pair[0]), UniqueFd(pair[1])};
  }
  static void set_addresses(Frame& frame, bool broadcast) {
    if (frame.size() < 14) frame.resize(14);
    std::ranges::copy(broadcast ? MacAddress::broadcast().bytes() : Pair::kBob.bytes(),
                      frame.begin());
    std::ranges::copy(Pair::kAlice.bytes(), frame.begin() + 6);
  }

  /// What Bob could not open or read. An honest sender never causes it.
  [[nodiscard]] std::uint64_t dropped_in_vain() const {
    const DropCounters& drops = pair_.bob.in.drops;
    return drops.get(DropReason::not_authentic) + drops.get(DropReason::wrong_source_mac);
  }

  void put_on_wire(const Frame& datagram) {
    const int fd = pair_.alice.underlay().fd;
    if (ethernet_) {
      if (datagram.empty()) return;  // A packet socket has no such thing.
      if (send(fd, datagram.data(), datagram.size(), MSG_DONTWAIT) > 0) ++on_wire_;
    } else if (send_datagram(UdpSocket::of(fd), test::loopback(pair_.bob.udp_port), datagram)) {
      // An empty datagram is no frame.
      if (!datagram.empty()) ++on_wire_;
    }
  }

  void check_packet(const test::TapPacket& packet) {
    require(judge::validate_vnet_header(packet.header, packet.frame, {.ecn = false, .udp = true}) ==
            nullptr);
    const MacAddress destination(ConstBytes(packet.frame).first<6>());
    const MacAddress source(ConstBytes(packet.frame).subspan<6, 6>());
    require(source == Pair::kAlice);
    require(destination == Pair::kBob || destination.is_group());
    require(!(packet.frame[12] == 0x88 && packet.frame[13] == 0xb5));
    require(!authentic_.empty());
    const std::size_t payload = judge::dissect(packet.frame).payload;
    const std::size_t size = packet.header.gso_size;
    segments_ += size == 0 ? 1 : (packet.frame.size() - payload + size - 1) / size;
  }

  const bool ethernet_;
  std::pair<UniqueFd, UniqueFd> lan_;
  Pair pair_;
  Frame flow_;
  std::vector<Frame> sent_;
  std::set<std::pair<std::uint32_t, std::uint64_t>> authentic_;  ///< key and number
  /// Far from those that Alice's own sender takes.
  std::array<std::uint64_t, 2> counters_{4096, 4096};
  std::uint64_t tap_frames_ = 0;
  std::uint64_t on_wire_ = 0;
  std::uint64_t segments_ = 0;  ///< that reached Bob's TAP
  bool exact_ = true;
};

}  // namespace

/// Each input makes megabytes of buffers; kept as long as usual, they would cost more than all the
/// rest.
extern "C" const char* __asan_default_options() {
  return "quarantine_size_mb=16";
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input input(data, size);
  Scene scene(input.byte());
  for (int operations = 0; !input.empty() && operations < 200; ++operations) {
    switch (input.byte() % kOperations) {
      case kRaw:
        scene.raw(input.bytes());
        break;
      case kSealed:
        scene.sealed(input);
        break;
      case kFromTap:
        scene.from_tap(input);
        break;
      case kReplay:
        scene.replay(input);
        break;
      case kControl: {
        const unsigned which = input.byte();
        scene.change_tables(which, input.byte());
        break;
      }
      default:
        scene.deliver();
    }
  }
  scene.end();
  return 0;
}
