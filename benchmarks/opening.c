/* How long after a datagram a TCP port opens: one datagram after another, each for its own port.
 *
 *   opening ADDRESS KNOCK_PORT FIRST_PORT SETTLE_MS STEP_US DEADLINE_MS < DATAGRAMS
 *
 * DATAGRAMS    records of u16 length (little-endian), payload; number n is for port FIRST_PORT + n
 * SETTLE_MS    from a first SYN, which must not be answered, to the datagram: whatever the gate does
 *              about a first denial is then over. By chance it is up to 100 ms more, so as not to fall
 *              into step with a daemon that polls
 * STEP_US      from one SYN to the next, after the datagram; from 200 on it sleeps in between, so
 *              that it takes no processor away from the daemon
 * DEADLINE_MS  when to give up
 *
 * Prints a line for each: microseconds from the sending of the datagram to its first answer, then
 * to the first SYN that was accepted; - for what did not happen. No SYN waits to be sent again.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SLEEPS_FROM_US 200
#define AT_MOST_LONGER_US 100000

static struct sockaddr_in server;

static int64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void fail(const char *what) {
    fprintf(stderr, "opening: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* A TCP socket that has sent its SYN. */
static int begin_connecting(int port) {
    struct sockaddr_in to = server;
    to.sin_port = htons((uint16_t)port);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (fd < 0)
        fail("socket");
    if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0 && errno != EINPROGRESS &&
        errno != ECONNREFUSED)
        fail("connect");
    return fd;
}

static int is_connected(int fd) {
    struct tcp_info info;
    socklen_t size = sizeof info;
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) < 0)
        fail("TCP_INFO");
    return info.tcpi_state == TCP_ESTABLISHED || info.tcpi_state == TCP_CLOSE_WAIT;
}

/* Without a FIN: the server's side is to be gone too. */
static void drop(int fd) {
    struct linger now = {1, 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(fd);
}

/* Waits for either socket, at most so long. */
static void wait_for(int udp, int tcp, int64_t left_us, int sleeps) {
    struct pollfd both[2] = {{udp, POLLIN, 0}, {tcp, POLLOUT, 0}};
    struct timespec left = {0, sleeps ? left_us * 1000 : 0};
    ppoll(both, 2, &left, NULL);
}

static void measure(const uint8_t *payload, size_t length, int udp, int port, int64_t settle_us,
                    int64_t step_us, int64_t deadline_us) {
    uint8_t buffer[2048];
    int tcp = begin_connecting(port);
    usleep((useconds_t)(settle_us + random() % AT_MOST_LONGER_US));
    if (is_connected(tcp)) {
        fprintf(stderr, "opening: port %d was open before the knock\n", port);
        exit(1);
    }
    drop(tcp);
    while (recv(udp, buffer, sizeof buffer, MSG_DONTWAIT) >= 0)
        ;
    int64_t begin = now_us(), answered = -1, opened = -1;
    if (send(udp, payload, length, 0) < 0)
        send(udp, payload, length, 0);
    while (opened < 0 && now_us() - begin < deadline_us) {
        int64_t tried = now_us();
        tcp = begin_connecting(port);
        do {
            if (answered < 0 && recv(udp, buffer, sizeof buffer, MSG_DONTWAIT) > 0)
                answered = now_us() - begin;
            if (is_connected(tcp)) {
                opened = now_us() - begin;
                break;
            }
            int64_t left_us = tried + step_us - now_us();
            if (left_us <= 0)
                break;
            wait_for(udp, tcp, left_us, step_us >= SLEEPS_FROM_US);
        } while (1);
        drop(tcp);
    }
    /* The hole opens before the answer leaves. */
    struct pollfd one = {udp, POLLIN, 0};
    if (answered < 0 && opened >= 0 && poll(&one, 1, 20) > 0 &&
        recv(udp, buffer, sizeof buffer, MSG_DONTWAIT) > 0)
        answered = now_us() - begin;
    answered < 0 ? printf("- ") : printf("%lld ", (long long)answered);
    opened < 0 ? printf("-\n") : printf("%lld\n", (long long)opened);
    fflush(stdout);
}

int main(int argc, char **argv) {
    if (argc != 7) {
        fprintf(stderr, "usage: opening ADDRESS KNOCK_PORT FIRST_PORT SETTLE_MS STEP_US "
                        "DEADLINE_MS < DATAGRAMS\n");
        return 2;
    }
    server = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[2]))};
    if (inet_pton(AF_INET, argv[1], &server.sin_addr) != 1)
        fail("ADDRESS");
    int udp = socket(AF_INET, SOCK_DGRAM, 0);
    if (connect(udp, (struct sockaddr *)&server, sizeof server) < 0)
        fail("connect");
    prctl(PR_SET_TIMERSLACK, 1);
    srandom((unsigned)now_us());
    uint8_t payload[65536];
    uint16_t length;
    for (int n = 0; fread(&length, 2, 1, stdin) == 1; n++) {
        if (fread(payload, 1, length, stdin) != length)
            fail("DATAGRAMS");
        measure(payload, length, udp, atoi(argv[3]) + n, atoll(argv[4]) * 1000, atoll(argv[5]),
                atoll(argv[6]) * 1000);
    }
    return 0;
}
