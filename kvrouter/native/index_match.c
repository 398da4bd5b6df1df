/* Walking along a prompt, or bisecting it; `index_match.h` says what is found. */
#include "index_match.h"

/* Looked at one by one: most prompts that are nowhere end with their first block. */
#define FIRST_BLOCKS 8
/* Asked for together where a walk goes block by block. */
#define STEP_BLOCKS 8
/* Where it has done so for a stretch already: how far ahead of its turn a block's line is asked for, and how far ahead
 * it is looked whether the search will end there or in the line behind. */
#define STEADY_BLOCKS 48
#define SETTLED_BLOCKS 24
#define PROBES 128
/* Stretches whose last blocks are asked for together. Three such windows are under way at a time: the slots of one are
 * asked for, those of another are looked at and their stretches asked for, and the third is passed. */
#define WINDOW_MAX 32
/* Stretches whose hashes are asked for at once: a prompt's hashes may have been made some time ago. */
#define FIRST_HASHES 4
#define WINDOWS 3

struct match {
    const struct kvr_index *index;
    const struct kvr_keys *keys;
    const uint8_t *selected;
    struct kvr_reaches *reaches; /* of a walk */
    uint32_t words;
};

/* -- sets of ranks ------------------------------------------------------------------------------------------------ */

/* The ranks of a live set, over the selected tiers; returns whether there are any. */
static int spread_out(const struct match *match, uint32_t number, uint64_t *ranks)
{
    memset(ranks, 0, match->words * sizeof *ranks);
    if (number == 0)
        return 0;
    int any = 0;
    const struct kvr_set *set = kvr_sets_at(&match->index->sets, number);
    const struct kvr_word *row = kvr_set_words(set);
    for (uint32_t at = 0; at < set->words; at++) {
        if (match->selected == NULL || match->selected[row[at].tier]) {
            ranks[row[at].word] |= row[at].bits;
            any = 1;
        }
    }
    return any;
}

/* Keep those that also hold the block at `depth`; returns whether any are left. */
static int keep(const struct match *match, uint64_t *alive, uint32_t number, size_t depth)
{
    uint64_t holders[KVR_RANK_WORDS_MAX];
    uint64_t any = 0;
    (void)spread_out(match, number, holders);
    for (uint32_t word = 0; word < match->words; word++) {
        uint64_t lost = alive[word] & ~holders[word];
        if (lost) {
            kvr_reaches_note(match->reaches, word, lost, depth);
            alive[word] ^= lost;
        }
        any |= alive[word];
    }
    return any != 0;
}

/* -- the walk ----------------------------------------------------------------------------------------------------- */

struct probe {
    uint64_t key;
    struct kvr_slot *slot;
};

/* What the walk along a prompt knows so far. */
struct walk {
    const struct match *match;
    uint64_t *alive;
    uint32_t named; /* by the slot of the last block */
    uint64_t mark;  /* of that set */
    size_t stepped; /* The last blocks before this one were passed one by one. */
    size_t asked;   /* before this one blocks were asked for, as far as they are still ahead */
    size_t settled; /* and their searches begin in the right line */
    struct probe probes[PROBES];
};

/* Ask for the slot of a block; -1 if its hash cannot be read. */
KVR_INLINE int ask(const struct match *match, size_t position, struct probe *probe)
{
    uint64_t room;
    const uint64_t *hash = kvr_keys_at(match->keys, position, 1, &room);
    if (hash == NULL)
        return -1;
    probe->key = kvr_index_key(match->index, *hash);
    probe->slot = kvr_table_home(&match->index->table, probe->key);
    KVR_PREFETCH(probe->slot);
    return 0;
}

/* The slot of a block, or NULL where it has none. */
KVR_INLINE const struct kvr_slot *look(const struct probe *probe)
{
    const struct kvr_slot *slot = kvr_slot_seek(probe->slot, probe->key);
    return kvr_slot_has(slot, probe->key) ? slot : NULL;
}

