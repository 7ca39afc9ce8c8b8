// All ports, and what the commands of the control plane do to them. Knows messages, not sockets.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "control/device-registry.hpp"
#include "control/messages.gen.hpp"
#include "core/clock.hpp"
#include "core/port.hpp"

namespace pairwire {

inline constexpr std::size_t kMaxPorts = 16;

/// Threads: the control thread's.
class DataPlane {
 public:
  struct Options {
    std::vector<int> wakes;  ///< eventfds, Port::kWakeFds for each port that there may be
    int control_wake = -1;
    std::size_t cores = 1;              ///< that this process may run on
    SpareCores* spare_cores = nullptr;  ///< or none that may be counted on
    bool merge_udp = false;             ///< the kernel takes USO super-frames (Linux 6.2)
    std::function<void(const messages::Event&)> tell;
  };
  explicit DataPlane(Options options);
  ~DataPlane();

  /// Takes a device from the broker. A port that uses its name goes on with the new one.
  void add_device(Device device);

  /// Does what a controller may ask for (not attach and observe, which are about connections).
  [[nodiscard]] messages::Answer run(const messages::Command& command);

  [[nodiscard]] messages::answer::Attached attached() const;
  [[nodiscard]] messages::answer::Stats stats(std::uint64_t events_lost) const;

  /// Passes events of workers on. To be called when `control_wake` was written to.
  void take_worker_events();
  /// Does what is due. Returns when to call again, in boot ms.
  std::optional<std::uint64_t> run_timers(std::uint64_t now_ms);

  /// Stops all workers and forgets keys, members and ports. Devices are kept.
  void wipe();
  [[nodiscard]] bool empty() const { return ports_.empty(); }

  /// Set when server time jumped forward: this machine may be the copy of another (threats.md C9).
  /// The keys are gone by then; the process has to end.
  [[nodiscard]] bool snapshot_suspected() const { return snapshot_suspected_; }

 private:
  struct PortEntry {
    std::string tap;
    Transport transport = Transport::kUdp;
    std::uint16_t udp_port = 0;  ///< `udp`
    std::string device;          ///< `ethernet`: the interface
    LaneOptions lane;
    std::vector<int> wakes;
    std::unique_ptr<Port> port;
    std::vector<messages::event::Claim> claims;  ///< not told yet, in their order
    std::uint64_t claims_due_ms = 0;             ///< when they are, if there are any
  };

  messages::Answer on(const messages::command::PortSet& command);
  messages::Answer on(const messages::command::PortRemove& command);
  messages::Answer on(const messages::command::BootMake& command);
  messages::Answer on(const messages::command::BootIndex& command);
  messages::Answer on(const messages::command::BootDrop& command);
  messages::Answer on(const messages::command::Clock& command);
  messages::Answer on(const messages::command::Lease& command);
  messages::Answer on(const messages::command::PeerSet& command);
  messages::Answer on(const messages::command::LinkSet& command);
  messages::Answer on(const messages::command::RoutesSet& command);
  messages::Answer on(const messages::command::PeerRemove& command);
  messages::Answer on(const messages::command::KeyPair& command);
  messages::Answer on(const messages::command::KeyGroup& command);
  messages::Answer on(const messages::command::KeyUse& command);
  messages::Answer on(const messages::command::KeyDrop& command);
  messages::Answer on(const messages::command::MacRefuse& command);
  messages::Answer on(const messages::command::OwnSet& command);
  messages::Answer on(const messages::command::OwnRemove& command);
  messages::Answer on(const messages::command::BehindSet& command);
  messages::Answer on(const messages::command::BehindForget& command);
  messages::Answer on(const messages::command::BindSet& command);
  messages::Answer on(const messages::command::BindRemove& command);
  messages::Answer on(const messages::command::ProbeKey& command);
  messages::Answer on(const messages::command::RelaySet& command);
  messages::Answer on(const messages::command::Stats& command);
  messages::Answer on(const messages::command::Wipe& command);
  messages::Answer on(const messages::command::Attach& command);
  messages::Answer on(const messages::command::Observe& command);

  [[nodiscard]] Port& require_port(std::uint16_t number);
  [[nodiscard]] PathManager::Listener listener_for(std::uint16_t number);
  [[nodiscard]] PlainSide::Listener plain_listener_for(std::uint16_t number);
  void start_workers(PortEntry& entry);
  [[nodiscard]] LaneOptions lane_options(const messages::command::PortSet& command) const;
  [[nodiscard]] const Device* underlay_of(const PortEntry& entry) const;
  void pass_on(std::uint16_t number, PortEntry& entry, const WorkerEvent& event);
  void tell_claims(PortEntry& entry);
  void remove_port(std::map<std::uint16_t, PortEntry>::iterator entry);

  Options options_;
  std::array<std::uint8_t, 16> instance_{};
  const std::uint64_t started_ms_;
  ServerClock clock_;
  bool snapshot_suspected_ = false;
  DeviceRegistry devices_;
  std::vector<std::vector<int>> free_wakes_;
  std::map<std::uint16_t, PortEntry> ports_;
};

}  // namespace pairwire
