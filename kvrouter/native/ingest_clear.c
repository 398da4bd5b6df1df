/* Clearing one tier of a rank: many rows at once, of which most are forgotten. */
#include "index_memory.h"
#include "ingest_rank.h"
#include <stdlib.h>

struct hashes {
    uint64_t *all;
    size_t count, allocated;
};

struct clearing {
    struct kvr_rank *rank;
    uint32_t tier;
    struct hashes found; /* scattered */
};

static int append(struct kvr_rank *rank, struct hashes *hashes, uint64_t hash)
{
    if (hashes->count == hashes->allocated) {
        size_t larger = hashes->allocated ? 2 * hashes->allocated : 256;
        uint64_t *all =
            kvr_retake(&rank->bytes, hashes->all, hashes->allocated * sizeof *all, larger * sizeof *all);
        if (all == NULL)
            return -1;
        hashes->all = all;
        hashes->allocated = larger;
    }
    hashes->all[hashes->count++] = hash;
    return 0;
}

static int find_row(void *context, const uint8_t *row, uint64_t hash)
{
    struct clearing *clearing = context;
    const struct kvr_rank *rank = clearing->rank;
    uint32_t places;
    const struct kvr_copy *list = kvr_copies_list(&rank->copies, kvr_rank_number(rank, row, hash), &places);
    for (uint32_t at = 0; at < places; at++)
        if (rank->places[list[at].place].tier == clearing->tier)
            return append(clearing->rank, &clearing->found, hash);
    return 0;
}

/* Take the copies in the tier away from a row; 1 if its meaning is all that is left of it. */
static int clear_row(const struct clearing *clearing, uint8_t *row, uint64_t hash)
{
    struct kvr_rank *rank = clearing->rank;
    uint32_t before = kvr_rank_number(rank, row, hash), after = before;
    for (uint32_t number = 0; number < rank->place_count; number++)
        if (rank->places[number].tier == clearing->tier && kvr_copies_in(&rank->copies, after, number)) {
            uint32_t between = after;
            after = kvr_copies_with(&rank->copies, between, number, 0);
            if (between != before)
                kvr_copies_release(&rank->copies, between);
            if (after == UINT32_MAX)
                return -1;
        }
    if (after != KVR_NO_COPIES)
        return kvr_rank_renumber(rank, row, hash, before, after) ? -1 : after == KVR_LOOSE;
    if (kvr_queue_leave(&rank->unresolved, hash))
        return -1;
    kvr_rank_drop_row(rank, row, hash);
    return 0;
}

static int clear_places(struct kvr_rank *rank, uint32_t tier)
{
    for (uint32_t number = 0; number < rank->place_count; number++) {
        struct kvr_place *place = &rank->places[number];
        if (place->tier != tier)
            continue;
        struct kvr_table none;
        int in_index = place->is_main ? kvr_rank_index_tier(rank, tier) : 0;
        if (in_index < 0 || kvr_table_open(&none, &rank->bytes, NULL, NULL))
            return -1;
        if (place->is_main)
            kvr_index_clear(rank->index, rank->rank, (uint32_t)in_index);
        kvr_table_close(&place->holders);
        place->holders = none;
    }
    return 0;
}

static int compare(const void *left, const void *right)
{
    uint64_t a, b;
    memcpy(&a, left, sizeof a);
    memcpy(&b, right, sizeof b);
    return (a > b) - (a < b);
}

/* What has no copies any more becomes idle in the order of its hashes, so that it does not depend on the table. */
static int retire_in_order(struct kvr_rank *rank, struct hashes *hashes)
{
    qsort(hashes->all, hashes->count, sizeof *hashes->all, compare);
    for (size_t at = 0; at < hashes->count; at++)
        if (kvr_rank_retire(rank, hashes->all[at]))
            return -1;
    return 0;
}

int kvr_rank_clear_tier(struct kvr_rank *rank, uint32_t tier)
{
    struct clearing clearing = {rank, tier, {NULL, 0, 0}};
    struct hashes *found = &clearing.found;
    int failed = kvr_aliases_visit(&rank->aliases, find_row, &clearing) || clear_places(rank, tier);
    size_t loose = 0;
    for (size_t at = 0; !failed && at < found->count; at++) {
        uint8_t *row = kvr_aliases_find(&rank->aliases, found->all[at]);
        int left = clear_row(&clearing, row, found->all[at]);
        failed = left < 0;
        if (left == 1)
            found->all[loose++] = kvr_unmix(found->all[at], rank->secret);
    }
    found->count = failed ? 0 : loose;
    if (!failed && loose > 0)
        failed = retire_in_order(rank, found);
    kvr_give(&rank->bytes, found->all, found->allocated * sizeof *found->all);
    return failed ? -1 : 0;
}
