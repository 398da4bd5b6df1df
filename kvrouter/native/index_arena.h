/* Memory out of a file that other processes map: what an index that is shared takes its tables from.
 *
 * The whole capacity is reserved in this process's address space at once, so nothing ever moves; the file behind it
 * grows in steps, and its pages are allocated before they are used, so that a full disk is "no memory" and no signal.
 * What is given back is not touched before `kvr_arena_reuse` is called: until then it stays as readers may see it.
 *
 * Large blocks are rows of pages; free rows join their neighbours. Small ones are cut from chunks of pages, and are kept
 * for blocks of about their size. The file does not become smaller. What is free is noted in this process's own memory.
 */
#ifndef KVR_INDEX_ARENA_H
#define KVR_INDEX_ARENA_H

#include <stddef.h>
#include <stdint.h>

#define KVR_ARENA_ALIGNMENT ((size_t)16)
#define KVR_ARENA_PAGE_BITS 12
/* Rows of free pages are listed by their length; from the last one on, by none. */
#define KVR_ARENA_LISTS 64
/* Of small blocks: eight sizes between a power of two and the next. */
#define KVR_ARENA_CLASSES (8 * 12)

/* A block that was given back. */
struct kvr_spare {
    void *block;
    size_t size;
};

/* The first and the last page of a free row know how long it is; the first one also stands in a list. */
struct kvr_page {
    uint32_t free;         /* pages in the row; 0 in one that is in use */
    uint32_t before, after; /* first pages of other rows in the list; 0: none */
};

struct kvr_arena {
    uint8_t *base; /* of the mapping; NULL: there is none */
    size_t capacity;
    size_t length; /* of the file */
    int file;
    int changed;        /* since somebody last set this to 0, blocks were taken or given */
    uint32_t page_count; /* of the file */
    uint32_t page_room;
    struct kvr_page *pages;
    uint32_t lists[KVR_ARENA_LISTS]; /* the first page of the first row; page 0 is never free */
    uint64_t listed;                 /* bit l: list l has something */
    uint8_t *chunk;                  /* for small blocks, as far as it is left */
    size_t chunk_left;
    void *small[KVR_ARENA_CLASSES]; /* each begins with the next one of its class */
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
