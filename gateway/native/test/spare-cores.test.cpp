// Whether there are cores to spare (spare-cores.hpp), by texts as /proc/uptime has them.
#include "core/spare-cores.hpp"

#include <doctest/doctest.h>

#include <string_view>

#include "test/uptime-file.hpp"

using namespace pairwire;
using namespace pairwire::test;

namespace {

constexpr std::uint64_t kSecond = 1'000'000;

}  // namespace

TEST_CASE("spare cores: an eighth of all cores' time has to be idle") {
  UptimeFile uptime;
  SpareCores cores(uptime.reader(), 4);
  uptime.says("100.00 300.00\n");
  CHECK(!cores.any(100 * kSecond));
  // Half a core of four.
  uptime.says("101.00 300.50\n");
  CHECK(cores.any(101 * kSecond));
  uptime.says("102.00 300.99\n");
  CHECK(!cores.any(102 * kSecond));
  uptime.says("103.00 304.99\n");
  CHECK(cores.any(103 * kSecond));
}

TEST_CASE("spare cores: looked at once a second, over all the time since the last look") {
  UptimeFile uptime;
  SpareCores cores(uptime.reader(), 1);
  uptime.says("10.00 5.00\n");
  CHECK(!cores.any(10 * kSecond));
  uptime.says("10.99 5.99\n");
  CHECK(!cores.any(11 * kSecond - 1));
  CHECK(cores.any(11 * kSecond));
  // Ten seconds later, of which one was idle.
  uptime.says("21.00 6.99\n");
  CHECK(!cores.any(21 * kSecond));
}

TEST_CASE("spare cores: none where it can't be told") {
  SpareCores unknown(UniqueFd(), 2);
  CHECK(!unknown.any(10 * kSecond));
  CHECK(!unknown.any(20 * kSecond));

  for (const std::string_view text : {"", "20.00", "20.00 ", "20.00 9", "20.00 9.", "20.00 9.9",
                                      "20.00 99.999", "20.00 -9.00", "x y"}) {
    CAPTURE(text);
    UptimeFile uptime;
    SpareCores cores(uptime.reader(), 1);
    uptime.says("10.00 1.00\n");
    CHECK(!cores.any(10 * kSecond));
    uptime.says("11.00 2.00\n");
    CHECK(cores.any(11 * kSecond));
    uptime.says(text);
    CHECK(!cores.any(12 * kSecond));
    // Nothing to compare with.
    uptime.says("13.00 4.00\n");
    CHECK(!cores.any(13 * kSecond));
  }
  // A number that goes back, as another container's would.
  UptimeFile uptime;
  SpareCores cores(uptime.reader(), 1);
  uptime.says("10.00 9.00\n");
  CHECK(!cores.any(10 * kSecond));
  uptime.says("11.00 1.00\n");
  CHECK(!cores.any(11 * kSecond));
}
