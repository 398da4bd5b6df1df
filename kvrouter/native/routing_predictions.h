/* Blocks that ranks will hold soon; `kvrouter/routing/predictions.py` is the specification and says why.
 *
 * What a decision writes is a note: a rank, a deadline and a run of hashes. A table leads from each hash to the latest
 * note that has it: of the one rank that is predicted to hold the block, as nearly always, or to a group with one note
 * of each such rank. Neighbouring blocks share groups. Every member of a group has all the blocks that name the group,
 * so a note that ends leaves its groups in place, and ending a note needs no memory.
 */
#ifndef KVR_ROUTING_PREDICTIONS_H
#define KVR_ROUTING_PREDICTIONS_H

#include "index_match.h"
#include "routing_landmarks.h"

/* Objects by number, from 1 on: what a slot of a table has room for. */
struct kvr_pool {
    void ***pages;
    uint32_t pages_max;
    uint32_t count; /* numbers ever given out */
    uint32_t free;  /* the next number to give out again, which its place names; 0: none */
};

struct kvr_note {
    double deadline;
    uint32_t rank;
    uint32_t number;
    uint32_t count;
    uint32_t room;         /* of `hashes`; `count` is less where memory ended on the way */
    struct kvr_note *next; /* of the same rank, written later */
    uint64_t hashes[];
};

/* What was written for one rank, oldest first. */
struct kvr_rank_notes {
    struct kvr_note *first, *last;
    size_t written;  /* blocks in its notes, those that a later note repeats included */
    size_t distinct; /* and without them */
    int followed;    /* whether its events confirm predictions: 1, 0, or -1 where nobody said */
};

struct kvr_predictions {
    union {
        size_t bytes;
        struct kvr_account account;
    };
    uint64_t secret;
    size_t blocks_max, total_max, written;
    double due; /* before this time nothing ends */
    uint64_t ended; /* how many notes have ended: names the one that ends now */
    struct kvr_table table; /* scattered sequence hash to the number of a note or group */
    struct kvr_pool notes, groups;
    struct kvr_rank_notes *ranks;
    uint32_t ranks_max; /* a multiple of 64 */
};

/* A rank and where its known prefix ends. */
struct kvr_known {
    uint32_t rank;
    size_t position;
};

/* What 0 and -1 mean below: done, and no memory. Predictions without memory are still consistent. */

int kvr_predictions_open(struct kvr_predictions *predictions, uint64_t secret, size_t blocks_max, size_t total_max);
void kvr_predictions_close(struct kvr_predictions *predictions);

int kvr_predictions_store(struct kvr_predictions *predictions, uint32_t rank, const uint64_t *hashes, size_t count,
                          double deadline);
/* The same of a prompt of which a rank has so many blocks for certain, and is promised to have so many: what is promised
 * is written again only if its own deadline is not after `fresh`. */
int kvr_predictions_predict(struct kvr_predictions *predictions, uint32_t rank, const struct kvr_landmarks *marks,
                            size_t confirmed, size_t promised, double deadline, double fresh);

/* Say whether a rank's events confirm predictions; what was predicted when it was otherwise is dropped. */
int kvr_predictions_follow(struct kvr_predictions *predictions, uint32_t rank, int is_live);

void kvr_predictions_expire(struct kvr_predictions *predictions, double now);
void kvr_predictions_drop(struct kvr_predictions *predictions, uint32_t rank);

/* The note of one rank that has a block, or NULL. */
const struct kvr_note *kvr_predictions_find(const struct kvr_predictions *predictions, uint32_t rank, uint64_t hash);

/* Who is predicted to hold more of a prompt than is known of it, and how many blocks from its beginning on. `known` has
 * each rank at most once, and is sorted here. */
void kvr_predictions_match(const struct kvr_predictions *predictions, const uint64_t *hashes, size_t count,
                           struct kvr_known *known, size_t known_count, struct kvr_overlap *reach);

#endif
