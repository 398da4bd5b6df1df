/* Taking and filling the segments of a table of aliases; `alias_segment.h` says what they are. */
#include "alias_segment.h"
#include "index_memory.h"

#define CAPACITY_MIN 2
/* A segment so much larger than fits is not tried: its hashes are not scattered. */
#define CAPACITY_TIMES_MAX 4
/* With so many stripes, or places in the directory for them, the first byte of a hash follows from its stripe. */
#define HOMES_MIN 256

/* What every segment without rows looks at. Never written, for its capacity is 0. */
static const _Alignas(KVR_STRIPE_BYTES) struct kvr_stripe NOTHING;
static struct kvr_stripe *const NO_PAGES[1] = {(struct kvr_stripe *)(uintptr_t)&NOTHING};

uint32_t kvr_rows_round_up(uint32_t capacity)
{
    return capacity > KVR_PAGE_STRIPES ? (capacity + KVR_PAGE_STRIPES - 1) / KVR_PAGE_STRIPES * KVR_PAGE_STRIPES : capacity;
}

/* After a copy a segment is filled to 4/5; it is copied again above 30/32 and below 12/32. */
uint32_t kvr_rows_fitting(uint32_t used)
{
    uint32_t rows = used + used / 4, capacity = rows / KVR_STRIPE_ROWS + 1;
    if (capacity < HOMES_MIN)
        capacity = rows / (KVR_STRIPE_ROWS - 1) + 1;
    return capacity < CAPACITY_MIN ? CAPACITY_MIN : kvr_rows_round_up(capacity);
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
    return sizeof(struct kvr_head) + pages_for(capacity) * sizeof(struct kvr_stripe *);
}

/* Of the pages of a segment the first `page_count` are there. */
void kvr_rows_free(struct kvr_aliases *aliases, const struct kvr_rows *segment)
{
    if (segment->capacity == 0)
        return;
    struct kvr_head *head = kvr_rows_head(segment);
    for (uint32_t page = 0; page < head->page_count; page++)
        kvr_pages_give_aligned(aliases->pages, aliases->account, segment->pages[page],
                               page_bytes(segment->capacity, page));
    kvr_give(aliases->account, head, list_bytes(segment->capacity));
}

struct kvr_rows kvr_rows_none(uint32_t depth)
{
    struct kvr_rows segment = {(struct kvr_stripe **)(uintptr_t)NO_PAGES, 0, (uint16_t)depth, KVR_STRIPE_ROWS, 0};
    return segment;
}

/* Give a segment without rows its stripes, all of them vacant; -1 without memory. */
static int take_stripes(struct kvr_aliases *aliases, struct kvr_rows *segment, uint32_t capacity, uint64_t first)
{
    struct kvr_head *head = kvr_take(aliases->account, list_bytes(capacity));
    if (head == NULL)
        return -1;
    int is_narrow = (uint64_t)capacity << segment->depth < HOMES_MIN;
    segment->pages = (struct kvr_stripe **)(void *)(head + 1);
    segment->capacity = capacity;
    segment->rows = (uint8_t)(KVR_STRIPE_ROWS - (uint32_t)is_narrow);
    segment->tops = (uint8_t)is_narrow;
    head->first = first;
    head->used = 0;
    head->full = capacity * segment->rows * 30 / 32;
    head->sparse = capacity > CAPACITY_MIN ? capacity * segment->rows * 12 / 32 : 1;
    for (head->page_count = 0; head->page_count < pages_for(capacity); head->page_count++) {
        size_t bytes = page_bytes(capacity, head->page_count);
        struct kvr_stripe *page =
            kvr_pages_take_aligned(aliases->pages, aliases->account, bytes);
        if (page == NULL) {
            kvr_rows_free(aliases, segment);
            return -1;
        }
        segment->pages[head->page_count] = page;
        for (size_t at = 0; at < bytes / sizeof *page; at++)
            memset(&page[at], 0, offsetof(struct kvr_stripe, keys)); /* The rest is written before it is looked at. */
    }
    return 0;
}

/* -- rows --------------------------------------------------------------------------------------------------------- */

static uint32_t is_guest(const struct kvr_stripe *stripe, uint32_t row)
{
    return stripe->guests >> row & 1;
}

/* Where else than in its stripe, the one at `at`, a row may be: as far behind as it is told from home, or before. Which of
 * them cannot be guessed. */
static uint32_t elsewhere_of(const struct kvr_rows *segment, uint32_t at, const struct kvr_stripe *stripe, uint32_t row)
{
    uint32_t step = 1 + kvr_rows_offset(segment, kvr_stripe_known(stripe, row));
    at += is_guest(stripe, row) ? segment->capacity - step : step;
    return at >= segment->capacity ? at - segment->capacity : at;
}

/* The first 32 bits, behind those that all have in common, of the least hash of a home. */
static uint64_t least_of(const struct kvr_rows *segment, uint32_t home)
{
    return (((uint64_t)home << 32) + segment->capacity - 1) / segment->capacity;
}

