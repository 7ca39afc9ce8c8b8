// What comes to a link port of level `ip` from its router: any bytes as a packet with an outer
// header, and as an ICMP error, which is written anew. Results stay within the packet, and what was
// written reads as what it was made of. The first byte picks how the second packet, the opened one,
// is cut off.
#include <algorithm>
#include <vector>

#include "core/outer-ip.hpp"
#include "core/sent-packets.hpp"
#include "fuzz/require.hpp"
#include "l2/icmp-error.hpp"

namespace {

using namespace pairwire;
using namespace pairwire::fuzz;

bool within(ConstBytes part, ConstBytes whole) {
  return part.data() >= whole.data() && part.data() + part.size() <= whole.data() + whole.size();
}

void check_outer(Bytes packet, ConstBytes opened) {
  const auto outer = parse_outer_ip(packet);
  if (!outer) return;
  require(within(outer->addresses, packet) && within(outer->sealed, packet));
  require(outer->addresses.size() == (outer->v6 ? 32U : 8U));
  std::vector<std::uint8_t> inner(opened.begin(), opened.end());
  if (!take_over_outer(*outer, inner)) return;
  require(std::ranges::equal(ip_addresses(inner), outer->addresses));
  require(inner[outer->v6 ? 7 : 8] <= outer->ttl);
  // Nothing but what routers change has changed.
  for (std::size_t i = outer->v6 ? 8 : 12; i < inner.size(); ++i) require(inner[i] == opened[i]);
}

/// What leaves comes back as it was, whatever is inside.
void check_written(ConstBytes inner) {
  if (inner.empty() || inner.size() > 1'500) return;
  const unsigned version = inner.front() >> 4;
  if (version != 4 && version != 6) return;
  const bool v6 = version == 6;
  if (inner.size() < outer_ip_size(v6)) return;
  static_cast<void>(is_source_routed(inner));
  std::vector<std::uint8_t> packet(outer_ip_size(v6) + inner.size());
  write_outer_ip(inner, inner.size(), 1, Bytes(packet).first(outer_ip_size(v6)));
  std::ranges::copy(inner, packet.begin() + static_cast<std::ptrdiff_t>(outer_ip_size(v6)));
  const auto outer = parse_outer_ip(packet);
  require(outer.has_value() && outer->v6 == v6);
  require(outer->sealed.size() == inner.size());
  std::vector<std::uint8_t> again(inner.begin(), inner.end());
  require(take_over_outer(*outer, again));
  require(std::ranges::equal(again, inner));
}

void check_error(ConstBytes packet, ConstBytes quote) {
  const auto error = parse_icmp_error(packet);
  if (!error) return;
  require(within(error->addresses, packet) && within(error->payload, packet));
  SentPackets none;
  require(!none.find(error->addresses, error->payload));
  quote = quote.first(std::min(quote.size(), SentPackets::kStart));
  std::vector<std::uint8_t> out(max_icmp_error(quote.size()));
  const std::size_t size = write_icmp_error(*error, packet, quote, out);
  require(size <= out.size());
  const auto again = parse_icmp_error(ConstBytes(out).first(size));
  // A quote that is no packet is not one afterwards either.
  if (!again) return;
  require(again->v6 == error->v6 && again->type == error->type);
  require(again->mtu.has_value() == error->mtu.has_value());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  std::vector<std::uint8_t> packet(data + 1, data + size);
  const ConstBytes second =
      ConstBytes(packet).subspan(std::min<std::size_t>(data[0], packet.size()));
  const std::vector<std::uint8_t> opened(second.begin(), second.end());
  check_written(packet);
  check_error(packet, opened);
  check_outer(packet, opened);
  return 0;
}
