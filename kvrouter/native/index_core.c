/* Storing, removing and clearing; `index_core.h` says of what. */
#include "index_core.h"
#include "index_memory.h"
#include "index_row.h"

/* Slots looked at for stale ones: per changed block, and at once when a rank was cleared (about 0.1 ms). */
#define SWEPT_PER_BLOCK 2
#define SWEPT_PER_CLEAR 16384
#define ASKED_BLOCKS 16

/* -- readers ------------------------------------------------------------------------------------------------------ */

/* Before the slot of a key, and with it its neighbours in the segment, and the stretch of its block are written. */
KVR_INLINE void open_change(struct kvr_index *index, uint64_t key, kvr_link link)
{
    if (index->share == NULL)
        return;
    kvr_share_segment(index->share, key, index->table.directory[kvr_table_place(&index->table, key)].depth);
    if (link != KVR_LOOSE_BLOCK)
        kvr_share_stretch(index->share, link >> KVR_STRETCH_BITS);
}

/* Before anything else is written. */
static void open_layout(struct kvr_index *index)
{
    if (index->share != NULL)
        kvr_share_layout(index->share);
}

/* Everything is whole again. */
KVR_INLINE void close_change(struct kvr_index *index)
{
    if (index->share != NULL)
        kvr_share_close(index->share);
}

/* -- tiers -------------------------------------------------------------------------------------------------------- */

int kvr_index_find_tier(const struct kvr_index *index, const char *name, size_t length)
{
    for (uint32_t number = 0; number < index->tier_count; number++) {
        const struct kvr_tier *tier = &index->tiers[number];
        if (tier->length == length && memcmp(tier->name, name, length) == 0)
            return (int)number;
    }
    return -1;
}

int kvr_index_add_tier(struct kvr_index *index, const char *name, size_t length)
{
    uint32_t count = index->tier_count;
    if (index->share != NULL && (count == KVR_SHARED_TIERS_MAX || length >= KVR_SHARED_TIER_BYTES))
        return -1;
    char *copy = kvr_take(&index->bytes, length);
    if (copy == NULL)
        return -1;
    struct kvr_tier *tiers =
        kvr_retake(&index->bytes, index->tiers, count * sizeof *tiers, (count + 1) * sizeof *tiers);
    if (tiers == NULL) {
        kvr_give(&index->bytes, copy, length);
        return -1;
    }
    memcpy(copy, name, length);
    struct kvr_tier tier = {copy, length, NULL, 0};
    tiers[count] = tier;
    index->tiers = tiers;
    index->tier_count = count + 1;
    close_change(index);
    return (int)count;
}

/* Room for the count of a rank. */
static int count_rank(struct kvr_index *index, uint32_t rank, uint32_t tier)
{
    struct kvr_tier *own = &index->tiers[tier];
    if (rank < own->ranks)
        return 0;
    uint32_t ranks = (rank / 64 + 1) * 64;
    size_t *blocks = kvr_retake(&index->bytes, own->blocks, own->ranks * sizeof *blocks, ranks * sizeof *blocks);
    if (blocks == NULL)
        return -1;
    memset(blocks + own->ranks, 0, (ranks - own->ranks) * sizeof *blocks);
    own->blocks = blocks;
    own->ranks = ranks;
    if (ranks / 64 > index->rank_words)
        index->rank_words = ranks / 64;
    return 0;
}

int kvr_index_count(struct kvr_index *index, uint32_t rank, uint32_t tier, size_t blocks)
{
    if (count_rank(index, rank, tier))
        return -1;
    index->tiers[tier].blocks[rank] += blocks;
    return 0;
}

size_t kvr_index_blocks(const struct kvr_index *index, uint32_t rank, uint32_t tier)
{
    const struct kvr_tier *own = &index->tiers[tier];
    return rank < own->ranks ? own->blocks[rank] : 0;
}

/* -- stale slots -------------------------------------------------------------------------------------------------- */

static int is_stale(const struct kvr_index *index, size_t place)
{
    const struct kvr_segment *segment = &index->table.directory[place];
    uint32_t extent = kvr_segment_extent(segment), previous = 0;
    for (uint32_t at = 0; at < extent; at++) {
        uint32_t set = segment->slots[at].value;
        if (set != previous && set != 0 && kvr_sets_at(&index->sets, set)->target != set)
            return 1;
        previous = set;
    }
    return 0;
}

/* Rewrite stale slots, segment by segment, for about so many slots. */
static void sweep(struct kvr_index *index, size_t slots)
{
    for (size_t seen = 0; index->sets.stale > 0 && seen < slots;) {
        uint64_t key = index->sweep_from;
        size_t place = kvr_table_place(&index->table, key);
        index->sweep_from = kvr_table_next_key(&index->table, place);
        seen += kvr_segment_extent(&index->table.directory[place]) + 1;
        if (is_stale(index, place)) {
            kvr_table_renew(&index->table, key);
            close_change(index);
        }
    }
}

