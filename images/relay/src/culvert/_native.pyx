# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The compiled batch: the contract of :class:`culvert.batch.Batch` over the C of ``native/``.

This file owns memory and Python objects; the C files see pointers and lengths that were checked here. The
interpreter's lock is released while packets are sealed, opened and put together.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memset
from posix.stdlib cimport posix_memalign

from .batch import Chunk, Flow, Piece, Received, Sifted

cdef extern from "openssl/evp.h" nogil:
    ctypedef struct EVP_CIPHER_CTX
    ctypedef struct EVP_MAC_CTX
    void EVP_CIPHER_CTX_free(EVP_CIPHER_CTX *key)
    void EVP_MAC_CTX_free(EVP_MAC_CTX *mac)

cdef extern from "native/aead.h" nogil:
    int CV_AEAD_KEY_BYTES, CV_AEAD_HEAD_BYTES
    EVP_CIPHER_CTX *cv_aead_key(const uint8_t *raw)
    EVP_MAC_CTX *cv_aead_mac()

cdef extern from "native/seal.h" nogil:
    cdef struct cv_frame:
        const uint8_t *packet
        uint32_t bytes, segments
    cdef struct cv_chunk:
        uint32_t segments, segment_bytes, bytes
        uint8_t *out
    int CV_VNET_BYTES, CV_OVERHEAD_BYTES, CV_TO_SPARE
    unsigned cv_ecn(const uint8_t *packet)
    void cv_frame_parse(const uint8_t *data, size_t bytes, cv_frame *frame)
    int cv_frame_destination(const cv_frame *frame, const uint8_t **address, size_t *bytes)
    size_t cv_seal_plan(const cv_frame *frames, size_t count, uint32_t mtu, cv_chunk *chunks, size_t max)
    int CV_SEAL_WORK_BYTES, CV_CHUNK_HEAD_BYTES
    int cv_seal(EVP_CIPHER_CTX *key, EVP_MAC_CTX *mac, uint32_t receiver, uint64_t counter, uint32_t mtu,
                const cv_frame *frames, size_t count, const cv_chunk *chunks, uint8_t *work)

cdef extern from "native/open.h" nogil:
    cdef struct cv_message:
        const uint8_t *sealed
        uint32_t sealed_bytes, plain_bytes, bytes
        uint64_t counter
        uint8_t *packet
        uint8_t has_head, authentic, accepted
    cdef struct cv_group:
        uint32_t bytes
    int CV_OPEN_EXTRA_BYTES
    int cv_open(EVP_CIPHER_CTX *key, EVP_MAC_CTX *mac, cv_message *messages, size_t count, uint8_t *plain)
    size_t cv_message_source(const cv_message *message, const uint8_t **address)
    size_t cv_coalesce(cv_message *messages, size_t count, int congested, int kinds, cv_group *groups)
    void cv_group_write(const cv_message *messages, const cv_group *group, uint8_t *frame)

cdef extern from "native/whole.h" nogil:
    cdef struct cv_whole:
        uint32_t bytes
    int CV_WHOLE_TYPE
    void cv_whole_parse(const uint8_t *data, size_t bytes, cv_whole *frame)
    size_t cv_whole_plan(const cv_whole *frames, size_t count, cv_chunk *chunks)
    int cv_whole_seal(EVP_CIPHER_CTX *key, EVP_MAC_CTX *mac, uint32_t receiver, uint64_t counter,
                      const cv_whole *frames, size_t count, const cv_chunk *chunks)
    int cv_whole_open(EVP_CIPHER_CTX *key, EVP_MAC_CTX *mac, cv_message *messages, size_t count, int ethernet)

cdef int RUN = 64  # a mask of bits for the messages of a run fits a uint64_t
cdef uint32_t DATA_TYPE = 4


include "native/memory.pxi"


