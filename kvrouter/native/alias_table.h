/* A table from the engine hashes of one rank to what they name, in as little memory as goes.
 *
 * It is built like the index's table (`index_table.h`): segments, each for the hashes that begin with the same bits, are
 * sorted arrays with gaps, so nothing ever takes longer than copying one segment. Its rows are packed and its segments
 * are fuller, because there is one row for each block and rank, and they are looked at much less often.
 */
#ifndef KVR_ALIAS_TABLE_H
#define KVR_ALIAS_TABLE_H

#include "index_mix.h"
#include "memory.h"
#include <stddef.h>

/* A row: the scattered engine hash, our sequence hash, and the number of its copies (`ingest_copies.h`), 0 where vacant.
 * Rows lie unaligned, without a gap. */
#define KVR_ROW_BYTES 18

struct kvr_rows {
    uint8_t *rows;
    uint32_t capacity; /* of homes; behind them a few rows more take what is pushed over the end */
    uint32_t depth;    /* how many first bits its hashes have in common */
};

struct kvr_aliases {
    struct kvr_rows *directory; /* 2^bits entries; a segment of lesser depth has several */
    uint32_t bits;
    size_t deepest; /* segments whose depth is `bits`: without any, half of the directory does */
    size_t used;
    size_t *account;
};

KVR_INLINE uint64_t kvr_row_hash(const uint8_t *row)
{
    uint64_t hash;
    memcpy(&hash, row, sizeof hash);
    return hash;
}

KVR_INLINE uint64_t kvr_row_key(const uint8_t *row)
{
    uint64_t key;
    memcpy(&key, row + 8, sizeof key);
    return key;
}

KVR_INLINE uint16_t kvr_row_copies(const uint8_t *row)
{
    uint16_t copies;
    memcpy(&copies, row + 16, sizeof copies);
    return copies;
}

KVR_INLINE void kvr_row_set_key(uint8_t *row, uint64_t key)
{
    memcpy(row + 8, &key, sizeof key);
}

KVR_INLINE void kvr_row_set_copies(uint8_t *row, uint16_t copies)
{
    memcpy(row + 16, &copies, sizeof copies);
}

/* 0, or -1 when there is no memory. */
int kvr_aliases_open(struct kvr_aliases *aliases, size_t *account);
void kvr_aliases_close(struct kvr_aliases *aliases);

/* Add a hash, unless it is there (`is_new` says); its row, or NULL when there is no memory. Rows move. */
uint8_t *kvr_aliases_add(struct kvr_aliases *aliases, uint64_t hash, uint64_t key, uint16_t copies, int *is_new);

/* Take out a row that is present. Rows move. */
void kvr_aliases_drop(struct kvr_aliases *aliases, uint8_t *row);

/* Call `visit` for every row, which must not change the table; ends early when it returns something else than 0. */
typedef int kvr_visit_row(void *context, const uint8_t *row);
int kvr_aliases_visit(const struct kvr_aliases *aliases, kvr_visit_row *visit, void *context);

KVR_INLINE size_t kvr_aliases_place(const struct kvr_aliases *aliases, uint64_t hash)
{
    return (size_t)(hash >> 1 >> (63 - aliases->bits));
}

KVR_INLINE uint32_t kvr_rows_home(const struct kvr_rows *segment, uint64_t hash)
{
    return (uint32_t)((hash << segment->depth >> 32) * segment->capacity >> 32);
}

/* Where the search for a hash begins; worth a prefetch. */
KVR_INLINE uint8_t *kvr_aliases_home(const struct kvr_aliases *aliases, uint64_t hash)
{
    const struct kvr_rows *segment = aliases->directory + kvr_aliases_place(aliases, hash);
    return segment->rows + (size_t)kvr_rows_home(segment, hash) * KVR_ROW_BYTES;
}

/* The row of a hash, or NULL. */
KVR_INLINE uint8_t *kvr_aliases_find(const struct kvr_aliases *aliases, uint64_t hash)
{
    uint8_t *row = kvr_aliases_home(aliases, hash);
    while (kvr_row_hash(row) < hash)
        row += KVR_ROW_BYTES;
    return kvr_row_hash(row) == hash && kvr_row_copies(row) != 0 ? row : NULL;
}

#endif
