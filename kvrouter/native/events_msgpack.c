/* Passing over msgpack values; `events_msgpack.h` says which. */
#include "events_msgpack.h"

static int skip_bytes(struct kvr_cursor *cursor, size_t head, size_t body)
{
    size_t left = kvr_left(cursor);
    if (left < head || left - head < body)
        return -1;
    cursor->at += head + body;
    return 0;
}

/* The length that stands in `width` bytes behind the tag, or SIZE_MAX if they are cut short. */
static size_t length_behind_tag(const struct kvr_cursor *cursor, size_t width)
{
    if (kvr_left(cursor) < 1 + width)
        return SIZE_MAX;
    const uint8_t *at = cursor->at + 1;
    return width == 1 ? at[0] : width == 2 ? kvr_big16(at) : kvr_big32(at);
}

static int skip_blob(struct kvr_cursor *cursor, size_t width)
{
    size_t length = length_behind_tag(cursor, width);
    return length == SIZE_MAX ? -1 : skip_bytes(cursor, 1 + width, length);
}

static int skip_array(struct kvr_cursor *cursor, int nesting)
{
    size_t count;
    if (nesting == 0 || kvr_read_array(cursor, &count))
        return -1;
    for (size_t at = 0; at < count; at++)
        if (kvr_skip(cursor, nesting - 1))
            return -1;
    return 0;
}

static int skip_map(struct kvr_cursor *cursor, int nesting)
{
    size_t count, length;
    const char *key;
    if (nesting == 0 || kvr_read_map(cursor, &count))
        return -1;
    for (size_t at = 0; at < count; at++)
        if (kvr_read_text(cursor, &key, &length) || kvr_skip(cursor, nesting - 1))
            return -1;
    return 0;
}

int kvr_skip(struct kvr_cursor *cursor, int nesting)
{
    if (kvr_left(cursor) == 0)
        return -1;
    uint8_t tag = *cursor->at;
    if (tag < 0x80 || tag >= 0xE0)
        return skip_bytes(cursor, 1, 0);
    if (tag < 0x90)
        return skip_map(cursor, nesting);
    if (tag < 0xA0)
        return skip_array(cursor, nesting);
    if (tag < 0xC0)
        return skip_bytes(cursor, 1, tag & 0x1F);
    switch (tag) {
    case 0xC0: case 0xC2: case 0xC3: /* nil, false, true */
        return skip_bytes(cursor, 1, 0);
    case 0xC4: case 0xC5: case 0xC6: /* bytes */
        return skip_blob(cursor, (size_t)1 << (tag - 0xC4));
    case 0xCA: /* floats */
        return skip_bytes(cursor, 1, 4);
    case 0xCB:
        return skip_bytes(cursor, 1, 8);
    case 0xCC: case 0xCD: case 0xCE: case 0xCF: /* integers */
    case 0xD0: case 0xD1: case 0xD2: case 0xD3:
        return skip_bytes(cursor, 1, (size_t)1 << (tag & 3));
    case 0xD9: case 0xDA: case 0xDB: /* strings */
        return skip_blob(cursor, (size_t)1 << (tag - 0xD9));
    case 0xDC: case 0xDD:
        return skip_array(cursor, nesting);
    case 0xDE: case 0xDF:
        return skip_map(cursor, nesting);
    default: /* Extensions, and what is no tag at all. */
        return -1;
    }
}
