// See path-mtu.hpp.
#include "core/path-mtu.hpp"

#include <algorithm>

namespace pairwire {

void PathMtu::start(std::uint32_t top, std::uint64_t now_ms) {
  *this = {};
  if (top == 0) return;
  top_ = top;
  current_ = top;
  proved_ = std::min(kBase, top);
  failed_ = top + 1;
  raise_ms_ = now_ms + kRaiseMs;
  confirm(now_ms);
}

void PathMtu::confirm(std::uint64_t now_ms) {
  state_ = State::kConfirming;
  candidate_ = current_;
  answered_once_ = proved_ == current_;
  tries_ = 0;
  next_ms_ = now_ms;
}

std::uint32_t PathMtu::due(std::uint64_t now_ms, const Evidence& evidence) {
  if (state_ == State::kOff || now_ms < next_ms_) return 0;
  if (state_ == State::kDone) {
    if (!evidence.sending) {
      next_ms_ = now_ms + kConfirmMs;
      return 0;
    }
    confirm(now_ms);
    if (now_ms >= raise_ms_ && current_ < top_) {
      state_ = State::kSearching;
      failed_ = top_ + 1;
      candidate_ = top_;
    }
  }
  if (tries_ == kTries) {
    if (evidence.small_answer_ms < first_try_ms_) {
      // Nobody answers anything: that says nothing about sizes.
      tries_ = 0;
      next_ms_ = now_ms + kDeadMs;
      return 0;
    }
    fail(now_ms);
    if (state_ == State::kDone) return 0;
  }
  if (tries_++ == 0) first_try_ms_ = now_ms;
  next_ms_ = now_ms + evidence.patience_ms;
  return candidate_;
}

void PathMtu::answered(std::uint32_t size, std::uint64_t now_ms) {
  // An answer that comes after we gave up may be from before the path changed.
  if (size != candidate_ || tries_ == 0) return;
  proved_ = current_ = size;
  if (state_ == State::kConfirming) return finish(now_ms);
  search_on(now_ms);
}

void PathMtu::refused(std::uint32_t size, std::uint64_t now_ms) {
  if (size != candidate_ || tries_ == 0) return;
  answered_once_ = false;  // Certain.
  fail(now_ms);
}

void PathMtu::suspect(std::uint64_t now_ms) {
  if (state_ != State::kDone || now_ms < suspected_ms_ + kSuspectMs) return;
  suspected_ms_ = now_ms;
  confirm(now_ms);
}

/// The candidate is too long, as it seems.
void PathMtu::fail(std::uint64_t now_ms) {
  const std::uint32_t base = std::min(kBase, top_);
  if (state_ == State::kConfirming) {
    // A black hole. Down to what works everywhere at once, and up again from there.
    current_ = proved_ = base;
    state_ = State::kSearching;
    if (candidate_ > base && answered_once_) {
      // Three of three were lost that would have been answered: once more, before the search
      // rules the size out for ten minutes.
      answered_once_ = false;
      failed_ = top_ + 1;
      tries_ = 0;
      next_ms_ = now_ms;
      return;
    }
  }
  failed_ = std::min(failed_, candidate_);
  search_on(now_ms);
}

void PathMtu::search_on(std::uint64_t now_ms) {
  if (failed_ <= proved_ + 1) {
    raise_ms_ = now_ms + kRaiseMs;
    return finish(now_ms);
  }
  candidate_ = proved_ + (failed_ - proved_) / 2;
  tries_ = 0;
  next_ms_ = now_ms;
}

void PathMtu::finish(std::uint64_t now_ms) {
  state_ = State::kDone;
  tries_ = 0;
  next_ms_ = now_ms + kConfirmMs;
}

}  // namespace pairwire
