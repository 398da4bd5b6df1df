/* What ranks are busy with, and the choice among them; `kvrouter/routing/rank_load.py` and `kvrouter/routing/kv.py` are
 * the specification. */
#ifndef KVR_ROUTING_LOADS_H
#define KVR_ROUTING_LOADS_H

#include "index_core.h"
#include "python_abi.h"

struct kvr_booking;

struct kvr_load {
    PyObject_HEAD
    uint32_t rank; /* dense; below KVR_RANKS_MAX */
    long long turn;
    long long arrivals;
    long long block_size;
    long long active_requests;
    long long prefill_tokens;
    long long decode_blocks;
    long long prefill_pairs;
    long long waiting;
    long long head_tokens;
    long long head_pairs;
    double head_since;
    long long begun, begun_tokens; /* what waited when the running step began */
    /* What the router has learnt of the rank. */
    double token_seconds, pair_seconds, first_seconds;
    double urgency, miss_price;
    double loss_rate, loss_seconds; /* of what is cached, while a request waits: share for each second, and for how long */
    long long room_tokens; /* that its cache holds; 0 while that is not known */
    double room_loss;      /* share of what is over that is lost */
    double belief; /* share of what it promises to have cached that is believed */
    /* First tokens whose time was predicted, and the sums of these times, of those that they took, of the differences. */
    long long first_tokens;
    double predicted_seconds, observed_seconds, error_seconds;
    /* Bookings that wait for their first token, oldest first; not owned. */
    struct kvr_booking *first, *last;
    PyTypeObject *booking_type;
};

KVR_INLINE struct kvr_load *kvr_load_of(PyObject *object)
{
    return (struct kvr_load *)(void *)object;
}

/* Change requests, prefill tokens, blocks, pairs and those that wait, in this order. */
void kvr_load_add(struct kvr_load *load, const long long *numbers);

/* Say which prompt is in work, and since when. */
void kvr_load_begin(struct kvr_load *load, long long tokens, long long pairs, double since);

/* A method of loads: book a request. */
PyObject *kvr_load_take(PyObject *load, PyObject *const *arguments, Py_ssize_t given);

/* 0, or -1 with an exception set. */
int kvr_read_numbers(PyObject *const *arguments, Py_ssize_t given, long long *numbers);

/* How many loads there are in a tuple of nothing else; -1 with an exception set. */
Py_ssize_t kvr_count_loads(PyTypeObject *type, PyObject *loads);

/* How a choice is made; see `kvrouter.routing.cost`. */
struct kvr_weights {
    double request_tokens, context_tokens, step_tokens;
    double work_price, decode_price, later_max;
    double affinity;
};

/* How much of a prompt is cached where most of it is, and how many ranks have about as much. */
struct kvr_shared_part {
    long long most;
    double holders;
};

/* What a prompt costs on a rank, in seconds. */
struct kvr_cost {
    double wait, prefill;
    double first_token; /* predicted time to it */
    double price;       /* and what others lose */
    double mates;       /* requests that would share a step with it */
    double charged;     /* the part of `prefill` for which others pay */
    double evicted;     /* what they compute again because there is no room */
    long long credit;   /* tokens that are believed to be cached still when the rank begins with it */
};

struct kvr_cost kvr_cost_of(const struct kvr_load *load, long long credit, double tokens, const struct kvr_weights *weights,
                            double now, const struct kvr_shared_part *shared);

/* From a tuple of numbers in this order: 0, or -1 with an exception set. */
int kvr_read_weights(PyObject *tuple, struct kvr_weights *weights);

/* Tokens per rank; 0 where nothing is said of one. */
struct kvr_credits {
    uint64_t ranks[KVR_RANK_WORDS_MAX];
    long long tokens[KVR_RANKS_MAX]; /* valid for `ranks` */
};

KVR_INLINE long long kvr_credit(const struct kvr_credits *credits, uint32_t rank)
{
    return credits->ranks[rank / 64] >> rank % 64 & 1 ? credits->tokens[rank] : 0;
}

/* The part of so many tokens that is believed; see `Knowledge.overlaps`. */
KVR_INLINE long long kvr_believed(long long tokens, double belief)
{
    return belief > 0.0 ? belief < 1.0 ? (long long)((double)tokens * belief) : tokens : 0;
}

enum kvr_reason { KVR_REASON_LOAD, KVR_REASON_AFFINITY, KVR_REASON_ESCAPE };

struct kvr_choice {
    const struct kvr_load *load;
    struct kvr_cost cost;
    Py_ssize_t position;
    struct kvr_shared_part shared;
};

/* Choose among at least one load for a prompt of so many tokens. `extra` is NULL, or a tuple of as many numbers: what
 * each costs on top of its price. `costs` is NULL, or has room for what each costs without that. */
enum kvr_reason kvr_choose(PyObject *loads, Py_ssize_t count, const struct kvr_credits *credits, double tokens,
                           const struct kvr_weights *weights, double now, PyObject *extra, struct kvr_cost *costs,
                           struct kvr_choice *chosen);

#endif
