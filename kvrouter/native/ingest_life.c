/* Opening, emptying and closing what a rank has cached, and the bound on its bytes; `ingest_rank.h` says what it is. */
#include "index_memory.h"
#include "ingest_rank.h"

/* New tables, whose bytes `account` counts; -1 without memory. */
static int open_tables(struct kvr_rank *rank, size_t *account)
{
    memset(&rank->aliases, 0, sizeof rank->aliases);
    memset(&rank->copies, 0, sizeof rank->copies);
    memset(&rank->large, 0, sizeof rank->large);
    memset(&rank->idle, 0, sizeof rank->idle);
    memset(&rank->unresolved, 0, sizeof rank->unresolved);
    rank->places = NULL;
    rank->place_count = rank->places_allocated = 0;
    if (kvr_aliases_open(&rank->aliases, account, &rank->index->beside) || kvr_copies_open(&rank->copies, account, rank->secret) ||
        kvr_table_open(&rank->large, account, NULL, NULL) || kvr_queue_open(&rank->idle, account))
        return -1;
    return kvr_queue_open(&rank->unresolved, account);
}

static void close_tables(struct kvr_rank *rank, size_t *account)
{
    for (uint32_t number = 0; number < rank->place_count; number++)
        kvr_table_close(&rank->places[number].holders);
    kvr_give(account, rank->places, rank->places_allocated * sizeof *rank->places);
    kvr_aliases_close(&rank->aliases);
    kvr_copies_close(&rank->copies);
    kvr_table_close(&rank->large);
    kvr_queue_close(&rank->idle);
    kvr_queue_close(&rank->unresolved);
}

int kvr_rank_open(struct kvr_rank *rank, struct kvr_index *index, uint32_t number)
{
    memset(rank, 0, sizeof *rank);
    rank->index = index;
    rank->rank = number;
    rank->secret = index->secret;
    rank->main_group = KVR_NO_GROUP;
    if (open_tables(rank, &rank->bytes) == 0) {
        kvr_rank_charge(rank);
        return 0;
    }
    close_tables(rank, &rank->bytes);
    return -1;
}

void kvr_rank_close(struct kvr_rank *rank)
{
    close_tables(rank, &rank->bytes);
    kvr_rank_charge(rank);
}

int kvr_rank_admit(struct kvr_rank *rank, size_t blocks)
{
    kvr_rank_charge(rank);
    return kvr_index_admit(rank->index, blocks);
}

int kvr_rank_clear(struct kvr_rank *rank)
{
    struct kvr_rank fresh = *rank;
    if (open_tables(&fresh, &rank->bytes)) {
        close_tables(&fresh, &rank->bytes);
        return -1;
    }
    for (uint32_t number = 0; number < rank->place_count; number++) {
        int tier = rank->places[number].is_main ? kvr_rank_index_tier(rank, rank->places[number].tier) : -1;
        if (tier >= 0)
            kvr_index_clear(rank->index, rank->rank, (uint32_t)tier);
    }
    close_tables(rank, &rank->bytes);
    fresh.bytes = rank->bytes;
    *rank = fresh;
    kvr_rank_charge(rank);
    return 0;
}
