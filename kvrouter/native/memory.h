/* Reading and writing little-endian integers at any address, and finding and counting bits that are set. */
#ifndef KVR_MEMORY_H
#define KVR_MEMORY_H

#include <stdint.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define KVR_BIG_ENDIAN 1
#else
#define KVR_BIG_ENDIAN 0
#endif

#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#define KVR_INLINE static __forceinline
#else
#define KVR_INLINE static inline __attribute__((always_inline))
#endif

KVR_INLINE uint32_t kvr_swap32(uint32_t value)
{
    value = (value >> 8 & 0x00FF00FFu) | (value & 0x00FF00FFu) << 8;
    return value >> 16 | value << 16;
}

KVR_INLINE uint64_t kvr_swap64(uint64_t value)
{
    return (uint64_t)kvr_swap32((uint32_t)value) << 32 | kvr_swap32((uint32_t)(value >> 32));
}

KVR_INLINE uint16_t kvr_load16(const void *at)
{
    uint16_t value;
    memcpy(&value, at, sizeof value);
    return KVR_BIG_ENDIAN ? (uint16_t)(value >> 8 | value << 8) : value;
}

KVR_INLINE uint32_t kvr_load32(const void *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return KVR_BIG_ENDIAN ? kvr_swap32(value) : value;
}

KVR_INLINE uint64_t kvr_load64(const void *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return KVR_BIG_ENDIAN ? kvr_swap64(value) : value;
}

KVR_INLINE void kvr_store16(void *at, uint16_t value)
{
    value = KVR_BIG_ENDIAN ? (uint16_t)(value >> 8 | value << 8) : value;
    memcpy(at, &value, sizeof value);
}

KVR_INLINE void kvr_store32(void *at, uint32_t value)
{
    value = KVR_BIG_ENDIAN ? kvr_swap32(value) : value;
    memcpy(at, &value, sizeof value);
}

KVR_INLINE void kvr_store64(void *at, uint64_t value)
{
    value = KVR_BIG_ENDIAN ? kvr_swap64(value) : value;
    memcpy(at, &value, sizeof value);
}

/* `value` must not be 0. */
KVR_INLINE int kvr_lowest_bit(uint64_t value)
{
#if defined(_MSC_VER) && !defined(__clang__)
    unsigned long position;
    _BitScanForward64(&position, value);
    return (int)position;
#else
    return __builtin_ctzll(value);
#endif
}

/* `value` must not be 0. */
KVR_INLINE int kvr_highest_bit(uint64_t value)
{
#if defined(_MSC_VER) && !defined(__clang__)
    unsigned long position;
    _BitScanReverse64(&position, value);
    return (int)position;
#else
    return 63 - __builtin_clzll(value);
#endif
}

KVR_INLINE int kvr_count_bits(uint32_t value)
{
    value -= value >> 1 & 0x55555555u;
    value = (value & 0x33333333u) + (value >> 2 & 0x33333333u);
    return (int)(((value + (value >> 4)) & 0x0F0F0F0Fu) * 0x01010101u >> 24);
}

#endif
