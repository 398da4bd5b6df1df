/* Growing, shrinking, splitting and joining the segments of a table; `index_table.h` says what it is. */
#include "index_table.h"
#include "index_memory.h"
#include "index_share.h"

/* A segment of at most so many homes is copied in about 10 us. */
#define CAPACITY_MAX 4096
#define CAPACITY_MIN 16
/* Slots behind the homes, so that a crowd at the end does not have to resize the segment. */
#define SPARE_SLOTS 32
/* With the head and what alignment may take. */
#define OTHER_SLOTS (SPARE_SLOTS + 8)
#define SLOTS_PER_PAGE ((uint32_t)(KVR_PAGE_BYTES / sizeof(struct kvr_slot)))
/* No segment is split when that would leave a directory with more entries than this many slots each. */
#define SLOTS_PER_ENTRY_MIN 64

/* Stands right before the slots of a segment. */
struct head {
    uint32_t used;
    uint32_t extent; /* slots in all; the last one is always vacant */
    uint64_t skipped; /* bytes before the head, so that slots begin with a line */
};

static const struct kvr_slot VACANT = {UINT64_MAX, 0, 0};
/* What every segment without slots looks at. Never written: its capacity is 0. */
static const struct kvr_slot NOTHING[KVR_HOME_SLOTS + 1] = {
    {UINT64_MAX, 0, 0}, {UINT64_MAX, 0, 0}, {UINT64_MAX, 0, 0}, {UINT64_MAX, 0, 0}, {UINT64_MAX, 0, 0}};

static struct head *head_of(const struct kvr_segment *segment)
{
    return (struct head *)(void *)segment->slots - 1;
}

static uint32_t used_in(const struct kvr_segment *segment)
{
    return segment->capacity ? head_of(segment)->used : 0;
}

uint32_t kvr_segment_extent(const struct kvr_segment *segment)
{
    return segment->capacity ? head_of(segment)->extent : 0;
}

/* After a copy a segment is filled to 5/9; it is copied again above 11/16 and below 3/8. Fuller ones would take less
 * memory and, with more lines that are full, much more time. */
static uint32_t fitting_capacity(uint32_t used)
{
    uint32_t capacity = (used + used / 5 * 4 + KVR_HOME_SLOTS - 1) & ~(KVR_HOME_SLOTS - 1);
    if (capacity > CAPACITY_MAX / 8) /* Whole pages, with what is not for homes. */
        capacity = (capacity + OTHER_SLOTS + SLOTS_PER_PAGE - 1) / SLOTS_PER_PAGE * SLOTS_PER_PAGE - OTHER_SLOTS;
    return capacity < CAPACITY_MIN ? CAPACITY_MIN : capacity;
}

static int is_full(const struct kvr_segment *segment)
{
    return used_in(segment) >= segment->capacity / 16 * 11;
}

static size_t segment_bytes(uint32_t extent)
{
    return sizeof(struct head) + KVR_HOME_BYTES + extent * sizeof(struct kvr_slot);
}

static void free_segment(struct kvr_table *table, struct kvr_segment *segment)
{
    if (segment->capacity == 0)
        return;
    struct head *head = head_of(segment);
    kvr_pages_give(table->pages, table->account, (char *)head - head->skipped, segment_bytes(head->extent));
}

/* -- copying ------------------------------------------------------------------------------------------------------ */

/* Slots to copy: of one segment, or a part of it. */
struct run {
    const struct kvr_slot *from, *stop;
};

static struct run whole(const struct kvr_segment *segment)
{
    struct run run = {segment->slots, segment->slots + kvr_segment_extent(segment)};
    return run;
}

static uint32_t count_run(struct run run)
{
    uint32_t count = 0;
    for (const struct kvr_slot *slot = run.from; slot < run.stop; slot++)
        count += slot->value != 0;
    return count;
}

/* The place behind the last slot of `run`, when it is copied behind place `next`. */
static uint32_t measure_run(const struct kvr_segment *segment, struct run run, uint32_t next)
{
    for (const struct kvr_slot *slot = run.from; slot < run.stop; slot++) {
        uint32_t occupied = slot->value != 0, home = kvr_segment_home(segment, slot->key) & -occupied;
        next = home > next ? home : next;
        next += occupied;
    }
    return next;
}

