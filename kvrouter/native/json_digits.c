/* Numbers between commas, many at a time; `json_digits_loop.h` says how. Here is how characters are looked at where
 * nothing more is known of the processor than what the compiler was told.
 */
#include "json_digits.h"
#include "json_digits_masks.h"

#if defined(__SSE2__) && !defined(KVR_WITHOUT_SSE2)
#include <emmintrin.h>
#define KVR_SSE2 1
#endif

#define EACH(byte) (0x0101010101010101u * (byte))

#ifdef KVR_SSE2

KVR_INLINE struct masks look(const uint8_t *at)
{
    struct masks masks = {0, 0, 0};
    for (int part = 0; part < BLOCK; part += 16) {
        __m128i text = _mm_loadu_si128((const __m128i *)(const void *)(at + part));
        __m128i value = _mm_sub_epi8(text, _mm_set1_epi8('0'));
        __m128i others = _mm_cmpeq_epi8(_mm_max_epu8(value, _mm_set1_epi8(10)), value);
        __m128i commas = _mm_cmpeq_epi8(text, _mm_set1_epi8(','));
        __m128i zeros = _mm_cmpeq_epi8(text, _mm_set1_epi8('0'));
        masks.others |= (uint64_t)(uint32_t)_mm_movemask_epi8(others) << part;
        masks.commas |= (uint64_t)(uint32_t)_mm_movemask_epi8(commas) << part;
        masks.zeros |= (uint64_t)(uint32_t)_mm_movemask_epi8(zeros) << part;
    }
    return masks;
}

/* Characters that are white space. */
KVR_INLINE uint64_t look_for_space(const uint8_t *at)
{
    uint64_t space = 0;
    for (int part = 0; part < BLOCK; part += 16) {
        __m128i text = _mm_loadu_si128((const __m128i *)(const void *)(at + part));
        __m128i found = _mm_or_si128(_mm_or_si128(_mm_cmpeq_epi8(text, _mm_set1_epi8(' ')),
                                                  _mm_cmpeq_epi8(text, _mm_set1_epi8('\n'))),
                                     _mm_or_si128(_mm_cmpeq_epi8(text, _mm_set1_epi8('\t')),
                                                  _mm_cmpeq_epi8(text, _mm_set1_epi8('\r'))));
        space |= (uint64_t)(uint32_t)_mm_movemask_epi8(found) << part;
    }
    return space;
}

#else

/* The highest bits of eight bytes, as one byte. */
KVR_INLINE uint64_t gather(uint64_t highest)
{
    return (highest & EACH(0x80)) * 0x0002040810204081u >> 56;
}

/* The bytes that are zero, as one byte. */
KVR_INLINE uint64_t gather_zeros(uint64_t bytes)
{
    return gather(~(((bytes & EACH(0x7F)) + EACH(0x7F)) | bytes));
}

KVR_INLINE struct masks look(const uint8_t *at)
{
    struct masks masks = {0, 0, 0};
    for (int part = 0; part < BLOCK; part += 8) {
        /* Digits become 0..9, all else more; sums stay within their byte, since they are of seven bits each. */
        uint64_t text = kvr_load64(at + part) ^ EACH('0');
        masks.others |= gather(((text & EACH(0x7F)) + EACH(0x76)) | text) << part;
        masks.commas |= gather_zeros(text ^ EACH('0' ^ ',')) << part;
        masks.zeros |= gather_zeros(text) << part;
    }
    return masks;
}

static uint64_t look_for_space(const uint8_t *at)
{
    uint64_t space = 0;
    for (int part = 0; part < BLOCK; part += 8) {
        uint64_t text = kvr_load64(at + part);
        space |= (gather_zeros(text ^ EACH(' ')) | gather_zeros(text ^ EACH('\n')) |
                  gather_zeros(text ^ EACH('\t')) | gather_zeros(text ^ EACH('\r')))
                 << part;
    }
    return space;
}

#endif

/* Each bit becomes the parity of itself and all below. */
KVR_INLINE uint64_t add_up(uint64_t bits)
{
    bits ^= bits << 1;
    bits ^= bits << 2;
    bits ^= bits << 4;
    bits ^= bits << 8;
    bits ^= bits << 16;
    return bits ^ bits << 32;
}

KVR_INLINE uint32_t count_bits(uint64_t bits)
{
    bits -= bits >> 1 & EACH(0x55);
    bits = (bits & EACH(0x33)) + (bits >> 2 & EACH(0x33));
    return (uint32_t)(((bits + (bits >> 4)) & EACH(0x0F)) * EACH(1) >> 56);
}

#ifdef KVR_SSE2

#define TOGETHER 4

/* The digits right before two ends, each in the upper bytes of its half; 0 in the others. `*some` loses the lowest byte
 * of a half that is nothing but digits: there may be more before it. */
