/* Reading numbers between commas, once for each kind of processor: `json_digits.c` and `json_digits_avx2.c` bring what
 * looks at many characters at a time, and take the rest from here.
 *
 * First each character of a chunk becomes one bit in masks: digits, commas, zeros. Where numbers begin and end follows
 * by shifting, and that numbers and commas take turns by a sum of bits. Then the numbers are read from where they end,
 * so that none of them has to wait for another, several in one go where the processor can (the idea is simdjson's: G.
 * Langdale and D. Lemire, "Parsing gigabytes of JSON per second").
 *
 * Needed: `look` and `look_for_space` at 64 characters, `add_up`, `count_bits`, and `read_together`, which reads
 * `TOGETHER` numbers at a time.
 */
#ifndef KVR_JSON_DIGITS_LOOP_H
#define KVR_JSON_DIGITS_LOOP_H

/* -- where numbers end -------------------------------------------------------------------------------------------- */

struct reading {
    const struct kvr_digits *digits;
    uint8_t *words;
    uint64_t before; /* 1: the last character was no digit */
    uint64_t zero;   /* 1: it was a zero, and the first digit of its number */
    uint64_t parity; /* all bits: a number began and no comma came since */
    uint32_t count;
    uint32_t ends[CHUNK / 2 + AT_ONCE]; /* of the numbers of a chunk, from its first character */
};

KVR_INLINE void note_ends(struct reading *reading, uint64_t ends, uint32_t first)
{
    uint32_t *out = reading->ends + reading->count, all = count_bits(ends);
    reading->count += all;
    for (uint32_t at = 0; at < AT_ONCE; at++, ends &= ends - 1)
        out[at] = first + (uint32_t)kvr_lowest_bit(ends | UINT64_C(1) << 63);
    for (uint32_t at = AT_ONCE; at < all; at++, ends &= ends - 1)
        out[at] = first + (uint32_t)kvr_lowest_bit(ends);
}

/* Note where numbers end among 64 characters, of which the first has the number `first` in its chunk. 0, or -1 where
 * these are not numbers and commas in turns. */
KVR_INLINE int note_block(struct reading *reading, const uint8_t *text, uint32_t first)
{
    struct masks masks = look(text);
    uint64_t others = masks.others, changes = others ^ (others << 1 | reading->before);
    uint64_t begins = changes & ~others, zeros = begins & masks.zeros;
    uint64_t turns = add_up(begins | masks.commas) ^ reading->parity;
    uint64_t odd = others ^ masks.commas;
    if (odd != 0)
        odd &= ~look_for_space(text);
    odd |= (begins & ~turns) | (masks.commas & turns) | (~others & (zeros << 1 | reading->zero));
    reading->before = others >> 63;
    reading->zero = zeros >> 63;
    reading->parity = 0 - (turns >> 63);
    note_ends(reading, changes & others, first);
    return odd != 0 ? -1 : 0;
}

/* -- numbers ------------------------------------------------------------------------------------------------------ */

/* The number that ends at `end`; -1 where it is too large. */
static int read_slowly(const struct kvr_digits *digits, const uint8_t *end, uint8_t *word)
{
    uint64_t value = 0, unit = 1;
    for (int length = 0; end > digits->at && end[-1] >= '0' && end[-1] <= '9'; length++, unit *= 10) {
        if (length == 10)
            return -1;
        value += unit * (uint64_t)(*--end - '0');
    }
    kvr_store32(word, (uint32_t)value);
    return value > UINT32_MAX ? -1 : 0;
}

/* Read the numbers whose ends were noted in a chunk. */
static int read_chunk(struct reading *reading, const uint8_t *chunk)
{
    const struct kvr_digits *digits = reading->digits;
    uint32_t at = 0, count = reading->count, whole;
    uint8_t *words = reading->words;
    reading->count = 0;
    reading->words += 4 * (size_t)count;
    for (; at < count && chunk + reading->ends[at] - digits->begin < 8; at++)
        if (read_slowly(digits, chunk + reading->ends[at], words + 4 * at))
            return -1;
    whole = (count - at) / TOGETHER * TOGETHER;
    if (read_together(chunk, reading->ends + at, whole, words + 4 * at))
        whole = 0; /* Long ones among them: each by itself. */
    for (at += whole; at < count; at++)
        if (read_slowly(digits, chunk + reading->ends[at], words + 4 * at))
            return -1;
    return 0;
}

/* -- all of them -------------------------------------------------------------------------------------------------- */

KVR_INLINE int read_digits(const struct kvr_digits *digits, size_t count, uint8_t *words)
{
    struct reading reading;
    reading.digits = digits;
    reading.words = words;
    reading.before = 1;
    reading.zero = reading.parity = reading.count = 0;
    const uint8_t *chunk = digits->at;
    for (; digits->close - chunk >= CHUNK; chunk += CHUNK) {
        for (uint32_t first = 0; first < CHUNK; first += BLOCK)
            if (note_block(&reading, chunk + first, first))
                return -1;
        if (read_chunk(&reading, chunk))
            return -1;
    }
    uint32_t first = 0;
    for (; digits->close - chunk >= first + BLOCK; first += BLOCK)
        if (note_block(&reading, chunk + first, first))
            return -1;
    /* The rest, and white space that ends the last number. */
    uint8_t rest[BLOCK];
    memset(rest, ' ', sizeof rest);
    memcpy(rest, chunk + first, (size_t)(digits->close - chunk) - first);
    if (note_block(&reading, rest, first) || read_chunk(&reading, chunk))
        return -1;
    return reading.words == words + 4 * count ? 0 : -1;
}

#endif
