/* Storing and removing the blocks of one rank; `ingest_rank.h` says how they are kept. */
#include "ingest_rank.h"
#include "index_memory.h"

/* In a row: the number of copies is too large for it. */
#define IN_LARGE KVR_ROW_COPIES_MAX
/* Hashes kept after their last copy is gone: an eighth of the others, but not less than this and not more than allowed. */
#define IDLE_MIN 1024
#define IDLE_SHARE 8
#define GONE_AT_ONCE 64
#define HELD_AT_ONCE 512

static const char *const TIER_NAMES[KVR_TIERS] = {"gpu", "cpu", "disk"};

/* -- rows --------------------------------------------------------------------------------------------------------- */

uint32_t kvr_rank_large_number(const struct kvr_rank *rank, uint64_t scattered)
{
    const struct kvr_slot *slot = kvr_table_find(&rank->large, scattered);
    return slot ? slot->value : KVR_LOOSE;
}

/* Write a number into a row; who counts rows per number is told by the caller. */
static int write_number(struct kvr_rank *rank, uint8_t *row, uint64_t scattered, uint32_t number)
{
    struct kvr_slot *slot = kvr_row_copies(row) == IN_LARGE ? kvr_table_find(&rank->large, scattered) : NULL;
    if (number < IN_LARGE) {
        if (slot != NULL)
            kvr_table_drop(&rank->large, slot);
        kvr_row_set_copies(row, number);
        return 0;
    }
    if (slot != NULL)
        slot->value = number;
    else if (kvr_table_add(&rank->large, scattered, number))
        return -1;
    kvr_row_set_copies(row, IN_LARGE);
    return 0;
}

int kvr_rank_renumber(struct kvr_rank *rank, uint8_t *row, uint64_t scattered, uint32_t before, uint32_t after)
{
    if (after == UINT32_MAX)
        return -1;
    kvr_copies_enter(&rank->copies, after);
    if (write_number(rank, row, scattered, after)) {
        kvr_copies_leave(&rank->copies, after);
        return -1;
    }
    kvr_copies_leave(&rank->copies, before);
    return 0;
}

/* A new row; NULL without memory. */
static uint8_t *add_row(struct kvr_rank *rank, uint64_t scattered, uint64_t key, uint32_t number)
{
    int is_new;
    uint8_t *row = kvr_aliases_add(&rank->aliases, scattered, key, KVR_LOOSE, &is_new);
    if (row == NULL)
        return NULL;
    if (number != KVR_LOOSE && kvr_rank_renumber(rank, row, scattered, KVR_LOOSE, number)) {
        kvr_aliases_drop(&rank->aliases, row, scattered);
        return NULL;
    }
    return row;
}

void kvr_rank_drop_row(struct kvr_rank *rank, uint8_t *row, uint64_t scattered)
{
    kvr_copies_leave(&rank->copies, kvr_rank_number(rank, row, scattered));
    (void)write_number(rank, row, scattered, KVR_LOOSE);
    kvr_aliases_drop(&rank->aliases, row, scattered);
}

/* -- the index ---------------------------------------------------------------------------------------------------- */

int kvr_rank_index_tier(struct kvr_rank *rank, uint32_t tier)
{
    const char *name = TIER_NAMES[tier];
    int number = kvr_index_find_tier(rank->index, name, strlen(name));
    return number >= 0 ? number : kvr_index_add_tier(rank->index, name, strlen(name));
}

static int is_in_index(const struct kvr_rank *rank, int tier, uint64_t key)
{
    return kvr_sets_has(&rank->index->sets, kvr_index_holders(rank->index, key), (uint32_t)tier, rank->rank);
}

int kvr_count_up(struct kvr_table *table, uint64_t scattered)
{
    struct kvr_slot *slot = kvr_table_find(table, scattered);
    if (slot == NULL)
        return kvr_table_add(table, scattered, 1);
    slot->value++;
    return 0;
}

static void count_down(struct kvr_table *table, struct kvr_slot *slot)
{
    if (slot->value > 1)
        slot->value--;
    else
        kvr_table_drop(table, slot);
}

