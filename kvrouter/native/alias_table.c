/* Growing, shrinking, splitting and joining the segments of a table of aliases; `alias_table.h` says what it is. */
#include "alias_table.h"
#include "index_memory.h"

/* A segment of at most so many homes is copied in about 10 us. */
#define CAPACITY_MAX 4096
#define CAPACITY_MIN 16
/* Rows behind the homes, so that a crowd at the end does not have to resize the segment. */
#define SPARE_ROWS 48
/* No segment is split when that would leave a directory with more entries than this many rows each. */
#define ROWS_PER_ENTRY_MIN 64

/* Stands before the rows of a segment. */
struct head {
    uint32_t used;
    uint32_t extent; /* rows in all; the last one is always vacant */
};

/* What every segment without rows looks at: one vacant row. Never written, for its capacity is 0. */
static const uint8_t NOTHING[KVR_ROW_BYTES] = {255, 255, 255, 255, 255, 255, 255, 255};

static struct head *head_of(const struct kvr_rows *segment)
{
    return (struct head *)(void *)segment->rows - 1;
}

static uint32_t used_in(const struct kvr_rows *segment)
{
    return segment->capacity ? head_of(segment)->used : 0;
}

static uint32_t extent_of(const struct kvr_rows *segment)
{
    return segment->capacity ? head_of(segment)->extent : 0;
}

static uint8_t *row_at(const struct kvr_rows *segment, uint32_t at)
{
    return segment->rows + (size_t)at * KVR_ROW_BYTES;
}

static int is_vacant(const uint8_t *row)
{
    return kvr_row_copies(row) == 0;
}

/* After a copy a segment is filled to 10/13; it is copied again above 9/10 and below 2/5. */
static uint32_t fitting_capacity(uint32_t used)
{
    uint32_t capacity = used + used / 10 * 3;
    return capacity < CAPACITY_MIN ? CAPACITY_MIN : capacity;
}

static int is_full(const struct kvr_rows *segment)
{
    return used_in(segment) >= segment->capacity - segment->capacity / 10;
}

static int is_sparse(const struct kvr_rows *segment)
{
    uint32_t used = used_in(segment);
    return used == 0 || (segment->capacity > CAPACITY_MIN && used < segment->capacity / 5 * 2);
}

static size_t segment_bytes(uint32_t extent)
{
    return sizeof(struct head) + (size_t)extent * KVR_ROW_BYTES;
}

static void free_segment(struct kvr_aliases *aliases, const struct kvr_rows *segment)
{
    if (segment->capacity)
        kvr_give(aliases->account, head_of(segment), segment_bytes(head_of(segment)->extent));
}

/* -- copying ------------------------------------------------------------------------------------------------------ */

/* Rows to copy: of one segment, or a part of it. */
struct run {
    const uint8_t *from, *stop;
};

static struct run whole(const struct kvr_rows *segment)
{
    struct run run = {segment->rows, row_at(segment, extent_of(segment))};
    return run;
}

static uint32_t count_run(struct run run)
{
    uint32_t count = 0;
    for (const uint8_t *row = run.from; row < run.stop; row += KVR_ROW_BYTES)
        count += !is_vacant(row);
    return count;
}

static void vacate(const struct kvr_rows *segment, uint32_t from, uint32_t until)
{
    for (; from < until; from++)
        memcpy(row_at(segment, from), NOTHING, KVR_ROW_BYTES);
}

/* Copy rows to where they belong, or right behind place `next`; the place behind the last one, or UINT32_MAX if there
 * are not enough before `extent`. */
static uint32_t copy_run(struct kvr_rows *segment, struct run run, uint32_t next, uint32_t extent)
{
    for (const uint8_t *row = run.from; row < run.stop; row += KVR_ROW_BYTES) {
        if (is_vacant(row))
            continue;
        uint32_t home = kvr_rows_home(segment, kvr_row_hash(row));
        vacate(segment, next, home);
        next = home > next ? home : next;
        if (next + 1 >= extent)
            return UINT32_MAX;
        memcpy(row_at(segment, next++), row, KVR_ROW_BYTES);
    }
    return next;
}

