/* Copyright (c) 2026, Culvert contributors
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * From frames of the TUN device to sealed datagrams.
 */
#ifndef CULVERT_SEAL_H
#define CULVERT_SEAL_H

#include "aead.h"
#include "packet.h"

/* A frame as read from the device, and what cv_frame_parse() found in it. It does not own its bytes. */
struct cv_frame {
    const uint8_t *packet; /* behind the virtio header */
    uint32_t bytes;
    uint32_t segments; /* data messages it makes; 0: malformed, to be left out */
    uint32_t gso_size; /* 0: not a superpacket */
    uint32_t header_bytes, l4_start; /* of a superpacket */
    uint32_t csum_start, csum_offset; /* of a plain packet with an unfinished checksum, if needs_csum */
    uint8_t needs_csum, protocol;
};

/* Datagrams of one size, the last maybe shorter. */
struct cv_chunk {
    uint32_t segments, segment_bytes, bytes;
    uint8_t *out;
};

/* Look at the bytes of a frame, virtio header included. */
void cv_frame_parse(const uint8_t *data, size_t bytes, struct cv_frame *frame);
/* Whether the frame's packet is IPv4 or IPv6, with where its destination address is. */
int cv_frame_destination(const struct cv_frame *frame, const uint8_t **address, size_t *bytes);

/* Put a datagram of `bytes` into the last of `*made` chunks, or into a new one; 0 where that would be more than `max`.
 * `*open`: whether the last chunk takes more. */
int cv_chunk_add(struct cv_chunk *chunks, size_t *made, size_t max, int *open, uint32_t bytes);
/* How the frames' datagrams go into chunks: fills chunks (all but .out) up to max, returns how many there are. */
size_t cv_seal_plan(const struct cv_frame *frames, size_t count, uint32_t mtu, struct cv_chunk *chunks, size_t max);
enum {
    /* Memory that cv_seal() works in; its first CV_AEAD_HEAD_BYTES must be zeros. */
    CV_SEAL_WORK_BYTES = CV_AEAD_HEAD_BYTES + CV_MAX_PACKET_BYTES + 16,
    /* In front of each chunk's .out, for cv_seal() to overwrite. */
    CV_CHUNK_HEAD_BYTES = CV_AEAD_HEAD_BYTES - CV_HEADER_BYTES,
};
/* Cut and seal into the chunks' memory (each .bytes long); 0, or -1 when libcrypto fails. */
int cv_seal(EVP_CIPHER_CTX *key, EVP_MAC_CTX *mac, uint32_t receiver, uint64_t counter, uint32_t mtu,
            const struct cv_frame *frames, size_t count, const struct cv_chunk *chunks, uint8_t *work);

#endif