/* What the slot of a block names if it is one of the next four, otherwise 0. Nothing here could be guessed wrong. */
KVR_INLINE uint32_t named_nearby(const struct probe *probe)
{
    const struct kvr_slot *slot = probe->slot;
    uint64_t key = probe->key;
    return (slot[0].value & -(uint32_t)(slot[0].key == key)) | (slot[1].value & -(uint32_t)(slot[1].key == key)) |
           (slot[2].value & -(uint32_t)(slot[2].key == key)) | (slot[3].value & -(uint32_t)(slot[3].key == key));
}

/* From `depth` on, blocks have slots that name another set than those before. 1 if some ranks go on, 0 if none does. */
static int turn(struct walk *walk, uint32_t named, size_t depth)
{
    const struct match *match = walk->match;
    walk->named = named;
    walk->mark = kvr_stretches_mark(&match->index->stretches, named);
    uint32_t set = kvr_sets_resolve(&match->index->sets, named);
    return depth > 0 ? keep(match, walk->alive, set, depth) : spread_out(match, set, walk->alive);
}

/* From `depth` on, blocks have slots that name this set. As turn. */
KVR_INLINE int meet(struct walk *walk, uint32_t named, size_t depth)
{
    return named == walk->named ? 1 : turn(walk, named, depth);
}

static struct probe *probe_of(struct walk *walk, size_t position)
{
    return &walk->probes[position % PROBES];
}

/* Ask for blocks before `stop`; -1 if a hash cannot be read. */
static int ask_until(struct walk *walk, size_t stop)
{
    stop = stop < walk->match->keys->count ? stop : walk->match->keys->count;
    for (; walk->asked < stop; walk->asked++)
        if (ask(walk->match, walk->asked, probe_of(walk, walk->asked)))
            return -1;
    return 0;
}

/* Blocks that were asked for some time ago: where the search for one goes on in the line behind, begin it there, and ask
 * for that. */
static void settle(struct walk *walk, size_t stop)
{
    stop = stop < walk->asked ? stop : walk->asked;
    for (; walk->settled < stop; walk->settled++) {
        struct probe *probe = probe_of(walk, walk->settled);
        probe->slot += probe->slot[KVR_HOME_SLOTS - 1].key < probe->key ? KVR_HOME_SLOTS : 0;
        KVR_PREFETCH(probe->slot);
    }
}

/* Blocks that were asked for. 1 if some ranks go on, 0 if none does. */
static int pass(struct walk *walk, size_t from, size_t stop)
{
    for (size_t at = from; at < stop; at++) {
        const struct probe *probe = probe_of(walk, at);
        if (named_nearby(probe) == walk->named)
            continue;
        const struct kvr_slot *slot = look(probe);
        if (!meet(walk, slot ? slot->value : 0, at))
            return 0;
    }
    return 1;
}

/* Block by block, at most as many as a stretch has. 1 if some ranks go on, 0 if none does, -1 if a hash cannot be
 * read. */
static int step(struct walk *walk, size_t from, size_t stop)
{
    int is_steady = from > 0 && walk->stepped == from && from % KVR_STRETCH_BLOCKS == 0, goes_on = 1;
    walk->stepped = stop;
    walk->asked = walk->asked < from ? from : walk->asked;
    walk->settled = walk->settled < from ? from : walk->settled;
    for (size_t at = from; goes_on == 1 && at < stop; at += STEP_BLOCKS) {
        size_t next = at + STEP_BLOCKS < stop ? at + STEP_BLOCKS : stop;
        /* At first those that are looked at, and as many ahead: what ends soon shall not have cost much. */
        size_t ahead = at > from ? next + STEP_BLOCKS : next;
        if (ask_until(walk, is_steady ? next + STEADY_BLOCKS : ahead < stop ? ahead : stop))
            return -1;
        if (is_steady)
            settle(walk, next + SETTLED_BLOCKS);
        goes_on = pass(walk, at, next);
    }
    return goes_on;
}

/* Blocks from..last, at most as many as a stretch has, of which the last one's slot was found. Backwards, as long as
 * stretches tell of several blocks at once; what they leave is walked through. As step. */
