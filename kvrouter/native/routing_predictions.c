/* Writing, ending and matching predictions; `routing_predictions.h` says how they lie in memory. */
#include "routing_predictions.h"
#include "index_memory.h"
#include <assert.h>
#include <math.h>
#include <stdlib.h>

#define PAGE_BITS 10
#define PAGE (1u << PAGE_BITS)
/* How far ahead of its use a slot is asked for. */
#define AHEAD 8

/* -- numbers ------------------------------------------------------------------------------------------------------ */

static void **place_of(const struct kvr_pool *pool, uint32_t number)
{
    return &pool->pages[(number - 1) >> PAGE_BITS][(number - 1) & (PAGE - 1)];
}

/* Make room for one number more. */
static int extend_pool(struct kvr_pool *pool, size_t *account)
{
    uint32_t page = pool->count >> PAGE_BITS;
    if (page == pool->pages_max) {
        uint32_t pages_max = page ? 2 * page : 4;
        void ***pages =
            kvr_retake(account, pool->pages, pool->pages_max * sizeof *pages, pages_max * sizeof *pages);
        if (pages == NULL)
            return -1;
        memset(pages + page, 0, (pages_max - page) * sizeof *pages);
        pool->pages = pages;
        pool->pages_max = pages_max;
    }
    if (pool->pages[page] == NULL)
        pool->pages[page] = kvr_take(account, PAGE * sizeof **pool->pages);
    return pool->pages[page] == NULL ? -1 : 0;
}

/* A number for an object, or 0 without memory. */
static uint32_t number_object(struct kvr_pool *pool, size_t *account, void *object)
{
    uint32_t number = pool->free;
    if (number != 0) {
        pool->free = (uint32_t)(uintptr_t)*place_of(pool, number);
    } else {
        if (extend_pool(pool, account))
            return 0;
        number = ++pool->count;
    }
    *place_of(pool, number) = object;
    return number;
}

static void free_number(struct kvr_pool *pool, uint32_t number)
{
    *place_of(pool, number) = (void *)(uintptr_t)pool->free;
    pool->free = number;
}

static void close_pool(struct kvr_pool *pool, size_t *account)
{
    for (uint32_t page = 0; page < pool->pages_max; page++)
        kvr_give(account, pool->pages[page], PAGE * sizeof **pool->pages);
    kvr_give(account, pool->pages, pool->pages_max * sizeof *pool->pages);
}

/* -- what a slot names -------------------------------------------------------------------------------------------- */

struct group {
    uint64_t ended; /* the last of its members that left: `ended` of the predictions then */
    uint32_t references; /* slots that name it */
    uint32_t number;
    uint32_t count;
    uint32_t room;
    const struct kvr_note *members[];
};

static uint32_t name_note(const struct kvr_note *note)
{
    return note->number << 1;
}

static uint32_t name_group(const struct group *group)
{
    return group->number << 1 | 1;
}

static int is_group(uint32_t name)
{
    return name & 1;
}

static struct kvr_note *note_of(const struct kvr_predictions *predictions, uint32_t name)
{
    return *place_of(&predictions->notes, name >> 1);
}

static struct group *group_of(const struct kvr_predictions *predictions, uint32_t name)
{
    return *place_of(&predictions->groups, name >> 1);
}

static size_t group_bytes(uint32_t room)
{
    return sizeof(struct group) + room * sizeof(struct kvr_note *);
}

static size_t note_bytes(uint32_t room)
{
    return sizeof(struct kvr_note) + room * sizeof(uint64_t);
}

static void free_note(struct kvr_predictions *predictions, struct kvr_note *note)
{
    free_number(&predictions->notes, note->number);
    kvr_give(&predictions->bytes, note, note_bytes(note->room));
}

static struct group *new_group(struct kvr_predictions *predictions, uint32_t room)
{
    struct group *group = kvr_take(&predictions->bytes, group_bytes(room));
    if (group == NULL)
        return NULL;
    group->ended = 0;
    group->references = group->count = 0;
    group->room = room;
    group->number = number_object(&predictions->groups, &predictions->bytes, group);
    if (group->number != 0)
        return group;
    kvr_give(&predictions->bytes, group, group_bytes(room));
    return NULL;
}