/* Without a branch that is hard to guess: which slots are vacant is. At the end of the segment's slots it stops; then it
 * returns how many those are. */
static uint32_t copy_run(const struct kvr_segment *segment, struct run run, uint32_t next)
{
    uint32_t extent = head_of(segment)->extent;
    for (const struct kvr_slot *slot = run.from; slot < run.stop && next < extent; slot++) {
        uint32_t occupied = slot->value != 0, home = kvr_segment_home(segment, slot->key) & -occupied;
        next = home > next ? home : next;
        segment->slots[next] = *slot;
        next += occupied;
    }
    return next;
}

/* The same where values are settled; what goes is not counted as used. */
static uint32_t settle_run(struct kvr_table *table, struct kvr_segment *segment, struct run run, uint32_t next)
{
    for (const struct kvr_slot *slot = run.from; slot < run.stop; slot++) {
        uint32_t value = slot->value ? table->settle(table->context, slot) : 0;
        if (value == 0) {
            head_of(segment)->used -= slot->value != 0;
            continue;
        }
        uint32_t home = kvr_segment_home(segment, slot->key);
        uint32_t at = home > next ? home : next;
        segment->slots[at] = *slot;
        segment->slots[at].value = value;
        next = at + 1;
    }
    return next;
}

static int has_to_settle(const struct kvr_table *table)
{
    return table->settle != NULL && *table->unsettled > 0;
}

static uint32_t measure_runs(const struct kvr_segment *segment, const struct run *runs, int count)
{
    uint32_t end = 0;
    for (int number = 0; number < count; number++)
        end = measure_run(segment, runs[number], end);
    return end;
}

/* Vacant slots for a segment of this capacity whose last slot in use will be the one before `end`; -1 when there is no
 * memory. */
static int take_slots(struct kvr_table *table, struct kvr_segment *segment, uint32_t end, uint32_t used)
{
    /* Whole lines, for they are looked at and moved as such: the last one too. */
    uint32_t extent = (end > segment->capacity ? end : segment->capacity) + SPARE_SLOTS + KVR_HOME_SLOTS - 1;
    extent -= extent % KVR_HOME_SLOTS;
    char *memory = kvr_pages_take(table->pages, table->account, segment_bytes(extent));
    if (memory == NULL)
        return -1;
    size_t skipped = -((uintptr_t)memory + sizeof(struct head)) % KVR_HOME_BYTES;
    segment->slots = (struct kvr_slot *)(void *)(memory + skipped + sizeof(struct head));
    struct head *head = head_of(segment);
    head->used = used;
    head->extent = extent;
    head->skipped = skipped;
    for (uint32_t at = 0; at < extent; at++)
        segment->slots[at] = VACANT;
    return 0;
}

/* Returns whether all of them had a place, and the last slot is vacant. */
static int copy_runs(struct kvr_segment *segment, const struct run *runs, int count)
{
    uint32_t next = 0;
    for (int number = 0; number < count; number++)
        next = copy_run(segment, runs[number], next);
    return next < head_of(segment)->extent;
}

/* A segment of this capacity and depth with the `used` slots of the runs, or with room for them where it `settles` them; -1
 * when there is no memory. */
static int make_segment(struct kvr_table *table, struct kvr_segment *segment, const struct run *runs, int count,
                        uint32_t used, int settles)
{
    if (take_slots(table, segment, settles ? measure_runs(segment, runs, count) : segment->capacity, used))
        return -1;
    if (settles || copy_runs(segment, runs, count))
        return 0;
    free_segment(table, segment); /* There is more of a crowd at its end than is to be expected. */
    if (take_slots(table, segment, measure_runs(segment, runs, count), used))
        return -1;
    (void)copy_runs(segment, runs, count);
    return 0;
}

/* What make_segment has left to do where it settles: all runs, also when nothing is left to settle after the first. */
static void settle_segment(struct kvr_table *table, struct kvr_segment *segment, const struct run *runs, int count)
{
    uint32_t next = 0;
    for (int number = 0; number < count; number++)
        next = settle_run(table, segment, runs[number], next);
}

/* -- the directory ------------------------------------------------------------------------------------------------ */

