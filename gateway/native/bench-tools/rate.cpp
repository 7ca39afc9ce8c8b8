#include "bench-tools/rate.hpp"

#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <random>
#include <sstream>
#include <stdexcept>
#include <thread>
#include <vector>

#include "bench-tools/packets.hpp"

namespace pairwire::benchnet {

namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;

constexpr std::size_t kBatch = 64;
/// Both ends wake by the clock and not for each packet. A receiver that is woken each time would
/// take more of a small machine than the tunnel under test.
constexpr nanoseconds kTick = std::chrono::microseconds(100);
/// What a sender that was held up may catch up. More would be a burst that nobody asked for.
constexpr nanoseconds kLongestDebt = milliseconds(2);
/// Sequence numbers that the receiver can tell apart: 64 Mi, so 8 MiB of memory.
constexpr std::uint64_t kMostPackets = 1ULL << 26;
/// After the last packet was sent, and when none came for so long, none comes any more.
constexpr milliseconds kSilence{150};
constexpr milliseconds kLongestWait{2000};

/// Bytes that don't compress; tunnels may try.
std::vector<std::uint8_t> payload_of(std::size_t bytes) {
  std::vector<std::uint8_t> payload(bytes);
  std::mt19937 random(1);
  std::ranges::generate(payload, [&] { return static_cast<std::uint8_t>(random()); });
  return payload;
}

/// A thread that sleeps most of the time and must be on time: where a tunnel uses all processors,
/// the scheduler would make it wait for milliseconds. In vain without the right to it, as every
/// figure then shows.
void be_punctual() {
  prctl(PR_SET_TIMERSLACK, 1UL);
  setpriority(PRIO_PROCESS, 0, -20);
}

void sleep_until(Clock::time_point when) {
  const auto since = when.time_since_epoch();
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(since);
  timespec time{};
  time.tv_sec = seconds.count();
  time.tv_nsec = std::chrono::duration_cast<nanoseconds>(since - seconds).count();
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, nullptr) == EINTR) {
  }
}

struct Sent {
  std::uint64_t packets = 0;
  std::uint64_t refused = 0;  ///< the kernel said ENOBUFS; counted in `packets` and so as lost
  nanoseconds time{};
};

class Sender {
 public:
  Sender(int fd, std::uint64_t run, std::size_t payload_size)
      : fd_(fd), payload_(payload_of(payload_size)) {
    for (std::size_t i = 0; i < kBatch; ++i) {
      stamps_[i].run = run;
      parts_[2 * i] = {&stamps_[i], sizeof(Stamp)};
      parts_[2 * i + 1] = {payload_.data(), payload_size - sizeof(Stamp)};
      messages_[i] = {};
      messages_[i].msg_hdr.msg_iov = &parts_[2 * i];
      messages_[i].msg_hdr.msg_iovlen = 2;
    }
  }

  Sent run(std::uint64_t pps, nanoseconds time) {
    const Clock::time_point start = Clock::now();
    const Clock::time_point end = start + time;
    Clock::time_point now = start;
    // What was sent or given up; what is due at a moment is computed from the start, so nothing
    // drifts.
    std::uint64_t accounted = 0;
    for (Clock::time_point tick = start; now < end && sent_.packets < kMostPackets;) {
      if (pps == 0) {
        send_batch(kBatch);
      } else {
        const std::uint64_t due = packets_in(now - start, pps);
        const std::uint64_t most = packets_in(kLongestDebt, pps) + 1;
        if (due > accounted + most) accounted = due - most;
        while (accounted < due) {
          const std::uint64_t n = std::min<std::uint64_t>(kBatch, due - accounted);
          send_batch(static_cast<std::size_t>(n));
          accounted += n;
        }
        tick = std::max(tick + kTick, Clock::now());
        sleep_until(tick);
      }
      now = Clock::now();
    }
    sent_.time = now - start;
    return sent_;
  }

 private:
  static std::uint64_t packets_in(nanoseconds time, std::uint64_t pps) {
    return static_cast<std::uint64_t>(static_cast<double>(time.count()) * 1e-9 *
                                      static_cast<double>(pps));
  }

