/* Takes and gives runs of pages at random beside a list of what there should be: built with AddressSanitizer and UBSan by
 * `test_pages.py`, together with the core's own file and without Python. The system's calls come here, so that they can
 * fail and are counted. Prints what was seen.
 */
#include "index_account.h"
#include "index_pages.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define HELD_MAX 600
#define STEPS 20000
#define CHUNK_BYTES (KVR_PAGE_BYTES * KVR_CHUNK_PAGES)

void *real_mmap(void *where, size_t size, int protection, int flags, int file, off_t at) __asm__("mmap");
int real_munmap(void *memory, size_t size) __asm__("munmap");

struct held {
    uint8_t *memory;
    size_t size;
    uint8_t stamp;
    int is_aligned;
};

static struct kvr_account account;
static struct kvr_pages pages;
static struct held held[HELD_MAX];
static size_t held_count, mapped, chunks_most, refusals;
static uint64_t state = 88172645463325252u;
static int may_fail;

static uint64_t draw(uint64_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % below;
}

static int fails(void)
{
    return may_fail && draw(3) == 0;
}

void *PyMem_Malloc(size_t size) { return fails() ? NULL : malloc(size ? size : 1); }
void *PyMem_Realloc(void *block, size_t size) { return fails() ? NULL : realloc(block, size ? size : 1); }
void PyMem_Free(void *block) { free(block); }

/* Only indexes that are shared have one. */
void *kvr_arena_take(struct kvr_arena *arena, size_t size) { (void)arena, (void)size; abort(); }
void *kvr_arena_retake(struct kvr_arena *arena, void *old, size_t old_size, size_t size)
{
    (void)arena, (void)old, (void)old_size, (void)size;
    abort();
}
void kvr_arena_give(struct kvr_arena *arena, void *memory, size_t size) { (void)arena, (void)memory, (void)size; abort(); }

void *chosen_mmap(void *where, size_t size, int protection, int flags, int file, off_t at)
{
    if (fails())
        return MAP_FAILED;
    mapped += size;
    return real_mmap(where, size, protection, flags, file, at);
}

int chosen_munmap(void *memory, size_t size)
{
    mapped -= size;
    return real_munmap(memory, size);
}

static void must(int is_right, const char *what)
{
    if (is_right)
        return;
    printf("wrong: %s\n", what);
    exit(1);
}

/* Sizes as segments have them, and some on either side of what lies in chunks. */
static size_t any_size(void)
{
    switch (draw(8)) {
    case 0:
        return 1 + draw(3 * KVR_PAGE_BYTES);
    case 1:
        return KVR_PAGE_BYTES * (1 + draw(20));
    case 2:
        return CHUNK_BYTES / 4 - 2 + draw(4);
    default:
        return 4096 + draw(64 * 1024);
    }
}

static void take(void)
{
    size_t size = any_size(), before = account.bytes, had = mapped;
    int is_aligned = draw(3) == 0;
    if (is_aligned)
        size = draw(2) ? KVR_PAGE_BYTES : 1 + draw(KVR_PAGE_BYTES);
    uint8_t *memory = is_aligned ? kvr_pages_take_aligned(&pages, &account.bytes, size)
                                 : kvr_pages_take(&pages, &account.bytes, size);
    must(!is_aligned || ((uintptr_t)memory & (KVR_PAGES_ALIGNMENT - 1)) == 0, "it is not aligned");
    if (memory == NULL) {
        refusals++;
        must(may_fail && account.bytes == before && mapped == had, "a refusal changed something");
        return;
    }
    struct held one = {memory, size, (uint8_t)(1 + draw(255)), is_aligned};
    memset(memory, one.stamp, size);
    held[held_count++] = one;
    must(account.bytes >= before + size, "the account knows too little");
    chunks_most = pages.count > chunks_most ? pages.count : chunks_most;
}

static void give(size_t at)
{
    struct held one = held[at];
    for (size_t byte = 0; byte < one.size; byte++)
        must(one.memory[byte] == one.stamp, "two have the same memory");
    if (one.is_aligned)
        kvr_pages_give_aligned(&pages, &account.bytes, one.memory, one.size);
    else
        kvr_pages_give(&pages, &account.bytes, one.memory, one.size);
    held[at] = held[--held_count];
}

/* How many runs are listed, each in the list for its length. */
static size_t check_lists(void)
{
    size_t count = 0;
    for (uint32_t list = 0; list < KVR_RUN_LISTS; list++) {
        uint32_t before = 0, run = pages.lists[list];
        while (run != 0) {
            const struct kvr_chunk *chunk = &pages.chunks[run / KVR_CHUNK_PAGES];
            uint32_t links[2], length = chunk->free[run % KVR_CHUNK_PAGES];
            memcpy(links, chunk->base + run % KVR_CHUNK_PAGES * sizeof links, sizeof links);
            must(length == list || (list == KVR_RUN_LISTS - 1 && length > list), "a run is in a wrong list");
            must(links[0] == before, "a run is linked wrongly");
            before = run;
            run = links[1];
            count++;
        }
    }
    return count;
}

static void check_chunks(void)
{
    size_t runs = 0;
    must(mapped == pages.count * CHUNK_BYTES, "more or less is mapped than chunks are");
    for (uint32_t number = 0; number < pages.count; number++) {
        const struct kvr_chunk *chunk = &pages.chunks[number];
        uint32_t used = 0, told, was_free = 0;
        for (uint32_t page = 1; page < KVR_CHUNK_PAGES;) {
            uint32_t length = chunk->free[page];
            must(length == 0 || (!was_free && chunk->free[page + length - 1] == length), "a free run is not whole");
            was_free = length != 0;
            runs += was_free;
            used += !was_free;
            page += length + !was_free;
        }
        memcpy(&told, chunk->base, sizeof told);
        must(told == number, "a chunk does not know its number");
        must(used == chunk->used && used > 0, "pages are counted wrongly, or none is used");
    }
    must(check_lists() == runs, "a free run would not be found");
}

/* Grow, shrink and grow again, as an index does whose ranks come and go. */
static void live(void)
{
    size_t wanted = HELD_MAX / 2;
    for (int step = 0; step < STEPS; step++) {
        if (step % 2000 == 0)
            wanted = draw(HELD_MAX);
        if (held_count == 0 || (held_count < HELD_MAX && draw(HELD_MAX) * 2 < wanted + HELD_MAX - held_count))
            take();
        else
            give(draw(held_count));
        if (step % 50 == 0)
            check_chunks();
    }
    while (held_count > 0)
        give(held_count - 1);
    check_chunks();
    must(account.bytes == 0 && mapped == 0 && pages.count == 0, "not all was given back");
}

int main(void)
{
    live();
    may_fail = 1;
    live();
    kvr_pages_close(&pages);
    printf("{\"chunks\": %zu, \"refusals\": %zu}\n", chunks_most, refusals);
    return 0;
}
