/* Copyright (c) 2026, Culvert contributors
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "open.h"

#include <string.h>

uint64_t cv_message_counter(const struct cv_message *message)
{
    uint64_t value = 0;
    for (int i = 15; i >= 8; i--)
        value = value << 8 | message->sealed[i];
    return value;
}

int cv_open(EVP_CIPHER_CTX *key, EVP_MAC_CTX *mac, struct cv_message *messages, size_t count, uint8_t *plain)
{
    for (size_t i = 0; i < count; i++) {
        struct cv_message *message = &messages[i];
        message->authentic = message->accepted = 0;
        message->bytes = message->plain_bytes = 0;
        message->ethernet = 0;
        if (message->sealed_bytes < CV_OVERHEAD_BYTES)
            continue;
        uint32_t bytes = message->sealed_bytes - CV_OVERHEAD_BYTES;
        message->counter = cv_message_counter(message);
        int result = cv_aead_open(key, mac, message->counter, message->sealed + CV_HEADER_BYTES, bytes,
                                  message->has_head, plain + CV_AEAD_HEAD_BYTES);
        if (result < 0)
            return -1;
        if (!result)
            continue;
        message->authentic = 1;
        message->plain_bytes = bytes;
        message->packet = plain + CV_AEAD_HEAD_BYTES;
        message->bytes = cv_packet_length(message->packet, bytes);
        /* The next key stream overwrites nothing, and starts at a multiple of 64, where it is quickest. */
        plain += CV_AEAD_HEAD_BYTES + ((bytes + 63u) & ~63u);
    }
    return 0;
}

size_t cv_message_source(const struct cv_message *message, const uint8_t **address)
{
    if (!message->bytes)
        return 0;
    if (message->ethernet) {
        *address = message->packet + 6;
        return 6;
    }
    int v6 = message->packet[0] >> 4 == 6;
    *address = message->packet + (v6 ? 8 : 12);
    return v6 ? 16 : 4;
}

/* "Congestion experienced" from the outer header to the inner (RFC 6040 section 4.2), where the sender knows ECN. */
static void mark_congestion(struct cv_message *message)
{
    uint8_t *packet = message->packet;
    if (!cv_ecn(packet))
        return;
    if (packet[0] >> 4 == 4) {
        packet[1] |= 3;
        cv_set_ip_checksum(packet, (packet[0] & 15) * 4u);
    } else {
        packet[1] |= 0x30;
    }
}

/* Find the packet's transport header: `protocol` stays 0 for whatever order must be kept with everything. */
static void classify(struct cv_message *message)
{
    const uint8_t *packet = message->packet;
    uint32_t bytes = message->bytes;
    message->protocol = message->candidate = 0;
    unsigned protocol, l4;
    if (packet[0] >> 4 == 4) {
        /* No options, and no fragment: DF is the only bit that may be set there. */
        if (packet[0] != 0x45 || cv_get16(packet + 6) & 0xBFFF)
            return;
        protocol = packet[9];
        l4 = 20;
    } else {
        protocol = packet[6];
        l4 = 40;
    }
    if ((protocol != CV_TCP && protocol != CV_UDP) || bytes < l4 + (protocol == CV_TCP ? 20u : 8u))
        return;
    message->protocol = (uint8_t)protocol;
    message->l4_start = (uint16_t)l4;
    const uint8_t *head = packet + l4;
    if (protocol == CV_TCP) {
        unsigned header = (head[12] >> 4) * 4u;
        message->header_bytes = (uint16_t)(l4 + header);
        if (header < 20 || l4 + header >= bytes || (head[12] & 15) ||
            (head[13] & (uint8_t)~(CV_PSH | CV_ECE)) != CV_ACK)
            return;
    } else {
        message->header_bytes = (uint16_t)(l4 + 8);
        if (cv_get16(head + 4) != bytes - l4 || bytes == l4 + 8 || (head[6] | head[7]) == 0)
            return;
    }
    /* A wrong checksum must reach the receiver as wrong as it is: made anew, it would be right. And a right one that is
     * not written as a cut would write it (zero has two forms) would come out as the other. */
    if (l4 == 20 && (cv_fold(cv_sum(packet, 20)) != 0xFFFF || cv_get16(packet + 10) == 0xFFFF))
        return;
    if (protocol == CV_TCP && cv_get16(head + 16) == 0xFFFF)
        return;
    if (cv_fold(cv_sum(head, bytes - l4) + cv_pseudo_sum(packet, protocol, bytes - l4)) != 0xFFFF)
        return;
    message->candidate = 1;
}

static int same_flow(const struct cv_message *one, const struct cv_message *two)
{
    const uint8_t *a = one->packet, *b = two->packet;
    if (one->protocol != two->protocol || one->l4_start != two->l4_start)
        return 0;
    int v6 = one->l4_start == 40;
    return memcmp(a + (v6 ? 8 : 12), b + (v6 ? 8 : 12), v6 ? 32 : 8) == 0 &&
           memcmp(a + one->l4_start, b + one->l4_start, 4) == 0;
}

