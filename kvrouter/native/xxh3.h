/* XXH3-64 with a seed, written from the public specification (https://github.com/Cyan4973/xxHash, doc/xxhash_spec.md).
 *
 * Bit-identical to XXH3_64bits_withSeed for every length. It is fast and spreads well; it does not resist an adversary.
 */
#ifndef KVR_XXH3_H
#define KVR_XXH3_H

#include "memory.h"
#include <stddef.h>

#define KVR_HASH_SEED 1337

uint64_t kvr_xxh3_64(const void *data, size_t length, uint64_t seed);

/* -- the parts that other files need inline ----------------------------------------------------------------------- */

extern const uint8_t kvr_xxh3_secret[192];

KVR_INLINE uint64_t kvr_multiply_fold(uint64_t a, uint64_t b)
{
#if defined(__SIZEOF_INT128__)
    __uint128_t product = (__uint128_t)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
#elif defined(_MSC_VER) && defined(_M_X64)
    uint64_t high, low = _umul128(a, b, &high);
    return low ^ high;
#else
    uint64_t a_low = (uint32_t)a, a_high = a >> 32, b_low = (uint32_t)b, b_high = b >> 32;
    uint64_t low = a_low * b_low, middle = a_high * b_low + (low >> 32);
    uint64_t cross = a_low * b_high + (uint32_t)middle;
    uint64_t high = a_high * b_high + (middle >> 32) + (cross >> 32);
    return (cross << 32 | (uint32_t)low) ^ high;
#endif
}

KVR_INLINE uint64_t kvr_mix_16(const uint8_t *data, size_t at, uint64_t seed)
{
    return kvr_multiply_fold(kvr_load64(data) ^ (kvr_load64(kvr_xxh3_secret + at) + seed),
                             kvr_load64(data + 8) ^ (kvr_load64(kvr_xxh3_secret + at + 8) - seed));
}

KVR_INLINE uint64_t kvr_xxh3_avalanche(uint64_t hash)
{
    hash ^= hash >> 37;
    hash *= 0x165667919E3779F9u;
    return hash ^ hash >> 32;
}

KVR_INLINE uint64_t kvr_xxh3_17_to_128(const uint8_t *data, size_t length, uint64_t seed)
{
    const uint8_t *last = data + length - 16;
    uint64_t hash = length * 0x9E3779B185EBCA87u;
    for (size_t pair = 0; pair <= (length - 1) / 32; pair++)
        hash += kvr_mix_16(data + 16 * pair, 32 * pair, seed) + kvr_mix_16(last - 16 * pair, 32 * pair + 16, seed);
    return kvr_xxh3_avalanche(hash);
}

/* The sequence hash of a block: XXH3 of its predecessor's sequence hash and its own block hash, 16 bytes in all. Each
 * one waits for the last, so the number of steps in a row here is the speed limit of all hashing. */
KVR_INLINE uint64_t kvr_chain_step(uint64_t sequence, uint64_t block_hash)
{
    const uint64_t flip_low =
        (kvr_load64(kvr_xxh3_secret + 24) ^ kvr_load64(kvr_xxh3_secret + 32)) + KVR_HASH_SEED;
    const uint64_t flip_high =
        (kvr_load64(kvr_xxh3_secret + 40) ^ kvr_load64(kvr_xxh3_secret + 48)) - KVR_HASH_SEED;
    uint64_t low = sequence ^ flip_low, high = block_hash ^ flip_high;
    return kvr_xxh3_avalanche(16 + kvr_swap64(low) + high + kvr_multiply_fold(low, high));
}

#endif
