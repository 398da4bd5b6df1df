/* From what a walk finds to what is known of each rank, and back; `index_reach.h` says what both are. */
#include "index_reach.h"

/* A word's first reach of so many ranks is written to all of its places; what else there is of it is written over. */
#define FILLED_LEAST 8

static int is_wide(uint64_t ranks)
{
    return kvr_count_bits((uint32_t)ranks) + kvr_count_bits((uint32_t)(ranks >> 32)) >= FILLED_LEAST;
}

void kvr_reaches_spread(const struct kvr_reach *reaches, uint32_t count, uint32_t words, struct kvr_overlap *overlap)
{
    overlap->words = words;
    memset(overlap->ranks, 0, words * sizeof *overlap->ranks);
    for (const struct kvr_reach *reach = reaches; reach < reaches + count; reach++) {
        uint32_t *depths = overlap->depths + reach->word * 64, depth = reach->depth;
        if (overlap->ranks[reach->word] == 0 && is_wide(reach->ranks))
            for (uint32_t rank = 0; rank < 64; rank++)
                depths[rank] = depth;
        else
            for (uint64_t bits = reach->ranks; bits; bits &= bits - 1)
                depths[kvr_lowest_bit(bits)] = depth;
        overlap->ranks[reach->word] |= reach->ranks;
    }
}

void kvr_reaches_gather(const struct kvr_overlap *overlap, struct kvr_reaches *reaches)
{
    reaches->words = overlap->words;
    reaches->count = 0;
    for (uint32_t word = 0; word < overlap->words; word++) {
        struct kvr_reach *last = NULL;
        for (uint64_t bits = overlap->ranks[word]; bits; bits &= bits - 1) {
            uint32_t depth = overlap->depths[word * 64 + (uint32_t)kvr_lowest_bit(bits)];
            if (last == NULL || last->depth != depth) {
                last = &reaches->all[reaches->count];
                kvr_reaches_note(reaches, word, 0, depth);
            }
            last->ranks |= bits & -bits;
        }
    }
}

uint32_t kvr_overlap_list(const struct kvr_overlap *overlap, uint32_t *ranks, uint32_t *depths)
{
    uint32_t count = 0;
    for (uint32_t word = 0; word < overlap->words; word++) {
        for (uint64_t bits = overlap->ranks[word]; bits; bits &= bits - 1) {
            ranks[count] = word * 64 + (uint32_t)kvr_lowest_bit(bits);
            depths[count] = overlap->depths[ranks[count]];
            count++;
        }
    }
    return count;
}