/* An engine hash that names a block has its first copy in a place. */
static int block_came(struct kvr_rank *rank, struct kvr_place *place, uint64_t key)
{
    if (!place->is_main)
        return kvr_count_up(&place->holders, kvr_mix(key, rank->secret));
    int tier = kvr_rank_index_tier(rank, place->tier);
    if (tier < 0)
        return -1;
    if (is_in_index(rank, tier, key))
        return kvr_count_up(&place->holders, kvr_mix(key, rank->secret));
    return kvr_index_store(rank->index, rank->rank, &key, 1, (uint32_t)tier);
}

/* Blocks to take out of the index, several at once. */
struct gone {
    size_t count;
    uint64_t keys[GONE_AT_ONCE];
};

static int flush(struct kvr_rank *rank, const struct kvr_place *place, struct gone *gone)
{
    size_t count = gone->count;
    gone->count = 0;
    if (count == 0)
        return 0;
    int tier = kvr_rank_index_tier(rank, place->tier);
    if (tier >= 0 && kvr_index_remove(rank->index, rank->rank, gone->keys, count, (uint32_t)tier) == 0)
        return 0;
    if (tier >= 0) /* Without memory the index rather knows nothing of the rank than something that is gone. */
        kvr_index_clear(rank->index, rank->rank, (uint32_t)tier);
    return -1;
}

/* An engine hash that names a block has no copy in a place any more. */
static int block_went(struct kvr_rank *rank, struct kvr_place *place, uint64_t key, struct gone *gone)
{
    struct kvr_slot *slot =
        place->holders.used ? kvr_table_find(&place->holders, kvr_mix(key, rank->secret)) : NULL;
    if (slot != NULL) {
        count_down(&place->holders, slot);
        return 0;
    }
    if (!place->is_main)
        return 0;
    gone->keys[gone->count++] = key;
    kvr_index_prefetch(rank->index, key);
    return 0;
}

int kvr_rank_holds(const struct kvr_rank *rank, uint32_t number, uint64_t key)
{
    const struct kvr_place *place = &rank->places[number];
    if (!place->is_main)
        return kvr_table_find(&place->holders, kvr_mix(key, rank->secret)) != NULL;
    const char *name = TIER_NAMES[place->tier];
    int tier = kvr_index_find_tier(rank->index, name, strlen(name));
    return tier >= 0 && is_in_index(rank, tier, key);
}

/* -- what is forgotten -------------------------------------------------------------------------------------------- */

static size_t idle_most(const struct kvr_rank *rank)
{
    size_t share = (rank->aliases.used - kvr_queue_count(&rank->idle)) / IDLE_SHARE;
    size_t most = share < IDLE_MIN ? IDLE_MIN : share;
    return most < rank->idle_max ? most : rank->idle_max;
}

/* A row without copies. */
static void forget_row(struct kvr_rank *rank, uint8_t *row, uint64_t scattered)
{
    kvr_aliases_drop(&rank->aliases, row, scattered);
    if (rank->forget != NULL)
        rank->forget(rank->context, kvr_unmix(scattered, rank->secret));
}

/* Ask for what is forgotten soon: the one in the queue at `number`, if there is one. Inline, for a compiler drops calls
 * that do nothing but ask. */
KVR_INLINE void prefetch_idle(const struct kvr_rank *rank, size_t number)
{
    if (number < rank->idle.used)
        kvr_aliases_prefetch(&rank->aliases, kvr_queue_peek(&rank->idle, number));
}

KVR_INLINE void prefetch_idle_other(const struct kvr_rank *rank, size_t number)
{
    if (number < rank->idle.used)
        kvr_aliases_prefetch_other(&rank->aliases, kvr_queue_peek(&rank->idle, number));
}

