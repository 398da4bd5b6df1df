/* One batch of events as an engine sent it, read as far as it is plain; `kvrouter/events/decode.py` is the specification.
 *
 * Plain is what engines send all the time. An event that has something else about it (a salt, a LoRA adapter, an item,
 * token pairs, a wrong type) is `odd`: its place in the payload is kept, and the reference decoder reads it. A payload
 * whose envelope or msgpack is not plain is left to the reference decoder wholly, which also says what is wrong with it.
 */
#ifndef KVR_EVENTS_BATCH_H
#define KVR_EVENTS_BATCH_H

#include "events_msgpack.h"

enum kvr_event_kind { KVR_ODD, KVR_STORED, KVR_REMOVED, KVR_CLEARED };

struct kvr_event {
    size_t start, end; /* in the payload */
    size_t hashes, hash_count;
    size_t tokens, token_count;
    size_t extra_keys; /* how many */
    uint64_t parent;
    uint32_t group, block_size;
    uint8_t kind, tier;
    uint8_t has_parent, has_kind, has_extra_keys;
    uint8_t is_pinned; /* in SGLang's host tier */
};

/* Most batches fit into these and take no memory from anywhere. */
#define KVR_BATCH_EVENTS 16
#define KVR_BATCH_HASHES 160
#define KVR_BATCH_TOKENS 2176

struct kvr_batch {
    struct kvr_event *events;
    uint64_t *hashes;
    uint32_t *tokens; /* little-endian, as hashing takes them */
    size_t event_count, hash_count, token_count;
    size_t events_allocated, hashes_allocated, tokens_allocated;
    size_t odd_count, cleared_count;
    size_t unknown_fields; /* of the plain events */
    int64_t announced_rank; /* -1: none */
    struct kvr_event few_events[KVR_BATCH_EVENTS];
    uint64_t few_hashes[KVR_BATCH_HASHES];
    uint32_t few_tokens[KVR_BATCH_TOKENS];
};

/* 0: read. 1: not plain as a whole. -1: no memory. Close it in any case. */
int kvr_batch_open(struct kvr_batch *batch, const uint8_t *payload, size_t length);
void kvr_batch_close(struct kvr_batch *batch);

#endif