cdef class CompiledBatch:
    """A :class:`culvert.batch.Batch` in C, with libcrypto's ChaCha20-Poly1305.

    Not for use from several threads at once: RuntimeError says so.
    """

    cdef Memory frames, chunks, work, messages, groups, plain
    cdef EVP_MAC_CTX *mac
    cdef bint busy
    cdef readonly str name

    def __cinit__(self):
        self.name = "compiled"
        self.busy = False
        self.frames, self.chunks, self.work = Memory(), Memory(), Memory()
        self.messages, self.groups, self.plain = Memory(), Memory(), Memory()
        memset(self.work.room(CV_SEAL_WORK_BYTES), 0, CV_AEAD_HEAD_BYTES)
        self.mac = cv_aead_mac()
        if self.mac == NULL:
            raise RuntimeError("libcrypto cannot do Poly1305")

    def __dealloc__(self):
        EVP_MAC_CTX_free(self.mac)

    def key(self, bytes raw not None):
        return Key(raw)

    def forget(self, Key key not None):
        key.forget()

    cdef int enter(self) except -1:
        if self.busy:
            raise RuntimeError("the batch is in use by another thread, or called from accept()")
        self.busy = True
        return 0

    # --- From the TUN device --------------------------------------------------------------------------------

    cdef cv_frame *parse(self, Views views, object frames, size_t count) except NULL:
        cdef cv_frame *parsed = <cv_frame *>self.frames.room(count * sizeof(cv_frame))
        cdef size_t i = 0
        cdef Py_buffer *view
        for frame in frames:
            view = views.add(frame)
            cv_frame_parse(<const uint8_t *>view.buf, view.len, &parsed[i])
            i += 1
        return parsed

    def flows(self, frames):
        frames = tuple(frames)
        cdef size_t count = len(frames), i, start = 0
        cdef Views views = Views(count)
        cdef cv_frame *parsed
        cdef const uint8_t *address
        cdef const uint8_t *run_address = NULL
        cdef size_t address_bytes, run_bytes = 0
        cdef unsigned ecn, run_ecn = 0
        cdef uint64_t segments = 0
        cdef bint known
        self.enter()
        try:
            parsed = self.parse(views, frames, count)
            found = []
            for i in range(count):
                address = NULL
                address_bytes = 0
                ecn = 0
                known = parsed[i].segments > 0 and cv_frame_destination(&parsed[i], &address, &address_bytes)
                if known:
                    ecn = cv_ecn(parsed[i].packet)
                else:
                    address_bytes = 0
                if i and (
                    address_bytes != run_bytes or ecn != run_ecn
                    or (run_bytes and memcmp(address, run_address, run_bytes))
                ):
                    found.append(_flow(run_address, run_bytes, run_ecn, start, i, segments))
                    start = i
                    segments = 0
                run_address, run_bytes, run_ecn = address, address_bytes, ecn
                segments += parsed[i].segments
            if count:
                found.append(_flow(run_address, run_bytes, run_ecn, start, count, segments))
            return found
        finally:
            self.busy = False

    def seal(self, Key key not None, uint32_t receiver, uint64_t counter, frames, uint32_t mtu_bytes):
        frames = tuple(frames)
        cdef size_t count = len(frames), made, i
        cdef Views views = Views(count)
        cdef cv_frame *parsed
        cdef cv_chunk *chunks
        cdef EVP_CIPHER_CTX *context
        cdef uint8_t *work
        cdef int result
        if not mtu_bytes:
            raise ValueError("the MTU must not be 0")
        self.enter()
        try:
            parsed = self.parse(views, frames, count)
            chunks = self.plan(parsed, count, mtu_bytes, &made)
            sealed = []
            for i in range(made):
                data = PyBytes_FromStringAndSize(NULL, CV_CHUNK_HEAD_BYTES + chunks[i].bytes)
                chunks[i].out = <uint8_t *>PyBytes_AS_STRING(data) + CV_CHUNK_HEAD_BYTES
                view = memoryview(data)[CV_CHUNK_HEAD_BYTES:]
                sealed.append(tuple.__new__(Chunk, (view, chunks[i].segment_bytes)))
            if made:
                context = key.take()
                work = <uint8_t *>self.work.data
                with nogil:
                    result = cv_seal(context, self.mac, receiver, counter, mtu_bytes, parsed, count, chunks, work)
                key.busy = False
                if result:
                    raise RuntimeError("libcrypto could not seal")
            return sealed
        finally:
            self.busy = False

    cdef cv_chunk *plan(self, cv_frame *parsed, size_t count, uint32_t mtu, size_t *made) except NULL:
        """How the datagrams go into chunks; asks for more room once, where there are more than usual."""
        cdef cv_chunk *chunks = <cv_chunk *>self.chunks.room(sizeof(cv_chunk))
        cdef size_t room = self.chunks.size // sizeof(cv_chunk), i
        made[0] = cv_seal_plan(parsed, count, mtu, chunks, room)
        if made[0] > room:
            room = 1
            for i in range(count):
                room += parsed[i].segments
            chunks = <cv_chunk *>self.chunks.room(room * sizeof(cv_chunk))
            made[0] = cv_seal_plan(parsed, count, mtu, chunks, room)
        return chunks

    def seal_frames(self, Key key not None, uint32_t receiver, uint64_t counter, frames):
        frames = tuple(frames)
        cdef size_t count = len(frames), made, i = 0
        cdef Views views = Views(count)
        cdef cv_whole *parsed
        cdef cv_chunk *chunks
        cdef Py_buffer *view
        cdef EVP_CIPHER_CTX *context
        cdef int result
        self.enter()
        try:
            parsed = <cv_whole *>self.frames.room(count * sizeof(cv_whole))
            chunks = <cv_chunk *>self.chunks.room(count * sizeof(cv_chunk))
            for frame in frames:
                view = views.add(frame)
                cv_whole_parse(<const uint8_t *>view.buf, view.len, &parsed[i])
                i += 1
            made = cv_whole_plan(parsed, count, chunks)
            sealed = []
            for i in range(made):
                data = PyBytes_FromStringAndSize(NULL, chunks[i].bytes)
                chunks[i].out = <uint8_t *>PyBytes_AS_STRING(data)
                sealed.append(tuple.__new__(Chunk, (data, chunks[i].segment_bytes)))
            if made:
                context = key.take()
                with nogil:
                    result = cv_whole_seal(context, self.mac, receiver, counter, parsed, count, chunks)
                key.busy = False
                if result:
                    raise RuntimeError("libcrypto could not seal")
            return sealed
        finally:
            self.busy = False

    # --- From the network -----------------------------------------------------------------------------------

    def sift(self, received):
        cdef list found = []
        cdef list pieces = None
        cdef object run_endpoint = None
        cdef uint32_t run_receiver = 0, receiver
        cdef bint run_congested = False, congested, run_framed = False, framed = False
        cdef Py_ssize_t offset, end, start, length, stride
        cdef Py_buffer view
        cdef const uint8_t *data
        for entry in received:
            whole, endpoint, ecn, segment_bytes = entry
            congested = ecn == 3
            PyObject_GetBuffer(whole, &view, PyBUF_SIMPLE)
            try:
                data, length = <const uint8_t *>view.buf, view.len
                stride = segment_bytes
                if stride <= 0 or stride > length:
                    stride = length
                offset = start = 0
                while offset < length:
                    end = min(offset + stride, length)
                    if _is_session(data + offset, end - offset, &receiver, &framed):
                        if (
                            pieces is None or receiver != run_receiver or framed != run_framed
                            or endpoint is not run_endpoint or congested != run_congested
                        ):
                            if offset > start and pieces is not None:
                                pieces.append(_piece(whole, start, offset, length, stride))
                            start = offset
                            pieces = []
                            run_receiver, run_endpoint, run_congested = receiver, endpoint, congested
                            run_framed = framed
                            found.append(tuple.__new__(Sifted, (receiver, endpoint, congested, pieces, framed)))
                    else:
                        if offset > start and pieces is not None:
                            pieces.append(_piece(whole, start, offset, length, stride))
                        other = _piece(whole, offset, end, length, end - offset)
                        found.append(tuple.__new__(Sifted, (-1, endpoint, congested, [other], False)))
                        start = end
                        pieces = None
                    offset = end
                if offset > start and pieces is not None:
                    pieces.append(_piece(whole, start, offset, length, stride))
            finally:
                PyBuffer_Release(&view)
        return found

    def open(self, Key key not None, pieces, bint congested, int coalesce, accept):
        pieces = tuple(pieces)
        cdef Views views = Views(len(pieces))
        cdef size_t count, made
        cdef cv_message *messages
        cdef cv_group *groups
        cdef EVP_CIPHER_CTX *context
        cdef uint8_t *plain
        cdef int result
        self.enter()
        try:
            count = self.split(views, pieces, True)
            messages = <cv_message *>self.messages.data
            plain = <uint8_t *>self.plain.data
            context = key.take()
            with nogil:
                result = cv_open(context, self.mac, messages, count, plain)
            key.busy = False
            if result:
                raise RuntimeError("libcrypto could not open")
            _accept_runs(messages, count, accept)
            groups = <cv_group *>self.groups.room(count * sizeof(cv_group))
            with nogil:
                made = cv_coalesce(messages, count, congested, coalesce, groups)
            return _frames(messages, groups, made)
        finally:
            self.busy = False

    def open_frames(self, Key key not None, pieces, bint ethernet, accept):
        pieces = tuple(pieces)
        cdef Views views = Views(len(pieces))
        cdef size_t count, i, size
        cdef cv_message *messages
        cdef EVP_CIPHER_CTX *context
        cdef int result
        cdef list plain = [], frames = []
        self.enter()
        try:
            count = self.split(views, pieces, False)
            messages = <cv_message *>self.messages.data
            # Each is decrypted to where it stays.
            for i in range(count):
                size = max(messages[i].sealed_bytes, <uint32_t>CV_OVERHEAD_BYTES) - CV_OVERHEAD_BYTES
                data = PyBytes_FromStringAndSize(NULL, size)
                messages[i].packet = <uint8_t *>PyBytes_AS_STRING(data)
                plain.append(data)
            context = key.take()
            with nogil:
                result = cv_whole_open(context, self.mac, messages, count, ethernet)
            key.busy = False
            if result:
                raise RuntimeError("libcrypto could not open")
            _accept_runs(messages, count, accept)
            for i in range(count):
                if messages[i].accepted and messages[i].bytes:
                    size = messages[i].packet - <const uint8_t *>PyBytes_AS_STRING(plain[i])
                    frames.append(memoryview(plain[i])[size - CV_VNET_BYTES:size + messages[i].bytes])
            return frames
        finally:
            self.busy = False

    cdef size_t split(self, Views views, tuple pieces, bint plain) except? 0:
        """Fill ``messages``, and make room in ``plain`` if that is wanted, for all datagrams of the pieces."""
        cdef size_t count = 0, total = 0, size, stride, start, i = 0
        cdef Py_buffer *view
        cdef cv_message *messages
        for data, segment_bytes in pieces:
            if segment_bytes <= 0:
                raise ValueError("segment_bytes must be greater than 0")
            size = views.add(data).len
            stride = segment_bytes
            count += (size + stride - 1) // stride
            total += size
        messages = <cv_message *>self.messages.room(count * sizeof(cv_message))
        if plain:
            self.plain.room(total + CV_OPEN_EXTRA_BYTES * count)
        for number in range(len(pieces)):
            view = &views.views[<size_t>number]
            size, stride, start = view.len, pieces[number][1], 0
            while start < size:
                messages[i].sealed = <const uint8_t *>view.buf + start
                messages[i].sealed_bytes = <uint32_t>min(stride, size - start)
                messages[i].has_head = start >= <size_t>CV_CHUNK_HEAD_BYTES
                start += stride
                i += 1
        return count


include "native/runs.pxi"
include "native/calls.pxi"
