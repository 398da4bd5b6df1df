/* Giving out runs of pages; `index_pages.h` says what for. */
#include "index_pages.h"
#include "index_memory.h"
#include "memory.h"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#define HAS_MAPS 1
#else
#define HAS_MAPS 0
#endif

#define CHUNK_BYTES (KVR_PAGE_BYTES * KVR_CHUNK_PAGES)
/* What is smaller would waste too much of its last page. */
#define RUN_BYTES_MIN (2 * KVR_PAGE_BYTES)
#define RUN_BYTES_MAX (CHUNK_BYTES / 4)
/* So many chunks are backed by pages of the usual size: what is small shall not take a huge one. */
#define SMALL_CHUNKS 4

/* AddressSanitizer can only watch what it gives out itself. Whoever tests this file does not want that. */
#if defined(KVR_WITHOUT_WATCH)
#define IS_WATCHED 0
#elif defined(__SANITIZE_ADDRESS__)
#define IS_WATCHED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define IS_WATCHED 1
#endif
#endif
#ifndef IS_WATCHED
#define IS_WATCHED 0
#endif

static int is_run(const struct kvr_pages *pages, size_t size)
{
    return HAS_MAPS && !IS_WATCHED && pages != NULL && size >= RUN_BYTES_MIN && size <= RUN_BYTES_MAX;
}

static uint32_t pages_of(size_t size)
{
    return (uint32_t)((size + KVR_PAGE_BYTES - 1) / KVR_PAGE_BYTES);
}

/* -- runs --------------------------------------------------------------------------------------------------------- */

static int is_taken(const struct kvr_chunk *chunk, uint32_t page)
{
    return (int)(chunk->taken[page / 64] >> page % 64 & 1);
}

static void mark(struct kvr_chunk *chunk, uint32_t first, uint32_t count)
{
    for (uint32_t page = first; page < first + count; page++)
        chunk->taken[page / 64] ^= (uint64_t)1 << page % 64;
}

/* The first page of the first run that is long enough, or 0; then it is known how long they are. */
static uint32_t find_run(struct kvr_chunk *chunk, uint32_t count)
{
    uint32_t longest = 0, length = 0;
    for (uint32_t page = 1; page < KVR_CHUNK_PAGES; page++) {
        length = is_taken(chunk, page) ? 0 : length + 1;
        if (length == count)
            return page + 1 - count;
        longest = length > longest ? length : longest;
    }
    chunk->longest = longest;
    return 0;
}

/* The length of the free run that these pages are in. */
static uint32_t run_around(const struct kvr_chunk *chunk, uint32_t first, uint32_t count)
{
    uint32_t stop = first + count;
    while (first > 1 && !is_taken(chunk, first - 1))
        first--;
    while (stop < KVR_CHUNK_PAGES && !is_taken(chunk, stop))
        stop++;
    return stop - first;
}

/* -- chunks ------------------------------------------------------------------------------------------------------- */

static void number_chunk(struct kvr_pages *pages, uint32_t number)
{
    memcpy(pages->chunks[number].base, &number, sizeof number);
}

#if HAS_MAPS

/* Aligned memory of the system's; NULL when there is none. */
static uint8_t *map_chunk(int is_small)
{
    uint8_t *memory = mmap(NULL, 2 * CHUNK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    size_t before = -(uintptr_t)memory % CHUNK_BYTES;
    if (before > 0)
        (void)munmap(memory, before);
    (void)munmap(memory + before + CHUNK_BYTES, CHUNK_BYTES - before);
#if defined(MADV_HUGEPAGE)
    if (!is_small)
        (void)madvise(memory + before, CHUNK_BYTES, MADV_HUGEPAGE);
#else
    (void)is_small;
#endif
    return memory + before;
}

static void unmap_chunk(uint8_t *base)
{
    (void)munmap(base, CHUNK_BYTES);
}

#else

static uint8_t *map_chunk(int is_small)
{
    (void)is_small;
    return NULL;
}

static void unmap_chunk(uint8_t *base)
{
    (void)base;
}

#endif

static struct kvr_chunk *add_chunk(struct kvr_pages *pages)
{
    if (pages->count == pages->allocated) {
        uint32_t larger = pages->allocated ? 2 * pages->allocated : 4;
        struct kvr_chunk *chunks = PyMem_Realloc(pages->chunks, larger * sizeof *chunks);
        if (chunks == NULL)
            return NULL;
        pages->chunks = chunks;
        pages->allocated = larger;
    }
    struct kvr_chunk *chunk = &pages->chunks[pages->count];
    memset(chunk, 0, sizeof *chunk);
    chunk->base = map_chunk(pages->count < SMALL_CHUNKS);
    if (chunk->base == NULL)
        return NULL;
    chunk->longest = KVR_CHUNK_PAGES - 1;
    number_chunk(pages, pages->count++);
    return chunk;
}

static void drop_chunk(struct kvr_pages *pages, uint32_t number)
{
    unmap_chunk(pages->chunks[number].base);
    pages->count--;
    if (number < pages->count) {
        pages->chunks[number] = pages->chunks[pages->count];
        number_chunk(pages, number);
    }
}

/* -- taking and giving -------------------------------------------------------------------------------------------- */

void *kvr_pages_take(struct kvr_pages *pages, size_t *account, size_t size)
{
    if (!is_run(pages, size))
        return kvr_take(account, size);
    uint32_t count = pages_of(size), first = 0;
    struct kvr_chunk *chunk = NULL;
    for (uint32_t number = 0; first == 0 && number < pages->count; number++) {
        chunk = &pages->chunks[number];
        if (chunk->longest >= count)
            first = find_run(chunk, count);
    }
    if (first == 0) {
        chunk = add_chunk(pages);
        if (chunk == NULL)
            return NULL;
        first = 1;
    }
    mark(chunk, first, count);
    chunk->used += count;
    *account += count * KVR_PAGE_BYTES;
    return chunk->base + first * KVR_PAGE_BYTES;
}

void kvr_pages_give(struct kvr_pages *pages, size_t *account, void *memory, size_t size)
{
    if (!is_run(pages, size)) {
        kvr_give(account, memory, size);
        return;
    }
    uint8_t *base = (uint8_t *)((uintptr_t)memory & ~(uintptr_t)(CHUNK_BYTES - 1));
    uint32_t number, count = pages_of(size);
    memcpy(&number, base, sizeof number);
    struct kvr_chunk *chunk = &pages->chunks[number];
    uint32_t first = (uint32_t)((size_t)((uint8_t *)memory - base) / KVR_PAGE_BYTES);
    mark(chunk, first, count);
    chunk->used -= count;
    *account -= count * KVR_PAGE_BYTES;
    uint32_t length = run_around(chunk, first, count);
    chunk->longest = length > chunk->longest ? length : chunk->longest;
    if (chunk->used == 0)
        drop_chunk(pages, number);
}

void kvr_pages_close(struct kvr_pages *pages)
{
    PyMem_Free(pages->chunks);
}
