/* Reading what another process may be changing; `index_map.h` says how that can be right. */
#include "index_map.h"
#include "python_abi.h"

#define HEAD_BYTES 16 /* before the slots of a segment; the extent is in its second word */
#define FORWARDS_MAX 4096
/* Keys are scattered: no crowd is that large, whatever may be read. */
#define CROWD_MAX 16384
#define CONFIRMATIONS_MAX 16

#ifdef _WIN32

const char *kvr_map_open(struct kvr_map *map, int file)
{
    (void)file;
    memset(map, 0, sizeof *map);
    return "there is no sharing on this system";
}

static int remap(struct kvr_map *map)
{
    (void)map;
    return -1;
}

void kvr_map_close(struct kvr_map *map) { (void)map; }

#define LOAD(at) (*(at))
#define LOAD_FIRST(at) (*(at))
#define FENCE()
#define RACY

#else

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define LOAD(at) __atomic_load_n(at, __ATOMIC_RELAXED)
#define LOAD_FIRST(at) __atomic_load_n(at, __ATOMIC_ACQUIRE)
#define FENCE() __atomic_thread_fence(__ATOMIC_ACQUIRE)
/* What these functions read may be written meanwhile, on purpose: the thread sanitizer shall watch everything else. */
#if defined(__SANITIZE_THREAD__) && !defined(KVR_WATCH_ALL_READS)
#define RACY __attribute__((no_sanitize("thread"), noinline))
#else
#define RACY
#endif

/* -- the mapping -------------------------------------------------------------------------------------------------- */

/* Map as much as there may be soon. -1 if that cannot be. */
static int map_bytes(struct kvr_map *map, uint64_t length)
{
    uint64_t bytes = 2 * length;
    bytes = bytes < map->capacity ? bytes : map->capacity;
    void *base = mmap(NULL, (size_t)bytes, PROT_READ, MAP_SHARED, map->file, 0);
    if (base == MAP_FAILED)
        return -1;
    if (map->base != NULL)
        (void)munmap((void *)(uintptr_t)map->base, map->mapped);
    map->base = base;
    map->mapped = (size_t)bytes;
    map->shared = base;
    return 0;
}

static int remap(struct kvr_map *map)
{
    map->remaps++;
    return map_bytes(map, map->length);
}

static const char *check_header(const struct kvr_shared *shared)
{
    if (memcmp(shared->magic, KVR_SHARED_MAGIC, sizeof shared->magic) != 0)
        return "it is not a shared index";
    if (shared->version != KVR_SHARED_VERSION || shared->header_bytes != sizeof(struct kvr_shared) ||
        shared->slot_bytes != sizeof(struct kvr_slot) || shared->set_bytes != sizeof(struct kvr_set) ||
        shared->page_bytes != sizeof(struct kvr_stretch_page) || shared->word_bytes != sizeof(struct kvr_word))
        return "it is of another version";
    if (shared->checksum != kvr_shared_checksum(shared))
        return "it is damaged: its checksum does not match";
    return NULL;
}

const char *kvr_map_open(struct kvr_map *map, int file)
{
    struct stat status;
    memset(map, 0, sizeof *map);
    if (fstat(file, &status))
        return "it cannot be looked at";
    if (!S_ISREG(status.st_mode) || (uint64_t)status.st_size < sizeof(struct kvr_shared))
        return "it is too short for a shared index";
    map->file = file;
    map->capacity = sizeof(struct kvr_shared);
    if (map_bytes(map, sizeof(struct kvr_shared)))
        return "it cannot be mapped";
    const char *wrong = check_header(map->shared);
    uint64_t length = wrong == NULL ? LOAD_FIRST(&map->shared->length) : 0;
    /* The file may have grown since it was looked at; it never becomes shorter. */
    if (wrong == NULL && (fstat(file, &status) || length > (uint64_t)status.st_size || length > map->shared->capacity))
        wrong = "it is shorter than it says";
    if (wrong == NULL) {
        map->capacity = map->shared->capacity;
        map->writer_base = map->shared->base;
        map->secret = map->shared->secret;
        map->stretch_secret = map->shared->stretch_secret;
        if (map_bytes(map, length))
            wrong = "it cannot be mapped";
    }
    if (wrong != NULL) {
        (void)munmap((void *)(uintptr_t)map->base, map->mapped);
        memset(map, 0, sizeof *map);
    }
    return wrong;
}

