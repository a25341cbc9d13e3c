/* Copyright (c) 2026, Culvert contributors
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * ChaCha20-Poly1305 (RFC 8439 section 2.8) without additional data, from libcrypto's ChaCha20 and Poly1305.
 *
 * libcrypto has the combination ready-made too, and that is what the pure Python batch uses. For packets it spends a
 * third of its time on starting: a call for the block of key stream that makes the Poly1305 key, another for the
 * packet, and parameters passed by name for the tag. Here one call makes both.
 */
#ifndef CULVERT_AEAD_H
#define CULVERT_AEAD_H

#include <stddef.h>
#include <stdint.h>

#include <openssl/evp.h>

enum {
    CV_AEAD_KEY_BYTES = 32,
    CV_AEAD_TAG_BYTES = 16,
    /* What stands before a text, on both sides: a block of key stream is made there. */
    CV_AEAD_HEAD_BYTES = 64,
};

/* A key made ready: ChaCha20's state. NULL when libcrypto fails. Freed with EVP_CIPHER_CTX_free(), which overwrites it. */
EVP_CIPHER_CTX *cv_aead_key(const uint8_t raw[CV_AEAD_KEY_BYTES]);
/* The authenticator, one for all keys. NULL when libcrypto fails. */
EVP_MAC_CTX *cv_aead_mac(void);

/* Encrypt `bytes` at `text`, in front of which are CV_AEAD_HEAD_BYTES zeros, to `sealed`, and append the tag. The
 * CV_AEAD_HEAD_BYTES in front of `sealed` are overwritten, with a secret. 1, or 0 when libcrypto fails. */
int cv_aead_seal(EVP_CIPHER_CTX *key, EVP_MAC_CTX *mac, uint64_t counter, const uint8_t *text, uint32_t bytes,
                 uint8_t *sealed);
/* Decrypt `bytes` of `sealed`, behind which the tag stands, to `text`. The CV_AEAD_HEAD_BYTES in front of `text` are
 * overwritten; those in front of `sealed` are read if has_head, whatever they are. 1, 0 when the tag is wrong (what
 * is at `text` then must not be used), -1 when libcrypto fails. */
int cv_aead_open(EVP_CIPHER_CTX *key, EVP_MAC_CTX *mac, uint64_t counter, const uint8_t *sealed, uint32_t bytes,
                 int has_head, uint8_t *text);

/* The same where a text is long or begins with something else, and nothing is read or written in front of either side:
 * encrypt `head` (at most 64 bytes), the text and zeros up to a multiple of 16. */
int cv_aead_seal_apart(EVP_CIPHER_CTX *key, EVP_MAC_CTX *mac, uint64_t counter, const uint8_t *head, uint32_t head_bytes,
                       const uint8_t *text, uint32_t bytes, uint8_t *sealed);
/* Decrypt what is authentic; nothing is written otherwise. */
int cv_aead_open_apart(EVP_CIPHER_CTX *key, EVP_MAC_CTX *mac, uint64_t counter, const uint8_t *sealed, uint32_t bytes,
                       uint8_t *text);

#endif
