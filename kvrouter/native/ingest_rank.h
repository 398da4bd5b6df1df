/* What one rank has cached, in the engine's names and in ours; `kvrouter/ingest/block_table.py` is its specification.
 *
 * A row of `aliases` says what an engine hash names, if that is known, and which copies of it there are. The index holds
 * the blocks of the main group that have a copy. That two engine hashes name one block is rare: only then something is
 * counted per block (`kvr_place.holders`); otherwise the index itself knows whether it has the block, because nobody else
 * changes what it has of this rank.
 */
#ifndef KVR_INGEST_RANK_H
#define KVR_INGEST_RANK_H

#include "alias_queue.h"
#include "alias_table.h"
#include "index_core.h"
#include "ingest_copies.h"

#define KVR_TIERS 3
#define KVR_GROUPS_MAX 256

struct kvr_place {
    uint32_t tier; /* 0 gpu, 1 cpu, 2 disk */
    uint32_t group;
    uint32_t one; /* the number of "one copy, here", which is kept */
    int is_main;  /* of the group that the index follows */
    /* Scattered sequence hash to how many engine hashes name it that have a copy here. For the main group only those
     * that have several, and one less. */
    struct kvr_table holders;
};

struct kvr_rank {
    union {
        size_t bytes;
        struct kvr_account account;
    };
    size_t charged; /* of them, what the index was told of */
    struct kvr_index *index;
    uint32_t rank;
    uint64_t secret;
    struct kvr_aliases aliases;
    struct kvr_all_copies copies;
    struct kvr_table large; /* scattered engine hash to a number of copies that does not fit into a row */
    struct kvr_queue idle, unresolved;
    struct kvr_place *places;
    uint32_t place_count, places_allocated, main_group;
    size_t idle_max, unresolved_max;
    size_t unresolved_dropped;
    size_t evicted, returned; /* hashes whose last copy went, and those of them that were stored again while idle */
    void (*forget)(void *context, uint64_t engine_hash); /* told of each hash whose meaning is forgotten */
    void *context;
};

/* What 0 and -1 mean everywhere below: done, and no memory: then a change may be made in part. */

int kvr_rank_open(struct kvr_rank *rank, struct kvr_index *index, uint32_t number);
/* `kvr_rank_clear` forgets all blocks, in the index too; `close` leaves the index alone. */
int kvr_rank_clear(struct kvr_rank *rank);
void kvr_rank_close(struct kvr_rank *rank);

/* Whether a store of so many blocks may be taken in (`index_budget.h`). */
int kvr_rank_admit(struct kvr_rank *rank, size_t blocks);

/* Tell the index how many bytes are beside it. */
KVR_INLINE void kvr_rank_charge(struct kvr_rank *rank)
{
    rank->index->budget.beside += rank->bytes - rank->charged;
    rank->charged = rank->bytes;
}

/* The number of a place; -1 if nothing was ever stored there. `add` makes it, or says -1 without memory. */
int kvr_rank_find_place(const struct kvr_rank *rank, uint32_t tier, uint32_t group);
int kvr_rank_add_place(struct kvr_rank *rank, uint32_t tier, uint32_t group);

/* Let the index follow a group; with KVR_NO_GROUP, none: then the index is not touched. */
#define KVR_NO_GROUP UINT32_MAX
int kvr_rank_set_main(struct kvr_rank *rank, uint32_t group);

/* One copy more of each; hashes without a meaning wait for it. */
int kvr_rank_add(struct kvr_rank *rank, uint32_t place, const uint64_t *hashes, size_t count);

/* The same for hashes that are all new and mean `keys`, a chain behind `*parent`, or from the first block on if that is
 * NULL. 1 if they are not all new: then nothing is changed. */
int kvr_rank_add_new(struct kvr_rank *rank, uint32_t place, const uint64_t *hashes, const uint64_t *parent,
                     const uint64_t *keys, size_t count);

/* One copy less of each; counts those that had none. */
int kvr_rank_remove(struct kvr_rank *rank, uint32_t place, const uint64_t *hashes, size_t count, size_t *unknown);

/* Say what a hash means. Its copies count from now on; the first meaning stays. */
int kvr_rank_learn(struct kvr_rank *rank, uint64_t hash, uint64_t key);

/* A hash that was learnt and not stored is idle from now on, as those are whose copies are gone. */
int kvr_rank_retire(struct kvr_rank *rank, uint64_t hash);

/* Forget a meaning. 1 if there is none, or there are copies. */
int kvr_rank_forget(struct kvr_rank *rank, uint64_t hash);

/* Take away all copies in a tier. Those that are idle then are in the order of their hashes. */
int kvr_rank_clear_tier(struct kvr_rank *rank, uint32_t tier);


/* Open `holders`, a table of the scattered sequence hashes in a place to how many engine hashes name them. */
int kvr_rank_count_holders(struct kvr_rank *rank, uint32_t place, struct kvr_table *holders);

