/* Memory out of a file that other processes map: what an index that is shared takes its tables from.
 *
 * The whole capacity is reserved in this process's address space at once, so nothing ever moves; the file behind it
 * grows in steps, and its pages are allocated before they are used, so that a full disk is "no memory" and no signal.
 * What is given back is not touched before `kvr_arena_reuse` is called: until then it stays as readers may see it.
 * It is kept for blocks of about its size; the file does not become smaller.
 */
#ifndef KVR_INDEX_ARENA_H
#define KVR_INDEX_ARENA_H

#include <stddef.h>
#include <stdint.h>

#define KVR_ARENA_ALIGNMENT ((size_t)16)
/* Eight sizes between a power of two and the next. */
#define KVR_ARENA_CLASSES (8 * 64)

/* A block that was given back. */
struct kvr_spare {
    void *block;
    uint32_t size_class;
};

struct kvr_arena {
    uint8_t *base; /* of the mapping; NULL: there is none */
    size_t capacity;
    size_t length; /* of the file */
    size_t used;   /* the first byte that never belonged to a block */
    int file;
    int changed; /* since somebody last set this to 0, blocks were taken or given */
    void *free[KVR_ARENA_CLASSES]; /* each begins with the next one of its class */
    struct kvr_spare *spares;
    size_t spare_count, spare_room;
};

/* Map a file, which is empty, for as much as `capacity`, and use it from `start` on. 0, or -1 with errno. */
int kvr_arena_open(struct kvr_arena *arena, int file, size_t capacity, size_t start);

/* Unmap it. The file is left as it is, and open. */
void kvr_arena_close(struct kvr_arena *arena);

void *kvr_arena_take(struct kvr_arena *arena, size_t size);
void *kvr_arena_retake(struct kvr_arena *arena, void *old, size_t old_size, size_t size);
void kvr_arena_give(struct kvr_arena *arena, void *block, size_t size);

/* From now on blocks that were given back may be overwritten. */
void kvr_arena_reuse(struct kvr_arena *arena);

#endif
