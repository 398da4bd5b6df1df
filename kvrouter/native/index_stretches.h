/* Stretches: up to 32 blocks that follow one another in prompts, and whether the same ranks hold all of them.
 *
 * A hash names its whole prefix, so whoever meets the 32nd block of a stretch knows which 31 came before it. If besides
 * all their slots name one set, one probe answers for 32 blocks, holes included: nothing is assumed about what ranks
 * evict, and in what order. Stretches are only known where blocks were stored as chains. Where they are not, or where
 * something has changed in the midst of one, matching goes block by block until it is whole again.
 *
 * "One set" is told by a sum: each set has a 64-bit mark, scattered under the secret of the process, and a stretch has
 * the sum of the marks that its slots name. It is n times one mark if all name the same, and otherwise with a chance
 * of 2^-64, as low as that of two blocks with one sequence hash.
 */
#ifndef KVR_INDEX_STRETCHES_H
#define KVR_INDEX_STRETCHES_H

#include "index_mix.h"
#include <stddef.h>

#define KVR_STRETCH_BITS 5
#define KVR_STRETCH_BLOCKS (1u << KVR_STRETCH_BITS)

/* Where a block is: the number of its stretch, from 1, and its position there. */
typedef uint32_t kvr_link;
#define KVR_LOOSE_BLOCK ((kvr_link)0)
/* Comes before the first block of a prompt: the last place of the stretch that does not exist. */
#define KVR_BEFORE_FIRST ((kvr_link)(KVR_STRETCH_BLOCKS - 1))

struct kvr_stretch {
    uint64_t sum;     /* of the marks of its blocks */
    uint32_t present; /* bit p: the p-th of its blocks has a slot */
    uint32_t next;    /* free one, of the same page */
};

#define KVR_STRETCHES_PER_PAGE_BITS 10
#define KVR_STRETCHES_PER_PAGE (1u << KVR_STRETCHES_PER_PAGE_BITS)

struct kvr_stretch_page {
    uint32_t used;
    uint32_t fresh;         /* from here on none was ever used */
    uint32_t free;          /* one that was, +1; 0: none */
    uint32_t before, after; /* among the pages with room, +1 */
    struct kvr_stretch all[KVR_STRETCHES_PER_PAGE];
};

struct kvr_stretches {
    struct kvr_stretch_page **pages; /* NULL where all are free */
    uint32_t pages_max;
    uint32_t pages_used; /* the highest page in use, +1 */
    uint32_t roomy;      /* the first page with room, +1; 0: none */
    size_t blocks;       /* that have a place */
    uint64_t secret;
    size_t *account;
};

void kvr_stretches_open(struct kvr_stretches *stretches, size_t *account, uint64_t secret);
void kvr_stretches_close(struct kvr_stretches *stretches);

/* A place at `position` of a new stretch, not yet entered. KVR_LOOSE_BLOCK without memory; that only costs time. */
kvr_link kvr_stretches_begin(struct kvr_stretches *stretches, uint32_t position);

/* Nobody has a place in the stretch of a link any more. */
void kvr_stretches_end(struct kvr_stretches *stretches, kvr_link link);

/* Give up a place that was just given. */
void kvr_stretches_abandon(struct kvr_stretches *stretches, kvr_link link);

KVR_INLINE uint64_t kvr_stretches_mark(const struct kvr_stretches *stretches, uint32_t set)
{
    return kvr_mix(set, stretches->secret);
}

KVR_INLINE struct kvr_stretch *kvr_stretches_at(const struct kvr_stretches *stretches, kvr_link link)
{
    uint32_t number = (link >> KVR_STRETCH_BITS) - 1;
    return &stretches->pages[number >> KVR_STRETCHES_PER_PAGE_BITS]->all[number & (KVR_STRETCHES_PER_PAGE - 1)];
}

/* A place for the block behind `previous`, as kvr_stretches_begin. */
KVR_INLINE kvr_link kvr_stretches_follow(struct kvr_stretches *stretches, kvr_link previous)
{
    uint32_t position = previous & (KVR_STRETCH_BLOCKS - 1);
    if (position == KVR_STRETCH_BLOCKS - 1 || previous == KVR_LOOSE_BLOCK)
        return kvr_stretches_begin(stretches, 0);
    /* The places behind it are those of another continuation of the prompt. */
    if (kvr_stretches_at(stretches, previous)->present >> position != 1)
        return kvr_stretches_begin(stretches, position + 1);
    return previous + 1;
}

/* A block comes to a place that was just given, or leaves its place; its slot names a set of this mark. */
KVR_INLINE void kvr_stretches_enter(struct kvr_stretches *stretches, kvr_link link, uint64_t mark)
{
    struct kvr_stretch *stretch = kvr_stretches_at(stretches, link);
    stretches->blocks++;
    stretch->sum += mark;
    stretch->present |= 1u << (link & (KVR_STRETCH_BLOCKS - 1));
}

KVR_INLINE void kvr_stretches_leave(struct kvr_stretches *stretches, kvr_link link, uint64_t mark)
{
    if (link == KVR_LOOSE_BLOCK)
        return;
    struct kvr_stretch *stretch = kvr_stretches_at(stretches, link);
    stretches->blocks--;
    stretch->sum -= mark;
    stretch->present &= ~(1u << (link & (KVR_STRETCH_BLOCKS - 1)));
    if (stretch->present == 0)
        kvr_stretches_end(stretches, link);
}

/* The slot of a block names another set; the marks differ by `change`. */
KVR_INLINE void kvr_stretches_change(struct kvr_stretches *stretches, kvr_link link, uint64_t change)
{
    if (link != KVR_LOOSE_BLOCK)
        kvr_stretches_at(stretches, link)->sum += change;
}

/* How many blocks in a row, ending with the one at `link`, certainly name the same set as it, which has this mark: at
 * least that one. */
KVR_INLINE uint32_t kvr_stretches_alike(const struct kvr_stretches *stretches, kvr_link link, uint64_t mark)
{
    const struct kvr_stretch *stretch = kvr_stretches_at(stretches, link);
    if (stretch->present == UINT32_MAX)
        return stretch->sum == mark * KVR_STRETCH_BLOCKS ? (link & (KVR_STRETCH_BLOCKS - 1)) + 1 : 1;
    if (stretch->sum != mark * (uint64_t)kvr_count_bits(stretch->present))
        return 1;
    uint32_t position = link & (KVR_STRETCH_BLOCKS - 1);
    uint64_t gaps = ~((uint64_t)stretch->present << (63 - position)); /* Bits below the lowest are gaps. */
    return 63 - (uint32_t)kvr_highest_bit(gaps);
}

#endif
