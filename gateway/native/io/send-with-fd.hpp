// A text with a descriptor beside it, as devices go from the broker to the data plane.
#pragma once

#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

#include <array>
#include <cstring>
#include <string_view>

namespace pairwire {

/// One message on a Unix socket with `fd` in SCM_RIGHTS (unix(7)). The caller keeps `fd`. Returns
/// what sendmsg returns; `flags` are its, to which MSG_NOSIGNAL is added.
inline ssize_t send_with_fd(int connection, std::string_view text, int fd, int flags = 0) {
  iovec part{const_cast<char*>(text.data()), text.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  cmsghdr* const header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  return sendmsg(connection, &message, flags | MSG_NOSIGNAL);
}

}  // namespace pairwire
