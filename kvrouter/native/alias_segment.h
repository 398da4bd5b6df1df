/* One segment of a table of aliases: its stripes, its rows, and copying them to another; for `alias_table.c` alone. */
#ifndef KVR_ALIAS_SEGMENT_H
#define KVR_ALIAS_SEGMENT_H

#include "alias_table.h"

/* A segment of at most so many stripes is copied in some dozen us. */
#define KVR_ROWS_CAPACITY_MAX 1024

/* Stands right before the list of the pages of a segment. */
struct kvr_head {
    uint64_t first;        /* the least hash that it may have */
    uint32_t used;         /* rows */
    uint32_t full, sparse; /* so many rows, or less than so many, are a reason to copy them to another size */
    uint32_t page_count;
};

/* Rows to copy: of one segment, whose hashes are from..until. */
struct kvr_run {
    const struct kvr_rows *segment;
    uint64_t from, until;
};

static inline struct kvr_head *kvr_rows_head(const struct kvr_rows *segment)
{
    return (struct kvr_head *)(void *)segment->pages - 1;
}

static inline uint32_t kvr_rows_used(const struct kvr_rows *segment)
{
    return segment->capacity ? kvr_rows_head(segment)->used : 0;
}

static inline int kvr_rows_is_full(const struct kvr_rows *segment)
{
    return segment->capacity == 0 || kvr_rows_head(segment)->used >= kvr_rows_head(segment)->full;
}

static inline int kvr_rows_is_sparse(const struct kvr_rows *segment)
{
    return segment->capacity == 0 || kvr_rows_head(segment)->used < kvr_rows_head(segment)->sparse;
}

static inline struct kvr_run kvr_run_of(const struct kvr_rows *segment)
{
    struct kvr_run run = {segment, 0, UINT64_MAX};
    return run;
}

/* Whole pages, unless it is less than one. */
uint32_t kvr_rows_round_up(uint32_t capacity);
/* The capacity for so many rows, and some more. */
uint32_t kvr_rows_fitting(uint32_t used);

struct kvr_rows kvr_rows_none(uint32_t depth);
void kvr_rows_free(struct kvr_aliases *aliases, const struct kvr_rows *segment);

/* Fill a new segment of this depth, which begins with `first`, with the rows of the runs: of this capacity, and of a
 * larger one where they crowd; -1 when there is no memory. */
int kvr_rows_make(struct kvr_aliases *aliases, struct kvr_rows *segment, uint64_t first, uint32_t capacity,
                  const struct kvr_run *runs, int count);
uint32_t kvr_run_count(struct kvr_run run);

/* Put a hash, whose home is at `at` and full, where else there is room, or may be made; its row, or NULL. */
uint8_t *kvr_rows_squeeze(const struct kvr_rows *segment, uint32_t at, uint64_t hash, uint64_t key, uint32_t copies);

/* Put a hash into its segment, which does not have it; its row, or NULL if there is no room. Who calls counts it. */
KVR_INLINE uint8_t *kvr_rows_put(const struct kvr_rows *segment, uint64_t hash, uint64_t key, uint32_t copies)
{
    uint32_t at = kvr_rows_home(segment, hash);
    struct kvr_stripe *home = kvr_rows_stripe(segment, at);
    if (home->taken == segment->rows)
        return kvr_rows_squeeze(segment, at, hash, key, copies);
    return kvr_stripe_append(home, hash, key, copies, 0, segment->tops);
}

int kvr_rows_visit(const struct kvr_rows *segment, kvr_visit_row *visit, void *context);

#endif
