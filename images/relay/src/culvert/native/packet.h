/* Copyright (c) 2026, Culvert contributors
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Inner packets: what seal.c and open.c both need of IP, TCP and UDP headers. The semantics are those of
 * culvert/segment.py, which the same tests hold to the same results.
 */
#ifndef CULVERT_PACKET_H
#define CULVERT_PACKET_H

#include <stddef.h>
#include <stdint.h>

enum {
    CV_VNET_BYTES = 10,
    CV_HEADER_BYTES = 16, /* type, reserved, receiver index, counter */
    CV_TAG_BYTES = 16,
    CV_OVERHEAD_BYTES = CV_HEADER_BYTES + CV_TAG_BYTES,
    CV_MAX_PACKET_BYTES = 65535,
    /* What UDP_SEGMENT takes in one call: UDP_MAX_SEGMENTS, and the greatest payload of an IPv4 datagram. */
    CV_MAX_CHUNK_SEGMENTS = 64,
    CV_MAX_CHUNK_BYTES = 65507,
};

enum { CV_NEEDS_CSUM = 1, CV_GSO_NONE = 0, CV_GSO_TCPV4 = 1, CV_GSO_TCPV6 = 4, CV_GSO_UDP_L4 = 5, CV_GSO_ECN = 0x80 };
enum { CV_TCP = 6, CV_UDP = 17 };
enum { CV_FIN = 1, CV_PSH = 8, CV_ACK = 16, CV_ECE = 64, CV_CWR = 128 };

/* Memory is asked for with some to spare, so that it need not be asked for again; but not under AddressSanitizer, which
 * would not notice who uses what is to spare. */
#ifdef __SANITIZE_ADDRESS__
enum { CV_TO_SPARE = 0 };
#else
enum { CV_TO_SPARE = 1 };
#endif

/* <linux/virtio_net.h>, in the host's byte order. */
struct cv_vnet {
    uint8_t flags, gso_type;
    uint16_t hdr_len, gso_size, csum_start, csum_offset;
};

void cv_vnet_read(const uint8_t *at, struct cv_vnet *vnet);
void cv_vnet_write(uint8_t *at, const struct cv_vnet *vnet);

static inline uint16_t cv_get16(const uint8_t *at) { return (uint16_t)(at[0] << 8 | at[1]); }
static inline uint32_t cv_get32(const uint8_t *at) { return (uint32_t)cv_get16(at) << 16 | cv_get16(at + 2); }
static inline void cv_put16(uint8_t *at, uint32_t value) { at[0] = (uint8_t)(value >> 8), at[1] = (uint8_t)value; }
static inline void cv_put32(uint8_t *at, uint32_t value) { cv_put16(at, value >> 16), cv_put16(at + 2, value); }

/* The sum of the 16-bit words of some bytes in the host's order, not folded (RFC 1071): sums may be added. */
uint64_t cv_sum(const uint8_t *data, size_t bytes);
/* A sum folded to 16 bits, in the host's order. */
uint16_t cv_fold(uint64_t sum);
/* The pseudo-header's sum (RFC 9293 section 3.1, RFC 8200 section 8.1) of a packet of IP version 4 or 6. */
uint64_t cv_pseudo_sum(const uint8_t *packet, unsigned protocol, uint32_t l4_bytes);
/* Store a folded sum or its complement as it goes over the wire. */
void cv_put_sum(uint8_t *at, uint16_t folded);
/* Set the checksum of an IPv4 header. */
void cv_set_ip_checksum(uint8_t *packet, size_t header_bytes);

/* The length of a packet by its own header, 0 when that does not agree with the bytes there are. */
uint32_t cv_packet_length(const uint8_t *packet, size_t bytes);
/* The two ECN bits of a packet of IP version 4 or 6. */
unsigned cv_ecn(const uint8_t *packet);

#endif
