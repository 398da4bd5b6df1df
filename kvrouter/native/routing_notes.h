/* What a slot of the table of predictions names, for the files that write and read it; `routing_predictions.h` says what
 * notes and groups are. */
#ifndef KVR_ROUTING_NOTES_H
#define KVR_ROUTING_NOTES_H

#include "routing_predictions.h"

#define KVR_POOL_PAGE_BITS 10
#define KVR_POOL_PAGE (1u << KVR_POOL_PAGE_BITS)
/* How far ahead of its use a slot is asked for. */
#define KVR_SLOTS_AHEAD 8

struct kvr_group {
    uint64_t ended; /* the last of its members that left: `ended` of the predictions then */
    uint32_t references; /* slots that name it */
    uint32_t number;
    uint32_t count;
    uint32_t room;
    const struct kvr_note *members[];
};

KVR_INLINE void **kvr_pool_place(const struct kvr_pool *pool, uint32_t number)
{
    return &pool->pages[(number - 1) >> KVR_POOL_PAGE_BITS][(number - 1) & (KVR_POOL_PAGE - 1)];
}

KVR_INLINE uint32_t kvr_name_note(const struct kvr_note *note)
{
    return note->number << 1;
}

KVR_INLINE uint32_t kvr_name_group(const struct kvr_group *group)
{
    return group->number << 1 | 1;
}

KVR_INLINE int kvr_names_group(uint32_t name)
{
    return name & 1;
}

KVR_INLINE struct kvr_note *kvr_note_of(const struct kvr_predictions *predictions, uint32_t name)
{
    return *kvr_pool_place(&predictions->notes, name >> 1);
}

KVR_INLINE struct kvr_group *kvr_group_of(const struct kvr_predictions *predictions, uint32_t name)
{
    return *kvr_pool_place(&predictions->groups, name >> 1);
}

/* The note of one rank among those that a slot names, or NULL. */
KVR_INLINE const struct kvr_note *kvr_member_of_rank(const struct kvr_predictions *predictions, uint32_t name,
                                                     uint32_t rank)
{
    if (!kvr_names_group(name)) {
        const struct kvr_note *note = kvr_note_of(predictions, name);
        return note->rank == rank ? note : NULL;
    }
    const struct kvr_group *group = kvr_group_of(predictions, name);
    for (uint32_t at = 0; at < group->count; at++)
        if (group->members[at]->rank == rank)
            return group->members[at];
    return NULL;
}

KVR_INLINE uint64_t kvr_prediction_key(const struct kvr_predictions *predictions, uint64_t hash)
{
    return kvr_mix(hash, predictions->secret);
}

/* Ask for the slot of a block that is looked at soon. */
KVR_INLINE void kvr_predictions_ask(const struct kvr_predictions *predictions, const uint64_t *hashes, size_t count,
                                    size_t at)
{
    if (at < count)
        KVR_PREFETCH(kvr_table_home(&predictions->table, kvr_prediction_key(predictions, hashes[at])));
}

#endif
