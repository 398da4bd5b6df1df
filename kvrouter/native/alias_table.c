/* Growing, shrinking, splitting and joining the segments of a table of aliases; `alias_table.h` says what it is. */
#include "alias_table.h"
#include "index_memory.h"

/* A segment of at most so many stripes is copied in some dozen us. */
#define CAPACITY_MAX 1024
#define CAPACITY_MIN 2
/* No segment is split when that would leave a directory with more entries than this many rows each. */
#define ROWS_PER_ENTRY_MIN 64
/* A segment so much larger than fits is not tried: its hashes are not scattered. */
#define CAPACITY_TIMES_MAX 4
/* With so many stripes, or places in the directory for them, the first byte of a hash follows from its stripe. */
#define HOMES_MIN 256

/* Stands right before the list of the pages of a segment. */
struct head {
    uint64_t first;        /* the least hash that it may have */
    uint32_t used;         /* rows */
    uint32_t full, sparse; /* so many rows, or less than so many, are a reason to copy them to another size */
    uint32_t page_count;
};

/* What every segment without rows looks at. Never written, for its capacity is 0. */
static const _Alignas(KVR_STRIPE_BYTES) struct kvr_stripe NOTHING;
static struct kvr_stripe *const NO_PAGES[1] = {(struct kvr_stripe *)(uintptr_t)&NOTHING};

static struct head *head_of(const struct kvr_rows *segment)
{
    return (struct head *)(void *)segment->pages - 1;
}

static uint32_t used_in(const struct kvr_rows *segment)
{
    return segment->capacity ? head_of(segment)->used : 0;
}

/* Whole pages, unless it is less than one. */
static uint32_t round_up(uint32_t capacity)
{
    return capacity > KVR_PAGE_STRIPES ? (capacity + KVR_PAGE_STRIPES - 1) / KVR_PAGE_STRIPES * KVR_PAGE_STRIPES : capacity;
}

/* After a copy a segment is filled to 6/7; it is copied again above 29/32 and below 13/32: then less fits. */
static uint32_t fitting_capacity(uint32_t used)
{
    uint32_t rows = used + used / 6, capacity = rows / KVR_STRIPE_ROWS + 1;
    if (capacity < HOMES_MIN)
        capacity = rows / (KVR_STRIPE_ROWS - 1) + 1;
    return capacity < CAPACITY_MIN ? CAPACITY_MIN : round_up(capacity);
}

static int is_full(const struct kvr_rows *segment)
{
    return segment->capacity == 0 || head_of(segment)->used >= head_of(segment)->full;
}

static int is_sparse(const struct kvr_rows *segment)
{
    return segment->capacity == 0 || head_of(segment)->used < head_of(segment)->sparse;
}

/* -- memory ------------------------------------------------------------------------------------------------------- */

static uint32_t pages_for(uint32_t capacity)
{
    return (capacity + KVR_PAGE_STRIPES - 1) / KVR_PAGE_STRIPES;
}

/* Of every page but the last one all stripes are there. */
static size_t page_bytes(uint32_t capacity, uint32_t page)
{
    uint32_t left = capacity - page * KVR_PAGE_STRIPES;
    return (left < KVR_PAGE_STRIPES ? left : KVR_PAGE_STRIPES) * sizeof(struct kvr_stripe);
}

static size_t list_bytes(uint32_t capacity)
{
    return sizeof(struct head) + pages_for(capacity) * sizeof(struct kvr_stripe *);
}

/* Of the pages of a segment the first `page_count` are there. */
static void free_segment(struct kvr_aliases *aliases, const struct kvr_rows *segment)
{
    if (segment->capacity == 0)
        return;
    struct head *head = head_of(segment);
    for (uint32_t page = 0; page < head->page_count; page++)
        kvr_pages_give_aligned(aliases->pages, aliases->account, segment->pages[page],
                               page_bytes(segment->capacity, page));
    kvr_give(aliases->account, head, list_bytes(segment->capacity));
}

static struct kvr_rows without_rows(uint32_t depth)
{
    struct kvr_rows segment = {(struct kvr_stripe **)(uintptr_t)NO_PAGES, 0, (uint16_t)depth, KVR_STRIPE_ROWS, 0};
    return segment;
}

