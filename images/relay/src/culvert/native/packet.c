/* Copyright (c) 2026, Culvert contributors
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "packet.h"

#include <string.h>

/* The sum over packets is a tenth of the work here, and twice as quick with wide registers. Sanitizers cannot
 * run in the resolvers that this makes. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define WIDE __attribute__((target_clones("avx2", "default")))
#else
#define WIDE
#endif

void cv_vnet_read(const uint8_t *at, struct cv_vnet *vnet)
{
    vnet->flags = at[0];
    vnet->gso_type = at[1];
    memcpy(&vnet->hdr_len, at + 2, 8);
}

void cv_vnet_write(uint8_t *at, const struct cv_vnet *vnet)
{
    at[0] = vnet->flags;
    at[1] = vnet->gso_type;
    memcpy(at + 2, &vnet->hdr_len, 8);
}

WIDE uint64_t cv_sum(const uint8_t *data, size_t bytes)
{
    uint64_t sum = 0;
    size_t words = bytes / 4;
    for (size_t i = 0; i < words; i++) {
        uint32_t word;
        memcpy(&word, data + 4 * i, 4);
        sum += word;
    }
    /* 2^16 is 1 modulo 65535, so words of 32 bits may be summed and folded later. */
    uint8_t rest[4] = {0, 0, 0, 0};
    for (size_t i = 4 * words; i < bytes; i++)
        rest[i % 4] = data[i];
    uint32_t word;
    memcpy(&word, rest, 4);
    return sum + word;
}

uint16_t cv_fold(uint64_t sum)
{
    sum = (sum >> 32) + (sum & 0xFFFFFFFF);
    sum = (sum >> 32) + (sum & 0xFFFFFFFF);
    sum = (sum >> 16) + (sum & 0xFFFF);
    sum = (sum >> 16) + (sum & 0xFFFF);
    sum = (sum >> 16) + (sum & 0xFFFF);
    return (uint16_t)sum;
}

uint64_t cv_pseudo_sum(const uint8_t *packet, unsigned protocol, uint32_t l4_bytes)
{
    uint8_t rest[8] = {0, 0, 0, 0, 0, 0, 0, (uint8_t)protocol};
    cv_put32(rest, l4_bytes);
    int v6 = packet[0] >> 4 == 6;
    return cv_sum(rest, sizeof rest) + cv_sum(packet + (v6 ? 8 : 12), v6 ? 32 : 8);
}

void cv_put_sum(uint8_t *at, uint16_t folded)
{
    memcpy(at, &folded, 2);
}

void cv_set_ip_checksum(uint8_t *packet, size_t header_bytes)
{
    packet[10] = packet[11] = 0;
    cv_put_sum(packet + 10, (uint16_t)~cv_fold(cv_sum(packet, header_bytes)));
}

uint32_t cv_packet_length(const uint8_t *packet, size_t bytes)
{
    unsigned version = bytes ? packet[0] >> 4 : 0;
    if (version == 4 && bytes >= 20) {
        uint32_t header = (packet[0] & 15) * 4u, length = cv_get16(packet + 2);
        return header >= 20 && length >= header && length <= bytes ? length : 0;
    }
    if (version == 6 && bytes >= 40) {
        uint32_t length = 40u + cv_get16(packet + 4);
        return length <= bytes ? length : 0;
    }
    return 0;
}

unsigned cv_ecn(const uint8_t *packet)
{
    return packet[0] >> 4 == 4 ? packet[1] & 3u : packet[1] >> 4 & 3u;
}
