/* Requests on their rank, from the choice to the end: `Booking` of `kvrouter/routing/rank_load.py` is the specification.
 *
 * Those that wait for their first token stand in the queue of their rank's load. The queue does not own them: whoever
 * drops a booking without ending it takes it out of the queue.
 */
#include "index_arguments.h"
#include "module.h"
#include "routing_loads.h"

/* Of a prompt of three million tokens; a million of those fit into 64 bits. */
#define PAIRS_MAX (INT64_C(1) << 42)

struct kvr_booking {
    PyObject_HEAD
    PyObject *load;
    double booked_at, work_since;
    long long work_tokens, work_pairs;
    long long prefill_tokens, prefill_pairs;
    long long own, counted, over_tokens;
    double weight, deadline;
    PyObject *outcome, *hashes, *lease; /* NULL is None */
    struct kvr_booking *before, *behind; /* in the queue */
    uint32_t rank;
    char is_waiting;
};

static struct kvr_booking *booking_of(PyObject *object)
{
    return (struct kvr_booking *)(void *)object;
}

/* Pairs of a token and one before it; bounded, so that sums fit. */
static long long pairs_of(long long prefill_tokens, long long prompt_tokens)
{
    if (prefill_tokens == 0)
        return 0;
    double twice = (double)prefill_tokens * (2.0 * (double)prompt_tokens - (double)prefill_tokens);
    if (twice >= 2.0 * (double)PAIRS_MAX)
        return PAIRS_MAX;
    return prefill_tokens * (2 * prompt_tokens - prefill_tokens) / 2;
}

/* -- the queue ---------------------------------------------------------------------------------------------------- */

static void enqueue(struct kvr_load *load, struct kvr_booking *booking)
{
    booking->before = load->last;
    if (load->last != NULL)
        load->last->behind = booking;
    else
        load->first = booking;
    load->last = booking;
}

static void leave_queue(struct kvr_load *load, struct kvr_booking *booking)
{
    if (booking->before != NULL)
        booking->before->behind = booking->behind;
    else
        load->first = booking->behind;
    if (booking->behind != NULL)
        booking->behind->before = booking->before;
    else
        load->last = booking->before;
    booking->before = booking->behind = NULL;
    booking->is_waiting = 0;
}

/* -- the life of a booking ---------------------------------------------------------------------------------------- */

/* RankLoad.take(prefill_tokens, prompt_tokens, blocks, now) -> Booking */
PyObject *kvr_load_take(PyObject *object, PyObject *const *arguments, Py_ssize_t given)
{
    long long numbers[3];
    if (given != 4) {
        PyErr_Format(PyExc_TypeError, "take takes 4 arguments, not %zd", given);
        return NULL;
    }
    double now = PyFloat_AsDouble(arguments[3]);
    if ((now == -1.0 && PyErr_Occurred()) || kvr_read_numbers(arguments, 3, numbers))
        return NULL;
    if (numbers[0] < 0 || numbers[2] < 0) {
        PyErr_SetString(PyExc_ValueError, "tokens and blocks of a booking must be at least 0");
        return NULL;
    }
    struct kvr_load *load = kvr_load_of(object);
    PyObject *taken = PyType_GenericAlloc(load->booking_type, 0); /* All zero. */
    if (taken == NULL)
        return NULL;
    long long tokens = numbers[0], prompt = numbers[1] > tokens ? numbers[1] : tokens, pairs = pairs_of(tokens, prompt);
    int is_first = load->waiting <= 0;
    kvr_load_add(load, (const long long[]){1, tokens, numbers[2], pairs, 1});
    if (is_first)
        kvr_load_begin(load, tokens, pairs, now);
    struct kvr_booking *booking = booking_of(taken);
    booking->load = Py_NewRef(object);
    booking->rank = load->rank;
    booking->booked_at = now;
    booking->work_since = load->head_since;
    booking->work_tokens = load->prefill_tokens;
    booking->work_pairs = load->prefill_pairs;
    booking->prefill_tokens = tokens;
    booking->prefill_pairs = pairs;
    booking->own = booking->counted = numbers[2];
    long long over = load->decode_blocks * load->block_size - load->room_tokens;
    booking->over_tokens = load->room_tokens > 0 && over > 0 ? over : 0;
    booking->weight = 1.0;
    booking->is_waiting = 1;
    enqueue(load, booking);
    return taken;
}