/* Give a segment without rows its stripes, all of them vacant; -1 without memory. */
static int take_stripes(struct kvr_aliases *aliases, struct kvr_rows *segment, uint32_t capacity, uint64_t first)
{
    struct head *head = kvr_take(aliases->account, list_bytes(capacity));
    if (head == NULL)
        return -1;
    int is_narrow = (uint64_t)capacity << segment->depth < HOMES_MIN;
    segment->pages = (struct kvr_stripe **)(void *)(head + 1);
    segment->capacity = capacity;
    segment->rows = (uint8_t)(KVR_STRIPE_ROWS - (uint32_t)is_narrow);
    segment->tops = (uint8_t)is_narrow;
    head->first = first;
    head->used = 0;
    head->full = capacity * segment->rows / 32 * 29;
    head->sparse = capacity > CAPACITY_MIN ? capacity * segment->rows / 32 * 13 : 1;
    for (head->page_count = 0; head->page_count < pages_for(capacity); head->page_count++) {
        size_t bytes = page_bytes(capacity, head->page_count);
        struct kvr_stripe *page =
            kvr_pages_take_aligned(aliases->pages, aliases->account, bytes);
        if (page == NULL) {
            free_segment(aliases, segment);
            return -1;
        }
        segment->pages[head->page_count] = page;
        for (size_t at = 0; at < bytes / sizeof *page; at++)
            memset(&page[at], 0, offsetof(struct kvr_stripe, keys)); /* The rest is written before it is looked at. */
    }
    return 0;
}

/* -- rows --------------------------------------------------------------------------------------------------------- */

/* The home of a row that is in the stripe at `at`. */
static uint32_t home_of(const struct kvr_rows *segment, uint32_t at, const struct kvr_stripe *stripe, uint32_t row)
{
    if (!(stripe->guests >> row & 1))
        return at;
    uint32_t back = 1 + kvr_rows_offset(segment, kvr_stripe_known(stripe, row));
    return at >= back ? at - back : at + segment->capacity - back;
}

/* The hash of a row that is in the stripe at `at`. */
static uint64_t hash_of(const struct kvr_rows *segment, uint32_t at, const struct kvr_stripe *stripe, uint32_t row)
{
    uint64_t known = kvr_stripe_known(stripe, row), first = head_of(segment)->first;
    if (segment->tops)
        return known | (uint64_t)stripe->rests[KVR_TOPS_AT + row] << 56;
    if (segment->depth >= 8)
        return known | first >> 56 << 56;
    /* The least hash of the home differs in the first byte by one at most, for no home has more hashes than that. */
    uint32_t home = home_of(segment, at, stripe, row);
    uint64_t least = (((uint64_t)home << 32) + segment->capacity - 1) / segment->capacity;
    uint64_t hash = ((first | least << 32 >> segment->depth) >> 56 << 56) | known;
    return hash << segment->depth >> 32 < least ? hash + ((uint64_t)1 << 56) : hash;
}

static int is_crowded(const struct kvr_rows *segment, const struct kvr_stripe *stripe)
{
    return stripe->taken == segment->rows;
}

/* Let one row of a stripe, which is full, go where else it may be, if there is room; returns whether. */
static int make_gap(const struct kvr_rows *segment, uint32_t at)
{
    struct kvr_stripe *stripe = kvr_rows_stripe(segment, at), *elsewhere[KVR_STRIPE_ROWS];
    uint32_t homes[KVR_STRIPE_ROWS];
    for (uint32_t row = 0; row < stripe->taken; row++) { /* All are asked for before the first is looked at. */
        uint32_t home = homes[row] = home_of(segment, at, stripe, row);
        uint32_t other = home == at ? kvr_rows_other(segment, home, kvr_stripe_known(stripe, row)) : home;
        elsewhere[row] = kvr_rows_stripe(segment, other);
        KVR_PREFETCH(elsewhere[row]);
    }
    for (uint32_t row = 0; row < stripe->taken; row++) {
        struct kvr_stripe *to = elsewhere[row];
        uint32_t home = homes[row], leaves_home = home == at;
        if (is_crowded(segment, to))
            continue;
        kvr_stripe_copy(to, to->taken, stripe, row, segment->tops);
        kvr_stripe_set_guest(to, to->taken++, leaves_home);
        kvr_stripe_count_away(kvr_rows_stripe(segment, home), leaves_home ? 1 : -1);
        kvr_stripe_take_out(stripe, row, segment->tops);
        return 1;
    }
    return 0;
}

