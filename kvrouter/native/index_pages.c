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
/* Runs of the last list are long enough. */
#define RUN_BYTES_MAX ((KVR_RUN_LISTS - 1) * KVR_PAGE_BYTES)
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

/* What is aligned by itself comes from chunks as well. */
static int is_page(const struct kvr_pages *pages, size_t size)
{
    return HAS_MAPS && !IS_WATCHED && pages != NULL && size == KVR_PAGE_BYTES;
}

static uint32_t pages_of(size_t size)
{
    return (uint32_t)((size + KVR_PAGE_BYTES - 1) / KVR_PAGE_BYTES);
}

/* -- runs --------------------------------------------------------------------------------------------------------- */

/* Where a free run stands in its list, at the place of its first page. The place of the page that is never free has the
 * number of the chunk. */
struct links {
    uint32_t before, after;
};

static struct links *links_at(const struct kvr_chunk *chunk, uint32_t page)
{
    return (struct links *)(void *)chunk->base + page;
}

/* Of a run that is named by its chunk's number and its first page in one. */
static struct links *links_of(const struct kvr_pages *pages, uint32_t run)
{
    return links_at(&pages->chunks[run / KVR_CHUNK_PAGES], run % KVR_CHUNK_PAGES);
}

static uint32_t *list_for(struct kvr_pages *pages, uint32_t count)
{
    return &pages->lists[count < KVR_RUN_LISTS ? count : KVR_RUN_LISTS - 1];
}

static void list_run(struct kvr_pages *pages, uint32_t number, uint32_t first, uint32_t count)
{
    struct kvr_chunk *chunk = &pages->chunks[number];
    uint32_t *list = list_for(pages, count), run = number * KVR_CHUNK_PAGES + first;
    chunk->free[first] = chunk->free[first + count - 1] = (uint16_t)count;
    *links_at(chunk, first) = (struct links){0, *list};
    if (*list != 0)
        links_of(pages, *list)->before = run;
    *list = run;
}

static void unlist_run(struct kvr_pages *pages, uint32_t number, uint32_t first)
{
    struct kvr_chunk *chunk = &pages->chunks[number];
    uint32_t count = chunk->free[first];
    struct links links = *links_at(chunk, first);
    if (links.before != 0)
        links_of(pages, links.before)->after = links.after;
    else
        *list_for(pages, count) = links.after;
    if (links.after != 0)
        links_of(pages, links.after)->before = links.before;
    chunk->free[first] = chunk->free[first + count - 1] = 0;
}

/* Pages are free from now on, and one run with those beside them. */
static void free_run(struct kvr_pages *pages, uint32_t number, uint32_t first, uint32_t count)
{
    const struct kvr_chunk *chunk = &pages->chunks[number];
    uint32_t before = chunk->free[first - 1], stop = first + count;
    uint32_t after = stop < KVR_CHUNK_PAGES ? chunk->free[stop] : 0;
    if (after != 0)
        unlist_run(pages, number, stop);
    if (before != 0)
        unlist_run(pages, number, first - before);
    list_run(pages, number, first - before, before + count + after);
}

