/* Making, finding and freeing sets of holders; `index_sets.h` says what they are. */
#include "index_sets.h"
#include "index_memory.h"
#include "index_mix.h"

/* -- rows --------------------------------------------------------------------------------------------------------- */

/* The hash of a set is the XOR of those of its holders (Zobrist), so that one more or less is one operation. */
static uint64_t hash_of_holder(const struct kvr_sets *sets, uint32_t tier, uint32_t rank)
{
    return kvr_mix((uint64_t)tier << 32 | rank, sets->secret);
}

/* Where a word is in a row, or would be. */
static uint32_t position_of(const struct kvr_word *row, uint32_t words, uint32_t tier, uint32_t word)
{
    uint32_t low = 0, high = words;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (row[middle].tier < tier || (row[middle].tier == tier && row[middle].word < word))
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static int has_word(const struct kvr_word *row, uint32_t words, uint32_t at, uint32_t tier, uint32_t word)
{
    return at < words && row[at].tier == tier && row[at].word == word;
}

int kvr_sets_has(const struct kvr_sets *sets, uint32_t set, uint32_t tier, uint32_t rank)
{
    if (set == 0)
        return 0;
    const struct kvr_set *found = kvr_sets_at(sets, set);
    const struct kvr_word *row = kvr_set_words(found);
    uint32_t at = position_of(row, found->words, tier, rank / 64);
    return has_word(row, found->words, at, tier, rank / 64) && (row[at].bits >> rank % 64 & 1);
}

static int same_rows(const struct kvr_word *a, const struct kvr_word *b, uint32_t words)
{
    for (uint32_t at = 0; at < words; at++)
        if (a[at].bits != b[at].bits || a[at].word != b[at].word || a[at].tier != b[at].tier)
            return 0;
    return 1;
}

/* A copy of a set's row in the scratch row, with room for one word more. NULL without memory. */
static struct kvr_word *copy_row(struct kvr_sets *sets, uint32_t set, uint32_t *words)
{
    uint32_t count = set ? kvr_sets_at(sets, set)->words : 0;
    if (count + 1 > sets->scratch_words) {
        uint32_t larger = 2 * (count + 1);
        struct kvr_word *scratch = kvr_retake(sets->account, sets->scratch, sets->scratch_words * sizeof *scratch,
                                              larger * sizeof *scratch);
        if (scratch == NULL)
            return NULL;
        sets->scratch = scratch;
        sets->scratch_words = larger;
    }
    if (count > 0)
        memcpy(sets->scratch, kvr_set_words(kvr_sets_at(sets, set)), count * sizeof *sets->scratch);
    *words = count;
    return sets->scratch;
}

/* Take a holder that is present out of a row; returns how many words are left. */
static uint32_t strike(struct kvr_word *row, uint32_t words, uint32_t tier, uint32_t rank)
{
    uint32_t at = position_of(row, words, tier, rank / 64);
    row[at].bits &= ~((uint64_t)1 << rank % 64);
    if (row[at].bits != 0)
        return words;
    memmove(row + at, row + at + 1, (words - at - 1) * sizeof *row);
    return words - 1;
}

/* -- finding ------------------------------------------------------------------------------------------------------ */

static uint32_t find_set(const struct kvr_sets *sets, uint64_t hash, const struct kvr_word *row, uint32_t words)
{
    const struct kvr_slot *slot = kvr_table_find(&sets->numbers, hash);
    for (uint32_t number = slot ? slot->value : 0; number; number = kvr_sets_at(sets, number)->next) {
        const struct kvr_set *set = kvr_sets_at(sets, number);
        if (set->words == words && same_rows(kvr_set_words(set), row, words))
            return number;
    }
    return 0;
}

/* Make a set findable. Without memory it stays unfindable, and an equal one may be made: sharing is an economy. */
static void list_set(struct kvr_sets *sets, uint32_t number)
{
    struct kvr_set *set = kvr_sets_at(sets, number);
    struct kvr_slot *slot = kvr_table_find(&sets->numbers, set->hash);
    set->next = slot ? slot->value : 0;
    if (slot != NULL)
        slot->value = number;
    else
        (void)kvr_table_add(&sets->numbers, set->hash, number);
}

static void unlist_set(struct kvr_sets *sets, uint32_t number)
{
    struct kvr_set *set = kvr_sets_at(sets, number);
    struct kvr_slot *slot = kvr_table_find(&sets->numbers, set->hash);
    if (slot == NULL)
        return;
    if (slot->value == number) {
        if (set->next)
            slot->value = set->next;
        else
            kvr_table_drop(&sets->numbers, slot);
        return;
    }
    for (struct kvr_set *before = kvr_sets_at(sets, slot->value); before->next;
         before = kvr_sets_at(sets, before->next)) {
        if (before->next == number) {
            before->next = set->next;
            return;
        }
    }
}

/* -- making and freeing ------------------------------------------------------------------------------------------- */

static int add_page(struct kvr_sets *sets)
{
    uint32_t number = sets->count >> KVR_SETS_PER_PAGE_BITS;
    if (number == sets->pages_max) {
        uint32_t larger = number ? 2 * number : 8;
        struct kvr_set **pages =
            kvr_retake(sets->account, sets->pages, number * sizeof *pages, larger * sizeof *pages);
        if (pages == NULL)
            return -1;
        sets->pages = pages;
        sets->pages_max = larger;
    }
    sets->pages[number] = kvr_take(sets->account, KVR_SETS_PER_PAGE * sizeof **sets->pages);
    return sets->pages[number] == NULL ? -1 : 0;
}

/* A number to use; 0 without memory. */
static uint32_t take_number(struct kvr_sets *sets)
{
    uint32_t number = sets->free;
    if (number != 0) {
        sets->free = kvr_sets_at(sets, number)->target;
        return number;
    }
    if (sets->count == UINT32_MAX)
        return 0;
    if ((sets->count & (KVR_SETS_PER_PAGE - 1)) == 0 && add_page(sets))
        return 0;
    return sets->count++;
}

static void free_row(struct kvr_sets *sets, struct kvr_set *set)
{
    if (set->allocated)
        kvr_give(sets->account, set->row.many, set->allocated * sizeof *set->row.many);
    set->allocated = 0;
    set->words = 0;
}

static uint32_t make_set(struct kvr_sets *sets, uint64_t hash, const struct kvr_word *row, uint32_t words)
{
    struct kvr_word *many = NULL;
    if (words > 1) {
        many = kvr_take(sets->account, words * sizeof *many);
        if (many == NULL)
            return 0;
        memcpy(many, row, words * sizeof *many);
    }
    uint32_t number = take_number(sets);
    if (number == 0) {
        kvr_give(sets->account, many, words * sizeof *many);
        return 0;
    }
    struct kvr_set *set = kvr_sets_at(sets, number);
    memset(set, 0, sizeof *set);
    set->hash = hash;
    set->words = words;
    set->target = number;
    if (many != NULL) {
        set->row.many = many;
        set->allocated = words;
    } else {
        set->row.one = row[0];
    }
    list_set(sets, number);
    return number;
}

static uint32_t find_or_make(struct kvr_sets *sets, uint64_t hash, const struct kvr_word *row, uint32_t words)
{
    uint32_t number = find_set(sets, hash, row, words);
    return number ? number : make_set(sets, hash, row, words);
}

uint32_t kvr_sets_intern(struct kvr_sets *sets, const struct kvr_word *words, uint32_t count)
{
    uint64_t hash = 0;
    for (uint32_t at = 0; at < count; at++)
        for (uint64_t bits = words[at].bits; bits; bits &= bits - 1)
            hash ^= hash_of_holder(sets, words[at].tier, words[at].word * 64 + (uint32_t)kvr_lowest_bit(bits));
    return find_or_make(sets, hash, words, count);
}

void kvr_sets_release(struct kvr_sets *sets, uint32_t number)
{
    while (number != 0) {
        struct kvr_set *set = kvr_sets_at(sets, number);
        if (set->slots || set->forwards)
            return;
        uint32_t target = set->target;
        if (target == number) {
            unlist_set(sets, number);
            target = 0;
        }
        free_row(sets, set);
        set->target = sets->free;
        sets->free = number;
        if (target != 0)
            kvr_sets_at(sets, target)->forwards--;
        number = target;
    }
}

uint32_t kvr_sets_with(struct kvr_sets *sets, uint32_t set, uint32_t tier, uint32_t rank)
{
    uint32_t words;
    struct kvr_word *row = copy_row(sets, set, &words);
    if (row == NULL)
        return 0;
    uint64_t bit = (uint64_t)1 << rank % 64;
    uint32_t at = position_of(row, words, tier, rank / 64);
    if (has_word(row, words, at, tier, rank / 64)) {
        row[at].bits |= bit;
    } else {
        memmove(row + at + 1, row + at, (words - at) * sizeof *row);
        struct kvr_word word = {bit, rank / 64, tier};
        row[at] = word;
        words++;
    }
    uint64_t hash = set ? kvr_sets_at(sets, set)->hash : 0;
    return find_or_make(sets, hash ^ hash_of_holder(sets, tier, rank), row, words);
}

int kvr_sets_without(struct kvr_sets *sets, uint32_t set, uint32_t tier, uint32_t rank, uint32_t *without)
{
    uint32_t words;
    struct kvr_word *row = copy_row(sets, set, &words);
    if (row == NULL)
        return -1;
    words = strike(row, words, tier, rank);
    *without = 0;
    if (words == 0)
        return 0;
    *without = find_or_make(sets, kvr_sets_at(sets, set)->hash ^ hash_of_holder(sets, tier, rank), row, words);
    return *without ? 0 : -1;
}

/* -- slots -------------------------------------------------------------------------------------------------------- */

void kvr_sets_enter(struct kvr_sets *sets, uint32_t number, uint32_t slots)
{
    struct kvr_set *set = kvr_sets_at(sets, number);
    set->slots += slots;
    set->blocks += slots;
}

void kvr_sets_leave(struct kvr_sets *sets, uint32_t number, uint32_t slots)
{
    struct kvr_set *set = kvr_sets_at(sets, number);
    uint32_t live = kvr_sets_resolve(sets, number);
    set->slots -= slots;
    sets->stale -= live != number ? slots : 0;
    if (live != 0)
        kvr_sets_at(sets, live)->blocks -= slots;
    else
        sets->dead -= slots;
    kvr_sets_release(sets, number);
}

uint32_t kvr_sets_settle(struct kvr_sets *sets, uint32_t number)
{
    uint32_t live = kvr_sets_resolve(sets, number);
    if (live == number)
        return number;
    sets->stale--;
    if (live != 0)
        kvr_sets_at(sets, live)->slots++;
    else
        sets->dead--;
    kvr_sets_at(sets, number)->slots--;
    kvr_sets_release(sets, number);
    return live;
}

/* -- a holder leaves ---------------------------------------------------------------------------------------------- */

static void forward(struct kvr_sets *sets, uint32_t number, uint32_t target)
{
    struct kvr_set *set = kvr_sets_at(sets, number);
    if (target != 0) {
        kvr_sets_at(sets, target)->blocks += set->blocks;
        kvr_sets_at(sets, target)->forwards++;
    } else {
        sets->dead += set->blocks;
    }
    sets->stale += set->slots;
    set->blocks = 0;
    set->target = target;
    free_row(sets, set);
}

/* Turn a set into the one without a holder that it has. Needs no memory. */
static void forget_in_set(struct kvr_sets *sets, uint32_t number, uint32_t tier, uint32_t rank)
{
    struct kvr_set *set = kvr_sets_at(sets, number);
    struct kvr_word *row = set->allocated ? set->row.many : &set->row.one;
    unlist_set(sets, number);
    set->words = strike(row, set->words, tier, rank);
    set->hash ^= hash_of_holder(sets, tier, rank);
    uint32_t twin = set->words ? find_set(sets, set->hash, row, set->words) : 0;
    if (twin != 0 || set->words == 0)
        forward(sets, number, twin);
    else
        list_set(sets, number);
}

void kvr_sets_forget(struct kvr_sets *sets, uint32_t tier, uint32_t rank, size_t blocks)
{
    for (uint32_t number = 1; number < sets->count && blocks > 0; number++) {
        struct kvr_set *set = kvr_sets_at(sets, number);
        if (set->words == 0 || !kvr_sets_has(sets, number, tier, rank))
            continue;
        blocks -= set->blocks;
        forget_in_set(sets, number, tier, rank);
    }
}

/* -- life --------------------------------------------------------------------------------------------------------- */

int kvr_sets_open(struct kvr_sets *sets, size_t *account, uint64_t secret)
{
    memset(sets, 0, sizeof *sets);
    sets->account = account;
    sets->secret = secret;
    if (kvr_table_open(&sets->numbers, account, NULL, NULL) || add_page(sets))
        return -1;
    sets->count = 1; /* 0 is the empty set. */
    return 0;
}

void kvr_sets_close(struct kvr_sets *sets)
{
    for (uint32_t number = 1; number < sets->count; number++)
        free_row(sets, kvr_sets_at(sets, number));
    uint32_t pages = (sets->count + KVR_SETS_PER_PAGE - 1) >> KVR_SETS_PER_PAGE_BITS;
    for (uint32_t page = 0; page < pages; page++)
        kvr_give(sets->account, sets->pages[page], KVR_SETS_PER_PAGE * sizeof **sets->pages);
    kvr_give(sets->account, sets->pages, sets->pages_max * sizeof *sets->pages);
    kvr_give(sets->account, sets->scratch, sets->scratch_words * sizeof *sets->scratch);
    kvr_table_close(&sets->numbers);
}
