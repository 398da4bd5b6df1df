/* Walking along a prompt, from where the known prefix of each rank ends. */
#include "routing_notes.h"

#include <stdlib.h>

/* What the slot of a block names; 0 where nobody is predicted to hold it. */
static uint32_t name_at(const struct kvr_predictions *predictions, uint64_t hash)
{
    const struct kvr_slot *slot = kvr_table_find(&predictions->table, kvr_prediction_key(predictions, hash));
    return slot == NULL ? 0 : slot->value;
}

const struct kvr_note *kvr_predictions_find(const struct kvr_predictions *predictions, uint32_t rank, uint64_t hash)
{
    uint32_t name = name_at(predictions, hash);
    return name == 0 ? NULL : kvr_member_of_rank(predictions, name, rank);
}

static void spread_out(const struct kvr_predictions *predictions, uint32_t name, uint64_t *ranks)
{
    memset(ranks, 0, predictions->ranks_max / 64 * sizeof *ranks);
    if (name == 0)
        return;
    if (!kvr_names_group(name)) {
        uint32_t rank = kvr_note_of(predictions, name)->rank;
        ranks[rank / 64] |= UINT64_C(1) << rank % 64;
        return;
    }
    const struct kvr_group *group = kvr_group_of(predictions, name);
    for (uint32_t at = 0; at < group->count; at++)
        ranks[group->members[at]->rank / 64] |= UINT64_C(1) << group->members[at]->rank % 64;
}

/* A walk along a prompt: the ranks that hold every block since their known prefix ended. */
struct walk {
    const struct kvr_predictions *predictions;
    struct kvr_overlap *reach;
    uint64_t alive[KVR_RANK_WORDS_MAX];
    uint64_t holders[KVR_RANK_WORDS_MAX];
    int any;
};

static void note_depths(struct walk *walk, uint32_t word, uint64_t ranks, size_t depth)
{
    walk->reach->ranks[word] |= ranks;
    for (; ranks; ranks &= ranks - 1)
        walk->reach->depths[word * 64 + (uint32_t)kvr_lowest_bit(ranks)] = (uint32_t)depth;
}

static void keep(struct walk *walk, size_t depth)
{
    walk->any = 0;
    for (uint32_t word = 0; word < walk->reach->words; word++) {
        uint64_t lost = walk->alive[word] & ~walk->holders[word];
        note_depths(walk, word, lost, depth);
        walk->alive[word] ^= lost;
        walk->any |= walk->alive[word] != 0;
    }
}

static void enter(struct walk *walk, uint32_t rank)
{
    uint64_t bit = UINT64_C(1) << rank % 64;
    if (rank / 64 < walk->reach->words && walk->holders[rank / 64] & bit) {
        walk->alive[rank / 64] |= bit;
        walk->any = 1;
    }
}

/* Ranks of which nothing is known begin with the first block; `holders` are its. */
static void enter_unknown(struct walk *walk, const struct kvr_known *known, size_t known_count)
{
    memcpy(walk->alive, walk->holders, walk->reach->words * sizeof *walk->alive);
    for (size_t at = 0; at < known_count; at++)
        if (known[at].rank / 64 < walk->reach->words)
            walk->alive[known[at].rank / 64] &= ~(UINT64_C(1) << known[at].rank % 64);
    for (uint32_t word = 0; word < walk->reach->words; word++)
        walk->any |= walk->alive[word] != 0;
}

static int compare_positions(const void *one, const void *other)
{
    const struct kvr_known *left = one, *right = other;
    return (left->position > right->position) - (left->position < right->position);
}

void kvr_predictions_match(const struct kvr_predictions *predictions, const uint64_t *hashes, size_t count,
                           struct kvr_known *known, size_t known_count, struct kvr_overlap *reach)
{
    struct walk walk = {.predictions = predictions, .reach = reach, .any = 0};
    reach->words = predictions->ranks_max / 64;
    memset(reach->ranks, 0, reach->words * sizeof *reach->ranks);
    if (count == 0 || predictions->table.used == 0)
        return;
    if (known_count > 1)
        qsort(known, known_count, sizeof *known, compare_positions);
    uint32_t previous = 0;
    size_t joining = 0, position = 0;
    for (;; position++) {
        if (!walk.any && position > 0) { /* Nothing happens before the next rank joins. */
            if (joining == known_count)
                return;
            if (position < known[joining].position)
                position = known[joining].position;
        }
        if (position >= count)
            break;
        kvr_predictions_ask(predictions, hashes, count, position + KVR_SLOTS_AHEAD);
        uint32_t name = name_at(predictions, hashes[position]);
        if (name != previous || position == 0) {
            spread_out(predictions, name, walk.holders);
            keep(&walk, position);
            previous = name;
        }
        if (position == 0)
            enter_unknown(&walk, known, known_count);
        for (; joining < known_count && known[joining].position == position; joining++)
            enter(&walk, known[joining].rank);
    }
    for (uint32_t word = 0; word < reach->words; word++)
        note_depths(&walk, word, walk.alive[word], count);
}