static void free_group(struct kvr_predictions *predictions, struct group *group)
{
    free_number(&predictions->groups, group->number);
    kvr_give(&predictions->bytes, group, group_bytes(group->room));
}

/* A slot names something else from now on. */
static void let_go(struct kvr_predictions *predictions, uint32_t name)
{
    if (!is_group(name))
        return;
    struct group *group = group_of(predictions, name);
    if (--group->references == 0)
        free_group(predictions, group);
}

static const struct kvr_note *member_of_rank(const struct kvr_predictions *predictions, uint32_t name, uint32_t rank)
{
    if (!is_group(name)) {
        const struct kvr_note *note = note_of(predictions, name);
        return note->rank == rank ? note : NULL;
    }
    const struct group *group = group_of(predictions, name);
    for (uint32_t at = 0; at < group->count; at++)
        if (group->members[at]->rank == rank)
            return group->members[at];
    return NULL;
}

/* -- writing ------------------------------------------------------------------------------------------------------ */

/* The name of what `name` names, with `note` in the place of its rank's earlier one. 0 without memory. A new group has
 * no references yet. */
static uint32_t join(struct kvr_predictions *predictions, uint32_t name, const struct kvr_note *note)
{
    const struct group *before = is_group(name) ? group_of(predictions, name) : NULL;
    if (before == NULL && note_of(predictions, name)->rank == note->rank)
        return name_note(note);
    uint32_t count = before ? before->count : 1;
    struct group *after = new_group(predictions, count + 1);
    if (after == NULL)
        return 0;
    for (uint32_t at = 0; at < count; at++) {
        const struct kvr_note *member = before ? before->members[at] : note_of(predictions, name);
        if (member->rank != note->rank)
            after->members[after->count++] = member;
    }
    after->members[after->count++] = note;
    return name_group(after);
}

KVR_INLINE uint64_t key_of(const struct kvr_predictions *predictions, uint64_t hash)
{
    return kvr_mix(hash, predictions->secret);
}

KVR_INLINE void ask(const struct kvr_predictions *predictions, const uint64_t *hashes, size_t count, size_t at)
{
    if (at < count)
        KVR_PREFETCH(kvr_table_home(&predictions->table, key_of(predictions, hashes[at])));
}

/* Make a note the latest of its blocks for its rank. Its `hashes` are gone through once: `count` grows with every block
 * that is done, and one that comes twice stays in it once. */
static int name_blocks(struct kvr_predictions *predictions, struct kvr_note *note, size_t *distinct)
{
    uint32_t before = 0, after = 0, own = name_note(note);
    int is_new = 0;
    for (size_t at = 0; at < AHEAD; at++)
        ask(predictions, note->hashes, note->room, at);
    for (uint32_t at = 0; at < note->room; at++) {
        ask(predictions, note->hashes, note->room, at + AHEAD);
        uint64_t key = key_of(predictions, note->hashes[at]);
        struct kvr_slot *slot = kvr_table_find(&predictions->table, key);
        if (slot == NULL) {
            if (kvr_table_add(&predictions->table, key, own))
                return -1;
            note->hashes[note->count++] = note->hashes[at];
            ++*distinct;
            continue;
        }
        if (slot->value != before || before == 0) { /* Neighbouring blocks mostly have the same notes. */
            const struct kvr_note *earlier = member_of_rank(predictions, slot->value, note->rank);
            if (earlier == note)
                continue;
            uint32_t joined = join(predictions, slot->value, note);
            if (joined == 0)
                return -1;
            is_new = earlier == NULL;
            before = slot->value;
            after = joined;
        }
        slot->value = after;
        if (is_group(after))
            group_of(predictions, after)->references++;
        let_go(predictions, before);
        note->hashes[note->count++] = note->hashes[at];
        *distinct += (size_t)is_new;
    }
    return 0;
}

/* Take out of what `name` names the note that ends now; `*left` says whether it was the latest of its rank there. What
 * the slot is to name; 0: nothing. */