  void send_batch(std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) stamps_[i].sequence = sent_.packets + i;
    std::size_t done = 0;
    while (done < count) {
      const int n = sendmmsg(fd_, messages_.data() + done, static_cast<unsigned>(count - done), 0);
      if (n > 0) {
        done += static_cast<std::size_t>(n);
      } else if (errno == ENOBUFS) {
        ++sent_.refused;
        ++done;
      } else if (errno != EINTR && errno != ECONNREFUSED) {
        throw_errno("sendmmsg");
      }
    }
    sent_.packets += count;
  }

  int fd_;
  std::vector<std::uint8_t> payload_;
  Sent sent_;
  std::array<Stamp, kBatch> stamps_{};
  std::array<iovec, 2 * kBatch> parts_{};
  std::array<mmsghdr, kBatch> messages_{};
};

struct Received {
  std::uint64_t packets = 0;    ///< each sequence number once
  std::uint64_t duplicate = 0;  ///< again
  std::uint64_t reordered = 0;  ///< after one with a higher number
  std::uint64_t foreign = 0;    ///< of another run, or damaged
  std::uint32_t overflow = 0;   ///< lost in our own receive buffer: our fault, not the tunnel's
  Clock::time_point first{};
  Clock::time_point last{};
};

/// Threads: its own while it runs; `progress` may be read by any.
class Receiver {
 public:
  Receiver(int fd, std::uint64_t run, std::size_t payload_size)
      : fd_(fd), run_(run), payload_size_(payload_size), seen_(kMostPackets / 64) {
    for (std::size_t i = 0; i < kBatch; ++i) {
      parts_[i] = {buffers_[i].data(), buffers_[i].size()};
      messages_[i] = {};
      messages_[i].msg_hdr.msg_iov = &parts_[i];
      messages_[i].msg_hdr.msg_iovlen = 1;
    }
  }

  void run(const std::stop_token& stop) {
    be_punctual();
    Clock::time_point tick = Clock::now();
    while (!stop.stop_requested()) {
      drain();
      tick = std::max(tick + kTick, Clock::now());
      sleep_until(tick);
    }
    drain();
  }

  [[nodiscard]] std::uint64_t progress() const { return progress_.load(std::memory_order_relaxed); }
  /// After `run` has returned.
  [[nodiscard]] const Received& result() const { return received_; }

 private:
  struct alignas(cmsghdr) Control {
    std::array<std::uint8_t, CMSG_SPACE(sizeof(std::uint32_t))> bytes;
  };

  void drain() {
    for (;;) {
      for (std::size_t i = 0; i < kBatch; ++i) {
        messages_[i].msg_hdr.msg_control = &controls_[i];
        messages_[i].msg_hdr.msg_controllen = sizeof(Control);
      }
      const int n = recvmmsg(fd_, messages_.data(), kBatch, MSG_DONTWAIT, nullptr);
      if (n <= 0) break;
      const Clock::time_point now = Clock::now();
      if (received_.packets == 0) received_.first = now;
      received_.last = now;
      for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) count(i);
      if (static_cast<std::size_t>(n) < kBatch) break;
    }
    progress_.store(received_.packets + received_.duplicate, std::memory_order_relaxed);
  }

  void count(std::size_t i) {
    read_overflow(messages_[i].msg_hdr);
    Stamp stamp;

    const bool whole = messages_[i].msg_len == payload_size_;
    if (whole) std::memcpy(&stamp, buffers_[i].data(), sizeof stamp);
    if (!whole || stamp.run != run_ || stamp.sequence >= kMostPackets) {
      ++received_.foreign;
      return;
    }
    std::uint64_t& word = seen_[stamp.sequence / 64];
    const std::uint64_t bit = 1ULL << (stamp.sequence % 64);
    if ((word & bit) != 0) {
      ++received_.duplicate;
      return;
    }
    word |= bit;
    ++received_.packets;
    if (stamp.sequence + 1 < next_) ++received_.reordered;
    next_ = std::max(next_, stamp.sequence + 1);
  }

  void read_overflow(msghdr& header) {
    for (cmsghdr* c = CMSG_FIRSTHDR(&header); c != nullptr; c = CMSG_NXTHDR(&header, c)) {
      if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SO_RXQ_OVFL) continue;
      std::memcpy(&received_.overflow, CMSG_DATA(c), sizeof received_.overflow);
    }
  }

  int fd_;
  std::uint64_t run_;
  std::size_t payload_size_;
  std::vector<std::uint64_t> seen_;
  std::uint64_t next_ = 0;
  Received received_;
  std::atomic<std::uint64_t> progress_{0};
  std::array<std::array<std::uint8_t, kLargest>, kBatch> buffers_{};
  std::array<Control, kBatch> controls_{};
  std::array<iovec, kBatch> parts_{};
  std::array<mmsghdr, kBatch> messages_{};
};

