/* What a structure takes: how many bytes, and where they come from. Whoever is handed a pointer to the bytes of an
 * account may look at the rest of it, so every such number is the first one of an account. */
#ifndef KVR_INDEX_ACCOUNT_H
#define KVR_INDEX_ACCOUNT_H

#include <stddef.h>

struct kvr_arena;

struct kvr_account {
    size_t bytes;
    struct kvr_arena *arena; /* NULL: Python's own allocator */
};

#endif
