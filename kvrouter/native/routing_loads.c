/* What ranks are busy with, and the choice among them: `kvrouter/routing/rank_load.py`, `kvrouter/routing/cost.py` and
 * `kvrouter/routing/kv.py` are the specification. Sums are in the order in which they are there, so that both come to
 * the same last bit. */
#include "routing_loads.h"
#include "index_arguments.h"
#include "module.h"

/* When a first token is overdue; see `kvrouter/routing/cost.py`. */
#define KVR_LATE_FACTOR 4.0
#define KVR_LATE_SECONDS 2.0

/* -- the object --------------------------------------------------------------------------------------------------- */

static PyObject *new(PyTypeObject *type, PyObject *arguments, PyObject *names)
{
    static char *known[] = {"active_requests", "prefill_tokens", "decode_blocks", "rank", NULL};
    long long requests = 0, tokens = 0, blocks = 0;
    uint32_t rank = 0;
    PyObject *number = NULL;
    if (!PyArg_ParseTupleAndKeywords(arguments, names, "|LLLO:RankLoad", known, &requests, &tokens, &blocks, &number) ||
        (number != NULL && kvr_read_rank(number, &rank)))
        return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    PyObject *self = allocate(type, 0);
    if (self == NULL)
        return NULL;
    struct kvr_load *load = kvr_load_of(self);
    load->booking_type = kvr_sibling_type(type, "Booking");
    if (load->booking_type == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    load->rank = rank;
    load->turn = load->arrivals = 0;
    load->block_size = 16;
    load->active_requests = requests;
    load->prefill_tokens = tokens;
    load->decode_blocks = blocks;
    load->prefill_pairs = load->waiting = load->head_tokens = load->head_pairs = load->begun = load->begun_tokens = 0;
    load->room_tokens = 0;
    load->room_loss = 0.5;
    load->head_since = load->first_seconds = load->urgency = load->miss_price = load->loss_rate = load->loss_seconds = 0.0;
    load->token_seconds = 1.0 / 8000.0;
    load->pair_seconds = 0.0;
    load->belief = 1.0;
    load->first_tokens = 0;
    load->predicted_seconds = load->observed_seconds = load->error_seconds = 0.0;
    return self;
}

static void dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    Py_XDECREF((PyObject *)kvr_load_of(object)->booking_type);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static PyObject *repr(PyObject *object)
{
    const struct kvr_load *load = kvr_load_of(object);
    return PyUnicode_FromFormat("RankLoad(active_requests=%lld, prefill_tokens=%lld, decode_blocks=%lld)",
                                load->active_requests, load->prefill_tokens, load->decode_blocks);
}

static PyObject *compare(PyObject *one, PyObject *other, int operation)
{
    if ((operation != Py_EQ && operation != Py_NE) || Py_TYPE(one) != Py_TYPE(other))
        return Py_NewRef(Py_NotImplemented);
    const struct kvr_load *left = kvr_load_of(one), *right = kvr_load_of(other);
    int same = left->active_requests == right->active_requests && left->prefill_tokens == right->prefill_tokens &&
               left->decode_blocks == right->decode_blocks;
    return PyBool_FromLong(same == (operation == Py_EQ));
}

int kvr_read_numbers(PyObject *const *arguments, Py_ssize_t given, long long *numbers)
{
    for (Py_ssize_t at = 0; at < given; at++) {
        numbers[at] = PyLong_AsLongLong(arguments[at]);
        if (numbers[at] == -1 && PyErr_Occurred())
            return -1;
    }
    return 0;
}

/* Sums beyond 64 bits wrap; as unsigned numbers they may. */
static void raise_by(long long *sum, long long number)
{
    *sum = (long long)((uint64_t)*sum + (uint64_t)number);
}

void kvr_load_add(struct kvr_load *load, const long long *numbers)
{
    raise_by(&load->active_requests, numbers[0]);
    raise_by(&load->arrivals, numbers[0] > 0 ? numbers[0] : 0);
    raise_by(&load->prefill_tokens, numbers[1]);
    raise_by(&load->decode_blocks, numbers[2]);
    raise_by(&load->prefill_pairs, numbers[3]);
    raise_by(&load->waiting, numbers[4]);
}

void kvr_load_begin(struct kvr_load *load, long long tokens, long long pairs, double since)
{
    load->head_tokens = tokens;
    load->head_pairs = pairs;
    load->head_since = since;
    load->begun = load->waiting;
    load->begun_tokens = load->prefill_tokens;
}

/* add(requests, tokens, blocks, pairs=0, waiting=0) */
static PyObject *add(PyObject *object, PyObject *const *arguments, Py_ssize_t given)
{
    long long numbers[5] = {0};
    if (given < 3 || given > 5) {
        PyErr_Format(PyExc_TypeError, "add takes 3 to 5 arguments, not %zd", given);
        return NULL;
    }
    if (kvr_read_numbers(arguments, given, numbers))
        return NULL;
    kvr_load_add(kvr_load_of(object), numbers);
    Py_RETURN_NONE;
}

/* begin(tokens, pairs, since) */
static PyObject *begin(PyObject *object, PyObject *const *arguments, Py_ssize_t given)
{
    long long numbers[2];
    if (given != 3) {
        PyErr_Format(PyExc_TypeError, "begin takes 3 arguments, not %zd", given);
        return NULL;
    }
    double since = PyFloat_AsDouble(arguments[2]);
    if ((since == -1.0 && PyErr_Occurred()) || kvr_read_numbers(arguments, 2, numbers))
        return NULL;
    kvr_load_begin(kvr_load_of(object), numbers[0], numbers[1], since);
    Py_RETURN_NONE;
}

/* observe(predicted, observed) */
static PyObject *observe(PyObject *object, PyObject *const *arguments, Py_ssize_t given)
{
    if (given != 2) {
        PyErr_Format(PyExc_TypeError, "observe takes 2 arguments, not %zd", given);
        return NULL;
    }
    double predicted = PyFloat_AsDouble(arguments[0]);
    if (predicted == -1.0 && PyErr_Occurred())
        return NULL;
    double observed = PyFloat_AsDouble(arguments[1]);
    if (observed == -1.0 && PyErr_Occurred())
        return NULL;
    struct kvr_load *load = kvr_load_of(object);
    load->first_tokens++;
    load->predicted_seconds += predicted;
    load->observed_seconds += observed;
    load->error_seconds += observed < predicted ? predicted - observed : observed - predicted;
    Py_RETURN_NONE;
}

/* -- loads of candidates ------------------------------------------------------------------------------------------ */

Py_ssize_t kvr_count_loads(PyTypeObject *type, PyObject *loads)
{
    if (!PyTuple_Check(loads)) {
        PyErr_SetString(PyExc_TypeError, "the loads of candidates come as a tuple");
        return -1;
    }
    Py_ssize_t count = PyTuple_Size(loads);
    for (Py_ssize_t at = 0; at < count; at++) {
        if (Py_TYPE(PyTuple_GetItem(loads, at)) != type) {
            PyErr_SetString(PyExc_TypeError, "the load of a candidate is a RankLoad");
            return -1;
        }
    }
    if (count > 0)
        return count;
    PyErr_SetString(PyExc_ValueError, "there is nobody to choose");
    return -1;
}

int kvr_read_weights(PyObject *tuple, struct kvr_weights *weights)
{
    double *fields[] = {&weights->request_tokens, &weights->context_tokens, &weights->step_tokens, &weights->work_price,
                        &weights->decode_price,   &weights->later_max,    &weights->affinity};
    if (!PyTuple_Check(tuple) || PyTuple_Size(tuple) != 7) {
        PyErr_SetString(PyExc_TypeError, "the weights of a choice are a tuple of 7 numbers");
        return -1;
    }
    for (int at = 0; at < 7; at++) {
        *fields[at] = PyFloat_AsDouble(PyTuple_GetItem(tuple, at));
        if (*fields[at] == -1.0 && PyErr_Occurred())
            return -1;
    }
    return 0;
}

static int read_credits(PyObject *dictionary, struct kvr_credits *credits)
{
    memset(credits->ranks, 0, sizeof credits->ranks);
    PyObject *key, *value;
    Py_ssize_t place = 0;
    if (!PyDict_Check(dictionary)) {
        PyErr_SetString(PyExc_TypeError, "credits are a dict");
        return -1;
    }
    while (PyDict_Next(dictionary, &place, &key, &value)) {
        if (!PyLong_CheckExact(key) || !PyLong_CheckExact(value)) { /* Anything else could run code meanwhile. */
            PyErr_SetString(PyExc_TypeError, "ranks and their credits are integers");
            return -1;
        }
        uint32_t rank;
        if (kvr_read_rank(key, &rank))
            return -1;
        credits->tokens[rank] = PyLong_AsLongLong(value);
        if (credits->tokens[rank] == -1 && PyErr_Occurred())
            return -1;
        credits->ranks[rank / 64] |= UINT64_C(1) << rank % 64;
    }
    return 0;
}

/* Whether `load` goes first at equal cost: fewer requests, then chosen longer ago. */
static int waited_longer(const struct kvr_load *load, const struct kvr_load *other)
{
    return load->active_requests < other->active_requests ||
           (load->active_requests == other->active_requests && load->turn < other->turn);
}

/* What a rank is still busy with before it begins with what comes now. */
static double wait_of(const struct kvr_load *load, double now)
{
    double seconds = (double)load->prefill_tokens * load->token_seconds + (double)load->prefill_pairs * load->pair_seconds;
    double head = (double)load->head_tokens * load->token_seconds + (double)load->head_pairs * load->pair_seconds;
    double elapsed = now - load->head_since;
    if (load->waiting <= 0)
        return seconds;
    if (!(elapsed > 0.0))
        return seconds;
    double wait = seconds - (elapsed < head ? elapsed : head);
    double late = elapsed - (KVR_LATE_FACTOR * head + KVR_LATE_SECONDS);
    if (wait < 0.0)
        wait = 0.0;
    return late > 0.0 ? wait + late : wait;
}

/* Requests that share a step with what comes now: not those that were there when the running step began. */
static double mates_of(const struct kvr_load *load, double fresh, double limit)
{
    double inside = (double)load->begun, inside_tokens = (double)load->begun_tokens;
    if (inside_tokens > limit) {
        inside = inside * limit / inside_tokens;
        inside_tokens = limit;
    }
    double mates = (double)load->waiting - inside, step = (double)load->prefill_tokens - inside_tokens;
    if (!(mates > 0.0))
        mates = 0.0;
    step = (step > 0.0 ? step : 0.0) + fresh;
    return step > limit ? mates * limit / step : mates;
}

/* What is left of cached tokens; see `staying` of `kvrouter/routing/cost.py`. */
static long long staying(long long tokens, double losses)
{
    if (!(losses > 0.0))
        return tokens;
    return (long long)((double)tokens / (1.0 + losses * (1.0 + losses * 0.5 * (1.0 + losses / 3.0))));
}

/* Tokens that are lost because a prompt comes to a rank that has no room for it; see `overflow` of
 * `kvrouter/routing/cost.py`. */
static long long overflow(const struct kvr_load *load, long long tokens)
{
    if (load->room_tokens <= 0)
        return 0;
    long long over = load->decode_blocks * load->block_size + tokens - load->room_tokens;
    if (over <= 0)
        return 0;
    return (long long)((double)(over < tokens ? over : tokens) * load->room_loss);
}

/* Seconds for the last `fresh` tokens of a prompt. */
static double prefill_of(const struct kvr_load *load, double fresh, double tokens)
{
    return fresh * load->token_seconds + fresh * (2.0 * tokens - fresh) * 0.5 * load->pair_seconds;
}

/* Inlined where all candidates are compared: that is most of a choice among many. */
KVR_INLINE struct kvr_cost cost_of(const struct kvr_load *load, long long credit, double tokens,
                                   const struct kvr_weights *weights, double now, const struct kvr_shared_part *shared)
{
    double active = (double)load->active_requests, waiting = (double)load->waiting;
    struct kvr_cost cost = {.wait = wait_of(load, now)};
    long long lost = overflow(load, (long long)tokens), driven_out = lost > credit ? lost - credit : 0;
    cost.credit = staying(credit > lost ? credit - lost : 0, load->loss_rate * (cost.wait < load->loss_seconds ? cost.wait : load->loss_seconds));
    double fresh = tokens > (double)cost.credit ? tokens - (double)cost.credit : 0.0;
    cost.prefill = cost.charged = prefill_of(load, fresh, tokens);
    cost.first_token = load->first_seconds + cost.wait + cost.prefill;
    if (shared->most > cost.credit) {
        double least = prefill_of(load, tokens > (double)shared->most ? tokens - (double)shared->most : 0.0, tokens);
        cost.charged = least + (cost.prefill - least) / shared->holders;
    }
    if (driven_out > 0)
        cost.evicted = prefill_of(load, (double)driven_out, tokens);
    double running =
        (active * weights->request_tokens + (double)load->decode_blocks * (double)load->block_size * weights->context_tokens) *
        load->token_seconds;
    cost.mates = mates_of(load, fresh, weights->step_tokens);
    double later = load->urgency * (cost.wait + cost.prefill * 0.5);
    if (later > weights->later_max)
        later = weights->later_max;
    double decoding = active > waiting ? (active - waiting) * weights->decode_price : 0.0;
    cost.price = load->first_seconds + cost.wait + (waiting > 0.0 ? cost.prefill : cost.charged) + cost.evicted + running;
    cost.price += (cost.charged + cost.evicted) * (weights->work_price + cost.mates + later + decoding + load->miss_price);
    return cost;
}

struct kvr_cost kvr_cost_of(const struct kvr_load *load, long long credit, double tokens, const struct kvr_weights *weights,
                            double now, const struct kvr_shared_part *shared)
{
    return cost_of(load, credit, tokens, weights, now, shared);
}

/* Who has how much of a prompt. */
static struct kvr_shared_part shared_by(PyObject *loads, Py_ssize_t count, const struct kvr_credits *credits, double affinity)
{
    struct kvr_shared_part shared = {.holders = 1.0};
    for (Py_ssize_t at = 0; at < count; at++) {
        long long credit = kvr_credit(credits, kvr_load_of(PyTuple_GetItem(loads, at))->rank);
        shared.most = credit > shared.most ? credit : shared.most;
    }
    if (shared.most <= 0)
        return shared;
    long long holders = 0;
    for (Py_ssize_t at = 0; at < count; at++)
        holders += (double)kvr_credit(credits, kvr_load_of(PyTuple_GetItem(loads, at))->rank) >= (double)shared.most * affinity;
    shared.holders = (double)holders;
    return shared;
}

static void prefer(struct kvr_choice *choice, const struct kvr_load *load, const struct kvr_cost *cost,
                   Py_ssize_t position)
{
    if (choice->load == NULL || cost->price < choice->cost.price || (cost->price == choice->cost.price && waited_longer(load, choice->load))) {
        choice->load = load;
        choice->cost = *cost;
        choice->position = position;
    }
}

enum kvr_reason kvr_choose(PyObject *loads, Py_ssize_t count, const struct kvr_credits *credits, double tokens,
                           const struct kvr_weights *weights, double now, PyObject *extra, struct kvr_cost *costs,
                           struct kvr_choice *chosen)
{
    struct kvr_choice best = {.shared = shared_by(loads, count, credits, weights->affinity)};
    for (Py_ssize_t at = 0; at < count; at++) {
        const struct kvr_load *load = kvr_load_of(PyTuple_GetItem(loads, at));
        struct kvr_cost cost = cost_of(load, kvr_credit(credits, load->rank), tokens, weights, now, &best.shared);
        if (costs != NULL)
            costs[at] = cost;
        if (extra != NULL)
            cost.price += PyFloat_AsDouble(PyTuple_GetItem(extra, at));
        prefer(&best, load, &cost, at);
    }
    *chosen = best;
    if (best.shared.most <= 0)
        return KVR_REASON_LOAD;
    double credit = (double)kvr_credit(credits, best.load->rank);
    return credit >= (double)best.shared.most * weights->affinity ? KVR_REASON_AFFINITY : KVR_REASON_ESCAPE;
}

/* RankLoad.choose(loads, credits, tokens, weights, now) -> position and reason: 0 load, 1 affinity, 2 escape */
static PyObject *choose_among(PyObject *type, PyObject *const *arguments, Py_ssize_t given)
{
    struct kvr_credits credits;
    struct kvr_weights weights;
    struct kvr_choice chosen;
    if (given != 5) {
        PyErr_Format(PyExc_TypeError, "choose takes 5 arguments, not %zd", given);
        return NULL;
    }
    Py_ssize_t count = kvr_count_loads((PyTypeObject *)type, arguments[0]);
    if (count < 0 || read_credits(arguments[1], &credits) || kvr_read_weights(arguments[3], &weights))
        return NULL;
    double tokens = PyFloat_AsDouble(arguments[2]), now = PyFloat_AsDouble(arguments[4]);
    if (PyErr_Occurred())
        return NULL;
    enum kvr_reason reason = kvr_choose(arguments[0], count, &credits, tokens, &weights, now, NULL, NULL, &chosen);
    PyObject *position = PyLong_FromSsize_t(chosen.position), *number = PyLong_FromLong(reason);
    PyObject *result = position && number ? PyTuple_Pack(2, position, number) : NULL;
    Py_XDECREF(position);
    Py_XDECREF(number);
    return result;
}

/* -- the type ----------------------------------------------------------------------------------------------------- */

#define FAST(function) (PyCFunction)(void (*)(void))function

static PyMethodDef methods[] = {
    {"add", FAST(add), METH_FASTCALL, NULL},
    {"begin", FAST(begin), METH_FASTCALL, NULL},
    {"observe", FAST(observe), METH_FASTCALL, NULL},
    {"take", FAST(kvr_load_take), METH_FASTCALL, NULL},
    {"choose", FAST(choose_among), METH_FASTCALL | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef members[] = {
    {"rank", T_UINT, offsetof(struct kvr_load, rank), READONLY, NULL},
    {"turn", T_LONGLONG, offsetof(struct kvr_load, turn), 0, NULL},
    {"block_size", T_LONGLONG, offsetof(struct kvr_load, block_size), 0, NULL},
    {"arrivals", T_LONGLONG, offsetof(struct kvr_load, arrivals), READONLY, NULL},
    {"active_requests", T_LONGLONG, offsetof(struct kvr_load, active_requests), 0, NULL},
    {"prefill_tokens", T_LONGLONG, offsetof(struct kvr_load, prefill_tokens), 0, NULL},
    {"decode_blocks", T_LONGLONG, offsetof(struct kvr_load, decode_blocks), 0, NULL},
    {"prefill_pairs", T_LONGLONG, offsetof(struct kvr_load, prefill_pairs), 0, NULL},
    {"waiting", T_LONGLONG, offsetof(struct kvr_load, waiting), 0, NULL},
    {"begun", T_LONGLONG, offsetof(struct kvr_load, begun), READONLY, NULL},
    {"begun_tokens", T_LONGLONG, offsetof(struct kvr_load, begun_tokens), READONLY, NULL},
    {"head_tokens", T_LONGLONG, offsetof(struct kvr_load, head_tokens), READONLY, NULL},
    {"head_pairs", T_LONGLONG, offsetof(struct kvr_load, head_pairs), READONLY, NULL},
    {"head_since", T_DOUBLE, offsetof(struct kvr_load, head_since), READONLY, NULL},
    {"token_seconds", T_DOUBLE, offsetof(struct kvr_load, token_seconds), 0, NULL},
    {"pair_seconds", T_DOUBLE, offsetof(struct kvr_load, pair_seconds), 0, NULL},
    {"first_seconds", T_DOUBLE, offsetof(struct kvr_load, first_seconds), 0, NULL},
    {"urgency", T_DOUBLE, offsetof(struct kvr_load, urgency), 0, NULL},
    {"miss_price", T_DOUBLE, offsetof(struct kvr_load, miss_price), 0, NULL},
    {"loss_rate", T_DOUBLE, offsetof(struct kvr_load, loss_rate), 0, NULL},
    {"loss_seconds", T_DOUBLE, offsetof(struct kvr_load, loss_seconds), 0, NULL},
    {"room_tokens", T_LONGLONG, offsetof(struct kvr_load, room_tokens), 0, NULL},
    {"room_loss", T_DOUBLE, offsetof(struct kvr_load, room_loss), 0, NULL},
    {"belief", T_DOUBLE, offsetof(struct kvr_load, belief), 0, NULL},
    {"first_tokens", T_LONGLONG, offsetof(struct kvr_load, first_tokens), READONLY, NULL},
    {"predicted_seconds", T_DOUBLE, offsetof(struct kvr_load, predicted_seconds), READONLY, NULL},
    {"observed_seconds", T_DOUBLE, offsetof(struct kvr_load, observed_seconds), READONLY, NULL},
    {"error_seconds", T_DOUBLE, offsetof(struct kvr_load, error_seconds), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, (void *)"The native form of kvrouter.routing.load.RankLoad."},
    {Py_tp_new, (void *)new},
    {Py_tp_dealloc, (void *)dealloc},
    {Py_tp_repr, (void *)repr},
    {Py_tp_hash, (void *)PyObject_HashNotImplemented},
    {Py_tp_richcompare, (void *)compare},
    {Py_tp_methods, methods},
    {Py_tp_members, members},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "kvrouter._native.RankLoad",
    .basicsize = sizeof(struct kvr_load),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = slots,
};

int kvr_add_load_type(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &spec, NULL);
    if (type == NULL)
        return -1;
    int failed = PyModule_AddObjectRef(module, "RankLoad", type);
    Py_DECREF(type);
    return failed;
}
