#include "device-list.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <set>
#include <stdexcept>

#include "io/unique-fd.hpp"
#include "throw-errno.hpp"

namespace pairwire::devices {
namespace {

constexpr std::size_t kMaxListBytes = 64 << 10;
constexpr std::size_t kMaxDevices = 64;
constexpr std::size_t kMaxAddresses = 16;
constexpr std::size_t kMaxMacs = 64;
constexpr std::size_t kMaxBridgePorts = 8;
constexpr std::size_t kMaxForward = 8;
constexpr std::size_t kMaxRoutes = 256;

[[noreturn]] void refuse(const std::string& why) {
  throw std::runtime_error(why);
}

std::vector<std::string> words_of(std::string_view line) {
  std::vector<std::string> words;
  std::size_t at = 0;
  while (true) {
    at = line.find_first_not_of(" \t\r", at);
    if (at == std::string_view::npos || line[at] == '#') return words;
    const std::size_t end = std::min(line.find_first_of(" \t\r", at), line.size());
    words.emplace_back(line.substr(at, end - at));
    at = end;
  }
}

std::uint32_t parse_number(std::string_view text, std::uint32_t least, std::uint32_t most,
                           const char* what) {
  std::uint32_t value = 0;
  const bool hex = text.starts_with("0x");
  const std::string_view digits = hex ? text.substr(2) : text;
  const auto [end, error] =
      std::from_chars(digits.data(), digits.data() + digits.size(), value, hex ? 16 : 10);
  if (error != std::errc() || end != digits.data() + digits.size() || value < least ||
      value > most) {
    refuse(std::string(what) + " must be a number from " + std::to_string(least) + " to " +
           std::to_string(most) + ", not '" + std::string(text) + "'");
  }
  return value;
}

/// Also keeps the name fit for nft, sysctl paths and our own table name without any quoting.
std::string parse_interface(const std::string& text, bool ours) {
  const auto good = [ours](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-' ||
           (!ours && ((c >= 'A' && c <= 'Z') || c == '.' || c == '@'));
  };
  if (text.empty() || text.size() > 15 || !std::all_of(text.begin(), text.end(), good) ||
      (ours && !(text[0] >= 'a' && text[0] <= 'z')) || text == "." || text == ".." ||
      (ours && text == "lo")) {
    refuse("'" + text + "' is no usable interface name");
  }
  return text;
}

std::array<std::uint8_t, 6> parse_mac(const std::string& text) {
  std::array<std::uint8_t, 6> mac{};
  bool good = text.size() == 17;
  for (std::size_t i = 0; good && i < mac.size(); ++i) {
    const char* at = text.data() + 3 * i;
    const auto [end, error] = std::from_chars(at, at + 2, mac[i], 16);
    good = error == std::errc() && end == at + 2 && (i == 5 || *end == ':');
  }
  if (!good) refuse("'" + text + "' is no MAC address");
  if ((mac[0] & 1) != 0) refuse("'" + text + "' is a group address");
  if (mac == decltype(mac){}) refuse("the MAC address is zero");
  return mac;
}

InterfaceAddress parse_address(const std::string& text) {
  const std::size_t slash = text.find('/');
  if (slash == std::string::npos) refuse("address '" + text + "' has no /prefix");
  const std::string ip = text.substr(0, slash);
  InterfaceAddress address;
  if (inet_pton(AF_INET, ip.c_str(), address.bytes.data()) == 1) {
    address.family = AF_INET;
    const std::uint8_t first = address.bytes[0];
    if (first == 0 || first == 127 || first >= 224) refuse("address '" + ip + "' can't be used");
  } else if (inet_pton(AF_INET6, ip.c_str(), address.bytes.data()) == 1) {
    address.family = AF_INET6;
    in6_addr in{};
    std::memcpy(&in, address.bytes.data(), sizeof in);
    if (IN6_IS_ADDR_UNSPECIFIED(&in) || IN6_IS_ADDR_LOOPBACK(&in) || IN6_IS_ADDR_MULTICAST(&in) ||
        IN6_IS_ADDR_V4MAPPED(&in)) {
      refuse("address '" + ip + "' can't be used");
    }
  } else {
    refuse("'" + ip + "' is no IP address");
  }
  address.prefix = static_cast<std::uint8_t>(parse_number(
      text.substr(slash + 1), 1, address.family == AF_INET ? 32 : 128, "the prefix length"));
  return address;
}

/// A prefix that is routed: never all addresses, because the key server is reached by another way.
InterfaceAddress parse_route(const std::string& text) {
  const InterfaceAddress route = parse_address(text);
  if (is_link_local(route)) refuse("'" + text + "' can't be routed");
  return with_host_bits(route, false);
}

in6_addr parse_bind(const std::string& text) {
  in6_addr out{};
  in_addr v4{};
  if (inet_pton(AF_INET, text.c_str(), &v4) == 1) {
    out.s6_addr[10] = out.s6_addr[11] = 0xff;
    std::memcpy(&out.s6_addr[12], &v4, sizeof v4);
    if (IN_MULTICAST(ntohl(v4.s_addr))) refuse("'" + text + "' is a multicast address");
  } else if (inet_pton(AF_INET6, text.c_str(), &out) != 1) {
    refuse("'" + text + "' is no IP address");
  }
  if (IN6_IS_ADDR_MULTICAST(&out)) refuse("'" + text + "' is a multicast address");
  return out;
}

/// Walks `key value` pairs; each key once, except those that are repeatable.
class Pairs {
 public:
  Pairs(const std::vector<std::string>& words, std::size_t from) : words_(words), at_(from) {}
  bool next(std::initializer_list<std::string_view> repeatable) {
    if (at_ >= words_.size()) return false;
    key = words_[at_++];
    if (at_ >= words_.size()) refuse("'" + key + "' has no value");
    value = words_[at_++];
    if (!seen_.insert(key).second && std::ranges::find(repeatable, key) == repeatable.end())
      refuse("'" + key + "' is there twice");
    return true;
  }
  bool seen(const char* name) const { return seen_.contains(name); }
  std::string key;
  std::string value;

