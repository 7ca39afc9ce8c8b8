// An AEAD that does nothing, for measuring what encryption costs. Empty in every other build: the
// program that people run does not contain it.
#if defined(PAIRWIRE_NULL_AEAD)

#include <algorithm>
#include <cstring>

#include "crypto/aead-backends.hpp"

namespace pairwire::null_aead {
namespace {

void copy(ConstBytes from, Bytes to) {
  // memmove, because in place means that both are the same bytes.
  if (!from.empty()) std::memmove(to.data(), from.data(), from.size());
}

class NullKey final : public AeadKey {
  void do_seal(const AeadNonce&, ConstBytes, ConstBytes head, ConstBytes body, Bytes out,
               AeadTag tag) const override {
    copy(body, out.subspan(head.size()));
    copy(head, out.first(head.size()));
    std::ranges::fill(tag, std::uint8_t{0});
  }
  bool do_open(const AeadNonce&, ConstBytes, ConstBytes cipher, AeadConstTag, Bytes head,
               Bytes body) const override {
    copy(cipher.first(head.size()), head);
    copy(cipher.subspan(head.size()), body);
    return true;
  }
};

}  // namespace

std::unique_ptr<AeadKey> make() {
  return std::make_unique<NullKey>();
}

}  // namespace pairwire::null_aead

#endif