static void compute(struct kvr_booking *booking, double now)
{
    struct kvr_load *load = kvr_load_of(booking->load);
    int is_front = load->first == booking;
    leave_queue(load, booking);
    kvr_load_add(load, (const long long[]){0, -booking->prefill_tokens, 0, -booking->prefill_pairs, -1});
    booking->prefill_tokens = booking->prefill_pairs = 0;
    if (load->first == NULL)
        kvr_load_begin(load, 0, 0, now);
    else if (is_front)
        kvr_load_begin(load, load->first->prefill_tokens, load->first->prefill_pairs, now);
}

/* computed(now) */
static PyObject *computed(PyObject *object, PyObject *argument)
{
    double now = PyFloat_AsDouble(argument);
    if (now == -1.0 && PyErr_Occurred())
        return NULL;
    if (booking_of(object)->is_waiting)
        compute(booking_of(object), now);
    Py_RETURN_NONE;
}

/* end(now) */
static PyObject *end(PyObject *object, PyObject *argument)
{
    struct kvr_booking *booking = booking_of(object);
    struct kvr_load *load = kvr_load_of(booking->load);
    double now = argument == Py_None ? load->head_since : PyFloat_AsDouble(argument);
    if (now == -1.0 && PyErr_Occurred())
        return NULL;
    if (booking->is_waiting)
        compute(booking, now);
    kvr_load_add(load, (const long long[]){-1, 0, -booking->counted, 0, 0});
    Py_RETURN_NONE;
}

/* -- the type ----------------------------------------------------------------------------------------------------- */

static void dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    struct kvr_booking *booking = booking_of(object);
    if (booking->is_waiting)
        leave_queue(kvr_load_of(booking->load), booking);
    Py_XDECREF(booking->load);
    Py_XDECREF(booking->outcome);
    Py_XDECREF(booking->hashes);
    Py_XDECREF(booking->lease);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static PyMethodDef methods[] = {
    {"computed", computed, METH_O, NULL},
    {"end", end, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

#define MEMBER(name, type, flags) {#name, type, offsetof(struct kvr_booking, name), flags, NULL}

static PyMemberDef members[] = {
    MEMBER(load, T_OBJECT_EX, READONLY),
    MEMBER(rank, T_UINT, READONLY),
    MEMBER(booked_at, T_DOUBLE, READONLY),
    MEMBER(work_since, T_DOUBLE, READONLY),
    MEMBER(work_tokens, T_LONGLONG, READONLY),
    MEMBER(work_pairs, T_LONGLONG, READONLY),
    MEMBER(prefill_tokens, T_LONGLONG, READONLY),
    MEMBER(prefill_pairs, T_LONGLONG, READONLY),
    MEMBER(is_waiting, T_BOOL, READONLY),
    MEMBER(over_tokens, T_LONGLONG, 0),
    MEMBER(own, T_LONGLONG, 0),
    MEMBER(counted, T_LONGLONG, 0),
    MEMBER(weight, T_DOUBLE, 0),
    MEMBER(deadline, T_DOUBLE, 0),
    MEMBER(outcome, T_OBJECT, 0),
    MEMBER(hashes, T_OBJECT, 0),
    MEMBER(lease, T_OBJECT, 0),
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, (void *)"The native form of kvrouter.routing.rank_load.Booking; loads make them."},
    {Py_tp_dealloc, (void *)dealloc},
    {Py_tp_methods, methods},
    {Py_tp_members, members},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "kvrouter._native.Booking",
    .basicsize = sizeof(struct kvr_booking),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = slots,
};

int kvr_add_booking_type(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &spec, NULL);
    if (type == NULL)
        return -1;
    int failed = PyModule_AddObjectRef(module, "Booking", type);
    Py_DECREF(type);
    return failed;
}