/* Fill a new segment of this capacity and depth with the `used` rows of the runs; -1 when there is no memory. */
static int make_segment(struct kvr_aliases *aliases, struct kvr_rows *segment, const struct run *runs, int count,
                        uint32_t used)
{
    for (uint32_t spare = SPARE_ROWS;; spare += used + 1) { /* In the end there is room for all behind the last home. */
        uint32_t extent = segment->capacity + spare, next = 0;
        struct head *head = kvr_take(aliases->account, segment_bytes(extent));
        if (head == NULL)
            return -1;
        segment->rows = (uint8_t *)(head + 1);
        for (int number = 0; number < count && next != UINT32_MAX; number++)
            next = copy_run(segment, runs[number], next, extent);
        if (next != UINT32_MAX && next + SPARE_ROWS / 2 < extent) {
            vacate(segment, next, extent);
            head->used = used;
            head->extent = extent;
            return 0;
        }
        kvr_give(aliases->account, head, segment_bytes(extent));
    }
}

static struct kvr_rows without_rows(uint32_t depth)
{
    struct kvr_rows segment = {(uint8_t *)(uintptr_t)NOTHING, 0, depth};
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
    struct run low = whole(&old), high = low;
    while (low.stop > low.from) {
        const uint8_t *row = low.stop - KVR_ROW_BYTES;
        if (!is_vacant(row) && kvr_row_hash(row) < boundary)
            break;
        low.stop = row;
    }
    high.from = low.stop;
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

/* Put a hash into its segment, unless its crowd reaches the end; the row, or NULL. One that is there is left alone. */
static uint8_t *insert(struct kvr_rows *segment, uint64_t hash, uint64_t key, uint16_t copies, int *is_new)
{
    uint8_t *row = row_at(segment, kvr_rows_home(segment, hash));
    while (!is_vacant(row) && kvr_row_hash(row) < hash)
        row += KVR_ROW_BYTES;
    *is_new = is_vacant(row) || kvr_row_hash(row) != hash;
    if (!*is_new)
        return row;
    uint8_t *end = row;
    while (!is_vacant(end))
        end += KVR_ROW_BYTES;
    if (end == row_at(segment, head_of(segment)->extent - 1))
        return NULL;
    memmove(row + KVR_ROW_BYTES, row, (size_t)(end - row));
    memcpy(row, &hash, sizeof hash);
    kvr_row_set_key(row, key);
    kvr_row_set_copies(row, copies);
    head_of(segment)->used++;
    return row;
}

uint8_t *kvr_aliases_add(struct kvr_aliases *aliases, uint64_t hash, uint64_t key, uint16_t copies, int *is_new)
{
    size_t place = kvr_aliases_place(aliases, hash);
    int crowded = is_full(&aliases->directory[place]);
    for (;;) {
        int no_memory = crowded && make_room(aliases, place);
        place = kvr_aliases_place(aliases, hash);
        struct kvr_rows *segment = &aliases->directory[place];
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

void kvr_aliases_drop(struct kvr_aliases *aliases, uint8_t *row)
{
    uint64_t hash = kvr_row_hash(row);
    struct kvr_rows *segment = &aliases->directory[kvr_aliases_place(aliases, hash)];
    uint8_t *end = row + KVR_ROW_BYTES;
    while (!is_vacant(end) && row_at(segment, kvr_rows_home(segment, kvr_row_hash(end))) < end)
        end += KVR_ROW_BYTES;
    memmove(row, row + KVR_ROW_BYTES, (size_t)(end - row) - KVR_ROW_BYTES);
    memcpy(end - KVR_ROW_BYTES, NOTHING, KVR_ROW_BYTES);
    head_of(segment)->used--;
    aliases->used--;
    shrink(aliases, hash);
}

/* -- the whole ---------------------------------------------------------------------------------------------------- */

int kvr_aliases_visit(const struct kvr_aliases *aliases, kvr_visit_row *visit, void *context)
{
    size_t count = (size_t)1 << aliases->bits;
    for (size_t place = 0; place < count;) {
        const struct kvr_rows *segment = &aliases->directory[place];
        struct run run = whole(segment);
        for (const uint8_t *row = run.from; row < run.stop; row += KVR_ROW_BYTES) {
            int answer = is_vacant(row) ? 0 : visit(context, row);
            if (answer)
                return answer;
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