static size_t first_place(const struct kvr_table *table, size_t place, uint32_t depth)
{
    return place >> (table->bits - depth) << (table->bits - depth);
}

static void enter_segment(struct kvr_table *table, size_t place, struct kvr_segment segment)
{
    size_t first = first_place(table, place, segment.depth);
    size_t count = (size_t)1 << (table->bits - segment.depth);
    if (table->share != NULL)
        kvr_share_layout(table->share);
    for (size_t number = 0; number < count; number++)
        table->directory[first + number] = segment;
    table->moves++;
}

static size_t directory_bytes(uint32_t bits)
{
    return sizeof(struct kvr_segment) << bits;
}

static int double_directory(struct kvr_table *table)
{
    struct kvr_segment *old = table->directory;
    struct kvr_segment *directory = kvr_take(table->account, directory_bytes(table->bits + 1));
    if (directory == NULL)
        return -1;
    for (size_t place = 0; place < (size_t)1 << table->bits; place++)
        directory[2 * place] = directory[2 * place + 1] = old[place];
    kvr_give(table->account, old, directory_bytes(table->bits));
    table->directory = directory;
    table->bits++;
    table->deepest = 0;
    return 0;
}

/* Best effort: without memory the directory stays as large as it is. */
static void halve_directory(struct kvr_table *table)
{
    while (table->bits > 0 && table->deepest == 0) {
        struct kvr_segment *directory = kvr_take(table->account, directory_bytes(table->bits - 1));
        if (directory == NULL)
            return;
        table->bits--;
        for (size_t place = 0; place < (size_t)1 << table->bits; place++) {
            directory[place] = table->directory[2 * place];
            table->deepest += directory[place].depth == table->bits;
        }
        kvr_give(table->account, table->directory, directory_bytes(table->bits + 1));
        table->directory = directory;
    }
}

/* -- resizing ----------------------------------------------------------------------------------------------------- */

/* Put the `used` slots of the runs into a new segment of this capacity for `place`; what was there stays allocated. -1
 * without memory. */
static int replace(struct kvr_table *table, size_t place, uint32_t depth, const struct run *runs, int count,
                   uint32_t used, uint32_t capacity)
{
    struct kvr_segment fresh = {(struct kvr_slot *)(uintptr_t)NOTHING, 0, depth};
    if (capacity > 0) {
        int settles = has_to_settle(table);
        fresh.capacity = capacity;
        if (make_segment(table, &fresh, runs, count, used, settles))
            return -1;
        if (settles)
            settle_segment(table, &fresh, runs, count);
        table->used -= used - head_of(&fresh)->used;
    }
    enter_segment(table, place, fresh);
    return 0;
}

static int resize_segment(struct kvr_table *table, size_t place, uint32_t capacity)
{
    struct kvr_segment old = table->directory[place];
    struct run run = whole(&old);
    if (replace(table, place, old.depth, &run, 1, used_in(&old), capacity))
        return -1;
    free_segment(table, &old);
    return 0;
}

static int split_segment(struct kvr_table *table, size_t place)
{
    struct kvr_segment old = table->directory[place];
    if (old.depth == table->bits) {
        if (double_directory(table))
            return -1;
        place *= 2;
    }
    uint64_t boundary = ((uint64_t)(place >> (table->bits - old.depth)) * 2 + 1) << (63 - old.depth);
    struct run low = whole(&old), high = low;
    while (low.stop > low.from && (low.stop[-1].value == 0 || low.stop[-1].key >= boundary))
        low.stop--;
    high.from = low.stop;
    struct kvr_segment halves[2];
    const struct run *runs[2] = {&low, &high};
    uint32_t used = count_run(low), counts[2] = {used, used_in(&old) - used};
    int settles = has_to_settle(table);
    for (int half = 0; half < 2; half++) {
        halves[half].slots = (struct kvr_slot *)(uintptr_t)NOTHING;
        halves[half].depth = old.depth + 1;
        halves[half].capacity = fitting_capacity(counts[half]);
        if (make_segment(table, &halves[half], runs[half], 1, counts[half], settles)) {
            if (half == 1)
                free_segment(table, &halves[0]);
            halve_directory(table);
            return -1;
        }
    }
    size_t first = first_place(table, place, old.depth);
    for (int half = 0; half < 2; half++) {
        if (settles)
            settle_segment(table, &halves[half], runs[half], 1);
        table->used -= counts[half] - head_of(&halves[half])->used;
        enter_segment(table, half ? first + ((size_t)1 << (table->bits - old.depth - 1)) : first, halves[half]);
    }
    if (old.depth + 1 == table->bits)
        table->deepest += 2;
    free_segment(table, &old);
    return 0;
}