void kvr_map_close(struct kvr_map *map)
{
    if (map->base != NULL) {
        (void)munmap((void *)(uintptr_t)map->base, map->mapped);
        (void)close(map->file);
    }
    PyMem_Free(map->seen);
    memset(map, 0, sizeof *map);
}

#endif

uint32_t kvr_map_state(const struct kvr_map *map)
{
    return LOAD_FIRST(&map->shared->state);
}

uint32_t kvr_map_tiers(const struct kvr_map *map)
{
    uint32_t count = LOAD_FIRST(&map->shared->tier_count);
    return count < KVR_SHARED_TIERS_MAX ? count : KVR_SHARED_TIERS_MAX;
}

const char *kvr_map_tier(const struct kvr_map *map, uint32_t tier, size_t *length)
{
    *length = map->shared->tier_lengths[tier];
    return map->shared->tier_names[tier];
}

/* -- reading ------------------------------------------------------------------------------------------------------ */

RACY static uint64_t load64(const void *at)
{
    return LOAD((const uint64_t *)at);
}

RACY static uint32_t load32(const void *at)
{
    return LOAD((const uint32_t *)at);
}

/* Where something of the writer's is here; NULL unless all of its bytes are in the file and it lies as it must. */
static const uint8_t *find(const struct kvr_map *map, uint64_t address, uint64_t bytes)
{
    uint64_t offset = address - map->writer_base;
    if (offset > map->length || bytes > map->length - offset || (offset & 7) != 0)
        return NULL;
    return map->base + offset;
}

/* A segment, as it stands in the directory. */
struct view {
    struct kvr_segment segment; /* its slots are here, NULL if there are none */
    uint64_t slots;             /* how many may be looked at */
};

/* The slots themselves are not looked at, only their head. -1 if the entry makes no sense. */
static int find_segment(const struct kvr_map *map, uint64_t key, struct view *view)
{
    if (map->root.bits > 40)
        return -1;
    uint64_t place = key >> 1 >> (63 - map->root.bits);
    const uint8_t *entry = find(map, map->root.directory + place * sizeof(struct kvr_segment),
                                sizeof(struct kvr_segment));
    if (entry == NULL)
        return -1;
    view->segment.slots = NULL;
    view->segment.capacity = load32(entry + offsetof(struct kvr_segment, capacity));
    view->segment.depth = load32(entry + offsetof(struct kvr_segment, depth));
    view->slots = 0;
    if (view->segment.depth > map->root.bits)
        return -1;
    if (view->segment.capacity == 0)
        return 0;
    uint64_t address = load64(entry + offsetof(struct kvr_segment, slots));
    const uint8_t *head = find(map, address - HEAD_BYTES, HEAD_BYTES + sizeof(struct kvr_slot));
    if (head == NULL)
        return -1;
    uint64_t offset = (uint64_t)(head - map->base) + HEAD_BYTES, room = (map->length - offset) / sizeof(struct kvr_slot);
    view->slots = load32(head + 4);
    view->slots = view->slots < room ? view->slots : room;
    view->segment.slots = (struct kvr_slot *)(uintptr_t)(head + HEAD_BYTES);
    return 0;
}

void kvr_map_ask(const struct kvr_map *map, uint64_t key)
{
    struct view view;
    if (find_segment(map, key, &view) == 0 && view.segment.slots != NULL)
        KVR_PREFETCH(view.segment.slots + kvr_segment_home(&view.segment, key)); /* It may be anywhere. */
}

/* Read the slot of a key in a segment. -1 if its end cannot be found. */
static int read_slot(const struct view *view, uint64_t key, uint64_t *outcome)
{
    *outcome = 0;
    if (view->segment.slots == NULL)
        return 0;
    uint64_t at = kvr_segment_home(&view->segment, key), stop = at + CROWD_MAX;
    for (stop = stop < view->slots ? stop : view->slots; at < stop; at++) {
        const struct kvr_slot *slot = view->segment.slots + at;
        uint64_t found = load64(&slot->key);
        if (found < key)
            continue;
        uint32_t value = load32(&slot->value);
        if (found == key && value != 0)
            *outcome = (uint64_t)value << 32 | load32(&slot->link);
        return 0;
    }
    return -1;
}

