/* A table from the engine hashes of one rank to what they name, in as little memory as goes.
 *
 * It is divided like the index's table (`index_table.h`): segments, each for the hashes that begin with the same bits, so
 * nothing ever takes longer than copying one segment. There is one row for each block and rank, so rows are packed and
 * segments are fuller. A stripe is two cache lines with seven rows in any order: the first line has what a search looks
 * at, the second what the hashes name. A hash has a home stripe; where that is full it goes to its other one, and where
 * that is full too, a row of one of the two goes to its own other one. So nothing has neighbours that would have to move
 * with it, and a stripe knows how many of those whose home it is are elsewhere: mostly none.
 */
#ifndef KVR_ALIAS_TABLE_H
#define KVR_ALIAS_TABLE_H

#include "index_mix.h"
#include "index_pages.h"
#include "memory.h"
#include <stddef.h>

#define KVR_STRIPE_ROWS 7
#define KVR_STRIPE_BYTES 128

struct kvr_stripe {
    uint64_t hashes[KVR_STRIPE_ROWS]; /* scattered engine hashes; those that are taken come first */
    uint8_t tags[KVR_STRIPE_ROWS];    /* the last byte of each, so that all can be looked at at once */
    uint8_t state;                    /* how many are taken; and how many of its own are elsewhere, from bit 3 on */
    uint64_t keys[KVR_STRIPE_ROWS];   /* our sequence hashes */
    uint8_t copies[KVR_STRIPE_ROWS];  /* the number of each one's copies (`ingest_copies.h`) */
    uint8_t unused;
};

#define KVR_STRIPE_AWAY_BIT 3
/* It is not known any more how many are elsewhere. */
#define KVR_STRIPE_AWAY_MAX (UINT8_MAX >> KVR_STRIPE_AWAY_BIT)

/* A row is named by the address of its hash. */

struct kvr_rows {
    struct kvr_stripe *stripes;
    uint32_t capacity;
    uint32_t depth;    /* how many first bits its hashes have in common */
};

struct kvr_aliases {
    struct kvr_rows *directory; /* 2^bits entries; a segment of lesser depth has several */
    uint32_t bits;
    size_t deepest; /* segments whose depth is `bits`: without any, half of the directory does */
    size_t used;
    size_t *account;
    struct kvr_pages *pages; /* that its segments are of */
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
int kvr_aliases_open(struct kvr_aliases *aliases, size_t *account, struct kvr_pages *pages);
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

KVR_INLINE uint32_t kvr_stripe_taken(const struct kvr_stripe *stripe)
{
    return stripe->state & ((1u << KVR_STRIPE_AWAY_BIT) - 1);
}

KVR_INLINE uint32_t kvr_stripe_away(const struct kvr_stripe *stripe)
{
    return stripe->state >> KVR_STRIPE_AWAY_BIT;
}

/* Where a hash of this home is that found no room there: never at home. A segment has at least two stripes, or no rows,
 * and then nobody follows this. */
KVR_INLINE uint32_t kvr_rows_other(const struct kvr_rows *segment, uint32_t home, uint64_t hash)
{
    uint32_t at = home + 1 + (uint32_t)((hash & UINT32_MAX) * (uint64_t)(segment->capacity - 1) >> 32);
    return at >= segment->capacity ? at - segment->capacity : at;
}

/* Ask for the other stripe of a hash as well, where its home, which should have come by now, tells that it may be looked
 * at: in a search, or when the hash is added. Which it is cannot be guessed, so it is asked for something in any case. */
KVR_INLINE void kvr_aliases_prefetch_other(const struct kvr_aliases *aliases, uint64_t hash)
{
    const struct kvr_rows *segment = aliases->directory + kvr_aliases_place(aliases, hash);
    uint32_t at = kvr_rows_home(segment, hash), is_needed = segment->stripes[at].state >= KVR_STRIPE_ROWS;
    const struct kvr_stripe *stripe = segment->stripes + kvr_rows_other(segment, at, hash) * is_needed + at * !is_needed;
    KVR_PREFETCH(stripe);
    KVR_PREFETCH(stripe->keys);
}

/* The row of a hash in a stripe, or NULL. Tags are compared all at once; mostly one of them is the same, or none. */
KVR_INLINE uint64_t *kvr_stripe_find(struct kvr_stripe *stripe, uint64_t hash)
{
    const uint64_t ones = 0x0101010101010101u;
    uint64_t differ = kvr_load64(stripe->tags) ^ (hash & UINT8_MAX) * ones;
    /* The top bit of every byte that is 0, and maybe of some that are above one. */
    uint64_t same = (differ - ones) & ~differ & ones << 7;
    for (same &= ((uint64_t)1 << 8 * kvr_stripe_taken(stripe)) - 1; same; same &= same - 1) {
        uint64_t *row = &stripe->hashes[kvr_lowest_bit(same) / 8];
        if (*row == hash)
            return row;
    }
    return NULL;
}

KVR_INLINE uint64_t *kvr_rows_find(const struct kvr_rows *segment, uint64_t hash)
{
    uint32_t home = kvr_rows_home(segment, hash);
    uint64_t *row = kvr_stripe_find(segment->stripes + home, hash);
    if (row != NULL || kvr_stripe_away(segment->stripes + home) == 0)
        return row;
    return kvr_stripe_find(segment->stripes + kvr_rows_other(segment, home, hash), hash);
}

/* The row of a hash, or NULL. */
KVR_INLINE uint64_t *kvr_aliases_find(const struct kvr_aliases *aliases, uint64_t hash)
{
    return kvr_rows_find(aliases->directory + kvr_aliases_place(aliases, hash), hash);
}

#endif
