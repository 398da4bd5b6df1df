/* What continues a prefix below the GPU: it is loaded, faster than it is computed. `kvrouter/routing/knowledge.py` is the
 * specification. */
#ifndef KVR_ROUTING_TIERS_H
#define KVR_ROUTING_TIERS_H

#include "index_match.h"
#include "routing_loads.h"

/* Room to work in, too large for the stack. */
struct kvr_lower_tiers {
    struct kvr_credits reached;
    struct kvr_overlap found;
};

void kvr_copy_credits(struct kvr_credits *copy, const struct kvr_credits *credits);

/* Raise `credited`, which has what is promised on the GPU, by what continues it in tiers below: `lower` is a tuple of pairs,
 * the name of a tier and the share that loading from there saves, from above. 0, or -1 with an exception set. */
int kvr_credit_lower_tiers(const struct kvr_index *index, const struct kvr_keys *keys, size_t block_size, PyObject *lower,
                           struct kvr_credits *credited, struct kvr_lower_tiers *work);

#endif
