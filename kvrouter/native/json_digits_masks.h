/* What is found by looking at 64 characters of a JSON array; see `json_digits_loop.h`. */
#ifndef KVR_JSON_DIGITS_MASKS_H
#define KVR_JSON_DIGITS_MASKS_H

#include "json_digits.h"

#define BLOCK 64
#define CHUNK (16 * BLOCK)
/* Ends of numbers that are noted without asking whether there are so many: a block of five digits each has eleven. */
#define AT_ONCE 12

struct masks {
    uint64_t others; /* no digits */
    uint64_t commas;
    uint64_t zeros;
};

/* Whether the processor has what the reader needs that is compiled for it; 0 where there is none. */
int kvr_digits_has_avx2(void);

/* As `kvr_digits_read`. */
int kvr_digits_read_avx2(const struct kvr_digits *digits, size_t count, uint8_t *words);

#endif
