/* A whole decision in one call: what ranks have of a prompt, confirmed and predicted, and the best of them.
 *
 * The same as, one after the other, `usable_tokens` of `kvrouter/ingest/lookup.py` for ranks that are all alike,
 * `promised` of `kvrouter/routing/predictions.py` and `choose` of `kvrouter/routing/kv.py`, without a Python object for
 * anything in between. Where a source is in doubt nothing is decided: that is for Python.
 */
#include "index_arguments.h"
#include "index_object.h"
#include "module.h"
#include "routing_landmarks.h"
#include "routing_loads.h"
#include "routing_predictions.h"
#include "routing_predictions_object.h"
#include "routing_tiers.h"

/* Candidates that are noted in a decision; of more, the chosen one and those that have some of the prompt. */
#define NOTED_MAX 64

/* A candidate: position, requests, those that wait, tokens, blocks, tokens promised, confirmed and credited; what it
 * costs, and what was known of the rank. */
struct row {
    long long numbers[8];
    double cost[7];
    double known[8];
};

/* How long predictions hold; see `kvrouter/routing/knowledge.py`. */
struct lifetimes {
    double live_seconds, unconfirmed_seconds;
    double patience;      /* how many times longer than predicted a prompt's computation may take */
    double refresh_share; /* of a lifetime, after which what is promised is written again */
};

struct weigher {
    PyObject_HEAD
    PyObject *index;
    PyTypeObject *load_type, *predictions_type;
    struct kvr_weights weights;
    struct lifetimes lifetimes;
    /* What would be too large for the stack. */
    struct kvr_overlap confirmed, predicted;
    struct kvr_known known[KVR_RANKS_MAX];
    struct kvr_credits promised, doubted;
    struct kvr_lower_tiers lower;
    struct kvr_cost costs[NOTED_MAX]; /* of as many candidates as are noted, of the last choice */
    const struct kvr_credits *credited; /* the former, or the latter where not all is believed */
};

struct prompt {
    const uint64_t *hashes;
    size_t count, block_size;
    long long tokens;
    /* Blocks that an engine can use: it computes at least the last token itself. */
    size_t usable;
};

static struct weigher *weigher_of(PyObject *object)
{
    return (struct weigher *)(void *)object;
}

/* -- what ranks have ---------------------------------------------------------------------------------------------- */

/* Blocks that events confirm, on the GPU. 0, or -1 with an exception set. */
static int find_confirmed(struct weigher *weigher, const struct prompt *prompt)
{
    const struct kvr_index *index = kvr_index_of(weigher->index);
    struct kvr_keys keys = {.array = prompt->hashes};
    uint8_t few[64], *selected = few;
    int tier = kvr_index_find_tier(index, "gpu", 3);
    weigher->confirmed.words = 0;
    if (tier < 0)
        return 0;
    keys.count = prompt->usable < prompt->count ? prompt->usable : prompt->count;
    if (index->tier_count == 1)
        return kvr_match_exact(index, &keys, NULL, &weigher->confirmed);
    if (index->tier_count > sizeof few && (selected = PyMem_Malloc(index->tier_count)) == NULL) {
        (void)PyErr_NoMemory();
        return -1;
    }
    memset(selected, 0, index->tier_count);
    selected[tier] = 1;
    int failed = kvr_match_exact(index, &keys, selected, &weigher->confirmed);
    if (selected != few)
        PyMem_Free(selected);
    return failed;
}

/* Whether one of the ranks that events confirm blocks of is in doubt; -1 with an exception set. */
static int is_doubtful(const struct weigher *weigher, PyObject *doubtful)
{
    Py_ssize_t count = PyObject_Size(doubtful);
    int found = count < 0 ? -1 : 0;
    for (uint32_t word = 0; found == 0 && count > 0 && word < weigher->confirmed.words; word++) {
        for (uint64_t bits = weigher->confirmed.ranks[word]; found == 0 && bits; bits &= bits - 1) {
            PyObject *rank = PyLong_FromUnsignedLong(word * 64 + (uint32_t)kvr_lowest_bit(bits));
            found = rank == NULL ? -1 : PySequence_Contains(doubtful, rank);
            Py_XDECREF(rank);
        }
    }
    return found;
}

