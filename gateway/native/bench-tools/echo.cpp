#include "bench-tools/echo.hpp"

#include <sys/prctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <map>
#include <numeric>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "bench-tools/packets.hpp"

namespace pairwire::benchnet {

namespace {

using std::chrono::milliseconds;

/// Not counted: caches, the neighbour entry, the first key.
constexpr std::uint64_t kWarmUp = 20;
constexpr milliseconds kPatience{250};

void answer_all(int fd, const std::stop_token& stop) {
  std::array<std::uint8_t, kLargest> buffer;
  while (!stop.stop_requested()) {
    sockaddr_in from{};
    socklen_t size = sizeof from;
    const ssize_t n =
        recvfrom(fd, buffer.data(), buffer.size(), 0, reinterpret_cast<sockaddr*>(&from), &size);
    if (n < 0) continue;  // Nobody asked for a while; or an answer found no listener.
    // What can't be sent is lost, as the one who asks will see.
    static_cast<void>(sendto(fd, buffer.data(), static_cast<std::size_t>(n), 0,
                             reinterpret_cast<const sockaddr*>(&from), size));
  }
}

class Asker {
 public:
  Asker(int fd, std::size_t payload) : fd_(fd), out_(payload), in_(payload) {
    stamp_.run = std::random_device{}();
  }

  /// False if no answer came in time.
  bool ask(std::chrono::nanoseconds& time) {
    ++stamp_.sequence;
    std::memcpy(out_.data(), &stamp_, sizeof stamp_);
    const Clock::time_point start = Clock::now();
    if (send(fd_, out_.data(), out_.size(), 0) < 0 && errno != ENOBUFS && errno != ECONNREFUSED) {
      throw_errno("send");
    }
    while (Clock::now() < start + kPatience) {
      if (recv(fd_, in_.data(), in_.size(), 0) < static_cast<ssize_t>(sizeof stamp_)) continue;
      time = Clock::now() - start;
      Stamp answer;
      std::memcpy(&answer, in_.data(), sizeof answer);
      // Any other is the late answer to a question that was given up.
      if (answer.run == stamp_.run && answer.sequence == stamp_.sequence) return true;
    }
    return false;
  }

 private:
  int fd_;
  std::vector<std::uint8_t> out_;
  std::vector<std::uint8_t> in_;
  Stamp stamp_;
};

double microseconds(std::uint64_t ns) {
  return static_cast<double>(ns) / 1000.0;
}

/// Nearest rank.
double percentile(const std::vector<std::uint64_t>& sorted, std::uint64_t per_mille) {
  const std::size_t rank = (sorted.size() * per_mille + 999) / 1000;
  return microseconds(sorted[std::max<std::size_t>(rank, 1) - 1]);
}

void print(std::vector<std::uint64_t> times, const EchoOptions& options, std::uint64_t lost) {
  if (times.empty()) throw std::runtime_error("no request was answered");
  std::ranges::sort(times);
  const std::uint64_t sum = std::accumulate(times.begin(), times.end(), std::uint64_t{0});
  std::printf(
      "{\"size\":%zu,\"gap_us\":%lld,\"count\":%zu,\"lost\":%llu,\"min_us\":%.2f,\"mean_us\":%.2f,"
      "\"p50_us\":%.2f,\"p90_us\":%.2f,\"p99_us\":%.2f,\"p999_us\":%.2f,\"max_us\":%.2f,"
      "\"histogram\":[",
      options.size, static_cast<long long>(options.gap.count()), times.size(),
      static_cast<unsigned long long>(lost), microseconds(times.front()),
      microseconds(sum / times.size()), percentile(times, 500), percentile(times, 900),
      percentile(times, 990), percentile(times, 999), microseconds(times.back()));
  // Powers of two: [microseconds below which, how many].
  std::map<std::uint64_t, std::uint64_t> buckets;
  for (const std::uint64_t ns : times) ++buckets[std::bit_ceil(ns / 1000 + 1)];
  const char* separator = "";
  for (const auto& [below, count] : buckets) {
    std::printf("%s[%llu,%llu]", separator, static_cast<unsigned long long>(below),
                static_cast<unsigned long long>(count));
    separator = ",";
  }
  std::printf("]}\n");
}

}  // namespace

void serve_echo(Conversation& conversation) {
  std::uint16_t port = 0;
  const UniqueFd fd = udp_server(port);
  set_receive_timeout(fd.get(), milliseconds(50));
  const std::jthread thread([&](const std::stop_token& stop) { answer_all(fd.get(), stop); });
  conversation.say("ready " + std::to_string(port));
  static_cast<void>(conversation.hear());
}

void run_echo(const EchoOptions& options) {
  prctl(PR_SET_TIMERSLACK, 1UL);
  Conversation conversation(tcp_connect(options.control, milliseconds(3000)));
  conversation.say("echo");
  const auto port = static_cast<std::uint16_t>(std::stoul(conversation.expect("ready")));
  const UniqueFd fd = udp_client(parse_address(options.target, port));
  set_receive_timeout(fd.get(), kPatience);
  Asker asker(fd.get(), options.size - kHeaders);
  std::vector<std::uint64_t> times;
  times.reserve(options.count);
  std::uint64_t lost = 0;
  for (std::uint64_t i = 0; i < kWarmUp + options.count; ++i) {
    std::chrono::nanoseconds time{};
    const bool answered = asker.ask(time);
    if (i >= kWarmUp) {
      if (answered) {
        times.push_back(static_cast<std::uint64_t>(time.count()));
      } else {
        ++lost;
      }
    }
    if (options.gap.count() > 0) std::this_thread::sleep_for(options.gap);
  }
  print(std::move(times), options, lost);
}

}  // namespace pairwire::benchnet
