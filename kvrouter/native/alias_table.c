/* Growing, shrinking, splitting and joining the segments of a table of aliases; `alias_table.h` says what it is. */
#include "alias_segment.h"
#include "index_memory.h"

/* No segment is split when that would leave a directory with more entries than this many rows each. */
#define ROWS_PER_ENTRY_MIN 64
/* -- the directory ------------------------------------------------------------------------------------------------ */

static size_t first_place(const struct kvr_aliases *aliases, size_t place, uint32_t depth)
{
    return place >> (aliases->bits - depth) << (aliases->bits - depth);
}

/* The least hash of a segment of this depth at a place. */
static uint64_t first_hash(const struct kvr_aliases *aliases, size_t place, uint32_t depth)
{
    return (uint64_t)first_place(aliases, place, depth) << 1 << (63 - aliases->bits);
}

static void enter_segment(struct kvr_aliases *aliases, size_t place, struct kvr_rows segment)
{
    size_t first = first_place(aliases, place, segment.depth);
    size_t count = (size_t)1 << (aliases->bits - segment.depth);
    for (size_t number = 0; number < count; number++)
        aliases->directory[first + number] = segment;
}

static size_t directory_bytes(uint32_t bits)
{
    return sizeof(struct kvr_rows) << bits;
}

static int double_directory(struct kvr_aliases *aliases)
{
    struct kvr_rows *old = aliases->directory;
    struct kvr_rows *directory = kvr_take(aliases->account, directory_bytes(aliases->bits + 1));
    if (directory == NULL)
        return -1;
    for (size_t place = 0; place < (size_t)1 << aliases->bits; place++)
        directory[2 * place] = directory[2 * place + 1] = old[place];
    kvr_give(aliases->account, old, directory_bytes(aliases->bits));
    aliases->directory = directory;
    aliases->bits++;
    aliases->deepest = 0;
    return 0;
}

/* Best effort: without memory the directory stays as large as it is. */
static void halve_directory(struct kvr_aliases *aliases)
{
    while (aliases->bits > 0 && aliases->deepest == 0) {
        struct kvr_rows *directory = kvr_take(aliases->account, directory_bytes(aliases->bits - 1));
        if (directory == NULL)
            return;
        aliases->bits--;
        for (size_t place = 0; place < (size_t)1 << aliases->bits; place++) {
            directory[place] = aliases->directory[2 * place];
            aliases->deepest += directory[place].depth == aliases->bits;
        }
        kvr_give(aliases->account, aliases->directory, directory_bytes(aliases->bits + 1));
        aliases->directory = directory;
    }
}

/* -- resizing ----------------------------------------------------------------------------------------------------- */

/* Put the rows of the runs into a new segment of this capacity for `place`; what was there stays allocated. -1 without
 * memory. */
static int replace(struct kvr_aliases *aliases, size_t place, uint32_t depth, const struct kvr_run *runs, int count,
                   uint32_t capacity)
{
    struct kvr_rows fresh = kvr_rows_none(depth);
    if (capacity > 0 && kvr_rows_make(aliases, &fresh, first_hash(aliases, place, depth), capacity, runs, count))
        return -1;
    enter_segment(aliases, place, fresh);
    return 0;
}

static int resize_segment(struct kvr_aliases *aliases, size_t place, uint32_t capacity)
{
    struct kvr_rows old = aliases->directory[place];
    struct kvr_run run = kvr_run_of(&old);
    if (replace(aliases, place, old.depth, &run, 1, capacity))
        return -1;
    kvr_rows_free(aliases, &old);
    return 0;
}

static int split_segment(struct kvr_aliases *aliases, size_t place)
{
    struct kvr_rows old = aliases->directory[place];
    if (old.depth == aliases->bits) {
        if (double_directory(aliases))
            return -1;
        place *= 2;
    }
    uint32_t depth = old.depth + 1u;
    uint64_t first = first_hash(aliases, place, old.depth), boundary = first | (uint64_t)1 << (63 - old.depth);
    struct kvr_run low = {&old, 0, boundary - 1}, high = {&old, boundary, UINT64_MAX};
    struct kvr_rows halves[2] = {kvr_rows_none(depth), kvr_rows_none(depth)};
    uint32_t used = kvr_run_count(low);
    if (kvr_rows_make(aliases, &halves[0], first, kvr_rows_fitting(used), &low, 1)) {
        halve_directory(aliases);
        return -1;
    }
    if (kvr_rows_make(aliases, &halves[1], boundary, kvr_rows_fitting(kvr_rows_used(&old) - used), &high, 1)) {
        kvr_rows_free(aliases, &halves[0]);
        halve_directory(aliases);
        return -1;
    }
    size_t at = first_place(aliases, place, old.depth);
    enter_segment(aliases, at, halves[0]);
    enter_segment(aliases, at + ((size_t)1 << (aliases->bits - depth)), halves[1]);
    if (depth == aliases->bits)
        aliases->deepest += 2;
    kvr_rows_free(aliases, &old);
    return 0;
}

static int make_room(struct kvr_aliases *aliases, size_t place)
{
    const struct kvr_rows *segment = &aliases->directory[place];
    uint32_t fitting = kvr_rows_fitting(kvr_rows_used(segment) + 1);
    int may_split = segment->depth < aliases->bits || aliases->used >> aliases->bits >= ROWS_PER_ENTRY_MIN;
    if (fitting > KVR_ROWS_CAPACITY_MAX && may_split && segment->depth < 31)
        return split_segment(aliases, place);
    /* Also where it is not full, and there was no room for one more all the same. */
    uint32_t larger = kvr_rows_round_up(segment->capacity + 1);
    return resize_segment(aliases, place, fitting > larger ? fitting : larger);
}

