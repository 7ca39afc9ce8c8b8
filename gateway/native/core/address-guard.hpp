// The address guard (threats.md C2): who may announce which address, route or lease. Port security
// has tied the source MAC address of a frame to its sender before; here a message is tied to the
// source. Asked where a frame enters and where it is received, so that neither end has to trust the
// other's.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "core/clock.hpp"
#include "core/drop-reasons.hpp"
#include "core/worker-events.hpp"
#include "l2/announcement.hpp"

namespace pairwire {

class Peer;
class PortTables;

// Threads: workers, online in the tables' domain.

/// A reason to drop a frame from `source` that says `what`. `peer` sent it; null: it is from our
/// own TAP.
[[nodiscard]] std::optional<DropReason> refuse_announcement(const PortTables& tables,
                                                            const Announcement& what,
                                                            const MacAddress& source,
                                                            const Peer* peer) noexcept;

/// Who has the address that `question` from `source` asks for, if that is answered here: the
/// address is bound, and neither to who asks nor to anybody on this side of the port. Whether
/// answers are configured is asked too.
[[nodiscard]] std::optional<MacAddress> answer_from_here(const PortTables& tables,
                                                         const Announcement& question,
                                                         const MacAddress& source,
                                                         std::uint64_t now_ms) noexcept;

/// Whether a neighbour with this address routes for others: said in answers in its name.
[[nodiscard]] bool is_router(const PortTables& tables, const MacAddress& mac,
                             std::uint64_t now_ms) noexcept;

/// The word for a refusal by the guard, as the control plane has it; empty for other reasons.
[[nodiscard]] std::string_view guard_word(DropReason reason) noexcept;

/// Which refusals the control plane is told of. All are counted.
///
/// Threads: one worker.
class GuardReports {
 public:
  /// The event to put, if this one is told.
  [[nodiscard]] std::optional<WorkerEvent> report(DropReason reason, const Announcement& what,
                                                  const MacAddress& source, std::uint32_t peer,
                                                  std::uint64_t now_us) noexcept;

 private:
  /// A second, for each of a port's two directions.
  static constexpr std::uint32_t kReportsPerSecond = 5;
  TokenBucket budget_{kReportsPerSecond, kReportsPerSecond};
};

}  // namespace pairwire
