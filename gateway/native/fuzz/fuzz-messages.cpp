// Any bytes as a message of the control socket: refused with an error that quotes nothing, or read,
// and then written and read again without a change.
#include <algorithm>
#include <variant>
#include <vector>

#include "control/messages.gen.hpp"
#include "fuzz/require.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace pairwire::messages;
  using pairwire::fuzz::require;
  const std::span<const std::uint8_t> input(data, size);
  if (size >= kLengthSize) {
    const auto length = message_length(input.first<kLengthSize>(), kMaxMessage);
    require(!length || (*length > 0 && *length <= kMaxMessage));
  }
  const DecodeResult first = decode_command(input);
  if (const auto* const error = std::get_if<DecodeError>(&first)) {
    require(!error->text().empty() && error->text().size() <= 200);
    return 0;
  }
  const auto& request = std::get<Request>(first);
  std::vector<std::uint8_t> frame;
  require(!encode_command(request.id, request.command, frame));
  const DecodeResult second = decode_command(std::span(frame).subspan(kLengthSize));
  const auto* const again = std::get_if<Request>(&second);
  require(again != nullptr && again->id == request.id);
  std::vector<std::uint8_t> same;
  require(!encode_command(again->id, again->command, same));
  require(frame == same);
  return 0;
}
