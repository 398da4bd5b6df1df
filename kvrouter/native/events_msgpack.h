/* Reading msgpack (https://github.com/msgpack/msgpack/blob/master/spec.md) where it lies, as far as events use it.
 *
 * Every function moves the cursor behind what it read and says 0, or leaves it anywhere and says -1: what is there is of
 * another type, cut short, or of a kind that is not read here. Whoever needs to know more asks the reference decoder.
 */
#ifndef KVR_EVENTS_MSGPACK_H
#define KVR_EVENTS_MSGPACK_H

#include "memory.h"
#include <stddef.h>

struct kvr_cursor {
    const uint8_t *at, *end;
};

/* Deeper nesting than any event has; the reference decoder's own limit is far beyond. */
#define KVR_NESTING_MAX 24

/* Pass over any value whose maps have strings as keys. */
int kvr_skip(struct kvr_cursor *cursor, int nesting);

KVR_INLINE uint32_t kvr_big16(const uint8_t *at)
{
    return (uint32_t)at[0] << 8 | at[1];
}

KVR_INLINE uint32_t kvr_big32(const uint8_t *at)
{
    return kvr_swap32(kvr_load32(at));
}

KVR_INLINE uint64_t kvr_big64(const uint8_t *at)
{
    return kvr_swap64(kvr_load64(at));
}

KVR_INLINE size_t kvr_left(const struct kvr_cursor *cursor)
{
    return (size_t)(cursor->end - cursor->at);
}

/* Whether the next value is nil; then the cursor moves behind it. */
KVR_INLINE int kvr_read_nil(struct kvr_cursor *cursor)
{
    if (cursor->at == cursor->end || *cursor->at != 0xC0)
        return 0;
    cursor->at++;
    return 1;
}

KVR_INLINE int kvr_read_array(struct kvr_cursor *cursor, size_t *count)
{
    size_t left = kvr_left(cursor);
    if (left == 0)
        return -1;
    const uint8_t *at = cursor->at;
    if ((at[0] & 0xF0) == 0x90) {
        *count = at[0] & 0x0F;
        cursor->at += 1;
    } else if (at[0] == 0xDC && left >= 3) {
        *count = kvr_big16(at + 1);
        cursor->at += 3;
    } else if (at[0] == 0xDD && left >= 5) {
        *count = kvr_big32(at + 1);
        cursor->at += 5;
    } else {
        return -1;
    }
    return *count <= kvr_left(cursor) ? 0 : -1; /* An element takes a byte at least. */
}

KVR_INLINE int kvr_read_map(struct kvr_cursor *cursor, size_t *count)
{
    size_t left = kvr_left(cursor);
    if (left == 0)
        return -1;
    const uint8_t *at = cursor->at;
    if ((at[0] & 0xF0) == 0x80) {
        *count = at[0] & 0x0F;
        cursor->at += 1;
    } else if (at[0] == 0xDE && left >= 3) {
        *count = kvr_big16(at + 1);
        cursor->at += 3;
    } else if (at[0] == 0xDF && left >= 5) {
        *count = kvr_big32(at + 1);
        cursor->at += 5;
    } else {
        return -1;
    }
    return *count <= kvr_left(cursor) / 2 ? 0 : -1;
}

KVR_INLINE int kvr_read_text(struct kvr_cursor *cursor, const char **text, size_t *length)
{
    size_t left = kvr_left(cursor), head;
    if (left == 0)
        return -1;
    const uint8_t *at = cursor->at;
    if ((at[0] & 0xE0) == 0xA0) {
        *length = at[0] & 0x1F;
        head = 1;
    } else if (at[0] == 0xD9 && left >= 2) {
        *length = at[1];
        head = 2;
    } else if (at[0] == 0xDA && left >= 3) {
        *length = kvr_big16(at + 1);
        head = 3;
    } else if (at[0] == 0xDB && left >= 5) {
        *length = kvr_big32(at + 1);
        head = 5;
    } else {
        return -1;
    }
    if (*length > left - head)
        return -1;
    *text = (const char *)at + head;
    cursor->at += head + *length;
    return 0;
}

/* Any integer modulo 2^64; `is_negative` says how to take it. */
KVR_INLINE int kvr_read_integer(struct kvr_cursor *cursor, uint64_t *value, int *is_negative)
{
    size_t left = kvr_left(cursor);
    if (left == 0)
        return -1;
    const uint8_t *at = cursor->at;
    uint8_t tag = at[0];
    *is_negative = 0;
    if (tag == 0xCF && left >= 9) {
        *value = kvr_big64(at + 1);
        cursor->at += 9;
        return 0;
    }
    if (tag < 0x80 || tag >= 0xE0) {
        *value = (uint64_t)(int64_t)(int8_t)tag;
        *is_negative = tag >= 0xE0;
        cursor->at += 1;
        return 0;
    }
    if (tag < 0xCC || tag > 0xD3)
        return -1;
    size_t width = (size_t)1 << (tag & 3);
    if (left < 1 + width)
        return -1;
    uint64_t bits = 0;
    for (size_t byte = 1; byte <= width; byte++)
        bits = bits << 8 | at[byte];
    if (tag >= 0xD0) {
        unsigned shift = 64 - 8 * (unsigned)width;
        bits = (uint64_t)((int64_t)(bits << shift) >> shift);
        *is_negative = (int64_t)bits < 0;
    }
    *value = bits;
    cursor->at += 1 + width;
    return 0;
}

#endif
