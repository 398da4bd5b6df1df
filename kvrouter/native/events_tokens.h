/* The tokens of an event: by far most of what engines send. */
#ifndef KVR_EVENTS_TOKENS_H
#define KVR_EVENTS_TOKENS_H

#include "events_msgpack.h"

/* Read so many integers of 0..2^32-1 as little-endian words, which is how hashing takes them. 0, or -1 where something
 * else comes. */
int kvr_read_tokens(struct kvr_cursor *cursor, uint32_t *tokens, size_t count);

#endif
