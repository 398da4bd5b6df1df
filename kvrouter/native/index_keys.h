/* Hashes as callers have them: an array of 64-bit numbers, used where it lies, any sequence of integers, or the tokens
 * that are hashed as far as somebody asks. */
#ifndef KVR_INDEX_KEYS_H
#define KVR_INDEX_KEYS_H

#include "hashing.h"
#include "python_abi.h"
#include <stddef.h>
#include <stdint.h>

#define KVR_SMALL_KEYS 64

/* A prompt's tokens, as 32-bit words. */
struct kvr_words {
    const uint8_t *data;
    struct kvr_shape shape;
    uint64_t seed;
    size_t hashed; /* blocks so far */
    uint64_t *hashes;
};

struct kvr_keys {
    size_t count;
    const uint64_t *array; /* NULL: they are still Python's integers, in `list` */
    PyObject *list;
    struct kvr_words *words;
    uint64_t *copy;
    int viewed;
    Py_buffer view;
    uint64_t small[KVR_SMALL_KEYS];
};

/* Read `hashes`, all of them: 0, or -1 with an exception set. May run any Python code. */
int kvr_keys_open(struct kvr_keys *keys, PyObject *hashes);

/* The same, but integers in a list are left there until they are asked for; matching mostly ends early. */
int kvr_keys_open_lazily(struct kvr_keys *keys, PyObject *hashes);

/* The whole blocks of `length` bytes of words, which stay where they are, are hashed as matching gets to them: 0, or -1
 * with an exception set. */
int kvr_keys_open_words(struct kvr_keys *keys, struct kvr_words *words, size_t length);

const uint64_t *kvr_keys_read(const struct kvr_keys *keys, size_t start, size_t count, uint64_t *room);

/* `count` hashes from `start` on, in place or in `room`. Runs no Python code. NULL if one is not an integer of Python's
 * own: then read all with kvr_keys_fetch and begin again. */
KVR_INLINE const uint64_t *kvr_keys_at(const struct kvr_keys *keys, size_t start, size_t count, uint64_t *room)
{
    return keys->array != NULL ? keys->array + start : kvr_keys_read(keys, start, count, room);
}

/* Read what was left in the list; 0, or -1 with an exception set. */
int kvr_keys_fetch(struct kvr_keys *keys);

void kvr_keys_close(struct kvr_keys *keys);

#endif