static int stride(struct walk *walk, size_t from, size_t last, const struct kvr_slot *slot)
{
    struct {
        size_t from;
        uint32_t named;
    } runs[KVR_STRETCH_BLOCKS];
    const struct kvr_stretches *stretches = &walk->match->index->stretches;
    size_t stop = last + 1;
    int count = 0;
    while (slot != NULL && slot->link != KVR_LOOSE_BLOCK) {
        uint64_t mark = slot->value == walk->named ? walk->mark : kvr_stretches_mark(stretches, slot->value);
        uint32_t alike = kvr_stretches_alike(stretches, slot->link, mark);
        if (alike == 1 && stop - from > 1)
            break;
        stop = alike < stop - from ? stop - alike : from;
        runs[count].from = stop;
        runs[count++].named = slot->value;
        if (stop == from)
            break;
        struct probe probe;
        if (ask(walk->match, stop - 1, &probe))
            return -1;
        slot = look(&probe);
    }
    int goes_on = stop > from ? step(walk, from, stop) : 1;
    while (goes_on == 1 && count-- > 0)
        goes_on = meet(walk, runs[count].named, runs[count].from);
    return goes_on;
}

/* The last blocks of some stretches of the prompt. */
struct window {
    size_t from, stop; /* the blocks that these stretches are about */
    size_t count;
    struct probe probes[WINDOW_MAX];
    const struct kvr_slot *slots[WINDOW_MAX];
};

static size_t last_of_stretch(size_t position, size_t count)
{
    size_t last = position | (KVR_STRETCH_BLOCKS - 1);
    return last < count ? last : count - 1;
}

/* Ask for the hashes by which the next `most` stretches will be asked for. */
static void ask_hashes(const struct match *match, size_t from, size_t most)
{
    const uint64_t *hashes = match->keys->array;
    for (size_t at = from | (KVR_STRETCH_BLOCKS - 1); hashes != NULL && most-- > 0 && at < match->keys->count;
         at += KVR_STRETCH_BLOCKS)
        KVR_PREFETCH(hashes + at);
}

/* Ask for the slots of up to `most` of them. -1 if a hash cannot be read. */
static int ask_window(const struct match *match, size_t from, size_t most, struct window *window)
{
    size_t total = match->keys->count;
    window->from = window->stop = from;
    ask_hashes(match, from + most * KVR_STRETCH_BLOCKS, 2 * most);
    for (window->count = 0; window->count < most && window->stop < total; window->count++) {
        size_t last = last_of_stretch(window->stop, total);
        if (ask(match, last, &window->probes[window->count]))
            return -1;
        window->stop = last + 1;
    }
    return 0;
}

/* Look at these slots, and ask for their stretches. */
static void look_through(const struct match *match, struct window *window)
{
    for (size_t at = 0; at < window->count; at++) {
        const struct kvr_slot *slot = window->slots[at] = look(&window->probes[at]);
        if (slot != NULL && slot->link != KVR_LOOSE_BLOCK)
            KVR_PREFETCH(kvr_stretches_at(&match->index->stretches, slot->link));
    }
}

static int pass_window(struct walk *walk, const struct window *window)
{
    size_t from = window->from;
    for (size_t at = 0; at < window->count; at++) {
        size_t last = last_of_stretch(from, walk->match->keys->count);
        int goes_on = stride(walk, from, last, window->slots[at]);
        if (goes_on != 1)
            return goes_on;
        from = last + 1;
    }
    return 1;
}

/* Windows grow as the walk does: it shall not ask for much more than it will need. */
static int walk_along(struct walk *walk)
{
    const struct match *match = walk->match;
    size_t total = match->keys->count, most = 1;
    size_t first = total < FIRST_BLOCKS ? total : FIRST_BLOCKS;
    struct window windows[WINDOWS];
    ask_hashes(match, first, FIRST_HASHES);
    int goes_on = step(walk, 0, first);
    if (goes_on != 1 || total == 0)
        return goes_on;
    if (ask_window(match, first, most, &windows[0]))
        return -1;
    look_through(match, &windows[0]);
    if (ask_window(match, windows[0].stop, 2 * most, &windows[1]))
        return -1;
    for (int at = 0; windows[at].count > 0; at = (at + 1) % WINDOWS) {
        struct window *next = &windows[(at + 1) % WINDOWS];
        most = 2 * most < WINDOW_MAX ? 2 * most : WINDOW_MAX;
        look_through(match, next);
        if (ask_window(match, next->stop, 2 * most < WINDOW_MAX ? 2 * most : WINDOW_MAX, &windows[(at + 2) % WINDOWS]))
            return -1;
        goes_on = pass_window(walk, &windows[at]);
        if (goes_on != 1)
            return goes_on;
    }
    for (uint32_t word = 0; word < match->words; word++)
        if (walk->alive[word])
            kvr_reaches_note(match->reaches, word, walk->alive[word], total);
    return 1;
}