void kvr_index_sweep(struct kvr_index *index)
{
    sweep(index, SWEPT_PER_CLEAR);
}

/* -- changes ------------------------------------------------------------------------------------------------------ */

/* A change that is made to blocks of one set. Neighbouring blocks mostly have one, so it is looked for once, and what
 * is counted is counted at its end. */
struct change {
    uint32_t rank, tier;
    uint32_t named;         /* by the slots */
    uint32_t before, after; /* live */
    uint32_t done;          /* to so many slots */
    uint64_t mark_named, mark_after;
};

static void count_change(struct kvr_index *index, struct change *change)
{
    if (change->before != change->after && change->after != 0) {
        kvr_sets_keep(&index->sets, change->after, -1);
        kvr_sets_enter(&index->sets, change->after, change->done);
    }
    if (change->done > 0 && change->named != 0)
        kvr_sets_leave(&index->sets, change->named, change->done);
    if (change->done == 0 && change->after != 0)
        kvr_sets_release(&index->sets, change->after);
    change->done = 0;
}

/* From here on slots name `named`; 0 are those that are absent. What comes of it stays, unused or not, until it is
 * counted. */
static int turn_to(struct kvr_index *index, struct change *change, uint32_t named,
                   int find(struct kvr_sets *sets, struct change *change))
{
    count_change(index, change);
    change->named = named;
    change->before = change->after = kvr_sets_resolve(&index->sets, named);
    if (find(&index->sets, change)) {
        change->after = change->before;
        return -1;
    }
    if (change->before != change->after && change->after != 0)
        kvr_sets_keep(&index->sets, change->after, 1);
    change->mark_named = kvr_stretches_mark(&index->stretches, named);
    change->mark_after = kvr_stretches_mark(&index->stretches, change->after);
    return 0;
}

static int join(struct kvr_sets *sets, struct change *change)
{
    if (kvr_sets_has(sets, change->before, change->tier, change->rank))
        return 0;
    change->after = kvr_sets_with(sets, change->before, change->tier, change->rank);
    return change->after ? 0 : -1;
}

static int part(struct kvr_sets *sets, struct change *change)
{
    if (!kvr_sets_has(sets, change->before, change->tier, change->rank))
        return 0;
    return kvr_sets_without(sets, change->before, change->tier, change->rank, &change->after);
}

static int is_held(const struct kvr_index *index, uint32_t named, uint32_t rank, uint32_t tier)
{
    return kvr_sets_has(&index->sets, kvr_sets_resolve(&index->sets, named), tier, rank);
}

/* The slot that named one set names another one. */
KVR_INLINE void rename_slot(struct kvr_index *index, struct kvr_slot *slot, struct change *change)
{
    open_change(index, slot->key, slot->link);
    slot->value = change->after;
    kvr_stretches_change(&index->stretches, slot->link, change->mark_after - change->mark_named);
    change->done++;
}

KVR_INLINE int add_slot(struct kvr_index *index, struct kvr_slot *slot, uint64_t key, struct change *change,
                        kvr_link link)
{
    open_change(index, key, link);
    if (kvr_table_add_at(&index->table, slot, key, change->after, link)) {
        kvr_stretches_abandon(&index->stretches, link);
        return -1;
    }
    if (link != KVR_LOOSE_BLOCK)
        kvr_stretches_enter(&index->stretches, link, change->mark_after);
    change->done++;
    return 0;
}

static void enter_place(struct kvr_index *index, struct kvr_slot *slot, kvr_link link)
{
    if (link == KVR_LOOSE_BLOCK)
        return;
    open_change(index, slot->key, link);
    slot->link = link;
    kvr_stretches_enter(&index->stretches, link, kvr_stretches_mark(&index->stretches, slot->value));
}

void kvr_index_place(struct kvr_index *index, struct kvr_slot *slot, kvr_link previous)
{
    if (slot->link == KVR_LOOSE_BLOCK)
        enter_place(index, slot, kvr_stretches_follow(&index->stretches, previous));
}

void kvr_index_place_at(struct kvr_index *index, struct kvr_slot *slot, uint32_t position)
{
    if (slot->link == KVR_LOOSE_BLOCK)
        enter_place(index, slot, kvr_stretches_begin(&index->stretches, position));
}

/* Where the block before the first of a chain is. */
static kvr_link find_parent(const struct kvr_index *index, const uint64_t *parent)
{
    if (parent == NULL)
        return KVR_BEFORE_FIRST;
    const struct kvr_slot *slot = kvr_table_find(&index->table, kvr_index_key(index, *parent));
    /* The slot of a block that nobody holds any more may go at any time, and its place with it. */
    int is_held = slot != NULL && kvr_sets_resolve(&index->sets, slot->value) != 0;
    return is_held ? slot->link : KVR_LOOSE_BLOCK;
}

