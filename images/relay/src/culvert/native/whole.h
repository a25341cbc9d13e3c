/* Copyright (c) 2026, Culvert contributors
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Frame messages: frames that are sealed as they are. culvert/frame_messages.py says what that means, and the same tests
 * hold both to the same results.
 */
#ifndef CULVERT_WHOLE_H
#define CULVERT_WHOLE_H

#include "open.h"
#include "seal.h"

enum {
    CV_WHOLE_TYPE = 0x66,
    CV_WHOLE_HEADER_BYTES = 12,
    /* What fits a message of 65,535 bytes, padded. */
    CV_WHOLE_MOST_BYTES = (65535 - CV_OVERHEAD_BYTES) / 16 * 16 - CV_WHOLE_HEADER_BYTES,
};

/* A frame to be sealed. It does not own its bytes. */
struct cv_whole {
    const uint8_t *packet;
    uint32_t bytes; /* 0: makes no sense, to be left out */
    uint8_t header[CV_WHOLE_HEADER_BYTES];
};

/* Look at the bytes of a frame, virtio header included. */
void cv_whole_parse(const uint8_t *data, size_t bytes, struct cv_whole *frame);
/* How the frames' messages go into chunks, of which there must be room for `count`; returns how many there are. */
size_t cv_whole_plan(const struct cv_whole *frames, size_t count, struct cv_chunk *chunks);
/* Seal into the chunks' memory (each .bytes long, nothing in front of it); 0, or -1 when libcrypto fails. */
int cv_whole_seal(EVP_CIPHER_CTX *key, EVP_MAC_CTX *mac, uint32_t receiver, uint64_t counter,
                  const struct cv_whole *frames, size_t count, const struct cv_chunk *chunks);
/* Decrypt each message to its own memory: `packet`, with room for what is sealed and not the overhead, is set by the
 * caller beside `sealed` and `sealed_bytes`. What is authentic and has a frame in it has `bytes` then, and the frame,
 * virtio header included, begins CV_VNET_BYTES before `packet`. 0, or -1 when libcrypto fails. */
int cv_whole_open(EVP_CIPHER_CTX *key, EVP_MAC_CTX *mac, struct cv_message *messages, size_t count, int ethernet);

#endif
