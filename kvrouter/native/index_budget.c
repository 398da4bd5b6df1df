/* Keeping an index within its bytes; `index_budget.h` says how. */
#include "index_core.h"
#include "index_memory.h"

/* More than one block can make the index grow, the directory aside: segments, a page of sets, one of stretches. */
#define HEADROOM ((size_t)1 << 18)

int kvr_index_doubt(struct kvr_index *index, uint32_t rank)
{
    struct kvr_budget *budget = &index->budget;
    for (uint32_t at = 0; at < budget->doubted_count; at++)
        if (budget->doubted[at] == rank)
            return 0;
    if (budget->doubted_count == budget->doubted_room) {
        uint32_t room = budget->doubted_room ? 2 * budget->doubted_room : 16;
        uint16_t *doubted = kvr_retake(&index->bytes, budget->doubted, budget->doubted_room * sizeof *doubted,
                                       room * sizeof *doubted);
        if (doubted == NULL)
            return -1;
        budget->doubted = doubted;
        budget->doubted_room = room;
    }
    budget->doubted[budget->doubted_count++] = (uint16_t)rank;
    return 0;
}

void kvr_index_trust(struct kvr_index *index, uint32_t rank)
{
    struct kvr_budget *budget = &index->budget;
    uint32_t kept = 0;
    for (uint32_t at = 0; at < budget->doubted_count; at++)
        if (budget->doubted[at] != rank)
            budget->doubted[kept++] = budget->doubted[at];
    budget->doubted_count = kept;
}

static void forget_rank(struct kvr_index *index, uint32_t rank)
{
    for (uint32_t tier = 0; tier < index->tier_count; tier++) {
        index->budget.forgotten += kvr_index_blocks(index, rank, tier);
        kvr_index_clear(index, rank, tier);
    }
}

void kvr_index_relieve(struct kvr_index *index)
{
    struct kvr_budget *budget = &index->budget;
    if (budget->bytes_max == 0 || index->bytes <= budget->bytes_max - budget->bytes_max / 16)
        return;
    if (index->sets.stale > 0) { /* Room is on its way. */
        kvr_index_sweep(index);
        return;
    }
    if (budget->doubted_count == 0)
        return;
    uint32_t rank = budget->doubted[0];
    kvr_index_trust(index, rank); /* There is nothing left of it to doubt. */
    forget_rank(index, rank);
}

int kvr_index_is_full(const struct kvr_index *index)
{
    size_t growth = HEADROOM + (sizeof(struct kvr_segment) << (index->table.bits + 1));
    return index->budget.bytes_max != 0 && index->bytes + growth > index->budget.bytes_max;
}
