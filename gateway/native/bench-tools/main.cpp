// pairwire-bench-net: the load generator of scripts/bench. It knows nothing of tunnels.
//
//   pairwire-bench-net serve [--port P]
//   pairwire-bench-net rate --control ADDRESS --target ADDRESS [--port P] [--size BYTES] [--pps N]
//   [--ms N] pairwire-bench-net echo --control ADDRESS --target ADDRESS [--port P] [--size BYTES]
//   [--count N]
//                           [--gap-us N]
//
// `serve` is the far end of the other two; `--control` is where it is reached by TCP (best past the
// tunnel, so that an overload does not hit the counts), `--target` where datagrams go. `--size`
// counts the whole IPv4 packet. `--pps 0`: as fast as the socket takes them; `--gap-us 0`: the next
// request at once. Prints one object of JSON. Datagrams are plain ones, each with a system call's
// worth of its own header: no UDP_SEGMENT, no UDP_GRO, so that no tunnel is given what it could not
// get from others.
#include <charconv>
#include <cstdio>
#include <exception>
#include <map>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

#include "bench-tools/echo.hpp"
#include "bench-tools/packets.hpp"
#include "bench-tools/rate.hpp"
#include "bench-tools/sockets.hpp"

namespace pairwire::benchnet {
namespace {

constexpr std::uint64_t kDefaultPort = 7801;

class Arguments {
 public:
  explicit Arguments(std::span<char* const> words) {
    for (std::size_t i = 0; i + 1 < words.size(); i += 2) values_[words[i]] = words[i + 1];
    if (words.size() % 2 != 0) throw std::invalid_argument("an option lacks its value");
  }

  /// Each option may be asked for once.
  std::string text(const std::string& name) {
    const auto found = values_.extract(name);
    if (found.empty()) throw std::invalid_argument(name + " is missing");
    return found.mapped();
  }

  std::uint64_t number(const std::string& name, std::uint64_t fallback, std::uint64_t lowest,
                       std::uint64_t highest) {
    const auto found = values_.extract(name);
    if (found.empty()) return fallback;
    const std::string& value = found.mapped();
    std::uint64_t result = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), result);
    if (error != std::errc{} || end != value.data() + value.size() || result < lowest ||
        result > highest) {
      throw std::invalid_argument(name + " must be a number from " + std::to_string(lowest) +
                                  " to " + std::to_string(highest));
    }
    return result;
  }

  void done() const {
    if (!values_.empty()) throw std::invalid_argument("unknown option " + values_.begin()->first);
  }

 private:
  std::map<std::string, std::string> values_;
};

std::uint16_t port_of(Arguments& arguments) {
  return static_cast<std::uint16_t>(arguments.number("--port", kDefaultPort, 1, 65'535));
}

void serve_one(UniqueFd socket) {
  Conversation conversation(std::move(socket));
  const std::string line = conversation.hear();
  if (line.starts_with("rate ")) {
    serve_rate(conversation, line.substr(5));
  } else if (line == "echo") {
    serve_echo(conversation);
  } else {
    conversation.say("unknown");
  }
}

[[noreturn]] void serve(std::uint16_t port) {
  const UniqueFd listener = tcp_listener(port);
  for (;;) {
    UniqueFd socket(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!socket) continue;
    try {
      serve_one(std::move(socket));
    } catch (const std::exception& error) {
      // A client that went away in the middle ends its own measurement only.
      std::fprintf(stderr, "pairwire-bench-net: %s\n", error.what());
    }
  }
}

void rate(Arguments& arguments) {
  RateOptions options;
  options.target = arguments.text("--target");
  options.control = parse_address(arguments.text("--control"), port_of(arguments));
  options.size = arguments.number("--size", 64, kSmallest, kLargest);
  options.pps = arguments.number("--pps", 0, 0, 100'000'000);
  options.time = std::chrono::milliseconds(arguments.number("--ms", 1000, 1, 60'000));
  arguments.done();
  run_rate(options);
}

void echo(Arguments& arguments) {
  EchoOptions options;
  options.target = arguments.text("--target");
  options.control = parse_address(arguments.text("--control"), port_of(arguments));
  options.size = arguments.number("--size", 64, kSmallest, kLargest);
  options.count = arguments.number("--count", 1000, 1, 1'000'000);
  options.gap = std::chrono::microseconds(arguments.number("--gap-us", 1000, 0, 1'000'000));
  arguments.done();
  run_echo(options);
}

int run(std::span<char* const> words) {
  const std::string_view command = words.empty() ? "" : words[0];
  Arguments arguments(words.empty() ? words : words.subspan(1));
  if (command == "serve") {
    const std::uint16_t port = port_of(arguments);
    arguments.done();
    serve(port);
  }
  if (command == "rate") {
    rate(arguments);
  } else if (command == "echo") {
    echo(arguments);
  } else {
    throw std::invalid_argument("the first word must be serve, rate or echo");
  }
  return 0;
}

}  // namespace
}  // namespace pairwire::benchnet

int main(int argc, char** argv) {
  try {
    return pairwire::benchnet::run({argv + 1, static_cast<std::size_t>(argc - 1)});
  } catch (const std::invalid_argument& error) {
    std::fprintf(stderr, "pairwire-bench-net: %s\n", error.what());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "pairwire-bench-net: %s\n", error.what());
    return 1;
  }
}
