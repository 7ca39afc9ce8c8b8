// Limits of small parts of the data plane that have no test file of their own.
#include <doctest/doctest.h>

#include "core/rcu.hpp"
#include "core/worker-events.hpp"

using namespace pairwire;

TEST_CASE("limits: of more events than fit the newest are lost and counted, the others stay") {
  auto events = std::make_unique<WorkerEvents>();
  WorkerEvent event;
  for (std::uint32_t i = 0; i < 1024; ++i) {
    event.index = i;
    REQUIRE(events->put(event));
  }
  CHECK(events->lost() == 0);
  CHECK_FALSE(events->put(event));
  CHECK(events->lost() == 1);
  REQUIRE(events->take(event));
  CHECK(event.index == 0);
  event.index = 5000;
  CHECK(events->put(event));
  CHECK_FALSE(events->put(event));
  CHECK(events->lost() == 2);
  for (std::uint32_t i = 1; i < 1024; ++i) {
    REQUIRE(events->take(event));
    CHECK(event.index == i);
  }
  REQUIRE(events->take(event));
  CHECK(event.index == 5000);
  CHECK_FALSE(events->take(event));
}

TEST_CASE("limits: so many readers of the tables and no more; one that goes makes room") {
  RcuDomain domain;
  std::vector<std::unique_ptr<RcuDomain::Reader>> readers;
  for (std::size_t i = 0; i < RcuDomain::kMaxReaders; ++i) readers.push_back(domain.add_reader());
  CHECK_THROWS_AS(static_cast<void>(domain.add_reader()), std::length_error);
  readers.pop_back();
  CHECK(domain.add_reader() != nullptr);
}