double seconds_of(nanoseconds time) {
  return static_cast<double>(time.count()) * 1e-9;
}

/// Until all has come that was sent, or nothing comes any more.
void wait_for_the_rest(const Receiver& receiver, std::uint64_t sent) {
  const Clock::time_point end = Clock::now() + kLongestWait;
  Clock::time_point last_progress = Clock::now();
  std::uint64_t seen = receiver.progress();
  while (seen < sent && Clock::now() < end && Clock::now() < last_progress + kSilence) {
    std::this_thread::sleep_for(milliseconds(5));
    if (const std::uint64_t now = receiver.progress(); now != seen) {
      seen = now;
      last_progress = Clock::now();
    }
  }
}

}  // namespace

void serve_rate(Conversation& conversation, const std::string& arguments) {
  std::uint64_t run = 0;
  std::size_t payload = 0;
  if (!(std::istringstream(arguments) >> run >> payload) || payload < sizeof(Stamp) ||
      payload > kLargest) {
    throw std::runtime_error("rate wants a run and a size");
  }
  std::uint16_t port = 0;
  const UniqueFd fd = udp_server(port);
  const auto receiver = std::make_unique<Receiver>(fd.get(), run, payload);
  std::uint64_t sent = 0;
  {
    const std::jthread thread([&](const std::stop_token& stop) { receiver->run(stop); });
    conversation.say("ready " + std::to_string(port));
    if (!(std::istringstream(conversation.expect("sent")) >> sent)) {
      throw std::runtime_error("sent wants a number");
    }
    wait_for_the_rest(*receiver, sent);
  }
  const Received& got = receiver->result();
  std::ostringstream line;
  line << "counts " << got.packets << ' ' << got.duplicate << ' ' << got.reordered << ' '
       << got.foreign << ' ' << got.overflow << ' ' << seconds_of(got.last - got.first);
  conversation.say(line.str());
}

void run_rate(const RateOptions& options) {
  // A flood never sleeps, so it has to take its turn like everybody.
  if (options.pps > 0) be_punctual();
  const std::uint64_t run = std::random_device{}();
  const std::size_t payload = options.size - kHeaders;
  Conversation conversation(tcp_connect(options.control, milliseconds(3000)));
  conversation.say("rate " + std::to_string(run) + ' ' + std::to_string(payload));
  const auto port = static_cast<std::uint16_t>(std::stoul(conversation.expect("ready")));
  const UniqueFd fd = udp_client(parse_address(options.target, port));
  const Sent sent = Sender(fd.get(), run, payload).run(options.pps, options.time);
  conversation.say("sent " + std::to_string(sent.packets));

  Received got;
  double receive_seconds = 0;
  std::istringstream counts(conversation.expect("counts"));
  if (!(counts >> got.packets >> got.duplicate >> got.reordered >> got.foreign >> got.overflow >>
        receive_seconds)) {
    throw std::runtime_error("the counts are not complete");
  }
  const auto share = [](std::uint64_t part, std::uint64_t all) {
    return all == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(all);
  };
  const double seconds = seconds_of(sent.time);
  const std::uint64_t lost = sent.packets - std::min(sent.packets, got.packets);
  std::printf(
      "{\"size\":%zu,\"wanted_pps\":%llu,\"seconds\":%.6f,\"sent\":%llu,\"refused\":%llu,"
      "\"received\":%llu,\"lost\":%llu,\"loss\":%.8f,\"duplicate\":%llu,\"reordered\":%llu,"
      "\"foreign\":%llu,\"receiver_overflow\":%u,\"offered_pps\":%.1f,\"received_pps\":%.1f}\n",
      options.size, static_cast<unsigned long long>(options.pps), seconds,
      static_cast<unsigned long long>(sent.packets), static_cast<unsigned long long>(sent.refused),
      static_cast<unsigned long long>(got.packets), static_cast<unsigned long long>(lost),
      share(lost, sent.packets), static_cast<unsigned long long>(got.duplicate),
      static_cast<unsigned long long>(got.reordered), static_cast<unsigned long long>(got.foreign),
      got.overflow, static_cast<double>(sent.packets) / seconds,
      static_cast<double>(got.packets) / std::max(receive_seconds, seconds));
}

}  // namespace pairwire::benchnet
