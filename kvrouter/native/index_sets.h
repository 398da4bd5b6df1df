/* Sets of holders: which ranks hold a block, in which tier. Equal sets are one set with one number.
 *
 * A fleet has few distinct sets and millions of blocks, so a block stores the number of its set, and "the same ranks?"
 * is one comparison. A set is a sorted row of words, each for 64 ranks of one tier; words without a rank are left out,
 * so that few ranks out of thousands cost little and many out of few cost as little as a bit mask.
 *
 * A rank leaves all sets at once, without a look at the blocks: its set becomes another one in place, or, where that
 * exists already, forwards to it. Slots of the table that name a forwarded set are stale. They are right (every reader
 * resolves the number) and are rewritten when their segment is copied.
 */
#ifndef KVR_INDEX_SETS_H
#define KVR_INDEX_SETS_H

#include "index_table.h"

struct kvr_word {
    uint64_t bits;
    uint32_t word; /* rank / 64 */
    uint32_t tier;
};

struct kvr_set {
    uint64_t hash;
    union {
        struct kvr_word one;
        struct kvr_word *many;
    } row;
    uint32_t words;
    uint32_t allocated; /* of `many`; 0 while the row is `one` */
    uint32_t slots;     /* of the table that have this number */
    uint32_t blocks;    /* held by exactly this set, stale slots included */
    uint32_t forwards;  /* sets that forward to this one */
    uint32_t target;    /* itself while live; where to it forwards: 0 is the empty set; next free one of a free one */
    uint32_t next;      /* with the same hash */
};

#define KVR_SETS_PER_PAGE_BITS 8
#define KVR_SETS_PER_PAGE (1u << KVR_SETS_PER_PAGE_BITS)

struct kvr_sets {
    struct kvr_set **pages;
    uint32_t pages_max;
    uint32_t count; /* numbers ever given out; the first is 1 */
    uint32_t free;
    uint64_t secret;
    struct kvr_table numbers; /* hash of a set to its number */
    struct kvr_word *scratch;
    uint32_t scratch_words;
    size_t stale; /* slots that name a forwarded set */
    size_t dead;  /* those of them that forward to the empty set */
    size_t *account;
};

int kvr_sets_open(struct kvr_sets *sets, size_t *account, uint64_t secret);
void kvr_sets_close(struct kvr_sets *sets);

/* The live set with one holder more; `set` is live or 0. Nothing refers to the result yet. 0 without memory. */
uint32_t kvr_sets_with(struct kvr_sets *sets, uint32_t set, uint32_t tier, uint32_t rank);

/* The live set with one holder less, or 0 if none is left. -1 without memory. */
int kvr_sets_without(struct kvr_sets *sets, uint32_t set, uint32_t tier, uint32_t rank, uint32_t *without);

/* The live set of these words, which are sorted and not 0. 0 without memory. */
uint32_t kvr_sets_intern(struct kvr_sets *sets, const struct kvr_word *words, uint32_t count);

/* Slots of so many blocks begin to name a live set, or end to name a set. */
void kvr_sets_enter(struct kvr_sets *sets, uint32_t set, uint32_t slots);
void kvr_sets_leave(struct kvr_sets *sets, uint32_t set, uint32_t slots);

/* Keep a set as if one slot more named it, or no longer (-1). */
KVR_INLINE void kvr_sets_keep(struct kvr_sets *sets, uint32_t set, int more);

/* Free a set that nothing refers to; otherwise do nothing. */
void kvr_sets_release(struct kvr_sets *sets, uint32_t set);

/* Take a holder of `blocks` blocks out of all sets. */
void kvr_sets_forget(struct kvr_sets *sets, uint32_t tier, uint32_t rank, size_t blocks);

/* A slot that names `set` is about to name what is returned instead, or to go if that is 0. */
uint32_t kvr_sets_settle(struct kvr_sets *sets, uint32_t set);

KVR_INLINE struct kvr_set *kvr_sets_at(const struct kvr_sets *sets, uint32_t set)
{
    return &sets->pages[set >> KVR_SETS_PER_PAGE_BITS][set & (KVR_SETS_PER_PAGE - 1)];
}

KVR_INLINE void kvr_sets_keep(struct kvr_sets *sets, uint32_t set, int more)
{
    kvr_sets_at(sets, set)->slots += (uint32_t)more;
}

KVR_INLINE const struct kvr_word *kvr_set_words(const struct kvr_set *set)
{
    return set->allocated ? set->row.many : &set->row.one;
}

/* The live set that a slot's number means; 0 is the empty one. */
KVR_INLINE uint32_t kvr_sets_resolve(const struct kvr_sets *sets, uint32_t set)
{
    while (set != 0) {
        uint32_t target = kvr_sets_at(sets, set)->target;
        if (target == set)
            break;
        set = target;
    }
    return set;
}

/* Whether a live set, or the empty one, has a holder. */
int kvr_sets_has(const struct kvr_sets *sets, uint32_t set, uint32_t tier, uint32_t rank);

#endif
