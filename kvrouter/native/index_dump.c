/* Writing a snapshot: tier by tier its sets as bit masks, its hashes, and for each the number of its set and its
 * place in a chain. */
#include "index_memory.h"
#include "index_snapshot.h"

struct tier_size {
    uint32_t sets;
    uint32_t width; /* bytes of a mask */
    uint64_t blocks;
};

/* The words of a live set that are of one tier. */
static uint32_t words_of(const struct kvr_set *set, uint32_t tier, const struct kvr_word **words)
{
    const struct kvr_word *row = kvr_set_words(set);
    uint32_t from = 0;
    while (from < set->words && row[from].tier < tier)
        from++;
    uint32_t stop = from;
    while (stop < set->words && row[stop].tier == tier)
        stop++;
    *words = row + from;
    return stop - from;
}

/* Number the sets of a tier, from 1; 0 is for the others. */
static struct tier_size measure(const struct kvr_index *index, uint32_t tier, uint32_t *numbers)
{
    struct tier_size size = {0, 0, 0};
    numbers[0] = 0;
    for (uint32_t number = 1; number < index->sets.count; number++) {
        const struct kvr_set *set = kvr_sets_at(&index->sets, number);
        const struct kvr_word *words;
        uint32_t count = words_of(set, tier, &words);
        numbers[number] = 0;
        if (count == 0)
            continue;
        numbers[number] = ++size.sets;
        size.blocks += set->blocks;
        uint32_t width = words[count - 1].word * 8;
        for (uint64_t bits = words[count - 1].bits; bits; bits >>= 8)
            width++;
        size.width = width > size.width ? width : size.width;
    }
    return size;
}

static size_t bytes_of(const struct kvr_index *index, uint32_t tier, struct tier_size size)
{
    return KVR_TIER_HEAD_BYTES + index->tiers[tier].length + (size_t)size.sets * size.width + KVR_BYTES_PER_BLOCK * (size_t)size.blocks;
}

static uint8_t *write_head(const struct kvr_tier *tier, struct tier_size size, uint8_t *out)
{
    out[0] = (uint8_t)tier->length;
    out[1] = (uint8_t)(tier->length >> 8);
    kvr_store32(out + 2, size.sets);
    kvr_store32(out + 6, size.width);
    kvr_store64(out + 10, size.blocks);
    memcpy(out + KVR_TIER_HEAD_BYTES, tier->name, tier->length);
    return out + KVR_TIER_HEAD_BYTES + tier->length;
}

static void write_masks(const struct kvr_index *index, uint32_t tier, const uint32_t *numbers, uint32_t width,
                        uint8_t *out)
{
    for (uint32_t number = 1; number < index->sets.count; number++) {
        if (numbers[number] == 0)
            continue;
        const struct kvr_word *words;
        uint32_t count = words_of(kvr_sets_at(&index->sets, number), tier, &words);
        memset(out, 0, width);
        for (uint32_t at = 0; at < count; at++) {
            uint32_t byte = words[at].word * 8;
            for (uint64_t bits = words[at].bits; bits; bits >>= 8)
                out[byte++] = (uint8_t)bits;
        }
        out += width;
    }
}

/* Where the blocks of a tier go: stretch by stretch, the loose ones last. */
struct order {
    uint32_t *present; /* per stretch, which of its blocks are in the tier */
    uint32_t *start;   /* per stretch, how many blocks are before it */
    uint32_t loose;
};

static size_t stretches_in(const struct kvr_index *index)
{
    return (size_t)index->stretches.pages_used << KVR_STRETCHES_PER_PAGE_BITS;
}

static size_t place_of(const struct order *order, kvr_link link)
{
    uint32_t number = (link >> KVR_STRETCH_BITS) - 1, position = link & (KVR_STRETCH_BLOCKS - 1);
    uint32_t before = order->present[number] & ((UINT32_C(1) << position) - 1);
    return order->start[number] + (size_t)kvr_count_bits(before);
}

static uint8_t mark_of(const struct order *order, kvr_link link)
{
    uint32_t number = (link >> KVR_STRETCH_BITS) - 1, position = link & (KVR_STRETCH_BLOCKS - 1);
    int follows = position > 0 && (order->present[number] >> (position - 1) & 1);
    return (uint8_t)(KVR_MARK_PLACED | (follows ? KVR_MARK_FOLLOWS : 0) | position);
}

