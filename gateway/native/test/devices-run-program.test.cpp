// What a program that the broker runs may say: as much as fits, and no more is kept.
#include <doctest/doctest.h>

#include "devices/run-program.hpp"

using namespace pairwire::devices;

TEST_CASE("limits: of a program's output 64 KiB are kept, and it ends as it would") {
  const auto say = [](const char* redirect, int bytes) {
    return run_program({"/bin/sh", "-c",
                        "head -c " + std::to_string(bytes) + " /dev/zero" + redirect + "; exit 3"},
                       "");
  };
  const ProgramResult whole = say("", 65'536);
  CHECK(whole.output.size() == 65'536);
  CHECK(whole.code == 3);
  const ProgramResult cut = say("", 65'537);
  CHECK(cut.output.size() == 65'536);
  CHECK(cut.code == 3);
  // Far more than a pipe holds: the program is not stuck, and what it said first is there.
  const ProgramResult much = say(" >&2", 3'000'000);
  CHECK(much.errors.size() == 65'536);
  CHECK(much.output.empty());
  CHECK(much.code == 3);
}

TEST_CASE("a program that is not there is an error with its name") {
  CHECK_THROWS_WITH(static_cast<void>(run_program({"/nonexistent/program"}, "")),
                    "/nonexistent/program could not be started");
}
