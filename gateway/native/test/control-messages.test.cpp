/// The messages of the control socket: what is read must be exactly what the schema says, and
/// nothing that is not can do harm.
#include <doctest/doctest.h>

#include <random>
#include <string>
#include <vector>

#include "control/messages.gen.hpp"

namespace pairwire::messages {
namespace {

using Bytes = std::vector<std::uint8_t>;

/// A key that can be told from everything else in a message.
const std::array<std::uint8_t, 32> kKey = [] {
  std::array<std::uint8_t, 32> key{};
  for (std::size_t i = 0; i < key.size(); ++i) key[i] = static_cast<std::uint8_t>(0xa0 + i);
  return key;
}();

Bytes frame_of(std::uint32_t id, const Command& command) {
  Bytes frame;
  REQUIRE_FALSE(encode_command(id, command, frame));
  return frame;
}

std::span<const std::uint8_t> message_in(const Bytes& frame) {
  const auto length = message_length(std::span(frame).first<kLengthSize>(), kMaxMessage);
  REQUIRE(length);
  REQUIRE(*length + kLengthSize == frame.size());
  return std::span(frame).subspan(kLengthSize);
}

command::KeyPair key_pair() {
  command::KeyPair out;
  out.port = 3;
  out.peer = "bob";
  out.boot = 9;
  out.key = kKey;
  out.pw_id = kMaxSafeInteger;
  out.send = true;
  return out;
}

command::PeerSet peer_set() {
  command::PeerSet out;
  out.peer = "bob";
  out.index = 0xffffffff;
  out.boot = kKey;
  out.macs = {{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}};
  Endpoint endpoint;
  REQUIRE(endpoint.ip.assign(std::array<std::uint8_t, 4>{192, 0, 2, 1}));
  endpoint.port = 51820;
  out.endpoints = {endpoint};
  out.online = true;
  return out;
}

/// Packs a map by hand and says how it is refused; empty if it is not.
template <typename Pack>
std::string refusal(Pack pack) {
  msgpack::sbuffer buffer;
  msgpack::packer<msgpack::sbuffer> packer(buffer);
  pack(packer);
  const auto* data = reinterpret_cast<const std::uint8_t*>(buffer.data());
  const DecodeResult result = decode_command({data, buffer.size()});
  const auto* error = std::get_if<DecodeError>(&result);
  return error == nullptr ? std::string() : error->text();
}

/// `{t: type, id: 1, ...}`, with `fields` more entries to come.
template <typename Packer>
void envelope(Packer& packer, const char* type, std::uint32_t fields) {
  packer.pack_map(2 + fields);
  packer.pack("t");
  packer.pack(type);
  packer.pack("id");
  packer.pack(1);
}

TEST_CASE("control messages: a command comes out as it went in") {
  const Bytes frame = frame_of(42, key_pair());
  const auto message = message_in(frame);
  const DecodeResult result = decode_command(message);
  const auto& request = std::get<Request>(result);
  CHECK(request.id == 42);
  const auto& command = std::get<command::KeyPair>(request.command);
  CHECK(command.port == 3);
  CHECK(command.peer == "bob");
  CHECK(command.pw_id == kMaxSafeInteger);
  CHECK(command.send);
  CHECK(std::equal(command.key.begin(), command.key.end(), kKey.begin()));

  const Bytes second = frame_of(1, peer_set());
  const DecodeResult peer = decode_command(message_in(second));
  const auto& set = std::get<command::PeerSet>(std::get<Request>(peer).command);
  CHECK(set.index == 0xffffffff);
  CHECK(set.macs == peer_set().macs);
  REQUIRE(set.endpoints.size() == 1);
  CHECK(set.endpoints[0].ip == peer_set().endpoints[0].ip);
  CHECK(set.endpoints[0].port == 51820);
}

TEST_CASE("control messages: a key is not copied, so wiping the buffer wipes it") {
  const Bytes frame = frame_of(1, key_pair());
  const auto message = message_in(frame);
  const DecodeResult result = decode_command(message);
  const auto& key = std::get<command::KeyPair>(std::get<Request>(result).command).key;
  CHECK(key.data() >= message.data());
  CHECK(key.data() + key.size() <= message.data() + message.size());
}

TEST_CASE("control messages: what the schema does not say is refused") {
  CHECK(refusal([](auto& p) { envelope(p, "stats", 0); }).empty());
  CHECK(refusal([](auto& p) {
          envelope(p, "stats", 1);
          p.pack("more");
          p.pack(1);
        }) == "stats: unknown or repeated field");
  CHECK(refusal([](auto& p) { envelope(p, "port.remove", 0); }) ==
        "port.remove: port: missing field");
  const auto port = [](const auto& value) {
    return refusal([&](auto& p) {
      envelope(p, "port.remove", 1);
      p.pack("port");
      p.pack(value);
    });
  };
  CHECK(port(65535).empty());
  CHECK(port(65536) == "port.remove: port: out of range");
  CHECK(port(-1) == "port.remove: port: out of range");
  CHECK(port(1.5) == "port.remove: port: wrong type");
  CHECK(port(std::string("1")) == "port.remove: port: wrong type");
  CHECK(port(true) == "port.remove: port: wrong type");
  // Twice the same field, in place of another one.
  CHECK(refusal([](auto& p) {
          p.pack_map(3);
          for (const char* key : {"t", "id", "id"}) {
            p.pack(key);
            key[0] == 't' ? p.pack("port.remove") : p.pack(1);
          }
        }) == "port.remove: port: missing field");
  CHECK(refusal([](auto& p) {
          envelope(p, "attach", 1);
          p.pack("epoch");
          p.pack(std::uint64_t{1} << 53);
        }) == "attach: epoch: out of range");
  CHECK(refusal([](auto& p) { envelope(p, "nonsense", 0); }) == "unknown type");
  CHECK(refusal([](auto& p) {
          p.pack_map(1);
          p.pack("t");
          p.pack("stats");
        }) == "no valid id");
  CHECK(refusal([](auto& p) { p.pack_array(0); }) == "not a map");
  CHECK(refusal([](auto& p) { p.pack(1); }) == "not a map");
  // Bytes behind the end; depth and size that no command has.
  CHECK(refusal([](auto& p) {
          envelope(p, "stats", 0);
          p.pack(1);
        }) == "no valid MessagePack");
  CHECK(refusal([](auto& p) {
          for (int i = 0; i < 1000; ++i) p.pack_array(1);
          p.pack(1);
        }) == "no valid MessagePack");
  CHECK(refusal([](auto& p) { p.pack_array(0xffffffff); }) == "no valid MessagePack");
  CHECK(refusal([](auto& p) { p.pack_map(0xffffffff); }) == "no valid MessagePack");
}

TEST_CASE("control messages: texts, byte strings and lists keep to their limits") {
  const auto refused = [](const Command& command, std::string_view field) {
    Bytes out{7};
    const auto error = encode_command(1, command, out);
    return error && error->code == EncodeErrorCode::out_of_range && error->field == field &&
           out == Bytes{7};
  };
  command::PeerSet command = peer_set();
  const std::string long_name(128, 'x');
  command.peer = long_name;
  CHECK(refused(command, "peer"));
  command = peer_set();
  command.macs.resize(65);
  CHECK(refused(command, "macs"));
  command::KeyPair key = key_pair();
  key.pw_id = kMaxSafeInteger + 1;
  CHECK(refused(key, "pwId"));

  // The decoder's own limits, with messages that our encoder would not make.
  const auto with_peer = [](std::size_t size) {
    return refusal([&](auto& p) {
      envelope(p, "peer.remove", 2);
      p.pack("port");
      p.pack(1);
      p.pack("peer");
      p.pack(std::string(size, 'x'));
    });
  };
  CHECK(with_peer(127).empty());
  CHECK(with_peer(128) != "");
  CHECK(with_peer(100'000) != "");
  const auto with_mac = [](std::uint32_t size) {
    return refusal([&](auto& p) {
      envelope(p, "mac.refuse", 3);
      p.pack("port");
      p.pack(1);
      p.pack("mac");
      p.pack_bin(size);
      p.pack_bin_body(std::string(size, '\0').data(), size);
      p.pack("ms");
      p.pack(1);
    });
  };
  CHECK(with_mac(6).empty());
  CHECK(with_mac(5) == "mac.refuse: mac: out of range");
  CHECK(with_mac(7) == "mac.refuse: mac: out of range");
}

TEST_CASE("control messages: no length is believed before it was checked") {
  const auto length = [](std::array<std::uint8_t, 4> header) {
    return message_length(header, kMaxMessage);
  };
  CHECK_FALSE(length({0, 0, 0, 0}));
  CHECK(length({0, 0, 0, 1}) == std::size_t{1});
  CHECK(length({0, 0x10, 0, 0}) == std::size_t{kMaxMessage});
  CHECK_FALSE(length({0, 0x10, 0, 1}));
  CHECK_FALSE(length({0xff, 0xff, 0xff, 0xff}));
}

TEST_CASE("control messages: an answer that is too large is no half answer") {
  answer::Stats stats;
  stats.ports.resize(1);
  stats.ports[0].peers.resize(16'384);
  Bytes out{1, 2, 3};
  const auto error = encode_answer(1, stats, out);
  REQUIRE(error);
  CHECK(error->code == EncodeErrorCode::too_large);
  CHECK(out == Bytes{1, 2, 3});
  // And one behind the other in a buffer.
  REQUIRE_FALSE(encode_answer(1, answer::Done{}, out));
  const std::size_t first = out.size();
  REQUIRE_FALSE(encode_event(event::KeysWiped{"orphaned"}, out));
  CHECK(first > 3);
  CHECK(out.size() > first + kLengthSize);
}

TEST_CASE("control messages: a message cut short or changed is refused or harmless") {
  std::mt19937 random(20261121);
  for (const Command& command : {Command(key_pair()), Command(peer_set())}) {
    const Bytes frame = frame_of(1, command);
    const auto message = message_in(frame);
    for (std::size_t size = 0; size < message.size(); ++size) {
      CHECK(std::holds_alternative<DecodeError>(decode_command(message.first(size))));
    }
    for (int round = 0; round < 20'000; ++round) {
      Bytes changed(message.begin(), message.end());
      for (int i = 0; i <= round % 4; ++i) {
        changed[random() % changed.size()] = static_cast<std::uint8_t>(random());
      }
      // Under ASan and UBSan this is the test: whatever it is, it is in bounds.
      const DecodeResult result = decode_command(changed);
      if (const auto* request = std::get_if<Request>(&result)) {
        if (const auto* key = std::get_if<command::KeyPair>(&request->command)) {
          CHECK(key->peer.size() <= 63);
        }
      }
    }
  }
}

TEST_CASE("control messages: a refusal quotes nothing of the message") {
  // The key is where a name should be.
  const std::string text = refusal([](auto& p) {
    envelope(p, "key.pair", 1);
    p.pack("key");
    p.pack(std::string(reinterpret_cast<const char*>(kKey.data()), kKey.size()));
  });
  CHECK(text == "key.pair: port: missing field");
}

}  // namespace
}  // namespace pairwire::messages