static void promise(struct kvr_credits *promised, uint32_t rank, size_t tokens)
{
    promised->ranks[rank / 64] |= UINT64_C(1) << rank % 64;
    promised->tokens[rank] = (long long)tokens;
}

/* Fill `promised`: what is confirmed, or longer, what is predicted to follow it. 0, or -1 with an exception set. */
static int find_promised(struct weigher *weigher, const struct prompt *prompt, const struct kvr_predictions *predictions)
{
    size_t known_count = 0;
    memset(weigher->promised.ranks, 0, sizeof weigher->promised.ranks);
    for (uint32_t word = 0; word < weigher->confirmed.words; word++) {
        for (uint64_t bits = weigher->confirmed.ranks[word]; bits; bits &= bits - 1) {
            uint32_t rank = word * 64 + (uint32_t)kvr_lowest_bit(bits), depth = weigher->confirmed.depths[rank];
            promise(&weigher->promised, rank, depth * prompt->block_size);
            weigher->known[known_count].rank = rank;
            weigher->known[known_count++].position = kvr_landmarks_within(depth);
        }
    }
    if (predictions->written == 0)
        return 0;
    struct kvr_landmarks marks;
    if (kvr_landmarks_open(&marks, prompt->hashes, prompt->count)) {
        (void)PyErr_NoMemory();
        return -1;
    }
    kvr_predictions_match(predictions, marks.all, marks.count, weigher->known, known_count, &weigher->predicted);
    kvr_landmarks_close(&marks);
    for (uint32_t word = 0; word < weigher->predicted.words; word++) {
        for (uint64_t bits = weigher->predicted.ranks[word]; bits; bits &= bits - 1) {
            uint32_t rank = word * 64 + (uint32_t)kvr_lowest_bit(bits);
            size_t depth = kvr_landmark_depth(weigher->predicted.depths[rank]);
            size_t tokens = (depth < prompt->usable ? depth : prompt->usable) * prompt->block_size;
            if ((long long)tokens > kvr_credit(&weigher->promised, rank))
                promise(&weigher->promised, rank, tokens);
        }
    }
    return 0;
}

/* What counts of what is promised: all of it, where nobody is known to break promises; and what is in lower tiers.
 * 0, or -1 with an exception set. */
static int find_credited(struct weigher *weigher, const struct prompt *prompt, PyObject *loads, Py_ssize_t count,
                         PyObject *lower)
{
    Py_ssize_t tiers = PyTuple_Size(lower);
    int is_all = 1;
    for (Py_ssize_t at = 0; at < count; at++)
        is_all &= kvr_load_of(PyTuple_GetItem(loads, at))->belief == 1.0;
    weigher->credited = is_all && tiers == 0 ? &weigher->promised : &weigher->doubted;
    if (weigher->credited == &weigher->promised)
        return 0;
    kvr_copy_credits(&weigher->doubted, &weigher->promised);
    if (tiers > 0) {
        struct kvr_keys keys = {.array = prompt->hashes};
        keys.count = prompt->usable < prompt->count ? prompt->usable : prompt->count;
        if (kvr_credit_lower_tiers(kvr_index_of(weigher->index), &keys, prompt->block_size, lower, &weigher->doubted, &weigher->lower))
            return -1;
    }
    for (Py_ssize_t at = 0; !is_all && at < count; at++) {
        const struct kvr_load *load = kvr_load_of(PyTuple_GetItem(loads, at));
        weigher->doubted.tokens[load->rank] = kvr_believed(kvr_credit(&weigher->doubted, load->rank), load->belief);
    }
    return 0;
}

static long long confirmed_tokens(const struct weigher *weigher, const struct prompt *prompt, uint32_t rank)
{
    const struct kvr_overlap *confirmed = &weigher->confirmed;
    if (rank / 64 >= confirmed->words || !(confirmed->ranks[rank / 64] >> rank % 64 & 1))
        return 0;
    return (long long)(confirmed->depths[rank] * prompt->block_size);
}

/* -- the answer --------------------------------------------------------------------------------------------------- */

