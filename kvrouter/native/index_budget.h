/* A bound on the bytes of an index. At the bound it claims less than is true, never more.
 *
 * Somewhat below it, ranks whose blocks are in doubt are forgotten, one by one, the one that has been in doubt longest
 * first. What that frees comes back as slots are swept, a little with every store, so that nothing ever stops for long.
 * Where that is not enough, what cannot be noted within the bound is not noted. Removals are always done.
 */
#ifndef KVR_INDEX_BUDGET_H
#define KVR_INDEX_BUDGET_H

#include <stddef.h>
#include <stdint.h>

#define KVR_BYTES_MAX_LEAST ((size_t)1 << 20)

struct kvr_budget {
    size_t bytes_max; /* 0: no bound */
    uint16_t *doubted; /* ranks, the one longest in doubt first */
    uint32_t doubted_count, doubted_room;
    size_t forgotten; /* blocks of ranks in doubt, so far */
    size_t refused;   /* blocks that were not noted */
};

struct kvr_index;

/* What a rank holds is in doubt from now on. 0, or -1 without memory. */
int kvr_index_doubt(struct kvr_index *index, uint32_t rank);

/* It is not any more. */
void kvr_index_trust(struct kvr_index *index, uint32_t rank);

/* Make room before blocks are stored, if little is left. */
void kvr_index_relieve(struct kvr_index *index);

/* Whether the next block might not fit. */
int kvr_index_is_full(const struct kvr_index *index);

#endif
