/* Reading a snapshot. Nothing in the bytes is believed before it is checked. */
#include "index_memory.h"
#include "index_snapshot.h"

/* One tier's table as it lies in the bytes. */
struct table {
    uint32_t tier;
    uint32_t sets, width;
    uint64_t blocks;
    const uint8_t *masks, *hashes, *ids, *marks;
    uint32_t *alone; /* per mask, the set of nothing else; 0 until it is used */
};

static int damaged(const char *words)
{
    PyErr_SetString(PyExc_ValueError, words);
    return -1;
}

static int no_memory(void)
{
    (void)PyErr_NoMemory();
    return -1;
}

/* -- layout ------------------------------------------------------------------------------------------------------- */

static int add_tier(struct kvr_index *index, const char *name, size_t length, uint32_t *tier)
{
    PyObject *text = PyUnicode_FromStringAndSize(name, (Py_ssize_t)length); /* Is it a name at all? */
    if (text == NULL)
        return -1;
    Py_DECREF(text);
    if (kvr_index_find_tier(index, name, length) >= 0)
        return damaged("a tier appears twice");
    int number = kvr_index_add_tier(index, name, length);
    if (number < 0)
        return no_memory();
    *tier = (uint32_t)number;
    return 0;
}

static int are_masks_set(const struct table *table)
{
    for (uint32_t number = 0; number < table->sets && table->width > 0; number++) {
        const uint8_t *mask = table->masks + (size_t)number * table->width;
        uint32_t at = 0;
        while (at < table->width && mask[at] == 0)
            at++;
        if (at == table->width)
            return 0;
    }
    return table->width > 0 || table->blocks == 0;
}

/* Find the parts of the next tier's table and step behind it. */
static int lay_out(struct kvr_index *index, struct table *table, const uint8_t **data, size_t *length)
{
    const uint8_t *at = *data;
    size_t left = *length;
    if (left < KVR_TIER_HEAD_BYTES)
        return damaged("a table has no head");
    size_t name_length = (size_t)at[0] | (size_t)at[1] << 8;
    table->sets = kvr_load32(at + 2);
    table->width = kvr_load32(at + 6);
    table->blocks = kvr_load64(at + 10);
    at += KVR_TIER_HEAD_BYTES;
    left -= KVR_TIER_HEAD_BYTES;
    uint64_t masks = (uint64_t)table->sets * table->width;
    if (table->width > KVR_RANKS_MAX / 8 || name_length > left || masks > left - name_length ||
        table->blocks > (left - name_length - masks) / KVR_BYTES_PER_BLOCK)
        return damaged("a table is longer than the snapshot");
    if (add_tier(index, (const char *)at, name_length, &table->tier))
        return -1;
    table->masks = at + name_length;
    table->hashes = table->masks + masks;
    table->ids = table->hashes + 8 * table->blocks;
    table->marks = table->ids + 4 * table->blocks;
    size_t whole = name_length + (size_t)masks + KVR_BYTES_PER_BLOCK * (size_t)table->blocks;
    *data = at + whole;
    *length = left - whole;
    return are_masks_set(table) ? 0 : damaged("a block has no rank set");
}

/* -- blocks ------------------------------------------------------------------------------------------------------- */

static uint64_t read_word(const struct table *table, uint32_t mask, uint32_t word)
{
    uint64_t bits = 0;
    const uint8_t *bytes = table->masks + (size_t)mask * table->width;
    for (uint32_t byte = 0; byte < 8 && word * 8 + byte < table->width; byte++)
        bits |= (uint64_t)bytes[word * 8 + byte] << 8 * byte;
    return bits;
}

/* The set of those who hold a block in the tiers before, a live set or 0, and those of a mask. 0 without memory. */
static uint32_t unite(struct kvr_index *index, const struct table *table, uint32_t before, uint32_t mask)
{
    if (before == 0 && table->alone[mask] != 0)
        return table->alone[mask];
    const struct kvr_set *set = before ? kvr_sets_at(&index->sets, before) : NULL;
    uint32_t count = set ? set->words : 0;
    size_t size = (count + KVR_RANK_WORDS_MAX) * sizeof(struct kvr_word);
    struct kvr_word *row = PyMem_Malloc(size);
    if (row == NULL)
        return 0;
    if (set != NULL)
        memcpy(row, kvr_set_words(set), count * sizeof *row);
    for (uint32_t word = 0; word < (table->width + 7) / 8; word++) {
        struct kvr_word next = {read_word(table, mask, word), word, table->tier};
        if (next.bits)
            row[count++] = next;
    }
    uint32_t united = kvr_sets_intern(&index->sets, row, count);
    PyMem_Free(row);
    if (before == 0)
        table->alone[mask] = united;
    return united;
}

static int has_tier(const struct kvr_index *index, uint32_t number, uint32_t tier)
{
    const struct kvr_set *set = kvr_sets_at(&index->sets, number);
    return set->words > 0 && kvr_set_words(set)[set->words - 1].tier == tier;
}

/* The memory of one step to the next: neighbours often have one set. */
struct last {
    uint32_t before, mask, united;
};

