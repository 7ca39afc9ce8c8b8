// The control socket: framing, one controller, observers, orphans; the devices socket. The server
// runs in the test's own thread, turn by turn.
#include "control/server.hpp"

#include <doctest/doctest.h>
#include <linux/netlink.h>
#include <sys/un.h>

#include "test/lab.hpp"

using namespace pairwire;
using namespace pairwire::test;
namespace command = messages::command;

namespace {

/// A listening socket with a name in the abstract namespace, and connections to it.
struct Listener {
  explicit Listener(int type) {
    listener = must(socket(AF_UNIX, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    address.sun_family = AF_UNIX;
    // The kernel chooses the name (unix(7), autobind).
    REQUIRE(bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof(sa_family_t)) == 0);
    length = sizeof(address);
    REQUIRE(getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &length) == 0);
    REQUIRE(listen(listener.get(), 8) == 0);
    kind = type;
  }
  UniqueFd connect() const {
    UniqueFd fd = must(socket(AF_UNIX, kind | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    REQUIRE(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), length) == 0);
    return fd;
  }
  UniqueFd listener;
  sockaddr_un address{};
  socklen_t length = 0;
  int kind = 0;
};

struct ServerBench {
  explicit ServerBench(std::uint64_t orphan_ms = 900'000, UniqueFd uevents = {}) {
    Server::Options options;
    options.uevents = std::move(uevents);
    options.control = std::move(control.listener);
    options.devices = std::move(devices.listener);
    options.wake = must(eventfd(0, EFD_NONBLOCK));
    for (std::size_t i = 0; i < 2 * Port::kWakeFds; ++i) {
      options.worker_wakes.push_back(must(eventfd(0, EFD_NONBLOCK)));
    }
    options.control_uid = getuid();
    options.own_uid = getuid();
    options.orphan_ms = orphan_ms;
    options.log_level = LogLevel::kError;
    server = std::make_unique<Server>(std::move(options));
  }
  void turn(int times = 4) {
    for (int i = 0; i < times; ++i) CHECK(server->turn(0));
  }
  Listener control{SOCK_STREAM};
  Listener devices{SOCK_SEQPACKET};
  std::unique_ptr<Server> server;
};

struct Client {
  explicit Client(ServerBench& for_bench) : bench(for_bench), fd(for_bench.control.connect()) {}

