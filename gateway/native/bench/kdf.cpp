// What a new pair costs: X25519 once, one derivation for each direction.
#include "crypto/kdf.hpp"

#include "bench/harness.hpp"
#include "crypto/x25519.hpp"

namespace pairwire::bench {
namespace {

const Registered registered([](Runner& runner) {
  const X25519KeyPair a = generate_x25519();
  const X25519KeyPair b = generate_x25519();
  const Secret<kKeySize> key;
  const auto shared = x25519(a.private_key, b.public_key);

  runner.measure("kdf.x25519", {}, [&](std::uint64_t) {
    const auto result = x25519(a.private_key, b.public_key);
    keep(&result);
  });
  runner.measure("kdf.x25519_keygen", {}, [&](std::uint64_t) {
    const auto result = generate_x25519();
    keep(&result);
  });
  runner.measure("kdf.pair", {}, [&](std::uint64_t i) {
    const auto result = derive_pair_key(key, *shared,
                                        {.subnet = "lab",
                                         .sender = "alice",
                                         .receiver = "bob",
                                         .sender_boot = a.public_key,
                                         .receiver_boot = b.public_key,
                                         .pw_id = i});
    keep(&result);
  });
  runner.measure("kdf.group", {}, [&](std::uint64_t i) {
    const auto result = derive_group_key(
        key, {.subnet = "lab", .sender = "alice", .sender_boot = a.public_key, .pw_id = i});
    keep(&result);
  });
});

}  // namespace
}  // namespace pairwire::bench