static uint32_t part(struct kvr_predictions *predictions, uint32_t name, const struct kvr_note *note, int *left)
{
    *left = 1;
    if (!is_group(name)) {
        *left = name == name_note(note);
        return *left ? 0 : name;
    }
    struct group *group = group_of(predictions, name);
    if (group->ended != predictions->ended) {
        uint32_t at = 0;
        while (at < group->count && group->members[at] != note)
            at++;
        if (at == group->count) {
            *left = 0;
            return name;
        }
        /* In place, for every block that names the group at once: all of them are the note's. */
        group->members[at] = group->members[--group->count];
        group->ended = predictions->ended;
    }
    return group->count > 1 ? name : name_note(group->members[0]);
}

static void end_oldest(struct kvr_predictions *predictions, struct kvr_rank_notes *own)
{
    struct kvr_note *note = own->first;
    own->first = note->next;
    if (own->first == NULL)
        own->last = NULL;
    own->written -= note->count;
    predictions->written -= note->count;
    predictions->ended++;
    for (size_t at = 0; at < AHEAD; at++)
        ask(predictions, note->hashes, note->count, at);
    for (uint32_t at = 0; at < note->count; at++) {
        ask(predictions, note->hashes, note->count, at + AHEAD);
        struct kvr_slot *slot = kvr_table_find(&predictions->table, key_of(predictions, note->hashes[at]));
        assert(slot != NULL);
        int left;
        uint32_t before = slot->value, after = part(predictions, before, note, &left);
        own->distinct -= (size_t)left;
        if (after == before)
            continue;
        if (after == 0)
            kvr_table_drop(&predictions->table, slot);
        else
            slot->value = after;
        let_go(predictions, before);
    }
    free_note(predictions, note);
}

static struct kvr_rank_notes *notes_of(struct kvr_predictions *predictions, uint32_t rank)
{
    if (rank >= predictions->ranks_max) {
        uint32_t ranks_max = (rank / 64 + 1) * 64;
        struct kvr_rank_notes *ranks = kvr_retake(&predictions->bytes, predictions->ranks,
                                                  predictions->ranks_max * sizeof *ranks, ranks_max * sizeof *ranks);
        if (ranks == NULL)
            return NULL;
        memset(ranks + predictions->ranks_max, 0, (ranks_max - predictions->ranks_max) * sizeof *ranks);
        for (uint32_t each = predictions->ranks_max; each < ranks_max; each++)
            ranks[each].followed = -1;
        predictions->ranks = ranks;
        predictions->ranks_max = ranks_max;
    }
    return &predictions->ranks[rank];
}

static struct kvr_note *new_note(struct kvr_predictions *predictions, const uint64_t *hashes, uint32_t count)
{
    struct kvr_note *note = kvr_take(&predictions->bytes, note_bytes(count));
    if (note == NULL)
        return NULL;
    note->next = NULL;
    note->count = 0;
    note->room = count;
    memcpy(note->hashes, hashes, count * sizeof *hashes);
    note->number = number_object(&predictions->notes, &predictions->bytes, note);
    if (note->number != 0)
        return note;
    kvr_give(&predictions->bytes, note, note_bytes(count));
    return NULL;
}

/* Whoever writes gives first; when all ranks together still have too much, the rank that has most. */
static void keep_bounds(struct kvr_predictions *predictions, struct kvr_rank_notes *own)
{
    while (own->written > predictions->blocks_max ||
           (predictions->written > predictions->total_max && own->first != own->last))
        end_oldest(predictions, own);
    while (predictions->written > predictions->total_max) {
        struct kvr_rank_notes *longest = predictions->ranks;
        for (uint32_t rank = 1; rank < predictions->ranks_max; rank++)
            if (predictions->ranks[rank].written > longest->written)
                longest = &predictions->ranks[rank];
        end_oldest(predictions, longest);
    }
}

int kvr_predictions_store(struct kvr_predictions *predictions, uint32_t rank, const uint64_t *hashes, size_t count,
                          double deadline)
{
    count = count < predictions->blocks_max ? count : predictions->blocks_max;
    count = count < predictions->total_max ? count : predictions->total_max;
    if (count == 0)
        return 0;
    struct kvr_rank_notes *own = notes_of(predictions, rank);
    struct kvr_note *note = own ? new_note(predictions, hashes, (uint32_t)count) : NULL;
    if (note == NULL)
        return -1;
    note->rank = rank;
    note->deadline = own->last != NULL && own->last->deadline > deadline ? own->last->deadline : deadline;
    int failed = name_blocks(predictions, note, &own->distinct);
    if (note->count == 0) {
        free_note(predictions, note);
        return failed;
    }
    if (own->last != NULL)
        own->last->next = note;
    else
        own->first = note;
    own->last = note;
    own->written += note->count;
    predictions->written += note->count;
    keep_bounds(predictions, own);
    if (own->first != NULL && own->first->deadline < predictions->due)
        predictions->due = own->first->deadline;
    return failed;
}

