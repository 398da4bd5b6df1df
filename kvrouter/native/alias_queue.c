/* The ring of a queue; `alias_queue.h` says what for. */
#include "alias_queue.h"
#include "index_memory.h"

#define RING_MIN 64
/* The ring grows by one in so many. */
#define RING_SHARE 16

static uint64_t *at(const struct kvr_queue *queue, size_t number)
{
    return &queue->ring[kvr_queue_place(queue, number)];
}

/* Whether the place of a hash is void; then it is one less. */
static int passes_over(struct kvr_queue *queue, uint64_t hash)
{
    struct kvr_slot *slot = queue->left ? kvr_table_find(&queue->early, hash) : NULL;
    if (slot == NULL)
        return 0;
    queue->left--;
    if (--slot->value == 0) {
        slot->value = 1; /* A slot of the value 0 would be vacant already. */
        kvr_table_drop(&queue->early, slot);
    }
    return 1;
}

/* Move up behind those that left. */
static void close_ranks(struct kvr_queue *queue)
{
    size_t kept = 0, used = queue->used;
    for (size_t number = 0; number < used; number++) {
        uint64_t hash = *at(queue, number);
        if (!passes_over(queue, hash))
            *at(queue, kept++) = hash;
    }
    queue->used = kept;
}

/* -1 without memory. */
static int resize(struct kvr_queue *queue, size_t allocated)
{
    uint64_t *ring = NULL;
    if (allocated) {
        ring = kvr_take(queue->account, allocated * sizeof *ring);
        if (ring == NULL)
            return -1;
        for (size_t number = 0; number < queue->used; number++)
            ring[number] = *at(queue, number);
    }
    kvr_give(queue->account, queue->ring, queue->allocated * sizeof *ring);
    queue->ring = ring;
    queue->allocated = allocated;
    queue->first = 0;
    return 0;
}

int kvr_queue_join(struct kvr_queue *queue, uint64_t hash)
{
    if (queue->used == queue->allocated) {
        if (queue->left > queue->used / 4)
            close_ranks(queue);
        else if (resize(queue, queue->allocated + queue->allocated / RING_SHARE + RING_MIN))
            return -1;
    }
    *at(queue, queue->used++) = hash;
    return 0;
}

int kvr_queue_leave(struct kvr_queue *queue, uint64_t hash)
{
    struct kvr_slot *slot = kvr_table_find(&queue->early, hash);
    if (slot != NULL)
        slot->value++;
    else if (kvr_table_add(&queue->early, hash, 1))
        return -1;
    queue->left++;
    if (queue->left == queue->used) {
        close_ranks(queue);
        (void)resize(queue, 0);
    }
    return 0;
}

void kvr_queue_list(struct kvr_queue *queue, uint64_t *hashes)
{
    close_ranks(queue);
    for (size_t number = 0; number < queue->used; number++)
        hashes[number] = *at(queue, number);
}

uint64_t kvr_queue_take(struct kvr_queue *queue)
{
    for (;;) {
        uint64_t hash = *at(queue, 0);
        queue->first = kvr_queue_place(queue, 1);
        queue->used--;
        if (passes_over(queue, hash))
            continue;
        if (queue->allocated > RING_MIN && queue->used < queue->allocated / 4)
            (void)resize(queue, queue->allocated / 2);
        return hash;
    }
}

int kvr_queue_open(struct kvr_queue *queue, size_t *account)
{
    memset(queue, 0, sizeof *queue);
    queue->account = account;
    return kvr_table_open(&queue->early, account, NULL, NULL);
}

void kvr_queue_close(struct kvr_queue *queue)
{
    if (queue->account == NULL)
        return;
    kvr_give(queue->account, queue->ring, queue->allocated * sizeof *queue->ring);
    kvr_table_close(&queue->early);
}
