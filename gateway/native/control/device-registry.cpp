// See device-registry.hpp.
#include "control/device-registry.hpp"

#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <utility>

namespace pairwire {
namespace {

/// More than one message is ever long.
constexpr std::size_t kMaxText = 256;
/// More descriptors than this in one message are closed by the kernel.
constexpr std::size_t kMaxFds = 4;
constexpr std::size_t kMaxName = 15;  // IFNAMSIZ less the zero.

std::string_view next_word(std::string_view& text) {
  const std::size_t end = text.find(' ');
  const std::string_view word = text.substr(0, end);
  text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  return word;
}

std::optional<std::uint16_t> parse_u16(std::string_view word) {
  std::uint16_t value = 0;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
  if (error != std::errc() || end != word.data() + word.size() || value == 0) return std::nullopt;
  return value;
}

std::optional<MacAddress> parse_mac(std::string_view word) {
  std::array<std::uint8_t, MacAddress::kSize> bytes{};
  if (word.size() != 3 * bytes.size() - 1) return std::nullopt;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    const char* const at = word.data() + 3 * i;
    const auto [end, error] = std::from_chars(at, at + 2, bytes[i], 16);
    if (error != std::errc() || end != at + 2) return std::nullopt;
    if (i + 1 < bytes.size() && at[2] != ':') return std::nullopt;
  }
  return MacAddress(bytes);
}

template <typename Map, typename Key>
const Device* find(const Map& devices, const Key& key) {
  const auto found = devices.find(key);
  return found == devices.end() ? nullptr : &found->second;
}

}  // namespace

std::optional<Device> parse_device(std::string_view text) {
  Device device;
  const std::string_view kind = next_word(text);
  if (kind == "udp") {
    const auto port = parse_u16(next_word(text));
    if (!port || !text.empty()) return std::nullopt;
    device.kind = Device::Kind::kUdp;
    device.port = *port;
    return device;
  }
  if (kind == "tap") {
    device.kind = Device::Kind::kTap;
  } else if (kind == "ethernet") {
    device.kind = Device::Kind::kEthernet;
  } else if (kind == "wire") {
    device.kind = Device::Kind::kWire;
  } else {
    return std::nullopt;
  }
  device.name = next_word(text);
  if (device.name.empty() || device.name.size() > kMaxName) return std::nullopt;
  if (next_word(text) != "mac") return std::nullopt;
  const auto mac = parse_mac(next_word(text));
  if (!mac || next_word(text) != "mtu") return std::nullopt;
  const auto mtu = parse_u16(next_word(text));
  if (!mtu) return std::nullopt;
  device.mac = *mac;
  device.mtu = *mtu;
  if (device.kind == Device::Kind::kTap) {
    if (next_word(text) != "offload") return std::nullopt;
    const std::string_view offload = next_word(text);
    if (offload != "0" && offload != "1") return std::nullopt;
    device.offload = offload == "1";
  }
  if (!text.empty()) return std::nullopt;
  return device;
}

DeviceReceive receive_device(int connection, Device& device) {
  std::array<char, kMaxText> text;
  iovec part{text.data(), text.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kMaxFds * sizeof(int))> control;
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control.data();
  header.msg_controllen = control.size();
  const ssize_t got = recvmsg(connection, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (got < 0) {
    return errno == EAGAIN || errno == EINTR ? DeviceReceive::kNothingYet : DeviceReceive::kClosed;
  }
  std::vector<UniqueFd> fds;
  for (cmsghdr* at = CMSG_FIRSTHDR(&header); at != nullptr; at = CMSG_NXTHDR(&header, at)) {
    if (at->cmsg_level != SOL_SOCKET || at->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (at->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(at) + i * sizeof(int), sizeof(fd));
      fds.emplace_back(fd);
    }
  }
  if (got == 0 && fds.empty()) return DeviceReceive::kClosed;
  auto parsed = parse_device({text.data(), static_cast<std::size_t>(got)});
  const bool whole = (header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0;
  if (!parsed || !whole || fds.size() != 1) return DeviceReceive::kRefused;
  device = std::move(*parsed);
  device.fd = std::move(fds.front());
  return DeviceReceive::kDevice;
}

Device DeviceRegistry::add(Device device) {
  Device& place = device.kind == Device::Kind::kTap        ? taps_[device.name]
                  : device.kind == Device::Kind::kUdp      ? udps_[device.port]
                  : device.kind == Device::Kind::kEthernet ? ethernets_[device.name]
                                                           : wires_[device.name];
  return std::exchange(place, std::move(device));
}

const Device* DeviceRegistry::tap(std::string_view name) const {
  return find(taps_, name);
}

const Device* DeviceRegistry::underlay(Transport transport, std::uint16_t udp_port,
                                       std::string_view interface) const {
  switch (transport) {
    case Transport::kUdp:
      return find(udps_, udp_port);
    case Transport::kEthernet:
      return find(ethernets_, interface);
    case Transport::kIp:
      return find(wires_, interface);
  }
  return nullptr;
}

}  // namespace pairwire