KVR_INLINE __m128i take_digits(const uint8_t *one, const uint8_t *other, __m128i *some)
{
    __m128i text = _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i *)(const void *)(one - 8)),
                                      _mm_loadl_epi64((const __m128i *)(const void *)(other - 8)));
    __m128i value = _mm_sub_epi8(text, _mm_set1_epi8('0'));
    __m128i others = _mm_cmpeq_epi8(_mm_max_epu8(value, _mm_set1_epi8(10)), value);
    others = _mm_or_si128(others, _mm_srli_epi64(others, 8));
    others = _mm_or_si128(others, _mm_srli_epi64(others, 16));
    others = _mm_or_si128(others, _mm_srli_epi64(others, 32));
    *some = _mm_and_si128(*some, others);
    return _mm_andnot_si128(others, value);
}

/* Digits to numbers of two digits, then of four. */
KVR_INLINE __m128i add_digits(__m128i digits)
{
    __m128i tens = _mm_mullo_epi16(_mm_and_si128(digits, _mm_set1_epi16(0xFF)), _mm_set1_epi16(10));
    return _mm_madd_epi16(_mm_add_epi16(tens, _mm_srli_epi16(digits, 8)), _mm_set1_epi32(1 << 16 | 100));
}

/* Read the numbers that have these ends, all with eight characters before them; -1 where one has more than seven. */
KVR_INLINE int read_together(const uint8_t *chunk, const uint32_t *ends, uint32_t count, uint8_t *words)
{
    __m128i some = _mm_set1_epi8(-1);
    for (uint32_t at = 0; at < count; at += TOGETHER) {
        __m128i first = add_digits(take_digits(chunk + ends[at], chunk + ends[at + 1], &some));
        __m128i second = add_digits(take_digits(chunk + ends[at + 2], chunk + ends[at + 3], &some));
        __m128i numbers = _mm_madd_epi16(_mm_packs_epi32(first, second), _mm_set1_epi32(1 << 16 | 10000));
        _mm_storeu_si128((__m128i *)(void *)(words + 4 * at), numbers);
    }
    return (_mm_movemask_epi8(some) & 0x0101) == 0x0101 ? 0 : -1;
}

#else

#define TOGETHER 1

/* As above. Digits are added up in pairs, then fours, then all (D. Lemire, "Quickly parsing eight digits"). */
KVR_INLINE int read_together(const uint8_t *chunk, const uint32_t *ends, uint32_t count, uint8_t *words)
{
    uint64_t some = EACH(0x80);
    for (uint32_t at = 0; at < count; at++) {
        uint64_t text = kvr_load64(chunk + ends[at] - 8) ^ EACH('0');
        uint64_t others = (((text & EACH(0x7F)) + EACH(0x76)) | text) & EACH(0x80);
        others |= others >> 8;
        others |= others >> 16;
        others |= others >> 32;
        some &= others;
        uint64_t kept = others ^ EACH(0x80), digits = text & (kept - (kept >> 7));
        digits = digits * (10 << 8 | 1) >> 8 & 0x00FF00FF00FF00FFu;
        digits = digits * (100 << 16 | 1) >> 16 & 0x0000FFFF0000FFFFu;
        kvr_store32(words + 4 * at, (uint32_t)(digits * ((uint64_t)10000 << 32 | 1) >> 32));
    }
    return some & 0x80 ? 0 : -1;
}

#endif

#include "json_digits_loop.h"

/* -- all of them -------------------------------------------------------------------------------------------------- */

static int read_usually(const struct kvr_digits *digits, size_t count, uint8_t *words)
{
    return read_digits(digits, count, words);
}

/* What is known of the processor once it was asked, which takes longer than to read a prompt: the same for every
 * interpreter of the process. */
static int (*reader)(const struct kvr_digits *, size_t, uint8_t *) = read_usually;

void kvr_digits_choose(void)
{
    if (kvr_digits_has_avx2())
        reader = kvr_digits_read_avx2;
}

int kvr_digits_read(const struct kvr_digits *digits, size_t count, uint8_t *words)
{
    return reader(digits, count, words);
}

size_t kvr_digits_count(const struct kvr_digits *digits)
{
    const uint8_t *at = digits->at;
    size_t count = 1;
    /* A byte holds the sum of so few that the compiler can add sixteen of them at a time. */
    for (; digits->close - at >= 128; at += 128) {
        uint8_t some = 0;
        for (int i = 0; i < 128; i++)
            some += at[i] == ',';
        count += some;
    }
    for (; at < digits->close; at++)
        count += *at == ',';
    return count;
}

int kvr_digits_none(const struct kvr_digits *digits)
{
    for (const uint8_t *at = digits->at; at < digits->close; at++)
        if (*at != ' ' && *at != '\n' && *at != '\t' && *at != '\r')
            return 0;
    return 1;
}
