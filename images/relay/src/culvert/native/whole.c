/* Copyright (c) 2026, Culvert contributors
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "whole.h"

#include <string.h>

enum { MIN_SEGMENT_BYTES = 8, MAX_UDP_SEGMENTS = 128, ETHERNET_HEADER_BYTES = 14 };

static uint16_t get_le16(const uint8_t *at) { return (uint16_t)(at[0] | at[1] << 8); }
static void put_le16(uint8_t *at, uint32_t value) { at[0] = (uint8_t)value, at[1] = (uint8_t)(value >> 8); }

static void put_le(uint8_t *at, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++, value >>= 8)
        at[i] = (uint8_t)value;
}

/* The header that a frame has to have; 0 where its packet or its own header make no sense. */
static int describe(const uint8_t *data, size_t bytes, struct cv_vnet *header)
{
    memset(header, 0, sizeof *header);
    if (bytes <= CV_VNET_BYTES || bytes > CV_VNET_BYTES + CV_WHOLE_MOST_BYTES)
        return 0;
    struct cv_vnet found;
    cv_vnet_read(data, &found);
    if (found.gso_type == CV_GSO_NONE && !(found.flags & CV_NEEDS_CSUM))
        return 1;
    struct cv_frame frame;
    cv_frame_parse(data, bytes, &frame);
    if (!(found.flags & CV_NEEDS_CSUM) || !frame.segments ||
        cv_packet_length(frame.packet, frame.bytes) != frame.bytes)
        return 0;
    header->flags = CV_NEEDS_CSUM;
    header->csum_start = found.csum_start;
    header->csum_offset = found.csum_offset;
    if (found.gso_type == CV_GSO_NONE)
        return found.csum_start >= (frame.packet[0] >> 4 == 4 ? (frame.packet[0] & 15) * 4u : 40u);
    header->gso_type = found.gso_type;
    header->hdr_len = (uint16_t)frame.header_bytes;
    header->gso_size = found.gso_size;
    if (found.gso_size < MIN_SEGMENT_BYTES)
        return 0;
    if (frame.protocol == CV_TCP)
        return found.csum_offset == 16;
    return found.csum_offset == 6 && !(found.gso_type & CV_GSO_ECN) && frame.segments <= MAX_UDP_SEGMENTS;
}

void cv_whole_parse(const uint8_t *data, size_t bytes, struct cv_whole *frame)
{
    struct cv_vnet vnet;
    frame->bytes = 0;
    if (!describe(data, bytes, &vnet))
        return;
    frame->packet = data + CV_VNET_BYTES;
    frame->bytes = (uint32_t)(bytes - CV_VNET_BYTES);
    frame->header[0] = vnet.flags;
    frame->header[1] = vnet.gso_type;
    put_le16(frame->header + 2, vnet.hdr_len);
    put_le16(frame->header + 4, vnet.gso_size);
    put_le16(frame->header + 6, vnet.csum_start);
    put_le16(frame->header + 8, vnet.csum_offset);
    put_le16(frame->header + 10, frame->bytes);
}

static uint32_t plain_bytes(const struct cv_whole *frame)
{
    return (CV_WHOLE_HEADER_BYTES + frame->bytes + 15u) & ~15u;
}

size_t cv_whole_plan(const struct cv_whole *frames, size_t count, struct cv_chunk *chunks)
{
    size_t made = 0;
    int open = 0;
    for (size_t i = 0; i < count; i++)
        if (frames[i].bytes)
            cv_chunk_add(chunks, &made, count, &open, plain_bytes(&frames[i]) + CV_OVERHEAD_BYTES);
    return made;
}

int cv_whole_seal(EVP_CIPHER_CTX *key, EVP_MAC_CTX *mac, uint32_t receiver, uint64_t counter,
                  const struct cv_whole *frames, size_t count, const struct cv_chunk *chunks)
{
    uint8_t *out = chunks->out;
    uint32_t left = chunks->segments;
    for (size_t i = 0; i < count; i++) {
        if (!frames[i].bytes)
            continue;
        if (!left) {
            chunks++;
            out = chunks->out;
            left = chunks->segments;
        }
        if (!cv_aead_seal_apart(key, mac, counter, frames[i].header, CV_WHOLE_HEADER_BYTES, frames[i].packet,
                                frames[i].bytes, out + CV_HEADER_BYTES))
            return -1;
        put_le(out, CV_WHOLE_TYPE, 4);
        put_le(out + 4, receiver, 4);
        put_le(out + 8, counter++, 8);
        out += plain_bytes(&frames[i]) + CV_OVERHEAD_BYTES;
        left--;
    }
    return 0;
}

/* The length of the packet in a plaintext, 0 where there is none that a device may be given. The frame's header is
 * written in front of the packet. */
static uint32_t unpack(uint8_t *plain, uint32_t bytes, int ethernet)
{
    if (bytes < CV_WHOLE_HEADER_BYTES)
        return 0;
    struct cv_vnet header, wanted;
    header.flags = plain[0];
    header.gso_type = plain[1];
    header.hdr_len = get_le16(plain + 2);
    header.gso_size = get_le16(plain + 4);
    header.csum_start = get_le16(plain + 6);
    header.csum_offset = get_le16(plain + 8);
    uint32_t length = get_le16(plain + 10);
    if (!length || ((CV_WHOLE_HEADER_BYTES + length + 15u) & ~15u) != bytes)
        return 0;
    uint8_t *packet = plain + CV_WHOLE_HEADER_BYTES, *frame = packet - CV_VNET_BYTES;
    cv_vnet_write(frame, &header);
    if (!describe(frame, CV_VNET_BYTES + length, &wanted) || header.flags != wanted.flags ||
        header.gso_type != wanted.gso_type || header.hdr_len != wanted.hdr_len ||
        header.gso_size != wanted.gso_size || header.csum_start != wanted.csum_start ||
        header.csum_offset != wanted.csum_offset)
        return 0;
    if (ethernet)
        return length >= ETHERNET_HEADER_BYTES && !header.flags && header.gso_type == CV_GSO_NONE ? length : 0;
    return cv_packet_length(packet, length) == length ? length : 0;
}

int cv_whole_open(EVP_CIPHER_CTX *key, EVP_MAC_CTX *mac, struct cv_message *messages, size_t count, int ethernet)
{
    for (size_t i = 0; i < count; i++) {
        struct cv_message *message = &messages[i];
        message->authentic = message->accepted = 0;
        message->bytes = message->plain_bytes = 0;
        message->ethernet = (uint8_t)ethernet;
        if (message->sealed_bytes < CV_OVERHEAD_BYTES)
            continue;
        uint32_t bytes = message->sealed_bytes - CV_OVERHEAD_BYTES;
        message->counter = cv_message_counter(message);
        int result = cv_aead_open_apart(key, mac, message->counter, message->sealed + CV_HEADER_BYTES, bytes,
                                        message->packet);
        if (result < 0)
            return -1;
        if (!result)
            continue;
        message->authentic = 1;
        message->plain_bytes = bytes;
        message->bytes = unpack(message->packet, bytes, ethernet);
        if (message->bytes)
            message->packet += CV_WHOLE_HEADER_BYTES;
    }
    return 0;
}
