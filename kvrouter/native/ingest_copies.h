/* How many copies of a block there are, and where: per place (a tier and a group of layers) a count.
 *
 * A rank has millions of blocks and few different answers, nearly always "one copy, in one place". Equal answers are one
 * with one number, and a row of the table of aliases has only the number.
 */
#ifndef KVR_INGEST_COPIES_H
#define KVR_INGEST_COPIES_H

#include "index_table.h"

/* Numbers without any copy. Of a hash whose meaning is known: not yet stored anywhere, or no longer. */
#define KVR_NO_COPIES 0u
#define KVR_LOOSE 1u
#define KVR_IDLE 2u
#define KVR_COPIES_FIRST 3u

struct kvr_copy {
    uint32_t place;
    uint32_t count;
};

struct kvr_copies {
    uint64_t hash;
    union {
        struct kvr_copy one;
        struct kvr_copy *many;
    } list; /* by place */
    uint32_t places;
    uint32_t rows; /* that have this number */
    uint32_t next; /* with the same hash; next free one of a free one */
    uint32_t is_known; /* whether of hashes whose meaning is known */
};

struct kvr_all_copies {
    struct kvr_copies *all;
    uint32_t count, allocated, free;
    uint64_t secret;
    struct kvr_table numbers; /* hash to number */
    size_t *account;
};

int kvr_copies_open(struct kvr_all_copies *copies, size_t *account, uint64_t secret);
void kvr_copies_close(struct kvr_all_copies *copies);

/* The following give numbers that nothing refers to yet, and UINT32_MAX without memory. */

/* One copy more; of KVR_NO_COPIES, of a hash whose meaning is not known. */
uint32_t kvr_copies_more(struct kvr_all_copies *copies, uint32_t number, uint32_t place);
/* So many copies in a place instead of those that are there. */
uint32_t kvr_copies_with(struct kvr_all_copies *copies, uint32_t number, uint32_t place, uint32_t count);
/* The same copies, of a hash whose meaning is known. */
uint32_t kvr_copies_known(struct kvr_all_copies *copies, uint32_t number);

/* A row begins or ends to have a number. */
KVR_INLINE void kvr_copies_enter(struct kvr_all_copies *copies, uint32_t number)
{
    if (number >= KVR_COPIES_FIRST)
        copies->all[number].rows++;
}

void kvr_copies_leave(struct kvr_all_copies *copies, uint32_t number);

/* Free a number that nothing refers to; otherwise do nothing. */
void kvr_copies_release(struct kvr_all_copies *copies, uint32_t number);

KVR_INLINE const struct kvr_copy *kvr_copies_list(const struct kvr_all_copies *copies, uint32_t number,
                                                  uint32_t *places)
{
    if (number < KVR_COPIES_FIRST) {
        *places = 0;
        return NULL;
    }
    const struct kvr_copies *found = &copies->all[number];
    *places = found->places;
    return found->places > 1 ? found->list.many : &found->list.one;
}

KVR_INLINE int kvr_copies_is_known(const struct kvr_all_copies *copies, uint32_t number)
{
    return number < KVR_COPIES_FIRST ? number != KVR_NO_COPIES : (int)copies->all[number].is_known;
}

uint32_t kvr_copies_in(const struct kvr_all_copies *copies, uint32_t number, uint32_t place);

#endif