/* The shortest free run of at least so many pages; 0 if there is none. */
static uint32_t find_run(const struct kvr_pages *pages, uint32_t count)
{
    while (count < KVR_RUN_LISTS - 1 && pages->lists[count] == 0)
        count++;
    return pages->lists[count];
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

/* A chunk more, all of which is free; -1 when there is no memory. */
static int add_chunk(struct kvr_pages *pages)
{
    if (pages->count == pages->allocated) {
        uint32_t larger = pages->allocated ? 2 * pages->allocated : 4;
        struct kvr_chunk *chunks = PyMem_Realloc(pages->chunks, larger * sizeof *chunks);
        if (chunks == NULL)
            return -1;
        pages->chunks = chunks;
        pages->allocated = larger;
    }
    struct kvr_chunk *chunk = &pages->chunks[pages->count];
    memset(chunk, 0, sizeof *chunk);
    chunk->base = map_chunk(pages->count < SMALL_CHUNKS);
    if (chunk->base == NULL)
        return -1;
    number_chunk(pages, pages->count);
    list_run(pages, pages->count++, 1, KVR_CHUNK_PAGES - 1);
    return 0;
}

/* The last chunk gets another number. */
static void renumber_last(struct kvr_pages *pages, uint32_t number)
{
    uint32_t last = pages->count - 1;
    struct kvr_chunk *chunk = &pages->chunks[last];
    pages->chunks[number].base = chunk->base;
    pages->chunks[number].used = chunk->used;
    memset(pages->chunks[number].free, 0, sizeof chunk->free);
    for (uint32_t page = 1; page < KVR_CHUNK_PAGES;) {
        uint32_t length = chunk->free[page];
        if (length != 0) {
            unlist_run(pages, last, page);
            list_run(pages, number, page, length);
        }
        page += length + (length == 0);
    }
    number_chunk(pages, number);
}

/* Give a chunk back to the system; all of it is free. */
static void drop_chunk(struct kvr_pages *pages, uint32_t number)
{
    unlist_run(pages, number, 1);
    unmap_chunk(pages->chunks[number].base);
    if (number < pages->count - 1)
        renumber_last(pages, number);
    pages->count--;
}

/* -- taking and giving -------------------------------------------------------------------------------------------- */

static void *take_run(struct kvr_pages *pages, size_t *account, size_t size)
{
    uint32_t count = pages_of(size), run = find_run(pages, count);
    if (run == 0) {
        if (add_chunk(pages))
            return NULL;
        run = find_run(pages, count);
    }
    uint32_t number = run / KVR_CHUNK_PAGES, first = run % KVR_CHUNK_PAGES;
    struct kvr_chunk *chunk = &pages->chunks[number];
    uint32_t length = chunk->free[first];
    unlist_run(pages, number, first);
    if (length > count)
        list_run(pages, number, first + count, length - count);
    chunk->used += count;
    *account += count * KVR_PAGE_BYTES;
    return chunk->base + first * KVR_PAGE_BYTES;
}

static void give_run(struct kvr_pages *pages, size_t *account, void *memory, size_t size)
{
    uint8_t *base = (uint8_t *)((uintptr_t)memory & ~(uintptr_t)(CHUNK_BYTES - 1));
    uint32_t number, count = pages_of(size);
    memcpy(&number, base, sizeof number);
    free_run(pages, number, (uint32_t)((size_t)((uint8_t *)memory - base) / KVR_PAGE_BYTES), count);
    struct kvr_chunk *chunk = &pages->chunks[number];
    chunk->used -= count;
    *account -= count * KVR_PAGE_BYTES;
    if (chunk->used == 0)
        drop_chunk(pages, number);
}

void *kvr_pages_take(struct kvr_pages *pages, size_t *account, size_t size)
{
    return is_run(pages, size) ? take_run(pages, account, size) : kvr_take(account, size);
}

void kvr_pages_give(struct kvr_pages *pages, size_t *account, void *memory, size_t size)
{
    if (is_run(pages, size))
        give_run(pages, account, memory, size);
    else
        kvr_give(account, memory, size);
}

void *kvr_pages_take_aligned(struct kvr_pages *pages, size_t *account, size_t size)
{
    if (is_page(pages, size))
        return take_run(pages, account, size);
    uint8_t *memory = kvr_take(account, size + KVR_PAGES_ALIGNMENT);
    if (memory == NULL)
        return NULL;
    /* At least as much as Python's allocator aligns by, so there is room to tell how much it is. */
    uint16_t skipped = (uint16_t)(KVR_PAGES_ALIGNMENT - ((uintptr_t)memory & (KVR_PAGES_ALIGNMENT - 1)));
    memcpy(memory + skipped - sizeof skipped, &skipped, sizeof skipped);
    return memory + skipped;
}

void kvr_pages_give_aligned(struct kvr_pages *pages, size_t *account, void *memory, size_t size)
{
    if (is_page(pages, size)) {
        give_run(pages, account, memory, size);
        return;
    }
    uint16_t skipped;
    memcpy(&skipped, (uint8_t *)memory - sizeof skipped, sizeof skipped);
    kvr_give(account, (uint8_t *)memory - skipped, size + KVR_PAGES_ALIGNMENT);
}

void kvr_pages_close(struct kvr_pages *pages)
{
    PyMem_Free(pages->chunks);
}
