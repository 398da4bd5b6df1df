/* As `json_digits.c`, for x86-64 processors with AVX2: thirty-two characters, and eight numbers, at a time.
 *
 * The core is built for any processor of its kind, so this is compiled for more than the rest of it, and called only
 * where the processor says that it can.
 */
#include "json_digits_masks.h"

/* GCC for Windows does not align the stack for registers of 32 bytes. */
#if defined(__x86_64__) && (defined(__clang__) || (defined(__GNUC__) && !defined(_WIN32))) && \
    !defined(KVR_WITHOUT_SSE2) && !defined(KVR_WITHOUT_AVX2)

#include <cpuid.h>
#include <immintrin.h>

/* -- whether the processor can --------------------------------------------------------------------------------------- */

/* Of the registers that the system keeps for each thread, those of 16 and of 32 bytes. */
#define KEPT 6u

int kvr_digits_has_avx2(void)
{
    unsigned int a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) || !(c & bit_POPCNT) || !(c & bit_PCLMUL))
        return 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & KEPT) != KEPT || !__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return 0;
    return (b & bit_AVX2) && (b & bit_BMI);
}

/* -- what it does ---------------------------------------------------------------------------------------------------- */

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,bmi,popcnt,pclmul"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,bmi,popcnt,pclmul")
#endif

KVR_INLINE uint64_t mask_of(__m256i low, __m256i high)
{
    return (uint64_t)(uint32_t)_mm256_movemask_epi8(low) | (uint64_t)(uint32_t)_mm256_movemask_epi8(high) << 32;
}

KVR_INLINE __m256i load(const uint8_t *at)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)at);
}

KVR_INLINE __m256i find_others(__m256i text)
{
    __m256i value = _mm256_sub_epi8(text, _mm256_set1_epi8('0'));
    return _mm256_cmpeq_epi8(_mm256_max_epu8(value, _mm256_set1_epi8(10)), value);
}

KVR_INLINE uint64_t find(__m256i low, __m256i high, char character)
{
    __m256i wanted = _mm256_set1_epi8(character);
    return mask_of(_mm256_cmpeq_epi8(low, wanted), _mm256_cmpeq_epi8(high, wanted));
}

KVR_INLINE struct masks look(const uint8_t *at)
{
    __m256i low = load(at), high = load(at + 32);
    return (struct masks){.others = mask_of(find_others(low), find_others(high)),
                          .commas = find(low, high, ','),
                          .zeros = find(low, high, '0')};
}

KVR_INLINE uint64_t look_for_space(const uint8_t *at)
{
    __m256i low = load(at), high = load(at + 32);
    return find(low, high, ' ') | find(low, high, '\n') | find(low, high, '\t') | find(low, high, '\r');
}

/* Each bit becomes the parity of itself and all below: what a product without carries with all ones is. */
KVR_INLINE uint64_t add_up(uint64_t bits)
{
    __m128i product = _mm_clmulepi64_si128(_mm_cvtsi64_si128((long long)bits), _mm_set1_epi8(-1), 0);
    return (uint64_t)_mm_cvtsi128_si64(product);
}

KVR_INLINE uint32_t count_bits(uint64_t bits)
{
    return (uint32_t)_mm_popcnt_u64(bits);
}

#define TOGETHER 8

KVR_INLINE __m128i load_two(const uint8_t *chunk, const uint32_t *ends)
{
    __m128i one = _mm_loadl_epi64((const __m128i *)(const void *)(chunk + ends[0] - 8));
    return _mm_castps_si128(_mm_loadh_pi(_mm_castsi128_ps(one), (const __m64 *)(const void *)(chunk + ends[1] - 8)));
}

/* The numbers right before four ends, each as two of four digits. `*some` loses the lowest byte of eight that are
 * nothing but digits: there may be more before them. */
KVR_INLINE __m256i read_four(const uint8_t *chunk, const uint32_t *ends, __m256i *some)
{
    __m256i text = _mm256_inserti128_si256(_mm256_castsi128_si256(load_two(chunk, ends)), load_two(chunk, ends + 2), 1);
    __m256i value = _mm256_sub_epi8(text, _mm256_set1_epi8('0'));
    __m256i others = _mm256_cmpeq_epi8(_mm256_max_epu8(value, _mm256_set1_epi8(10)), value);
    others = _mm256_or_si256(others, _mm256_srli_epi64(others, 8));
    others = _mm256_or_si256(others, _mm256_srli_epi64(others, 16));
    others = _mm256_or_si256(others, _mm256_srli_epi64(others, 32));
    *some = _mm256_and_si256(*some, others);
    __m256i tens = _mm256_maddubs_epi16(_mm256_andnot_si256(others, value), _mm256_set1_epi16(1 << 8 | 10));
    return _mm256_madd_epi16(tens, _mm256_set1_epi32(1 << 16 | 100));
}

/* Read the numbers that have these ends, all with eight characters before them; -1 where one has more than seven. */
KVR_INLINE int read_together(const uint8_t *chunk, const uint32_t *ends, uint32_t count, uint8_t *words)
{
    __m256i some = _mm256_set1_epi8(-1);
    for (uint32_t at = 0; at < count; at += TOGETHER) {
        __m256i first = read_four(chunk, ends + at, &some), second = read_four(chunk, ends + at + 4, &some);
        __m256i numbers = _mm256_madd_epi16(_mm256_packus_epi32(first, second), _mm256_set1_epi32(1 << 16 | 10000));
        /* Each half has two of the first and two of the second. */
        numbers = _mm256_permute4x64_epi64(numbers, 0xD8);
        _mm256_storeu_si256((__m256i *)(void *)(words + 4 * at), numbers);
    }
    return ((uint32_t)_mm256_movemask_epi8(some) & 0x01010101u) == 0x01010101u ? 0 : -1;
}

#include "json_digits_loop.h"

int kvr_digits_read_avx2(const struct kvr_digits *digits, size_t count, uint8_t *words)
{
    return read_digits(digits, count, words);
}

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else

int kvr_digits_has_avx2(void)
{
    return 0;
}

int kvr_digits_read_avx2(const struct kvr_digits *digits, size_t count, uint8_t *words)
{
    (void)digits;
    (void)count;
    (void)words;
    return -1;
}

#endif
