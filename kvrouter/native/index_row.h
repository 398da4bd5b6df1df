/* Rows of hashes whose blocks are changed one after the other, as the memory likes it: what a change will touch is asked
 * for before its turn comes. Tells nothing of what the change is. */
#ifndef KVR_INDEX_ROW_H
#define KVR_INDEX_ROW_H

#include "index_core.h"

/* How far ahead of its turn a block's line is asked for, and the one behind it where that one is full. */
#define KVR_ASKED_BLOCKS 32
#define KVR_SETTLED_BLOCKS 6

/* A hash that was asked for. */
struct kvr_asked {
    uint64_t key;
    struct kvr_slot *home;
};

/* Hashes that are changed one after the other. */
struct kvr_row {
    const struct kvr_index *index;
    const uint64_t *hashes;
    size_t count;
    size_t moves; /* of the table's slots, when the homes were found */
    struct kvr_asked asked[KVR_ASKED_BLOCKS];
};

KVR_INLINE void kvr_row_ask(struct kvr_row *row, size_t at)
{
    struct kvr_asked *asked = &row->asked[at % KVR_ASKED_BLOCKS];
    asked->key = kvr_index_key(row->index, row->hashes[at]);
    asked->home = kvr_table_ask(&row->index->table, asked->key);
}

static inline void kvr_row_open(struct kvr_row *row, const struct kvr_index *index, const uint64_t *hashes,
                                size_t count)
{
    row->index = index;
    row->hashes = hashes;
    row->count = count;
    row->moves = index->table.moves;
    for (size_t at = 0; at < count && at < KVR_ASKED_BLOCKS; at++)
        kvr_row_ask(row, at);
}

/* Find the homes anew of what has been asked for and not had its turn. */
static inline void kvr_row_find_homes(struct kvr_row *row, size_t from)
{
    row->moves = row->index->table.moves;
    for (size_t at = from; at < row->count && at < from + KVR_ASKED_BLOCKS; at++) {
        struct kvr_asked *asked = &row->asked[at % KVR_ASKED_BLOCKS];
        asked->home = kvr_table_home(&row->index->table, asked->key);
    }
}

/* The scattered hash whose turn it is, and where the search for it begins. */
KVR_INLINE struct kvr_asked kvr_row_next(struct kvr_row *row, size_t at)
{
    if (row->moves != row->index->table.moves)
        kvr_row_find_homes(row, at);
    struct kvr_asked next = row->asked[at % KVR_ASKED_BLOCKS];
    if (at + KVR_ASKED_BLOCKS < row->count)
        kvr_row_ask(row, at + KVR_ASKED_BLOCKS);
    if (at + KVR_SETTLED_BLOCKS < row->count) {
        const struct kvr_slot *home = row->asked[(at + KVR_SETTLED_BLOCKS) % KVR_ASKED_BLOCKS].home;
        KVR_PREFETCH(home + (home[KVR_HOME_SLOTS - 1].value != 0) * KVR_HOME_SLOTS);
    }
    return next;
}

#endif
