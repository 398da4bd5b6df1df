/* A table from the engine hashes of one rank to what they name, in as little memory as goes.
 *
 * It is built like the index's table (`index_table.h`): segments, each for the hashes that begin with the same bits, are
 * sorted arrays with gaps, so nothing ever takes longer than copying one segment. There is one row for each block and
 * rank, so rows are packed and segments are fuller. A home is a stripe of two cache lines with seven rows: the first
 * line has what a search looks at, the second what the hashes name.
 */
#ifndef KVR_ALIAS_TABLE_H
#define KVR_ALIAS_TABLE_H

#include "index_mix.h"
#include "memory.h"
#include <stddef.h>

#define KVR_STRIPE_ROWS 7
#define KVR_STRIPE_BYTES 128

struct kvr_stripe {
    uint64_t hashes[KVR_STRIPE_ROWS]; /* scattered engine hashes in order; behind those that are taken UINT64_MAX */
    uint8_t copies[KVR_STRIPE_ROWS];  /* the number of each one's copies (`ingest_copies.h`), 0 where vacant */
    uint8_t taken;
    uint64_t keys[KVR_STRIPE_ROWS]; /* our sequence hashes */
    uint64_t unused;
};

/* A row is named by the address of its hash. */

struct kvr_rows {
    struct kvr_stripe *stripes;
    uint32_t capacity; /* stripes that are homes; behind them a few more take what is pushed over the end */
    uint32_t depth;    /* how many first bits its hashes have in common */
};

struct kvr_aliases {
    struct kvr_rows *directory; /* 2^bits entries; a segment of lesser depth has several */
    uint32_t bits;
    size_t deepest; /* segments whose depth is `bits`: without any, half of the directory does */
    size_t used;
    size_t *account;
};

KVR_INLINE struct kvr_stripe *kvr_stripe_of(const uint64_t *row)
{
    return (struct kvr_stripe *)((uintptr_t)row & ~(uintptr_t)(KVR_STRIPE_BYTES - 1));
}

KVR_INLINE uint64_t kvr_row_hash(const uint64_t *row)
{
    return *row;
}

KVR_INLINE uint64_t kvr_row_key(const uint64_t *row)
{
    const struct kvr_stripe *stripe = kvr_stripe_of(row);
    return stripe->keys[row - stripe->hashes];
}

KVR_INLINE uint8_t kvr_row_copies(const uint64_t *row)
{
    const struct kvr_stripe *stripe = kvr_stripe_of(row);
    return stripe->copies[row - stripe->hashes];
}

KVR_INLINE void kvr_row_set_key(uint64_t *row, uint64_t key)
{
    struct kvr_stripe *stripe = kvr_stripe_of(row);
    stripe->keys[row - stripe->hashes] = key;
}

KVR_INLINE void kvr_row_set_copies(uint64_t *row, uint8_t copies)
{
    struct kvr_stripe *stripe = kvr_stripe_of(row);
    stripe->copies[row - stripe->hashes] = copies;
}

/* 0, or -1 when there is no memory. */
int kvr_aliases_open(struct kvr_aliases *aliases, size_t *account);
void kvr_aliases_close(struct kvr_aliases *aliases);

/* Add a hash, unless it is there (`is_new` says); its row, or NULL when there is no memory. Rows move. */
uint64_t *kvr_aliases_add(struct kvr_aliases *aliases, uint64_t hash, uint64_t key, uint8_t copies, int *is_new);

/* Take out a row that is present. Rows move. */
void kvr_aliases_drop(struct kvr_aliases *aliases, uint64_t *row);

/* Call `visit` for every row, which must not change the table; ends early when it returns something else than 0. */
typedef int kvr_visit_row(void *context, const uint64_t *row);
int kvr_aliases_visit(const struct kvr_aliases *aliases, kvr_visit_row *visit, void *context);

KVR_INLINE size_t kvr_aliases_place(const struct kvr_aliases *aliases, uint64_t hash)
{
    return (size_t)(hash >> 1 >> (63 - aliases->bits));
}

KVR_INLINE uint32_t kvr_rows_home(const struct kvr_rows *segment, uint64_t hash)
{
    return (uint32_t)((hash << segment->depth >> 32) * segment->capacity >> 32);
}

/* Where the search for a hash begins. */
KVR_INLINE struct kvr_stripe *kvr_aliases_home(const struct kvr_aliases *aliases, uint64_t hash)
{
    const struct kvr_rows *segment = aliases->directory + kvr_aliases_place(aliases, hash);
    return segment->stripes + kvr_rows_home(segment, hash);
}

KVR_INLINE void kvr_aliases_prefetch(const struct kvr_aliases *aliases, uint64_t hash)
{
    const struct kvr_stripe *home = kvr_aliases_home(aliases, hash);
    KVR_PREFETCH(home);
    KVR_PREFETCH(home->keys);
}

/* How many hashes of a stripe are smaller; counted without a guess that may be wrong. */
KVR_INLINE uint32_t kvr_stripe_below(const struct kvr_stripe *stripe, uint64_t hash)
{
    uint32_t below = 0;
    for (uint32_t at = 0; at < KVR_STRIPE_ROWS; at++)
        below += stripe->hashes[at] < hash;
    return below;
}

/* The row of a hash, or NULL. */
KVR_INLINE uint64_t *kvr_aliases_find(const struct kvr_aliases *aliases, uint64_t hash)
{
    struct kvr_stripe *stripe = kvr_aliases_home(aliases, hash);
    uint32_t at = kvr_stripe_below(stripe, hash);
    while (at == KVR_STRIPE_ROWS)
        at = kvr_stripe_below(++stripe, hash);
    return stripe->hashes[at] == hash && stripe->copies[at] != 0 ? &stripe->hashes[at] : NULL;
}

#endif
