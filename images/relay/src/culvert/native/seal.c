/* Copyright (c) 2026, Culvert contributors
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "seal.h"

#include <string.h>

/* A superpacket's L4 header must be where the kernel says, behind an IP header that agrees. */
static int parse_superpacket(const struct cv_vnet *vnet, struct cv_frame *frame)
{
    const uint8_t *packet = frame->packet;
    unsigned version = packet[0] >> 4, type = vnet->gso_type & 0x7Fu;
    int tcp = (type == CV_GSO_TCPV4 && version == 4) || (type == CV_GSO_TCPV6 && version == 6);
    if (!tcp && type != CV_GSO_UDP_L4)
        return 0;
    if (cv_packet_length(packet, frame->bytes) != frame->bytes)
        return 0;
    uint32_t l4 = vnet->csum_start, minimum = tcp ? 20 : 8;
    if (version == 4 ? l4 != (packet[0] & 15) * 4u : l4 < 40)
        return 0;
    if (l4 + minimum > frame->bytes)
        return 0;
    uint32_t l4_header = tcp ? (packet[l4 + 12] >> 4) * 4u : 8;
    /* Something must follow the headers. */
    if (l4_header < minimum || l4 + l4_header >= frame->bytes || !vnet->gso_size)
        return 0;
    frame->protocol = tcp ? CV_TCP : CV_UDP;
    frame->gso_size = vnet->gso_size;
    frame->l4_start = l4;
    frame->header_bytes = l4 + l4_header;
    frame->segments = (frame->bytes - frame->header_bytes + frame->gso_size - 1) / frame->gso_size;
    return 1;
}

void cv_frame_parse(const uint8_t *data, size_t bytes, struct cv_frame *frame)
{
    memset(frame, 0, sizeof *frame);
    if (bytes < CV_VNET_BYTES || bytes > CV_VNET_BYTES + CV_MAX_PACKET_BYTES)
        return;
    struct cv_vnet vnet;
    cv_vnet_read(data, &vnet);
    frame->packet = data + CV_VNET_BYTES;
    frame->bytes = (uint32_t)(bytes - CV_VNET_BYTES);
    if (frame->bytes == 0) {
        frame->segments = 1;
        return;
    }
    const uint8_t *address;
    size_t address_bytes;
    if (!cv_frame_destination(frame, &address, &address_bytes))
        return;
    if (vnet.gso_type != CV_GSO_NONE) {
        parse_superpacket(&vnet, frame);
        return;
    }
    if (vnet.flags & CV_NEEDS_CSUM) {
        if ((uint32_t)vnet.csum_start + vnet.csum_offset + 2 > frame->bytes)
            return;
        frame->needs_csum = 1;
        frame->csum_start = vnet.csum_start;
        frame->csum_offset = vnet.csum_offset;
    }
    frame->segments = 1;
}

int cv_frame_destination(const struct cv_frame *frame, const uint8_t **address, size_t *bytes)
{
    unsigned version = frame->bytes ? frame->packet[0] >> 4 : 0;
    if (version == 4 && frame->bytes >= 20) {
        *address = frame->packet + 16;
        *bytes = 4;
        return 1;
    }
    if (version == 6 && frame->bytes >= 40) {
        *address = frame->packet + 24;
        *bytes = 16;
        return 1;
    }
    return 0;
}

/* Zero bytes to add (WireGuard paper section 5.4.6); culvert.batch.padding has the words. */
static uint32_t padding(uint32_t bytes, uint32_t mtu)
{
    uint32_t last = bytes > mtu ? bytes % mtu : bytes, pad = -last % 16u;
    return pad < mtu - last ? pad : mtu - last;
}

static uint32_t segment_bytes(const struct cv_frame *frame, uint32_t index)
{
    if (!frame->gso_size)
        return frame->bytes;
    uint32_t payload = frame->bytes - frame->header_bytes, start = index * frame->gso_size;
    return frame->header_bytes + (payload - start < frame->gso_size ? payload - start : frame->gso_size);
}

int cv_chunk_add(struct cv_chunk *chunks, size_t *made, size_t max, int *open, uint32_t bytes)
{
    struct cv_chunk *chunk = *made ? &chunks[*made - 1] : NULL;
    if (*open && bytes <= chunk->segment_bytes && chunk->segments < CV_MAX_CHUNK_SEGMENTS &&
        chunk->bytes + bytes <= CV_MAX_CHUNK_BYTES) {
        chunk->segments++;
        chunk->bytes += bytes;
        *open = bytes == chunk->segment_bytes;
        return 1;
    }
    if (*made == max)
        return 0;
    chunks[(*made)++] = (struct cv_chunk){.segments = 1, .segment_bytes = bytes, .bytes = bytes};
    *open = 1;
    return 1;
}

