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

/* `selected` says of each tier whether it counts; NULL if all do. 0, or -1 if kvr_keys_at could not read the hashes. */
int kvr_match_exact(const struct kvr_index *index, const struct kvr_keys *keys, const uint8_t *selected,
                    struct kvr_overlap *overlap);

/* By bisection, under the assumption that a rank that holds a block holds all before it. */
int kvr_match_bisect(const struct kvr_index *index, const struct kvr_keys *keys, const uint8_t *selected,
                     struct kvr_overlap *overlap);

#endif
