/* The reader's side of a shared index (`index_share.h`): a mapping of the file that is never written to, and matching
 * in it.
 *
 * The writer goes on meanwhile, so anything that is read may be torn, or be something else by now. Nothing that was read
 * is followed before it was checked: every address becomes an offset that must lie within the file, every loop has a
 * bound. Besides, it is noted which versions the parts had that were looked at. At the end all of them are looked
 * at again: if all are as they were, what was found is what the index held at that moment. A part that has changed
 * is looked at anew; only where that has another outcome the match begins again.
 */
#ifndef KVR_INDEX_MAP_H
#define KVR_INDEX_MAP_H

#include "index_match.h"
#include "index_share.h"

enum kvr_part { KVR_PART_SLOT, KVR_PART_STRETCH, KVR_PART_SET };

/* What was looked at. A set has no version: as long as a slot names it, it only loses ranks, by a change of the layout.
 * But a number may have been another set's for a while, so it is looked at again after a slot that was. */
struct kvr_seen {
    uint64_t key;     /* of a slot; the place of a block in a stretch; the number of a set */
    uint64_t outcome; /* value and link of the slot, 0 if there is none; the sum of the stretch; the hash of the set */
    uint32_t present; /* of a stretch */
    uint32_t version;
    uint32_t stripe;
    enum kvr_part part;
};

struct kvr_map {
    const uint8_t *base; /* NULL: closed */
    size_t mapped;       /* bytes */
    const struct kvr_shared *shared;
    int file;
    struct kvr_root root; /* as it was when the match began */
    uint64_t length;      /* that may be read, then */
    uint64_t writer_base, capacity, secret, stretch_secret;
    uint32_t layout;
    struct kvr_seen *seen;
    size_t seen_count, seen_room;
    size_t retries; /* matches that began again, so far */
    size_t remaps;
};

enum kvr_outcome {
    KVR_MATCHED = 0,
    KVR_UNREADABLE = -1, /* the hashes: kvr_keys_at could not */
    KVR_MAP_BUSY = -2,   /* changed all the time */
    KVR_MAP_NO_MEMORY = -3,
};

/* Map a file. NULL, or what is wrong with it. The file belongs to the map if this succeeds. */
const char *kvr_map_open(struct kvr_map *map, int file);
void kvr_map_close(struct kvr_map *map);

/* The state that the writer has noted. */
uint32_t kvr_map_state(const struct kvr_map *map);

/* The names of tiers: how many there are. They stay as they are. */
uint32_t kvr_map_tiers(const struct kvr_map *map);
const char *kvr_map_tier(const struct kvr_map *map, uint32_t tier, size_t *length);

/* Match as kvr_match_reaches does, in one of so many attempts. */
enum kvr_outcome kvr_map_match(struct kvr_map *map, const struct kvr_keys *keys, const uint8_t *selected,
                               struct kvr_reaches *reaches, uint32_t attempts);

/* -- for the files of the reader: -1 means that something was read which cannot be, or is being changed ---------- */

/* The slot of a key, as kvr_seen.outcome. */
int kvr_map_slot(struct kvr_map *map, uint64_t key, uint64_t *outcome);

/* Ask for it. */
void kvr_map_ask(const struct kvr_map *map, uint64_t key);

/* How many blocks in a row, ending with the one at `link`, certainly name the same set, which has this mark. */
int kvr_map_alike(struct kvr_map *map, kvr_link link, uint64_t mark, uint32_t *alike);

/* The ranks of the set that a slot names, over the selected tiers; returns whether there are any. */
int kvr_map_ranks(struct kvr_map *map, uint32_t named, const uint8_t *selected, uint64_t *ranks);

/* Begin, and find out whether all that was seen was there at one moment: 1 if so, 0 if not. */
int kvr_map_begin(struct kvr_map *map);
int kvr_map_confirm(struct kvr_map *map);

#endif
