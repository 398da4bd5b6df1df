/* Blocks of a mapped file; `index_arena.h` says what for. */
#include "index_arena.h"
#include "memory.h"
#include "python_abi.h"

#include <errno.h>

/* The file grows by so much; allocating it takes a fraction of a millisecond. */
#define STEP_BYTES ((size_t)1 << 20)

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
    arena->capacity = capacity;
    arena->used = (start + KVR_ARENA_ALIGNMENT - 1) & ~(KVR_ARENA_ALIGNMENT - 1);
    if (capacity < STEP_BYTES || arena->used > STEP_BYTES) {
        errno = EINVAL;
        return -1;
    }
    if (grow(arena, STEP_BYTES))
        return -1;
    void *base = mmap(NULL, capacity, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (base == MAP_FAILED)
        return -1;
    arena->base = base;
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
    memset(arena, 0, sizeof *arena);
}

/* The size of the blocks that serve for `size`, and the number of their class. */
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

void *kvr_arena_take(struct kvr_arena *arena, size_t size)
{
    uint32_t size_class;
    if (size > arena->capacity)
        return NULL;
    size_t rounded = round_up(size, &size_class);
    arena->changed = 1;
    uint8_t *block = arena->free[size_class];
    if (block != NULL) {
        memcpy(&arena->free[size_class], block, sizeof(void *));
        return block;
    }
    if (rounded > arena->capacity - arena->used)
        return NULL;
    size_t end = arena->used + rounded;
    if (end > arena->length) {
        size_t length = (end + STEP_BYTES - 1) / STEP_BYTES * STEP_BYTES;
        if (grow(arena, length < arena->capacity ? length : arena->capacity))
            return NULL;
    }
    block = arena->base + arena->used;
    arena->used = end;
    return block;
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
    struct kvr_spare *spare = &arena->spares[arena->spare_count++];
    spare->block = block;
    (void)round_up(size, &spare->size_class);
}

void *kvr_arena_retake(struct kvr_arena *arena, void *old, size_t old_size, size_t size)
{
    uint32_t old_class, size_class;
    if (old != NULL && round_up(old_size, &old_class) == round_up(size, &size_class)) {
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
        memcpy(spare->block, &arena->free[spare->size_class], sizeof(void *));
        arena->free[spare->size_class] = spare->block;
    }
}
