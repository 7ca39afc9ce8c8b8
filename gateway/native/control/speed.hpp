// `pairwire-dataplane --speed`: how fast this machine encrypts, with each backend that it has.
#pragma once

namespace pairwire {

/// Measures sealing and opening as the data plane does them, and prints one JSON object:
///
///     {"results":[{"backend":"ipsec-mb","suite":"aes-256-gcm","size":64,"seal_ns":..,"open_ns":..},
///                 ...]}
///
/// One core, keys and frames in cache. Takes about two seconds. Returns an exit status.
int print_speed();

}  // namespace pairwire