static int make_room(struct kvr_table *table, size_t place)
{
    const struct kvr_segment *segment = &table->directory[place];
    int too_large = fitting_capacity(used_in(segment)) > CAPACITY_MAX;
    int may_split = segment->depth < table->bits || table->used >> table->bits >= SLOTS_PER_ENTRY_MIN;
    if (too_large && may_split && segment->depth < 31)
        return split_segment(table, place);
    return resize_segment(table, place, fitting_capacity(used_in(segment) + 1));
}

/* Join a segment with the one of its other half, if both are small; returns whether. */
static int join_segment(struct kvr_table *table, size_t place)
{
    struct kvr_segment own = table->directory[place];
    if (own.depth == 0)
        return 0;
    size_t first = first_place(table, place, own.depth - 1);
    size_t second = first + ((size_t)1 << (table->bits - own.depth));
    struct kvr_segment low = table->directory[first], high = table->directory[second];
    if (low.depth != high.depth || used_in(&low) + used_in(&high) > CAPACITY_MAX / 2)
        return 0;
    struct run runs[2] = {whole(&low), whole(&high)};
    uint32_t used = used_in(&low) + used_in(&high);
    if (replace(table, place, own.depth - 1, runs, 2, used, used > 0 ? fitting_capacity(used) : 0))
        return 0;
    free_segment(table, &low);
    free_segment(table, &high);
    if (own.depth == table->bits) {
        table->deepest -= 2;
        halve_directory(table);
    }
    return 1;
}

static int is_sparse(const struct kvr_segment *segment)
{
    uint32_t used = used_in(segment);
    return used == 0 || (segment->capacity > CAPACITY_MIN && used < segment->capacity / 8 * 3);
}

static uint32_t needed_capacity(const struct kvr_table *table, size_t place)
{
    uint32_t used = used_in(&table->directory[place]);
    return used > 0 ? fitting_capacity(used) : 0;
}

/* Give back what the segment of a key does not need; best effort. A copy settles values, so it may ask for another. */
static void shrink(struct kvr_table *table, uint64_t key)
{
    size_t place = kvr_table_place(table, key);
    while (is_sparse(&table->directory[place])) {
        if (join_segment(table, place))
            place = kvr_table_place(table, key);
        else if (table->directory[place].capacity == 0 || resize_segment(table, place, needed_capacity(table, place)))
            break;
    }
}

void kvr_table_renew(struct kvr_table *table, uint64_t key)
{
    size_t place = kvr_table_place(table, key);
    uint32_t needed = needed_capacity(table, place), capacity = table->directory[place].capacity;
    if (resize_segment(table, place, needed < capacity ? needed : capacity) == 0) /* It gives back, and takes nothing. */
        shrink(table, key);
}

/* -- single keys -------------------------------------------------------------------------------------------------- */

/* Both ways of moving neighbours are without a branch, and touch nothing else, where they stay within a line: how many
 * they are cannot be guessed, and a wrong guess takes longer than all of the copies. */

/* The line of a slot; those that are taken come first in it. */
static struct kvr_slot *line_of(const struct kvr_segment *segment, struct kvr_slot *slot)
{
    return slot - ((size_t)(slot - segment->slots) & (KVR_HOME_SLOTS - 1));
}

static uint32_t taken_in(const struct kvr_slot *line)
{
    return (uint32_t)(line[0].value != 0) + (line[1].value != 0) + (line[2].value != 0) + (line[3].value != 0);
}

/* Whether a slot is not at its home. */
static int is_pushed(const struct kvr_segment *segment, const struct kvr_slot *slot)
{
    return (slot->value != 0) & (segment->slots + kvr_segment_home(segment, slot->key) < slot);
}

