/* A table from 64-bit keys to 32-bit values that grows and shrinks without ever stopping for long.
 *
 * It consists of segments, each for the keys that begin with the same bits; a directory finds the segment of a key by
 * the first bits. A segment is a sorted array with gaps: a key lies at the place its value asks for ("home") or, if
 * that is taken, right behind its smaller neighbours. So a search ends at the first larger key, and resizing, splitting
 * and joining segments are sequential copies of at most some thousand slots. That is the longest that any operation
 * ever takes, however large the table.
 *
 * What an operation costs in a large table is the cache lines that it touches. A home is a whole line, of four slots:
 * with three of them taken on average, one line is mostly all, also where neighbours have to move.
 *
 * Keys are expected to be scattered evenly (`index_mix.h`). Any others are stored correctly as well, only slower.
 */
#ifndef KVR_INDEX_TABLE_H
#define KVR_INDEX_TABLE_H

#include "index_mix.h"
#include "index_pages.h"
#include "memory.h"
#include <stddef.h>

struct kvr_slot {
    uint64_t key;   /* UINT64_MAX where vacant: a search stops there */
    uint32_t value; /* 0 where vacant */
    uint32_t link;  /* whatever else the owner of the table notes about a key */
};

#define KVR_HOME_BITS 2
#define KVR_HOME_SLOTS (1u << KVR_HOME_BITS)
#define KVR_HOME_BYTES (KVR_HOME_SLOTS * sizeof(struct kvr_slot))

struct kvr_segment {
    struct kvr_slot *slots; /* begin with a cache line */
    uint32_t capacity; /* slots of its homes; behind them a few more take what is pushed over the end */
    uint32_t depth;    /* how many first bits its keys have in common */
};

/* What to do with a slot that is met while slots are copied: the value to write, or 0 to leave the slot out. */
typedef uint32_t kvr_settle(void *context, const struct kvr_slot *slot);

struct kvr_share;

struct kvr_table {
    struct kvr_segment *directory; /* 2^bits entries; a segment of lesser depth has several */
    uint32_t bits;
    size_t deepest; /* segments whose depth is `bits`: without any, half of the directory does */
    size_t used;    /* slots that are not vacant */
    size_t moves;   /* so often slots have got other addresses than those of their segment until then */
    size_t *account;
    struct kvr_pages *pages; /* that its segments are of, or NULL */
    kvr_settle *settle; /* or NULL */
    void *context;
    struct kvr_share *share; /* readers that are told before they see something else; or NULL */
    const size_t *unsettled; /* how many values there are to settle: without any, nobody is asked */
};

/* 0, or -1 when there is no memory; then the table is as before. */
int kvr_table_open(struct kvr_table *table, size_t *account, kvr_settle *settle, void *context);
void kvr_table_close(struct kvr_table *table);

/* Add a key that is absent, where kvr_table_seek found that it belongs. 0, or -1 when there is no memory; then the table
 * is as before. Slots move. */
int kvr_table_add_at(struct kvr_table *table, struct kvr_slot *slot, uint64_t key, uint32_t value, uint32_t link);

/* Take out a slot that is present. Slots move. */
void kvr_table_drop(struct kvr_table *table, struct kvr_slot *slot);

/* Copy the segment of a key to the size that fits, settling its values. Without memory nothing happens. */
void kvr_table_renew(struct kvr_table *table, uint64_t key);

uint32_t kvr_segment_extent(const struct kvr_segment *segment);

KVR_INLINE size_t kvr_table_place(const struct kvr_table *table, uint64_t key)
{
    return (size_t)(key >> 1 >> (63 - table->bits));
}

/* The first key of the segment behind the one at `place`; 0 behind the last. */
KVR_INLINE uint64_t kvr_table_next_key(const struct kvr_table *table, size_t place)
{
    uint32_t depth = table->directory[place].depth;
    if (depth == 0)
        return 0;
    return (((uint64_t)place >> (table->bits - depth)) + 1) << (64 - depth);
}

KVR_INLINE uint32_t kvr_segment_home(const struct kvr_segment *segment, uint64_t key)
{
    return (uint32_t)((key << segment->depth >> 32) * (segment->capacity >> KVR_HOME_BITS) >> 32) << KVR_HOME_BITS;
}

/* Where the search for a key begins; worth a prefetch. */
KVR_INLINE struct kvr_slot *kvr_table_home(const struct kvr_table *table, uint64_t key)
{
    const struct kvr_segment *segment = table->directory + kvr_table_place(table, key);
    return segment->slots + kvr_segment_home(segment, key);
}

/* Ask for what a change of a key will touch: its home, which is returned, and what the segment notes of itself right before
 * its slots. */
KVR_INLINE struct kvr_slot *kvr_table_ask(const struct kvr_table *table, uint64_t key)
{
    const struct kvr_segment *segment = table->directory + kvr_table_place(table, key);
    struct kvr_slot *home = segment->slots + kvr_segment_home(segment, key);
    KVR_PREFETCH(home);
    KVR_PREFETCH((const char *)segment->slots - 1);
    return home;
}

/* How many of the four slots of a line have smaller keys; they come first. */
KVR_INLINE uint32_t kvr_line_count_below(const struct kvr_slot *line, uint64_t key)
{
    return (uint32_t)(line[0].key < key) + (line[1].key < key) + (line[2].key < key) + (line[3].key < key);
}

/* The slot where the search for a key ends that begins at its home. */
KVR_INLINE struct kvr_slot *kvr_slot_seek(struct kvr_slot *slot, uint64_t key)
{
    /* Nearly always in this line or the next one; which of them, and where, takes no guess that may be wrong. */
    slot += (slot[KVR_HOME_SLOTS - 1].key < key) * KVR_HOME_SLOTS;
    slot += kvr_line_count_below(slot, key);
    while (slot->key < key)
        slot++;
    return slot;
}

/* The same in the table: the key's own slot, or the one where it would be put. */
KVR_INLINE struct kvr_slot *kvr_table_seek(const struct kvr_table *table, uint64_t key)
{
    return kvr_slot_seek(kvr_table_home(table, key), key);
}

KVR_INLINE int kvr_slot_has(const struct kvr_slot *slot, uint64_t key)
{
    return slot->key == key && slot->value != 0;
}

/* The slot of a key, or NULL. */
KVR_INLINE struct kvr_slot *kvr_table_find(const struct kvr_table *table, uint64_t key)
{
    struct kvr_slot *slot = kvr_table_seek(table, key);
    return kvr_slot_has(slot, key) ? slot : NULL;
}

KVR_INLINE int kvr_table_add(struct kvr_table *table, uint64_t key, uint32_t value)
{
    return kvr_table_add_at(table, kvr_table_seek(table, key), key, value, 0);
}

#endif
