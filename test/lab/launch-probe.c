/* A program for the broker to start in test/lab/devices.test.ts, that reports what it was given: user,
 * arguments, descriptors, environment, and each message that the broker sends, on standard error (the
 * broker's log). The real data plane can't report that, because its sandbox is already closed; tests of how
 * the broker and the real one work together stand in the same file. */
#define _GNU_SOURCE
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv) {
  fprintf(stderr, "probe: pid %d uid %d gid %d sid %d args", getpid(), getuid(), getgid(), getsid(0) == getpid());
  for (int i = 1; i < argc; i++) fprintf(stderr, " %s", argv[i]);
  int count = 0;
  for (int fd = 0; fd < 1024; fd++) count += !(dup2(fd, fd) < 0);
  fprintf(stderr, "; %d descriptors, PATH %s\n", count, environ[0] ? "set" : "unset");
  int connections[16];
  int used = 0;
  for (;;) {
    struct pollfd waiting[17] = {{4, POLLIN, 0}};
    for (int i = 0; i < used; i++) waiting[1 + i] = (struct pollfd){connections[i], POLLIN, 0};
    if (poll(waiting, 1 + used, -1) < 0) return 1;
    for (int i = 0; i < used; i++) {
      if (!waiting[1 + i].revents) continue;
      char text[256] = "", control[64];
      struct iovec part = {text, sizeof text - 1};
      struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
      if (recvmsg(connections[i], &message, 0) <= 0) { close(connections[i]); connections[i] = connections[--used]; continue; }
      struct cmsghdr *header = CMSG_FIRSTHDR(&message);
      fprintf(stderr, "probe: got %s %s\n", text, header && header->cmsg_type == SCM_RIGHTS ? "with a descriptor" : "alone");
    }
    if (waiting[0].revents && used < 16) connections[used++] = accept(4, NULL, NULL);
  }
}
