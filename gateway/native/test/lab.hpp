// Two data planes in one process, without root: the TAP is one end of a socket pair that keeps
// messages apart, the underlay is UDP on the loopback interface, or another such pair in place of
// an Ethernet.
//
//   test -> tap | Outbound -> UDP ::1 -> Inbound | tap -> test
//
// `pump` does what the threads would do, so every test is deterministic.
#pragma once

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/inbound.hpp"
#include "core/lane.hpp"
#include "core/outbound.hpp"
#include "core/path.hpp"
#include "io/unique-fd.hpp"
#include "io/wait.hpp"
#include "test/l2-frames.hpp"
#include "test/support.hpp"

namespace pairwire::test {

inline UniqueFd must(int fd) {
  if (fd < 0) throw std::runtime_error(std::strerror(errno));
  return UniqueFd(fd);
}

/// A UDP socket as the broker makes it, on ::1 with a port of the kernel's choice.
inline UniqueFd open_udp(std::uint16_t& port) {
  UniqueFd fd = must(socket(AF_INET6, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  const int on = 1;
  setsockopt(fd.get(), SOL_UDP, 104 /* UDP_GRO */, &on, sizeof(on));
  const int size = 4 << 20;
  setsockopt(fd.get(), SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
  sockaddr_in6 address{};
  address.sin6_family = AF_INET6;
  address.sin6_addr = in6addr_loopback;
  if (bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    throw std::runtime_error("bind");
  }
  socklen_t length = sizeof(address);
  getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &length);
  port = ntohs(address.sin6_port);
  return fd;
}

inline Endpoint loopback(std::uint16_t port) {
  std::array<std::uint8_t, 16> ip{};
  ip[15] = 1;
  return Endpoint::from(ip, port).value();
}

struct TapPacket {
  VnetHeader header;
  Frame frame;
};

/// One data plane's port, without threads.
struct Node {
  static constexpr std::uint64_t kServerMs = 1'800'000'000'000;  ///< a time of day in 2027
  static constexpr std::uint8_t kTag = 0x2a;                     ///< of the subnet, on an Ethernet

  /// What is different from an ordinary node.
  struct Options {
    /// An end of a socket pair in place of an Ethernet; at a link port, of the interface towards
    /// the router. Without it, UDP.
    UniqueFd lan;
    std::size_t helpers = 0;
    Suite suite = Suite::kAes256Gcm;
    bool sends = true;  ///< false: without its outbound worker, which takes megabytes
    bool receives = true;
    PortKind kind = PortKind::kHost;
    std::string net = {};  ///< of a link port
  };
  Node(std::string name, const MacAddress& own_mac, std::uint32_t own_index)
      : Node(std::move(name), own_mac, own_index, Options{}) {}
  Node(std::string name, const MacAddress& own_mac, std::uint32_t own_index, Options options)
      : id(std::move(name)),
        mac(own_mac),
        index(own_index),
        suite(options.suite),
        kind(options.kind),
        net(options.net),
        lan(std::move(options.lan)),
        crew(options.helpers, 0) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0) {
      throw std::runtime_error("socketpair");
    }
    tap = UniqueFd(pair[0]);
    tap_far = UniqueFd(pair[1]);
    const int size = 4 << 20;
    for (const int fd : pair) setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    udp = open_udp(udp_port);
    set_clock(0);
    tables.set_settings(settings());
    if (underlay().is_wire()) tables.sent().make_room();
    tables.set_lease(kServerMs + 3'600'000);
    const auto made = tables.make_boot();
    boot = made.boot;
    boot_public = made.public_key;
    tables.set_boot_index(boot, index, 0, boot_ms());
    if (options.sends) start_sending();
    if (options.receives) {
      inbound = std::make_unique<Inbound>(in, tap.get(), underlay(),
                                          MergeOptions{.ecn = false, .udp = true}, crew);
    }
    paths.set_socket(underlay());
  }

  void start_sending() {
    outbound = std::make_unique<Outbound>(out, tap.get(), underlay(), std::size_t{4} << 20, crew);
  }

  Underlay underlay() const {
    if (!lan) return UdpSocket::of(udp.get());
    return kind == PortKind::kLink ? Underlay::of_wire(lan.get())
                                   : Underlay::of_ethernet(lan.get());
  }

  std::unique_ptr<PortSettings> settings() const {
    auto made = std::make_unique<PortSettings>();
    made->subnet = "lab";
    made->member = id;
    made->net = net;
    made->macs = {mac};
    made->suite = suite;
    made->backend = best_backend();
    made->transport = underlay().transport;
    if (underlay().is_wire()) {
      made->underlay_mtu = 1'500;
    } else if (lan) {
      made->subnet_tag = kTag;
    } else {
      made->udp_port = udp_port;
    }
    made->freshness_ms = 30'000;
    made->hold_frames = 8;
    made->hold_ms = 1000;
    made->hold_bytes = 4 << 20;
    made->storm_frames = 0;
    made->kind = kind;
    made->broadcasts = {{0x0a0102ff, 30}};  // 10.1.2.255
    return made;
  }

  void change(const std::function<void(PortSettings&)>& use) {
    auto changed = std::make_unique<PortSettings>(tables.settings());
    use(*changed);
    tables.set_settings(std::move(changed));
  }

  /// This node's clock is `ahead_ms` ahead of key-server time.
  void set_clock(std::int64_t ahead_ms) {
    const std::uint64_t now = boot_ms();
    clock.set(static_cast<std::int64_t>(kServerMs) + ahead_ms - static_cast<std::int64_t>(now),
              now);
  }

  void know(const Node& other, bool online = true) {
    if (kind == PortKind::kLink) {
      tables.set_peer({.peer = other.net + "/" + other.id,
                       .index = other.index,
                       .boot = other.boot_public,
                       .macs = {},
                       .endpoints = lan ? std::vector<Endpoint>{}
                                        : std::vector<Endpoint>{loopback(other.udp_port)},
                       .online = online,
                       .net = other.net},
                      boot_ms());
      if (lan) return;
      // As after an answer to a probe.
      tables.set_endpoint(*tables.peer(other.net + "/" + other.id), loopback(other.udp_port));
      return;
    }
    const Endpoint there = lan ? Endpoint::of_ethernet(other.mac, mac) : loopback(other.udp_port);
    tables.set_peer({other.id,
                     other.index,
                     other.boot_public,
                     {other.mac},
                     {there},
                     online,
                     false,
                     other.kind == PortKind::kPlain},
                    boot_ms());
  }

  void from_host(const VnetHeader& header, const Frame& frame) {
    Frame packet(kVnetHeaderSize);
    write_vnet_header(std::span(packet).first<kVnetHeaderSize>(), header);
    append(packet, frame);
    if (write(tap_far.get(), packet.data(), packet.size()) != static_cast<ssize_t>(packet.size())) {
      throw std::runtime_error("write to the TAP");
    }
  }

  std::optional<TapPacket> to_host() {
    Frame packet(70'000);
    const ssize_t got = read(tap_far.get(), packet.data(), packet.size());
    if (got < static_cast<ssize_t>(kVnetHeaderSize)) return std::nullopt;
    packet.resize(static_cast<std::size_t>(got));
    TapPacket result;
    result.header = read_vnet_header(packet).value();
    result.frame.assign(packet.begin() + kVnetHeaderSize, packet.end());
    return result;
  }

  void pump_out() {
    out.reader->online();
    while (outbound->batch()) out.reader->quiescent();
    out.reader->offline();
  }
  void pump_in() {
    in.reader->online();
    while (inbound->batch()) in.reader->quiescent();
    in.reader->offline();
  }
  void pump() {
    pump_out();
    pump_in();
    tables.run_timers(boot_ms());
  }

  std::uint64_t drops(DropReason reason) const {
    return out.drops.get(reason) + in.drops.get(reason);
  }
  std::uint64_t all_drops() const {
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < kDropReasonCount; ++i) sum += drops(static_cast<DropReason>(i));
    return sum;
  }

  std::vector<WorkerEvent> events() {
    std::vector<WorkerEvent> list;
    WorkerEvent event;
    while (out.events.take(event)) list.push_back(event);
    while (in.events.take(event)) list.push_back(event);
    return list;
  }

  const std::string id;
  const MacAddress mac;
  const std::uint32_t index;
  const Suite suite;
  const PortKind kind;
  const std::string net;
  const UniqueFd lan;
  UniqueFd tap;
  UniqueFd tap_far;
  UniqueFd udp;
  std::uint16_t udp_port = 0;
  UniqueFd wake = must(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  UniqueFd wake_out = must(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  UniqueFd control_wake = must(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  ServerClock clock;
  PortTables tables;
  std::uint32_t boot = 0;
  std::array<std::uint8_t, 32> boot_public{};
  WorkerShare out{tables, clock, wake.get(), control_wake.get()};
  WorkerShare in{tables, clock, wake.get(), control_wake.get()};
  Crew crew;
  std::unique_ptr<Outbound> outbound;
  std::unique_ptr<Inbound> inbound;
  std::vector<std::string> moved;
  std::vector<std::string> silent;
  PathManager paths{tables,
                    clock,
                    {[this](const Peer& peer) { moved.push_back(peer.id); },
                     [this](const Peer& peer) { silent.push_back(peer.id); }}};
};

/// The threads that a port would have for `node`, instead of `pump`.
inline std::unique_ptr<Lane> start_lane(Node& node, const LaneOptions& options) {
  const std::array<int, Lane::kWakeFds> wakes{node.wake.get(), node.wake_out.get()};
  auto lane = std::make_unique<Lane>(
      node.tables, node.clock, wakes, node.control_wake.get(),
      Lane::Io{node.tap.get(), node.underlay(), {}, std::size_t{4} << 20}, options);
  lane->start();
  return lane;
}

/// A key to send with was installed, and what waited for it has gone: the first probe follows.
inline void begin_path(Node& node, Peer& peer, std::uint64_t now_ms) {
  node.paths.key_installed(peer, now_ms);
  node.paths.run(now_ms + PathManager::kFramesFirstMs);
}

/// Alice owns what l2-frames.hpp takes as source, Bob its destination.
struct Pair {
  static constexpr MacAddress kAlice{std::array<std::uint8_t, 6>{0x02, 0, 0, 0, 0, 2}};
  static constexpr MacAddress kBob{std::array<std::uint8_t, 6>{0x02, 0, 0, 0, 0, 1}};

  Node alice;
  Node bob;
  Random random{7};
  std::array<std::uint8_t, 32> key = random.array<32>();

  /// On UDP.
  Pair() : Pair(Node::Options{}, Node::Options{}) {}
  explicit Pair(std::size_t helpers) : Pair(options_of(helpers), options_of(helpers)) {}
  explicit Pair(Suite suite) : Pair(options_of(0, suite), options_of(0, suite)) {}
  /// On a LAN that the two are alone on.
  Pair(UniqueFd alices, UniqueFd bobs)
      : Pair(options_of(0, Suite::kAes256Gcm, std::move(alices)),
             options_of(0, Suite::kAes256Gcm, std::move(bobs))) {}
  Pair(Node::Options alices, Node::Options bobs)
      : alice("alice", kAlice, 1001, std::move(alices)), bob("bob", kBob, 1002, std::move(bobs)) {
    alice.know(bob);
    bob.know(alice);
  }

  void install_pair(std::uint64_t pw_id = 1) {
    bob.tables.install_pair_key("alice", bob.boot, key, pw_id, true);
    alice.tables.install_pair_key("bob", alice.boot, key, pw_id, true);
  }
  void install_group(std::uint64_t pw_id = 1) {
    alice.tables.install_group_key(key, pw_id, true, boot_ms());
    bob.tables.install_group_key(key, pw_id, true, boot_ms());
  }

  /// What Alice's kernel sends is sealed and lies in Bob's socket.
  void send(const Frame& frame, const VnetHeader& header = {}) {
    alice.from_host(header, frame);
    alice.pump_out();
  }

  /// Takes what lies in Bob's socket away from him: the sealed frames, one by one.
  std::vector<Frame> intercept() {
    std::vector<Frame> frames;
    for (std::vector<Frame>& train : intercept_trains()) {
      std::ranges::move(train, std::back_inserter(frames));
    }
    return frames;
  }
  /// The same, by the messages that they came in.
  std::vector<std::vector<Frame>> intercept_trains() {
    std::vector<std::vector<Frame>> all;
    UdpReceiver receiver(UdpSocket::of(bob.udp.get()));
    bool failed = false;
    for (;;) {
      const auto trains = receiver.receive(failed);
      if (trains.empty()) return all;
      for (const auto& train : trains) {
        std::vector<Frame>& frames = all.emplace_back();
        for (std::size_t at = 0; at < train.bytes.size(); at += train.frame_size) {
          const auto one =
              train.bytes.subspan(at, std::min(train.frame_size, train.bytes.size() - at));
          frames.emplace_back(one.begin(), one.end());
        }
      }
    }
  }

  /// Gives Bob a datagram from Alice's socket.
  void inject(const Frame& sealed) {
    send_datagram(UdpSocket::of(alice.udp.get()), loopback(bob.udp_port), sealed);
    bob.pump_in();
  }

  /// A frame as Alice would seal it, with anything in it; under the pair key.
  Frame seal_as_alice(const Frame& payload, std::uint64_t counter, FrameTime time,
                      Kind kind = Kind::kPair, std::uint8_t flags = 0, InnerHeader header = {}) {
    SendKey* const send_key =
        kind == Kind::kGroup ? alice.tables.group_send() : alice.tables.peer("bob")->send.load();
    Frame sealed(payload.size() + kFrameOverhead);
    const std::span all(sealed);
    write_shim({kind, flags, send_key->kid, send_key->index, counter}, all.first<kShimSize>());
    header.time = time;
    std::array<std::uint8_t, kInnerHeaderSize> head;
    write_inner_header(header, head);
    send_key->aead->seal_parts(counter, all.first<kShimSize>(), head, payload,
                               all.subspan(kShimSize, payload.size() + kInnerHeaderSize),
                               all.last<kFrameTagSize>());
    return sealed;
  }

  static Node::Options options_of(std::size_t helpers, Suite suite = Suite::kAes256Gcm,
                                  UniqueFd lan = {}) {
    Node::Options options;
    options.lan = std::move(lan);
    options.helpers = helpers;
    options.suite = suite;
    return options;
  }

  FrameTime time_now() const { return frame_time(bob.clock.server_ms(boot_ms())); }
};

}  // namespace pairwire::test
