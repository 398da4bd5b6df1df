/* An index that other processes read while one changes it: what stands at the head of the mapped file, and how the
 * writer tells readers what it is about to change.
 *
 * There is one writer. It takes all memory of the index from the file (`index_arena.h`), so its tables lie there as they
 * are, with its own addresses in them; readers know where it has mapped the file, and make offsets of them.
 *
 * Every part of the tables belongs to a version, a number that is odd while the part is being changed: the slots of a
 * segment to one of 4096, a stretch to one of 4096 others, and all that is rare to `layout`: directories, pages, sets that
 * lose a rank, memory that is used anew. A reader that has found versions even before it read, and finds all of them
 * the same afterwards, has seen one moment of the whole. It never writes, and whatever it reads meanwhile it checks
 * before it follows it (`index_map.h`).
 *
 * A change is a few calls: `kvr_share_segment`, `_stretch` or `_layout` before something is written, as often as need be,
 * and `kvr_share_close` when the tables are whole again. Nothing of it costs an index that is not shared more than a
 * comparison.
 */
#ifndef KVR_INDEX_SHARE_H
#define KVR_INDEX_SHARE_H

#include "index_arena.h"
#include "memory.h"

#define KVR_STRIPE_BITS 12
#define KVR_STRIPES (1u << KVR_STRIPE_BITS)
#define KVR_SHARED_TIERS_MAX 32
#define KVR_SHARED_TIER_BYTES 256
#define KVR_OPEN_MAX 8

/* Whole bytes of this are compared: no gaps. */
struct kvr_root {
    uint64_t directory, set_pages, stretch_pages; /* addresses of the writer's */
    uint32_t bits, set_pages_max, stretch_pages_max, rank_words;
};

enum { KVR_SHARED_LIVE = 1, KVR_SHARED_CLOSED = 2, KVR_SHARED_FROZEN = 3 };

#define KVR_SHARED_MAGIC "kvrshare"
#define KVR_SHARED_VERSION 1

struct kvr_shared {
    /* Never changed, and under the checksum. */
    char magic[8];
    uint32_t version;
    uint32_t header_bytes, slot_bytes, set_bytes, page_bytes, word_bytes; /* of another build: do not read on */
    uint64_t base; /* where the writer has it */
    uint64_t capacity;
    uint64_t secret, stretch_secret;
    uint64_t process;
    uint64_t checksum; /* XXH3-64 of what is before it */
    /* Changed by the writer. */
    uint64_t length; /* bytes of the file that may be read */
    uint32_t state;
    uint32_t tier_count; /* names are written before they count, and stay */
    struct kvr_root root;
    uint8_t tier_lengths[KVR_SHARED_TIERS_MAX];
    char tier_names[KVR_SHARED_TIERS_MAX][KVR_SHARED_TIER_BYTES];
    uint32_t layout;
    uint32_t segments[KVR_STRIPES];
    uint32_t stretches[KVR_STRIPES];
};

struct kvr_index;

struct kvr_share {
    struct kvr_shared *shared;
    const struct kvr_index *index;
    int layout_open;
    uint32_t open_count;
    uint32_t *open[KVR_OPEN_MAX];
    char *path;
    struct kvr_arena arena;
};

KVR_INLINE uint32_t kvr_stripe_of_segment(uint64_t key, uint32_t depth)
{
    return (uint32_t)(key >> 1 >> (63 - depth)) & (KVR_STRIPES - 1);
}

KVR_INLINE uint32_t kvr_stripe_of_stretch(uint32_t number)
{
    return number & (KVR_STRIPES - 1);
}

/* -- the writer --------------------------------------------------------------------------------------------------- */

#if defined(_WIN32)
#define KVR_SHARE_STORE(at, value) (*(at) = (value))
#define KVR_SHARE_FENCE()
#else
#define KVR_SHARE_STORE(at, value) __atomic_store_n(at, value, __ATOMIC_RELAXED)
#define KVR_SHARE_FENCE() __atomic_thread_fence(__ATOMIC_RELEASE)
#endif

/* Tell where everything is, if that has changed, and let go of what readers might have looked at until now. */
void kvr_share_note(struct kvr_share *share);

/* Make a version odd, before anything of its part is written. */
KVR_INLINE void kvr_version_open(uint32_t *version)
{
    KVR_SHARE_STORE(version, *version + 1);
    KVR_SHARE_FENCE();
}

/* All that is not a slot or a stretch. */
KVR_INLINE void kvr_share_layout(struct kvr_share *share)
{
    if (!share->layout_open) {
        share->layout_open = 1;
        kvr_version_open(&share->shared->layout);
    }
}

KVR_INLINE void kvr_share_part(struct kvr_share *share, uint32_t *version)
{
    if (share->layout_open)
        return; /* Nobody believes anything meanwhile. */
    for (uint32_t at = 0; at < share->open_count; at++)
        if (share->open[at] == version)
            return;
    if (share->open_count == KVR_OPEN_MAX) {
        kvr_share_layout(share);
        return;
    }
    share->open[share->open_count++] = version;
    kvr_version_open(version);
}

/* The slots of the segment of a key; the segment of the key has this depth. */
KVR_INLINE void kvr_share_segment(struct kvr_share *share, uint64_t key, uint32_t depth)
{
    kvr_share_part(share, &share->shared->segments[kvr_stripe_of_segment(key, depth)]);
}

KVR_INLINE void kvr_share_stretch(struct kvr_share *share, uint32_t number)
{
    kvr_share_part(share, &share->shared->stretches[kvr_stripe_of_stretch(number)]);
}

/* The tables are whole. */
KVR_INLINE void kvr_share_close(struct kvr_share *share)
{
    if (share->arena.changed)
        kvr_share_note(share);
    KVR_SHARE_FENCE();
    while (share->open_count > 0) {
        uint32_t *version = share->open[--share->open_count];
        KVR_SHARE_STORE(version, *version + 1);
    }
    if (share->layout_open) {
        share->layout_open = 0;
        KVR_SHARE_STORE(&share->shared->layout, share->shared->layout + 1);
    }
}

/* Begin to share an index that is empty and was opened without memory of its own; NULL with errno. */
struct kvr_share *kvr_share_open(struct kvr_index *index, int file, const char *path, size_t capacity);

/* Tell readers that there is nobody who changes it any more, `state` says why; unmap it and, unless it is frozen, remove
 * the file. */
void kvr_share_end(struct kvr_share *share, uint32_t state);

/* The checksum of a header. */
uint64_t kvr_shared_checksum(const struct kvr_shared *shared);

#endif