/* Join a segment with the one of its other half, if both are small; returns whether. */
static int join_segment(struct kvr_aliases *aliases, size_t place)
{
    struct kvr_rows own = aliases->directory[place];
    if (own.depth == 0)
        return 0;
    size_t first = first_place(aliases, place, own.depth - 1u);
    size_t second = first + ((size_t)1 << (aliases->bits - own.depth));
    struct kvr_rows low = aliases->directory[first], high = aliases->directory[second];
    uint32_t used = kvr_rows_used(&low) + kvr_rows_used(&high);
    if (low.depth != high.depth || kvr_rows_fitting(used) > KVR_ROWS_CAPACITY_MAX / 2)
        return 0;
    struct kvr_run runs[2] = {kvr_run_of(&low), kvr_run_of(&high)};
    if (replace(aliases, place, own.depth - 1u, runs, 2, used > 0 ? kvr_rows_fitting(used) : 0))
        return 0;
    kvr_rows_free(aliases, &low);
    kvr_rows_free(aliases, &high);
    if (own.depth == aliases->bits) {
        aliases->deepest -= 2;
        halve_directory(aliases);
    }
    return 1;
}

/* Give back what the segment of a hash does not need; best effort. Each turn makes it less deep. */
static void shrink(struct kvr_aliases *aliases, uint64_t hash)
{
    size_t place = kvr_aliases_place(aliases, hash);
    while (kvr_rows_is_sparse(&aliases->directory[place]) && join_segment(aliases, place))
        place = kvr_aliases_place(aliases, hash);
    const struct kvr_rows *segment = &aliases->directory[place];
    uint32_t used = kvr_rows_used(segment), fitting = used > 0 ? kvr_rows_fitting(used) : 0;
    if (kvr_rows_is_sparse(segment) && fitting < segment->capacity)
        (void)resize_segment(aliases, place, fitting);
}

/* -- single hashes ------------------------------------------------------------------------------------------------ */

/* Put a hash into its segment, unless there is no room; the row, or NULL. One that is there is left alone. */
KVR_INLINE uint8_t *insert(const struct kvr_rows *segment, uint64_t hash, uint64_t key, uint32_t copies, int *is_new)
{
    uint8_t *row = kvr_rows_find(segment, hash);
    *is_new = row == NULL;
    if (row == NULL && (row = kvr_rows_put(segment, hash, key, copies)) != NULL)
        kvr_rows_head(segment)->used++;
    return row;
}

uint8_t *kvr_aliases_add(struct kvr_aliases *aliases, uint64_t hash, uint64_t key, uint32_t copies, int *is_new)
{
    size_t place = kvr_aliases_place(aliases, hash);
    int crowded = kvr_rows_is_full(&aliases->directory[place]);
    for (;;) {
        int no_memory = crowded && make_room(aliases, place);
        place = kvr_aliases_place(aliases, hash);
        const struct kvr_rows *segment = &aliases->directory[place];
        /* Without memory for a larger segment, its last gaps are used. */
        uint8_t *row = segment->capacity ? insert(segment, hash, key, copies, is_new) : NULL;
        if (row != NULL) {
            aliases->used += (size_t)*is_new;
            return row;
        }
        if (no_memory)
            return NULL;
        crowded = 1;
    }
}

void kvr_aliases_drop(struct kvr_aliases *aliases, uint8_t *row, uint64_t hash)
{
    const struct kvr_rows *segment = kvr_aliases_segment(aliases, hash);
    struct kvr_stripe *stripe = kvr_stripe_of(row), *home = kvr_aliases_home(aliases, hash);
    if (stripe != home)
        kvr_stripe_count_away(home, -1);
    kvr_stripe_take_out(stripe, kvr_row_place(row), segment->tops);
    kvr_rows_head(segment)->used--;
    aliases->used--;
    if (kvr_rows_is_sparse(segment))
        shrink(aliases, hash);
}

/* -- the whole --------------------------------------------------------------------------------------------------------- */

int kvr_aliases_visit(const struct kvr_aliases *aliases, kvr_visit_row *visit, void *context)
{
    for (size_t place = 0; place < (size_t)1 << aliases->bits;) {
        const struct kvr_rows *segment = &aliases->directory[place];
        int answer = kvr_rows_visit(segment, visit, context);
        if (answer)
            return answer;
        place += (size_t)1 << (aliases->bits - segment->depth);
    }
    return 0;
}

int kvr_aliases_open(struct kvr_aliases *aliases, size_t *account, struct kvr_pages *pages)
{
    aliases->directory = kvr_take(account, directory_bytes(0));
    if (aliases->directory == NULL)
        return -1;
    aliases->directory[0] = kvr_rows_none(0);
    aliases->bits = 0;
    aliases->deepest = 1;
    aliases->used = 0;
    aliases->account = account;
    aliases->pages = pages;
    return 0;
}

void kvr_aliases_close(struct kvr_aliases *aliases)
{
    if (aliases->directory == NULL)
        return;
    size_t count = (size_t)1 << aliases->bits;
    for (size_t place = 0; place < count;) {
        struct kvr_rows segment = aliases->directory[place];
        place += (size_t)1 << (aliases->bits - segment.depth);
        kvr_rows_free(aliases, &segment);
    }
    kvr_give(aliases->account, aliases->directory, directory_bytes(aliases->bits));
    aliases->directory = NULL;
}
