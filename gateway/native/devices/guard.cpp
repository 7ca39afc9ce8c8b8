#include "guard.hpp"

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <stdexcept>

#include "run-program.hpp"

namespace pairwire::devices {
namespace {

constexpr const char* kNft = "/usr/sbin/nft";
/// More addresses on one TAP than this are a mistake, or an attack by router advertisements.
constexpr std::size_t kMaxAddresses = 512;

/// Interface names as further elements of a set.
std::string quoted(const std::vector<std::string>& names) {
  std::string out;
  for (const std::string& name : names) out += ", \"" + name + '"';
  return out;
}

/// What came in by none of these. One comparison each: they are few, and the kernel has them done
/// sooner than one look-up in a set.
std::string from_none_of(const std::vector<std::string>& names) {
  std::string out;
  for (const std::string& name : names) out += "iifname != \"" + name + "\" ";
  return out;
}

std::string elements(const std::vector<std::string>& items) {
  std::string out;
  for (const std::string& item : items) {
    if (!out.empty()) out += ", ";
    out += item;
  }
  return out;
}

}  // namespace

std::uint64_t packets_of(std::string_view output, const std::string& name) {
  std::size_t at = output.find("counter " + name + " {");
  if (at == std::string::npos) return 0;
  constexpr std::string_view word = "packets ";
  at = output.find(word, at);
  if (at == std::string::npos) return 0;
  std::uint64_t value = 0;
  std::from_chars(output.data() + at + word.size(), output.data() + output.size(), value);
  return value;
}

Guard::Guard(const DeviceList& list, Netlink& netlink, const std::vector<std::string>& closed)
    : list_(list), netlink_(netlink), closed_(closed) {
  if (!list_.taps.empty()) table_ = "pairwire_" + list_.taps.front().name;
}

std::vector<Guard::Sets> Guard::present_sets() {
  const std::vector<AssignedAddress> all = netlink_.addresses();
  std::vector<Sets> sets(list_.taps.size());
  for (std::size_t i = 0; i < list_.taps.size(); ++i) {
    const auto link = netlink_.find_link(list_.taps[i].name);
    if (!link) continue;
    for (const AssignedAddress& assigned : all) {
      if (assigned.index != link->index || is_link_local(assigned.address)) continue;
      const InterfaceAddress& address = assigned.address;
      auto& set = address.family == AF_INET ? sets[i].v4 : sets[i].v6;
      set.push_back(to_text(address));
      // The kernel takes these from any interface as well: the prefix's broadcast address, and
      // on a router the anycast address of all its routers.
      if (address.family == AF_INET && address.prefix < 31) {
        set.push_back(to_text(with_host_bits(address, true)));
      }
      if (address.family == AF_INET6 && address.prefix < 127) {
        set.push_back(to_text(with_host_bits(address, false)));
      }
    }
    for (auto* set : {&sets[i].v4, &sets[i].v6}) {
      std::sort(set->begin(), set->end());
      set->erase(std::unique(set->begin(), set->end()), set->end());
      if (set->size() > kMaxAddresses) {
        throw std::runtime_error(list_.taps[i].name + " has more addresses than can be guarded");
      }
    }
  }
  return sets;
}

std::string Guard::rules(const std::vector<Sets>& sets) const {
  std::string counters;
  std::string arp_counters;
  std::string declared;
  std::string arp_declared;
  std::string prerouting;
  std::string forward;
  std::string arp_input;
  std::string arp_output;
  for (std::size_t i = 0; i < sets.size(); ++i) {
    const std::string n = std::to_string(i);
    const std::string tap = '"' + list_.taps[i].name + '"';
    const auto declare = [&](const char* name, const char* type, const auto& items) {
      return std::string("set ") + name + n + " { type " + type + ";" +
             (items.empty() ? "" : " elements = { " + elements(items) + " };") + " }\n";
    };
    declared += declare("v4_", "ipv4_addr", sets[i].v4) + declare("v6_", "ipv6_addr", sets[i].v6);
    arp_declared += declare("v4_", "ipv4_addr", sets[i].v4);
    counters += "counter underlay_" + n + " {}\ncounter forward_" + n + " {}\n";
    arp_counters += "counter arp_" + n + " {}\n";
    // What may be forwarded to the TAP may be for its own addresses, too.
    const std::vector<std::string>& neighbours = list_.taps[i].forward_to;
    const std::string elsewhere =
        from_none_of({list_.taps[i].name, "lo"}) + from_none_of(neighbours);
    const std::string counted = " counter name underlay_" + n + " drop\n";
    // Every packet of the host comes by here: first what sorts out most at least cost.
    prerouting += "meta nfproto ipv4 " + elsewhere + "ip daddr @v4_" + n + counted;
    prerouting += "meta nfproto ipv6 " + elsewhere + "ip6 daddr @v6_" + n + counted;
    // What a bridge carries is not forwarded by IP.
    if (!list_.taps[i].forward && list_.taps[i].bridge.empty()) {
      const std::string inside = "{ " + tap + quoted(neighbours) + " }";
      const std::string drop = " counter name forward_" + n + " drop\n";
      forward += "iifname " + tap + " oifname != " + inside + drop;
      forward += "iifname != " + inside + " oifname " + tap + drop;
    }
    arp_input +=
        "iifname != " + tap + " arp daddr ip @v4_" + n + " counter name arp_" + n + " drop\n";
    arp_output +=
        "oifname != " + tap + " arp saddr ip @v4_" + n + " counter name arp_" + n + " drop\n";
  }
  const auto chain = [](const char* name, const char* hook, const std::string& body) {
    return std::string("chain ") + name + " {\ntype filter hook " + hook + "; policy accept;\n" +
           body + "}\n";
  };
  return "table inet " + table_ + " {\n" + counters + declared +
         // Before connection tracking, so that what is dropped leaves no entry there.
         chain("underlay", "prerouting priority raw", prerouting) +
         // Once more where it is delivered: source routing (SRv6, LSRR) and DNAT give a packet
         // another destination behind prerouting.
         chain("delivery", "input priority filter - 10", prerouting) +
         chain("forward", "forward priority filter - 10", forward) + "}\ntable arp " + table_ +
         " {\n" + arp_counters + arp_declared + chain("input", "input priority filter", arp_input) +
         chain("output", "output priority filter", arp_output) + "}\n" + closed_rules();
}

/// Before everything else that looks at a frame that came in, other netdev chains too.
std::string Guard::closed_rules() const {
  if (closed_.empty()) return {};
  std::string counters;
  std::string chains;
  for (std::size_t i = 0; i < closed_.size(); ++i) {
    const std::string n = std::to_string(i);
    counters += "counter closed_" + n + " {}\n";
    chains += "chain closed_" + n + " {\ntype filter hook ingress device \"" + closed_[i] +
              "\" priority -500; policy accept;\nether type != 0x88b5 counter name closed_" + n +
              " drop\n}\n";
  }
  return "table netdev " + table_ + " {\n" + counters + chains + "}\n";
}

/// Commands that take the tables away, also those of a former run.
std::string Guard::empty_tables() const {
  std::string commands;
  for (const char* family : {"inet ", "arp ", "netdev "}) {
    // `add` first, because deleting what is not there is an error.
    commands += "add table " + (family + table_) + "\ndelete table " + (family + table_) + "\n";
  }
  return commands;
}

void Guard::apply(const std::string& commands) const {
  const ProgramResult result = run_program({kNft, "-f", "-"}, commands);
  if (result.code != 0) {
    throw std::runtime_error("nft: " + result.errors.substr(0, result.errors.find('\n')));
  }
}

void Guard::turn_on() {
  if (table_.empty()) return;
  std::vector<Sets> sets = present_sets();
  apply(empty_tables() + rules(sets));
  sets_ = std::move(sets);
  on_ = true;
}

void Guard::turn_off() {
  if (table_.empty()) return;
  apply(empty_tables());
  on_ = false;
}

void Guard::follow_addresses() {
  if (!on_) return;
  std::vector<Sets> sets = present_sets();
  if (sets == sets_) return;
  std::string commands;
  for (std::size_t i = 0; i < sets.size(); ++i) {
    const auto replace = [&](const std::string& family, const char* name, const auto& items) {
      const std::string set = family + table_ + " " + name + std::to_string(i);
      commands += "flush set " + set + "\n";
      if (!items.empty()) commands += "add element " + set + " { " + elements(items) + " }\n";
    };
    replace("inet ", "v4_", sets[i].v4);
    replace("inet ", "v6_", sets[i].v6);
    replace("arp ", "v4_", sets[i].v4);
  }
  try {
    apply(commands);
  } catch (const std::runtime_error&) {
    // Somebody flushed the ruleset (`systemctl reload nftables` does): put all of it back.
    turn_on();
    return;
  }
  sets_ = std::move(sets);
}

/// What nft says about the counters of our tables.
std::string Guard::list_counters() {
  std::string question =
      "list counters table inet " + table_ + "\nlist counters table arp " + table_ + "\n";
  if (!closed_.empty()) question += "list counters table netdev " + table_ + "\n";
  ProgramResult result = run_program({kNft, "-f", "-"}, question);
  if (result.code != 0) {
    // The same: a guard that is reported as on must be there.
    turn_on();
    result = run_program({kNft, "-f", "-"}, question);
  }
  return result.output;
}

Guard::Counts Guard::counts() {
  if (!on_) return {};
  const std::string output = list_counters();
  Counts out;
  for (std::size_t i = 0; i < list_.taps.size(); ++i) {
    const std::string n = std::to_string(i);
    Count count;
    count.tap = list_.taps[i].name;
    count.addresses = sets_[i].v4;
    count.addresses.insert(count.addresses.end(), sets_[i].v6.begin(), sets_[i].v6.end());
    count.underlay = packets_of(output, "underlay_" + n);
    count.forward = packets_of(output, "forward_" + n);
    count.arp = packets_of(output, "arp_" + n);
    out.taps.push_back(std::move(count));
  }
  for (std::size_t i = 0; i < closed_.size(); ++i) {
    out.closed.push_back({closed_[i], packets_of(output, "closed_" + std::to_string(i))});
  }
  return out;
}

}  // namespace pairwire::devices
