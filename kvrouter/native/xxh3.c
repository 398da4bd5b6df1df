/* XXH3-64: one way of mixing per range of lengths, shortest first. */
#include "xxh3.h"

const uint8_t kvr_xxh3_secret[192] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

#define PRIME32_1 0x9E3779B1u
#define PRIME32_2 0x85EBCA77u
#define PRIME32_3 0xC2B2AE3Du
#define PRIME64_1 0x9E3779B185EBCA87u
#define PRIME64_2 0xC2B2AE3D27D4EB4Fu
#define PRIME64_3 0x165667B19E3779F9u
#define PRIME64_4 0x85EBCA77C2B2AE63u
#define PRIME64_5 0x27D4EB2F165667C5u

#define secret kvr_xxh3_secret

static uint64_t xxh64_avalanche(uint64_t hash)
{
    hash = (hash ^ hash >> 33) * PRIME64_2;
    hash = (hash ^ hash >> 29) * PRIME64_3;
    return hash ^ hash >> 32;
}

static uint64_t up_to_3(const uint8_t *data, size_t length, uint64_t seed)
{
    uint32_t combined = (uint32_t)data[length - 1] | (uint32_t)length << 8 | (uint32_t)data[0] << 16 |
                        (uint32_t)data[length >> 1] << 24;
    uint64_t flip = (uint64_t)(kvr_load32(secret) ^ kvr_load32(secret + 4)) + seed;
    return xxh64_avalanche(combined ^ flip);
}

static uint64_t up_to_8(const uint8_t *data, size_t length, uint64_t seed)
{
    seed ^= (uint64_t)kvr_swap32((uint32_t)seed) << 32;
    uint64_t combined = kvr_load32(data + length - 4) + ((uint64_t)kvr_load32(data) << 32);
    uint64_t hash = combined ^ ((kvr_load64(secret + 8) ^ kvr_load64(secret + 16)) - seed);
    hash ^= (hash << 49 | hash >> 15) ^ (hash << 24 | hash >> 40);
    hash *= 0x9FB21C651E98DF25u;
    hash ^= (hash >> 35) + length;
    hash *= 0x9FB21C651E98DF25u;
    return hash ^ hash >> 28;
}

static uint64_t up_to_16(const uint8_t *data, size_t length, uint64_t seed)
{
    uint64_t low = kvr_load64(data) ^ ((kvr_load64(secret + 24) ^ kvr_load64(secret + 32)) + seed);
    uint64_t high = kvr_load64(data + length - 8) ^ ((kvr_load64(secret + 40) ^ kvr_load64(secret + 48)) - seed);
    return kvr_xxh3_avalanche(length + kvr_swap64(low) + high + kvr_multiply_fold(low, high));
}

static uint64_t up_to_240(const uint8_t *data, size_t length, uint64_t seed)
{
    uint64_t hash = length * PRIME64_1;
    for (size_t part = 0; part < 8; part++)
        hash += kvr_mix_16(data + 16 * part, 16 * part, seed);
    hash = kvr_xxh3_avalanche(hash);
    for (size_t part = 8; part < length / 16; part++)
        hash += kvr_mix_16(data + 16 * part, 16 * (part - 8) + 3, seed);
    hash += kvr_mix_16(data + length - 16, 136 - 17, seed);
    return kvr_xxh3_avalanche(hash);
}

/* -- longer than 240 bytes: eight lanes over stripes of 64 bytes -------------------------------------------------- */

#define STRIPE 64
#define STRIPES_PER_BLOCK ((192 - STRIPE) / 8)

/* Lane i also takes the input of its neighbour, so that no input can be cancelled by the multiplication with zero. */
KVR_INLINE void accumulate(uint64_t lanes[8], const uint8_t *data, const uint8_t *key)
{
    for (int lane = 0; lane < 8; lane++) {
        uint64_t value = kvr_load64(data + 8 * lane), keyed = value ^ kvr_load64(key + 8 * lane);
        lanes[lane ^ 1] += value;
        lanes[lane] += (keyed & 0xFFFFFFFFu) * (keyed >> 32);
    }
}

static void scramble(uint64_t lanes[8], const uint8_t *key)
{
    for (int lane = 0; lane < 8; lane++) {
        uint64_t value = lanes[lane];
        lanes[lane] = (value ^ value >> 47 ^ kvr_load64(key + 8 * lane)) * PRIME32_1;
    }
}

static uint64_t merge(const uint64_t lanes[8], const uint8_t *key, uint64_t hash)
{
    for (int pair = 0; pair < 4; pair++)
        hash += kvr_multiply_fold(lanes[2 * pair] ^ kvr_load64(key + 16 * pair),
                                  lanes[2 * pair + 1] ^ kvr_load64(key + 16 * pair + 8));
    return kvr_xxh3_avalanche(hash);
}

static void seeded_secret(uint8_t key[192], uint64_t seed)
{
    for (size_t at = 0; at < 192; at += 16) {
        uint64_t low = kvr_load64(secret + at) + seed, high = kvr_load64(secret + at + 8) - seed;
        kvr_store64(key + at, low);
        kvr_store64(key + at + 8, high);
    }
}

static uint64_t longer(const uint8_t *data, size_t length, uint64_t seed)
{
    uint64_t lanes[8] = {PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3, PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1};
    uint8_t key[192];
    seeded_secret(key, seed);
    /* The last stripe, whole or not, is mixed apart, so the stripes before it end before the last byte. */
    size_t stripes = (length - 1) / STRIPE;
    for (size_t stripe = 0; stripe < stripes; stripe++) {
        size_t in_block = stripe % STRIPES_PER_BLOCK;
        accumulate(lanes, data + STRIPE * stripe, key + 8 * in_block);
        if (in_block == STRIPES_PER_BLOCK - 1)
            scramble(lanes, key + 192 - STRIPE);
    }
    accumulate(lanes, data + length - STRIPE, key + 192 - STRIPE - 7);
    return merge(lanes, key + 11, length * PRIME64_1);
}

uint64_t kvr_xxh3_64(const void *bytes, size_t length, uint64_t seed)
{
    const uint8_t *data = bytes;
    if (length > 240)
        return longer(data, length, seed);
    if (length > 128)
        return up_to_240(data, length, seed);
    if (length > 16)
        return kvr_xxh3_17_to_128(data, length, seed);
    if (length > 8)
        return up_to_16(data, length, seed);
    if (length > 3)
        return up_to_8(data, length, seed);
    if (length > 0)
        return up_to_3(data, length, seed);
    return xxh64_avalanche(seed ^ kvr_load64(secret + 56) ^ kvr_load64(secret + 64));
}
