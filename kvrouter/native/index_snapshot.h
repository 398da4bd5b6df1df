/* An index as bytes, and back. The format is that of `kvrouter/index/snapshot.py`, which also seals and checks it. */
#ifndef KVR_INDEX_SNAPSHOT_H
#define KVR_INDEX_SNAPSHOT_H

#include "index_core.h"
#include "python_abi.h"

#define KVR_TIER_HEAD_BYTES 18
#define KVR_BYTES_PER_BLOCK 13

/* What is noted of a block's place: its position in a stretch, and whether the block before it there is the one before
 * it in the snapshot. */
#define KVR_MARK_PLACED 0x80
#define KVR_MARK_FOLLOWS 0x20

/* The tables of all tiers; NULL with an exception set. */
PyObject *kvr_index_dump(const struct kvr_index *index);

/* Fill an empty index from such tables. 0, or -1 with an exception set, ValueError if the bytes are not what
 * kvr_index_dump writes; then the index is only good for closing. */
int kvr_index_load(struct kvr_index *index, const uint8_t *data, size_t length, uint32_t tiers);

#endif
