/* How far ranks get in a prompt, as a walk finds it: which of them get to a depth and no further.
 *
 * Ranks mostly leave in company, at the end of an opening that many share. So an answer is a few of these, however many
 * ranks it is about; what takes time for each rank is left to those who want to know it of each.
 */
#ifndef KVR_INDEX_REACH_H
#define KVR_INDEX_REACH_H

#include "index_core.h"

/* Ranks of one word whose last block in a row is the one before `depth`. */
struct kvr_reach {
    uint64_t ranks; /* not 0 */
    uint32_t word;  /* rank / 64 */
    uint32_t depth;
};

/* Each rank that holds the first block is in just one of them. */
struct kvr_reaches {
    uint32_t words;
    uint32_t count;
    struct kvr_reach all[KVR_RANKS_MAX];
};

/* The same by ranks: those that hold the first block, and the depth of each. */
struct kvr_overlap {
    uint32_t words;
    uint64_t ranks[KVR_RANK_WORDS_MAX];
    uint32_t depths[KVR_RANKS_MAX]; /* valid for `ranks` */
};

KVR_INLINE void kvr_reaches_note(struct kvr_reaches *reaches, uint32_t word, uint64_t ranks, size_t depth)
{
    struct kvr_reach *reach = &reaches->all[reaches->count];
    reach->ranks = ranks;
    reach->word = word;
    reach->depth = (uint32_t)depth;
    reaches->count++;
}

/* From the one form to the other. */
void kvr_reaches_spread(const struct kvr_reach *reaches, uint32_t count, uint32_t words, struct kvr_overlap *overlap);
void kvr_reaches_gather(const struct kvr_overlap *overlap, struct kvr_reaches *reaches);

/* List an answer in the order of ranks; how many there are. `depths` may be those of the overlap itself. */
uint32_t kvr_overlap_list(const struct kvr_overlap *overlap, uint32_t *ranks, uint32_t *depths);

#endif