/* Where a block is that follows the one at `previous`; its slot is NULL if it has none yet. */
KVR_INLINE kvr_link follow(struct kvr_index *index, struct kvr_slot *slot, kvr_link previous)
{
    if (slot == NULL)
        return kvr_stretches_follow(&index->stretches, previous);
    kvr_index_place(index, slot, previous);
    return slot->link;
}

/* The blocks of a row, each of which follows the one before it if `is_chain`, the first one that at `previous`. */
static int store_row(struct kvr_index *index, struct kvr_row *row, struct change *change, int is_chain, kvr_link previous,
                     uint8_t *held)
{
    int is_bounded = index->budget.bytes_max != 0;
    size_t *blocks = &index->tiers[change->tier].blocks[change->rank];
    kvr_link link = KVR_LOOSE_BLOCK;
    for (size_t at = 0; at < row->count; at++) {
        struct kvr_asked asked = kvr_row_next(row, at);
        uint64_t key = asked.key;
        struct kvr_slot *slot = kvr_slot_seek(asked.home, key);
        int is_there = kvr_slot_has(slot, key);
        uint32_t named = is_there ? slot->value : 0;
        if (is_bounded && kvr_index_is_full(index) && !is_held(index, named, change->rank, change->tier)) {
            index->budget.refused++;
            previous = KVR_LOOSE_BLOCK;
            continue;
        }
        if (named != change->named && turn_to(index, change, named, join))
            return -1;
        if (is_chain)
            previous = link = follow(index, is_there ? slot : NULL, previous);
        int failed = 0;
        if (change->before != change->after) {
            if (is_there)
                rename_slot(index, slot, change);
            else
                failed = add_slot(index, slot, key, change, link);
            *blocks += !failed;
        } else if (held != NULL) {
            held[at] = 1;
        }
        close_change(index);
        if (failed)
            return -1;
    }
    return 0;
}

static int store(struct kvr_index *index, uint32_t rank, int is_chain, const uint64_t *parent, const uint64_t *hashes,
                 size_t count, uint32_t tier, uint8_t *held)
{
    struct kvr_row row;
    struct change change = {rank, tier, UINT32_MAX, 0, 0, 0, 0, 0};
    if (parent != NULL)
        kvr_index_prefetch(index, *parent);
    kvr_row_open(&row, index, hashes, count);
    if (index->sets.stale)
        sweep(index, count * SWEPT_PER_BLOCK + 1);
    kvr_index_relieve(index);
    if (count_rank(index, rank, tier))
        return -1;
    int failed = store_row(index, &row, &change, is_chain, is_chain ? find_parent(index, parent) : 0, held);
    count_change(index, &change);
    close_change(index);
    return failed;
}

int kvr_index_store(struct kvr_index *index, uint32_t rank, const uint64_t *hashes, size_t count, uint32_t tier)
{
    return store(index, rank, 0, NULL, hashes, count, tier, NULL);
}

int kvr_index_store_chain(struct kvr_index *index, uint32_t rank, const uint64_t *parent, const uint64_t *hashes,
                          size_t count, uint32_t tier, uint8_t *held)
{
    return store(index, rank, 1, parent, hashes, count, tier, held);
}

void kvr_index_note_chain(struct kvr_index *index, const uint64_t *parent, const uint64_t *hashes, size_t count)
{
    kvr_link previous = find_parent(index, parent);
    for (size_t at = 0; at < count; at++) {
        struct kvr_slot *slot = kvr_table_find(&index->table, kvr_index_key(index, hashes[at]));
        if (slot != NULL)
            kvr_index_place(index, slot, previous);
        close_change(index);
        previous = slot == NULL ? KVR_LOOSE_BLOCK : slot->link;
    }
}

int kvr_index_remove(struct kvr_index *index, uint32_t rank, const uint64_t *hashes, size_t count, uint32_t tier)
{
    struct kvr_row row;
    struct change change = {rank, tier, 0, 0, 0, 0, 0, 0};
    int failed = 0;
    kvr_row_open(&row, index, hashes, count);
    if (index->sets.stale)
        sweep(index, count * SWEPT_PER_BLOCK + 1);
    if (kvr_index_blocks(index, rank, tier) == 0)
        return 0;
    size_t *blocks = &index->tiers[tier].blocks[rank];
    for (size_t at = 0; at < count && !failed; at++) {
        struct kvr_asked asked = kvr_row_next(&row, at);
        uint64_t key = asked.key;
        struct kvr_slot *slot = kvr_slot_seek(asked.home, key);
        if (!kvr_slot_has(slot, key))
            continue;
        failed = slot->value != change.named && turn_to(index, &change, slot->value, part);
        if (change.before == change.after)
            continue;
        if (change.after != 0) {
            rename_slot(index, slot, &change);
        } else {
            open_change(index, key, slot->link);
            kvr_stretches_leave(&index->stretches, slot->link, change.mark_named);
            kvr_table_drop(&index->table, slot);
            change.done++;
        }
        close_change(index);
        --*blocks;
    }
    count_change(index, &change);
    close_change(index);
    return failed ? -1 : 0;
}