static void bound_idle(struct kvr_rank *rank)
{
    size_t most = idle_most(rank), count = kvr_queue_count(&rank->idle);
    for (size_t number = 0; count > most && number < KVR_PREFETCH_BLOCKS && number < count - most; number++)
        prefetch_idle(rank, number);
    while (kvr_queue_count(&rank->idle) > idle_most(rank)) {
        prefetch_idle(rank, KVR_PREFETCH_BLOCKS);
        prefetch_idle_other(rank, KVR_PREFETCH_BLOCKS / 2);
        uint64_t scattered = kvr_queue_take(&rank->idle);
        uint8_t *row = kvr_aliases_find(&rank->aliases, scattered);
        if (row != NULL && kvr_row_copies(row) == KVR_IDLE)
            forget_row(rank, row, scattered);
    }
}

static int bound_unresolved(struct kvr_rank *rank)
{
    while (kvr_queue_count(&rank->unresolved) > rank->unresolved_max) {
        uint64_t scattered = kvr_queue_take(&rank->unresolved);
        uint8_t *row = kvr_aliases_find(&rank->aliases, scattered);
        if (row == NULL || kvr_copies_is_known(&rank->copies, kvr_rank_number(rank, row, scattered)))
            continue;
        kvr_rank_drop_row(rank, row, scattered);
        rank->unresolved_dropped++;
    }
    return 0;
}

/* A row without copies, of a known meaning, waits to be forgotten. */
static int make_idle(struct kvr_rank *rank, uint8_t *row, uint64_t scattered, uint32_t before)
{
    if (kvr_queue_join(&rank->idle, scattered) || kvr_rank_renumber(rank, row, scattered, before, KVR_IDLE))
        return -1;
    rank->evicted++;
    return 0;
}

int kvr_rank_retire(struct kvr_rank *rank, uint64_t hash)
{
    uint64_t scattered = kvr_mix(hash, rank->secret);
    uint8_t *row = kvr_aliases_find(&rank->aliases, scattered);
    if (row == NULL || kvr_row_copies(row) != KVR_LOOSE)
        return 0;
    int failed = make_idle(rank, row, scattered, KVR_LOOSE);
    bound_idle(rank);
    return failed;
}

int kvr_rank_forget(struct kvr_rank *rank, uint64_t hash)
{
    uint64_t scattered = kvr_mix(hash, rank->secret);
    uint8_t *row = kvr_aliases_find(&rank->aliases, scattered);
    uint32_t number = row ? kvr_rank_number(rank, row, scattered) : KVR_COPIES_FIRST;
    if (number >= KVR_COPIES_FIRST)
        return 1;
    if (number == KVR_IDLE && kvr_queue_leave(&rank->idle, scattered))
        return -1;
    forget_row(rank, row, scattered);
    return 0;
}

/* -- copies come -------------------------------------------------------------------------------------------------- */

static int add_to_row(struct kvr_rank *rank, struct kvr_place *place, uint8_t *row, uint64_t scattered)
{
    uint32_t number = (uint32_t)(place - rank->places), before = kvr_rank_number(rank, row, scattered);
    int is_first = kvr_copies_in(&rank->copies, before, number) == 0;
    uint32_t after = before == KVR_IDLE || before == KVR_LOOSE ? place->one
                                                                : kvr_copies_more(&rank->copies, before, number);
    uint64_t key = kvr_row_key(row);
    if (kvr_rank_renumber(rank, row, scattered, before, after) ||
        (before == KVR_IDLE && kvr_queue_leave(&rank->idle, scattered)))
        return -1;
    rank->returned += before == KVR_IDLE;
    if (!is_first)
        return 0;
    return kvr_copies_is_known(&rank->copies, after) ? block_came(rank, place, key) : 0;
}

int kvr_rank_add(struct kvr_rank *rank, uint32_t number, const uint64_t *hashes, size_t count)
{
    struct kvr_turns turns;
    kvr_turns_open(&turns, rank, hashes, count);
    for (size_t at = 0; at < count; at++) {
        uint64_t scattered = kvr_turns_next(&turns, at);
        struct kvr_place *place = &rank->places[number];
        uint8_t *row = kvr_aliases_find(&rank->aliases, scattered);
        if (row != NULL) {
            if (add_to_row(rank, place, row, scattered))
                return -1;
            continue;
        }
        uint32_t waiting = kvr_copies_with(&rank->copies, KVR_NO_COPIES, number, 1);
        row = waiting == UINT32_MAX ? NULL : add_row(rank, scattered, 0, waiting);
        if (row == NULL) {
            kvr_copies_release(&rank->copies, waiting);
            return -1;
        }
        if (kvr_queue_join(&rank->unresolved, scattered)) {
            kvr_rank_drop_row(rank, row, scattered);
            return -1;
        }
    }
    return bound_unresolved(rank);
}

