/* Growing, shrinking, splitting and joining the segments of a table of aliases; `alias_table.h` says what it is. */
#include "alias_table.h"
#include "index_memory.h"

/* A segment of at most so many homes is copied in about 10 us. */
#define CAPACITY_MAX 512
#define CAPACITY_MIN 2
/* As many as the head takes, and what alignment may. */
#define OTHER_STRIPES 2
#define STRIPES_PER_PAGE ((uint32_t)(KVR_PAGE_BYTES / KVR_STRIPE_BYTES))
/* No segment is split when that would leave a directory with more entries than this many rows each. */
#define ROWS_PER_ENTRY_MIN 64
/* A segment so much larger than fits is not tried: its hashes are not scattered. */
#define CAPACITY_TIMES_MAX 4

/* Stands right before the stripes of a segment. */
struct head {
    uint32_t used;         /* rows */
    uint32_t full, sparse; /* so many rows, or less than so many, are a reason to copy them to another size */
    uint32_t skipped;      /* bytes before the head, so that stripes begin with a line */
};

/* What every segment without rows looks at. Never written, for its capacity is 0. */
static const _Alignas(KVR_STRIPE_BYTES) struct kvr_stripe NOTHING;

static struct head *head_of(const struct kvr_rows *segment)
{
    return (struct head *)(void *)segment->stripes - 1;
}

static uint32_t used_in(const struct kvr_rows *segment)
{
    return segment->capacity ? head_of(segment)->used : 0;
}

/* After a copy a segment is filled to 7/9; it is copied again above 9/10 and below 2/5. */
static uint32_t fitting_capacity(uint32_t used)
{
    uint32_t capacity = (used + used / 7 * 2) / KVR_STRIPE_ROWS + 1;
    if (capacity > CAPACITY_MAX / 8) /* Whole pages, with what is not for homes. */
        capacity = (capacity + OTHER_STRIPES + STRIPES_PER_PAGE - 1) / STRIPES_PER_PAGE * STRIPES_PER_PAGE - OTHER_STRIPES;
    return capacity < CAPACITY_MIN ? CAPACITY_MIN : capacity;
}

static int is_full(const struct kvr_rows *segment)
{
    return segment->capacity == 0 || head_of(segment)->used >= head_of(segment)->full;
}

static int is_sparse(const struct kvr_rows *segment)
{
    return segment->capacity == 0 || head_of(segment)->used < head_of(segment)->sparse;
}

static size_t segment_bytes(uint32_t capacity)
{
    return sizeof(struct head) + ((size_t)capacity + 1) * KVR_STRIPE_BYTES;
}

static void free_segment(struct kvr_aliases *aliases, const struct kvr_rows *segment)
{
    if (segment->capacity == 0)
        return;
    struct head *head = head_of(segment);
    kvr_pages_give(aliases->pages, aliases->account, (char *)head - head->skipped, segment_bytes(segment->capacity));
}

/* -- rows --------------------------------------------------------------------------------------------------------- */

static struct kvr_stripe *home_of(const struct kvr_rows *segment, uint64_t hash)
{
    return segment->stripes + kvr_rows_home(segment, hash);
}

static struct kvr_stripe *other_of(const struct kvr_rows *segment, uint64_t hash)
{
    return segment->stripes + kvr_rows_other(segment, kvr_rows_home(segment, hash), hash);
}

static int is_crowded(const struct kvr_stripe *stripe)
{
    return kvr_stripe_taken(stripe) == KVR_STRIPE_ROWS;
}

/* One more of a stripe's own, or one less (-1), is elsewhere. */
static void count_away(struct kvr_stripe *home, int more)
{
    if (kvr_stripe_away(home) < KVR_STRIPE_AWAY_MAX)
        home->state = (uint8_t)(home->state + more * (1 << KVR_STRIPE_AWAY_BIT));
}

