/* Walking along a prompt in a mapped index, as `index_match.c` does in one's own; any step may find that what it looks at
 * is being changed. */
#include "index_map.h"

#define FIRST_BLOCKS 8
/* Stretches whose last blocks are asked for together. */
#define WINDOW 16

struct walk {
    struct kvr_map *map;
    const struct kvr_keys *keys;
    const uint8_t *selected;
    struct kvr_reaches *reaches;
    uint64_t alive[KVR_RANK_WORDS_MAX];
    uint32_t named; /* by the slot of the last block */
    uint64_t mark;  /* of that set */
};

/* How a step ends. */
enum step {
    GOES_ON = 1,
    NOBODY_LEFT = 0,
    HASHES_UNREADABLE = -1,
    DISTURBED = -2,
};

/* From `depth` on, blocks have slots that name this set. */
static enum step meet(struct walk *walk, uint32_t named, size_t depth)
{
    struct kvr_reaches *reaches = walk->reaches;
    uint64_t holders[KVR_RANK_WORDS_MAX], any = 0;
    if (named == walk->named)
        return GOES_ON;
    walk->named = named;
    walk->mark = kvr_mix(named, walk->map->stretch_secret);
    if (kvr_map_ranks(walk->map, named, walk->selected, holders) < 0)
        return DISTURBED;
    for (uint32_t word = 0; word < reaches->words; word++) {
        if (depth == 0)
            walk->alive[word] = holders[word];
        uint64_t lost = walk->alive[word] & ~holders[word];
        if (lost)
            kvr_reaches_note(reaches, word, lost, depth);
        walk->alive[word] ^= lost;
        any |= walk->alive[word];
    }
    return any ? GOES_ON : NOBODY_LEFT;
}

static int key_at(const struct walk *walk, size_t position, uint64_t *key)
{
    uint64_t room;
    const uint64_t *hash = kvr_keys_at(walk->keys, position, 1, &room);
    if (hash == NULL)
        return -1;
    *key = kvr_mix(*hash, walk->map->secret);
    return 0;
}

/* Block by block. */
static enum step step(struct walk *walk, size_t from, size_t stop)
{
    uint64_t keys[FIRST_BLOCKS];
    for (size_t first = from; first < stop; first += FIRST_BLOCKS) {
        size_t count = stop - first < FIRST_BLOCKS ? stop - first : FIRST_BLOCKS;
        for (size_t at = 0; at < count; at++) {
            if (key_at(walk, first + at, &keys[at]))
                return HASHES_UNREADABLE;
            kvr_map_ask(walk->map, keys[at]);
        }
        for (size_t at = 0; at < count; at++) {
            uint64_t slot;
            if (kvr_map_slot(walk->map, keys[at], &slot))
                return DISTURBED;
            enum step met = meet(walk, (uint32_t)(slot >> 32), first + at);
            if (met != GOES_ON)
                return met;
        }
    }
    return GOES_ON;
}

/* Blocks from..last, at most as many as a stretch has, of which the last one has this slot: backwards, as long as
 * stretches tell of several blocks at once; what they leave is walked through. */
static enum step stride(struct walk *walk, size_t from, size_t last, uint64_t slot)
{
    struct {
        size_t from;
        uint32_t named;
    } runs[KVR_STRETCH_BLOCKS];
    size_t stop = last + 1;
    int count = 0;
    while ((uint32_t)slot != KVR_LOOSE_BLOCK) {
        uint32_t named = (uint32_t)(slot >> 32), alike;
        uint64_t mark = named == walk->named ? walk->mark : kvr_mix(named, walk->map->stretch_secret), key;
        if (kvr_map_alike(walk->map, (kvr_link)slot, mark, &alike))
            return DISTURBED;
        if (alike == 1 && stop - from > 1)
            break;
        stop = alike < stop - from ? stop - alike : from;
        runs[count].from = stop;
        runs[count++].named = named;
        if (stop == from)
            break;
        if (key_at(walk, stop - 1, &key))
            return HASHES_UNREADABLE;
        if (kvr_map_slot(walk->map, key, &slot))
            return DISTURBED;
    }
    enum step met = stop > from ? step(walk, from, stop) : GOES_ON;
    while (met == GOES_ON && count-- > 0)
        met = meet(walk, runs[count].named, runs[count].from);
    return met;
}

static size_t last_of_stretch(size_t position, size_t count)
{
    size_t last = position | (KVR_STRETCH_BLOCKS - 1);
    return last < count ? last : count - 1;
}

/* Some stretches, whose last blocks are asked for first. */
static enum step pass_window(struct walk *walk, size_t *from, size_t most)
{
    uint64_t keys[WINDOW];
    size_t total = walk->keys->count, next = *from, count = 0;
    for (; count < most && next < total; count++) {
        size_t last = last_of_stretch(next, total);
        if (key_at(walk, last, &keys[count]))
            return HASHES_UNREADABLE;
        kvr_map_ask(walk->map, keys[count]);
        next = last + 1;
    }
    for (size_t at = 0; at < count; at++) {
        size_t last = last_of_stretch(*from, total);
        uint64_t slot;
        if (kvr_map_slot(walk->map, keys[at], &slot))
            return DISTURBED;
        enum step met = stride(walk, *from, last, slot);
        if (met != GOES_ON)
            return met;
        *from = last + 1;
    }
    return GOES_ON;
}

static enum step walk_along(struct walk *walk)
{
    size_t total = walk->keys->count, from = total < FIRST_BLOCKS ? total : FIRST_BLOCKS, most = 1;
    walk->reaches->words = walk->map->root.rank_words;
    walk->reaches->count = 0;
    memset(walk->alive, 0, walk->reaches->words * sizeof *walk->alive);
    enum step met = step(walk, 0, from);
    while (met == GOES_ON && from < total) {
        met = pass_window(walk, &from, most);
        most = 2 * most < WINDOW ? 2 * most : WINDOW;
    }
    for (uint32_t word = 0; met == GOES_ON && word < walk->reaches->words; word++)
        if (walk->alive[word])
            kvr_reaches_note(walk->reaches, word, walk->alive[word], total);
    return met;
}

enum kvr_outcome kvr_map_match(struct kvr_map *map, const struct kvr_keys *keys, const uint8_t *selected,
                               struct kvr_reaches *reaches, uint32_t attempts)
{
    for (uint32_t attempt = 0; attempt < attempts; attempt++) {
        if (attempt > 0)
            map->retries++;
        if (!kvr_map_begin(map))
            continue;
        struct walk walk;
        walk.map = map;
        walk.keys = keys;
        walk.selected = selected;
        walk.reaches = reaches;
        walk.named = UINT32_MAX;
        walk.mark = 0;
        enum step met = walk_along(&walk);
        if (met == HASHES_UNREADABLE)
            return KVR_UNREADABLE;
        if (met != DISTURBED && kvr_map_confirm(map))
            return KVR_MATCHED;
    }
    return KVR_MAP_BUSY;
}
