/* Where a hash lies in a table: a reversible scattering of 64-bit numbers under a secret of the process.
 *
 * Sequence hashes come from outside and other users of an index may store any numbers; scattered, they fill a table
 * evenly, and nobody who does not know the secret can choose numbers that crowd one place. The table keeps scattered
 * keys; only a snapshot needs the way back.
 */
#ifndef KVR_INDEX_MIX_H
#define KVR_INDEX_MIX_H

#include "memory.h"

#if defined(_MSC_VER) && !defined(__clang__)
#include <mmintrin.h>
#define KVR_PREFETCH(address) _mm_prefetch((const char *)(address), 1)
#else
#define KVR_PREFETCH(address) __builtin_prefetch(address)
#endif

/* An odd multiplier without visible pattern, and its inverse modulo 2^64. */
#define KVR_MIX_FACTOR 0xD6E8FEB86659FD93u
#define KVR_MIX_INVERSE 0xCFEE444D8B59A89Bu

KVR_INLINE uint64_t kvr_mix(uint64_t value, uint64_t secret)
{
    value ^= secret;
    value = (value ^ value >> 32) * KVR_MIX_FACTOR;
    value = (value ^ value >> 32) * KVR_MIX_FACTOR;
    return value ^ value >> 32;
}

KVR_INLINE uint64_t kvr_unmix(uint64_t value, uint64_t secret)
{
    value = (value ^ value >> 32) * KVR_MIX_INVERSE;
    value = (value ^ value >> 32) * KVR_MIX_INVERSE;
    return (value ^ value >> 32) ^ secret;
}

#endif