/* Take out the rows that were just added for hashes that turn out not to be all new. */
static void undo(struct kvr_rank *rank, const uint64_t *hashes, size_t count)
{
    for (size_t at = 0; at < count; at++) {
        uint64_t scattered = kvr_mix(hashes[at], rank->secret);
        uint8_t *row = kvr_aliases_find(&rank->aliases, scattered);
        if (row != NULL)
            kvr_rank_drop_row(rank, row, scattered);
    }
}

/* Rows with one copy in a place for hashes that are all new. 1 if they are not, -1 without memory; then none is left. */
static int add_rows(struct kvr_rank *rank, const struct kvr_place *place, const uint64_t *hashes, const uint64_t *keys,
                    size_t count)
{
    uint32_t one = place->one < IN_LARGE ? place->one : KVR_LOOSE;
    struct kvr_turns turns;
    kvr_turns_open(&turns, rank, hashes, count);
    for (size_t at = 0; at < count; at++) {
        int is_new;
        uint64_t scattered = kvr_turns_next(&turns, at);
        uint8_t *row = kvr_aliases_add(&rank->aliases, scattered, keys[at], one, &is_new);
        if (row == NULL || !is_new) {
            undo(rank, hashes, at); /* If this one was there, its first mention is among them or not ours. */
            return row != NULL ? 1 : -1;
        }
        kvr_copies_enter(&rank->copies, one);
        if (one != place->one && kvr_rank_renumber(rank, row, scattered, one, place->one)) {
            undo(rank, hashes, at + 1);
            return -1;
        }
    }
    return 0;
}

/* Put a chain into the index. Blocks that are there already have several names from now on. */
static int add_to_index(struct kvr_rank *rank, struct kvr_place *place, const uint64_t *parent, const uint64_t *keys,
                        size_t count)
{
    uint8_t held[HELD_AT_ONCE];
    int tier = kvr_rank_index_tier(rank, place->tier);
    if (tier < 0)
        return -1;
    for (size_t from = 0; from < count; from += HELD_AT_ONCE) {
        size_t part = count - from < HELD_AT_ONCE ? count - from : HELD_AT_ONCE;
        memset(held, 0, part);
        if (kvr_index_store_chain(rank->index, rank->rank, from ? &keys[from - 1] : parent, keys + from, part,
                                  (uint32_t)tier, held))
            return -1;
        for (const uint8_t *at = held; (at = memchr(at, 1, part - (size_t)(at - held))) != NULL; at++)
            if (kvr_count_up(&place->holders, kvr_mix(keys[from + (size_t)(at - held)], rank->secret)))
                return -1;
    }
    return 0;
}

int kvr_rank_add_new(struct kvr_rank *rank, uint32_t number, const uint64_t *hashes, const uint64_t *parent,
                     const uint64_t *keys, size_t count)
{
    struct kvr_place *place = &rank->places[number];
    int added = add_rows(rank, place, hashes, keys, count);
    if (added != 0)
        return added;
    if (place->is_main)
        return add_to_index(rank, place, parent, keys, count);
    for (size_t at = 0; at < count; at++)
        if (block_came(rank, place, keys[at]))
            return -1;
    return 0;
}

