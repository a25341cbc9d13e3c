# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# Included by _native.pyx: what owns memory.


cdef class Key:
    """A session key inside libcrypto, ready for use in either direction."""

    cdef EVP_CIPHER_CTX *context
    cdef bint busy

    def __cinit__(self, bytes raw not None):
        self.context = NULL
        self.busy = False
        if len(raw) != CV_AEAD_KEY_BYTES:
            raise ValueError(f"a session key has {CV_AEAD_KEY_BYTES} bytes")
        self.context = cv_aead_key(<const uint8_t *>PyBytes_AS_STRING(raw))
        if self.context == NULL:
            raise RuntimeError("libcrypto cannot do ChaCha20")

    cdef EVP_CIPHER_CTX *take(self) except NULL:
        """The context, for one caller at a time: it holds the state of the message under way."""
        if self.context == NULL:
            raise ValueError("the key was forgotten")
        if self.busy:
            raise RuntimeError("the key is in use by another thread")
        self.busy = True
        return self.context

    def forget(self):
        """Overwrite the key (libcrypto does when it frees a context)."""
        if self.busy:
            raise RuntimeError("the key is in use by another thread")
        EVP_CIPHER_CTX_free(self.context)
        self.context = NULL

    def __dealloc__(self):
        EVP_CIPHER_CTX_free(self.context)


cdef class Views:
    """Buffers of other objects, held until this one goes."""

    cdef Py_buffer *views
    cdef size_t count

    def __cinit__(self, size_t room):
        self.count = 0
        self.views = <Py_buffer *>malloc((room or 1) * sizeof(Py_buffer))
        if self.views == NULL:
            raise MemoryError

    cdef Py_buffer *add(self, object data) except NULL:
        cdef Py_buffer *view = &self.views[self.count]
        PyObject_GetBuffer(data, view, PyBUF_SIMPLE)
        self.count += 1
        return view

    def __dealloc__(self):
        cdef size_t i
        for i in range(self.count):
            PyBuffer_Release(&self.views[i])
        free(self.views)


cdef class Memory:
    """Memory that only grows, so that a data path that runs asks for none. It starts at a line of the cache."""

    cdef void *data
    cdef size_t size

    def __cinit__(self):
        self.data = NULL
        self.size = 0

    cdef void *room(self, size_t size) except NULL:
        """At least ``size`` bytes; what was in them is gone when there have to be more."""
        cdef void *data
        size = size or 1
        if size > self.size or not CV_TO_SPARE:
            if CV_TO_SPARE:
                size += size // 2 + 64
            if posix_memalign(&data, 64, size):
                raise MemoryError
            free(self.data)
            self.data = data
            self.size = size
        return self.data

    def __dealloc__(self):
        free(self.data)
