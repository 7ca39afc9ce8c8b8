// Who serves which direction of a lane: two lanes with all their threads, each the other's far end.
#include "core/lane.hpp"

#include <dirent.h>
#include <doctest/doctest.h>
#include <sched.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <ctime>
#include <fstream>
#include <memory>
#include <string>
#include <thread>

#include "test/lab.hpp"
#include "test/uptime-file.hpp"

using namespace pairwire;
using namespace pairwire::test;

namespace {

/// Waits until `done`, far longer than it takes on any machine; false if it never is.
template <typename Done>
bool eventually(Done done) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (!done()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

/// A super-frame as the TAP gives it.
Frame super_packet(const Node& from, const Node& to) {
  FrameSpec spec;
  spec.payload = Random(5).bytes(30'000);
  Frame frame = make_frame(spec, true);
  std::ranges::copy(to.mac.bytes(), frame.begin());
  std::ranges::copy(from.mac.bytes(), frame.begin() + MacAddress::kSize);
  Frame packet(kVnetHeaderSize + frame.size());
  write_vnet_header(std::span(packet).first<kVnetHeaderSize>(), gso_header(frame, 1'300));
  std::ranges::copy(frame, packet.begin() + kVnetHeaderSize);
  return packet;
}

/// A frame of its own from one to the other.
Frame small_frame(const Node& from, const Node& to) {
  Frame frame = make_frame(FrameSpec{});
  std::ranges::copy(to.mac.bytes(), frame.begin());
  std::ranges::copy(from.mac.bytes(), frame.begin() + MacAddress::kSize);
  return frame;
}

double process_seconds(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9;
}

/// The part of a core that this process takes while `send` is called about a thousand times a
/// second.
template <typename Send>
double core_share(Send send) {
  double cpu = 0;
  double wall = 0;
  for (int i = 0; i < 400; ++i) {
    if (i == 100) {  // Until then it is learned.
      cpu = process_seconds(CLOCK_PROCESS_CPUTIME_ID);
      wall = process_seconds(CLOCK_MONOTONIC);
    }
    send();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return (process_seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu) /
         (process_seconds(CLOCK_MONOTONIC) - wall);
}

bool write_to(const Node& node, const Frame& packet) {
  return write(node.tap_far.get(), packet.data(), packet.size()) > 0;
}

/// A host that sends super-frames as fast as its TAP takes them, and drops what comes.
class BusyHost {
 public:
  BusyHost(const Node& node, const Node& to) {
    thread_ = std::thread([this, &node, packet = super_packet(node, to)] {
      Frame buffer(70'000);
      while (!stop_) {
        const bool sent = write_to(node, packet);
        const bool came = read(node.tap_far.get(), buffer.data(), buffer.size()) > 0;
        if (!sent && !came) std::this_thread::yield();
      }
    });
  }
  ~BusyHost() {
    stop_ = true;
    thread_.join();
  }

 private:
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

/// How a thread of this process is scheduled; -1 if there is none of that name.
int policy_of(std::string_view thread) {
  const std::unique_ptr<DIR, int (*)(DIR*)> tasks(opendir("/proc/self/task"), closedir);
  while (const dirent* const entry = readdir(tasks.get())) {
    std::ifstream file("/proc/self/task/" + std::string(entry->d_name) + "/comm");
    std::string name;
    if (std::getline(file, name) && name == thread) {
      return sched_getscheduler(std::stoi(entry->d_name));
    }
  }
  return -1;
}

}  // namespace

TEST_CASE("Lane: a second thread takes a busy direction over, gives it back, and takes it again") {
  Pair pair;
  pair.install_pair();
  // Any work counts as busy: how long a batch takes is the machine's affair.
  const auto alice =
      start_lane(pair.alice, {.spin_us = 20, .helpers = 0, .busy_us = 0, .busy_percent = 0});
  const auto bob = start_lane(pair.bob, {.spin_us = 20, .helpers = 0, .second_thread = false});
  for (std::uint64_t turn = 1; turn <= 2; ++turn) {
    {
      const BusyHost one(pair.alice, pair.bob);
      const BusyHost other(pair.bob, pair.alice);
      CHECK(eventually([&] { return alice->gifts() >= turn; }));
    }
    CHECK(eventually([&] { return !alice->given(); }));
  }
  CHECK(bob->gifts() == 0);

  {
    // A direction that has little to do goes back while the other stays busy, and is still served.
    const BusyHost other(pair.bob, pair.alice);
    const Frame packet = super_packet(pair.alice, pair.bob);
    for (std::uint64_t turn = 3; turn <= 6; ++turn) {
      REQUIRE(eventually([&] { return write_to(pair.alice, packet); }));
      REQUIRE(eventually([&] { return alice->gifts() >= turn; }));
      REQUIRE(eventually([&] { return !alice->given(); }));
    }
  }

  // With all quiet again, somebody still looks at the TAP: it holds far less than this.
  const Frame packet = super_packet(pair.alice, pair.bob);
  for (int i = 0; i < 500; ++i) {
    REQUIRE(eventually([&] { return write_to(pair.alice, packet); }));
  }
  for (Lane* const lane : {alice.get(), bob.get()}) {
    lane->ask_to_stop();
    lane->join();
    CHECK(lane->in().drops.get(DropReason::not_authentic) == 0);
    CHECK(lane->in().drops.get(DropReason::malformed) == 0);
    CHECK(lane->in().counters.frames > 0);
  }
}

TEST_CASE("Lane: what peers send keeps a thread awake that may wait long, forged datagrams don't") {
  Pair pair;
  pair.install_pair();
  const Frame frame = small_frame(pair.alice, pair.bob);
  // A datagram that bob would take, changed in its last byte.
  pair.alice.from_host({}, frame);
  pair.alice.pump_out();
  Frame forged(2'000);
  ssize_t got = 0;
  REQUIRE(eventually([&] {
    got = recv(pair.bob.udp.get(), forged.data(), forged.size(), 0);
    return got > 0;
  }));
  forged.resize(static_cast<std::size_t>(got));
  forged.back() ^= 1;

  const auto bob = start_lane(pair.bob, {.spin_us = 200'000, .helpers = 0, .second_thread = false});
  const sockaddr_in6 there = [&] {
    sockaddr_in6 address{};
    address.sin6_family = AF_INET6;
    address.sin6_addr = in6addr_loopback;
    address.sin6_port = htons(pair.bob.udp_port);
    return address;
  }();
  const double asleep = core_share([&] {
    sendto(pair.alice.udp.get(), forged.data(), forged.size(), 0,
           reinterpret_cast<const sockaddr*>(&there), sizeof(there));
  });
  CHECK(bob->in().drops.get(DropReason::not_authentic) >= 300);
  CHECK(bob->in().counters.frames == 0);

  Frame received(70'000);
  const double awake = core_share([&] {
    pair.alice.from_host({}, frame);
    pair.alice.pump_out();
    while (read(pair.bob.tap_far.get(), received.data(), received.size()) > 0) {
    }
  });
  CHECK(bob->in().counters.frames >= 300);
  bob->ask_to_stop();
  bob->join();
  // Seen on a busy machine: 0.06 to 0.09 of a core, and 0.6 to all of one.
  CHECK(asleep < awake / 2);
}

TEST_CASE("Lane: its thread pushes others aside only where no core is spare") {
  Pair pair;
  pair.install_pair();
  UptimeFile uptime;
  uptime.says("1.00 1.00\n");
  SpareCores spare(uptime.reader(), 1);
  const auto lane = start_lane(pair.alice, {.spare_cores = &spare});
  const Frame frame = small_frame(pair.alice, pair.bob);
  const auto becomes = [&](int policy) {
    return eventually([&] {
      (void)write_to(pair.alice, frame);
      return policy_of("pw-lane0") == policy;
    });
  };
  CHECK(becomes(SCHED_OTHER));
  uptime.says("1.00 100000.00\n");
  CHECK(becomes(SCHED_BATCH));
  uptime.says("1.00 100000.01\n");
  CHECK(becomes(SCHED_OTHER));
}
