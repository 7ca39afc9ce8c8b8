// See ethernet.hpp.
#include "io/ethernet.hpp"

#include <algorithm>
#include <cerrno>

#include "core/frame.hpp"

namespace pairwire {
namespace {

void write_outer_header(const Endpoint& to, std::span<std::uint8_t, kOuterHeaderSize> out) {
  std::ranges::copy(to.far_mac().bytes(), out.begin());
  std::ranges::copy(to.near_mac().bytes(), out.begin() + MacAddress::kSize);
  store_be<std::uint16_t>(out.last<2>(), kEtherType);
}

/// Whom a frame is for that lies ready to be sent.
Endpoint outer_endpoint(const iovec& frame) {
  const ConstBytes header(static_cast<const std::uint8_t*>(frame.iov_base), kOuterHeaderSize);
  return Endpoint::of_ethernet(MacAddress(header.first<MacAddress::kSize>()),
                               MacAddress(header.subspan<MacAddress::kSize, MacAddress::kSize>()));
}

}  // namespace

bool send_ethernet(int fd, const Endpoint& to, ConstBytes frame) noexcept {
  std::array<std::uint8_t, kOuterHeaderSize> header;
  write_outer_header(to, header);
  std::array<iovec, 2> parts{iovec{header.data(), header.size()},
                             iovec{const_cast<std::uint8_t*>(frame.data()), frame.size()}};
  msghdr message{};
  message.msg_iov = parts.data();
  message.msg_iovlen = parts.size();
  return sendmsg(fd, &message, MSG_DONTWAIT) >= 0;
}

// --- Sending ------------------------------------------------------------------------------------

EthernetSender::EthernetSender(int fd, DropCounters& drops)
    : fd_(fd), drops_(drops), arena_(new std::uint8_t[kArena]) {
  for (std::size_t i = 0; i < kMessages; ++i) {
    messages_[i] = {};
    messages_[i].msg_hdr.msg_iov = &parts_[i];
    messages_[i].msg_hdr.msg_iovlen = 1;
  }
}

Bytes EthernetSender::reserve_frame(std::size_t size) {
  if (count_ == kMessages || used_ + size > kArena) flush();
  const Bytes room(arena_.get() + used_, size);
  parts_[count_++] = {room.data(), size};
  used_ += size;
  return room;
}

Bytes EthernetSender::reserve(const Endpoint& to, std::size_t size) {
  const Bytes room = reserve_frame(kOuterHeaderSize + size);
  write_outer_header(to, room.first<kOuterHeaderSize>());
  return room.subspan(kOuterHeaderSize);
}

void EthernetSender::flush() {
  patience_.renew();
  std::size_t done = 0;
  bool retried = false;
  while (done < count_) {
    const int sent =
        sendmmsg(fd_, &messages_[done], static_cast<unsigned>(count_ - done), MSG_DONTWAIT);
    if (sent > 0) {
      done += static_cast<std::size_t>(sent);
      retried = false;
      continue;
    }
    const int error = errno;
    if (!retried && patience_.worth_another_try(fd_, error)) {
      retried = error != EINTR;
      continue;
    }
    drops_.count(error == EMSGSIZE ? DropReason::oversize : DropReason::send_failed);
    if (error == EMSGSIZE) too_long_ = outer_endpoint(parts_[done]);
    ++done;
    retried = false;
  }
  count_ = 0;
  used_ = 0;
}

// --- Receiving ----------------------------------------------------------------------------------

EthernetReceiver::EthernetReceiver(int fd, bool whole)
    : fd_(fd), whole_(whole), buffers_(new std::uint8_t[kMessages * kBuffer]) {
  for (std::size_t i = 0; i < kMessages; ++i) {
    parts_[i] = {buffers_.get() + i * kBuffer, kBuffer};
    messages_[i] = {};
    messages_[i].msg_hdr.msg_iov = &parts_[i];
    messages_[i].msg_hdr.msg_iovlen = 1;
  }
}

std::span<const UdpReceiver::Train> EthernetReceiver::receive(bool& failed) {
  const int got = recvmmsg(fd_, messages_.data(), kMessages, MSG_DONTWAIT, nullptr);
  if (got <= 0) {
    // That the interface went down is told once, and the next call goes on.
    failed = got < 0 && (errno == EBADF || errno == ENOTSOCK);
    return {};
  }
  std::size_t count = 0;
  for (std::size_t i = 0; i < static_cast<std::size_t>(got); ++i) {
    // The broker's filter lets through what has an EtherType; one behind which nothing stands is
    // like an empty datagram, and like that not even counted.
    if (messages_[i].msg_len <= kOuterHeaderSize) continue;
    const Bytes frame(buffers_.get() + i * kBuffer, messages_[i].msg_len);
    const MacAddress to(frame.subspan<0, MacAddress::kSize>());
    const MacAddress from(frame.subspan<MacAddress::kSize, MacAddress::kSize>());
    const Bytes sealed = whole_ ? frame : frame.subspan(kOuterHeaderSize);
    trains_[count++] = {Endpoint::of_ethernet(from, to), sealed, sealed.size()};
  }
  return std::span(trains_).first(count);
}

}  // namespace pairwire
