/* Engine hashes in the order in which they came, some of which leave early: what is forgotten first.
 *
 * One that leaves early stays in the row and is passed over when its turn comes, so a place costs eight bytes and no
 * links. The caller knows which hashes are in it.
 */
#ifndef KVR_ALIAS_QUEUE_H
#define KVR_ALIAS_QUEUE_H

#include "index_table.h"

struct kvr_queue {
    uint64_t *ring;
    size_t allocated;
    size_t first, used; /* of the ring, those that left included */
    size_t left;
    struct kvr_table early; /* scattered hash to how often it left early: its first so many places are void */
    size_t *account;
};

int kvr_queue_open(struct kvr_queue *queue, size_t *account);
void kvr_queue_close(struct kvr_queue *queue);

KVR_INLINE size_t kvr_queue_count(const struct kvr_queue *queue)
{
    return queue->used - queue->left;
}

/* Where in the ring the hash is that has so many before it. */
KVR_INLINE size_t kvr_queue_place(const struct kvr_queue *queue, size_t number)
{
    size_t place = queue->first + number;
    return place < queue->allocated ? place : place - queue->allocated;
}

/* A hash near the front, which may have left; the queue was never empty. */
KVR_INLINE uint64_t kvr_queue_peek(const struct kvr_queue *queue, size_t number)
{
    return queue->ring[kvr_queue_place(queue, number)];
}

/* Join at the end; hashes are scattered. 0, or -1 without memory. */
int kvr_queue_join(struct kvr_queue *queue, uint64_t hash);

/* Leave before one's turn. 0, or -1 without memory. */
int kvr_queue_leave(struct kvr_queue *queue, uint64_t hash);

/* Write the hashes in it, the first one first, into `hashes`, which has room for all. */
void kvr_queue_list(struct kvr_queue *queue, uint64_t *hashes);

/* Take the first one; the queue is not empty. */
uint64_t kvr_queue_take(struct kvr_queue *queue);

#endif
