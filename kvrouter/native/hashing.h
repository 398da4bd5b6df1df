/* Hashing of blocks for the other parts of the core; `hashing.c` says what the values are. */
#ifndef KVR_HASHING_H
#define KVR_HASHING_H

#include "python_abi.h"
#include "xxh3.h"

#define KVR_BLOCK_SIZE_MAX 65536

struct kvr_parent {
    int present;
    uint64_t hash;
};

struct kvr_shape {
    Py_ssize_t block_size;
    /* Tokens after a block that its hash also covers. */
    Py_ssize_t lookahead;
};

/* Read arguments; 0, or -1 with an exception set. */
int kvr_read_uint64(PyObject *object, uint64_t *value);
int kvr_read_parent(PyObject *object, struct kvr_parent *parent);
int kvr_read_shape(PyObject *block_size, PyObject *lookahead, struct kvr_shape *shape);

/* How many whole blocks, each with its lookahead, lie in so many bytes of words. */
Py_ssize_t kvr_count_blocks(Py_ssize_t bytes, Py_ssize_t block_size, Py_ssize_t lookahead);

/* Block hashes of `count` blocks that begin every `stride` bytes and are `width` bytes wide. */
void kvr_hash_blocks(const uint8_t *words, Py_ssize_t count, size_t stride, size_t width, uint64_t seed,
                     uint64_t *hashes);

/* Turn block hashes into sequence hashes, in place. */
void kvr_chain(const struct kvr_parent *parent, uint64_t *hashes, Py_ssize_t count);

#endif
