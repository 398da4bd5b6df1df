/* Writing a snapshot: tier by tier its sets as bit masks, its hashes, and for each the number of its set. */
#include "index_memory.h"
#include "index_snapshot.h"

#define TIER_HEAD_BYTES 18

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
    return TIER_HEAD_BYTES + index->tiers[tier].length + (size_t)size.sets * size.width + 12 * (size_t)size.blocks;
}

static uint8_t *write_head(const struct kvr_tier *tier, struct tier_size size, uint8_t *out)
{
    out[0] = (uint8_t)tier->length;
    out[1] = (uint8_t)(tier->length >> 8);
    kvr_store32(out + 2, size.sets);
    kvr_store32(out + 6, size.width);
    kvr_store64(out + 10, size.blocks);
    memcpy(out + TIER_HEAD_BYTES, tier->name, tier->length);
    return out + TIER_HEAD_BYTES + tier->length;
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

static void write_blocks(const struct kvr_index *index, const uint32_t *numbers, uint8_t *hashes, uint8_t *ids)
{
    const struct kvr_table *table = &index->table;
    for (size_t place = 0; place < (size_t)1 << table->bits;) {
        const struct kvr_segment *segment = &table->directory[place];
        uint32_t extent = kvr_segment_extent(segment);
        for (uint32_t at = 0; at < extent; at++) {
            const struct kvr_slot *slot = &segment->slots[at];
            uint32_t number = numbers[kvr_sets_resolve(&index->sets, slot->value)];
            if (number != 0) {
                kvr_store64(hashes, kvr_unmix(slot->key, index->secret));
                kvr_store32(ids, number - 1);
                hashes += 8;
                ids += 4;
            }
        }
        place += (size_t)1 << (table->bits - segment->depth);
    }
}

static uint8_t *write_tier(const struct kvr_index *index, uint32_t tier, uint32_t *numbers, uint8_t *out)
{
    struct tier_size size = measure(index, tier, numbers);
    out = write_head(&index->tiers[tier], size, out);
    write_masks(index, tier, numbers, size.width, out);
    out += (size_t)size.sets * size.width;
    write_blocks(index, numbers, out, out + 8 * size.blocks);
    return out + 12 * size.blocks;
}

PyObject *kvr_index_dump(const struct kvr_index *index)
{
    size_t length = 0;
    uint32_t *numbers = PyMem_Malloc(index->sets.count * sizeof *numbers);
    if (numbers == NULL)
        return PyErr_NoMemory();
    for (uint32_t tier = 0; tier < index->tier_count; tier++)
        length += bytes_of(index, tier, measure(index, tier, numbers));
    PyObject *dump = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length);
    if (dump != NULL) {
        uint8_t *out = (uint8_t *)PyBytes_AsString(dump);
        for (uint32_t tier = 0; tier < index->tier_count; tier++)
            out = write_tier(index, tier, numbers, out);
    }
    PyMem_Free(numbers);
    return dump;
}
