/* Copyright (c) 2026, Culvert contributors
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Single UDP datagrams at an even pace, and the counting of them; see bench/packets.py.
 *
 *   packets send ADDRESS PORT BYTES RATE SECONDS   prints: sent, and the nanoseconds that took
 *   packets sink ADDRESS PORT SECONDS              prints: received, and the nanoseconds from the first to the last
 *
 * Both are as light as they can be, since they share the processor with what is measured: datagrams of one wake-up
 * go out with one sendmmsg (no UDP_SEGMENT: they are single packets to the kernel), and the sink looks into its socket
 * once a millisecond.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>

enum { BATCH = 512, LARGEST = 1500, DATA = 'd', END = 'e', ENDS = 5 };

static const int64_t SECOND = 1000000000;
static const int64_t WAKE = 200000;        /* between two bursts of the sender, if the rate needs so many */
static const int64_t LATE = 1000000;       /* what the sender makes up for after it was late; the rest is not sent */
static const int64_t LOOK = 1000000;       /* between two looks of the sink */
static const int64_t END_PAUSE = 20000000; /* before each of the messages that say that this was all */

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * SECOND + time.tv_nsec;
}

static void sleep_until(int64_t moment) {
    struct timespec time = {.tv_sec = moment / SECOND, .tv_nsec = moment % SECOND};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL) == EINTR)
        ;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static unsigned char buffers[BATCH][LARGEST];
static struct iovec vectors[BATCH];
static struct mmsghdr messages[BATCH];

static void prepare(size_t bytes) {
    for (int i = 0; i < BATCH; i++) {
        buffers[i][0] = DATA;
        vectors[i] = (struct iovec){.iov_base = buffers[i], .iov_len = bytes};
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &vectors[i], .msg_iovlen = 1};
    }
}

static int open_socket(const char *address, const char *port, struct sockaddr_in *to) {
    *to = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    if (inet_pton(AF_INET, address, &to->sin_addr) != 1) {
        fprintf(stderr, "not an address: %s\n", address);
        exit(2);
    }
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("socket");
    return fd;
}

static long send_some(int fd, long count) {
    long sent = 0;
    while (sent < count) {
        long wanted = count - sent < BATCH ? count - sent : BATCH;
        int done = sendmmsg(fd, messages, (unsigned)wanted, 0);
        if (done > 0)
            sent += done;
        else if (errno != ENOBUFS && errno != EINTR && errno != ECONNREFUSED)
            die("sendmmsg");
        else if (errno == ENOBUFS)
            break;
    }
    return sent;
}

static void run_sender(int fd, double rate, double seconds) {
    const int64_t start = now(), end = start + (int64_t)(seconds * 1e9);
    const int64_t gap = fmax(WAKE, 1e9 / rate);
    /* One wake-up's worth is due at any time: half a packet lost to rounding down must not halve a slow rate. */
    const double most = fmax(fmax(rate * LATE / 1e9, rate * 2 * gap / 1e9), 1);
    double due = 0;
    long sent = 0;
    int64_t last = start, moment = start;
    while (moment < end) {
        due = fmin(due + rate * (moment - last) / 1e9, most);
        last = moment;
        long count = (long)due;
        due -= count;
        sent += send_some(fd, count);
        sleep_until(moment + gap);
        moment = now();
    }
    printf("%ld %lld\n", sent, (long long)(now() - start));
    buffers[0][0] = END;
    for (int i = 0; i < ENDS; i++) {
        sleep_until(now() + END_PAUSE);
        send_some(fd, 1);
    }
}

static void run_sink(int fd, double seconds) {
    const int64_t end = now() + (int64_t)(seconds * 1e9);
    int64_t first = 0, last = 0, moment = now();
    long received = 0;
    int ended = 0;
    while (!ended && moment < end) {
        sleep_until(moment + LOOK);
        moment = now();
        int count;
        while ((count = recvmmsg(fd, messages, BATCH, MSG_DONTWAIT, NULL)) > 0) {
            long data = 0;
            for (int i = 0; i < count; i++) {
                data += buffers[i][0] == DATA;
                ended |= buffers[i][0] == END;
            }
            received += data;
            if (data && !first)
                first = moment - LOOK;
            if (data)
                last = moment;
        }
    }
    printf("%ld %lld\n", received, (long long)(last - first));
}

int main(int count, char **words) {
    struct sockaddr_in address;
    prctl(PR_SET_TIMERSLACK, 1000);
    if (count == 7 && !strcmp(words[1], "send")) {
        long bytes = atol(words[4]);
        double rate = atof(words[5]);
        if (bytes < 1 || bytes > LARGEST || !(rate >= 1))
            return 2;
        int fd = open_socket(words[2], words[3], &address);
        prepare((size_t)bytes);
        if (connect(fd, (struct sockaddr *)&address, sizeof address))
            die("connect");
        run_sender(fd, rate, atof(words[6]));
    } else if (count == 5 && !strcmp(words[1], "sink")) {
        int fd = open_socket(words[2], words[3], &address), size = 1 << 25;
        prepare(LARGEST);
        if (bind(fd, (struct sockaddr *)&address, sizeof address))
            die("bind");
        if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size))
            setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
        puts("listening");
        fflush(stdout);
        run_sink(fd, atof(words[4]));
    } else {
        fprintf(stderr, "usage: packets send ADDRESS PORT BYTES RATE SECONDS | packets sink ADDRESS PORT SECONDS\n");
        return 2;
    }
    return 0;
}
