// Any bytes as a sealed frame and as an opened header: what is accepted is written back the same.
#include <algorithm>
#include <array>
#include <cstdlib>

#include "core/frame.hpp"

namespace {

void require(bool ok) {
  if (!ok) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace pairwire;
  const ConstBytes input(data, size);
  for (const Transport transport : {Transport::kUdp, Transport::kEthernet, Transport::kIp}) {
    const auto shim = parse_shim(input, transport);
    if (!shim) continue;
    std::array<std::uint8_t, kShimSize> written{};
    write_shim(*shim, written);
    require(std::ranges::equal(written, input.first(kShimSize)));
  }
  if (size >= kInnerHeaderSize) {
    const auto header = parse_inner_header(input.first<kInnerHeaderSize>());
    if (header) {
      std::array<std::uint8_t, kInnerHeaderSize> written{};
      write_inner_header(*header, written);
      require(std::ranges::equal(written, input.first(kInnerHeaderSize)));
      const auto payload = payload_size(header->description, size - kInnerHeaderSize);
      require(!payload || *payload <= size - kInnerHeaderSize);
    }
  }
  return 0;
}
