#include "bridge.hpp"

#include <fcntl.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <sstream>
#include <stdexcept>

#include "launcher.hpp"
#include "open-device.hpp"
#include "throw-errno.hpp"

namespace pairwire::devices {
namespace {

UniqueFd control_socket() {
  UniqueFd fd(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!fd) throw_errno("socket");
  return fd;
}

ifreq request_for(const std::string& name) {
  ifreq request{};
  // device-list.cpp admits 15 characters at most, so the zero behind them stays.
  std::copy(name.begin(), name.end(), request.ifr_name);
  return request;
}

/// Else a bridge has the lowest address of its ports, and another one with each that comes.
void give_own_address(const std::string& name) {
  ifreq request = request_for(name);
  std::array<std::uint8_t, 6> mac{};
  if (getrandom(mac.data(), mac.size(), 0) != static_cast<ssize_t>(mac.size())) {
    throw_errno("getrandom");
  }
  mac[0] = static_cast<std::uint8_t>((mac[0] & 0xfc) | 0x02);  // Individual, locally administered.
  request.ifr_hwaddr.sa_family = ARPHRD_ETHER;
  std::ranges::copy(mac, reinterpret_cast<std::uint8_t*>(request.ifr_hwaddr.sa_data));
  if (ioctl(control_socket().get(), SIOCSIFHWADDR, &request) != 0) {
    throw_errno(name + ": MAC address");
  }
}

void take_out(const std::string& bridge, int index) {
  ifreq request = request_for(bridge);
  request.ifr_ifindex = index;
  if (ioctl(control_socket().get(), SIOCBRDELIF, &request) != 0) {
    throw_errno("take a port out of " + bridge);
  }
}

bool has_ports(Netlink& netlink, int bridge) {
  const std::unique_ptr<struct if_nameindex, void (*)(struct if_nameindex*)> all(if_nameindex(),
                                                                                 if_freenameindex);
  if (!all) throw_errno("if_nameindex");
  for (const struct if_nameindex* one = all.get(); one->if_index != 0; ++one) {
    const auto link = netlink.find_link(one->if_name);
    if (link && link->enslaved && link->master == bridge) return true;
  }
  return false;
}

}  // namespace

void put_into_bridge(const std::string& bridge, int index) {
  ifreq request = request_for(bridge);
  request.ifr_ifindex = index;
  if (ioctl(control_socket().get(), SIOCBRADDIF, &request) == 0) return;
  if (errno == EBUSY) {
    throw std::runtime_error("a port for " + bridge +
                             " is still in another bridge: `pairwire down` takes a TAP out of it");
  }
  throw_errno("put a port into " + bridge);
}

void silence_ipv6(const std::string& name) {
  const std::string file = "/proc/sys/net/ipv6/conf/" + name + "/disable_ipv6";
  const UniqueFd fd(open(file.c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd && errno == ENOENT) return;  // A kernel without IPv6.
  if (!fd || ::write(fd.get(), "1", 1) != 1) throw_errno(name + ": disable_ipv6");
}

bool is_in(Netlink& netlink, const std::string& name, const std::string& bridge) {
  if (name == bridge) return true;
  const auto link = netlink.find_link(name);
  const auto master = netlink.find_link(bridge);
  return link && master && link->master == master->index;
}

Bridges::Bridges(std::string file) : file_(std::move(file)) {
  std::istringstream lines(read_file(file_));
  std::string what;
  Entry entry;
  while (lines >> what >> entry.name) {
    entry.bridge.clear();
    entry.index = 0;
    if (what == "port" ? !(lines >> entry.bridge) : !(lines >> entry.index)) break;
    entries_.push_back(entry);
  }
}

void Bridges::prepare(Netlink& netlink, const std::string& bridge,
                      const std::vector<std::string>& ports) {
  auto link = netlink.find_link(bridge);
  if (link && link->kind != "bridge") {
    throw std::runtime_error(bridge + " is there already and is no bridge");
  }
  // All ports are looked at before anything is changed.
  for (const std::string& port : ports) {
    const auto found = netlink.find_link(port);
    if (!found) throw std::runtime_error(port + " is not there");
    if (found->type != ARPHRD_ETHER) throw std::runtime_error(port + " is no Ethernet interface");
    if (found->enslaved && (!link || found->master != link->index)) {
      throw std::runtime_error(port + " is part of another bridge or bond");
    }
    for (const AssignedAddress& assigned : netlink.addresses()) {
      if (assigned.index != found->index || is_link_local(assigned.address)) continue;
      throw std::runtime_error(port + " has the IP address " + to_text(assigned.address) +
                               ", which would be cut off in a bridge: remove it, or give it to " +
                               bridge);
    }
  }
  if (!link) {
    // On the disk first: a crash in between must not make what we did look like what was there.
    remember({bridge, {}, 0});
    if (ioctl(control_socket().get(), SIOCBRADDBR, bridge.c_str()) != 0) {
      throw_errno("make the bridge " + bridge);
    }
    link = netlink.find_link(bridge);
    if (!link) throw std::runtime_error(bridge + " is gone");
    remember({bridge, {}, link->index});
    give_own_address(bridge);
    silence_ipv6(bridge);
  }
  drop_ports(netlink, bridge, ports);
  for (const std::string& port : ports) {
    const auto found = netlink.find_link(port);
    if (!found) throw std::runtime_error(port + " is not there");
    if (!found->enslaved) {
      remember({port, bridge, 0});
      put_into_bridge(bridge, found->index);
    }
    bring_up(port);
  }
  bring_up(bridge);
}

void Bridges::drop_ports(Netlink& netlink, const std::string& bridge,
                         const std::vector<std::string>& ports) {
  std::erase_if(entries_, [&](const Entry& entry) {
    if (entry.bridge != bridge || std::ranges::find(ports, entry.name) != ports.end()) return false;
    const auto link = netlink.find_link(entry.name);
    if (link && link->enslaved && is_in(netlink, entry.name, bridge)) take_out(bridge, link->index);
    return true;
  });
  write();
}

void Bridges::undo(Netlink& netlink) {
  // Ports first: those of a bridge of somebody else go on without us.
  while (!entries_.empty()) {
    const Entry entry = entries_.back();
    const auto link = netlink.find_link(entry.name);
    if (link && entry.bridge.empty()) {
      const bool ours = entry.index == 0 || entry.index == link->index;
      // Another gateway of this machine may have its TAP in it, too: then it stays.
      if (link->kind == "bridge" && ours && !has_ports(netlink, link->index)) {
        netlink.delete_link(link->index);
      }
    } else if (link && link->enslaved && is_in(netlink, entry.name, entry.bridge)) {
      take_out(entry.bridge, link->index);
    }
    entries_.pop_back();
    write();
  }
}

void Bridges::remember(Entry entry) {
  const auto same = std::ranges::find_if(entries_, [&](const Entry& one) {
    return one.name == entry.name && one.bridge == entry.bridge;
  });
  if (same == entries_.end()) {
    entries_.push_back(std::move(entry));
  } else {
    if (same->index == entry.index) return;
    same->index = entry.index;
  }
  write();
}

void Bridges::write() const {
  if (entries_.empty()) {
    unlink(file_.c_str());
    return;
  }
  std::string text;
  for (const Entry& entry : entries_) {
    text += entry.bridge.empty() ? "bridge " + entry.name + ' ' + std::to_string(entry.index) + '\n'
                                 : "port " + entry.name + ' ' + entry.bridge + '\n';
  }
  write_file(file_, text);
}

}  // namespace pairwire::devices