void kvr_index_clear(struct kvr_index *index, uint32_t rank, uint32_t tier)
{
    size_t blocks = kvr_index_blocks(index, rank, tier);
    if (blocks == 0)
        return;
    open_layout(index);
    kvr_sets_forget(&index->sets, tier, rank, blocks);
    index->tiers[tier].blocks[rank] = 0;
    close_change(index);
    sweep(index, SWEPT_PER_CLEAR);
}

/* -- life --------------------------------------------------------------------------------------------------------- */

static uint32_t settle(void *context, const struct kvr_slot *slot)
{
    struct kvr_index *index = context;
    struct kvr_stretches *stretches = &index->stretches;
    uint32_t named = slot->value;
    if (index->share != NULL && kvr_sets_at(&index->sets, named)->target != named)
        kvr_share_layout(index->share); /* The slot that is copied still stands where it was. */
    uint32_t live = kvr_sets_settle(&index->sets, named);
    if (live == named || slot->link == KVR_LOOSE_BLOCK)
        return live;
    uint64_t mark = kvr_stretches_mark(stretches, named);
    if (live == 0)
        kvr_stretches_leave(stretches, slot->link, mark);
    else
        kvr_stretches_change(stretches, slot->link, kvr_stretches_mark(stretches, live) - mark);
    return live;
}

int kvr_index_open(struct kvr_index *index, uint64_t secret)
{
    struct kvr_share *share = index->share;
    struct kvr_pages beside = index->beside;
    memset(index, 0, sizeof *index);
    index->share = share;
    index->beside = beside;
    index->account.arena = share == NULL ? NULL : &share->arena;
    index->secret = secret;
    kvr_stretches_open(&index->stretches, &index->bytes, kvr_mix(secret, ~secret));
    if (kvr_table_open(&index->table, &index->bytes, settle, index))
        return -1;
    index->table.unsettled = &index->sets.stale;
    index->table.share = share;
    index->table.pages = share == NULL ? &index->pages : NULL;
    return kvr_sets_open(&index->sets, &index->bytes, ~secret);
}

int kvr_index_share(struct kvr_index *index, int file, const char *path, size_t capacity)
{
    uint64_t secret = index->secret;
    size_t bytes_max = index->budget.bytes_max, beside = index->budget.beside;
    struct kvr_share *share = kvr_share_open(index, file, path, capacity);
    if (share == NULL)
        return -1;
    kvr_index_close(index);
    index->share = share;
    int failed = kvr_index_open(index, secret); /* There is room for an empty one. */
    index->budget.bytes_max = bytes_max;
    index->budget.beside = beside;
    close_change(index);
    return failed;
}

int kvr_index_freeze(struct kvr_index *index)
{
    uint64_t secret = index->secret;
    size_t bytes_max = index->budget.bytes_max, beside = index->budget.beside;
    kvr_share_close(index->share);
    kvr_share_end(index->share, KVR_SHARED_FROZEN);
    index->share = NULL;
    int failed = kvr_index_open(index, secret);
    index->budget.bytes_max = bytes_max;
    index->budget.beside = beside;
    return failed;
}

void kvr_index_close(struct kvr_index *index)
{
    if (index->share != NULL) { /* All of it is there. */
        kvr_share_end(index->share, KVR_SHARED_CLOSED);
        return;
    }
    kvr_table_close(&index->table);
    kvr_pages_close(&index->pages);
    if (index->sets.account != NULL)
        kvr_sets_close(&index->sets);
    if (index->stretches.account != NULL)
        kvr_stretches_close(&index->stretches);
    for (uint32_t number = 0; number < index->tier_count; number++) {
        struct kvr_tier *tier = &index->tiers[number];
        kvr_give(&index->bytes, tier->name, tier->length);
        kvr_give(&index->bytes, tier->blocks, tier->ranks * sizeof *tier->blocks);
    }
    kvr_give(&index->bytes, index->budget.doubted, index->budget.doubted_room * sizeof *index->budget.doubted);
    kvr_give(&index->bytes, index->budget.lost, index->budget.lost_room * sizeof *index->budget.lost);
    kvr_give(&index->bytes, index->tiers, index->tier_count * sizeof *index->tiers);
}