static void note_row(const struct weigher *weigher, const struct prompt *prompt, const struct kvr_load *load,
                     Py_ssize_t position, const struct kvr_cost *cost, struct row *row)
{
    *row = (struct row){.numbers = {position, load->active_requests, load->waiting, load->prefill_tokens, load->decode_blocks,
                                    kvr_credit(&weigher->promised, load->rank),
                                    confirmed_tokens(weigher, prompt, load->rank), cost->credit},
                        .cost = {cost->wait, cost->prefill, cost->first_token, cost->price, cost->mates, cost->charged,
                                 cost->evicted},
                        .known = {load->token_seconds, load->pair_seconds, load->first_seconds, load->urgency,
                                  load->miss_price, load->loss_rate, load->room_loss, (double)load->room_tokens}};
}

/* The same for one whose cost has not been kept. */
static void weigh_row(const struct weigher *weigher, const struct prompt *prompt, PyObject *loads, Py_ssize_t position,
                      const struct kvr_shared_part *shared, double now, struct row *row)
{
    const struct kvr_load *load = kvr_load_of(PyTuple_GetItem(loads, position));
    struct kvr_cost cost =
        kvr_cost_of(load, kvr_credit(weigher->credited, load->rank), (double)prompt->tokens, &weigher->weights, now, shared);
    note_row(weigher, prompt, load, position, &cost, row);
}

/* The candidates as they are now, for whoever asks why. */
static PyObject *note_rows(const struct weigher *weigher, const struct prompt *prompt, PyObject *loads, Py_ssize_t count,
                           const struct kvr_choice *choice, double now)
{
    struct row rows[NOTED_MAX], *out = rows;
    Py_ssize_t chosen = choice->position;
    if (count <= NOTED_MAX) {
        for (Py_ssize_t at = 0; at < count; at++)
            note_row(weigher, prompt, kvr_load_of(PyTuple_GetItem(loads, at)), at, &weigher->costs[at], out++);
        return PyBytes_FromStringAndSize((const char *)rows, (const char *)out - (const char *)rows);
    }
    weigh_row(weigher, prompt, loads, chosen, &choice->shared, now, out++);
    for (Py_ssize_t at = 0; at < count && out < rows + NOTED_MAX; at++)
        if (at != chosen && kvr_credit(&weigher->promised, kvr_load_of(PyTuple_GetItem(loads, at))->rank) != 0)
            weigh_row(weigher, prompt, loads, at, &choice->shared, now, out++);
    return PyBytes_FromStringAndSize((const char *)rows, (const char *)out - (const char *)rows);
}

/* What is answered about a choice. */
static PyObject *answer(const struct weigher *weigher, const struct prompt *prompt, PyObject *loads, Py_ssize_t count,
                        const struct kvr_choice *chosen, enum kvr_reason reason, double now)
{
    PyObject *rows = note_rows(weigher, prompt, loads, count, chosen, now);
    if (rows == NULL)
        return NULL;
    PyObject *parts[] = {PyLong_FromSsize_t(chosen->position),
                         PyLong_FromLong(reason),
                         PyLong_FromLongLong(kvr_credit(&weigher->promised, chosen->load->rank)),
                         PyLong_FromLongLong(confirmed_tokens(weigher, prompt, chosen->load->rank)),
                         PyLong_FromLongLong(chosen->cost.credit),
                         PyFloat_FromDouble(chosen->cost.first_token),
                         rows};
    PyObject *result = NULL;
    if (parts[0] && parts[1] && parts[2] && parts[3] && parts[4] && parts[5])
        result = PyTuple_Pack(7, parts[0], parts[1], parts[2], parts[3], parts[4], parts[5], parts[6]);
    for (size_t at = 0; at < sizeof parts / sizeof *parts; at++)
        Py_XDECREF(parts[at]);
    return result;
}

