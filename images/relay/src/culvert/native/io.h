/* Copyright (c) 2026, Culvert contributors
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * System calls in batches: what the TUN device has to read, what the socket has to receive and to send. They do what
 * culvert/calls.py does in Python, without going back to the interpreter for each packet.
 */
#ifndef CULVERT_IO_H
#define CULVERT_IO_H

#include <netinet/in.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

enum { CV_IO_MAX = 64, CV_CONTROL_BYTES = 256 };

union cv_address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

struct cv_datagram {
    uint32_t bytes;
    uint32_t segment_bytes; /* 0: not a run */
    uint32_t address_bytes, control_bytes;
    union cv_address address;
    /* What the kernel said with it, without the run's segment length. */
    uint8_t control[CV_CONTROL_BYTES];
};

/* Read frames one behind the other, each behind `lead` zero bytes, until there are `limit` of them, or `enough` bytes, or
 * no more. ends[i] is where frame i ends. Returns how many, and in *error why it stopped (0, or errno; not EAGAIN). */
size_t cv_read_frames(int fd, uint8_t *arena, size_t size, size_t enough, size_t lead, size_t limit, size_t *ends,
                      int *error);
/* Receive up to `limit` datagrams, number i at arena + i * stride (which is the room for it). Returns how many. */
size_t cv_receive(int fd, uint8_t *arena, size_t stride, size_t limit, struct cv_datagram *datagrams);
/* Send a datagram, or a run where segment_bytes is not 0. `control` has room for CV_CONTROL_BYTES, `control_bytes` of which
 * are there. 0 or errno. */
int cv_send(int fd, const uint8_t *data, size_t bytes, unsigned segment_bytes, const union cv_address *address,
            uint32_t address_bytes, uint8_t *control, size_t control_bytes);
/* Append a control message; 0 when there is no room. */
size_t cv_add_control(uint8_t *control, size_t control_bytes, int level, int type, const void *data, size_t bytes);

#endif