/* Whether some copy of a block is in a place. */
int kvr_rank_holds(const struct kvr_rank *rank, uint32_t place, uint64_t key);

/* -- for the files that change rows ------------------------------------------------------------------------------- */

/* Give a row another number of copies, which nothing may refer to yet. */
int kvr_rank_renumber(struct kvr_rank *rank, uint8_t *row, uint64_t scattered, uint32_t before, uint32_t after);
void kvr_rank_drop_row(struct kvr_rank *rank, uint8_t *row, uint64_t scattered);
/* Count one more of a scattered key. */
int kvr_count_up(struct kvr_table *table, uint64_t scattered);
/* The index's number of a tier; -1 without memory. */
int kvr_rank_index_tier(struct kvr_rank *rank, uint32_t tier);

/* The number of copies of a hash for whose row it is too large. */
uint32_t kvr_rank_large_number(const struct kvr_rank *rank, uint64_t scattered);

/* The number of the copies of a row, which is that of a scattered hash. */
KVR_INLINE uint32_t kvr_rank_number(const struct kvr_rank *rank, const uint8_t *row, uint64_t scattered)
{
    uint32_t number = kvr_row_copies(row);
    return number < KVR_ROW_COPIES_MAX ? number : kvr_rank_large_number(rank, scattered);
}

KVR_INLINE uint8_t *kvr_rank_find(const struct kvr_rank *rank, uint64_t hash)
{
    return kvr_aliases_find(&rank->aliases, kvr_mix(hash, rank->secret));
}

/* The number of the copies of a hash, whose row is told as well; KVR_NO_COPIES without a row. */
KVR_INLINE uint32_t kvr_rank_find_number(const struct kvr_rank *rank, uint64_t hash, uint8_t **row)
{
    uint64_t scattered = kvr_mix(hash, rank->secret);
    *row = kvr_aliases_find(&rank->aliases, scattered);
    return *row != NULL ? kvr_rank_number(rank, *row, scattered) : KVR_NO_COPIES;
}

/* The row of a hash whose meaning is known, or NULL. */
KVR_INLINE uint8_t *kvr_rank_find_known(const struct kvr_rank *rank, uint64_t hash)
{
    uint8_t *row;
    return kvr_copies_is_known(&rank->copies, kvr_rank_find_number(rank, hash, &row)) ? row : NULL;
}

KVR_INLINE void kvr_rank_prefetch(const struct kvr_rank *rank, uint64_t hash)
{
    kvr_aliases_prefetch(&rank->aliases, kvr_mix(hash, rank->secret));
}

/* Ask for the rows of the first hashes of many, before anything else is done; loops ask for those behind them. */
KVR_INLINE void kvr_rank_prefetch_first(const struct kvr_rank *rank, const uint64_t *hashes, size_t count)
{
    for (size_t at = 0; at < count && at < KVR_PREFETCH_BLOCKS; at++)
        kvr_rank_prefetch(rank, hashes[at]);
}

/* Hashes whose rows are looked for one after the other. Their homes are asked for some time before their turn, and in half
 * of that time the other stripe, where that will be touched. */
struct kvr_turns {
    const struct kvr_rank *rank;
    const uint64_t *hashes;
    size_t count;
    uint64_t scattered[KVR_PREFETCH_BLOCKS]; /* those that have been asked for */
};

KVR_INLINE void kvr_turns_ask(struct kvr_turns *turns, size_t at)
{
    uint64_t scattered = kvr_mix(turns->hashes[at], turns->rank->secret);
    turns->scattered[at % KVR_PREFETCH_BLOCKS] = scattered;
    kvr_aliases_prefetch(&turns->rank->aliases, scattered);
}

static inline void kvr_turns_open(struct kvr_turns *turns, const struct kvr_rank *rank, const uint64_t *hashes, size_t count)
{
    turns->rank = rank;
    turns->hashes = hashes;
    turns->count = count;
    for (size_t at = 0; at < count && at < KVR_PREFETCH_BLOCKS; at++)
        kvr_turns_ask(turns, at);
}

/* The scattered hash whose turn it is. */
KVR_INLINE uint64_t kvr_turns_next(struct kvr_turns *turns, size_t at)
{
    uint64_t scattered = turns->scattered[at % KVR_PREFETCH_BLOCKS];
    if (at + KVR_PREFETCH_BLOCKS < turns->count)
        kvr_turns_ask(turns, at + KVR_PREFETCH_BLOCKS);
    if (at + KVR_PREFETCH_BLOCKS / 2 < turns->count)
        kvr_aliases_prefetch_other(&turns->rank->aliases,
                                   turns->scattered[(at + KVR_PREFETCH_BLOCKS / 2) % KVR_PREFETCH_BLOCKS]);
    return scattered;
}

#endif
