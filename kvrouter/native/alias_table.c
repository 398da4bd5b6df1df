/* Growing, shrinking, splitting and joining the segments of a table of aliases; `alias_table.h` says what it is. */
#include "alias_table.h"
#include "index_memory.h"

/* A segment of at most so many homes is copied in about 10 us. */
#define CAPACITY_MAX 512
#define CAPACITY_MIN 2
/* Stripes behind the homes, so that a crowd at the end does not have to resize the segment. */
#define SPARE_STRIPES 6
/* No segment is split when that would leave a directory with more entries than this many rows each. */
#define ROWS_PER_ENTRY_MIN 64

/* Stands right before the stripes of a segment. */
struct head {
    uint32_t used;    /* rows */
    uint32_t extent;  /* stripes in all; the last one is always vacant */
    uint64_t skipped; /* bytes before the head, so that stripes begin with a line */
};

#define VACANT_STRIPE {{MAX, MAX, MAX, MAX, MAX, MAX, MAX}, {0, 0, 0, 0, 0, 0, 0}, 0, {0, 0, 0, 0, 0, 0, 0}, 0}
#define MAX UINT64_MAX
static const struct kvr_stripe VACANT = VACANT_STRIPE;
/* What every segment without rows looks at. Never written, for its capacity is 0. */
static const _Alignas(KVR_STRIPE_BYTES) struct kvr_stripe NOTHING = VACANT_STRIPE;

static struct head *head_of(const struct kvr_rows *segment)
{
    return (struct head *)(void *)segment->stripes - 1;
}

static uint32_t used_in(const struct kvr_rows *segment)
{
    return segment->capacity ? head_of(segment)->used : 0;
}

static uint32_t extent_of(const struct kvr_rows *segment)
{
    return segment->capacity ? head_of(segment)->extent : 0;
}

/* After a copy a segment is filled to 7/9; it is copied again above 9/10 and below 2/5. */
static uint32_t fitting_capacity(uint32_t used)
{
    uint32_t capacity = (used + used / 7 * 2) / KVR_STRIPE_ROWS + 1;
    return capacity < CAPACITY_MIN ? CAPACITY_MIN : capacity;
}

static int is_full(const struct kvr_rows *segment)
{
    return used_in(segment) >= segment->capacity * KVR_STRIPE_ROWS / 10 * 9;
}

static int is_sparse(const struct kvr_rows *segment)
{
    uint32_t used = used_in(segment);
    return used == 0 || (segment->capacity > CAPACITY_MIN && used < segment->capacity * KVR_STRIPE_ROWS / 5 * 2);
}

static size_t segment_bytes(uint32_t extent)
{
    return sizeof(struct head) + ((size_t)extent + 1) * KVR_STRIPE_BYTES;
}