  /// The whole of what has come in: the types of messages and whether the connection is closed.
  std::vector<std::string> types() {
    bench.turn();
    std::array<std::uint8_t, 65'536> buffer;
    for (;;) {
      const ssize_t got = read(fd.get(), buffer.data(), buffer.size());
      if (got == 0) closed = true;
      if (got <= 0) break;
      in.insert(in.end(), buffer.begin(), buffer.begin() + got);
    }
    std::vector<std::string> list;
    while (in.size() >= 4) {
      const std::size_t length = load_be<std::uint32_t>(std::span(in).first<4>());
      if (in.size() < 4 + length) break;
      const auto handle = msgpack::unpack(reinterpret_cast<const char*>(in.data() + 4), length);
      for (const auto& entry : std::span(handle->via.map.ptr, handle->via.map.size)) {
        const auto key = entry.key.as<std::string>();
        if (key == "t") list.push_back(entry.val.as<std::string>());
        if (key == "why") why = entry.val.as<std::string>();
      }
      in.erase(in.begin(), in.begin() + static_cast<std::ptrdiff_t>(4 + length));
    }
    return list;
  }
  void raw(std::span<const std::uint8_t> bytes) {
    REQUIRE(write(fd.get(), bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
  }
  std::vector<std::string> call(const messages::Command& one) {
    std::vector<std::uint8_t> out;
    REQUIRE_FALSE(messages::encode_command(++id, one, out).has_value());
    raw(out);
    return types();
  }

  ServerBench& bench;
  UniqueFd fd;
  std::vector<std::uint8_t> in;
  std::string why;
  std::uint32_t id = 0;
  bool closed = false;
};

using Types = std::vector<std::string>;

void pass(int connection, const std::string& text, int fd) {
  iovec part{const_cast<char*>(text.data()), text.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  cmsghdr* const header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &fd, sizeof(fd));
  REQUIRE(sendmsg(connection, &message, 0) == static_cast<ssize_t>(text.size()));
}

command::PortSet port_set() {
  command::PortSet one;
  one.port = 1;
  one.subnet = "lab";
  one.member = "alice";
  one.tap = "pw0";
  one.udp_port = 7000;
  one.macs = {{0x02, 0, 0, 0, 0, 2}};
  one.suite = "aes-256-gcm";
  one.freshness_ms = 30'000;
  return one;
}

/// The devices of `port_set`, as the broker passes them.
struct Devices {
  explicit Devices(ServerBench& bench) : connection(bench.devices.connect()) {
    int pair[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, pair) == 0);
    tap = UniqueFd(pair[0]);
    far = UniqueFd(pair[1]);
    std::uint16_t port = 0;
    udp = open_udp(port);
    pass(connection.get(), "tap pw0 mac 02:00:00:00:00:02 mtu 1400 offload 1", tap.get());
    pass(connection.get(), "udp 7000", udp.get());
    bench.turn();
  }
  UniqueFd connection;
  UniqueFd tap;
  UniqueFd far;
  UniqueFd udp;
};

}  // namespace

TEST_CASE("server: one controller, the one with the highest epoch") {
  ServerBench bench;
  Client first(bench);
  CHECK(first.call(command::Stats{}) == Types{"failed"});
  CHECK(first.call(command::Wipe{}) == Types{"failed"});
  CHECK(first.call(command::Attach{5}) == Types{"attached"});
  CHECK(first.call(command::Wipe{}) == Types{"done"});

  Client older(bench);
  CHECK(older.call(command::Attach{5}) == Types{"failed"});
  CHECK(older.call(command::Wipe{}) == Types{"failed"});
  Client newer(bench);
  CHECK(newer.call(command::Attach{6}) == Types{"attached"});
  CHECK(newer.call(command::Stats{}) == Types{"stats"});
  first.types();
  CHECK(first.closed);
  // Also after the controller went: an old one that hung must not come back.
  newer.fd.reset();
  CHECK(older.call(command::Attach{6}) == Types{"failed"});
  CHECK(older.call(command::Attach{7}) == Types{"attached"});
}

TEST_CASE("server: an observer sees, and does nothing") {
  ServerBench bench;
  Client observer(bench);
  CHECK(observer.call(command::Observe{}) == Types{"done"});
  CHECK(observer.call(command::Stats{}) == Types{"stats"});
  CHECK(observer.call(command::Wipe{}) == Types{"failed"});
  CHECK(observer.call(command::BootMake{1}) == Types{"failed"});
}

TEST_CASE("server: framing") {
  ServerBench bench;
  Client client(bench);
  std::vector<std::uint8_t> attach;
  REQUIRE_FALSE(messages::encode_command(1, command::Attach{1}, attach).has_value());
  SUBCASE("byte by byte") {
    for (const std::uint8_t byte : attach) {
      client.raw(std::span(&byte, 1));
      bench.turn(2);
    }
    CHECK(client.types() == Types{"attached"});
  }
  SUBCASE("several in one piece") {
    std::vector<std::uint8_t> all = attach;
    for (std::uint32_t id = 2; id < 10; ++id) {
      static_cast<void>(messages::encode_command(id, command::Stats{}, all));
    }
    client.raw(all);
    CHECK(client.types().size() == 9);
  }
  SUBCASE("too long") {
    client.raw(std::vector<std::uint8_t>{0, 0x10, 0, 1});
    client.types();
    CHECK(client.closed);
  }
  SUBCASE("empty") {
    client.raw(std::vector<std::uint8_t>{0, 0, 0, 0});
    client.types();
    CHECK(client.closed);
  }
  SUBCASE("rubbish") {
    client.raw(std::vector<std::uint8_t>{0, 0, 0, 2, 0xc1, 0xc1});
    client.types();
    CHECK(client.closed);
  }
}

TEST_CASE("server: a controller that does not read is cut off and holds nobody up") {
  ServerBench bench;
  Client client(bench);
  CHECK(client.call(command::Attach{1}) == Types{"attached"});
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::uint8_t> stats;
  static_cast<void>(messages::encode_command(9, command::Stats{}, stats));
  for (int i = 0; i < 2000; ++i) {
    if (write(client.fd.get(), stats.data(), stats.size()) < 0) break;
    bench.server->turn(0);
  }
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(20));
  Client next(bench);
  CHECK(next.call(command::Attach{2}) == Types{"attached"});
}

