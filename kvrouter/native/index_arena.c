/* Blocks of a mapped file; `index_arena.h` says what for. */
#include "index_arena.h"
#include "memory.h"
#include "python_abi.h"

#include <errno.h>

/* The file grows by so much; allocating it takes a fraction of a millisecond. */
#define STEP_BYTES ((size_t)1 << 20)
#define PAGE_BYTES ((size_t)1 << KVR_ARENA_PAGE_BITS)
/* Smaller blocks are cut from chunks. */
#define SMALL_BYTES ((size_t)2048)
#define CHUNK_PAGES 8

static size_t pages_for(size_t bytes)
{
    return (bytes + PAGE_BYTES - 1) >> KVR_ARENA_PAGE_BITS;
}

static int add_pages(struct kvr_arena *arena, uint32_t start);

#ifdef _WIN32

int kvr_arena_open(struct kvr_arena *arena, int file, size_t capacity, size_t start)
{
    (void)file, (void)capacity, (void)start;
    memset(arena, 0, sizeof *arena);
    errno = ENOSYS;
    return -1;
}

static void unmap(struct kvr_arena *arena)
{
    (void)arena;
}

static int grow(struct kvr_arena *arena, size_t length)
{
    (void)arena, (void)length;
    return -1;
}

#else

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

/* Make the file this long, with pages behind it; -1 with errno. */
static int grow(struct kvr_arena *arena, size_t length)
{
#ifdef __linux__
    int error = posix_fallocate(arena->file, (off_t)arena->length, (off_t)(length - arena->length));
    if (error != 0) {
        errno = error;
        return -1;
    }
#else
    if (ftruncate(arena->file, (off_t)length))
        return -1;
#endif
    arena->length = length;
    return 0;
}

