/* Copyright (c) 2026, Culvert contributors
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#define _GNU_SOURCE
#include "io.h"

#include <errno.h>
#include <netinet/udp.h>
#include <string.h>
#include <unistd.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif

size_t cv_read_frames(int fd, uint8_t *arena, size_t size, size_t enough, size_t lead, size_t limit, size_t *ends,
                      int *error)
{
    size_t count = 0, at = 0;
    *error = 0;
    while (count < limit && at < enough) {
        ssize_t bytes = read(fd, arena + at + lead, size - at - lead);
        if (bytes < 0) {
            if (errno != EAGAIN)
                *error = errno;
            break;
        }
        memset(arena + at, 0, lead);
        at += lead + (size_t)bytes;
        ends[count++] = at;
    }
    return count;
}

/* Take the length of a run's datagrams out of what the kernel said, and keep the rest. */
static void take_control(struct msghdr *header, struct cv_datagram *datagram)
{
    datagram->control_bytes = 0;
    datagram->segment_bytes = 0;
    for (struct cmsghdr *part = CMSG_FIRSTHDR(header); part; part = CMSG_NXTHDR(header, part)) {
        size_t bytes = part->cmsg_len - CMSG_LEN(0);
        if (part->cmsg_level == IPPROTO_UDP && part->cmsg_type == UDP_GRO && bytes >= sizeof(int)) {
            int segment;
            memcpy(&segment, CMSG_DATA(part), sizeof segment);
            datagram->segment_bytes = segment > 0 ? (uint32_t)segment : 0;
            continue;
        }
        size_t total = cv_add_control(datagram->control, datagram->control_bytes, part->cmsg_level, part->cmsg_type,
                                      CMSG_DATA(part), bytes);
        if (total)
            datagram->control_bytes = (uint32_t)total;
    }
}

size_t cv_receive(int fd, uint8_t *arena, size_t stride, size_t limit, struct cv_datagram *datagrams)
{
    struct mmsghdr messages[CV_IO_MAX];
    struct iovec parts[CV_IO_MAX];
    _Alignas(struct cmsghdr) uint8_t controls[CV_IO_MAX][CV_CONTROL_BYTES];
    if (limit > CV_IO_MAX)
        limit = CV_IO_MAX;
    for (size_t i = 0; i < limit; i++) {
        parts[i] = (struct iovec){arena + i * stride, stride};
        messages[i].msg_hdr = (struct msghdr){
            .msg_name = &datagrams[i].address,
            .msg_namelen = sizeof datagrams[i].address,
            .msg_iov = &parts[i],
            .msg_iovlen = 1,
            .msg_control = controls[i],
            .msg_controllen = sizeof controls[i],
        };
    }
    int received = recvmmsg(fd, messages, (unsigned)limit, MSG_DONTWAIT, NULL);
    for (int i = 0; i < received; i++) {
        struct msghdr *header = &messages[i].msg_hdr;
        take_control(header, &datagrams[i]);
        datagrams[i].address_bytes = header->msg_namelen;
        /* What did not fit is of no use. */
        datagrams[i].bytes = header->msg_flags & MSG_TRUNC ? 0 : messages[i].msg_len;
    }
    return received > 0 ? (size_t)received : 0;
}

size_t cv_add_control(uint8_t *control, size_t control_bytes, int level, int type, const void *data, size_t bytes)
{
    size_t total = control_bytes + CMSG_SPACE(bytes);
    if (bytes > CV_CONTROL_BYTES || total > CV_CONTROL_BYTES)
        return 0;
    struct cmsghdr head = {.cmsg_len = CMSG_LEN(bytes), .cmsg_level = level, .cmsg_type = type};
    memset(control + control_bytes, 0, CMSG_SPACE(bytes));
    memcpy(control + control_bytes, &head, sizeof head);
    memcpy(control + control_bytes + CMSG_LEN(0), data, bytes);
    return total;
}

int cv_send(int fd, const uint8_t *data, size_t bytes, unsigned segment_bytes, const union cv_address *address,
            uint32_t address_bytes, uint8_t *control, size_t control_bytes)
{
    struct iovec part = {(void *)data, bytes};
    uint16_t segment = (uint16_t)segment_bytes;
    if (segment_bytes)
        control_bytes = cv_add_control(control, control_bytes, IPPROTO_UDP, UDP_SEGMENT, &segment, sizeof segment);
    if (segment_bytes && !control_bytes)
        return EINVAL;
    struct msghdr message = {
        .msg_name = (void *)address,
        .msg_namelen = address_bytes,
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = control_bytes ? control : NULL,
        .msg_controllen = control_bytes,
    };
    return sendmsg(fd, &message, 0) < 0 ? errno : 0;
}
