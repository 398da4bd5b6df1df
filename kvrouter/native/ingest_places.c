/* The places of a rank: finding and making them; which group of layers the index follows, and the change from one to
 * another, which is rare, and a pass over all rows.
 */
#include "ingest_rank.h"
#include "index_memory.h"

#define PLACES_AT_ONCE 2

int kvr_rank_find_place(const struct kvr_rank *rank, uint32_t tier, uint32_t group)
{
    for (uint32_t number = 0; number < rank->place_count; number++)
        if (rank->places[number].tier == tier && rank->places[number].group == group)
            return (int)number;
    return -1;
}

int kvr_rank_add_place(struct kvr_rank *rank, uint32_t tier, uint32_t group)
{
    int found = kvr_rank_find_place(rank, tier, group);
    if (found >= 0)
        return found;
    uint32_t number = rank->place_count;
    if (number == rank->places_allocated) {
        struct kvr_place *places = kvr_retake(&rank->bytes, rank->places, number * sizeof *places,
                                              (number + PLACES_AT_ONCE) * sizeof *places);
        if (places == NULL)
            return -1;
        rank->places = places;
        rank->places_allocated = number + PLACES_AT_ONCE;
    }
    struct kvr_place *place = &rank->places[number];
    memset(place, 0, sizeof *place);
    place->tier = tier;
    place->group = group;
    place->is_main = group == rank->main_group;
    place->one = kvr_copies_with(&rank->copies, KVR_LOOSE, number, 1);
    if (place->one == UINT32_MAX || kvr_table_open(&place->holders, &rank->bytes, NULL, NULL))
        return -1;
    kvr_copies_enter(&rank->copies, place->one);
    rank->place_count++;
    return (int)number;
}

/* -- the main group ----------------------------------------------------------------------------------------------- */

struct recount {
    struct kvr_rank *rank;
    struct kvr_table *holders;
    uint32_t number;
};

static int recount_row(void *context, const uint8_t *row, uint64_t hash)
{
    const struct recount *recount = context;
    const struct kvr_rank *rank = recount->rank;
    uint32_t copies = kvr_rank_number(rank, row, hash);
    if (!kvr_copies_is_known(&rank->copies, copies) || !kvr_copies_in(&rank->copies, copies, recount->number))
        return 0;
    return kvr_count_up(recount->holders, kvr_mix(kvr_row_key(row), rank->secret));
}

int kvr_rank_count_holders(struct kvr_rank *rank, uint32_t number, struct kvr_table *holders)
{
    if (kvr_table_open(holders, &rank->bytes, NULL, NULL))
        return -1;
    struct recount recount = {rank, holders, number};
    if (kvr_aliases_visit(&rank->aliases, recount_row, &recount) == 0)
        return 0;
    kvr_table_close(holders);
    return -1;
}

/* Put every block of a place into the index; what is left to count is which ones have several names. */
static int enter_index(struct kvr_rank *rank, struct kvr_place *place, int tier)
{
    struct kvr_table several;
    if (kvr_table_open(&several, &rank->bytes, NULL, NULL))
        return -1;
    size_t count = (size_t)1 << place->holders.bits;
    for (size_t at = 0; at < count;) {
        const struct kvr_segment *segment = &place->holders.directory[at];
        for (uint32_t slot = 0; slot < kvr_segment_extent(segment); slot++) {
            const struct kvr_slot *holder = &segment->slots[slot];
            uint64_t key = kvr_unmix(holder->key, rank->secret);
            if ((holder->value > 0 && kvr_index_store(rank->index, rank->rank, &key, 1, (uint32_t)tier)) ||
                (holder->value > 1 && kvr_table_add(&several, holder->key, holder->value - 1))) {
                kvr_table_close(&several);
                kvr_index_clear(rank->index, rank->rank, (uint32_t)tier); /* Nobody would take out what is in it. */
                return -1;
            }
        }
        at += (size_t)1 << (place->holders.bits - segment->depth);
    }
    kvr_table_close(&place->holders);
    place->holders = several;
    place->is_main = 1;
    return 0;
}

static int leave_index(struct kvr_rank *rank, struct kvr_place *place, int tier)
{
    struct kvr_table holders;
    if (kvr_rank_count_holders(rank, (uint32_t)(place - rank->places), &holders))
        return -1;
    kvr_index_clear(rank->index, rank->rank, (uint32_t)tier);
    kvr_table_close(&place->holders);
    place->holders = holders;
    place->is_main = 0;
    return 0;
}

int kvr_rank_set_main(struct kvr_rank *rank, uint32_t group)
{
    rank->main_group = group;
    for (int enters = 0; enters <= 1; enters++) { /* First those that leave: the index has one group of a tier. */
        for (uint32_t number = 0; number < rank->place_count; number++) {
            struct kvr_place *place = &rank->places[number];
            int is_main = place->group == group;
            if (place->is_main == is_main || is_main != enters)
                continue;
            int tier = kvr_rank_index_tier(rank, place->tier);
            if (tier < 0 || (enters ? enter_index(rank, place, tier) : leave_index(rank, place, tier)))
                return -1;
        }
    }
    return 0;
}
