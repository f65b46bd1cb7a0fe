/* Floods one UDP port with junk.
 *
 *   flood ADDRESS PORT RATE SECONDS PAYLOAD INTERFACE MAC SOURCE SOURCES
 *
 * RATE       datagrams a second; 0 as many as it can
 * PAYLOAD    random:LENGTH, tag:HEX (8 bytes that are the same in each, then 232 random ones), or
 *            base64:LENGTH (letters, digits, + and /)
 * INTERFACE  the datagrams leave from here as Ethernet frames to MAC, past routes and queues
 * SOURCE     their source address, the first of SOURCES that take turns
 *
 * Prints how many were sent, and in how many seconds. No two are the same.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define AT_ONCE 64
#define MAX_PAYLOAD 1400

typedef struct {
    struct ether_header ethernet;
    struct iphdr ip;
    struct udphdr udp;
} __attribute__((packed)) Headers;

static volatile sig_atomic_t stopped;
static uint64_t state[2];
static uint8_t payloads[AT_ONCE][MAX_PAYLOAD + 8];
static Headers headers[AT_ONCE];
static struct iovec parts[AT_ONCE][2];
static struct mmsghdr messages[AT_ONCE];

static void stop(int number) {
    (void)number;
    stopped = 1;
}

static void fail(const char *what) {
    fprintf(stderr, "flood: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* xorshift128+: junk has to differ, not to be a secret. */
static uint64_t next(void) {
    uint64_t a = state[0], b = state[1];
    state[0] = b;
    a ^= a << 23;
    state[1] = a ^ b ^ (a >> 18) ^ (b >> 5);
    return state[1] + b;
}

static void fill(uint8_t *at, size_t length, int as_base64) {
    static const char alphabet[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t n = 0; n < length; n += 8) {
        uint64_t word = next();
        memcpy(at + n, &word, 8);
    }
    for (size_t n = 0; as_base64 && n < length; n++)
        at[n] = (uint8_t)alphabet[at[n] & 63];
}

static uint16_t checksum(const void *data, size_t words) {
    const uint16_t *word = data;
    uint32_t sum = 0;
    while (words--)
        sum += *word++;
    sum = (sum >> 16) + (sum & 0xFFFF);
    return (uint16_t)~(sum + (sum >> 16));
}

static Headers frame(const uint8_t mac[6], struct in_addr to, int port, size_t length) {
    Headers made = {0};
    memcpy(made.ethernet.ether_dhost, mac, 6);
    made.ethernet.ether_shost[0] = 2;
    made.ethernet.ether_type = htons(ETHERTYPE_IP);
    made.ip.version = 4;
    made.ip.ihl = 5;
    made.ip.ttl = 64;
    made.ip.protocol = IPPROTO_UDP;
    made.ip.tot_len = htons((uint16_t)(sizeof made.ip + sizeof made.udp + length));
    made.ip.daddr = to.s_addr;
    made.udp.source = htons(40000);
    made.udp.dest = htons((uint16_t)port);
    made.udp.len = htons((uint16_t)(sizeof made.udp + length));
    return made; /* no UDP checksum: IPv4 does without */
}

static void set_source(Headers *header, uint32_t source) {
    header->ip.saddr = htonl(source);
    header->ip.check = 0;
    header->ip.check = checksum(&header->ip, sizeof header->ip / 2);
}

static int packet_socket(const char *interface) {
    struct sockaddr_ll name = {.sll_family = AF_PACKET,
                               .sll_ifindex = (int)if_nametoindex(interface)};
    int fd = socket(AF_PACKET, SOCK_RAW, 0), yes = 1;
    setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &yes, sizeof yes);
    if (fd < 0 || bind(fd, (struct sockaddr *)&name, sizeof name) < 0)
        fail("packet socket");
    return fd;
}

int main(int argc, char **argv) {
    if (argc != 10) {
        fprintf(stderr, "usage: flood ADDRESS PORT RATE SECONDS PAYLOAD INTERFACE MAC SOURCE SOURCES\n");
        return 2;
    }
    struct in_addr to, from;
    if (inet_pton(AF_INET, argv[1], &to) != 1 || inet_pton(AF_INET, argv[8], &from) != 1)
        fail("ADDRESS, SOURCE");
    int port = atoi(argv[2]), is_base64 = strncmp(argv[5], "base64:", 7) == 0;
    double rate = atof(argv[3]), seconds = atof(argv[4]);
    size_t length = 240, fixed = 0;
    uint8_t tag[8];
    if (strncmp(argv[5], "tag:", 4) == 0) {
        for (fixed = 0; fixed < 8; fixed++)
            if (sscanf(argv[5] + 4 + 2 * fixed, "%2hhx", &tag[fixed]) != 1)
                fail("PAYLOAD");
    } else {
        length = strtoul(strchr(argv[5], ':') ? strchr(argv[5], ':') + 1 : "0", NULL, 10);
    }
    if (length < 8 || length > MAX_PAYLOAD)
        fail("PAYLOAD");

    uint32_t first = ntohl(from.s_addr), sources = (uint32_t)atoi(argv[9]), turn = 0;
    uint8_t mac[6];
    if (sources < 1 || sscanf(argv[7], "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", &mac[0], &mac[1], &mac[2],
                         &mac[3], &mac[4], &mac[5]) != 6)
        fail("MAC");
    int fd = packet_socket(argv[6]);
    for (int n = 0; n < AT_ONCE; n++) {
        memcpy(payloads[n], tag, fixed);
        headers[n] = frame(mac, to, port, length);
        parts[n][0] = (struct iovec){&headers[n], sizeof headers[n]};
        parts[n][1] = (struct iovec){payloads[n], length};
        messages[n].msg_hdr.msg_iov = parts[n];
        messages[n].msg_hdr.msg_iovlen = 2;
    }
    if (getrandom(state, sizeof state, 0) != sizeof state)
        fail("getrandom");
    signal(SIGTERM, stop);
    signal(SIGINT, stop);
    prctl(PR_SET_TIMERSLACK, 1);

    double begin = now_s(), lasted;
    uint64_t sent = 0;
    while (!stopped && (lasted = now_s() - begin) < seconds) {
        unsigned count = AT_ONCE;
        if (rate > 0) {
            double owed = lasted * rate - (double)sent;
            if (owed < 1) {
                usleep((useconds_t)((1 - owed) / rate * 1e6) + 1);
                continue;
            }
            count = owed < AT_ONCE ? (unsigned)owed : AT_ONCE;
        }
        for (unsigned n = 0; n < count; n++) {
            fill(payloads[n] + fixed, length - fixed, is_base64);
            set_source(&headers[n], first + turn++ % sources);
        }
        int done = sendmmsg(fd, messages, count, 0);
        if (done > 0)
            sent += (uint64_t)done;
    }
    printf("%llu %.6f\n", (unsigned long long)sent, now_s() - begin);
    return 0;
}
