// See udp.hpp.
#include "io/udp.hpp"

#include <netinet/udp.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif

namespace pairwire {
namespace {

void set_segment_size(msghdr& header, Bytes control, std::size_t size) {
  header.msg_control = control.data();
  header.msg_controllen = control.size();
  std::memset(control.data(), 0, control.size());
  cmsghdr* const message = CMSG_FIRSTHDR(&header);
  message->cmsg_level = SOL_UDP;
  message->cmsg_type = UDP_SEGMENT;
  message->cmsg_len = CMSG_LEN(sizeof(std::uint16_t));
  const auto value = static_cast<std::uint16_t>(size);
  std::memcpy(CMSG_DATA(message), &value, sizeof(value));
}

}  // namespace

UdpSocket UdpSocket::of(int fd) noexcept {
  int domain = AF_INET6;
  socklen_t size = sizeof(domain);
  const bool known = getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0;
  return {fd, known && domain == AF_INET};
}

socklen_t UdpName::set(const Endpoint& endpoint, bool v4_only) noexcept {
  if (!v4_only) {
    v6 = endpoint.to_sockaddr();
    return sizeof(v6);
  }
  if (!endpoint.is_v4()) return 0;
  v4 = {};
  v4.sin_family = AF_INET;
  v4.sin_port = htons(endpoint.port);
  std::memcpy(&v4.sin_addr, endpoint.short_ip().data(), sizeof(v4.sin_addr));
  return sizeof(v4);
}

Endpoint UdpName::get() const noexcept {
  if (any.sa_family == AF_INET6) return Endpoint::from(v6);
  Endpoint endpoint;
  endpoint.ip[10] = endpoint.ip[11] = 0xff;
  std::memcpy(endpoint.ip.data() + 12, &v4.sin_addr, sizeof(v4.sin_addr));
  endpoint.port = ntohs(v4.sin_port);
  return endpoint;
}

bool send_datagram(UdpSocket socket, const Endpoint& to, ConstBytes datagram) noexcept {
  UdpName name;
  const socklen_t size = name.set(to, socket.v4_only);
  return size != 0 &&
         sendto(socket.fd, datagram.data(), datagram.size(), MSG_DONTWAIT, &name.any, size) >= 0;
}

// --- Sending ------------------------------------------------------------------------------------

UdpSender::UdpSender(UdpSocket socket, DropCounters& drops)
    : socket_(socket), drops_(drops), arena_(new std::uint8_t[kArena]) {
  for (std::size_t i = 0; i < kMessages; ++i) {
    msghdr& header = messages_[i].msg_hdr;
    header = {};
    header.msg_name = &names_[i];
    header.msg_namelen = sizeof(names_[i]);
    header.msg_iov = &parts_[i];
    header.msg_iovlen = 1;
  }
}

Bytes UdpSender::reserve(const Endpoint& to, std::size_t size) {
  if (used_ + size > kArena) flush();
  Train* train = count_ == 0 ? nullptr : &trains_[count_ - 1];
  const bool joins = train != nullptr && !train->closed && size <= train->frame_size &&
                     train->frames < kMaxTrainFrames && train->bytes + size <= kMaxTrainBytes &&
                     to_[count_ - 1] == to;
  if (!joins) {
    train = &add_train(to);
    train->at = arena_.get() + used_;
    train->frame_size = size;
  }
  const Bytes room(arena_.get() + used_, size);
  used_ += size;
  train->bytes += size;
  ++train->frames;
  train->closed = size < train->frame_size;  // A shorter one can only be the last.
  return room;
}

void UdpSender::push(const Endpoint& to, ConstBytes bytes, std::size_t frame_size,
                     std::size_t frames) {
  add_train(to) = {bytes.data(), bytes.size(), frame_size, frames, true};
}

UdpSender::Train& UdpSender::add_train(const Endpoint& to) {
  if (count_ == kMessages) flush();
  to_[count_] = to;
  trains_[count_] = {};
  return trains_[count_++];
}

void UdpSender::flush() {
  patience_.renew();
  for (std::size_t i = 0; i < count_; ++i) {
    const Train& train = trains_[i];
    parts_[i] = {const_cast<std::uint8_t*>(train.at), train.bytes};
    msghdr& header = messages_[i].msg_hdr;
    // A length of 0 is refused by the kernel: EDESTADDRREQ, counted like any refusal.
    header.msg_namelen = names_[i].set(to_[i], socket_.v4_only);
    header.msg_control = nullptr;
    header.msg_controllen = 0;
    if (train.frames > 1) set_segment_size(header, controls_[i].bytes, train.frame_size);
  }
  std::size_t done = 0;
  bool retried = false;
  while (done < count_) {
    if (!segment_ && trains_[done].frames > 1) {
      bool any_taken = false;
      send_alone(done, 0, trains_[done].frames, any_taken);
      ++done;
      continue;
    }
    std::size_t end = done + 1;
    while (end < count_ && (segment_ || trains_[end].frames == 1)) ++end;
    const int sent =
        sendmmsg(socket_.fd, &messages_[done], static_cast<unsigned>(end - done), MSG_DONTWAIT);
    ++counts_.calls;
    if (sent > 0) {
      for (int i = 0; i < sent; ++i, ++done) {
        ++counts_.trains;
        counts_.frames += trains_[done].frames;
      }
      retried = false;
      continue;
    }
    const int error = errno;
    if (!retried && patience_.worth_another_try(socket_.fd, error)) {
      retried = error != EINTR;
      continue;
    }
    send_failed_train(done, error);
    ++done;
    retried = false;
  }
  count_ = 0;
  used_ = 0;
}

/// What sendmmsg refused: in halves if it was too long, one by one if it was the segmenting.
void UdpSender::send_failed_train(std::size_t index, int error) {
  const std::size_t frames = trains_[index].frames;
  const bool train_problem =
      error == EMSGSIZE || error == EINVAL || error == EIO || error == EOPNOTSUPP;
  if (frames == 1 || !train_problem) {
    count_refused(index, error, frames);
    return;
  }
  if (error == EMSGSIZE) {
    const std::size_t half = frames / 2;
    bool any_taken = false;
    const auto send_half = [&](std::size_t first, std::size_t count) {
      if (!send_part(index, first, count)) return send_alone(index, first, count, any_taken);
      ++counts_.trains;
      counts_.frames += count;
    };
    send_half(0, half);
    send_half(half, frames - half);
    return;
  }
  // EINVAL is also said to a frame that is longer than the path's MTU, and EIO by a device that
  // can't checksum; only if the frames themselves pass it was the segmenting.
  bool any_taken = false;
  send_alone(index, 0, frames, any_taken);
  if (any_taken) segment_ = false;
}

void UdpSender::send_alone(std::size_t index, std::size_t first, std::size_t count,
                           bool& any_taken) {
  for (std::size_t i = first; i < first + count; ++i) {
    if (send_part(index, i, 1)) {
      any_taken = true;
      ++counts_.trains;
      ++counts_.frames;
    } else {
      count_refused(index, errno, 1);
    }
  }
}

void UdpSender::count_refused(std::size_t index, int error, std::size_t frames) {
  drops_.count(error == EMSGSIZE ? DropReason::oversize : DropReason::send_failed, frames);
  if (error == EMSGSIZE) too_long_ = to_[index];
}

/// Sends frames `first` to `first + count - 1` of a train in one message. Sets errno.
bool UdpSender::send_part(std::size_t index, std::size_t first, std::size_t count) {
  const Train& train = trains_[index];
  const std::size_t from = first * train.frame_size;
  const std::size_t to = std::min(from + count * train.frame_size, train.bytes);
  iovec part{const_cast<std::uint8_t*>(train.at) + from, to - from};
  msghdr header{};
  header.msg_name = &names_[index];
  header.msg_namelen = messages_[index].msg_hdr.msg_namelen;
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  Control control;
  if (count > 1) set_segment_size(header, control.bytes, train.frame_size);
  for (bool again = true;; again = false) {
    ++counts_.calls;
    if (sendmsg(socket_.fd, &header, MSG_DONTWAIT) >= 0) return true;
    const int error = errno;
    if (!again || !patience_.worth_another_try(socket_.fd, error)) {
      errno = error;  // The waiting may have set another.
      return false;
    }
  }
}

// --- Receiving ----------------------------------------------------------------------------------

UdpReceiver::UdpReceiver(UdpSocket socket)
    : socket_(socket), buffers_(new std::uint8_t[kMessages * kBuffer]) {}

std::span<const UdpReceiver::Train> UdpReceiver::receive(bool& failed) {
  for (std::size_t i = 0; i < kMessages; ++i) {
    parts_[i] = {buffers_.get() + i * kBuffer, kBuffer};
    msghdr& header = messages_[i].msg_hdr;
    header = {};
    header.msg_name = &names_[i];
    header.msg_namelen = sizeof(names_[i]);
    header.msg_iov = &parts_[i];
    header.msg_iovlen = 1;
    header.msg_control = controls_[i].bytes.data();
    header.msg_controllen = controls_[i].bytes.size();
  }
  const int got = recvmmsg(socket_.fd, messages_.data(), kMessages, MSG_DONTWAIT, nullptr);
  if (got <= 0) {
    // An error that ICMP left on the socket is told once, and the next call goes on.
    failed = got < 0 && (errno == EBADF || errno == ENOTSOCK);
    return {};
  }
  for (std::size_t i = 0; i < static_cast<std::size_t>(got); ++i) {
    const std::size_t size = messages_[i].msg_len;
    std::size_t frame_size = size;
    msghdr& header = messages_[i].msg_hdr;
    for (cmsghdr* at = CMSG_FIRSTHDR(&header); at != nullptr; at = CMSG_NXTHDR(&header, at)) {
      if (at->cmsg_level != SOL_UDP || at->cmsg_type != UDP_GRO) continue;
      int value = 0;
      std::memcpy(&value, CMSG_DATA(at), sizeof(value));
      if (value > 0) frame_size = static_cast<std::size_t>(value);
    }
    trains_[i] = {names_[i].get(), Bytes(buffers_.get() + i * kBuffer, size), frame_size};
  }
  return std::span(trains_).first(static_cast<std::size_t>(got));
}

}  // namespace pairwire