static void free_segment(struct kvr_aliases *aliases, const struct kvr_rows *segment)
{
    if (segment->capacity == 0)
        return;
    struct head *head = head_of(segment);
    kvr_give(aliases->account, (char *)head - head->skipped, segment_bytes(head->extent));
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

static uint32_t count_run(struct run run)
{
    uint32_t count = 0, extent = extent_of(run.segment);
    for (const struct kvr_stripe *stripe = run.segment->stripes; extent > 0; stripe++, extent--)
        for (uint32_t at = 0; at < stripe->taken; at++)
            count += stripe->hashes[at] >= run.from && stripe->hashes[at] <= run.until;
    return count;
}

static void copy_row(struct kvr_stripe *to, uint32_t into, const struct kvr_stripe *from, uint32_t at)
{
    to->hashes[into] = from->hashes[at];
    to->keys[into] = from->keys[at];
    to->copies[into] = from->copies[at];
}

/* Copy rows to where they belong, or right behind those at stripe `next`; the stripe of the last one, or UINT32_MAX if
 * there are not enough before the last of `extent`. */
static uint32_t copy_run(const struct kvr_rows *segment, struct run run, uint32_t next, uint32_t extent)
{
    uint32_t left = extent_of(run.segment);
    for (const struct kvr_stripe *stripe = run.segment->stripes; left > 0; stripe++, left--) {
        for (uint32_t at = 0; at < stripe->taken; at++) {
            if (stripe->hashes[at] < run.from || stripe->hashes[at] > run.until)
                continue;
            uint32_t home = kvr_rows_home(segment, stripe->hashes[at]);
            next = home > next ? home : next;
            next += segment->stripes[next].taken == KVR_STRIPE_ROWS;
            if (next + 1 >= extent)
                return UINT32_MAX;
            struct kvr_stripe *to = &segment->stripes[next];
            copy_row(to, to->taken++, stripe, at);
        }
    }
    return next;
}

static struct kvr_stripe *take_stripes(struct kvr_aliases *aliases, uint32_t extent)
{
    char *memory = kvr_take(aliases->account, segment_bytes(extent));
    if (memory == NULL)
        return NULL;
    size_t skipped = -((uintptr_t)memory + sizeof(struct head)) % KVR_STRIPE_BYTES;
    struct head *head = (struct head *)(void *)(memory + skipped);
    head->skipped = skipped;
    head->extent = extent;
    struct kvr_stripe *stripes = (struct kvr_stripe *)(void *)(head + 1);
    for (uint32_t at = 0; at < extent; at++)
        stripes[at] = VACANT;
    return stripes;
}

/* Fill a new segment of this capacity and depth with the `used` rows of the runs; -1 when there is no memory. */
static int make_segment(struct kvr_aliases *aliases, struct kvr_rows *segment, const struct run *runs, int count,
                        uint32_t used)
{
    /* In the end there is room for all behind the last home. */
    for (uint32_t spare = SPARE_STRIPES;; spare += used / KVR_STRIPE_ROWS + 2) {
        uint32_t extent = segment->capacity + spare, next = 0;
        segment->stripes = take_stripes(aliases, extent);
        if (segment->stripes == NULL)
            return -1;
        for (int number = 0; number < count && next != UINT32_MAX; number++)
            next = copy_run(segment, runs[number], next, extent);
        head_of(segment)->used = used;
        if (next != UINT32_MAX && next + SPARE_STRIPES / 2 < extent)
            return 0;
        free_segment(aliases, segment);
    }
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

/* Put the `used` rows of the runs into a new segment for `place`, with room for `extra` more; what was there stays
 * allocated. -1 without memory. */
static int replace(struct kvr_aliases *aliases, size_t place, uint32_t depth, const struct run *runs, int count,
                   uint32_t used, uint32_t extra)
{
    struct kvr_rows fresh = without_rows(depth);
    if (used + extra > 0) {
        fresh.capacity = fitting_capacity(used + extra);
        if (make_segment(aliases, &fresh, runs, count, used))
            return -1;
    }
    enter_segment(aliases, place, fresh);
    return 0;
}

static int resize_segment(struct kvr_aliases *aliases, size_t place, uint32_t extra)
{
    struct kvr_rows old = aliases->directory[place];
    struct run run = whole(&old);
    if (replace(aliases, place, old.depth, &run, 1, used_in(&old), extra))
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
    return too_large && may_split && segment->depth < 31 ? split_segment(aliases, place)
                                                         : resize_segment(aliases, place, 1);
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
    if (replace(aliases, place, own.depth - 1, runs, 2, used_in(&low) + used_in(&high), 0))
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
        if (join_segment(aliases, place))
            place = kvr_aliases_place(aliases, hash);
        else if (aliases->directory[place].capacity == 0 || resize_segment(aliases, place, 0))
            break;
    }
}

/* -- single hashes ------------------------------------------------------------------------------------------------ */

/* Both ways of moving rows move all of a stripe that might have to: how many have to cannot be guessed. */

/* Move the rows of a stripe from `at` on by one to the right; the last one, which is vacant or copied, is lost. */
static void move_right(struct kvr_stripe *stripe, uint32_t at)
{
    for (uint32_t to = KVR_STRIPE_ROWS - 1; to > 0; to--)
        copy_row(stripe, to, stripe, to - (to > at));
}

static void move_left(struct kvr_stripe *stripe, uint32_t at)
{
    for (uint32_t to = 0; to < KVR_STRIPE_ROWS - 1; to++)
        copy_row(stripe, to, stripe, to + (to >= at));
}

/* Make the stripe, which is full, lose its last row to those behind it; returns whether there was room. */
static int push_last(const struct kvr_rows *segment, struct kvr_stripe *stripe)
{
    struct kvr_stripe *last = segment->stripes + head_of(segment)->extent - 1, *end = stripe + 1;
    while (end < last && end->taken == KVR_STRIPE_ROWS)
        end++;
    if (end >= last)
        return 0;
    end->taken++;
    for (; end > stripe; end--) {
        move_right(end, 0);
        copy_row(end, 0, end - 1, KVR_STRIPE_ROWS - 1);
    }
    stripe->taken--;
    return 1;
}

/* Put a hash into its segment, unless its crowd reaches the end; the row, or NULL. One that is there is left alone. */
static uint64_t *insert(const struct kvr_rows *segment, uint64_t hash, uint64_t key, uint8_t copies, int *is_new)
{
    struct kvr_stripe *stripe = segment->stripes + kvr_rows_home(segment, hash);
    uint32_t at = kvr_stripe_below(stripe, hash);
    while (at == KVR_STRIPE_ROWS)
        at = kvr_stripe_below(++stripe, hash);
    *is_new = at >= stripe->taken || stripe->hashes[at] != hash;
    if (!*is_new)
        return &stripe->hashes[at];
    if (stripe == segment->stripes + head_of(segment)->extent - 1 ||
        (stripe->taken == KVR_STRIPE_ROWS && !push_last(segment, stripe)))
        return NULL;
    move_right(stripe, at);
    stripe->hashes[at] = hash;
    stripe->keys[at] = key;
    stripe->copies[at] = copies;
    stripe->taken++;
    head_of(segment)->used++;
    return &stripe->hashes[at];
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
    struct kvr_stripe *stripe = kvr_stripe_of(row);
    uint32_t at = (uint32_t)(row - stripe->hashes), behind = (uint32_t)(stripe - segment->stripes) + 1;
    move_left(stripe, at);
    /* Out of a stripe that is full rows may have been pushed into the one behind it. */
    while (stripe->taken == KVR_STRIPE_ROWS && stripe[1].taken > 0 &&
           kvr_rows_home(segment, stripe[1].hashes[0]) < behind) {
        copy_row(stripe, KVR_STRIPE_ROWS - 1, stripe + 1, 0);
        stripe++;
        behind++;
        move_left(stripe, 0);
    }
    stripe->taken--;
    copy_row(stripe, stripe->taken, &VACANT, 0);
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
        uint32_t extent = extent_of(segment);
        for (const struct kvr_stripe *stripe = segment->stripes; extent > 0; stripe++, extent--) {
            for (uint32_t at = 0; at < stripe->taken; at++) {
                int answer = visit(context, &stripe->hashes[at]);
                if (answer)
                    return answer;
            }
        }
        place += (size_t)1 << (aliases->bits - segment->depth);
    }
    return 0;
}

int kvr_aliases_open(struct kvr_aliases *aliases, size_t *account)
{
    aliases->directory = kvr_take(account, directory_bytes(0));
    if (aliases->directory == NULL)
        return -1;
    aliases->directory[0] = without_rows(0);
    aliases->bits = 0;
    aliases->deepest = 1;
    aliases->used = 0;
    aliases->account = account;
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
