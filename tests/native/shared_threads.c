/* One thread changes a shared index, others match in it at the same addresses, as processes would at others: built with
 * ThreadSanitizer by `test_shared_threads.py`, together with the core's own files and without Python.
 *
 * At any moment one of two ranks holds the whole of each prompt, and a third one its first half. Prints what was found.
 */
#include "index_core.h"
#include "index_map.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define PROMPTS 12
#define LONGEST 150
#define READERS 2
#define HALF 300
#define ROUNDS 8
#define MATCHES_LEAST 100

void *PyMem_Malloc(size_t size) { return malloc(size ? size : 1); }
void *PyMem_Calloc(size_t count, size_t size) { return calloc(count ? count : 1, size ? size : 1); }
void *PyMem_Realloc(void *block, size_t size) { return realloc(block, size ? size : 1); }
void PyMem_Free(void *block) { free(block); }

const uint64_t *kvr_keys_read(const struct kvr_keys *keys, size_t start, size_t count, uint64_t *room)
{
    (void)count, (void)room;
    return keys->array + start;
}

static struct kvr_index shared_index;
static uint64_t prompts[PROMPTS][LONGEST];
static int is_done;
static size_t matches[READERS];

static uint64_t draw(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    return *state ^= *state << 17;
}

static size_t length_of(int prompt)
{
    return (size_t)(5 + prompt * (LONGEST - 5) / (PROMPTS - 1));
}

static void must(int failed)
{
    if (failed) {
        fprintf(stderr, "no memory\n");
        exit(2);
    }
}

static void hand_over(int prompt, int turn, uint32_t tier, uint64_t *state)
{
    uint32_t to = (uint32_t)(2 * prompt + turn % 2), from = (uint32_t)(2 * prompt + (turn + 1) % 2);
    uint32_t guest = 100 + (uint32_t)(draw(state) % 4);
    size_t length = length_of(prompt);
    must(kvr_index_store_chain(&shared_index, to, NULL, prompts[prompt], length, tier, NULL));
    must(kvr_index_store(&shared_index, guest, prompts[prompt], draw(state) % (length + 1), tier));
    must(kvr_index_remove(&shared_index, from, prompts[prompt], length, tier));
    if (draw(state) % 3 == 0)
        kvr_index_clear(&shared_index, guest, tier);
}

static int have_all_matched(void)
{
    for (int at = 0; at < READERS; at++)
        if (__atomic_load_n(&matches[at], __ATOMIC_RELAXED) < MATCHES_LEAST)
            return 0;
    return 1;
}

static void *write_all(void *argument)
{
    uint32_t tier = *(uint32_t *)argument;
    uint64_t state = 88172645463325252u, crowd[200];
    for (int turn = 1; turn <= ROUNDS || !have_all_matched(); turn++) {
        for (int prompt = 0; prompt < PROMPTS; prompt++)
            hand_over(prompt, turn, tier, &state);
        for (int at = 0; at < 200; at++)
            crowd[at] = draw(&state);
        must(kvr_index_store(&shared_index, 200 + (uint32_t)(turn % 9), crowd, 200, tier));
        if (turn % 5 == 0)
            kvr_index_clear(&shared_index, 200 + (uint32_t)(turn % 9), tier);
        (void)sched_yield();
    }
    __atomic_store_n(&is_done, 1, __ATOMIC_RELEASE);
    return NULL;
}

struct reader {
    int file, number;
    size_t matched, busy, wrong;
};

static uint32_t depth_of(const struct kvr_overlap *overlap, uint32_t rank)
{
    if (rank / 64 >= overlap->words || !(overlap->ranks[rank / 64] >> rank % 64 & 1))
        return 0;
    return overlap->depths[rank];
}

static int is_right(const struct kvr_overlap *overlap, int prompt)
{
    size_t length = length_of(prompt);
    uint32_t first = depth_of(overlap, (uint32_t)(2 * prompt)), second = depth_of(overlap, (uint32_t)(2 * prompt + 1));
    return (first == length || second == length) && depth_of(overlap, HALF) == length / 2;
}

static void *read_all(void *argument)
{
    struct reader *reader = argument;
    struct kvr_map map;
    struct kvr_overlap overlap;
    struct kvr_reaches reaches;
    if (kvr_map_open(&map, dup(reader->file)) != NULL)
        exit(3);
    /* The sanitizer goes by addresses: take the writer's. */
    const struct kvr_share *share = shared_index.share;
    (void)munmap((void *)(uintptr_t)map.base, map.mapped);
    map.base = share->arena.base;
    map.shared = share->shared;
    map.mapped = share->arena.capacity;
    for (int prompt = 0; !__atomic_load_n(&is_done, __ATOMIC_ACQUIRE); prompt = (prompt + 5) % PROMPTS) {
        struct kvr_keys keys = {.count = length_of(prompt), .array = prompts[prompt]};
        if (kvr_map_match(&map, &keys, NULL, &reaches, 1000) != KVR_MATCHED) {
            reader->busy++;
            continue;
        }
        kvr_reaches_spread(reaches.all, reaches.count, reaches.words, &overlap);
        if (is_right(&overlap, prompt))
            __atomic_store_n(&matches[reader->number], ++reader->matched, __ATOMIC_RELAXED);
        else
            reader->wrong++;
    }
    map.base = NULL; /* It is not ours. */
    (void)close(map.file);
    kvr_map_close(&map);
    return NULL;
}

int main(int count, char **arguments)
{
    char path[4096];
    struct reader readers[READERS];
    pthread_t writer, threads[READERS];
    if (count != 2 || snprintf(path, sizeof path, "%s", arguments[1]) >= (int)sizeof path)
        return 4;
    int file = mkstemp(path);
    must(file < 0 || kvr_index_open(&shared_index, 77) || kvr_index_share(&shared_index, file, path, 256 << 20));
    uint32_t tier = (uint32_t)kvr_index_add_tier(&shared_index, "gpu", 3);
    uint64_t state = 3;
    for (int prompt = 0; prompt < PROMPTS; prompt++) {
        for (int at = 0; at < LONGEST; at++)
            prompts[prompt][at] = draw(&state);
        must(kvr_index_store_chain(&shared_index, HALF, NULL, prompts[prompt], length_of(prompt) / 2,
                                   tier, NULL));
        must(kvr_index_store_chain(&shared_index, (uint32_t)(2 * prompt), NULL, prompts[prompt], length_of(prompt),
                                   tier, NULL));
    }
    memset(readers, 0, sizeof readers);
    for (int at = 0; at < READERS; at++) {
        readers[at].file = file;
        readers[at].number = at;
        must(pthread_create(&threads[at], NULL, read_all, &readers[at]));
    }
    must(pthread_create(&writer, NULL, write_all, &tier));
    (void)pthread_join(writer, NULL);
    for (int at = 0; at < READERS; at++) {
        (void)pthread_join(threads[at], NULL);
        printf("{\"matched\": %zu, \"busy\": %zu, \"wrong\": %zu}\n", readers[at].matched, readers[at].busy,
               readers[at].wrong);
    }
    kvr_index_close(&shared_index);
    return 0;
}
