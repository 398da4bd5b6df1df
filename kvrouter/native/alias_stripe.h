/* A stripe of a table of aliases (`alias_table.h`): two cache lines with up to eight rows in any order, of which those that
 * are taken come first.
 *
 * The first line has what a search looks at, the second what the hashes name. A row keeps 56 bits of its hash: the other
 * eight follow from the stripe that it is in. In a segment that has too few stripes for that, a stripe has one row less,
 * and in its place the first byte of each hash.
 */
#ifndef KVR_ALIAS_STRIPE_H
#define KVR_ALIAS_STRIPE_H

#include "index_mix.h"
#include "memory.h"
#include <stddef.h>

#define KVR_STRIPE_ROWS 8u
#define KVR_STRIPE_BYTES 128u
#define KVR_REST_BYTES 6u

struct kvr_stripe {
    uint8_t tags[KVR_STRIPE_ROWS]; /* the last byte of each hash, so that all can be looked at at once */
    uint8_t taken;
    uint8_t away;                                      /* how many of its own are elsewhere */
    uint8_t guests;                                    /* bit r: the home of row r is elsewhere */
    uint8_t copies[KVR_STRIPE_ROWS / 2];               /* the number of each one's copies (`ingest_copies.h`), four bits */
    uint8_t rests[KVR_STRIPE_ROWS * KVR_REST_BYTES + 1]; /* six bytes of each hash, before its last */
    uint64_t keys[KVR_STRIPE_ROWS];                    /* our sequence hashes */
};

/* The number of copies is too large for a row. */
#define KVR_ROW_COPIES_MAX 15u
/* It is not known any more how many are elsewhere. */
#define KVR_STRIPE_AWAY_MAX UINT8_MAX

/* Where there is a row less: the first bytes of the hashes, in place of the rest of the last one. */
#define KVR_TOPS_AT ((KVR_STRIPE_ROWS - 1) * KVR_REST_BYTES)

/* -- rows: named by the address of their tag ---------------------------------------------------------------------- */

KVR_INLINE struct kvr_stripe *kvr_stripe_of(const uint8_t *row)
{
    return (struct kvr_stripe *)((uintptr_t)row & ~(uintptr_t)(KVR_STRIPE_BYTES - 1));
}

KVR_INLINE uint32_t kvr_row_place(const uint8_t *row)
{
    return (uint32_t)((uintptr_t)row & (KVR_STRIPE_BYTES - 1));
}

KVR_INLINE uint64_t kvr_row_key(const uint8_t *row)
{
    return kvr_stripe_of(row)->keys[kvr_row_place(row)];
}

KVR_INLINE void kvr_row_set_key(uint8_t *row, uint64_t key)
{
    kvr_stripe_of(row)->keys[kvr_row_place(row)] = key;
}

KVR_INLINE uint32_t kvr_stripe_copies(const struct kvr_stripe *stripe, uint32_t at)
{
    return stripe->copies[at / 2] >> at % 2 * 4 & KVR_ROW_COPIES_MAX;
}

KVR_INLINE void kvr_stripe_set_copies(struct kvr_stripe *stripe, uint32_t at, uint32_t copies)
{
    uint32_t others = KVR_ROW_COPIES_MAX << 4 >> at % 2 * 4;
    stripe->copies[at / 2] = (uint8_t)((stripe->copies[at / 2] & others) | copies << at % 2 * 4);
}

KVR_INLINE uint32_t kvr_row_copies(const uint8_t *row)
{
    return kvr_stripe_copies(kvr_stripe_of(row), kvr_row_place(row));
}

KVR_INLINE void kvr_row_set_copies(uint8_t *row, uint32_t copies)
{
    kvr_stripe_set_copies(kvr_stripe_of(row), kvr_row_place(row), copies);
}

KVR_INLINE uint64_t kvr_stripe_rest(const struct kvr_stripe *stripe, uint32_t at)
{
    const uint8_t *rest = stripe->rests + at * KVR_REST_BYTES;
    return kvr_load32(rest) | (uint64_t)kvr_load16(rest + 4) << 32;
}

/* The last 56 bits of the hash of a row. */
KVR_INLINE uint64_t kvr_stripe_known(const struct kvr_stripe *stripe, uint32_t at)
{
    return kvr_stripe_rest(stripe, at) << 8 | stripe->tags[at];
}

