/* A bound on the bytes of an index, and of what those who feed it keep beside it. At the bound it claims less than is
 * true, never more.
 *
 * Somewhat below it, ranks whose blocks are in doubt are forgotten, one by one, the one that has been in doubt longest
 * first. What that frees comes back as slots are swept, a little with every store, so that nothing ever stops for long.
 * Where that is not enough, what cannot be noted within the bound is not noted. Removals are always done.
 *
 * Who keeps something beside the index for each rank says how much it is, asks before it keeps more, and asks after
 * what was lost: while something is beside, only one rank is forgotten before that was asked, because what is kept
 * beside that rank can go as well.
 */
#ifndef KVR_INDEX_BUDGET_H
#define KVR_INDEX_BUDGET_H

#include <stddef.h>
#include <stdint.h>

#define KVR_BYTES_MAX_LEAST ((size_t)1 << 20)
/* What a block is expected to take, in the index and beside it. */
#define KVR_BYTES_PER_NEW_BLOCK 96

struct kvr_budget {
    size_t bytes_max; /* 0: no bound */
    size_t beside;    /* bytes */
    uint16_t *doubted; /* ranks, the one longest in doubt first */
    uint32_t doubted_count, doubted_room;
    size_t forgotten; /* blocks of ranks in doubt, so far */
    size_t refused;   /* blocks that were not noted */
    /* Since it was last asked. */
    uint16_t *lost; /* ranks that were forgotten */
    uint32_t lost_count, lost_room;
    size_t refused_before;
};

struct kvr_index;

/* What a rank holds is in doubt from now on. 0, or -1 without memory. */
int kvr_index_doubt(struct kvr_index *index, uint32_t rank);

/* It is not any more. */
void kvr_index_trust(struct kvr_index *index, uint32_t rank);

/* Make room before blocks are stored, if little is left. */
void kvr_index_relieve(struct kvr_index *index);

/* Whether so many blocks more may be noted, and something beside each; if not, they are counted as refused. */
int kvr_index_admit(struct kvr_index *index, size_t blocks);

/* Whether the next block might not fit. */
int kvr_index_is_full(const struct kvr_index *index);

#endif