/* Read a stretch. -1 if it is nowhere. */
static int read_stretch(const struct kvr_map *map, kvr_link link, uint64_t *sum, uint32_t *present)
{
    uint32_t number = (link >> KVR_STRETCH_BITS) - 1, page = number >> KVR_STRETCHES_PER_PAGE_BITS;
    if (page >= map->root.stretch_pages_max)
        return -1;
    const uint8_t *entry = find(map, map->root.stretch_pages + (uint64_t)page * 8, 8);
    const uint8_t *at = entry == NULL ? NULL
                                      : find(map,
                                             load64(entry) + offsetof(struct kvr_stretch_page, all) +
                                                 (number & (KVR_STRETCHES_PER_PAGE - 1)) * sizeof(struct kvr_stretch),
                                             sizeof(struct kvr_stretch));
    if (at == NULL)
        return -1;
    *sum = load64(at + offsetof(struct kvr_stretch, sum));
    *present = load32(at + offsetof(struct kvr_stretch, present));
    return 0;
}

/* A set, by its number; NULL if it is nowhere. */
static const uint8_t *find_set(const struct kvr_map *map, uint32_t number)
{
    uint32_t page = number >> KVR_SETS_PER_PAGE_BITS;
    if (page >= map->root.set_pages_max)
        return NULL;
    const uint8_t *entry = find(map, map->root.set_pages + (uint64_t)page * 8, 8);
    if (entry == NULL)
        return NULL;
    return find(map, load64(entry) + (number & (KVR_SETS_PER_PAGE - 1)) * sizeof(struct kvr_set),
                sizeof(struct kvr_set));
}

/* The live set that a number means; NULL for the empty one. -1 if it is nowhere. */
static int resolve(const struct kvr_map *map, uint32_t number, const uint8_t **live)
{
    for (int steps = 0; number != 0 && steps < FORWARDS_MAX; steps++) {
        *live = find_set(map, number);
        if (*live == NULL)
            return -1;
        uint32_t target = load32(*live + offsetof(struct kvr_set, target));
        if (target == number)
            return 0;
        number = target;
    }
    *live = NULL;
    return number == 0 ? 0 : -1;
}

/* The hash of a set, which is that of its holders. */
static int read_set(const struct kvr_map *map, uint32_t number, uint64_t *hash)
{
    const uint8_t *live;
    if (resolve(map, number, &live))
        return -1;
    *hash = live == NULL ? 0 : load64(live + offsetof(struct kvr_set, hash));
    return 0;
}

/* -- versions ----------------------------------------------------------------------------------------------------- */

static const uint32_t *version_of(const struct kvr_map *map, const struct kvr_seen *seen)
{
    return (seen->part == KVR_PART_STRETCH ? map->shared->stretches : map->shared->segments) + seen->stripe;
}

/* Look at a part, and at its version before. -1 if it is being changed, or makes no sense. */
static int look(const struct kvr_map *map, struct kvr_seen *seen)
{
    seen->present = seen->stripe = seen->version = 0;
    if (seen->part == KVR_PART_SET)
        return read_set(map, (uint32_t)seen->key, &seen->outcome);
    if (seen->part == KVR_PART_STRETCH) {
        seen->stripe = kvr_stripe_of_stretch((uint32_t)seen->key >> KVR_STRETCH_BITS);
        seen->version = LOAD_FIRST(version_of(map, seen));
        return seen->version & 1 ? -1 : read_stretch(map, (kvr_link)seen->key, &seen->outcome, &seen->present);
    }
    struct view view;
    if (find_segment(map, seen->key, &view))
        return -1;
    seen->stripe = kvr_stripe_of_segment(seen->key, view.segment.depth);
    seen->version = LOAD_FIRST(version_of(map, seen));
    return seen->version & 1 ? -1 : read_slot(&view, seen->key, &seen->outcome);
}

static struct kvr_seen *note(struct kvr_map *map)
{
    if (map->seen_count == map->seen_room) {
        size_t room = map->seen_room ? 2 * map->seen_room : 256;
        struct kvr_seen *seen = PyMem_Realloc(map->seen, room * sizeof *seen);
        if (seen == NULL)
            return NULL;
        map->seen = seen;
        map->seen_room = room;
    }
    return &map->seen[map->seen_count];
}

