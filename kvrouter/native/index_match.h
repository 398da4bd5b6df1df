/* Matching: how many leading blocks of a prompt each rank holds. */
#ifndef KVR_INDEX_MATCH_H
#define KVR_INDEX_MATCH_H

#include "index_keys.h"
#include "index_reach.h"

/* `selected` says of each tier whether it counts; NULL if all do. 0, or -1 if kvr_keys_at could not read the hashes. */
int kvr_match_reaches(const struct kvr_index *index, const struct kvr_keys *keys, const uint8_t *selected,
                      struct kvr_reaches *reaches);

/* The same, rank by rank. */
int kvr_match_exact(const struct kvr_index *index, const struct kvr_keys *keys, const uint8_t *selected,
                    struct kvr_overlap *overlap);

/* By bisection, under the assumption that a rank that holds a block holds all before it. */
int kvr_match_bisect(const struct kvr_index *index, const struct kvr_keys *keys, const uint8_t *selected,
                     struct kvr_overlap *overlap);

#endif
