/* Matching: how many leading blocks of a prompt each rank holds. */
#ifndef KVR_INDEX_MATCH_H
#define KVR_INDEX_MATCH_H

#include "index_core.h"
#include "index_keys.h"

/* The answer: the ranks that hold the first block, and the depth of each. */
struct kvr_overlap {
    uint32_t words;
    uint64_t ranks[KVR_RANK_WORDS_MAX];
    uint32_t depths[KVR_RANKS_MAX]; /* valid for `ranks` */
};

/* List an answer in the order of ranks; how many there are. `depths` may be those of the overlap itself. */
KVR_INLINE uint32_t kvr_overlap_list(const struct kvr_overlap *overlap, uint32_t *ranks, uint32_t *depths)
{
    uint32_t count = 0;
    for (uint32_t word = 0; word < overlap->words; word++) {
        for (uint64_t bits = overlap->ranks[word]; bits; bits &= bits - 1) {
            ranks[count] = word * 64 + (uint32_t)kvr_lowest_bit(bits);
            depths[count] = overlap->depths[ranks[count]];
            count++;
        }
    }
    return count;
}

/* `selected` says of each tier whether it counts; NULL if all do. 0, or -1 if kvr_keys_at could not read the hashes. */
int kvr_match_exact(const struct kvr_index *index, const struct kvr_keys *keys, const uint8_t *selected,
                    struct kvr_overlap *overlap);

/* By bisection, under the assumption that a rank that holds a block holds all before it. */
int kvr_match_bisect(const struct kvr_index *index, const struct kvr_keys *keys, const uint8_t *selected,
                     struct kvr_overlap *overlap);

#endif