int kvr_predictions_predict(struct kvr_predictions *predictions, uint32_t rank, const struct kvr_landmarks *marks,
                            size_t confirmed, size_t promised, double deadline, double fresh)
{
    size_t begin = kvr_landmarks_within(confirmed), known = kvr_landmarks_within(promised);
    known = known < marks->count ? known : marks->count;
    if (known > begin) {
        /* The part that is predicted already is written again only when it is getting old. */
        const struct kvr_note *note = kvr_predictions_find(predictions, rank, marks->all[known - 1]);
        if (note != NULL && note->deadline > fresh)
            begin = known;
    }
    if (begin >= marks->count)
        return 0;
    return kvr_predictions_store(predictions, rank, marks->all + begin, marks->count - begin, deadline);
}

/* -- ending ------------------------------------------------------------------------------------------------------- */

void kvr_predictions_expire(struct kvr_predictions *predictions, double now)
{
    if (!(predictions->due <= now))
        return;
    double due = INFINITY;
    for (uint32_t rank = 0; rank < predictions->ranks_max; rank++) {
        struct kvr_rank_notes *own = &predictions->ranks[rank];
        while (own->first != NULL && own->first->deadline <= now)
            end_oldest(predictions, own);
        if (own->first != NULL && own->first->deadline < due)
            due = own->first->deadline;
    }
    predictions->due = due;
}

void kvr_predictions_drop(struct kvr_predictions *predictions, uint32_t rank)
{
    struct kvr_rank_notes *own = rank < predictions->ranks_max ? &predictions->ranks[rank] : NULL;
    while (own != NULL && own->first != NULL)
        end_oldest(predictions, own);
}

int kvr_predictions_follow(struct kvr_predictions *predictions, uint32_t rank, int is_live)
{
    struct kvr_rank_notes *own = notes_of(predictions, rank);
    if (own == NULL)
        return -1;
    if (own->followed != is_live) {
        own->followed = is_live;
        kvr_predictions_drop(predictions, rank);
    }
    return 0;
}

/* -- matching ----------------------------------------------------------------------------------------------------- */

/* What the slot of a block names; 0 where nobody is predicted to hold it. */
static uint32_t name_at(const struct kvr_predictions *predictions, uint64_t hash)
{
    const struct kvr_slot *slot = kvr_table_find(&predictions->table, key_of(predictions, hash));
    return slot == NULL ? 0 : slot->value;
}

const struct kvr_note *kvr_predictions_find(const struct kvr_predictions *predictions, uint32_t rank, uint64_t hash)
{
    uint32_t name = name_at(predictions, hash);
    return name == 0 ? NULL : member_of_rank(predictions, name, rank);
}

static void spread_out(const struct kvr_predictions *predictions, uint32_t name, uint64_t *ranks)
{
    memset(ranks, 0, predictions->ranks_max / 64 * sizeof *ranks);
    if (name == 0)
        return;
    if (!is_group(name)) {
        uint32_t rank = note_of(predictions, name)->rank;
        ranks[rank / 64] |= UINT64_C(1) << rank % 64;
        return;
    }
    const struct group *group = group_of(predictions, name);
    for (uint32_t at = 0; at < group->count; at++)
        ranks[group->members[at]->rank / 64] |= UINT64_C(1) << group->members[at]->rank % 64;
}

/* A walk along a prompt: the ranks that hold every block since their known prefix ended. */
struct walk {
    const struct kvr_predictions *predictions;
    struct kvr_overlap *reach;
    uint64_t alive[KVR_RANK_WORDS_MAX];
    uint64_t holders[KVR_RANK_WORDS_MAX];
    int any;
};