 private:
  const std::vector<std::string>& words_;
  std::size_t at_;
  std::set<std::string> seen_;
};

TapDevice parse_tap(const std::vector<std::string>& words) {
  TapDevice tap;
  tap.name = parse_interface(words[1], true);
  Pairs pairs(words, 2);
  while (pairs.next({"address", "port", "forward-to", "route"})) {
    if (pairs.key == "mac") {
      tap.mac = parse_mac(pairs.value);
    } else if (pairs.key == "mtu") {
      tap.mtu = parse_number(pairs.value, 576, 65521, "mtu");
    } else if (pairs.key == "txqueuelen") {
      tap.queue_length = parse_number(pairs.value, 1, 100000, "txqueuelen");
    } else if (pairs.key == "address") {
      if (tap.addresses.size() == kMaxAddresses) refuse("too many addresses");
      tap.addresses.push_back(parse_address(pairs.value));
    } else if (pairs.key == "forward" && pairs.value == "allow") {
      tap.forward = true;
    } else if (pairs.key == "forward-to") {
      if (tap.forward_to.size() == kMaxForward) refuse("too many interfaces to forward to");
      tap.forward_to.push_back(parse_interface(pairs.value, false));
    } else if (pairs.key == "arp" && pairs.value == "off") {
      tap.arp = false;
    } else if (pairs.key == "route") {
      if (tap.routes.size() == kMaxRoutes) refuse("too many routes");
      tap.routes.push_back(parse_route(pairs.value));
    } else if (pairs.key == "bridge") {
      tap.bridge = parse_interface(pairs.value, false);
      if (tap.bridge == tap.name) refuse("the bridge and the tap have one name");
    } else if (pairs.key == "port") {
      if (tap.ports.size() == kMaxBridgePorts) refuse("too many ports of a bridge");
      tap.ports.push_back(parse_interface(pairs.value, false));
    } else {
      refuse("a tap has no '" + pairs.key + " " + pairs.value + "'");
    }
  }
  if (!pairs.seen("mac") || !pairs.seen("mtu")) refuse("a tap needs mac and mtu");
  if (tap.bridge.empty() && !tap.ports.empty()) refuse("ports are for a tap with a bridge");
  if (!tap.bridge.empty() && (!tap.addresses.empty() || tap.forward || !tap.forward_to.empty() ||
                              !tap.routes.empty() || !tap.arp)) {
    refuse("a tap in a bridge has no address, no forward and no route: the bridge may");
  }
  if (tap.forward && !tap.forward_to.empty()) refuse("either forward or forward-to");
  return tap;
}

UdpDevice parse_udp(const std::vector<std::string>& words) {
  UdpDevice udp;
  udp.port = static_cast<std::uint16_t>(parse_number(words[1], 1, 65535, "the port"));
  Pairs pairs(words, 2);
  while (pairs.next({})) {
    if (pairs.key == "bind") {
      udp.bind = parse_bind(pairs.value);
    } else if (pairs.key == "device") {
      udp.device = parse_interface(pairs.value, false);
    } else if (pairs.key == "mark") {
      udp.mark = parse_number(pairs.value, 1, 0xffffffff, "mark");
    } else {
      refuse("a udp socket has no '" + pairs.key + "'");
    }
  }
  return udp;
}

EthernetDevice parse_ethernet(const std::vector<std::string>& words) {
  EthernetDevice ethernet;
  ethernet.name = parse_interface(words[1], false);
  Pairs pairs(words, 2);
  while (pairs.next({"mac"})) {
    if (pairs.key != "mac") refuse("an ethernet has no '" + pairs.key + "'");
    if (ethernet.macs.size() == kMaxMacs) refuse("too many MAC addresses");
    ethernet.macs.push_back(parse_mac(pairs.value));
  }
  if (ethernet.macs.empty()) refuse("an ethernet needs mac");
  return ethernet;
}

WireDevice parse_wire(const std::vector<std::string>& words) {
  if (words.size() != 2) refuse("a wire has a name only");
  return {parse_interface(words[1], false)};
}

/// Whose frames would go round: sealed ones came out at the plain side, and the other way round.
void refuse_underlay_in_bridge(const DeviceList& list) {
  const auto refuse_if = [&](const std::string& underlay) {
    for (const TapDevice& tap : list.taps) {
      if (underlay.empty() || tap.bridge.empty()) continue;
      if (std::ranges::find(tap.ports, underlay) != tap.ports.end()) {
        refuse(underlay + " carries the sealed frames and can't be in the bridge of " + tap.name);
      }
    }
  };
  for (const UdpDevice& udp : list.udps) refuse_if(udp.device);
  for (const EthernetDevice& ethernet : list.ethernets) refuse_if(ethernet.name);
  for (const WireDevice& wire : list.wires) refuse_if(wire.name);
}

}  // namespace

DeviceList parse_device_list(std::string_view text) {
  DeviceList list;
  std::set<std::string> names;
  std::size_t number = 0;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    ++number;
    try {
      if (line.find('\0') != std::string_view::npos) refuse("a zero byte");
      const std::vector<std::string> words = words_of(line);
      if (words.empty()) continue;
      if (words.size() < 2) refuse("a device needs a kind and a name");
      if (!names.insert(words[0] + ' ' + words[1]).second) refuse("this device is there twice");
      if (names.size() > kMaxDevices) refuse("too many devices");
      if (words[0] == "tap") {
        list.taps.push_back(parse_tap(words));
      } else if (words[0] == "udp") {
        list.udps.push_back(parse_udp(words));
      } else if (words[0] == "ethernet") {
        list.ethernets.push_back(parse_ethernet(words));
      } else if (words[0] == "wire") {
        list.wires.push_back(parse_wire(words));
      } else {
        refuse("unknown kind '" + words[0] + "'; there are tap, udp, ethernet and wire");
      }
    } catch (const std::runtime_error& error) {
      refuse("line " + std::to_string(number) + ": " + error.what());
    }
  }
  refuse_underlay_in_bridge(list);
  return list;
}

