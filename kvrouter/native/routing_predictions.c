/* Writing and ending predictions; `routing_predictions.h` says how they lie in memory. */
#include "index_memory.h"
#include "routing_notes.h"
#include <assert.h>
#include <math.h>

/* -- numbers ------------------------------------------------------------------------------------------------------ */

/* Make room for one number more. */
static int extend_pool(struct kvr_pool *pool, size_t *account)
{
    uint32_t page = pool->count >> KVR_POOL_PAGE_BITS;
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
        pool->pages[page] = kvr_take(account, KVR_POOL_PAGE * sizeof **pool->pages);
    return pool->pages[page] == NULL ? -1 : 0;
}

/* A number for an object, or 0 without memory. */
static uint32_t number_object(struct kvr_pool *pool, size_t *account, void *object)
{
    uint32_t number = pool->free;
    if (number != 0) {
        pool->free = (uint32_t)(uintptr_t)*kvr_pool_place(pool, number);
    } else {
        if (extend_pool(pool, account))
            return 0;
        number = ++pool->count;
    }
    *kvr_pool_place(pool, number) = object;
    return number;
}

static void free_number(struct kvr_pool *pool, uint32_t number)
{
    *kvr_pool_place(pool, number) = (void *)(uintptr_t)pool->free;
    pool->free = number;
}

static void close_pool(struct kvr_pool *pool, size_t *account)
{
    for (uint32_t page = 0; page < pool->pages_max; page++)
        kvr_give(account, pool->pages[page], KVR_POOL_PAGE * sizeof **pool->pages);
    kvr_give(account, pool->pages, pool->pages_max * sizeof *pool->pages);
}

/* -- what a slot names -------------------------------------------------------------------------------------------- */

static size_t group_bytes(uint32_t room)
{
    return sizeof(struct kvr_group) + room * sizeof(struct kvr_note *);
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

static struct kvr_group *new_group(struct kvr_predictions *predictions, uint32_t room)
{
    struct kvr_group *group = kvr_take(&predictions->bytes, group_bytes(room));
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

static void free_group(struct kvr_predictions *predictions, struct kvr_group *group)
{
    free_number(&predictions->groups, group->number);
    kvr_give(&predictions->bytes, group, group_bytes(group->room));
}

/* A slot names something else from now on. */
static void let_go(struct kvr_predictions *predictions, uint32_t name)
{
    if (!kvr_names_group(name))
        return;
    struct kvr_group *group = kvr_group_of(predictions, name);
    if (--group->references == 0)
        free_group(predictions, group);
}

/* -- writing ------------------------------------------------------------------------------------------------------ */

/* The name of what `name` names, with `note` in the place of its rank's earlier one. 0 without memory. A new group has
 * no references yet. */
static uint32_t join(struct kvr_predictions *predictions, uint32_t name, const struct kvr_note *note)
{
    const struct kvr_group *before = kvr_names_group(name) ? kvr_group_of(predictions, name) : NULL;
    if (before == NULL && kvr_note_of(predictions, name)->rank == note->rank)
        return kvr_name_note(note);
    uint32_t count = before ? before->count : 1;
    struct kvr_group *after = new_group(predictions, count + 1);
    if (after == NULL)
        return 0;
    for (uint32_t at = 0; at < count; at++) {
        const struct kvr_note *member = before ? before->members[at] : kvr_note_of(predictions, name);
        if (member->rank != note->rank)
            after->members[after->count++] = member;
    }
    after->members[after->count++] = note;
    return kvr_name_group(after);
}

/* Make a note the latest of its blocks for its rank. Its `hashes` are gone through once: `count` grows with every block
 * that is done, and one that comes twice stays in it once. */
static int name_blocks(struct kvr_predictions *predictions, struct kvr_note *note, size_t *distinct)
{
    uint32_t before = 0, after = 0, own = kvr_name_note(note);
    int is_new = 0;
    for (size_t at = 0; at < KVR_SLOTS_AHEAD; at++)
        kvr_predictions_ask(predictions, note->hashes, note->room, at);
    for (uint32_t at = 0; at < note->room; at++) {
        kvr_predictions_ask(predictions, note->hashes, note->room, at + KVR_SLOTS_AHEAD);
        uint64_t key = kvr_prediction_key(predictions, note->hashes[at]);
        struct kvr_slot *slot = kvr_table_find(&predictions->table, key);
        if (slot == NULL) {
            if (kvr_table_add(&predictions->table, key, own))
                return -1;
            note->hashes[note->count++] = note->hashes[at];
            ++*distinct;
            continue;
        }
        if (slot->value != before || before == 0) { /* Neighbouring blocks mostly have the same notes. */
            const struct kvr_note *earlier = kvr_member_of_rank(predictions, slot->value, note->rank);
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
        if (kvr_names_group(after))
            kvr_group_of(predictions, after)->references++;
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
    if (!kvr_names_group(name)) {
        *left = name == kvr_name_note(note);
        return *left ? 0 : name;
    }
    struct kvr_group *group = kvr_group_of(predictions, name);
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
    return group->count > 1 ? name : kvr_name_note(group->members[0]);
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
    for (size_t at = 0; at < KVR_SLOTS_AHEAD; at++)
        kvr_predictions_ask(predictions, note->hashes, note->count, at);
    for (uint32_t at = 0; at < note->count; at++) {
        kvr_predictions_ask(predictions, note->hashes, note->count, at + KVR_SLOTS_AHEAD);
        struct kvr_slot *slot = kvr_table_find(&predictions->table, kvr_prediction_key(predictions, note->hashes[at]));
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