static int see(struct kvr_map *map, uint64_t key, enum kvr_part part)
{
    struct kvr_seen *seen = note(map);
    if (seen == NULL)
        return -1;
    seen->key = key;
    seen->part = part;
    if (look(map, seen))
        return -1;
    map->seen_count++;
    return 0;
}

int kvr_map_begin(struct kvr_map *map)
{
    map->seen_count = 0;
    map->layout = LOAD_FIRST(&map->shared->layout);
    if (map->layout & 1)
        return 0;
    const struct kvr_root *root = &map->shared->root;
    map->root.directory = load64(&root->directory);
    map->root.set_pages = load64(&root->set_pages);
    map->root.stretch_pages = load64(&root->stretch_pages);
    map->root.bits = load32(&root->bits);
    map->root.set_pages_max = load32(&root->set_pages_max);
    map->root.stretch_pages_max = load32(&root->stretch_pages_max);
    map->root.rank_words = load32(&root->rank_words);
    map->length = LOAD_FIRST(&map->shared->length);
    if (map->length > map->capacity || map->root.rank_words > KVR_RANK_WORDS_MAX)
        return 0;
    return map->length <= map->mapped || remap(map) == 0;
}

int kvr_map_confirm(struct kvr_map *map)
{
    for (int round = 0; round < CONFIRMATIONS_MAX; round++) {
        int is_same = 1;
        FENCE();
        if (LOAD(&map->shared->layout) != map->layout)
            return 0;
        for (size_t at = 0; at < map->seen_count; at++) {
            struct kvr_seen *seen = &map->seen[at], again = *seen;
            if (seen->part == KVR_PART_SET ? is_same : LOAD(version_of(map, seen)) == seen->version)
                continue;
            is_same = 0;
            if (look(map, &again) || again.outcome != seen->outcome || again.present != seen->present)
                return 0;
            *seen = again;
        }
        if (is_same)
            return 1;
    }
    return 0;
}

/* -- what is asked ------------------------------------------------------------------------------------------------ */

int kvr_map_slot(struct kvr_map *map, uint64_t key, uint64_t *outcome)
{
    if (see(map, key, KVR_PART_SLOT))
        return -1;
    *outcome = map->seen[map->seen_count - 1].outcome;
    return 0;
}

int kvr_map_alike(struct kvr_map *map, kvr_link link, uint64_t mark, uint32_t *alike)
{
    if (see(map, link, KVR_PART_STRETCH))
        return -1;
    const struct kvr_seen *seen = &map->seen[map->seen_count - 1];
    uint32_t position = link & (KVR_STRETCH_BLOCKS - 1);
    *alike = 1;
    if (seen->outcome == mark * (uint64_t)kvr_count_bits(seen->present)) {
        uint64_t gaps = ~((uint64_t)seen->present << (63 - position));
        *alike = gaps == 0 ? position + 1 : 63 - (uint32_t)kvr_highest_bit(gaps);
    }
    return *alike > 0 && *alike <= position + 1 ? 0 : -1;
}

int kvr_map_ranks(struct kvr_map *map, uint32_t named, const uint8_t *selected, uint64_t *ranks)
{
    uint32_t rank_words = map->root.rank_words, tiers = kvr_map_tiers(map);
    const uint8_t *set;
    memset(ranks, 0, rank_words * sizeof *ranks);
    if (named == 0)
        return 0;
    if (see(map, named, KVR_PART_SET) || resolve(map, named, &set))
        return -1;
    if (set == NULL)
        return 0;
    uint32_t words = load32(set + offsetof(struct kvr_set, words));
    const uint8_t *row = set + offsetof(struct kvr_set, row);
    if (words > rank_words * tiers)
        return -1;
    if (load32(set + offsetof(struct kvr_set, allocated)) != 0)
        row = find(map, load64(row), words * sizeof(struct kvr_word));
    else if (words > 1)
        return -1;
    int any = 0;
    for (uint32_t at = 0; row != NULL && at < words; at++, row += sizeof(struct kvr_word)) {
        uint32_t word = load32(row + offsetof(struct kvr_word, word));
        uint32_t tier = load32(row + offsetof(struct kvr_word, tier));
        uint64_t bits = load64(row + offsetof(struct kvr_word, bits));
        if (word >= rank_words || tier >= tiers)
            return -1;
        if (selected == NULL || selected[tier]) {
            ranks[word] |= bits;
            any |= bits != 0;
        }
    }
    return row == NULL ? -1 : any;
}