int kvr_rank_learn(struct kvr_rank *rank, uint64_t hash, uint64_t key)
{
    uint64_t scattered = kvr_mix(hash, rank->secret);
    uint8_t *row = kvr_aliases_find(&rank->aliases, scattered);
    if (row == NULL)
        return add_row(rank, scattered, key, KVR_LOOSE) == NULL ? -1 : 0;
    uint32_t before = kvr_rank_number(rank, row, scattered);
    if (kvr_copies_is_known(&rank->copies, before))
        return 0;
    kvr_row_set_key(row, key);
    uint32_t after = kvr_copies_known(&rank->copies, before), places;
    if (kvr_rank_renumber(rank, row, scattered, before, after) || kvr_queue_leave(&rank->unresolved, scattered))
        return -1;
    (void)kvr_copies_list(&rank->copies, after, &places);
    for (uint32_t at = 0; at < places; at++) {
        const struct kvr_copy *list = kvr_copies_list(&rank->copies, after, &places);
        if (block_came(rank, &rank->places[list[at].place], key))
            return -1;
    }
    return 0;
}

/* -- copies go ---------------------------------------------------------------------------------------------------- */

/* No copy is left anywhere: a meaning is kept for a while, a mere hash is not. */
static int last_copy_went(struct kvr_rank *rank, uint8_t *row, uint64_t scattered, uint32_t before)
{
    if (kvr_copies_is_known(&rank->copies, before))
        return make_idle(rank, row, scattered, before);
    if (kvr_queue_leave(&rank->unresolved, scattered))
        return -1;
    kvr_rank_drop_row(rank, row, scattered);
    return 0;
}

/* Whether a row says what nearly all do: one copy, in this place, of a known block. */
static int has_one(const struct kvr_place *place, const uint8_t *row)
{
    return kvr_row_copies(row) == place->one && place->one != IN_LARGE;
}

/* The only copy of such a row goes. */
static int remove_only(struct kvr_rank *rank, struct kvr_place *place, uint8_t *row, uint64_t scattered,
                       struct gone *gone)
{
    if (kvr_queue_join(&rank->idle, scattered))
        return -1;
    kvr_row_set_copies(row, KVR_IDLE);
    rank->copies.all[place->one].rows--; /* The place has one as well. */
    rank->evicted++;
    return block_went(rank, place, kvr_row_key(row), gone);
}

static int remove_from_row(struct kvr_rank *rank, struct kvr_place *place, uint8_t *row, uint64_t scattered,
                           struct gone *gone)
{
    uint32_t number = (uint32_t)(place - rank->places), before = kvr_rank_number(rank, row, scattered);
    uint32_t left = kvr_copies_in(&rank->copies, before, number) - 1, places;
    if (left > 0)
        return kvr_rank_renumber(rank, row, scattered, before, kvr_copies_with(&rank->copies, before, number, left));
    int is_known = kvr_copies_is_known(&rank->copies, before);
    uint64_t key = kvr_row_key(row);
    (void)kvr_copies_list(&rank->copies, before, &places);
    if (places == 1 ? last_copy_went(rank, row, scattered, before)
                    : kvr_rank_renumber(rank, row, scattered, before, kvr_copies_with(&rank->copies, before, number, 0)))
        return -1;
    return is_known ? block_went(rank, place, key, gone) : 0;
}

/* What follows from the removals so far. */
static int conclude(struct kvr_rank *rank, const struct kvr_place *place, struct gone *gone)
{
    bound_idle(rank);
    return flush(rank, place, gone);
}

int kvr_rank_remove(struct kvr_rank *rank, uint32_t number, const uint64_t *hashes, size_t count, size_t *unknown)
{
    struct kvr_place *place = &rank->places[number];
    struct kvr_turns turns;
    struct gone gone;
    int failed = 0;
    gone.count = 0;
    kvr_turns_open(&turns, rank, hashes, count);
    for (size_t at = 0; at < count && !failed; at++) {
        uint64_t scattered = kvr_turns_next(&turns, at);
        uint8_t *row = kvr_aliases_find(&rank->aliases, scattered);
        if (row != NULL && has_one(place, row))
            failed = remove_only(rank, place, row, scattered, &gone);
        else if (row != NULL && kvr_copies_in(&rank->copies, kvr_rank_number(rank, row, scattered), number))
            failed = remove_from_row(rank, place, row, scattered, &gone);
        else
            ++*unknown;
        if (at % GONE_AT_ONCE == GONE_AT_ONCE - 1)
            failed |= conclude(rank, place, &gone);
    }
    return conclude(rank, place, &gone) || failed ? -1 : 0;
}