static int load_block(struct kvr_index *index, const struct table *table, uint64_t at, struct last *last)
{
    uint64_t key = kvr_index_key(index, kvr_load64(table->hashes + 8 * at));
    uint32_t mask = kvr_load32(table->ids + 4 * at);
    struct kvr_slot *slot = kvr_table_find(&index->table, key);
    uint32_t before = slot ? slot->value : 0;
    if (mask >= table->sets)
        return damaged("a block has no rank set");
    if (before != 0 && has_tier(index, before, table->tier))
        return damaged("a block appears twice");
    if (before != last->before || mask != last->mask) {
        last->before = before;
        last->mask = mask;
        last->united = unite(index, table, before, mask);
        if (last->united == 0)
            return no_memory();
    }
    if (slot == NULL) {
        if (kvr_table_add(&index->table, key, last->united))
            return no_memory();
        kvr_sets_enter(&index->sets, last->united, 1);
    } else {
        uint64_t mark = kvr_stretches_mark(&index->stretches, before);
        kvr_stretches_change(&index->stretches, slot->link,
                             kvr_stretches_mark(&index->stretches, last->united) - mark);
        slot->value = last->united;
        kvr_sets_enter(&index->sets, last->united, 1);
        kvr_sets_leave(&index->sets, before, 1);
    }
    return 0;
}

/* A step that visits every one of `count` places, neighbours far apart: about the golden section of it. */
static uint64_t find_stride(uint64_t count)
{
    uint64_t stride = count / 1000 * 618 + 1;
    for (;; stride++) {
        uint64_t a = count, b = stride;
        while (b != 0) {
            uint64_t rest = a % b;
            a = b;
            b = rest;
        }
        if (a == 1)
            return stride;
    }
}

/* Snapshots are written in the order of a table; blocks added in that order would crowd one end of every segment. */
static int load_blocks(struct kvr_index *index, const struct table *table)
{
    struct last last = {UINT32_MAX, 0, 0};
    uint64_t count = table->blocks, stride = find_stride(count), at = 0;
    uint64_t ahead = count ? KVR_PREFETCH_BLOCKS * stride % count : 0;
    uint64_t far_ahead = count ? 2 * KVR_PREFETCH_BLOCKS * stride % count : 0;
    for (uint64_t done = 0; done < count; done++) {
        KVR_PREFETCH(table->hashes + 8 * far_ahead);
        KVR_PREFETCH(table->ids + 4 * ahead);
        kvr_index_prefetch(index, kvr_load64(table->hashes + 8 * ahead));
        if (load_block(index, table, at, &last))
            return -1;
        at = (at + stride) % count;
        ahead = (ahead + stride) % count;
        far_ahead = (far_ahead + stride) % count;
    }
    return 0;
}

/* Whether a mark is one that is written, behind the mark of the block before. */
static int is_mark(uint8_t mark, uint8_t before)
{
    if (mark == 0)
        return 1;
    uint32_t position = mark & (KVR_STRETCH_BLOCKS - 1);
    if ((mark | KVR_MARK_FOLLOWS) != (KVR_MARK_PLACED | KVR_MARK_FOLLOWS | position))
        return 0;
    return !(mark & KVR_MARK_FOLLOWS) || (position > 0 && (before & ~KVR_MARK_FOLLOWS) == (KVR_MARK_PLACED | (position - 1)));
}

/* Give the blocks of a table, which are all stored, their places. */
static int place_blocks(struct kvr_index *index, const struct table *table)
{
    kvr_link previous = KVR_LOOSE_BLOCK;
    for (uint64_t at = 0; at < table->blocks; at++) {
        uint8_t mark = table->marks[at];
        if (!is_mark(mark, at ? table->marks[at - 1] : 0))
            return damaged("a block has no sensible place");
        if (mark == 0)
            continue;
        if (at + KVR_PREFETCH_BLOCKS < table->blocks)
            kvr_index_prefetch(index, kvr_load64(table->hashes + 8 * (at + KVR_PREFETCH_BLOCKS)));
        struct kvr_slot *slot =
            kvr_table_find(&index->table, kvr_index_key(index, kvr_load64(table->hashes + 8 * at)));
        if (mark & KVR_MARK_FOLLOWS)
            kvr_index_place(index, slot, previous);
        else
            kvr_index_place_at(index, slot, mark & (KVR_STRETCH_BLOCKS - 1));
        previous = slot->link;
    }
    return 0;
}

/* Sets know how many blocks they stand for: from that, what each rank holds. */
static int count_blocks(struct kvr_index *index)
{
    for (uint32_t number = 1; number < index->sets.count; number++) {
        const struct kvr_set *set = kvr_sets_at(&index->sets, number);
        const struct kvr_word *row = kvr_set_words(set);
        for (uint32_t at = 0; at < set->words; at++)
            for (uint64_t bits = row[at].bits; bits; bits &= bits - 1)
                if (kvr_index_count(index, row[at].word * 64 + (uint32_t)kvr_lowest_bit(bits), row[at].tier,
                                    set->blocks))
                    return no_memory();
    }
    return 0;
}

int kvr_index_load(struct kvr_index *index, const uint8_t *data, size_t length, uint32_t tiers)
{
    for (uint32_t number = 0; number < tiers; number++) {
        struct table table;
        if (lay_out(index, &table, &data, &length))
            return -1;
        size_t size = table.sets * sizeof *table.alone;
        if (table.width == 0)
            size = 0; /* Then no number of a set is right, however many there are said to be. */
        table.alone = size ? PyMem_Calloc(1, size) : NULL;
        if (size && table.alone == NULL)
            return no_memory();
        if (index->share != NULL)
            kvr_share_layout(index->share);
        int failed = load_blocks(index, &table) || place_blocks(index, &table);
        if (index->share != NULL)
            kvr_share_close(index->share);
        PyMem_Free(table.alone);
        if (failed)
            return -1;
    }
    int failed = length ? damaged("its length does not fit its contents") : count_blocks(index);
    if (index->share != NULL)
        kvr_share_close(index->share);
    return failed;
}
