// Any bytes as a sealed frame, as an opened header and as a path payload: what is accepted is
// written back the same.
#include <algorithm>
#include <array>

#include "core/frame.hpp"
#include "core/path-frame.hpp"
#include "fuzz/require.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace pairwire;
  using namespace pairwire::fuzz;
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
  if (const auto path = parse_path(input)) {
    require(size >= kPathPayload);
    require(input[0] == static_cast<std::uint8_t>(path->type));
    require(load_be<std::uint64_t>(input.subspan<4, 8>()) == path->token);
  }
  return 0;
}
