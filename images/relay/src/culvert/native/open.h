/* Copyright (c) 2026, Culvert contributors
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * From sealed datagrams to frames for the TUN device: first cv_open(), then, when it was decided which messages are
 * new and may be delivered, cv_coalesce(), then cv_group_write() for each group.
 */
#ifndef CULVERT_OPEN_H
#define CULVERT_OPEN_H

#include "aead.h"
#include "packet.h"

enum { CV_COALESCE_TCP = 1, CV_COALESCE_UDP = 2, CV_OPEN_GROUPS = 8, CV_OPEN_EXTRA_BYTES = CV_AEAD_HEAD_BYTES + 63 };

/* A data message. `sealed`, `sealed_bytes` and `has_head` are set by the caller, the rest by cv_open(). */
struct cv_message {
    const uint8_t *sealed;
    uint32_t sealed_bytes;
    uint32_t plain_bytes; /* as decrypted, padding included */
    uint32_t bytes;       /* of the IP packet; 0: there is none */
    uint8_t *packet;
    uint64_t counter;
    uint32_t next; /* the next message of its group, or CV_NONE */
    uint16_t l4_start, header_bytes;
    uint8_t has_head; /* whether there are CV_AEAD_HEAD_BYTES to read in front of what is behind the header */
    uint8_t authentic, accepted;
    uint8_t protocol; /* CV_TCP or CV_UDP where there is such a header that is not in a fragment; else 0 */
    uint8_t candidate;
    uint8_t ethernet; /* the packet is an Ethernet frame */
};

#define CV_NONE UINT32_MAX

/* Messages that make one frame. */
struct cv_group {
    uint32_t first, last, segments;
    uint32_t bytes; /* of the packet it makes */
    uint8_t flags;  /* TCP flags that were seen */
};

/* Decrypt into `plain`, which has room for the sum of all sealed_bytes and CV_OPEN_EXTRA_BYTES for each; 0, or -1 when
 * libcrypto fails. A message that is not authentic is only marked as such. */
int cv_open(EVP_CIPHER_CTX *key, EVP_MAC_CTX *mac, struct cv_message *messages, size_t count, uint8_t *plain);
/* The counter that a message says it has. */
uint64_t cv_message_counter(const struct cv_message *message);
/* Where the source address of an authentic message's packet is; 0 bytes: there is no packet. */
size_t cv_message_source(const struct cv_message *message, const uint8_t **address);
/* Make groups of the accepted messages; there are never more groups than messages. Returns how many. */
size_t cv_coalesce(struct cv_message *messages, size_t count, int congested, int kinds, struct cv_group *groups);
/* Write a group's frame: CV_VNET_BYTES + group->bytes. */
void cv_group_write(const struct cv_message *messages, const struct cv_group *group, uint8_t *frame);

#endif
