/* A table from the engine hashes of one rank to what they name, in as little memory as goes.
 *
 * It is divided like the index's table (`index_table.h`): segments, each for the hashes that begin with the same bits, so
 * nothing ever takes longer than copying one segment. There is one row for each block and rank, so rows are packed and
 * segments are full: they grow by a page or two of stripes (`alias_stripe.h`), which may lie anywhere, so that no gaps
 * are between them. A hash has a home stripe; where that is full it goes to its other one, and where that is full too, a
 * row of one of the two goes to its own other one. So nothing has neighbours that would have to move with it, and a
 * stripe knows how many of those whose home it is are elsewhere.
 *
 * Which stripe a row is in tells the first eight bits of its hash, where there are enough of them, so they are not kept.
 */
#ifndef KVR_ALIAS_TABLE_H
#define KVR_ALIAS_TABLE_H

#include "alias_stripe.h"
#include "index_pages.h"

#define KVR_PAGE_STRIPES_BITS 5
#define KVR_PAGE_STRIPES (1u << KVR_PAGE_STRIPES_BITS)

struct kvr_rows {
    struct kvr_stripe **pages;
    uint32_t capacity; /* stripes */
    uint16_t depth;    /* how many first bits its hashes have in common */
    uint8_t rows;      /* in a stripe */
    uint8_t tops;      /* whether stripes keep the first bytes of hashes */
};

struct kvr_aliases {
    struct kvr_rows *directory; /* 2^bits entries; a segment of lesser depth has several */
    uint32_t bits;
    size_t deepest; /* segments whose depth is `bits`: without any, half of the directory does */
    size_t used;
    size_t *account;
    struct kvr_pages *pages; /* that its stripes are of */
};

/* 0, or -1 when there is no memory. */
int kvr_aliases_open(struct kvr_aliases *aliases, size_t *account, struct kvr_pages *pages);
void kvr_aliases_close(struct kvr_aliases *aliases);

/* Add a hash, unless it is there (`is_new` says); its row, or NULL when there is no memory. Rows move. */
uint8_t *kvr_aliases_add(struct kvr_aliases *aliases, uint64_t hash, uint64_t key, uint32_t copies, int *is_new);

/* Take out the row of a hash, which is present. Rows move. */
void kvr_aliases_drop(struct kvr_aliases *aliases, uint8_t *row, uint64_t hash);

/* Call `visit` for every row, which must not change the table; ends early when it returns something else than 0. */
typedef int kvr_visit_row(void *context, const uint8_t *row, uint64_t hash);
int kvr_aliases_visit(const struct kvr_aliases *aliases, kvr_visit_row *visit, void *context);

KVR_INLINE size_t kvr_aliases_place(const struct kvr_aliases *aliases, uint64_t hash)
{
    return (size_t)(hash >> 1 >> (63 - aliases->bits));
}

KVR_INLINE const struct kvr_rows *kvr_aliases_segment(const struct kvr_aliases *aliases, uint64_t hash)
{
    return aliases->directory + kvr_aliases_place(aliases, hash);
}

KVR_INLINE struct kvr_stripe *kvr_rows_stripe(const struct kvr_rows *segment, uint32_t at)
{
    return segment->pages[at >> KVR_PAGE_STRIPES_BITS] + (at & (KVR_PAGE_STRIPES - 1));
}

KVR_INLINE uint32_t kvr_rows_home(const struct kvr_rows *segment, uint64_t hash)
{
    return (uint32_t)((hash << segment->depth >> 32) * segment->capacity >> 32);
}

/* How far behind its home, and one, the other stripe of a hash is. */
KVR_INLINE uint32_t kvr_rows_offset(const struct kvr_rows *segment, uint64_t hash)
{
    return (uint32_t)((hash & UINT32_MAX) * (uint64_t)(segment->capacity - 1) >> 32);
}

/* Where a hash of this home is that found no room there: never at home. A segment has at least two stripes, or no rows,
 * and then nobody follows this. */
KVR_INLINE uint32_t kvr_rows_other(const struct kvr_rows *segment, uint32_t home, uint64_t hash)
{
    uint32_t at = home + 1 + kvr_rows_offset(segment, hash);
    return at >= segment->capacity ? at - segment->capacity : at;
}

/* Where the search for a hash begins. */
KVR_INLINE struct kvr_stripe *kvr_aliases_home(const struct kvr_aliases *aliases, uint64_t hash)
{
    const struct kvr_rows *segment = kvr_aliases_segment(aliases, hash);
    return kvr_rows_stripe(segment, kvr_rows_home(segment, hash));
}

KVR_INLINE void kvr_aliases_prefetch(const struct kvr_aliases *aliases, uint64_t hash)
{
    kvr_stripe_prefetch(kvr_aliases_home(aliases, hash));
}

/* Ask for the other stripe of a hash as well, where its home, which should have come by now, tells that it may be looked
 * at: in a search, or when the hash is added. Which it is cannot be guessed, so it is asked for something in any case. */
KVR_INLINE void kvr_aliases_prefetch_other(const struct kvr_aliases *aliases, uint64_t hash)
{
    const struct kvr_rows *segment = kvr_aliases_segment(aliases, hash);
    uint32_t at = kvr_rows_home(segment, hash);
    const struct kvr_stripe *home = kvr_rows_stripe(segment, at);
    uint32_t is_needed = (home->away != 0) | (home->taken >= segment->rows);
    kvr_stripe_prefetch(kvr_rows_stripe(segment, kvr_rows_other(segment, at, hash) * is_needed + at * (1 - is_needed)));
}

KVR_INLINE uint8_t *kvr_rows_find(const struct kvr_rows *segment, uint64_t hash)
{
    uint32_t at = kvr_rows_home(segment, hash);
    struct kvr_stripe *home = kvr_rows_stripe(segment, at);
    uint8_t *row = kvr_stripe_find(home, hash, 0, segment->tops);
    if (row != NULL || home->away == 0)
        return row;
    return kvr_stripe_find(kvr_rows_stripe(segment, kvr_rows_other(segment, at, hash)), hash, 1, segment->tops);
}

/* The row of a hash, or NULL. */
KVR_INLINE uint8_t *kvr_aliases_find(const struct kvr_aliases *aliases, uint64_t hash)
{
    return kvr_rows_find(kvr_aliases_segment(aliases, hash), hash);
}

#endif
