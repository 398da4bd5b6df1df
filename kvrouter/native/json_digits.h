/* The inside of a JSON array of token ids, between its brackets, to token words. */
#ifndef KVR_JSON_DIGITS_H
#define KVR_JSON_DIGITS_H

#include "memory.h"
#include "python_abi.h"
#include <stddef.h>

/* A piece of a text that begins at `begin`: from `at` up to, not including, `close`. */
struct kvr_digits {
    const uint8_t *begin;
    const uint8_t *at;
    const uint8_t *close;
};

/* How many numbers there are, if these are numbers with commas between them: one more than commas. */
size_t kvr_digits_count(const struct kvr_digits *digits);

/* Whether this is nothing but white space. */
int kvr_digits_none(const struct kvr_digits *digits);

/* Read them into `words`, which has room for `kvr_digits_count`. 0, or -1 where the text is anything else than `count`
 * plain integers 0..2^32-1 with commas and white space between them. */
int kvr_digits_read(const struct kvr_digits *digits, size_t count, uint8_t *words);

/* Find out what the processor can; called once, before anything is read. */
void kvr_digits_choose(void);

/* The words as Python's bytes; NULL without an exception where the text is anything else. Other threads may run
 * meanwhile, if they cannot change the text. */
PyObject *kvr_digits_words(const struct kvr_digits *digits, int may_unlock);

/* Where the value of the first `key` with a colon after it begins; the end of the text where there is none. `key` is as
 * it stands in the text, with its quotes. Whether it is the key that was meant, or part of a text or of an inner
 * object, is not looked at. */
Py_ssize_t kvr_find_value(const Py_buffer *text, const Py_buffer *key);

#endif
