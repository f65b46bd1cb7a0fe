/* TCP connections: a server that says a line to whoever connects, and a client that counts.
 *
 *   connections serve FIRST_PORT LAST_PORT
 *   connections count ADDRESS PORT SECONDS    prints how many connections it made, one by one
 *
 * A connection of the count is over when it stands: it is reset, so that neither side keeps it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static void fail(const char *what) {
    fprintf(stderr, "connections: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void drop(int fd) {
    struct linger now = {1, 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(fd);
}

__attribute__((noreturn)) static void serve(int first, int last) {
    int ready = epoll_create1(0), yes = 1;
    for (int port = first; port <= last; port++) {
        struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
        if (bind(fd, (struct sockaddr *)&at, sizeof at) < 0 || listen(fd, 4096) < 0)
            fail("listen");
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(ready, EPOLL_CTL_ADD, fd, &event);
    }
    printf("listening\n");
    fflush(stdout);
    for (;;) {
        struct epoll_event events[64];
        int count = epoll_wait(ready, events, 64, -1), fd;
        for (int n = 0; n < count; n++)
            while ((fd = accept(events[n].data.fd, NULL, NULL)) >= 0) {
                ssize_t said = send(fd, "hello\n", 6, MSG_NOSIGNAL);
                (void)said; /* whoever counts is gone already */
                close(fd);
            }
    }
}

static int count_connections(const char *address, int port, double seconds) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    if (inet_pton(AF_INET, address, &to.sin_addr) != 1)
        fail("ADDRESS");
    struct timespec begin, now;
    long made = 0;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    double lasted;
    do {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0)
            fail("connect");
        drop(fd);
        made++;
        clock_gettime(CLOCK_MONOTONIC, &now);
        lasted = (double)(now.tv_sec - begin.tv_sec) + (double)(now.tv_nsec - begin.tv_nsec) / 1e9;
    } while (lasted < seconds);
    printf("%ld %.6f\n", made, lasted);
    return 0;
}

int main(int argc, char **argv) {
    if (argc == 4 && strcmp(argv[1], "serve") == 0)
        serve(atoi(argv[2]), atoi(argv[3]));
    if (argc == 5 && strcmp(argv[1], "count") == 0)
        return count_connections(argv[2], atoi(argv[3]), atof(argv[4]));
    fprintf(stderr, "usage: connections serve FIRST LAST | connections count ADDRESS PORT SECONDS\n");
    return 2;
}
