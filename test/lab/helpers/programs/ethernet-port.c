/* An Ethernet interface of a host of the laboratory, worked from a test: ethernet-port INTERFACE
 * Standard input, one line each: a whole frame in hex, sends it. Standard output: `ready`, then each
 * frame that came in, in hex. */
#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_FRAME = 10000 };

static void die(const char* what) {
  perror(what);
  exit(1);
}

static int hex_digit(char c) {
  const char* digits = "0123456789abcdef";
  const char* at = c == '\0' ? NULL : strchr(digits, c);
  return at == NULL ? -1 : (int)(at - digits);
}

static void send_line(int fd, const char* line) {
  unsigned char frame[MAX_FRAME];
  size_t size = 0;
  while (size < sizeof frame && hex_digit(line[0]) >= 0 && hex_digit(line[1]) >= 0) {
    frame[size++] = (unsigned char)(hex_digit(line[0]) << 4 | hex_digit(line[1]));
    line += 2;
  }
  if (send(fd, frame, size, 0) != (ssize_t)size) die("send");
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const int fd = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL));
  if (fd < 0) die("socket");
  struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL)};
  address.sll_ifindex = (int)if_nametoindex(argv[1]);
  if (bind(fd, (struct sockaddr*)&address, sizeof address) != 0) die("bind");
  const struct packet_mreq all = {.mr_ifindex = address.sll_ifindex, .mr_type = PACKET_MR_PROMISC};
  if (setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &all, sizeof all) != 0) die("promiscuous");
  const int on = 1;
  if (setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof on) != 0) die("incoming");
  puts("ready");
  fflush(stdout);
  static char lines[1 << 20];
  size_t used = 0;
  struct pollfd waiting[2] = {{.fd = STDIN_FILENO, .events = POLLIN}, {.fd = fd, .events = POLLIN}};
  while (poll(waiting, 2, -1) >= 0) {
    if (waiting[0].revents != 0) {
      const ssize_t got = read(STDIN_FILENO, lines + used, sizeof lines - 1 - used);
      if (got <= 0) return 0;
      used += (size_t)got;
      lines[used] = '\0';
      char* at = lines;
      for (char* end = NULL; (end = strchr(at, '\n')) != NULL; at = end + 1) {
        *end = '\0';
        send_line(fd, at);
      }
      used -= (size_t)(at - lines);
      memmove(lines, at, used);
    }
    if (waiting[1].revents != 0) {
      unsigned char frame[MAX_FRAME];
      const ssize_t got = recv(fd, frame, sizeof frame, 0);
      for (ssize_t i = 0; i < got; ++i) printf("%02x", frame[i]);
      puts("");
      fflush(stdout);
    }
  }
  return 1;
}
