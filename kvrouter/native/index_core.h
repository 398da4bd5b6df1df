/* The prefix index itself: sequence hashes to the sets of ranks that hold them, per tier. Knows nothing of Python's
 * objects; `index_type.c` is its Python face, and `kvrouter/index/reference.py` its specification. */
#ifndef KVR_INDEX_CORE_H
#define KVR_INDEX_CORE_H

#include "index_account.h"
#include "index_budget.h"
#include "index_mix.h"
#include "index_sets.h"
#include "index_share.h"
#include "index_stretches.h"

#define KVR_RANKS_MAX 4096
#define KVR_RANK_WORDS_MAX (KVR_RANKS_MAX / 64)
/* How far ahead of its use a slot is asked for. */
#define KVR_PREFETCH_BLOCKS 16

struct kvr_tier {
    char *name;
    size_t length;
    size_t *blocks; /* per rank */
    uint32_t ranks;
};

struct kvr_index {
    union {
        size_t bytes;
        struct kvr_account account;
    };
    uint64_t secret;
    struct kvr_pages pages; /* of the segments of the table */
    struct kvr_pages beside; /* of tables that others keep beside the index; they end before it does */
    struct kvr_table table; /* scattered sequence hash to the number of a set */
    struct kvr_sets sets;
    struct kvr_stretches stretches;
    struct kvr_tier *tiers;
    uint32_t tier_count;
    uint32_t rank_words; /* enough for every rank ever stored */
    uint64_t sweep_from; /* the next key to look at for stale slots */
    struct kvr_budget budget;
    struct kvr_share *share; /* NULL: nobody else reads it */
};

/* What 0 and -1 mean everywhere below: done, and no memory. An index without memory is still consistent. */

int kvr_index_open(struct kvr_index *index, uint64_t secret);
void kvr_index_close(struct kvr_index *index);

/* Let others read an index that is empty; the file is empty as well, and belongs to the index if this succeeds. -1 with
 * errno. `path` is where to remove it at the end, unless something else is there by then. */
int kvr_index_share(struct kvr_index *index, int file, const char *path, size_t capacity);

/* Leave what others read as it is, for good; the index goes on empty, and for itself. */
int kvr_index_freeze(struct kvr_index *index);

/* The number of a tier, or -1 if nothing was ever stored under that name. */
int kvr_index_find_tier(const struct kvr_index *index, const char *name, size_t length);
int kvr_index_add_tier(struct kvr_index *index, const char *name, size_t length);

/* Store blocks in any order. */
int kvr_index_store(struct kvr_index *index, uint32_t rank, const uint64_t *hashes, size_t count, uint32_t tier);

/* Store blocks each of which follows the one before it, the first one `*parent`, or nothing if that is NULL. Unless
 * `held` is NULL, it gets a 1 for each block that the rank had already. */
int kvr_index_store_chain(struct kvr_index *index, uint32_t rank, const uint64_t *parent, const uint64_t *hashes,
                          size_t count, uint32_t tier, uint8_t *held);

/* Note of blocks that were stored in some other order that they follow one another, as above. */
void kvr_index_note_chain(struct kvr_index *index, const uint64_t *parent, const uint64_t *hashes, size_t count);

/* Note that a stored block follows the one at `previous`, if it has no place yet. */
void kvr_index_place(struct kvr_index *index, struct kvr_slot *slot, kvr_link previous);

/* The same of a block that begins a stretch, at a position. */
void kvr_index_place_at(struct kvr_index *index, struct kvr_slot *slot, uint32_t position);

int kvr_index_remove(struct kvr_index *index, uint32_t rank, const uint64_t *hashes, size_t count, uint32_t tier);
void kvr_index_clear(struct kvr_index *index, uint32_t rank, uint32_t tier);

/* Rewrite some stale slots. */
void kvr_index_sweep(struct kvr_index *index);

/* Note that a rank holds blocks that were put into the table behind the index's back (a restore). */
int kvr_index_count(struct kvr_index *index, uint32_t rank, uint32_t tier, size_t blocks);
size_t kvr_index_blocks(const struct kvr_index *index, uint32_t rank, uint32_t tier);

KVR_INLINE size_t kvr_index_distinct(const struct kvr_index *index)
{
    return index->table.used - index->sets.dead;
}

KVR_INLINE uint64_t kvr_index_key(const struct kvr_index *index, uint64_t hash)
{
    return kvr_mix(hash, index->secret);
}

/* The live set of a block; 0 where nobody holds it. */
KVR_INLINE uint32_t kvr_index_holders(const struct kvr_index *index, uint64_t hash)
{
    const struct kvr_slot *slot = kvr_table_find(&index->table, kvr_index_key(index, hash));
    return slot == NULL ? 0 : kvr_sets_resolve(&index->sets, slot->value);
}

/* Whether somebody holds a block, and it is not known what it follows. */
KVR_INLINE int kvr_index_is_loose(const struct kvr_index *index, uint64_t hash)
{
    const struct kvr_slot *slot = kvr_table_find(&index->table, kvr_index_key(index, hash));
    return slot != NULL && slot->link == KVR_LOOSE_BLOCK;
}

/* Ask for the slot of a block, by its hash or its key. */
KVR_INLINE void kvr_index_prefetch_key(const struct kvr_index *index, uint64_t key)
{
    KVR_PREFETCH(kvr_table_home(&index->table, key));
}

KVR_INLINE void kvr_index_prefetch(const struct kvr_index *index, uint64_t hash)
{
    kvr_index_prefetch_key(index, kvr_index_key(index, hash));
}

#endif