/* The hash of a row in the stripe at `at`; `least` is that of the stripe as a home. */
static uint64_t hash_of(const struct kvr_rows *segment, uint32_t at, uint64_t least, const struct kvr_stripe *stripe,
                        uint32_t row)
{
    uint64_t known = kvr_stripe_known(stripe, row), first = kvr_rows_head(segment)->first;
    if (segment->tops)
        return known | (uint64_t)stripe->rests[KVR_TOPS_AT + row] << 56;
    if (is_guest(stripe, row))
        least = least_of(segment, elsewhere_of(segment, at, stripe, row));
    /* No home has more hashes than one for each value of the last 56 bits: the first byte is that of its least or the next. */
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
    for (uint32_t row = 0; row < stripe->taken; row++) { /* All are asked for before the first is looked at. */
        elsewhere[row] = kvr_rows_stripe(segment, elsewhere_of(segment, at, stripe, row));
        KVR_PREFETCH(elsewhere[row]);
    }
    for (uint32_t row = 0; row < stripe->taken; row++) {
        struct kvr_stripe *to = elsewhere[row];
        uint32_t leaves_home = !is_guest(stripe, row);
        if (is_crowded(segment, to))
            continue;
        kvr_stripe_copy(to, to->taken, stripe, row, segment->tops);
        kvr_stripe_set_guest(to, to->taken++, leaves_home);
        kvr_stripe_count_away(leaves_home ? stripe : to, leaves_home ? 1 : -1);
        kvr_stripe_take_out(stripe, row, segment->tops);
        return 1;
    }
    return 0;
}

uint8_t *kvr_rows_squeeze(const struct kvr_rows *segment, uint32_t at, uint64_t hash, uint64_t key, uint32_t copies)
{
    uint32_t away = kvr_rows_other(segment, at, hash);
    struct kvr_stripe *home = kvr_rows_stripe(segment, at), *other = kvr_rows_stripe(segment, away);
    if (is_crowded(segment, other)) {
        if (make_gap(segment, at))
            return kvr_stripe_append(home, hash, key, copies, 0, segment->tops);
        if (!make_gap(segment, away))
            return NULL;
    }
    kvr_stripe_count_away(home, 1);
    return kvr_stripe_append(other, hash, key, copies, 1, segment->tops);
}

/* -- copying ------------------------------------------------------------------------------------------------------ */

static int is_in(const struct kvr_run *run, uint64_t hash)
{
    return hash >= run->from && hash <= run->until;
}

uint32_t kvr_run_count(struct kvr_run run)
{
    uint32_t count = 0;
    for (uint32_t at = 0; at < run.segment->capacity; at++) {
        const struct kvr_stripe *stripe = kvr_rows_stripe(run.segment, at);
        uint64_t least = least_of(run.segment, at);
        for (uint32_t row = 0; row < stripe->taken; row++)
            count += (uint32_t)is_in(&run, hash_of(run.segment, at, least, stripe, row));
    }
    return count;
}

/* Copy rows to where they belong; -1 where there is no room. */
static int copy_run(const struct kvr_rows *segment, struct kvr_run run)
{
    uint32_t count = 0;
    for (uint32_t at = 0; at < run.segment->capacity; at++) {
        struct kvr_stripe *stripe = kvr_rows_stripe(run.segment, at);
        uint64_t least = least_of(run.segment, at);
        for (uint32_t row = 0; row < stripe->taken; row++) {
            uint64_t hash = hash_of(run.segment, at, least, stripe, row);
            if (!is_in(&run, hash))
                continue;
            if (kvr_rows_put(segment, hash, stripe->keys[row], kvr_stripe_copies(stripe, row)) == NULL)
                return -1;
            count++;
        }
    }
    kvr_rows_head(segment)->used += count;
    return 0;
}

int kvr_rows_make(struct kvr_aliases *aliases, struct kvr_rows *segment, uint64_t first, uint32_t capacity,
                  const struct kvr_run *runs, int count)
{
    uint32_t most = capacity * CAPACITY_TIMES_MAX;
    for (; capacity <= most; capacity = kvr_rows_round_up(capacity + capacity / 8 + 1)) {
        int failed = 0;
        if (take_stripes(aliases, segment, capacity, first))
            return -1;
        for (int number = 0; number < count && !failed; number++)
            failed = copy_run(segment, runs[number]);
        if (!failed)
            return 0;
        kvr_rows_free(aliases, segment);
    }
    return -1;
}

/* -- the whole ---------------------------------------------------------------------------------------------------- */

int kvr_rows_visit(const struct kvr_rows *segment, kvr_visit_row *visit, void *context)
{
    for (uint32_t at = 0; at < segment->capacity; at++) {
        const struct kvr_stripe *stripe = kvr_rows_stripe(segment, at);
        uint64_t least = least_of(segment, at);
        for (uint32_t row = 0; row < stripe->taken; row++) {
            int answer = visit(context, &stripe->tags[row], hash_of(segment, at, least, stripe, row));
            if (answer)
                return answer;
        }
    }
    return 0;
}