static void copy_row(struct kvr_stripe *to, uint32_t into, const struct kvr_stripe *from, uint32_t at)
{
    to->hashes[into] = from->hashes[at];
    to->tags[into] = from->tags[at];
    to->keys[into] = from->keys[at];
    to->copies[into] = from->copies[at];
}

/* Take a row out of its stripe; the last one takes its place. */
static void take_out(struct kvr_stripe *stripe, uint32_t at)
{
    copy_row(stripe, at, stripe, kvr_stripe_taken(stripe) - 1);
    stripe->state--;
}

/* Let one row of a stripe, which is full, go where else it may be, if there is room; returns whether. */
static int make_gap(const struct kvr_rows *segment, struct kvr_stripe *stripe)
{
    for (uint32_t at = 0; at < KVR_STRIPE_ROWS; at++) {
        struct kvr_stripe *home = home_of(segment, stripe->hashes[at]);
        int is_home = home == stripe;
        struct kvr_stripe *to = is_home ? other_of(segment, stripe->hashes[at]) : home;
        if (is_crowded(to))
            continue;
        copy_row(to, kvr_stripe_taken(to), stripe, at);
        to->state++;
        count_away(home, is_home ? 1 : -1);
        take_out(stripe, at);
        return 1;
    }
    return 0;
}

/* The stripe in which there is room for a hash, which is counted as taken there; NULL if there is none. */
static struct kvr_stripe *find_room(const struct kvr_rows *segment, uint64_t hash)
{
    struct kvr_stripe *home = home_of(segment, hash), *stripe = home;
    if (is_crowded(home)) {
        struct kvr_stripe *other = other_of(segment, hash);
        if (!is_crowded(other) || (!make_gap(segment, home) && make_gap(segment, other)))
            stripe = other;
        if (is_crowded(stripe))
            return NULL;
        if (stripe == other)
            count_away(home, 1);
    }
    stripe->state++;
    return stripe;
}

/* Put a hash into its segment, which does not have it; its row, or NULL if there is no room. */
static uint64_t *put(const struct kvr_rows *segment, uint64_t hash, uint64_t key, uint8_t copies)
{
    struct kvr_stripe *stripe = find_room(segment, hash);
    if (stripe == NULL)
        return NULL;
    uint32_t at = kvr_stripe_taken(stripe) - 1;
    stripe->hashes[at] = hash;
    stripe->tags[at] = (uint8_t)hash;
    stripe->keys[at] = key;
    stripe->copies[at] = copies;
    return &stripe->hashes[at];
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
    const struct kvr_stripe *stripe = run.segment->stripes, *stop = stripe + run.segment->capacity;
    for (; stripe < stop; stripe++)
        for (uint32_t at = 0; at < kvr_stripe_taken(stripe); at++)
            count += (uint32_t)is_in(&run, stripe->hashes[at]);
    return count;
}

/* Copy rows to where they belong; -1 where there is no room. */
static int copy_run(const struct kvr_rows *segment, struct run run)
{
    const struct kvr_stripe *stripe = run.segment->stripes, *stop = stripe + run.segment->capacity;
    for (; stripe < stop; stripe++) {
        for (uint32_t at = 0; at < kvr_stripe_taken(stripe); at++) {
            uint64_t hash = stripe->hashes[at];
            if (is_in(&run, hash) &&
                put(segment, hash, stripe->keys[at], stripe->copies[at]) == NULL)
                return -1;
        }
    }
    return 0;
}