TEST_CASE("server: devices, a port, keys; orphaned, everything goes") {
  ServerBench bench(50);
  Client client(bench);
  CHECK(client.call(command::Attach{1}) == Types{"attached"});
  CHECK(client.call(port_set()) == Types{"failed"});
  CHECK(client.why == "the TAP is not here");
  const Devices devices(bench);
  CHECK(client.call(port_set()) == Types{"done"});
  CHECK(client.call(port_set()) == Types{"done"});
  CHECK(client.call(command::Clock{1'800'000'000'000, boot_ms()}) == Types{"done"});
  CHECK(client.call(command::Lease{1, 1'900'000'000'000}) == Types{"done"});
  CHECK(client.call(command::BootMake{1}) == Types{"boot.made"});
  CHECK(client.call(command::BootMake{2}) == Types{"failed"});
  CHECK(client.call(command::BootIndex{1, 1, 77}) == Types{"done"});
  const X25519KeyPair peer = generate_x25519();
  command::PeerSet set;
  set.port = 1;
  set.peer = "bob";
  set.index = 78;
  set.boot = peer.public_key;
  set.online = true;
  CHECK(client.call(set) == Types{"done"});
  const std::array<std::uint8_t, 32> key{1};
  command::KeyPair pair;
  pair.port = 1;
  pair.peer = "bob";
  pair.boot = 1;
  pair.key = key;
  pair.pw_id = 4;
  pair.send = true;
  CHECK(client.call(pair) == Types{"key.installed"});
  CHECK(client.call(pair) == Types{"key.installed"});
  pair.peer = "carol";
  CHECK(client.call(pair) == Types{"failed"});
  CHECK(client.call(command::Stats{}) == Types{"stats"});

  // A controller that comes back in time finds everything.
  client.fd.reset();
  bench.turn();
  Client second(bench);
  CHECK(second.call(command::Attach{2}) == Types{"attached"});
  CHECK(second.call(command::BootMake{1}) == Types{"boot.made"});
  second.fd.reset();
  bench.turn();
  std::this_thread::sleep_for(std::chrono::milliseconds(60));
  bench.turn();
  Client third(bench);
  const Types types = third.call(command::Attach{3});
  CHECK(types == Types{"attached", "keys.wiped"});
  CHECK(third.call(command::BootMake{1}) == Types{"failed"});
  CHECK(third.call(port_set()) == Types{"done"});  // The devices are still here.
}

TEST_CASE("server: a forward jump of server time wipes and ends for a restart (threats.md C9)") {
  ServerBench bench;
  Client client(bench);
  CHECK(client.call(command::Attach{1}) == Types{"attached"});
  const Devices devices(bench);
  CHECK(client.call(port_set()) == Types{"done"});
  const std::uint64_t now = boot_ms();
  CHECK(client.call(command::Clock{1'800'000'000'000, now}) == Types{"done"});
  CHECK(client.call(command::Clock{1'800'000'001'000, now}) == Types{"done"});
  CHECK(client.call(command::Clock{1'800'000'000'000, now}) == Types{"done"});
  std::vector<std::uint8_t> out;
  static_cast<void>(messages::encode_command(9, command::Clock{1'800'000'010'000, now}, out));
  client.raw(out);
  bool running = true;
  for (int i = 0; i < 4 && running; ++i) running = bench.server->turn(0);
  CHECK_FALSE(running);
}