/* Predict that the chosen rank will hold the prompt. 0, or -1 with an exception set. */
static int predict(const struct weigher *weigher, const struct prompt *prompt, struct kvr_predictions *predictions,
                   const struct kvr_choice *chosen, PyObject *doubtful, double now)
{
    uint32_t rank = chosen->load->rank;
    PyObject *number = PyLong_FromUnsignedLong(rank);
    int is_doubtful = number == NULL ? -1 : PySequence_Contains(doubtful, number);
    Py_XDECREF(number);
    if (is_doubtful < 0)
        return -1;
    const struct lifetimes *lifetimes = &weigher->lifetimes;
    double lifetime = is_doubtful ? lifetimes->unconfirmed_seconds : lifetimes->live_seconds;
    struct kvr_landmarks marks;
    int failed = kvr_predictions_follow(predictions, rank, !is_doubtful);
    if (!failed && lifetime != 0.0 && !(failed = kvr_landmarks_open(&marks, prompt->hashes, prompt->count))) {
        size_t confirmed = (size_t)confirmed_tokens(weigher, prompt, rank);
        size_t promised = (size_t)kvr_credit(&weigher->promised, rank);
        failed = kvr_predictions_predict(predictions, rank, &marks, confirmed / prompt->block_size,
                                         promised / prompt->block_size, now + lifetimes->patience * chosen->cost.first_token + lifetime,
                                         now + lifetime * (1 - lifetimes->refresh_share));
        kvr_landmarks_close(&marks);
    }
    if (failed)
        (void)PyErr_NoMemory();
    return failed;
}

static int read_prompt(PyObject *hashes, PyObject *block_size, PyObject *tokens, struct prompt *prompt)
{
    if (!PyBytes_Check(hashes)) {
        PyErr_SetString(PyExc_TypeError, "the hashes of a prompt come as bytes");
        return -1;
    }
    Py_ssize_t size = PyLong_AsSsize_t(block_size), length = PyLong_AsSsize_t(tokens);
    if (PyErr_Occurred())
        return -1;
    if (size < 1 || length < 0) {
        PyErr_Format(PyExc_ValueError, "block_size is %zd and tokens %zd; at least 1 and 0 are needed", size, length);
        return -1;
    }
    prompt->hashes = (const uint64_t *)(const void *)PyBytes_AsString(hashes);
    prompt->count = (size_t)PyBytes_Size(hashes) / sizeof(uint64_t);
    prompt->block_size = (size_t)size;
    prompt->tokens = length;
    prompt->usable = length ? ((size_t)length - 1) / (size_t)size : 0;
    return 0;
}

/* Both may be given by whoever asks: 0 if `extra` is None or has a number for each candidate, and `lower` is a tuple. */
static int check_tuples(PyObject *extra, PyObject *lower, Py_ssize_t count)
{
    int fits = PyTuple_Check(lower) && (extra == Py_None || (PyTuple_Check(extra) && PyTuple_Size(extra) == count));
    for (Py_ssize_t at = 0; fits && extra != Py_None && at < count; at++)
        fits = PyFloat_CheckExact(PyTuple_GetItem(extra, at)); /* Anything else could run code meanwhile. */
    if (!fits)
        PyErr_SetString(PyExc_TypeError, "extra seconds are None or a float for each candidate, lower tiers a tuple");
    return !fits;
}

/* What both methods do. `turn` is NULL where nothing may be changed. */
static PyObject *decide(struct weigher *weigher, PyObject *const *arguments, PyObject *turn)
{
    struct prompt prompt;
    Py_ssize_t count = kvr_count_loads(weigher->load_type, arguments[0]);
    if (count < 0 || read_prompt(arguments[2], arguments[3], arguments[4], &prompt))
        return NULL;
    if (Py_TYPE(arguments[1]) != weigher->predictions_type) {
        PyErr_SetString(PyExc_TypeError, "predictions are PredictedBlocks");
        return NULL;
    }
    if (check_tuples(arguments[7], arguments[8], count))
        return NULL;
    double now = PyFloat_AsDouble(arguments[6]);
    long long number = turn ? PyLong_AsLongLong(turn) : 0;
    if (PyErr_Occurred())
        return NULL;
    struct kvr_predictions *predictions = kvr_predictions_of(arguments[1]);
    if (find_confirmed(weigher, &prompt))
        return NULL;
    int doubtful = is_doubtful(weigher, arguments[5]);
    if (doubtful)
        return doubtful < 0 ? NULL : Py_NewRef(Py_None);
    kvr_predictions_expire(predictions, now);
    if (find_promised(weigher, &prompt, predictions))
        return NULL;
    if (find_credited(weigher, &prompt, arguments[0], count, arguments[8]))
        return NULL;
    struct kvr_choice chosen;
    PyObject *extra = arguments[7] == Py_None ? NULL : arguments[7];
    enum kvr_reason reason =
        kvr_choose(arguments[0], count, weigher->credited, (double)prompt.tokens, &weigher->weights, now, extra,
                   count <= NOTED_MAX ? weigher->costs : NULL, &chosen);
    PyObject *result = answer(weigher, &prompt, arguments[0], count, &chosen, reason, now);
    if (turn != NULL && result != NULL) {
        kvr_load_of(PyTuple_GetItem(arguments[0], chosen.position))->turn = number;
        if (predict(weigher, &prompt, predictions, &chosen, arguments[5], now)) {
            Py_DECREF(result);
            return NULL;
        }
    }
    return result;
}