size_t cv_seal_plan(const struct cv_frame *frames, size_t count, uint32_t mtu, struct cv_chunk *chunks, size_t max)
{
    size_t made = 0;
    int open = 0;
    for (size_t f = 0; f < count; f++) {
        for (uint32_t s = 0; s < frames[f].segments; s++) {
            uint32_t plain = segment_bytes(&frames[f], s);
            if (!cv_chunk_add(chunks, &made, max, &open, plain + padding(plain, mtu) + CV_OVERHEAD_BYTES))
                return made + 1;
        }
    }
    return made;
}

/* Finish the checksum of a packet that was copied to `packet`. */
static void finish_checksum(uint8_t *packet, const struct cv_frame *frame)
{
    uint16_t sum = (uint16_t)~cv_fold(cv_sum(packet + frame->csum_start, frame->bytes - frame->csum_start));
    cv_put_sum(packet + frame->csum_start + frame->csum_offset, sum ? sum : 0xFFFF);
}

/* Write segment `index` of a superpacket, `bytes` long, as Linux's tcp_gso_segment and __udp_gso_segment do. */
static void cut(const struct cv_frame *frame, uint32_t index, uint8_t *packet, uint32_t bytes)
{
    uint32_t start = index * frame->gso_size, l4_bytes = bytes - frame->l4_start;
    memcpy(packet, frame->packet, frame->header_bytes);
    memcpy(packet + frame->header_bytes, frame->packet + frame->header_bytes + start, bytes - frame->header_bytes);
    if (packet[0] >> 4 == 4) {
        cv_put16(packet + 2, bytes);
        cv_put16(packet + 4, cv_get16(packet + 4) + index);
        cv_set_ip_checksum(packet, frame->l4_start);
    } else {
        cv_put16(packet + 4, bytes - 40);
    }
    uint8_t *l4 = packet + frame->l4_start, *check = l4 + (frame->protocol == CV_TCP ? 16 : 6);
    if (frame->protocol == CV_TCP) {
        cv_put32(l4 + 4, cv_get32(l4 + 4) + start);
        if (index + 1 < frame->segments)
            l4[13] &= (uint8_t)~(CV_FIN | CV_PSH);
        if (index)
            l4[13] &= (uint8_t)~CV_CWR;
    } else {
        cv_put16(l4 + 4, l4_bytes);
    }
    check[0] = check[1] = 0;
    uint16_t sum = (uint16_t)~cv_fold(cv_sum(l4, l4_bytes) + cv_pseudo_sum(packet, frame->protocol, l4_bytes));
    cv_put_sum(check, frame->protocol == CV_UDP && !sum ? 0xFFFF : sum);
}

static void put_le(uint8_t *at, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++, value >>= 8)
        at[i] = (uint8_t)value;
}

int cv_seal(EVP_CIPHER_CTX *key, EVP_MAC_CTX *mac, uint32_t receiver, uint64_t counter, uint32_t mtu,
            const struct cv_frame *frames, size_t count, const struct cv_chunk *chunks, uint8_t *work)
{
    uint8_t *out = chunks->out, *packet = work + CV_AEAD_HEAD_BYTES;
    uint32_t left = chunks->segments;
    for (size_t f = 0; f < count; f++) {
        const struct cv_frame *frame = &frames[f];
        for (uint32_t s = 0; s < frame->segments; s++) {
            if (!left) {
                chunks++;
                out = chunks->out;
                left = chunks->segments;
            }
            uint32_t bytes = segment_bytes(frame, s), pad = padding(bytes, mtu);
            if (frame->gso_size) {
                cut(frame, s, packet, bytes);
            } else {
                memcpy(packet, frame->packet, bytes);
                if (frame->needs_csum)
                    finish_checksum(packet, frame);
            }
            memset(packet + bytes, 0, pad);
            bytes += pad;
            /* The end of the datagram before this one, or nothing. */
            uint8_t *body = out + CV_HEADER_BYTES, before[CV_CHUNK_HEAD_BYTES] = {0};
            if (out != chunks->out)
                memcpy(before, out - sizeof before, sizeof before);
            int sealed = cv_aead_seal(key, mac, counter, packet, bytes, body);
            memcpy(out - sizeof before, before, sizeof before);
            if (!sealed)
                return -1;
            put_le(out, 4, 4);
            put_le(out + 4, receiver, 4);
            put_le(out + 8, counter++, 8);
            out = body + bytes + CV_TAG_BYTES;
            left--;
        }
    }
    return 0;
}
