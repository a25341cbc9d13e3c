# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# Included by _native.pyx: runs of frames and of messages as Python has them.

cdef object _flow(const uint8_t *address, size_t address_bytes, unsigned ecn, size_t start, size_t stop, uint64_t segments):
    destination = PyBytes_FromStringAndSize(<const char *>address, address_bytes) if address_bytes else None
    return tuple.__new__(Flow, (destination, ecn, start, stop, segments))


cdef inline bint _is_session(const uint8_t *data, Py_ssize_t length, uint32_t *receiver, bint *framed) noexcept:
    """Whether this is a data message or a frame message by length, type and reserved bytes (paper section 5.4.6)."""
    if length < CV_OVERHEAD_BYTES or data[1] or data[2] or data[3]:
        return False
    framed[0] = data[0] == CV_WHOLE_TYPE
    if not framed[0] and data[0] != DATA_TYPE:
        return False
    receiver[0] = data[4] | <uint32_t>data[5] << 8 | <uint32_t>data[6] << 16 | <uint32_t>data[7] << 24
    return True


cdef object _piece(object whole, Py_ssize_t start, Py_ssize_t end, Py_ssize_t length, Py_ssize_t stride):
    data = whole if start == 0 and end == length else memoryview(whole)[start:end]
    return tuple.__new__(Piece, (data, stride))


cdef int _accept_runs(cv_message *messages, size_t count, object accept) except -1:
    """Ask about each run of authentic messages with consecutive counters and one source address."""
    cdef size_t start = 0, stop, i
    cdef uint64_t mask, size
    cdef const uint8_t *source
    cdef const uint8_t *other
    cdef size_t source_bytes
    while start < count:
        if not messages[start].authentic:
            start += 1
            continue
        source_bytes = cv_message_source(&messages[start], &source)
        size = messages[start].sealed_bytes
        stop = start + 1
        while (
            stop < count and stop - start < <size_t>RUN and messages[stop].authentic
            and messages[stop].counter == messages[start].counter + (stop - start)
            and messages[stop].counter > messages[start].counter
            and (messages[stop].plain_bytes == 0) == (messages[start].plain_bytes == 0)
            and cv_message_source(&messages[stop], &other) == source_bytes
            and (not source_bytes or memcmp(source, other, source_bytes) == 0)
        ):
            size += messages[stop].sealed_bytes
            stop += 1
        if source_bytes:
            address = PyBytes_FromStringAndSize(<const char *>source, source_bytes)
        else:
            address = b"" if messages[start].plain_bytes else None
        mask = accept(messages[start].counter, stop - start, size, address)
        for i in range(start, stop):
            messages[i].accepted = mask >> (i - start) & 1
        start = stop
    return 0


cdef list _frames(cv_message *messages, cv_group *groups, size_t count):
    cdef list frames = []
    cdef size_t i
    for i in range(count):
        frame = PyBytes_FromStringAndSize(NULL, CV_VNET_BYTES + groups[i].bytes)
        cv_group_write(messages, &groups[i], <uint8_t *>PyBytes_AS_STRING(frame))
        frames.append(frame)
    return frames