static struct kvr_stripe *take_stripes(struct kvr_aliases *aliases, uint32_t capacity, uint32_t used)
{
    char *memory = kvr_pages_take(aliases->pages, aliases->account, segment_bytes(capacity));
    if (memory == NULL)
        return NULL;
    size_t skipped = -((uintptr_t)memory + sizeof(struct head)) % KVR_STRIPE_BYTES;
    struct head *head = (struct head *)(void *)(memory + skipped);
    head->skipped = (uint32_t)skipped;
    head->used = used;
    head->full = capacity * KVR_STRIPE_ROWS / 10 * 9;
    head->sparse = capacity > CAPACITY_MIN ? capacity * KVR_STRIPE_ROWS / 5 * 2 : 1;
    struct kvr_stripe *stripes = (struct kvr_stripe *)(void *)(head + 1);
    for (uint32_t at = 0; at < capacity; at++)
        memset(&stripes[at], 0, offsetof(struct kvr_stripe, keys)); /* The rest is not looked at before it is written. */
    return stripes;
}

/* Fill a new segment of this capacity and depth with the `used` rows of the runs, and of a larger one where they crowd;
 * -1 when there is no memory. */
static int make_segment(struct kvr_aliases *aliases, struct kvr_rows *segment, const struct run *runs, int count,
                        uint32_t used)
{
    uint32_t most = segment->capacity * CAPACITY_TIMES_MAX;
    for (; segment->capacity <= most; segment->capacity += segment->capacity / 8 + 1) {
        int failed = 0;
        segment->stripes = take_stripes(aliases, segment->capacity, used);
        if (segment->stripes == NULL)
            return -1;
        for (int number = 0; number < count && !failed; number++)
            failed = copy_run(segment, runs[number]);
        if (!failed)
            return 0;
        free_segment(aliases, segment);
    }
    return -1;
}

static struct kvr_rows without_rows(uint32_t depth)
{
    struct kvr_rows segment = {(struct kvr_stripe *)(uintptr_t)&NOTHING, 0, depth};
    return segment;
}

/* -- the directory ------------------------------------------------------------------------------------------------ */