TEST_CASE("server: a uevent ends it for a restart, unless another process sent it") {
  const std::string uevent("change@/devices/vmgenid\0NEW_VMGENID=1\0", 39);
  bool ends = false;
  SUBCASE("a process: over netlink everybody has a number, only the kernel has 0") {
    const auto open = [] {
      // Of this family, unlike uevents, every user may send.
      UniqueFd fd =
          must(socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, NETLINK_USERSOCK));
      sockaddr_nl any{};
      any.nl_family = AF_NETLINK;
      REQUIRE(bind(fd.get(), reinterpret_cast<sockaddr*>(&any), sizeof(any)) == 0);
      return fd;
    };
    UniqueFd ours = open();
    const UniqueFd stranger = open();
    sockaddr_nl address{};
    socklen_t size = sizeof(address);
    REQUIRE(getsockname(ours.get(), reinterpret_cast<sockaddr*>(&address), &size) == 0);
    REQUIRE(sendto(stranger.get(), uevent.data(), uevent.size(), 0,
                   reinterpret_cast<sockaddr*>(&address), size) > 0);
    ServerBench bench(900'000, std::move(ours));
    for (int i = 0; i < 4 && !ends; ++i) ends = !bench.server->turn(0);
    CHECK_FALSE(ends);
  }
  SUBCASE("the kernel (here: a socket without senders)") {
    int pair[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) == 0);
    const UniqueFd kernel(pair[1]);
    ServerBench bench(900'000, UniqueFd(pair[0]));
    REQUIRE(send(kernel.get(), uevent.data(), uevent.size(), 0) > 0);
    for (int i = 0; i < 4 && !ends; ++i) ends = !bench.server->turn(0);
    CHECK(ends);
  }
}

TEST_CASE("server: stats tell whether the TAP has offloads") {
  ServerBench bench;
  Client client(bench);
  CHECK(client.call(command::Attach{1}) == Types{"attached"});
  const Devices devices(bench);
  CHECK(client.call(port_set()) == Types{"done"});
  const auto offload = [&] {
    std::vector<std::uint8_t> out;
    REQUIRE_FALSE(messages::encode_command(99, command::Stats{}, out).has_value());
    client.raw(out);
    bench.turn();
    std::vector<std::uint8_t> in(65'536);
    const ssize_t got = read(client.fd.get(), in.data(), in.size());
    REQUIRE(got > 4);
    const auto handle = msgpack::unpack(reinterpret_cast<const char*>(in.data() + 4),
                                        static_cast<std::size_t>(got) - 4);
    const auto stats = handle->as<std::map<std::string, msgpack::object>>();
    const auto ports = stats.at("ports").as<std::vector<std::map<std::string, msgpack::object>>>();
    return ports.at(0).at("offload").as<bool>();
  };
  CHECK(offload());
  pass(devices.connection.get(), "tap pw0 mac 02:00:00:00:00:02 mtu 1400 offload 0",
       devices.tap.get());
  bench.turn();
  CHECK_FALSE(offload());
}

TEST_CASE("devices: texts") {
  const auto tap = parse_device("tap pw0 mac 02:aB:00:00:00:01 mtu 1400 offload 1");
  REQUIRE(tap.has_value());
  CHECK(tap->name == "pw0");
  CHECK(tap->mtu == 1400);
  CHECK(tap->offload);
  CHECK_FALSE(parse_device("tap pw0 mac 02:00:00:00:00:01 mtu 1400 offload 0")->offload);
  CHECK(tap->mac == MacAddress(std::array<std::uint8_t, 6>{0x02, 0xab, 0, 0, 0, 1}));
  CHECK(parse_device("udp 65535")->port == 65535);
  for (const char* const text : {"",
                                 "tap",
                                 "tap pw0",
                                 "tap pw0 mac 02:00:00:00:00:01",
                                 "tap  mac 02:00:00:00:00:01 mtu 1 offload 0",
                                 "tap 1234567890123456 mac 02:00:00:00:00:01 mtu 1 offload 0",
                                 "tap pw0 mac 02:00:00:00:00:0g mtu 1 offload 0",
                                 "tap pw0 mac 02-00-00-00-00-01 mtu 1 offload 0",
                                 "tap pw0 mac 02:00:00:00:00:01 mtu 0 offload 0",
                                 "tap pw0 mac 02:00:00:00:00:01 mtu 1",
                                 "tap pw0 mac 02:00:00:00:00:01 mtu 1 offload",
                                 "tap pw0 mac 02:00:00:00:00:01 mtu 1 offload 2",
                                 "tap pw0 mac 02:00:00:00:00:01 mtu 1 offload on",
                                 "tap pw0 mac 02:00:00:00:00:01 mtu 65536 offload 0",
                                 "tap pw0 mac 02:00:00:00:00:01 mtu 1 offload 0 x",
                                 "udp",
                                 "udp 0",
                                 "udp 65536",
                                 "udp -1",
                                 "udp 1 2",
                                 "raw 7"}) {
    CAPTURE(text);
    CHECK_FALSE(parse_device(text).has_value());
  }
}