/* Put a hash into its segment, which does not have it; its row, or NULL if there is no room. */
static uint8_t *put(const struct kvr_rows *segment, uint64_t hash, uint64_t key, uint32_t copies)
{
    uint32_t at = kvr_rows_home(segment, hash);
    struct kvr_stripe *home = kvr_rows_stripe(segment, at), *stripe = home;
    if (is_crowded(segment, home)) {
        uint32_t away = kvr_rows_other(segment, at, hash);
        struct kvr_stripe *other = kvr_rows_stripe(segment, away);
        if (!is_crowded(segment, other) || (!make_gap(segment, at) && make_gap(segment, away)))
            stripe = other;
        if (is_crowded(segment, stripe))
            return NULL;
        if (stripe == other)
            kvr_stripe_count_away(home, 1);
    }
    uint32_t row = stripe->taken++;
    kvr_stripe_write(stripe, row, hash, key, copies, segment->tops);
    kvr_stripe_set_guest(stripe, row, stripe != home);
    head_of(segment)->used++;
    return &stripe->tags[row];
}

/* -- copying ------------------------------------------------------------------------------------------------------ */

/* Rows to copy: of one segment, whose hashes are from..until. */
struct run {
    const struct kvr_rows *segment;
    uint64_t from, until;
};

static struct run whole(const struct kvr_rows *segment)
{
    struct run run = {segment, 0, UINT64_MAX};
    return run;
}

static int is_in(const struct run *run, uint64_t hash)
{
    return hash >= run->from && hash <= run->until;
}

static uint32_t count_run(struct run run)
{
    uint32_t count = 0;
    for (uint32_t at = 0; at < run.segment->capacity; at++) {
        const struct kvr_stripe *stripe = kvr_rows_stripe(run.segment, at);
        for (uint32_t row = 0; row < stripe->taken; row++)
            count += (uint32_t)is_in(&run, hash_of(run.segment, at, stripe, row));
    }
    return count;
}

/* Copy rows to where they belong; -1 where there is no room. */
static int copy_run(const struct kvr_rows *segment, struct run run)
{
    for (uint32_t at = 0; at < run.segment->capacity; at++) {
        struct kvr_stripe *stripe = kvr_rows_stripe(run.segment, at);
        for (uint32_t row = 0; row < stripe->taken; row++) {
            uint64_t hash = hash_of(run.segment, at, stripe, row);
            if (is_in(&run, hash) &&
                put(segment, hash, kvr_row_key(&stripe->tags[row]), kvr_stripe_copies(stripe, row)) == NULL)
                return -1;
        }
    }
    return 0;
}

/* Fill a new segment of this depth, which begins with `first`, with the rows of the runs: of this capacity, and of a
 * larger one where they crowd; -1 when there is no memory. */
static int make_segment(struct kvr_aliases *aliases, struct kvr_rows *segment, uint64_t first, uint32_t capacity,
                        const struct run *runs, int count)
{
    uint32_t most = capacity * CAPACITY_TIMES_MAX;
    for (; capacity <= most; capacity = round_up(capacity + capacity / 8 + 1)) {
        int failed = 0;
        if (take_stripes(aliases, segment, capacity, first))
            return -1;
        for (int number = 0; number < count && !failed; number++)
            failed = copy_run(segment, runs[number]);
        if (!failed)
            return 0;
        free_segment(aliases, segment);
    }
    return -1;
}

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
static int replace(struct kvr_aliases *aliases, size_t place, uint32_t depth, const struct run *runs, int count,
                   uint32_t capacity)
{
    struct kvr_rows fresh = without_rows(depth);
    if (capacity > 0 && make_segment(aliases, &fresh, first_hash(aliases, place, depth), capacity, runs, count))
        return -1;
    enter_segment(aliases, place, fresh);
    return 0;
}

