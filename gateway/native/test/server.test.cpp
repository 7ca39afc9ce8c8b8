// The control socket: framing, one controller, observers, orphans; the devices socket. The server
// runs in the test's own thread, turn by turn.
#include "control/server.hpp"

#include <doctest/doctest.h>
#include <linux/netlink.h>
#include <sys/un.h>

#include "io/send-with-fd.hpp"
#include "test/lab.hpp"
#include "test/neighbour-frames.hpp"

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
  explicit ServerBench(std::uint64_t orphan_ms = 900'000, UniqueFd uevents = {},
                       LogLevel log_level = LogLevel::kError, std::size_t ports = 2) {
    Server::Options options;
    options.uevents = std::move(uevents);
    options.control = std::move(control.listener);
    options.devices = std::move(devices.listener);
    options.wake = must(eventfd(0, EFD_NONBLOCK));
    for (std::size_t i = 0; i < ports * Port::kWakeFds; ++i) {
      options.worker_wakes.push_back(must(eventfd(0, EFD_NONBLOCK)));
    }
    options.control_uid = getuid();
    options.own_uid = getuid();
    options.orphan_ms = orphan_ms;
    options.log_level = log_level;
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
  REQUIRE(send_with_fd(connection, text, fd) == static_cast<ssize_t>(text.size()));
}