/* Move the slots from here on to the right, up to the first gap, unless that is the segment's last; returns whether. */
static int make_gap(const struct kvr_segment *segment, struct kvr_slot *slot)
{
    struct kvr_slot *line = line_of(segment, slot), *last = segment->slots + head_of(segment)->extent - 1;
    if (line[KVR_HOME_SLOTS - 1].value == 0 && line + KVR_HOME_SLOTS <= last) {
        uint32_t at = (uint32_t)(slot - line), taken = taken_in(line);
        line[3] = line[3 - (at < 3 && taken == 3)];
        line[2] = line[2 - (at < 2 && taken >= 2)];
        line[1] = line[1 - (at < 1 && taken >= 1)];
        return 1;
    }
    struct kvr_slot *end = slot;
    while (end->value != 0)
        end++;
    if (end == last)
        return 0;
    memmove(slot + 1, slot, (size_t)(end - slot) * sizeof *slot);
    return 1;
}

/* Move the slots behind this one to the left, up to the first that is at its home or vacant. */
static void close_gap(const struct kvr_segment *segment, struct kvr_slot *slot)
{
    struct kvr_slot *line = line_of(segment, slot), *end = slot + 1;
    /* Only out of a line that is full something may have been pushed. */
    const struct kvr_slot *behind = line[KVR_HOME_SLOTS - 1].value != 0 ? line + KVR_HOME_SLOTS : &VACANT;
    if (!is_pushed(segment, behind)) {
        uint32_t at = (uint32_t)(slot - line), taken = taken_in(line);
        line[0] = line[at < 1];
        line[1] = line[1 + (at < 2)];
        line[2] = line[2 + (at < 3)];
        line[taken - 1] = VACANT;
        return;
    }
    while (is_pushed(segment, end))
        end++;
    memmove(slot, slot + 1, (size_t)(end - slot - 1) * sizeof *slot);
    end[-1] = VACANT;
}

int kvr_table_add_at(struct kvr_table *table, struct kvr_slot *slot, uint64_t key, uint32_t value, uint32_t link)
{
    size_t place = kvr_table_place(table, key);
    struct kvr_segment *segment = &table->directory[place];
    int crowded = is_full(segment);
    for (;;) {
        int no_memory = 0;
        if (crowded) {
            no_memory = make_room(table, place);
            place = kvr_table_place(table, key);
            segment = &table->directory[place];
            slot = kvr_table_seek(table, key);
        }
        /* Without memory for a larger segment, its last gaps are used. */
        if (segment->capacity && make_gap(segment, slot)) {
            struct kvr_slot added = {key, value, link};
            *slot = added;
            head_of(segment)->used++;
            table->used++;
            return 0;
        }
        if (no_memory)
            return -1;
        crowded = 1;
    }
}

void kvr_table_drop(struct kvr_table *table, struct kvr_slot *slot)
{
    uint64_t key = slot->key;
    struct kvr_segment *segment = &table->directory[kvr_table_place(table, key)];
    close_gap(segment, slot);
    head_of(segment)->used--;
    table->used--;
    if (is_sparse(segment))
        shrink(table, key);
}

/* -- life --------------------------------------------------------------------------------------------------------- */

int kvr_table_open(struct kvr_table *table, size_t *account, kvr_settle *settle, void *context)
{
    struct kvr_segment empty = {(struct kvr_slot *)(uintptr_t)NOTHING, 0, 0};
    table->directory = kvr_take(account, directory_bytes(0));
    if (table->directory == NULL)
        return -1;
    table->directory[0] = empty;
    table->bits = 0;
    table->deepest = 1;
    table->used = 0;
    table->moves = 0;
    table->account = account;
    table->pages = NULL;
    table->settle = settle;
    table->context = context;
    table->share = NULL;
    table->unsettled = NULL;
    return 0;
}

void kvr_table_close(struct kvr_table *table)
{
    if (table->directory == NULL)
        return;
    size_t count = (size_t)1 << table->bits;
    for (size_t place = 0; place < count;) {
        struct kvr_segment segment = table->directory[place];
        place += (size_t)1 << (table->bits - segment.depth);
        free_segment(table, &segment);
    }
    kvr_give(table->account, table->directory, directory_bytes(table->bits));
    table->directory = NULL;
}
