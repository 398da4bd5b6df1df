/* Memory of an index: every byte is accounted for, so that an index can say what it costs.
 *
 * Taken through Python's allocator, so that its debugging and tracing tools see it too. The caller holds the GIL.
 */
#ifndef KVR_INDEX_MEMORY_H
#define KVR_INDEX_MEMORY_H

#include "python_abi.h"
#include <stddef.h>
#include <stdint.h>

/* NULL when there is no more. */
static inline void *kvr_take(size_t *account, size_t size)
{
    void *memory = PyMem_Malloc(size);
    if (memory != NULL)
        *account += size;
    return memory;
}

/* The old block stays as it is when there is no more. */
static inline void *kvr_retake(size_t *account, void *old, size_t old_size, size_t size)
{
    void *memory = PyMem_Realloc(old, size);
    if (memory != NULL)
        *account += size - old_size;
    return memory;
}

static inline void kvr_give(size_t *account, void *memory, size_t size)
{
    if (memory != NULL) {
        *account -= size;
        PyMem_Free(memory);
    }
}

#endif