command::PortSet port_set() {
  command::PortSet one;
  one.port = 1;
  one.subnet = "lab";
  one.member = "alice";
  one.tap = "pw0";
  one.transport = "udp";
  one.udp_port = 7000;
  one.macs = {{0x02, 0, 0, 0, 0, 2}};
  one.suite = "aes-256-gcm";
  one.freshness_ms = 30'000;
  one.kind = "host";
  one.broadcast = "all";
  one.stp = "drop";
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

TEST_CASE("server: what our host announces is told of behind the key that it needs") {
  ServerBench bench;
  Client client(bench);
  CHECK(client.call(command::Attach{1}) == Types{"attached"});
  const Devices devices(bench);
  CHECK(client.call(port_set()) == Types{"done"});
  CHECK(client.call(command::Clock{1'800'000'000'000, boot_ms()}) == Types{"done"});
  CHECK(client.call(command::Lease{1, 1'900'000'000'000}) == Types{"done"});
  CHECK(client.call(command::BootMake{1}) == Types{"boot.made"});
  CHECK(client.call(command::BootIndex{1, 1, 77}) == Types{"done"});
  // An ARP reply says who we are, and is for somebody whose key is not here.
  const MacAddress own{{0x02, 0, 0, 0, 0, 2}};
  const MacAddress stranger{{0x02, 0, 0, 0, 0, 9}};
  Frame packet(kVnetHeaderSize);
  const Frame reply =
      ethernet_frame(stranger, own, 0x0806, arp_packet(2, own, 0xc000'0202, stranger, 0xc000'0209));
  packet.insert(packet.end(), reply.begin(), reply.end());
  REQUIRE(write(devices.far.get(), packet.data(), packet.size()) ==
          static_cast<ssize_t>(packet.size()));
  Types told;
  for (int i = 0; i < 500 && told.size() < 2; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    std::ranges::copy(client.types(), std::back_inserter(told));
  }
  CHECK(told == Types{"miss.mac", "claim"});
}

TEST_CASE("limits: sixteen ports and no more, and helpers as there may be") {
  ServerBench bench(900'000, {}, LogLevel::kError, kMaxPorts);
  Client client(bench);
  CHECK(client.call(command::Attach{1}) == Types{"attached"});
  const UniqueFd broker = bench.devices.connect();
  std::vector<UniqueFd> devices;
  command::PortSet one = port_set();
  std::string tap;
  for (std::uint16_t number = 1; number <= kMaxPorts + 1; ++number) {
    int pair[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, pair) == 0);
    devices.emplace_back(pair[0]);
    devices.emplace_back(pair[1]);
    std::uint16_t any = 0;
    devices.push_back(open_udp(any));
    one.port = number;
    tap = "pw" + std::to_string(number);
    one.tap = tap;
    one.udp_port = static_cast<std::uint16_t>(7000 + number);
    pass(broker.get(), "tap " + tap + " mac 02:00:00:00:00:02 mtu 1400 offload 1", pair[0]);
    pass(broker.get(), "udp " + std::to_string(one.udp_port), devices.back().get());
    bench.turn();
    if (number <= kMaxPorts) {
      REQUIRE(client.call(one) == Types{"done"});
      continue;
    }
    CHECK(client.call(one) == Types{"failed"});
    CHECK(client.why == "too many ports");
  }
  CHECK(client.call(command::PortRemove{1}) == Types{"done"});
  CHECK(client.call(one) == Types{"done"});
  one.helpers = Crew::kMaxHelpers + 1;
  CHECK(client.call(one) == Types{"failed"});
}

TEST_CASE(
    "limits: of very many members those used last are shown, and keys to be installed again") {
  ServerBench bench;
  Client client(bench);
  CHECK(client.call(command::Attach{1}) == Types{"attached"});
  const Devices devices(bench);
  CHECK(client.call(port_set()) == Types{"done"});
  CHECK(client.call(command::BootMake{1}) == Types{"boot.made"});
  CHECK(client.call(command::BootIndex{1, 1, 77}) == Types{"done"});
  const X25519KeyPair everybodys = generate_x25519();
  const std::array<std::uint8_t, 32> key{1};
  const auto enter = [&](std::uint32_t from, std::uint32_t to) {
    for (std::uint32_t i = from; i < to; ++i) {
      command::PeerSet set;
      set.port = 1;
      const std::string id = "m" + std::to_string(i);
      set.peer = id;
      set.index = 1'000 + i;
      set.boot = everybodys.public_key;
      set.online = true;
      REQUIRE(client.call(set) == Types{"done"});
      command::KeyPair pair;
      pair.port = 1;
      pair.peer = id;
      pair.boot = 1;
      pair.key = key;
      pair.pw_id = 1;
      pair.send = true;
      REQUIRE(client.call(pair) == Types{"key.installed"});
    }
  };
  /// The answer to a command, whole.
  const auto ask = [&](Client& from, const messages::Command& one) {
    std::vector<std::uint8_t> out;
    REQUIRE_FALSE(messages::encode_command(99, one, out).has_value());
    from.raw(out);
    std::vector<std::uint8_t> in;
    std::size_t length = 0;
    while (in.size() < 4 || in.size() < 4 + length) {
      bench.turn();
      std::array<std::uint8_t, 65'536> buffer;
      const ssize_t got = read(from.fd.get(), buffer.data(), buffer.size());
      REQUIRE(got != 0);
      if (got > 0) in.insert(in.end(), buffer.begin(), buffer.begin() + got);
      if (in.size() >= 4) length = load_be<std::uint32_t>(std::span(in).first<4>());
    }
    return msgpack::unpack(reinterpret_cast<const char*>(in.data() + 4), length);
  };
  using Map = std::map<std::string, msgpack::object>;
  const auto first_port = [](const msgpack::object_handle& answer) {
    return answer->as<Map>().at("ports").as<std::vector<Map>>().at(0);
  };
  const auto not_shown = [](const Map& port) {
    for (const auto& counter : port.at("counters").as<std::vector<Map>>()) {
      if (counter.at("name").as<std::string>() == "peers_not_shown") {
        return counter.at("value").as<std::uint64_t>();
      }
    }
    return ~std::uint64_t{0};
  };
  enter(0, 3'500);
  auto stats = ask(client, command::Stats{});
  auto port = first_port(stats);
  CHECK(port.at("peers").as<std::vector<Map>>().size() == 3'500);
  CHECK(not_shown(port) == 0);
  enter(3'500, 5'000);
  stats = ask(client, command::Stats{});
  port = first_port(stats);
  CHECK(port.at("peers").as<std::vector<Map>>().size() == 3'500);
  CHECK(not_shown(port) == 1'500);

  // A controller that comes anew is told of as many keys, whatever there are.
  const auto keys_told = [&](std::uint64_t epoch) {
    Client next(bench);
    const auto state = ask(next, command::Attach{epoch});
    return first_port(state).at("pairKeys").as<std::vector<Map>>().size();
  };
  enter(5'000, 5'001);
  CHECK(keys_told(2) == 5'000);
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

TEST_CASE("server: so many connections and no more; those that are there go on") {
  ServerBench bench(900'000, {}, LogLevel::kWarning);
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 16; ++i) {
    clients.push_back(std::make_unique<Client>(bench));
    bench.turn();
  }
  Client late(bench);
  late.types();
  CHECK(late.closed);
  CHECK(clients.front()->call(command::Attach{1}) == Types{"attached"});
  // What the server logs is told to the controller too.
  Client later(bench);
  later.types();
  CHECK(later.closed);
  CHECK(clients.front()->types() == Types{"log"});
  clients.pop_back();
  bench.turn();
  Client next(bench);
  CHECK(next.call(command::Observe{}) == Types{"done"});
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
  CHECK(parse_device("wire eth2 mac 02:00:00:00:00:01 mtu 1500")->kind == Device::Kind::kWire);
  const auto lan = parse_device("ethernet eth1.5 mac 02:00:00:00:00:01 mtu 9000");
  REQUIRE(lan.has_value());
  CHECK(lan->kind == Device::Kind::kEthernet);
  CHECK(lan->name == "eth1.5");
  CHECK(lan->mtu == 9000);
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
                                 "ethernet",
                                 "ethernet eth1",
                                 "ethernet eth1 mac 02:00:00:00:00:01",
                                 "ethernet eth1 mac 02:00:00:00:00:01 mtu 0",
                                 "ethernet eth1 mac 02:00:00:00:00:01 mtu 1500 offload 1",
                                 "ethernet 1234567890123456 mac 02:00:00:00:00:01 mtu 1500",
                                 "raw 7"}) {
    CAPTURE(text);
    CHECK_FALSE(parse_device(text).has_value());
  }
}
