# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# Included by _native.pyx: the binding of io.c.

from libc.errno cimport errno
from posix.unistd cimport write

import socket as _socket

cdef extern from "native/io.h" nogil:
    ctypedef struct in_addr:
        pass
    ctypedef struct in6_addr:
        pass
    cdef struct sockaddr_in:
        uint16_t sin_family, sin_port
        in_addr sin_addr
    cdef struct sockaddr_in6:
        uint16_t sin6_family, sin6_port
        uint32_t sin6_flowinfo, sin6_scope_id
        in6_addr sin6_addr
    cdef union cv_address:
        sockaddr_in v4
        sockaddr_in6 v6
    cdef struct cv_datagram:
        uint32_t bytes, segment_bytes, address_bytes, control_bytes
        cv_address address
        uint8_t control[256]
    int CV_IO_MAX, CV_CONTROL_BYTES
    int AF_INET, AF_INET6
    size_t cv_read_frames(int fd, uint8_t *arena, size_t size, size_t enough, size_t lead, size_t limit, size_t *ends,
                          int *error)
    size_t cv_receive(int fd, uint8_t *arena, size_t stride, size_t limit, cv_datagram *datagrams)
    int cv_send(int fd, const uint8_t *data, size_t size, unsigned segment_bytes, const cv_address *address,
                uint32_t address_bytes, uint8_t *control, size_t control_bytes)
    size_t cv_add_control(uint8_t *control, size_t control_bytes, int level, int kind, const void *data, size_t size)

cdef extern from "<arpa/inet.h>" nogil:
    int inet_pton(int family, const char *text, void *address)
    uint16_t htons(uint16_t value)
    uint16_t ntohs(uint16_t value)
    uint32_t htonl(uint32_t value)
    uint32_t ntohl(uint32_t value)

cdef extern from "<sys/socket.h>" nogil:
    cdef struct cmsghdr:
        size_t cmsg_len
        int cmsg_level, cmsg_type
    size_t CMSG_LEN(size_t size)
    size_t CMSG_SPACE(size_t size)


cdef enum:
    VNET_BYTES = 10
    MAX_PACKET = 65535
    # Bytes after which a turn of reading ends.
    ENOUGH = 512 * 1024
    # Room for a run of datagrams; not a power of two, for then all would compete for the same lines of the cache.
    SLOT = 65536 + 1600
    FEW = 16
    MANY_BYTES = 4096


