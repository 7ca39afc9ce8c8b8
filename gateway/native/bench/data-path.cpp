// The whole way from TAP to TAP in one thread, system calls and all: sockets take the place of the
// TAPs, the loopback interface that of the underlay (test/lab.hpp).
#include <cstdlib>
#include <vector>

#include "bench/harness.hpp"
#include "test/lab.hpp"

namespace pairwire::bench {
namespace {

/// One operation is one packet at the TAP and all that becomes of it.
void crossing(Runner& runner, const char* what, const test::Frame& frame, const VnetHeader& header,
              std::uint64_t frames) {
  test::Pair pair;
  pair.install_pair();
  runner.measure("path.crossing", {{"packet", what}, {"frames", frames}}, [&](std::uint64_t) {
    pair.alice.from_host(header, frame);
    pair.alice.pump_out();
    pair.bob.pump_in();
    const auto got = pair.bob.to_host();
    if (!got || got->frame.size() != frame.size()) std::abort();
    keep(got->frame.data());
  });
}

const Registered registered([](Runner& runner) {
  test::FrameSpec spec;
  spec.udp = true;
  spec.payload = test::Frame(22, 1);
  crossing(runner, "frame of 64 bytes", test::make_frame(spec), {}, 1);
  spec.payload = test::Frame(1378, 1);
  crossing(runner, "frame of 1420 bytes", test::make_frame(spec), {}, 1);
  spec.payload = test::Frame(std::size_t{45} * 1352, 1);
  const test::Frame datagrams = test::make_frame(spec, true);
  crossing(runner, "UDP super-frame", datagrams, test::gso_header(datagrams, 1352), 45);
  spec.udp = false;
  const test::Frame stream = test::make_frame(spec, true);
  crossing(runner, "TCP super-frame", stream, test::gso_header(stream, 1352), 45);
});

}  // namespace
}  // namespace pairwire::bench