/* Ask for both lines. */
KVR_INLINE void kvr_stripe_prefetch(const struct kvr_stripe *stripe)
{
    KVR_PREFETCH(stripe);
    KVR_PREFETCH(stripe->keys);
}

/* -- searching ---------------------------------------------------------------------------------------------------- */

/* The row of a hash in a stripe, or NULL; of a guest or not. `tops` says whether stripes have first bytes. Tags are compared
 * all at once; mostly one of them is the same, or none. */
KVR_INLINE uint8_t *kvr_stripe_find(struct kvr_stripe *stripe, uint64_t hash, uint32_t is_guest, int tops)
{
    const uint64_t ones = 0x0101010101010101u;
    uint64_t differ = kvr_load64(stripe->tags) ^ (hash & UINT8_MAX) * ones, rest = hash << 8 >> 16;
    /* The top bit of every byte that is 0, and maybe of some that are above one. */
    uint64_t same = (differ - ones) & ~differ & ones << 7;
    for (; same; same &= same - 1) {
        uint32_t at = (uint32_t)kvr_lowest_bit(same) / 8;
        if (kvr_stripe_rest(stripe, at) == rest && (stripe->guests >> at & 1) == is_guest && at < stripe->taken &&
            (!tops || stripe->rests[KVR_TOPS_AT + at] == hash >> 56))
            return &stripe->tags[at];
    }
    return NULL;
}

/* -- changing ----------------------------------------------------------------------------------------------------- */

KVR_INLINE void kvr_stripe_write(struct kvr_stripe *stripe, uint32_t at, uint64_t hash, uint64_t key, uint32_t copies,
                                 int tops)
{
    uint8_t *rest = stripe->rests + at * KVR_REST_BYTES;
    stripe->tags[at] = (uint8_t)hash;
    kvr_store32(rest, (uint32_t)(hash >> 8));
    kvr_store16(rest + 4, (uint16_t)(hash >> 40));
    stripe->keys[at] = key;
    kvr_stripe_set_copies(stripe, at, copies);
    if (tops)
        stripe->rests[KVR_TOPS_AT + at] = (uint8_t)(hash >> 56);
}

/* One row more, in a stripe that has room; behind the last one no bit of `guests` is set. */
KVR_INLINE uint8_t *kvr_stripe_append(struct kvr_stripe *stripe, uint64_t hash, uint64_t key, uint32_t copies,
                                      uint32_t is_guest, int tops)
{
    uint32_t at = stripe->taken++;
    kvr_stripe_write(stripe, at, hash, key, copies, tops);
    if (is_guest)
        stripe->guests = (uint8_t)(stripe->guests | 1u << at);
    return &stripe->tags[at];
}

KVR_INLINE void kvr_stripe_set_guest(struct kvr_stripe *stripe, uint32_t at, uint32_t is_guest)
{
    stripe->guests = (uint8_t)((stripe->guests & ~(1u << at)) | is_guest << at);
}

/* Copy a row, but not whether it is a guest. */
KVR_INLINE void kvr_stripe_copy(struct kvr_stripe *to, uint32_t into, const struct kvr_stripe *from, uint32_t at, int tops)
{
    uint64_t top = tops ? from->rests[KVR_TOPS_AT + at] : 0;
    kvr_stripe_write(to, into, kvr_stripe_known(from, at) | top << 56, from->keys[at], kvr_stripe_copies(from, at), tops);
}

/* Take a row out of its stripe; the last one takes its place. */
KVR_INLINE void kvr_stripe_take_out(struct kvr_stripe *stripe, uint32_t at, int tops)
{
    uint32_t last = --stripe->taken;
    kvr_stripe_copy(stripe, at, stripe, last, tops);
    kvr_stripe_set_guest(stripe, at, stripe->guests >> last & 1u);
    kvr_stripe_set_guest(stripe, last, 0);
}

/* One more of a stripe's own, or one less (-1), is elsewhere. */
KVR_INLINE void kvr_stripe_count_away(struct kvr_stripe *home, int more)
{
    if (home->away < KVR_STRIPE_AWAY_MAX)
        home->away = (uint8_t)(home->away + more);
}

#endif