cdef class CompiledCalls:
    """:class:`culvert.calls.Calls`, a batch of packets in one go. Not for use from several threads at once."""

    cdef Memory ends, datagrams
    cdef object frames_arena, arena
    cdef size_t slots
    cdef bint busy
    # The address written to last, and its text form.
    cdef object last_address
    cdef cv_address last
    cdef uint32_t last_bytes

    def __cinit__(self):
        self.ends, self.datagrams = Memory(), Memory()
        self.datagrams.room(CV_IO_MAX * sizeof(cv_datagram))
        self.frames_arena = memoryview(bytearray(ENOUGH + VNET_BYTES + MAX_PACKET))
        # Of the kernel's zero page until it is written to.
        self.arena = memoryview(bytearray(CV_IO_MAX * SLOT))
        self.slots = FEW
        self.last_address = None

    cdef int enter(self) except -1:
        if self.busy:
            raise RuntimeError("in use by another thread")
        self.busy = True
        return 0

    def read_frames(self, int fd, size_t lead, size_t limit):
        arena = self.frames_arena
        cdef uint8_t[::1] room = arena
        cdef size_t count, i, start = 0
        cdef size_t *ends
        cdef int error
        if lead > <size_t>VNET_BYTES:
            raise ValueError("lead is the virtio header's length, or 0")
        self.enter()
        try:
            ends = <size_t *>self.ends.room(limit * sizeof(size_t))
            with nogil:
                count = cv_read_frames(fd, &room[0], room.shape[0], ENOUGH, lead, limit, ends, &error)
            frames = []
            for i in range(count):
                frames.append(arena[start:ends[i]])
                start = ends[i]
        finally:
            self.busy = False
        return frames, error

    def write_frames(self, int fd, list frames, size_t start):
        cdef size_t count = len(frames), i
        cdef Py_buffer view
        cdef Py_ssize_t written
        for i in range(start, count):
            PyObject_GetBuffer(frames[i], &view, PyBUF_SIMPLE)
            with nogil:
                written = write(fd, view.buf, view.len)
            PyBuffer_Release(&view)
            if written < 0:
                return i, errno
        return count, 0

    def receive(self, sock, size_t limit, dict known, remember):
        arena = self.arena
        cdef uint8_t[::1] room = arena
        cdef int fd = sock.fileno()
        cdef size_t count, i
        cdef cv_datagram *datagrams = <cv_datagram *>self.datagrams.data
        cdef cv_datagram *one
        cdef list received = []
        limit = min(limit, self.slots)
        self.enter()
        try:
            with nogil:
                count = cv_receive(fd, &room[0], SLOT, limit, datagrams)
        finally:
            self.busy = False
        # Runs of 64 KiB are taken a few at a time, so that they are still in the cache when they are opened.
        self.slots = FEW if count and datagrams[0].bytes > MANY_BYTES else CV_IO_MAX
        cdef object last_key = None, endpoint = None, ecn = None
        for i in range(count):
            one = &datagrams[i]
            if not one.bytes:
                continue
            key = PyBytes_FromStringAndSize(<const char *>&one.address, one.address_bytes) + PyBytes_FromStringAndSize(
                <const char *>one.control, one.control_bytes
            )
            if last_key is None or key != last_key:
                found = known.get(key)
                if found is None:
                    found = known[key] = remember(_address(one), _ancillary(one))
                endpoint, ecn = found
                last_key = key
            data = arena[i * SLOT : i * SLOT + one.bytes]
            segment_bytes = one.segment_bytes if one.segment_bytes < one.bytes else 0
            received.append(tuple.__new__(Received, (data, endpoint, ecn, segment_bytes)))
        return received

    def send(self, sock, data, list ancillary, tuple address, unsigned segment_bytes):
        cdef int fd = sock.fileno()
        cdef uint8_t control[256]
        cdef size_t control_bytes = 0
        cdef Py_buffer view
        cdef int code
        cdef bytes value
        if self.last_address is not address:
            self.last_bytes = _pack_address(address, &self.last)
            self.last_address = address
        for level, kind, value in ancillary:
            control_bytes = cv_add_control(
                control, control_bytes, level, kind, <const char *>value, <size_t>len(value)
            )
            if not control_bytes:
                raise ValueError("too many control messages")
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        with nogil:
            code = cv_send(
                fd, <const uint8_t *>view.buf, view.len, segment_bytes, &self.last, self.last_bytes, control,
                control_bytes
            )
        PyBuffer_Release(&view)
        return code


cdef uint32_t _pack_address(tuple address, cv_address *packed) except 0:
    host = address[0].encode()
    memset(packed, 0, sizeof(cv_address))
    if len(address) == 2:
        packed.v4.sin_family = AF_INET
        packed.v4.sin_port = htons(address[1])
        if inet_pton(AF_INET, host, &packed.v4.sin_addr) == 1:
            return sizeof(sockaddr_in)
    else:
        packed.v6.sin6_family = AF_INET6
        packed.v6.sin6_port = htons(address[1])
        packed.v6.sin6_flowinfo = htonl(address[2])
        packed.v6.sin6_scope_id = address[3]
        if inet_pton(AF_INET6, host, &packed.v6.sin6_addr) == 1:
            return sizeof(sockaddr_in6)
    raise ValueError(f"{address[0]!r} is no address")


cdef tuple _address(cv_datagram *one):
    """As the socket module gives it."""
    if one.address.v4.sin_family == AF_INET:
        packed = PyBytes_FromStringAndSize(<const char *>&one.address.v4.sin_addr, 4)
        return _socket.inet_ntop(AF_INET, packed), ntohs(one.address.v4.sin_port)
    packed = PyBytes_FromStringAndSize(<const char *>&one.address.v6.sin6_addr, 16)
    return (
        _socket.inet_ntop(AF_INET6, packed), ntohs(one.address.v6.sin6_port),
        ntohl(one.address.v6.sin6_flowinfo), one.address.v6.sin6_scope_id,
    )


cdef list _ancillary(cv_datagram *one):
    """As the socket module gives it."""
    cdef list found = []
    cdef size_t at = 0, size
    cdef cmsghdr *head
    while at < one.control_bytes:
        head = <cmsghdr *>(one.control + at)
        size = head.cmsg_len - CMSG_LEN(0)
        data = PyBytes_FromStringAndSize(<const char *>(one.control + at + CMSG_LEN(0)), size)
        found.append((head.cmsg_level, head.cmsg_type, data))
        at += CMSG_SPACE(size)
    return found
