/* Walking along a prompt, or bisecting it; `index_match.h` says what is found. */
#include "index_match.h"

/* Slots are asked for in groups, one group ahead of the one that is looked at. The first is small: most prompts that
 * are nowhere end with their first block. */
#define GROUP 32
#define FIRST_GROUP 8

struct match {
    const struct kvr_index *index;
    const struct kvr_keys *keys;
    const uint8_t *selected;
    struct kvr_overlap *overlap;
    uint32_t words;
};

/* -- sets of ranks ------------------------------------------------------------------------------------------------ */

/* The ranks of a live set, over the selected tiers; returns whether there are any. */
static int spread_out(const struct match *match, uint32_t number, uint64_t *ranks)
{
    memset(ranks, 0, match->words * sizeof *ranks);
    if (number == 0)
        return 0;
    int any = 0;
    const struct kvr_set *set = kvr_sets_at(&match->index->sets, number);
    const struct kvr_word *row = kvr_set_words(set);
    for (uint32_t at = 0; at < set->words; at++) {
        if (match->selected == NULL || match->selected[row[at].tier]) {
            ranks[row[at].word] |= row[at].bits;
            any = 1;
        }
    }
    return any;
}

static void note_depth(struct kvr_overlap *overlap, uint32_t word, uint64_t lost, size_t depth)
{
    for (; lost; lost &= lost - 1)
        overlap->depths[word * 64 + (uint32_t)kvr_lowest_bit(lost)] = (uint32_t)depth;
}

/* Keep those that also hold the block at `depth`; returns whether any are left. */
static int keep(const struct match *match, uint64_t *alive, uint32_t number, size_t depth)
{
    uint64_t holders[KVR_RANK_WORDS_MAX];
    uint64_t any = 0;
    (void)spread_out(match, number, holders);
    for (uint32_t word = 0; word < match->words; word++) {
        uint64_t lost = alive[word] & ~holders[word];
        if (lost) {
            note_depth(match->overlap, word, lost, depth);
            alive[word] ^= lost;
        }
        any |= alive[word];
    }
    return any != 0;
}

/* -- the walk ----------------------------------------------------------------------------------------------------- */

struct probe {
    uint64_t key;
    const struct kvr_slot *slot;
};

/* Ask for the slots of the next blocks; how many, or -1. */
static int ask(const struct match *match, size_t start, size_t most, struct probe *probes)
{
    uint64_t room[GROUP];
    size_t count = match->keys->count - start;
    count = count < most ? count : most;
    const uint64_t *hashes = kvr_keys_at(match->keys, start, count, room);
    if (hashes == NULL)
        return -1;
    for (size_t at = 0; at < count; at++) {
        probes[at].key = kvr_index_key(match->index, hashes[at]);
        probes[at].slot = kvr_table_home(&match->index->table, probes[at].key);
        KVR_PREFETCH(probes[at].slot);
    }
    return (int)count;
}

KVR_INLINE uint32_t look(struct probe probe)
{
    const struct kvr_slot *slot = probe.slot;
    while (slot->key < probe.key)
        slot++;
    return slot->key == probe.key ? slot->value : 0;
}

static int walk(const struct match *match, uint64_t *alive)
{
    struct probe groups[2][GROUP];
    uint32_t previous = UINT32_MAX;
    size_t depth = 0;
    int count = ask(match, 0, FIRST_GROUP, groups[0]);
    for (int turn = 0; count > 0; turn ^= 1) {
        size_t next = depth + (size_t)count;
        int following = ask(match, next, GROUP, groups[turn ^ 1]);
        for (int at = 0; at < count; at++, depth++) {
            uint32_t named = look(groups[turn][at]);
            if (named == previous)
                continue;
            previous = named;
            uint32_t set = kvr_sets_resolve(&match->index->sets, named);
            if (depth == 0) {
                if (!spread_out(match, set, alive))
                    return 0;
                memcpy(match->overlap->ranks, alive, match->words * sizeof *alive);
            } else if (!keep(match, alive, set, depth)) {
                return 0;
            }
        }
        count = following;
    }
    if (count < 0)
        return -1;
    for (uint32_t word = 0; word < match->words && depth > 0; word++)
        note_depth(match->overlap, word, alive[word], depth);
    return 0;
}

int kvr_match_exact(const struct kvr_index *index, const struct kvr_keys *keys, const uint8_t *selected,
                    struct kvr_overlap *overlap)
{
    struct match match = {index, keys, selected, overlap, index->rank_words};
    uint64_t alive[KVR_RANK_WORDS_MAX];
    overlap->words = match.words;
    memset(overlap->ranks, 0, match.words * sizeof *overlap->ranks);
    return walk(&match, alive);
}

/* -- the bisection ------------------------------------------------------------------------------------------------ */

/* Blocks between two of which, `low` and `high`, ranks are lost; and who is alive at both. */
struct span {
    size_t low, high;
    uint64_t before[KVR_RANK_WORDS_MAX], after[KVR_RANK_WORDS_MAX];
};

static int spread_at(const struct match *match, size_t position, uint64_t *ranks)
{
    uint64_t room;
    const uint64_t *hash = kvr_keys_at(match->keys, position, 1, &room);
    if (hash == NULL)
        return -1;
    (void)spread_out(match, kvr_index_holders(match->index, *hash), ranks);
    return 0;
}

static int bisect(const struct match *match, const struct span *span)
{
    uint32_t words = match->words;
    if (memcmp(span->before, span->after, words * sizeof *span->before) == 0)
        return 0;
    if (span->high - span->low == 1) {
        for (uint32_t word = 0; word < words; word++)
            note_depth(match->overlap, word, span->before[word] & ~span->after[word], span->high);
        return 0;
    }
    struct span half;
    size_t middle = span->low + (span->high - span->low) / 2;
    half.low = middle;
    half.high = span->high;
    if (spread_at(match, middle, half.before))
        return -1;
    for (uint32_t word = 0; word < words; word++) {
        half.before[word] &= span->before[word];
        half.after[word] = span->after[word];
    }
    /* The upper half first: where a rank has holes, so that it is lost in both, the lower depth stays. */
    if (bisect(match, &half))
        return -1;
    half.low = span->low;
    half.high = middle;
    memcpy(half.after, half.before, words * sizeof *half.after);
    memcpy(half.before, span->before, words * sizeof *half.before);
    return bisect(match, &half);
}

int kvr_match_bisect(const struct kvr_index *index, const struct kvr_keys *keys, const uint8_t *selected,
                     struct kvr_overlap *overlap)
{
    struct match match = {index, keys, selected, overlap, index->rank_words};
    struct span all = {.low = 0, .high = keys->count};
    overlap->words = match.words;
    memset(overlap->ranks, 0, match.words * sizeof *overlap->ranks);
    if (keys->count == 0)
        return 0;
    if (spread_at(&match, 0, all.before))
        return -1;
    memcpy(overlap->ranks, all.before, match.words * sizeof *overlap->ranks);
    return bisect(&match, &all);
}
