// The list of drop reasons: names, sentences, counters.
#include "core/drop-reasons.hpp"

#include <doctest/doctest.h>

#include <set>
#include <string>

namespace pairwire::test {
namespace {

TEST_CASE("drop reasons: names are unique labels, sentences are sentences") {
  std::set<std::string> names;
  for (std::size_t i = 0; i < kDropReasonCount; ++i) {
    const auto reason = static_cast<DropReason>(i);
    const std::string name(drop_reason_name(reason));
    const std::string sentence(drop_reason_sentence(reason));
    CAPTURE(name);
    CHECK(names.insert(name).second);
    CHECK(name.find_first_not_of("abcdefghijklmnopqrstuvwxyz_") == std::string::npos);
    CHECK(sentence.size() > 10);
    CHECK(sentence.back() == '.');
  }
  CHECK(drop_reason_name(DropReason::malformed) == "malformed");
  CHECK(drop_reason_name(DropReason::inner_ethertype_own) == "inner_ethertype_own");
}

TEST_CASE("drop counters: each counts for itself") {
  DropCounters counters;
  counters.count(DropReason::replayed);
  counters.count(DropReason::replayed);
  counters.count(DropReason::storm, 64);
  CHECK(counters.get(DropReason::replayed) == 2);
  CHECK(counters.get(DropReason::storm) == 64);
  CHECK(counters.get(DropReason::malformed) == 0);
}

}  // namespace
}  // namespace pairwire::test