static size_t first_place(const struct kvr_aliases *aliases, size_t place, uint32_t depth)
{
    return place >> (aliases->bits - depth) << (aliases->bits - depth);
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

/* Put the `used` rows of the runs into a new segment of this capacity for `place`; what was there stays allocated. -1
 * without memory. */
static int replace(struct kvr_aliases *aliases, size_t place, uint32_t depth, const struct run *runs, int count,
                   uint32_t used, uint32_t capacity)
{
    struct kvr_rows fresh = without_rows(depth);
    fresh.capacity = capacity;
    if (capacity > 0 && make_segment(aliases, &fresh, runs, count, used))
        return -1;
    enter_segment(aliases, place, fresh);
    return 0;
}

static int resize_segment(struct kvr_aliases *aliases, size_t place, uint32_t capacity)
{
    struct kvr_rows old = aliases->directory[place];
    struct run run = whole(&old);
    if (replace(aliases, place, old.depth, &run, 1, used_in(&old), capacity))
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
    uint64_t boundary = ((uint64_t)(place >> (aliases->bits - old.depth)) * 2 + 1) << (63 - old.depth);
    struct run low = {&old, 0, boundary - 1}, high = {&old, boundary, UINT64_MAX};
    struct kvr_rows halves[2];
    const struct run *runs[2] = {&low, &high};
    uint32_t used = count_run(low), counts[2] = {used, used_in(&old) - used};
    for (int half = 0; half < 2; half++) {
        halves[half] = without_rows(old.depth + 1);
        halves[half].capacity = fitting_capacity(counts[half]);
        if (make_segment(aliases, &halves[half], runs[half], 1, counts[half])) {
            if (half == 1)
                free_segment(aliases, &halves[0]);
            halve_directory(aliases);
            return -1;
        }
    }
    size_t first = first_place(aliases, place, old.depth);
    enter_segment(aliases, first, halves[0]);
    enter_segment(aliases, first + ((size_t)1 << (aliases->bits - old.depth - 1)), halves[1]);
    if (old.depth + 1 == aliases->bits)
        aliases->deepest += 2;
    free_segment(aliases, &old);
    return 0;
}

static int make_room(struct kvr_aliases *aliases, size_t place)
{
    const struct kvr_rows *segment = &aliases->directory[place];
    int too_large = fitting_capacity(used_in(segment)) > CAPACITY_MAX;
    int may_split = segment->depth < aliases->bits || aliases->used >> aliases->bits >= ROWS_PER_ENTRY_MIN;
    if (too_large && may_split && segment->depth < 31)
        return split_segment(aliases, place);
    /* Also where it is not full, and there was no room for one more all the same. */
    uint32_t larger = segment->capacity + segment->capacity / 8 + 1, fitting = fitting_capacity(used_in(segment) + 1);
    return resize_segment(aliases, place, fitting > larger ? fitting : larger);
}

/* Join a segment with the one of its other half, if both are small; returns whether. */
static int join_segment(struct kvr_aliases *aliases, size_t place)
{
    struct kvr_rows own = aliases->directory[place];
    if (own.depth == 0)
        return 0;
    size_t first = first_place(aliases, place, own.depth - 1);
    size_t second = first + ((size_t)1 << (aliases->bits - own.depth));
    struct kvr_rows low = aliases->directory[first], high = aliases->directory[second];
    if (low.depth != high.depth || used_in(&low) + used_in(&high) > CAPACITY_MAX / 2)
        return 0;
    struct run runs[2] = {whole(&low), whole(&high)};
    uint32_t used = used_in(&low) + used_in(&high);
    if (replace(aliases, place, own.depth - 1, runs, 2, used, used > 0 ? fitting_capacity(used) : 0))
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
static uint64_t *insert(const struct kvr_rows *segment, uint64_t hash, uint64_t key, uint8_t copies, int *is_new)
{
    uint64_t *row = kvr_rows_find(segment, hash);
    *is_new = row == NULL;
    if (row != NULL)
        return row;
    row = put(segment, hash, key, copies);
    head_of(segment)->used += row != NULL;
    return row;
}

uint64_t *kvr_aliases_add(struct kvr_aliases *aliases, uint64_t hash, uint64_t key, uint8_t copies, int *is_new)
{
    size_t place = kvr_aliases_place(aliases, hash);
    int crowded = is_full(&aliases->directory[place]);
    for (;;) {
        int no_memory = crowded && make_room(aliases, place);
        place = kvr_aliases_place(aliases, hash);
        const struct kvr_rows *segment = &aliases->directory[place];
        /* Without memory for a larger segment, its last gaps are used. */
        uint64_t *row = segment->capacity ? insert(segment, hash, key, copies, is_new) : NULL;
        if (row != NULL) {
            aliases->used += (size_t)*is_new;
            return row;
        }
        if (no_memory)
            return NULL;
        crowded = 1;
    }
}

void kvr_aliases_drop(struct kvr_aliases *aliases, uint64_t *row)
{
    uint64_t hash = *row;
    const struct kvr_rows *segment = &aliases->directory[kvr_aliases_place(aliases, hash)];
    struct kvr_stripe *stripe = kvr_stripe_of(row), *home = home_of(segment, hash);
    if (stripe != home)
        count_away(home, -1);
    take_out(stripe, (uint32_t)(row - stripe->hashes));
    head_of(segment)->used--;
    aliases->used--;
    if (is_sparse(segment))
        shrink(aliases, hash);
}

/* -- the whole ---------------------------------------------------------------------------------------------------- */

int kvr_aliases_visit(const struct kvr_aliases *aliases, kvr_visit_row *visit, void *context)
{
    size_t count = (size_t)1 << aliases->bits;
    for (size_t place = 0; place < count;) {
        const struct kvr_rows *segment = &aliases->directory[place];
        const struct kvr_stripe *stop = segment->stripes + segment->capacity;
        for (const struct kvr_stripe *stripe = segment->stripes; stripe < stop; stripe++) {
            for (uint32_t at = 0; at < kvr_stripe_taken(stripe); at++) {
                int answer = visit(context, &stripe->hashes[at]);
                if (answer)
                    return answer;
            }
        }
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
