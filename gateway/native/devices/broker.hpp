/// The broker itself: answers the control plane and passes devices to the data plane.
///
/// Protocol on `devices.sock` (stream; the control plane's user and root, by SO_PEERCRED): one
/// line in, one line of JSON out, in order.
///
/// | line | does | answer besides `"ok":true` |
/// |---|---|---|
/// | `open tap NAME` | opens or attaches the TAP of the list, guards it, passes it | device, mac,
/// mtu, offload, attached, delivered | | `open udp PORT` | opens the socket of the list, passes it
/// | device, delivered | | `open ethernet NAME` | opens a socket on the interface of the list,
/// closes the interface if the TAP has its MAC address, passes the socket | device, mac, mtu,
/// closed, delivered | | `guard on`, `guard off` | the nft tables (guard.hpp); `open tap` turns
/// them on unless they were turned off | guard | | `status` | nothing | pid, dataplane, devices,
/// guard | | `down` | stops the data plane, removes TAPs and tables, ends the broker | |
///
/// `{"ok":false,"error":"..."}` otherwise. `"delivered":true` says that the data plane has taken
/// the device, so it can be named there from now on. `"delivered":false` comes with `"held":true`
/// where the data plane has the device from a former broker, else it waits until a data plane is
/// back.
///
/// Protocol on `dataplane-devices.sock` (SEQPACKET, towards the data plane): one message for each
/// device, a text with the descriptor in SCM_RIGHTS: `tap NAME mac XX:XX:XX:XX:XX:XX mtu N
/// offload 0|1`, `udp PORT` or `ethernet NAME mac XX:XX:XX:XX:XX:XX mtu N`. Nothing is expected
/// back.
///
/// The broker keeps a descriptor of each device that it opened: while the data plane is down the
/// TAP keeps its carrier and the port stays ours.
///
/// SIGTERM and SIGINT end the broker alone: data plane, TAPs and guard stay as they are.
#pragma once

#include <sys/types.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bridge.hpp"
#include "closed-interface.hpp"
#include "device-list.hpp"
#include "guard.hpp"
#include "io/unique-fd.hpp"
#include "launcher.hpp"
#include "netlink.hpp"
#include "open-device.hpp"

namespace pairwire::devices {

struct BrokerOptions {
  DeviceList list;
  std::string run_directory;
  uid_t control_uid = 0;
  Account dataplane;
  std::optional<LaunchOptions> launch;
};

class Broker {
 public:
  /// Makes `devices.sock`. Needs CAP_CHOWN if the control plane is another user.
  explicit Broker(BrokerOptions options);

  /// To be called when capabilities are down to what is needed: starts or adopts the data plane,
  /// then serves until a signal or `down`.
  void run();

 private:
  struct Client {
    UniqueFd fd;
    std::string line;
  };
  struct Opened {
    UniqueFd fd;
    OpenedTap tap;  ///< without its descriptor, which is `fd`
    bool held = false;
    int interface = 0;  ///< index of the interface that an Ethernet socket is bound to
  };

  void accept_client();
  bool serve(Client& client);  ///< false: close it
  std::string answer_to(const std::string& line);
  std::string open_tap_named(const std::string& name);
  void refuse_underlay_in(const std::string& bridge);
  std::string open_udp_port(const std::string& port);
  std::string open_ethernet_named(const std::string& name);
  std::string open_wire_named(const std::string& name);
  [[nodiscard]] Link require_link(const std::string& name);
  void close_to_kernel(const std::string& name, const std::string& why);
  std::string open_packet_named(const std::string& device, const Link& link, bool closed,
                                const std::function<UniqueFd()>& open);
  std::string status();
  void down();

  /// False: it waits in the queue, because the data plane has not taken it in time.
  bool deliver(const std::string& text, int fd);
  void connect_to_data_plane();
  void data_plane_ended();

  /// Whom the devices were given to; changes with every data plane.
  std::string data_plane_name() const;
  void remember(const std::string& device);
  bool was_delivered(const std::string& device) const;

  BrokerOptions options_;
  Netlink netlink_;
  ClosedInterfaces closed_;
  Bridges bridges_;
  Guard guard_;
  std::optional<Launcher> launcher_;
  UniqueFd listener_;
  UniqueFd address_watch_;
  UniqueFd signals_;
  UniqueFd data_plane_;
  std::vector<Client> clients_;
  std::map<std::string, Opened> opened_;
  bool guard_wanted_ = true;
  bool done_ = false;
};

}  // namespace pairwire::devices
