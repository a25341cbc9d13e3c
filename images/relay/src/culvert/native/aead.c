/* Copyright (c) 2026, Culvert contributors
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "aead.h"

#include <string.h>

#include <openssl/crypto.h>

EVP_CIPHER_CTX *cv_aead_key(const uint8_t raw[CV_AEAD_KEY_BYTES])
{
    static const uint8_t nonce[16];
    EVP_CIPHER_CTX *key = EVP_CIPHER_CTX_new();
    if (key && EVP_CipherInit_ex(key, EVP_chacha20(), NULL, raw, nonce, 1) == 1)
        return key;
    EVP_CIPHER_CTX_free(key);
    return NULL;
}

EVP_MAC_CTX *cv_aead_mac(void)
{
    EVP_MAC *poly1305 = EVP_MAC_fetch(NULL, "POLY1305", NULL);
    EVP_MAC_CTX *mac = poly1305 ? EVP_MAC_CTX_new(poly1305) : NULL;
    EVP_MAC_free(poly1305);
    return mac;
}

static void put_le64(uint8_t *at, uint64_t value)
{
    for (int i = 0; i < 8; i++, value >>= 8)
        at[i] = (uint8_t)value;
}

static int start(EVP_CIPHER_CTX *key, uint64_t counter)
{
    /* libcrypto's nonce: the block counter in 4 bytes, then the nonce (WireGuard: 4 zeros and the counter). */
    uint8_t nonce[16] = {0};
    put_le64(nonce + 8, counter);
    return EVP_CipherInit_ex(key, NULL, NULL, NULL, nonce, 1) == 1;
}

static int more(EVP_CIPHER_CTX *key, const uint8_t *in, uint8_t *out, uint32_t bytes)
{
    int written;
    return !bytes || EVP_EncryptUpdate(key, out, &written, in, (int)bytes) == 1;
}

/* Section 2.6: the key stream's first 32 bytes are the Poly1305 key, the rest of its first block is not used; the text
 * starts with the second block. So the 64 bytes in front of the text go through the cipher with it: one call. */
static int stream(EVP_CIPHER_CTX *key, uint64_t counter, const uint8_t *in, uint8_t *out, uint32_t bytes)
{
    return start(key, counter) &&
           more(key, in - CV_AEAD_HEAD_BYTES, out - CV_AEAD_HEAD_BYTES, CV_AEAD_HEAD_BYTES + bytes);
}

/* Section 2.8: over the ciphertext, zeros up to a multiple of 16, and the lengths of nothing and of the ciphertext. */
static int authenticate(EVP_MAC_CTX *mac, const uint8_t *one_time_key, const uint8_t *text, uint32_t bytes,
                        uint8_t *tag)
{
    uint8_t tail[32] = {0};
    size_t zeros = -bytes % 16u, written;
    put_le64(tail + zeros + 8, bytes);
    return EVP_MAC_init(mac, one_time_key, 32, NULL) == 1 && (!bytes || EVP_MAC_update(mac, text, bytes) == 1) &&
           EVP_MAC_update(mac, tail, zeros + 16) == 1 && EVP_MAC_final(mac, tag, &written, CV_AEAD_TAG_BYTES) == 1;
}

int cv_aead_seal(EVP_CIPHER_CTX *key, EVP_MAC_CTX *mac, uint64_t counter, const uint8_t *text, uint32_t bytes,
                 uint8_t *sealed)
{
    const uint8_t *one_time_key = sealed - CV_AEAD_HEAD_BYTES;
    size_t written;
    if (!stream(key, counter, text, sealed, bytes))
        return 0;
    if (bytes % 16)
        return authenticate(mac, one_time_key, sealed, bytes, sealed + bytes);
    /* Nearly always: the lengths have room where the tag will be, so one call sees it all. */
    memset(sealed + bytes, 0, 8);
    put_le64(sealed + bytes + 8, bytes);
    return EVP_MAC_init(mac, one_time_key, 32, NULL) == 1 && EVP_MAC_update(mac, sealed, bytes + 16) == 1 &&
           EVP_MAC_final(mac, sealed + bytes, &written, CV_AEAD_TAG_BYTES) == 1;
}

int cv_aead_open(EVP_CIPHER_CTX *key, EVP_MAC_CTX *mac, uint64_t counter, const uint8_t *sealed, uint32_t bytes,
                 int has_head, uint8_t *text)
{
    uint8_t tag[CV_AEAD_TAG_BYTES], one_time_key[32], *head = text - CV_AEAD_HEAD_BYTES;
    const uint8_t *in = sealed;
    if (!has_head) {
        memset(head, 0, CV_AEAD_HEAD_BYTES);
        memcpy(text, sealed, bytes);
        in = text;
    }
    /* Key stream is what comes out for zeros, and what comes out for anything else with that taken away again. */
    memcpy(one_time_key, in - CV_AEAD_HEAD_BYTES, sizeof one_time_key);
    if (!stream(key, counter, in, text, bytes))
        return -1;
    for (size_t i = 0; i < sizeof one_time_key; i++)
        one_time_key[i] ^= head[i];
    if (!authenticate(mac, one_time_key, sealed, bytes, tag))
        return -1;
    return CRYPTO_memcmp(tag, sealed + bytes, sizeof tag) == 0;
}

int cv_aead_seal_apart(EVP_CIPHER_CTX *key, EVP_MAC_CTX *mac, uint64_t counter, const uint8_t *head, uint32_t head_bytes,
                       const uint8_t *text, uint32_t bytes, uint8_t *sealed)
{
    /* The block of key stream, and the first block of text: what comes then goes where it belongs in whole blocks, and
     * the last bytes with their zeros from here again. */
    uint8_t begin[CV_AEAD_HEAD_BYTES + 64] = {0}, end[64] = {0};
    uint32_t first = 64 - head_bytes < bytes ? 64 - head_bytes : bytes;
    uint32_t begin_bytes = (head_bytes + first + 15u) & ~15u;
    uint32_t whole = (bytes - first) & ~63u, rest = bytes - first - whole, end_bytes = (rest + 15u) & ~15u;
    uint8_t *out = sealed + begin_bytes;
    memcpy(begin + CV_AEAD_HEAD_BYTES, head, head_bytes);
    memcpy(begin + CV_AEAD_HEAD_BYTES + head_bytes, text, first);
    memcpy(end, text + first + whole, rest);
    if (!start(key, counter) || !more(key, begin, begin, CV_AEAD_HEAD_BYTES + begin_bytes) ||
        !more(key, text + first, out, whole) || !more(key, end, end, end_bytes))
        return 0;
    memcpy(sealed, begin + CV_AEAD_HEAD_BYTES, begin_bytes);
    memcpy(out + whole, end, end_bytes);
    uint32_t sealed_bytes = begin_bytes + whole + end_bytes;
    return authenticate(mac, begin, sealed, sealed_bytes, sealed + sealed_bytes);
}

int cv_aead_open_apart(EVP_CIPHER_CTX *key, EVP_MAC_CTX *mac, uint64_t counter, const uint8_t *sealed, uint32_t bytes,
                       uint8_t *text)
{
    uint8_t block[CV_AEAD_HEAD_BYTES] = {0}, tag[CV_AEAD_TAG_BYTES];
    if (!start(key, counter) || !more(key, block, block, sizeof block) ||
        !authenticate(mac, block, sealed, bytes, tag))
        return -1;
    if (CRYPTO_memcmp(tag, sealed + bytes, sizeof tag) != 0)
        return 0;
    return more(key, sealed, text, bytes) ? 1 : -1;
}