/* Whether all header fields that a cut would repeat are the same. */
static int same_headers(const struct cv_message *first, const struct cv_message *message, uint32_t segments)
{
    const uint8_t *a = first->packet, *b = message->packet;
    if (first->header_bytes != message->header_bytes)
        return 0;
    if (first->l4_start == 20) {
        uint16_t id = cv_get16(a + 4), expected = (uint16_t)(id + segments);
        int dont_fragment = a[6] & 0x40;
        if (a[1] != b[1] || memcmp(a + 6, b + 6, 4) != 0)
            return 0;
        /* RFC 6864: the identification of a packet that may not be fragmented has no meaning. */
        if (cv_get16(b + 4) != expected && !(dont_fragment && cv_get16(b + 4) == id))
            return 0;
    } else if (memcmp(a, b, 4) != 0 || a[7] != b[7]) {
        return 0;
    }
    if (first->protocol == CV_UDP)
        return 1;
    a += first->l4_start;
    b += first->l4_start;
    return memcmp(a + 8, b + 8, 5) == 0 && (a[13] & ~CV_PSH) == (b[13] & ~CV_PSH) && memcmp(a + 14, b + 14, 2) == 0 &&
           memcmp(a + 18, b + 18, (size_t)(first->header_bytes - first->l4_start - 18)) == 0;
}

static uint32_t payload(const struct cv_message *message)
{
    return message->bytes - message->header_bytes;
}

/* Append a candidate to the open group of its flow, if it continues it. */
static int append(struct cv_message *messages, struct cv_group *group, uint32_t index)
{
    struct cv_message *first = &messages[group->first], *message = &messages[index];
    if (!same_headers(first, message, group->segments) || payload(message) > payload(first) ||
        group->bytes + payload(message) > CV_MAX_PACKET_BYTES)
        return 0;
    if (first->protocol == CV_UDP) {
        if (group->segments == CV_MAX_CHUNK_SEGMENTS)
            return 0;
    } else {
        uint32_t sequence = cv_get32(first->packet + first->l4_start + 4) + (group->bytes - first->header_bytes);
        if (cv_get32(message->packet + message->l4_start + 4) != sequence)
            return 0;
        group->flags |= message->packet[message->l4_start + 13];
    }
    messages[group->last].next = index;
    group->last = index;
    group->segments++;
    group->bytes += payload(message);
    return 1;
}

static int is_full(const struct cv_message *messages, const struct cv_group *group)
{
    return (group->flags & CV_PSH) || payload(&messages[group->last]) < payload(&messages[group->first]);
}

size_t cv_coalesce(struct cv_message *messages, size_t count, int congested, int kinds, struct cv_group *groups)
{
    struct cv_group *open[CV_OPEN_GROUPS];
    size_t made = 0, opened = 0;
    for (size_t i = 0; i < count; i++) {
        struct cv_message *message = &messages[i];
        if (!message->accepted || !message->bytes)
            continue;
        if (congested)
            mark_congestion(message);
        message->next = CV_NONE;
        message->protocol = message->candidate = 0;
        if (kinds)
            classify(message);
        if (!(kinds & (message->protocol == CV_TCP ? CV_COALESCE_TCP : CV_COALESCE_UDP)))
            message->candidate = 0;
        if (!message->protocol)
            opened = 0;
        size_t slot = 0;
        while (slot < opened && !same_flow(&messages[open[slot]->first], message))
            slot++;
        int known = slot < opened;
        if (known && message->candidate && append(messages, open[slot], (uint32_t)i)) {
            if (is_full(messages, open[slot]))
                open[slot] = open[--opened];
            continue;
        }
        struct cv_group *group = &groups[made++];
        *group = (struct cv_group){.first = (uint32_t)i, .last = (uint32_t)i, .segments = 1, .bytes = message->bytes};
        if (known)
            open[slot] = open[--opened];
        if (!message->candidate)
            continue;
        group->flags = message->protocol == CV_TCP ? message->packet[message->l4_start + 13] : 0;
        if (is_full(messages, group))
            continue;
        if (opened == CV_OPEN_GROUPS)
            opened = 0;
        open[opened++] = group;
    }
    return made;
}

void cv_group_write(const struct cv_message *messages, const struct cv_group *group, uint8_t *frame)
{
    const struct cv_message *first = &messages[group->first];
    uint8_t *packet = frame + CV_VNET_BYTES;
    memcpy(packet, first->packet, first->bytes);
    memset(frame, 0, CV_VNET_BYTES);
    if (group->segments == 1)
        return;
    uint8_t *out = packet + first->bytes;
    for (uint32_t i = first->next; i != CV_NONE; i = messages[i].next) {
        const struct cv_message *message = &messages[i];
        memcpy(out, message->packet + message->header_bytes, payload(message));
        out += payload(message);
    }
    int v6 = first->l4_start == 40, tcp = first->protocol == CV_TCP;
    uint32_t l4_bytes = group->bytes - first->l4_start;
    if (v6) {
        cv_put16(packet + 4, l4_bytes);
    } else {
        cv_put16(packet + 2, group->bytes);
        cv_set_ip_checksum(packet, 20);
    }
    uint8_t *l4 = packet + first->l4_start;
    if (tcp)
        l4[13] = group->flags;
    else
        cv_put16(l4 + 4, l4_bytes);
    cv_put_sum(l4 + (tcp ? 16 : 6), cv_fold(cv_pseudo_sum(packet, first->protocol, l4_bytes)));
    struct cv_vnet vnet = {
        .flags = CV_NEEDS_CSUM,
        .gso_type = (uint8_t)(tcp ? (v6 ? CV_GSO_TCPV6 : CV_GSO_TCPV4) : CV_GSO_UDP_L4),
        .hdr_len = first->header_bytes,
        .gso_size = (uint16_t)payload(first),
        .csum_start = first->l4_start,
        .csum_offset = (uint16_t)(tcp ? 16 : 6),
    };
    cv_vnet_write(frame, &vnet);
}
