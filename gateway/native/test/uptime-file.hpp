// A file that stands for /proc/uptime.
#pragma once

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <string_view>

#include "io/unique-fd.hpp"

namespace pairwire::test {

class UptimeFile {
 public:
  UptimeFile() : fd_(memfd_create("uptime", MFD_CLOEXEC)) { REQUIRE(fd_); }

  void says(std::string_view text) {
    REQUIRE(ftruncate(fd_.get(), 0) == 0);
    REQUIRE(pwrite(fd_.get(), text.data(), text.size(), 0) == static_cast<ssize_t>(text.size()));
  }
  [[nodiscard]] UniqueFd reader() const { return UniqueFd(fcntl(fd_.get(), F_DUPFD_CLOEXEC, 0)); }

 private:
  UniqueFd fd_;
};

}  // namespace pairwire::test
