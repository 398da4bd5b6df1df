/* Rows of hashes whose blocks are changed one after the other, as the memory likes it: what a change will touch is asked
 * for before its turn comes. Tells nothing of what the change is. */
#ifndef KVR_INDEX_ROW_H
#define KVR_INDEX_ROW_H

#include "index_core.h"

/* How far ahead of its turn a block's slot is asked for. */
#define KVR_ASKED_BLOCKS 16

/* Hashes that are changed one after the other. Their slots are asked for some time before their turn; in half of that
 * time the line behind where it will be touched, and in half of what is left the one behind that. */
struct kvr_row {
    const struct kvr_index *index;
    const uint64_t *hashes;
    size_t count;
    uint64_t keys[KVR_ASKED_BLOCKS]; /* of those that have been asked for */
};

KVR_INLINE void kvr_row_ask(struct kvr_row *row, size_t at)
{
    uint64_t key = kvr_index_key(row->index, row->hashes[at]);
    row->keys[at % KVR_ASKED_BLOCKS] = key;
    kvr_table_prefetch(&row->index->table, key);
}

KVR_INLINE void kvr_row_ask_behind(struct kvr_row *row, size_t at, int second)
{
    kvr_index_prefetch_behind(row->index, row->keys[at % KVR_ASKED_BLOCKS], second);
}

static inline void kvr_row_open(struct kvr_row *row, const struct kvr_index *index, const uint64_t *hashes,
                                size_t count)
{
    row->index = index;
    row->hashes = hashes;
    row->count = count;
    for (size_t at = 0; at < count && at < KVR_ASKED_BLOCKS; at++)
        kvr_row_ask(row, at);
}

/* The scattered hash whose turn it is. */
KVR_INLINE uint64_t kvr_row_next(struct kvr_row *row, size_t at)
{
    uint64_t key = row->keys[at % KVR_ASKED_BLOCKS];
    if (at + KVR_ASKED_BLOCKS < row->count)
        kvr_row_ask(row, at + KVR_ASKED_BLOCKS);
    if (at + KVR_ASKED_BLOCKS / 2 < row->count)
        kvr_row_ask_behind(row, at + KVR_ASKED_BLOCKS / 2, 0);
    if (at + KVR_ASKED_BLOCKS / 4 < row->count)
        kvr_row_ask_behind(row, at + KVR_ASKED_BLOCKS / 4, 1);
    return key;
}

#endif