int kvr_arena_open(struct kvr_arena *arena, int file, size_t capacity, size_t start)
{
    memset(arena, 0, sizeof *arena);
    arena->file = file;
    arena->capacity = capacity & ~(PAGE_BYTES - 1);
    if (arena->capacity < STEP_BYTES || start > STEP_BYTES / 2 || arena->capacity >> KVR_ARENA_PAGE_BITS > UINT32_MAX) {
        errno = EINVAL;
        return -1;
    }
    if (grow(arena, STEP_BYTES))
        return -1;
    void *base = mmap(NULL, arena->capacity, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (base == MAP_FAILED)
        return -1;
    arena->base = base;
    if (add_pages(arena, (uint32_t)pages_for(start))) {
        kvr_arena_close(arena);
        errno = ENOMEM;
        return -1;
    }
    return 0;
}

static void unmap(struct kvr_arena *arena)
{
    (void)munmap(arena->base, arena->capacity);
}

#endif

void kvr_arena_close(struct kvr_arena *arena)
{
    if (arena->base != NULL)
        unmap(arena);
    PyMem_Free(arena->spares);
    PyMem_Free(arena->pages);
    memset(arena, 0, sizeof *arena);
}

/* -- pages -------------------------------------------------------------------------------------------------------- */

static uint32_t list_for(uint32_t pages)
{
    return pages < KVR_ARENA_LISTS ? pages - 1 : KVR_ARENA_LISTS - 1;
}

static void list_row(struct kvr_arena *arena, uint32_t first, uint32_t count)
{
    uint32_t list = list_for(count), next = arena->lists[list];
    arena->pages[first].free = arena->pages[first + count - 1].free = count;
    arena->pages[first].before = 0;
    arena->pages[first].after = next;
    if (next != 0)
        arena->pages[next].before = first;
    arena->lists[list] = first;
    arena->listed |= UINT64_C(1) << list;
}

static void unlist_row(struct kvr_arena *arena, uint32_t first)
{
    struct kvr_page *row = &arena->pages[first];
    uint32_t list = list_for(row->free);
    if (row->before != 0)
        arena->pages[row->before].after = row->after;
    else
        arena->lists[list] = row->after;
    if (row->after != 0)
        arena->pages[row->after].before = row->before;
    if (arena->lists[list] == 0)
        arena->listed &= ~(UINT64_C(1) << list);
    arena->pages[first + row->free - 1].free = 0;
    row->free = 0;
}

/* Pages are free from now on, and one row with those beside them. */
static void free_row(struct kvr_arena *arena, uint32_t first, uint32_t count)
{
    uint32_t before = first > 0 ? arena->pages[first - 1].free : 0;
    uint32_t after = first + count < arena->page_count ? arena->pages[first + count].free : 0;
    if (after != 0)
        unlist_row(arena, first + count);
    if (before != 0)
        unlist_row(arena, first - before);
    list_row(arena, first - before, before + count + after);
}

/* Take in the pages that the file has got; those before `start` are in use. -1 without memory. */
static int add_pages(struct kvr_arena *arena, uint32_t start)
{
    uint32_t count = (uint32_t)(arena->length >> KVR_ARENA_PAGE_BITS), from = arena->page_count;
    if (count > arena->page_room) {
        uint32_t room = count + count / 2;
        struct kvr_page *pages = PyMem_Realloc(arena->pages, room * sizeof *pages);
        if (pages == NULL)
            return -1;
        arena->pages = pages;
        arena->page_room = room;
    }
    memset(arena->pages + from, 0, (count - from) * sizeof *arena->pages);
    arena->page_count = count;
    from = from > start ? from : start;
    if (count > from)
        free_row(arena, from, count - from);
    return 0;
}

/* A free row of at least so many pages; 0 if there is none. */
static uint32_t find_row(const struct kvr_arena *arena, uint32_t count)
{
    uint64_t longer = arena->listed >> list_for(count) << list_for(count);
    uint64_t exact = longer & ((UINT64_C(1) << (KVR_ARENA_LISTS - 1)) - 1);
    if (exact != 0)
        return arena->lists[kvr_lowest_bit(exact)];
    uint32_t row = arena->lists[KVR_ARENA_LISTS - 1];
    while (row != 0 && arena->pages[row].free < count)
        row = arena->pages[row].after;
    return row;
}

static int grow_for(struct kvr_arena *arena, size_t bytes)
{
    /* What is free at the end counts, but that is not worth a search. */
    size_t length = arena->length + (bytes + STEP_BYTES - 1) / STEP_BYTES * STEP_BYTES;
    length = length < arena->capacity ? length : arena->capacity;
    if (length == arena->length || grow(arena, length))
        return -1;
    return add_pages(arena, 0);
}

static uint8_t *take_pages(struct kvr_arena *arena, size_t wanted)
{
    if (wanted > arena->capacity >> KVR_ARENA_PAGE_BITS)
        return NULL;
    uint32_t count = (uint32_t)wanted, row = find_row(arena, count);
    if (row == 0 && (grow_for(arena, wanted << KVR_ARENA_PAGE_BITS) || (row = find_row(arena, count)) == 0))
        return NULL;
    uint32_t found = arena->pages[row].free;
    unlist_row(arena, row);
    if (found > count)
        list_row(arena, row + count, found - count);
    return arena->base + ((size_t)row << KVR_ARENA_PAGE_BITS);
}

/* -- blocks ------------------------------------------------------------------------------------------------------- */

/* The size of the small blocks that serve for `size`, and the number of their class. */
static size_t round_up(size_t size, uint32_t *size_class)
{
    size = size < KVR_ARENA_ALIGNMENT ? KVR_ARENA_ALIGNMENT : size;
    int highest = kvr_highest_bit((uint64_t)size);
    size_t step = highest < 7 ? KVR_ARENA_ALIGNMENT : (size_t)1 << (highest - 3);
    size_t rounded = (size + step - 1) & ~(step - 1);
    highest = kvr_highest_bit((uint64_t)rounded);
    *size_class = (uint32_t)highest * 8 + (uint32_t)(rounded >> (highest - 3) & 7);
    return rounded;
}

static int is_small(size_t size)
{
    return size <= SMALL_BYTES;
}

static uint8_t *take_small(struct kvr_arena *arena, size_t size)
{
    uint32_t size_class;
    size_t rounded = round_up(size, &size_class);
    uint8_t *block = arena->small[size_class];
    if (block != NULL) {
        memcpy(&arena->small[size_class], block, sizeof(void *));
        return block;
    }
    if (rounded > arena->chunk_left) {
        uint8_t *chunk = take_pages(arena, CHUNK_PAGES);
        if (chunk == NULL)
            return NULL;
        arena->chunk = chunk;
        arena->chunk_left = CHUNK_PAGES * PAGE_BYTES;
    }
    block = arena->chunk;
    arena->chunk += rounded;
    arena->chunk_left -= rounded;
    return block;
}

void *kvr_arena_take(struct kvr_arena *arena, size_t size)
{
    arena->changed = 1;
    return is_small(size) ? take_small(arena, size) : take_pages(arena, pages_for(size));
}

void kvr_arena_give(struct kvr_arena *arena, void *block, size_t size)
{
    arena->changed = 1;
    if (arena->spare_count == arena->spare_room) {
        size_t room = arena->spare_room ? 2 * arena->spare_room : 64;
        struct kvr_spare *spares = PyMem_Realloc(arena->spares, room * sizeof *spares);
        if (spares == NULL)
            return; /* It is lost until the index is closed. */
        arena->spares = spares;
        arena->spare_room = room;
    }
    struct kvr_spare spare = {block, size};
    arena->spares[arena->spare_count++] = spare;
}

/* Whether a block is as large as another one would be. */
static int is_as_large(size_t old_size, size_t size)
{
    uint32_t size_class;
    if (!is_small(old_size) || !is_small(size))
        return !is_small(old_size) && !is_small(size) && pages_for(old_size) == pages_for(size);
    return round_up(old_size, &size_class) == round_up(size, &size_class);
}

void *kvr_arena_retake(struct kvr_arena *arena, void *old, size_t old_size, size_t size)
{
    if (old != NULL && is_as_large(old_size, size)) {
        arena->changed = 1;
        return old;
    }
    void *block = kvr_arena_take(arena, size);
    if (block == NULL || old == NULL)
        return block;
    memcpy(block, old, old_size < size ? old_size : size);
    kvr_arena_give(arena, old, old_size);
    return block;
}

void kvr_arena_reuse(struct kvr_arena *arena)
{
    while (arena->spare_count > 0) {
        const struct kvr_spare *spare = &arena->spares[--arena->spare_count];
        if (is_small(spare->size)) {
            uint32_t size_class;
            (void)round_up(spare->size, &size_class);
            memcpy(spare->block, &arena->small[size_class], sizeof(void *));
            arena->small[size_class] = spare->block;
        } else {
            size_t offset = (size_t)((uint8_t *)spare->block - arena->base);
            free_row(arena, (uint32_t)(offset >> KVR_ARENA_PAGE_BITS), (uint32_t)pages_for(spare->size));
        }
    }
}