int kvr_match_reaches(const struct kvr_index *index, const struct kvr_keys *keys, const uint8_t *selected,
                      struct kvr_reaches *reaches)
{
    struct match match = {index, keys, selected, reaches, index->rank_words};
    uint64_t alive[KVR_RANK_WORDS_MAX];
    reaches->words = match.words;
    reaches->count = 0;
    struct walk walk;
    walk.match = &match;
    walk.alive = alive;
    walk.named = UINT32_MAX;
    walk.mark = 0;
    walk.stepped = walk.asked = walk.settled = 0;
    return walk_along(&walk) < 0 ? -1 : 0;
}

int kvr_match_exact(const struct kvr_index *index, const struct kvr_keys *keys, const uint8_t *selected,
                    struct kvr_overlap *overlap)
{
    struct kvr_reaches reaches;
    if (kvr_match_reaches(index, keys, selected, &reaches))
        return -1;
    kvr_reaches_spread(reaches.all, reaches.count, reaches.words, overlap);
    return 0;
}

/* -- the bisection ------------------------------------------------------------------------------------------------ */

static void note_depth(struct kvr_overlap *overlap, uint32_t word, uint64_t lost, size_t depth)
{
    for (; lost; lost &= lost - 1)
        overlap->depths[word * 64 + (uint32_t)kvr_lowest_bit(lost)] = (uint32_t)depth;
}

/* Blocks between two of which, `low` and `high`, ranks are lost; and who is alive at both. */
struct span {
    size_t low, high;
    uint64_t before[KVR_RANK_WORDS_MAX], after[KVR_RANK_WORDS_MAX];
};

static int spread_at(const struct match *match, size_t position, uint64_t *ranks)
{
    uint64_t room;
    const uint64_t *hash = kvr_keys_at(match->keys, position, 1, &room);
    if (hash == NULL)
        return -1;
    (void)spread_out(match, kvr_index_holders(match->index, *hash), ranks);
    return 0;
}

static int bisect(const struct match *match, const struct span *span, struct kvr_overlap *overlap)
{
    uint32_t words = match->words;
    if (memcmp(span->before, span->after, words * sizeof *span->before) == 0)
        return 0;
    if (span->high - span->low == 1) {
        for (uint32_t word = 0; word < words; word++)
            note_depth(overlap, word, span->before[word] & ~span->after[word], span->high);
        return 0;
    }
    struct span half;
    size_t middle = span->low + (span->high - span->low) / 2;
    half.low = middle;
    half.high = span->high;
    if (spread_at(match, middle, half.before))
        return -1;
    for (uint32_t word = 0; word < words; word++) {
        half.before[word] &= span->before[word];
        half.after[word] = span->after[word];
    }
    /* The upper half first: where a rank has holes, so that it is lost in both, the lower depth stays. */
    if (bisect(match, &half, overlap))
        return -1;
    half.low = span->low;
    half.high = middle;
    memcpy(half.after, half.before, words * sizeof *half.after);
    memcpy(half.before, span->before, words * sizeof *half.before);
    return bisect(match, &half, overlap);
}

int kvr_match_bisect(const struct kvr_index *index, const struct kvr_keys *keys, const uint8_t *selected,
                     struct kvr_overlap *overlap)
{
    struct match match = {index, keys, selected, NULL, index->rank_words};
    struct span all = {.low = 0, .high = keys->count};
    overlap->words = match.words;
    memset(overlap->ranks, 0, match.words * sizeof *overlap->ranks);
    if (keys->count == 0)
        return 0;
    if (spread_at(&match, 0, all.before))
        return -1;
    memcpy(overlap->ranks, all.before, match.words * sizeof *overlap->ranks);
    return bisect(&match, &all, overlap);
}