/* weigh(loads, predictions, hashes, block_size, tokens, doubtful, now, extra seconds, lower tiers)
 * -> position, reason, tokens promised, confirmed and credited, cost, rows; None where a rank in doubt has some of the prompt */
static PyObject *weigh(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    if (given == 9)
        return decide(weigher_of(self), arguments, NULL);
    PyErr_Format(PyExc_TypeError, "weigh takes 9 arguments, not %zd", given);
    return NULL;
}

/* place(..., turn) -> the same; and the chosen rank has had this turn, and is predicted to hold the prompt */
static PyObject *place(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    if (given == 10)
        return decide(weigher_of(self), arguments, arguments[9]);
    PyErr_Format(PyExc_TypeError, "place takes 10 arguments, not %zd", given);
    return NULL;
}

/* -- the type ----------------------------------------------------------------------------------------------------- */

static int fill(struct weigher *weigher, PyTypeObject *type, PyObject *index, PyObject *weights)
{
    PyTypeObject *index_type = kvr_sibling_type(type, "PrefixIndex");
    if (index_type == NULL)
        return -1;
    int fits = PyType_IsSubtype(Py_TYPE(index), index_type);
    Py_DECREF(index_type);
    if (!fits) {
        PyErr_SetString(PyExc_TypeError, "a weigher needs a PrefixIndex");
        return -1;
    }
    weigher->index = Py_NewRef(index);
    weigher->load_type = kvr_sibling_type(type, "RankLoad");
    if (weigher->load_type == NULL) /* Looking further would lose why. */
        return -1;
    weigher->predictions_type = kvr_sibling_type(type, "PredictedBlocks");
    return weigher->predictions_type == NULL ? -1 : kvr_read_weights(weights, &weigher->weights);
}

static PyObject *new(PyTypeObject *type, PyObject *arguments, PyObject *names)
{
    static char *known[] = {"index", "weights", "lifetimes", NULL};
    PyObject *index, *weights;
    struct lifetimes lifetimes;
    if (!PyArg_ParseTupleAndKeywords(arguments, names, "OO(dddd):Weigher", known, &index, &weights,
                                     &lifetimes.live_seconds, &lifetimes.unconfirmed_seconds, &lifetimes.patience,
                                     &lifetimes.refresh_share))
        return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    PyObject *self = allocate(type, 0); /* All zero. */
    if (self != NULL && fill(weigher_of(self), type, index, weights)) {
        Py_DECREF(self);
        return NULL;
    }
    if (self != NULL)
        weigher_of(self)->lifetimes = lifetimes;
    return self;
}

static void dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    Py_XDECREF(weigher_of(object)->index);
    Py_XDECREF((PyObject *)weigher_of(object)->load_type);
    Py_XDECREF((PyObject *)weigher_of(object)->predictions_type);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static PyMethodDef methods[] = {
    {"weigh", (PyCFunction)(void (*)(void))weigh, METH_FASTCALL, NULL},
    {"place", (PyCFunction)(void (*)(void))place, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, (void *)"Decides in one call; see kvrouter.routing.router."},
    {Py_tp_new, (void *)new},
    {Py_tp_dealloc, (void *)dealloc},
    {Py_tp_methods, methods},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "kvrouter._native.Weigher",
    .basicsize = sizeof(struct weigher),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = slots,
};

int kvr_add_weigher_type(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &spec, NULL);
    if (type == NULL)
        return -1;
    int failed = PyModule_AddObjectRef(module, "Weigher", type);
    Py_DECREF(type);
    return failed;
}
