/* Sends datagrams that were written beforehand, at a steady rate, and keeps what is answered.
 *
 *   volley ADDRESS PORT RATE LINGER_MS OUT < DATAGRAMS
 *
 * DATAGRAMS  records of u16 length, payload; all integers of both files are little-endian
 * RATE       datagrams a second
 * LINGER_MS  how long to listen for an answer after the last one
 * OUT        for each datagram:  u8 'S', u64 nanoseconds
 *            for each answer:    u8 'R', u64 nanoseconds, u16 length, payload
 *
 * Nanoseconds are CLOCK_MONOTONIC. It sleeps between datagrams, so that a daemon on the same
 * processor is not held up by it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SO_RCVBUFFORCE_ 33
#define AT_ONCE 64

typedef struct {
    const uint8_t *bytes;
    uint16_t length;
} Datagram;

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void fail(const char *what) {
    fprintf(stderr, "volley: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint8_t *read_all(size_t *size) {
    size_t room = 1 << 20, used = 0;
    uint8_t *data = malloc(room);
    ssize_t got;
    while ((got = read(0, data + used, room - used)) > 0) {
        used += (size_t)got;
        if (used == room)
            data = realloc(data, room *= 2);
    }
    *size = used;
    return data;
}

static size_t split(const uint8_t *data, size_t size, Datagram **out) {
    size_t count = 0, room = 1024;
    Datagram *found = malloc(room * sizeof *found);
    for (size_t at = 0; at + 2 <= size;) {
        uint16_t length;
        memcpy(&length, data + at, 2);
        if (count == room)
            found = realloc(found, (room *= 2) * sizeof *found);
        found[count++] = (Datagram){data + at + 2, length};
        at += 2u + length;
    }
    *out = found;
    return count;
}

static int connected(const char *address, const char *port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    if (inet_pton(AF_INET, address, &to.sin_addr) != 1)
        fail("ADDRESS");
    int fd = socket(AF_INET, SOCK_DGRAM, 0), room = 64 << 20;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE_, &room, sizeof room);
    if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0)
        fail("connect");
    return fd;
}

static void put(FILE *out, char kind, uint64_t at_ns) {
    fputc(kind, out);
    fwrite(&at_ns, 8, 1, out);
}

static size_t listen_once(int fd, FILE *out) {
    uint8_t buffer[2048];
    size_t heard = 0;
    for (;;) {
        ssize_t got = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
        if (got < 0)
            return heard;
        uint16_t length = (uint16_t)got;
        put(out, 'R', now_ns());
        fwrite(&length, 2, 1, out);
        fwrite(buffer, length, 1, out);
        heard++;
    }
}

int main(int argc, char **argv) {
    if (argc != 6) {
        fprintf(stderr, "usage: volley ADDRESS PORT RATE LINGER_MS OUT < DATAGRAMS\n");
        return 2;
    }
    size_t size, sent = 0, heard = 0;
    Datagram *datagrams;
    uint8_t *data = read_all(&size);
    size_t count = split(data, size, &datagrams);
    double gap_ns = 1e9 / atof(argv[3]);
    uint64_t linger_ns = strtoull(argv[4], NULL, 10) * 1000000u;
    int fd = connected(argv[1], argv[2]);
    FILE *out = fopen(argv[5], "wb");
    if (!out)
        fail(argv[5]);
    setvbuf(out, NULL, _IOFBF, 8 << 20);
    prctl(PR_SET_TIMERSLACK, 1);

    uint64_t begin = now_ns(), last = begin;
    while (sent < count || (heard < count && now_ns() - last < linger_ns)) {
        uint64_t now = now_ns();
        uint64_t due = begin + (uint64_t)((double)sent * gap_ns);
        for (int n = 0; sent < count && due <= now && n < AT_ONCE; n++) {
            put(out, 'S', now_ns());
            /* An ICMP error of an earlier one is reported once, and this one not sent. */
            if (send(fd, datagrams[sent].bytes, datagrams[sent].length, 0) < 0)
                send(fd, datagrams[sent].bytes, datagrams[sent].length, 0);
            last = now_ns();
            due = begin + (uint64_t)((double)++sent * gap_ns);
        }
        heard += listen_once(fd, out);
        now = now_ns();
        uint64_t until = sent < count ? due : last + linger_ns;
        if (until > now) {
            struct timespec left = {(time_t)((until - now) / 1000000000u),
                                    (long)((until - now) % 1000000000u)};
            struct pollfd one = {fd, POLLIN, 0};
            ppoll(&one, 1, &left, NULL);
        }
    }
    fclose(out);
    return 0;
}
