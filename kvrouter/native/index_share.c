/* The writer's side of a shared index; `index_share.h` says how it works. */
#include "index_share.h"
#include "index_core.h"
#include "python_abi.h"
#include "xxh3.h"

#include <errno.h>

#ifdef _WIN32

void kvr_share_note(struct kvr_share *share) { (void)share; }
void kvr_share_end(struct kvr_share *share, uint32_t state) { (void)share, (void)state; }

struct kvr_share *kvr_share_open(struct kvr_index *index, int file, const char *path, size_t capacity)
{
    (void)index, (void)file, (void)path, (void)capacity;
    errno = ENOSYS;
    return NULL;
}

#else

#include <sys/stat.h>
#include <unistd.h>

static uint64_t address(const void *at)
{
    return (uint64_t)(uintptr_t)at;
}

static void note_tiers(struct kvr_share *share)
{
    struct kvr_shared *shared = share->shared;
    uint32_t count = shared->tier_count;
    for (; count < share->index->tier_count && count < KVR_SHARED_TIERS_MAX; count++) {
        const struct kvr_tier *tier = &share->index->tiers[count];
        shared->tier_lengths[count] = (uint8_t)tier->length;
        memcpy(shared->tier_names[count], tier->name, tier->length);
    }
    __atomic_store_n(&shared->tier_count, count, __ATOMIC_RELEASE);
}

void kvr_share_note(struct kvr_share *share)
{
    const struct kvr_index *index = share->index;
    struct kvr_root root = {
        .directory = address(index->table.directory),
        .set_pages = address(index->sets.pages),
        .stretch_pages = address(index->stretches.pages),
        .bits = index->table.bits,
        .set_pages_max = index->sets.pages_max,
        .stretch_pages_max = index->stretches.pages_max,
        .rank_words = index->rank_words,
    };
    struct kvr_arena *arena = &share->arena;
    arena->changed = 0;
    __atomic_store_n(&share->shared->length, (uint64_t)arena->length, __ATOMIC_RELEASE);
    if (arena->spare_count > 0 || memcmp(&root, &share->shared->root, sizeof root) != 0) {
        kvr_share_layout(share);
        share->shared->root = root;
        kvr_arena_reuse(arena);
    }
    note_tiers(share);
}

static void write_header(struct kvr_share *share, const struct kvr_index *index)
{
    struct kvr_shared *shared = share->shared;
    memcpy(shared->magic, KVR_SHARED_MAGIC, sizeof shared->magic);
    shared->version = KVR_SHARED_VERSION;
    shared->header_bytes = sizeof(struct kvr_shared);
    shared->slot_bytes = sizeof(struct kvr_slot);
    shared->set_bytes = sizeof(struct kvr_set);
    shared->page_bytes = sizeof(struct kvr_stretch_page);
    shared->word_bytes = sizeof(struct kvr_word);
    shared->base = address(share->arena.base);
    shared->capacity = share->arena.capacity;
    shared->secret = index->secret;
    shared->stretch_secret = kvr_mix(index->secret, ~index->secret);
    shared->process = (uint64_t)getpid();
    shared->checksum = kvr_shared_checksum(shared);
    shared->state = KVR_SHARED_LIVE;
}

struct kvr_share *kvr_share_open(struct kvr_index *index, int file, const char *path, size_t capacity)
{
    struct kvr_share *share = PyMem_Calloc(1, sizeof *share);
    char *copy = PyMem_Malloc(strlen(path) + 1);
    if (share == NULL || copy == NULL || kvr_arena_open(&share->arena, file, capacity, sizeof(struct kvr_shared))) {
        int error = share == NULL || copy == NULL ? ENOMEM : errno;
        PyMem_Free(copy);
        PyMem_Free(share);
        errno = error;
        return NULL;
    }
    memcpy(copy, path, strlen(path) + 1);
    share->path = copy;
    share->shared = (struct kvr_shared *)(void *)share->arena.base;
    share->index = index;
    write_header(share, index);
    share->arena.changed = 1;
    return share;
}

/* Remove the file, if it is still where it was. */
static void remove_file(const struct kvr_share *share)
{
    struct stat own, there;
    if (fstat(share->arena.file, &own) == 0 && lstat(share->path, &there) == 0 && own.st_dev == there.st_dev &&
        own.st_ino == there.st_ino)
        (void)unlink(share->path);
}

void kvr_share_end(struct kvr_share *share, uint32_t state)
{
    int file = share->arena.file;
    __atomic_store_n(&share->shared->state, state, __ATOMIC_RELEASE);
    if (state != KVR_SHARED_FROZEN)
        remove_file(share);
    kvr_arena_close(&share->arena);
    (void)close(file);
    PyMem_Free(share->path);
    PyMem_Free(share);
}

#endif

uint64_t kvr_shared_checksum(const struct kvr_shared *shared)
{
    return kvr_xxh3_64(shared, offsetof(struct kvr_shared, checksum), KVR_SHARED_VERSION);
}
