/* Memory of an index: every byte is accounted for, so that an index can say what it costs.
 *
 * Taken through Python's allocator, so that its debugging and tracing tools see it too, or, by an index that others can
 * map, from a file (`index_arena.h`). The caller holds the GIL.
 */
#ifndef KVR_INDEX_MEMORY_H
#define KVR_INDEX_MEMORY_H

#include "index_account.h"
#include "index_arena.h"
#include "python_abi.h"
#include <stddef.h>
#include <stdint.h>

static inline struct kvr_arena *kvr_arena_of(size_t *account)
{
    return ((struct kvr_account *)(void *)account)->arena;
}

/* NULL when there is no more. */
static inline void *kvr_take(size_t *account, size_t size)
{
    struct kvr_arena *arena = kvr_arena_of(account);
    void *memory = arena == NULL ? PyMem_Malloc(size) : kvr_arena_take(arena, size);
    if (memory != NULL)
        *account += size;
    return memory;
}

/* The old block stays as it is when there is no more. */
static inline void *kvr_retake(size_t *account, void *old, size_t old_size, size_t size)
{
    struct kvr_arena *arena = kvr_arena_of(account);
    void *memory = arena == NULL ? PyMem_Realloc(old, size) : kvr_arena_retake(arena, old, old_size, size);
    if (memory != NULL)
        *account += size - old_size;
    return memory;
}

static inline void kvr_give(size_t *account, void *memory, size_t size)
{
    if (memory == NULL)
        return;
    struct kvr_arena *arena = kvr_arena_of(account);
    *account -= size;
    if (arena == NULL)
        PyMem_Free(memory);
    else
        kvr_arena_give(arena, memory, size);
}

#endif
