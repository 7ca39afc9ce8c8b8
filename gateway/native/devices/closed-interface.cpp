#include "closed-interface.hpp"

#include <fcntl.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <sstream>
#include <stdexcept>

#include "launcher.hpp"
#include "throw-errno.hpp"

namespace pairwire::devices {
namespace {

void set_arp(const std::string& name, bool on) {
  const UniqueFd control(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!control) throw_errno("socket");
  ifreq request{};
  // device-list.cpp admits 15 characters at most, so the zero behind them stays.
  std::copy(name.begin(), name.end(), request.ifr_name);
  if (ioctl(control.get(), SIOCGIFFLAGS, &request) != 0) throw_errno(name + ": flags");
  const int flags = on ? request.ifr_flags & ~IFF_NOARP : request.ifr_flags | IFF_NOARP;
  request.ifr_flags = static_cast<short>(flags);
  if (ioctl(control.get(), SIOCSIFFLAGS, &request) != 0) throw_errno(name + ": ARP");
}

std::string ipv6_switch(const std::string& name) {
  return "/proc/sys/net/ipv6/conf/" + name + "/disable_ipv6";
}

/// False also where the kernel has no IPv6.
bool has_ipv6(const std::string& name) {
  return read_file(ipv6_switch(name)).starts_with('0');
}

void set_ipv6(const std::string& name, bool on) {
  const UniqueFd fd(open(ipv6_switch(name).c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd && errno == ENOENT) return;
  if (!fd || write(fd.get(), on ? "0" : "1", 1) != 1) throw_errno(name + ": disable_ipv6");
}

}  // namespace

ClosedInterfaces::ClosedInterfaces(std::string file) : file_(std::move(file)) {
  std::istringstream lines(read_file(file_));
  std::string name;
  Former former;
  while (lines >> name >> former.arp >> former.ipv6) {
    names_.push_back(name);
    former_.push_back(former);
  }
}

bool ClosedInterfaces::close(Netlink& netlink, const std::string& name, const std::string& why) {
  const auto link = netlink.find_link(name);
  if (!link) throw std::runtime_error(name + " is not there");
  for (const AssignedAddress& assigned : netlink.addresses()) {
    if (assigned.index != link->index || is_link_local(assigned.address)) continue;
    throw std::runtime_error(
        name + " " + why + " and has the IP address " + to_text(assigned.address) +
        ", which would be cut off: remove it, or use another " + "interface or MAC address");
  }
  const bool news = std::ranges::find(names_, name) == names_.end();
  if (news) {
    // On the disk first: a crash in between must not make what we did look like what was there.
    names_.push_back(name);
    former_.push_back({(link->flags & IFF_NOARP) == 0, has_ipv6(name)});
    write();
  }
  set_ipv6(name, false);
  set_arp(name, false);
  return news;
}

void ClosedInterfaces::open_all(Netlink& netlink) {
  while (!names_.empty()) {
    const std::string name = names_.back();
    const Former former = former_.back();
    if (netlink.find_link(name)) {
      if (former.arp) set_arp(name, true);
      if (former.ipv6) set_ipv6(name, true);
    }
    names_.pop_back();
    former_.pop_back();
    write();
  }
}

void ClosedInterfaces::write() const {
  if (names_.empty()) {
    unlink(file_.c_str());
    return;
  }
  std::string text;
  for (std::size_t i = 0; i < names_.size(); ++i) {
    text += names_[i] + (former_[i].arp ? " 1" : " 0") + (former_[i].ipv6 ? " 1" : " 0") + '\n';
  }
  write_file(file_, text);
}

}  // namespace pairwire::devices
