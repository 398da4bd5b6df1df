/* Keeping an index within its bytes; `index_budget.h` says how. */
#include "index_core.h"
#include "index_memory.h"

/* More than one block can make the index grow, the directory aside: segments, a page of sets, one of stretches. */
#define HEADROOM ((size_t)1 << 18)

/* Room for one rank more in a row of ranks; -1 without memory. */
static int make_room(struct kvr_index *index, uint16_t **ranks, uint32_t count, uint32_t *room)
{
    if (count < *room)
        return 0;
    uint32_t larger = *room ? 2 * *room : 16;
    uint16_t *moved = kvr_retake(&index->bytes, *ranks, *room * sizeof **ranks, larger * sizeof **ranks);
    if (moved == NULL)
        return -1;
    *ranks = moved;
    *room = larger;
    return 0;
}

int kvr_index_doubt(struct kvr_index *index, uint32_t rank)
{
    struct kvr_budget *budget = &index->budget;
    for (uint32_t at = 0; at < budget->doubted_count; at++)
        if (budget->doubted[at] == rank)
            return 0;
    /* What is in doubt may be lost: there shall be room to say so. */
    if (make_room(index, &budget->doubted, budget->doubted_count, &budget->doubted_room) ||
        make_room(index, &budget->lost, budget->lost_count + budget->doubted_count, &budget->lost_room))
        return -1;
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

static size_t bytes_in_all(const struct kvr_index *index)
{
    return index->bytes + index->budget.beside;
}

static size_t next_growth(const struct kvr_index *index)
{
    return HEADROOM + (sizeof(struct kvr_segment) << (index->table.bits + 1));
}

/* The rank that is longest in doubt of those that hold anything; -1 if there is none. */
static int next_to_forget(const struct kvr_index *index)
{
    for (uint32_t at = 0; at < index->budget.doubted_count; at++)
        for (uint32_t tier = 0; tier < index->tier_count; tier++)
            if (kvr_index_blocks(index, index->budget.doubted[at], tier) > 0)
                return index->budget.doubted[at];
    return -1;
}

void kvr_index_relieve(struct kvr_index *index)
{
    struct kvr_budget *budget = &index->budget;
    size_t bytes_max = budget->bytes_max;
    if (bytes_max == 0 || bytes_in_all(index) + next_growth(index) <= bytes_max - bytes_max / 16)
        return;
    if (index->sets.stale > 0) { /* Room is on its way. */
        kvr_index_sweep(index);
        return;
    }
    int rank = budget->beside > 0 && budget->lost_count > 0 ? -1 : next_to_forget(index);
    if (rank < 0)
        return;
    kvr_index_trust(index, (uint32_t)rank); /* There is nothing left of it to doubt. */
    forget_rank(index, (uint32_t)rank);
    if (budget->lost_count < budget->lost_room)
        budget->lost[budget->lost_count++] = (uint16_t)rank;
}

int kvr_index_is_full(const struct kvr_index *index)
{
    return index->budget.bytes_max != 0 && bytes_in_all(index) + next_growth(index) > index->budget.bytes_max;
}

int kvr_index_admit(struct kvr_index *index, size_t blocks)
{
    struct kvr_budget *budget = &index->budget;
    if (budget->bytes_max == 0)
        return 1;
    kvr_index_relieve(index);
    if (bytes_in_all(index) + next_growth(index) + blocks * KVR_BYTES_PER_NEW_BLOCK <= budget->bytes_max)
        return 1;
    budget->refused += blocks;
    return 0;
}