std::string read_device_list(const std::string& file) {
  UniqueFd opened;
  int fd = STDIN_FILENO;
  if (file != "-") {
    opened.reset(open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    if (!opened) throw_errno(file);
    fd = opened.get();
    struct stat info{};
    if (fstat(fd, &info) != 0) throw_errno(file);
    if (!S_ISREG(info.st_mode)) refuse(file + " is no regular file");
    if (info.st_uid != 0 && info.st_uid != geteuid()) refuse(file + " belongs to another user");
    if ((info.st_mode & (S_IWGRP | S_IWOTH)) != 0) refuse(file + " is writable by others");
  }
  std::string text;
  std::array<char, 4096> buffer{};
  while (true) {
    const ssize_t size = read(fd, buffer.data(), buffer.size());
    if (size < 0 && errno == EINTR) continue;
    if (size < 0) throw_errno("read the list of devices");
    if (size == 0) return text;
    text.append(buffer.data(), static_cast<std::size_t>(size));
    if (text.size() > kMaxListBytes) refuse("the list of devices is too long");
  }
}

std::string to_text(const std::array<std::uint8_t, 6>& mac) {
  std::array<char, 18> text{};
  std::snprintf(text.data(), text.size(), "%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2],
                mac[3], mac[4], mac[5]);
  return text.data();
}

InterfaceAddress with_host_bits(const InterfaceAddress& address, bool ones) {
  InterfaceAddress out = address;
  const int size = address.family == AF_INET ? 4 : 16;
  for (int i = 0; i < size; ++i) {
    const int fixed = std::clamp(address.prefix - 8 * i, 0, 8);
    const auto host = static_cast<std::uint8_t>(0xff >> fixed);
    auto& byte = out.bytes[static_cast<std::size_t>(i)];
    byte = static_cast<std::uint8_t>(ones ? byte | host : byte & ~host);
  }
  return out;
}

bool is_link_local(const InterfaceAddress& address) {
  return address.family == AF_INET6 && address.bytes[0] == 0xfe &&
         (address.bytes[1] & 0xc0) == 0x80;
}

std::string to_text(const InterfaceAddress& address) {
  std::array<char, INET6_ADDRSTRLEN> text{};
  if (inet_ntop(address.family, address.bytes.data(), text.data(), text.size()) == nullptr) {
    return {};
  }
  return text.data();
}

}  // namespace pairwire::devices