static int resize_segment(struct kvr_aliases *aliases, size_t place, uint32_t capacity)
{
    struct kvr_rows old = aliases->directory[place];
    struct run run = whole(&old);
    if (replace(aliases, place, old.depth, &run, 1, capacity))
        return -1;
    free_segment(aliases, &old);
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
    struct run low = {&old, 0, boundary - 1}, high = {&old, boundary, UINT64_MAX};
    struct kvr_rows halves[2] = {without_rows(depth), without_rows(depth)};
    uint32_t used = count_run(low);
    if (make_segment(aliases, &halves[0], first, fitting_capacity(used), &low, 1)) {
        halve_directory(aliases);
        return -1;
    }
    if (make_segment(aliases, &halves[1], boundary, fitting_capacity(used_in(&old) - used), &high, 1)) {
        free_segment(aliases, &halves[0]);
        halve_directory(aliases);
        return -1;
    }
    size_t at = first_place(aliases, place, old.depth);
    enter_segment(aliases, at, halves[0]);
    enter_segment(aliases, at + ((size_t)1 << (aliases->bits - depth)), halves[1]);
    if (depth == aliases->bits)
        aliases->deepest += 2;
    free_segment(aliases, &old);
    return 0;
}

static int make_room(struct kvr_aliases *aliases, size_t place)
{
    const struct kvr_rows *segment = &aliases->directory[place];
    uint32_t fitting = fitting_capacity(used_in(segment) + 1);
    int may_split = segment->depth < aliases->bits || aliases->used >> aliases->bits >= ROWS_PER_ENTRY_MIN;
    if (fitting > CAPACITY_MAX && may_split && segment->depth < 31)
        return split_segment(aliases, place);
    /* Also where it is not full, and there was no room for one more all the same. */
    uint32_t larger = round_up(segment->capacity + 1);
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
    uint32_t used = used_in(&low) + used_in(&high);
    if (low.depth != high.depth || fitting_capacity(used) > CAPACITY_MAX / 2)
        return 0;
    struct run runs[2] = {whole(&low), whole(&high)};
    if (replace(aliases, place, own.depth - 1u, runs, 2, used > 0 ? fitting_capacity(used) : 0))
        return 0;
    free_segment(aliases, &low);
    free_segment(aliases, &high);
    if (own.depth == aliases->bits) {
        aliases->deepest -= 2;
        halve_directory(aliases);
    }
    return 1;
}

/* Give back what the segment of a hash does not need; best effort. */
static void shrink(struct kvr_aliases *aliases, uint64_t hash)
{
    size_t place = kvr_aliases_place(aliases, hash);
    while (is_sparse(&aliases->directory[place])) {
        uint32_t used = used_in(&aliases->directory[place]);
        if (join_segment(aliases, place))
            place = kvr_aliases_place(aliases, hash);
        else if (aliases->directory[place].capacity == 0 ||
                 resize_segment(aliases, place, used > 0 ? fitting_capacity(used) : 0))
            break;
    }
}

/* -- single hashes ------------------------------------------------------------------------------------------------ */

/* Put a hash into its segment, unless there is no room; the row, or NULL. One that is there is left alone. */
static uint8_t *insert(const struct kvr_rows *segment, uint64_t hash, uint64_t key, uint32_t copies, int *is_new)
{
    uint8_t *row = kvr_rows_find(segment, hash);
    *is_new = row == NULL;
    return row != NULL ? row : put(segment, hash, key, copies);
}

uint8_t *kvr_aliases_add(struct kvr_aliases *aliases, uint64_t hash, uint64_t key, uint32_t copies, int *is_new)
{
    size_t place = kvr_aliases_place(aliases, hash);
    int crowded = is_full(&aliases->directory[place]);
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
    head_of(segment)->used--;
    aliases->used--;
    if (is_sparse(segment))
        shrink(aliases, hash);
}

/* -- the whole ---------------------------------------------------------------------------------------------------- */

static int visit_segment(const struct kvr_rows *segment, kvr_visit_row *visit, void *context)
{
    for (uint32_t at = 0; at < segment->capacity; at++) {
        const struct kvr_stripe *stripe = kvr_rows_stripe(segment, at);
        for (uint32_t row = 0; row < stripe->taken; row++) {
            int answer = visit(context, &stripe->tags[row], hash_of(segment, at, stripe, row));
            if (answer)
                return answer;
        }
    }
    return 0;
}

int kvr_aliases_visit(const struct kvr_aliases *aliases, kvr_visit_row *visit, void *context)
{
    for (size_t place = 0; place < (size_t)1 << aliases->bits;) {
        const struct kvr_rows *segment = &aliases->directory[place];
        int answer = visit_segment(segment, visit, context);
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
    aliases->directory[0] = without_rows(0);
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
        free_segment(aliases, &segment);
    }
    kvr_give(aliases->account, aliases->directory, directory_bytes(aliases->bits));
    aliases->directory = NULL;
}