/* The slots of a tier, one after the other; NULL behind the last. */
struct cursor {
    const struct kvr_index *index;
    const uint32_t *numbers;
    size_t place;
    uint32_t at;
};

static const struct kvr_slot *next_slot(struct cursor *cursor, uint32_t *number)
{
    const struct kvr_table *table = &cursor->index->table;
    while (cursor->place < (size_t)1 << table->bits) {
        const struct kvr_segment *segment = &table->directory[cursor->place];
        uint32_t extent = kvr_segment_extent(segment);
        while (cursor->at < extent) {
            const struct kvr_slot *slot = &segment->slots[cursor->at++];
            *number = cursor->numbers[kvr_sets_resolve(&cursor->index->sets, slot->value)];
            if (*number != 0)
                return slot;
        }
        cursor->at = 0;
        cursor->place += (size_t)1 << (table->bits - segment->depth);
    }
    return NULL;
}

static void find_order(const struct kvr_index *index, const uint32_t *numbers, struct order *order)
{
    struct cursor cursor = {index, numbers, 0, 0};
    const struct kvr_slot *slot;
    uint32_t number;
    size_t stretches = stretches_in(index);
    memset(order->present, 0, stretches * sizeof *order->present);
    while ((slot = next_slot(&cursor, &number)) != NULL)
        if (slot->link != KVR_LOOSE_BLOCK)
            order->present[(slot->link >> KVR_STRETCH_BITS) - 1] |= UINT32_C(1)
                                                                    << (slot->link & (KVR_STRETCH_BLOCKS - 1));
    order->loose = 0;
    for (size_t at = 0; at < stretches; at++) {
        order->start[at] = order->loose;
        order->loose += (uint32_t)kvr_count_bits(order->present[at]);
    }
}

static void write_blocks(const struct kvr_index *index, const uint32_t *numbers, struct order *order, uint64_t blocks,
                         uint8_t *out)
{
    uint8_t *ids = out + 8 * blocks, *marks = ids + 4 * blocks;
    struct cursor cursor = {index, numbers, 0, 0};
    const struct kvr_slot *slot;
    uint32_t number;
    while ((slot = next_slot(&cursor, &number)) != NULL) {
        int is_loose = slot->link == KVR_LOOSE_BLOCK;
        size_t at = is_loose ? order->loose++ : place_of(order, slot->link);
        kvr_store64(out + 8 * at, kvr_unmix(slot->key, index->secret));
        kvr_store32(ids + 4 * at, number - 1);
        marks[at] = is_loose ? 0 : mark_of(order, slot->link);
    }
}

static uint8_t *write_tier(const struct kvr_index *index, uint32_t tier, uint32_t *numbers, struct order *order,
                           uint8_t *out)
{
    struct tier_size size = measure(index, tier, numbers);
    out = write_head(&index->tiers[tier], size, out);
    write_masks(index, tier, numbers, size.width, out);
    out += (size_t)size.sets * size.width;
    find_order(index, numbers, order);
    write_blocks(index, numbers, order, size.blocks, out);
    return out + KVR_BYTES_PER_BLOCK * size.blocks;
}

PyObject *kvr_index_dump(const struct kvr_index *index)
{
    size_t length = 0;
    struct order order;
    uint32_t *numbers = PyMem_Malloc((index->sets.count + 2 * stretches_in(index)) * sizeof *numbers);
    if (numbers == NULL)
        return PyErr_NoMemory();
    order.present = numbers + index->sets.count;
    order.start = order.present + stretches_in(index);
    for (uint32_t tier = 0; tier < index->tier_count; tier++)
        length += bytes_of(index, tier, measure(index, tier, numbers));
    PyObject *dump = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length);
    if (dump != NULL) {
        uint8_t *out = (uint8_t *)PyBytes_AsString(dump);
        for (uint32_t tier = 0; tier < index->tier_count; tier++)
            out = write_tier(index, tier, numbers, &order, out);
    }
    PyMem_Free(numbers);
    return dump;
}
