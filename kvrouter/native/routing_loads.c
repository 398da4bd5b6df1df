/* What ranks are busy with, and the choice among them: `RankLoad` of `kvrouter/routing/load.py` and the comparison of
 * `kvrouter/routing/kv.py`, which are the specification. */
#include "routing_loads.h"
#include "index_arguments.h"
#include "module.h"

#include <math.h>

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
    load->rank = rank;
    load->turn = 0;
    load->active_requests = requests;
    load->prefill_tokens = tokens;
    load->decode_blocks = blocks;
    return self;
}

static void dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
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

/* add(requests, tokens, blocks) */
static PyObject *add(PyObject *object, PyObject *const *arguments, Py_ssize_t given)
{
    if (given != 3) {
        PyErr_Format(PyExc_TypeError, "add takes 3 arguments, not %zd", given);
        return NULL;
    }
    long long numbers[3];
    for (int at = 0; at < 3; at++) {
        numbers[at] = PyLong_AsLongLong(arguments[at]);
        if (numbers[at] == -1 && PyErr_Occurred())
            return NULL;
    }
    struct kvr_load *load = kvr_load_of(object);
    /* Sums beyond 64 bits wrap; as unsigned numbers they may. */
    load->active_requests = (long long)((uint64_t)load->active_requests + (uint64_t)numbers[0]);
    load->prefill_tokens = (long long)((uint64_t)load->prefill_tokens + (uint64_t)numbers[1]);
    load->decode_blocks = (long long)((uint64_t)load->decode_blocks + (uint64_t)numbers[2]);
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
    double *fields[] = {&weights->token_seconds, &weights->request_seconds, &weights->block_seconds,
                        &weights->affinity,      &weights->escape_ratio,    &weights->escape_seconds};
    if (!PyTuple_Check(tuple) || PyTuple_Size(tuple) != 6) {
        PyErr_SetString(PyExc_TypeError, "the weights of a choice are a tuple of 6 numbers");
        return -1;
    }
    for (int at = 0; at < 6; at++) {
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

static void prefer(struct kvr_choice *choice, const struct kvr_load *load, double cost, Py_ssize_t position)
{
    if (cost < choice->cost || (cost == choice->cost && waited_longer(load, choice->load))) {
        choice->load = load;
        choice->cost = cost;
        choice->position = position;
    }
}

static long long credit_of(const struct kvr_load *load, const struct kvr_credits *credits)
{
    return kvr_credit(credits, load->rank);
}

enum kvr_reason kvr_choose(PyObject *loads, Py_ssize_t count, const struct kvr_credits *credits, double tokens,
                          const struct kvr_weights *weights, struct kvr_choice *chosen)
{
    const struct kvr_load *first = kvr_load_of(PyTuple_GetItem(loads, 0));
    struct kvr_choice best = {first, INFINITY, 0}, near = best;
    long long most = credit_of(first, credits);
    for (Py_ssize_t at = 1; at < count; at++) {
        long long credit = credit_of(kvr_load_of(PyTuple_GetItem(loads, at)), credits);
        most = credit > most ? credit : most;
    }
    double enough = (double)most * weights->affinity;
    for (Py_ssize_t at = 0; at < count; at++) {
        const struct kvr_load *load = kvr_load_of(PyTuple_GetItem(loads, at));
        double credit = (double)credit_of(load, credits);
        double cost = ((double)load->prefill_tokens + tokens - credit) * weights->token_seconds +
                      (double)load->active_requests * weights->request_seconds +
                      (double)load->decode_blocks * weights->block_seconds;
        prefer(&best, load, cost, at);
        if (credit >= enough)
            prefer(&near, load, cost, at);
    }
    *chosen = best;
    if (most == 0)
        return KVR_REASON_LOAD;
    double saved = (double)(credit_of(near.load, credits) - credit_of(best.load, credits)) * weights->token_seconds;
    double escape = weights->escape_ratio * saved;
    if (near.cost - best.cost > (weights->escape_seconds < escape ? weights->escape_seconds : escape))
        return KVR_REASON_ESCAPE;
    *chosen = near;
    return KVR_REASON_AFFINITY;
}

/* RankLoad.choose(loads, credits, tokens, weights) -> position and reason: 0 load, 1 affinity, 2 escape */
static PyObject *choose_among(PyObject *type, PyObject *const *arguments, Py_ssize_t given)
{
    struct kvr_credits credits;
    struct kvr_weights weights;
    struct kvr_choice chosen;
    if (given != 4) {
        PyErr_Format(PyExc_TypeError, "choose takes 4 arguments, not %zd", given);
        return NULL;
    }
    Py_ssize_t count = kvr_count_loads((PyTypeObject *)type, arguments[0]);
    if (count < 0 || read_credits(arguments[1], &credits) || kvr_read_weights(arguments[3], &weights))
        return NULL;
    double tokens = PyFloat_AsDouble(arguments[2]);
    if (tokens == -1.0 && PyErr_Occurred())
        return NULL;
    enum kvr_reason reason = kvr_choose(arguments[0], count, &credits, tokens, &weights, &chosen);
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
    {"choose", FAST(choose_among), METH_FASTCALL | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef members[] = {
    {"rank", T_UINT, offsetof(struct kvr_load, rank), READONLY, NULL},
    {"turn", T_LONGLONG, offsetof(struct kvr_load, turn), 0, NULL},
    {"active_requests", T_LONGLONG, offsetof(struct kvr_load, active_requests), 0, NULL},
    {"prefill_tokens", T_LONGLONG, offsetof(struct kvr_load, prefill_tokens), 0, NULL},
    {"decode_blocks", T_LONGLONG, offsetof(struct kvr_load, decode_blocks), 0, NULL},
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
