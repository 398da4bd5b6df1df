/* Finding and making counts of copies; `ingest_copies.h` says what they are. */
#include "ingest_copies.h"
#include "index_memory.h"
#include "index_mix.h"

/* More places than a rank can have: three tiers of 256 groups. */
#define PLACES_MAX 1024

static uint64_t hash_of(const struct kvr_all_copies *copies, const struct kvr_copy *list, uint32_t places, int is_known)
{
    uint64_t hash = is_known ? copies->secret : ~copies->secret;
    for (uint32_t at = 0; at < places; at++)
        hash = kvr_mix(hash ^ ((uint64_t)list[at].place << 32 | list[at].count), copies->secret);
    return hash;
}

static int is_same(const struct kvr_all_copies *copies, uint32_t number, const struct kvr_copy *list, uint32_t places,
                   int is_known)
{
    uint32_t own_places;
    const struct kvr_copy *own = kvr_copies_list(copies, number, &own_places);
    if (own_places != places || (int)copies->all[number].is_known != is_known)
        return 0;
    for (uint32_t at = 0; at < places; at++)
        if (own[at].place != list[at].place || own[at].count != list[at].count)
            return 0;
    return 1;
}

static int make_space(struct kvr_all_copies *copies)
{
    if (copies->count < copies->allocated)
        return 0;
    uint32_t larger = 2 * copies->allocated;
    struct kvr_copies *all = kvr_retake(copies->account, copies->all, copies->allocated * sizeof *all,
                                        larger * sizeof *all);
    if (all == NULL)
        return -1;
    copies->all = all;
    copies->allocated = larger;
    return 0;
}

static uint32_t make(struct kvr_all_copies *copies, uint64_t hash, const struct kvr_copy *list, uint32_t places,
                     int is_known)
{
    struct kvr_copies fresh = {.hash = hash, .places = places, .is_known = (uint32_t)is_known};
    if (copies->free == 0 && make_space(copies))
        return UINT32_MAX;
    if (places > 1) {
        fresh.list.many = kvr_take(copies->account, places * sizeof *list);
        if (fresh.list.many == NULL)
            return UINT32_MAX;
        memcpy(fresh.list.many, list, places * sizeof *list);
    } else {
        fresh.list.one = list[0];
    }
    uint32_t number = copies->free;
    if (number != 0)
        copies->free = copies->all[number].next;
    else
        number = copies->count++;
    struct kvr_slot *slot = kvr_table_find(&copies->numbers, hash);
    fresh.next = slot ? slot->value : 0;
    copies->all[number] = fresh;
    if (slot != NULL)
        slot->value = number;
    else
        (void)kvr_table_add(&copies->numbers, hash, number); /* Unfindable, equal ones are made: it is an economy. */
    return number;
}

static uint32_t find_or_make(struct kvr_all_copies *copies, const struct kvr_copy *list, uint32_t places, int is_known)
{
    if (places == 0)
        return is_known ? KVR_LOOSE : KVR_NO_COPIES;
    uint64_t hash = hash_of(copies, list, places, is_known);
    const struct kvr_slot *slot = kvr_table_find(&copies->numbers, hash);
    for (uint32_t number = slot ? slot->value : 0; number; number = copies->all[number].next)
        if (is_same(copies, number, list, places, is_known))
            return number;
    return make(copies, hash, list, places, is_known);
}

uint32_t kvr_copies_in(const struct kvr_all_copies *copies, uint32_t number, uint32_t place)
{
    uint32_t places;
    const struct kvr_copy *list = kvr_copies_list(copies, number, &places);
    for (uint32_t at = 0; at < places; at++)
        if (list[at].place == place)
            return list[at].count;
    return 0;
}

uint32_t kvr_copies_with(struct kvr_all_copies *copies, uint32_t number, uint32_t place, uint32_t count)
{
    struct kvr_copy changed[PLACES_MAX];
    uint32_t places, into = 0, at = 0;
    const struct kvr_copy *list = kvr_copies_list(copies, number, &places);
    while (at < places && list[at].place < place)
        changed[into++] = list[at++];
    if (count > 0)
        changed[into++] = (struct kvr_copy){place, count};
    if (at < places && list[at].place == place)
        at++;
    while (at < places)
        changed[into++] = list[at++];
    return find_or_make(copies, changed, into, kvr_copies_is_known(copies, number));
}

uint32_t kvr_copies_more(struct kvr_all_copies *copies, uint32_t number, uint32_t place)
{
    uint32_t count = kvr_copies_in(copies, number, place);
    return kvr_copies_with(copies, number, place, count == UINT32_MAX ? count : count + 1);
}

uint32_t kvr_copies_known(struct kvr_all_copies *copies, uint32_t number)
{
    uint32_t places;
    const struct kvr_copy *list = kvr_copies_list(copies, number, &places);
    return find_or_make(copies, list, places, 1);
}

static void unlist(struct kvr_all_copies *copies, uint32_t number)
{
    struct kvr_copies *gone = &copies->all[number];
    struct kvr_slot *slot = kvr_table_find(&copies->numbers, gone->hash);
    if (slot == NULL)
        return;
    if (slot->value == number) {
        if (gone->next)
            slot->value = gone->next;
        else
            kvr_table_drop(&copies->numbers, slot);
        return;
    }
    for (struct kvr_copies *before = &copies->all[slot->value]; before->next; before = &copies->all[before->next]) {
        if (before->next == number) {
            before->next = gone->next;
            return;
        }
    }
}

void kvr_copies_leave(struct kvr_all_copies *copies, uint32_t number)
{
    if (number < KVR_COPIES_FIRST)
        return;
    copies->all[number].rows--;
    kvr_copies_release(copies, number);
}

void kvr_copies_release(struct kvr_all_copies *copies, uint32_t number)
{
    if (number < KVR_COPIES_FIRST || number == UINT32_MAX || copies->all[number].rows > 0)
        return;
    struct kvr_copies *found = &copies->all[number];
    unlist(copies, number);
    if (found->places > 1)
        kvr_give(copies->account, found->list.many, found->places * sizeof *found->list.many);
    found->places = 0;
    found->next = copies->free;
    copies->free = number;
}

int kvr_copies_open(struct kvr_all_copies *copies, size_t *account, uint64_t secret)
{
    memset(copies, 0, sizeof *copies);
    copies->account = account;
    copies->secret = secret;
    copies->allocated = 8;
    copies->count = KVR_COPIES_FIRST;
    copies->all = kvr_take(account, copies->allocated * sizeof *copies->all);
    if (copies->all == NULL)
        return -1;
    memset(copies->all, 0, copies->allocated * sizeof *copies->all);
    return kvr_table_open(&copies->numbers, account, NULL, NULL);
}

void kvr_copies_close(struct kvr_all_copies *copies)
{
    if (copies->account == NULL)
        return;
    for (uint32_t number = KVR_COPIES_FIRST; number < copies->count; number++)
        if (copies->all[number].places > 1)
            kvr_give(copies->account, copies->all[number].list.many,
                     copies->all[number].places * sizeof(struct kvr_copy));
    kvr_give(copies->account, copies->all, copies->all ? copies->allocated * sizeof *copies->all : 0);
    kvr_table_close(&copies->numbers);
}