static void note_depths(struct walk *walk, uint32_t word, uint64_t ranks, size_t depth)
{
    walk->reach->ranks[word] |= ranks;
    for (; ranks; ranks &= ranks - 1)
        walk->reach->depths[word * 64 + (uint32_t)kvr_lowest_bit(ranks)] = (uint32_t)depth;
}

static void keep(struct walk *walk, size_t depth)
{
    walk->any = 0;
    for (uint32_t word = 0; word < walk->reach->words; word++) {
        uint64_t lost = walk->alive[word] & ~walk->holders[word];
        note_depths(walk, word, lost, depth);
        walk->alive[word] ^= lost;
        walk->any |= walk->alive[word] != 0;
    }
}

static void enter(struct walk *walk, uint32_t rank)
{
    uint64_t bit = UINT64_C(1) << rank % 64;
    if (rank / 64 < walk->reach->words && walk->holders[rank / 64] & bit) {
        walk->alive[rank / 64] |= bit;
        walk->any = 1;
    }
}

/* Ranks of which nothing is known begin with the first block; `holders` are its. */
static void enter_unknown(struct walk *walk, const struct kvr_known *known, size_t known_count)
{
    memcpy(walk->alive, walk->holders, walk->reach->words * sizeof *walk->alive);
    for (size_t at = 0; at < known_count; at++)
        if (known[at].rank / 64 < walk->reach->words)
            walk->alive[known[at].rank / 64] &= ~(UINT64_C(1) << known[at].rank % 64);
    for (uint32_t word = 0; word < walk->reach->words; word++)
        walk->any |= walk->alive[word] != 0;
}

static int compare_positions(const void *one, const void *other)
{
    const struct kvr_known *left = one, *right = other;
    return (left->position > right->position) - (left->position < right->position);
}

void kvr_predictions_match(const struct kvr_predictions *predictions, const uint64_t *hashes, size_t count,
                           struct kvr_known *known, size_t known_count, struct kvr_overlap *reach)
{
    struct walk walk = {.predictions = predictions, .reach = reach, .any = 0};
    reach->words = predictions->ranks_max / 64;
    memset(reach->ranks, 0, reach->words * sizeof *reach->ranks);
    if (count == 0 || predictions->table.used == 0)
        return;
    if (known_count > 1)
        qsort(known, known_count, sizeof *known, compare_positions);
    uint32_t previous = 0;
    size_t joining = 0, position = 0;
    for (;; position++) {
        if (!walk.any && position > 0) { /* Nothing happens before the next rank joins. */
            if (joining == known_count)
                return;
            if (position < known[joining].position)
                position = known[joining].position;
        }
        if (position >= count)
            break;
        ask(predictions, hashes, count, position + AHEAD);
        uint32_t name = name_at(predictions, hashes[position]);
        if (name != previous || position == 0) {
            spread_out(predictions, name, walk.holders);
            keep(&walk, position);
            previous = name;
        }
        if (position == 0)
            enter_unknown(&walk, known, known_count);
        for (; joining < known_count && known[joining].position == position; joining++)
            enter(&walk, known[joining].rank);
    }
    for (uint32_t word = 0; word < reach->words; word++)
        note_depths(&walk, word, walk.alive[word], count);
}

/* -- life --------------------------------------------------------------------------------------------------------- */

int kvr_predictions_open(struct kvr_predictions *predictions, uint64_t secret, size_t blocks_max, size_t total_max)
{
    memset(predictions, 0, sizeof *predictions);
    predictions->secret = secret;
    predictions->blocks_max = blocks_max;
    predictions->total_max = total_max;
    predictions->due = INFINITY;
    return kvr_table_open(&predictions->table, &predictions->bytes, NULL, NULL);
}

void kvr_predictions_close(struct kvr_predictions *predictions)
{
    for (uint32_t rank = 0; rank < predictions->ranks_max; rank++)
        kvr_predictions_drop(predictions, rank);
    kvr_table_close(&predictions->table);
    close_pool(&predictions->notes, &predictions->bytes);
    close_pool(&predictions->groups, &predictions->bytes);
    kvr_give(&predictions->bytes, predictions->ranks, predictions->ranks_max * sizeof *predictions->ranks);
}
