/* Reading the tokens of an event; `events_tokens.h` says how they leave. */
#include "events_tokens.h"

/* Two tokens of five bytes. */
#define PAIR_BYTES_MAX 10

/* Tokens are most of what engines send, and mostly take three bytes or five, without a pattern in which: 0xCD and two, or
 * 0xCE and four. Such are read in pairs without a branch: how long both are is told by one read, since nothing can begin
 * with the next pair before that is known. Returns how many were read before something else came. */
static size_t read_token_pairs(struct kvr_cursor *cursor, uint32_t *tokens, size_t count)
{
    const uint8_t *at = cursor->at;
    size_t number = 0, pairs = count / 2 * 2;
    for (; number < pairs && (size_t)(cursor->end - at) >= PAIR_BYTES_MAX; number += 2) {
        uint64_t word = kvr_load64(at);
        uint32_t first = (uint32_t)word & UINT8_MAX, is_long = first & 2;
        uint32_t second = (uint32_t)(word >> (24 + 8 * is_long)) & UINT8_MAX;
        if (first - 0xCDu > 1 || second - 0xCDu > 1)
            break;
        const uint8_t *next = at + 3 + is_long;
        kvr_store32(tokens + number, kvr_big32(at + 1) >> (16 - 8 * is_long));
        kvr_store32(tokens + number + 1, kvr_big32(next + 1) >> (16 - 8 * (second & 2)));
        at = next + 3 + (second & 2);
    }
    cursor->at = at;
    return number;
}

/* One token of any size; -1 if it is none. The usual sizes are read without a branch here too. */
KVR_INLINE int read_token(struct kvr_cursor *cursor, uint32_t *token)
{
    const uint8_t *at = cursor->at;
    uint64_t value;
    uint32_t width;
    int is_negative;
    if (kvr_left(cursor) >= 5 && (width = (uint32_t)*at - 0xCC) <= 2) {
        kvr_store32(token, kvr_big32(at + 1) >> (32 - (8u << width)));
        cursor->at += 1 + ((size_t)1 << width);
        return 0;
    }
    if (at < cursor->end && *at < 0x80) {
        kvr_store32(token, *at);
        cursor->at++;
        return 0;
    }
    if (kvr_read_integer(cursor, &value, &is_negative) || is_negative || value > UINT32_MAX)
        return -1;
    kvr_store32(token, (uint32_t)value);
    return 0;
}

/* Pairs as long as they come, and two single tokens wherever they do not. */
int kvr_read_tokens(struct kvr_cursor *cursor, uint32_t *tokens, size_t count)
{
    for (size_t number = 0; number < count;) {
        number += read_token_pairs(cursor, tokens + number, count - number);
        for (size_t stop = count - number < 2 ? count : number + 2; number < stop; number++)
            if (read_token(cursor, tokens + number))
                return -1;
    }
    return 0;
}
