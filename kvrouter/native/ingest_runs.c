/* Runs of batches: what comes one after the other is applied in one call, as long as there is nothing to say about it. */
#include "ingest_object.h"

/* Apply one batch of a run: KVR_APPLIED or KVR_FAILED, or KVR_LEFT if there is something to say about it. Then `*stop` is NULL where
 * nothing was applied, else the place of the event where the reference goes on. */
static int apply_one_plain(struct kvr_table_object *table, const struct kvr_payload *payload, PyObject **stop,
                           long long *announced)
{
    int begun = kvr_begin(table, payload);
    if (begun != KVR_APPLIED)
        return begun;
    const struct kvr_batch *batch = table->batch;
    if (batch->odd_count || batch->cleared_count || batch->unknown_fields)
        return KVR_LEFT;
    *announced = batch->announced_rank;
    PyObject *left = kvr_go_on(table);
    if (left == NULL)
        return KVR_FAILED;
    if (left != Py_None) {
        *stop = left;
        return KVR_LEFT;
    }
    Py_DECREF(left);
    return KVR_APPLIED;
}

/* Apply payloads from `*at` on, up to the one that it says then. */
static int apply_all_plain(struct kvr_table_object *table, PyObject *payloads, Py_ssize_t *at, PyObject **stop,
                           long long *announced)
{
    int done = KVR_APPLIED;
    for (; *at < kvr_payloads_count(payloads); ++*at) {
        struct kvr_payload payload;
        Py_buffer view;
        table->run_end = *at + 1;
        if (kvr_payload_open(payloads, *at, &view, &payload))
            return KVR_FAILED;
        done = apply_one_plain(table, &payload, stop, announced);
        kvr_payload_close(&view);
        if (done != KVR_APPLIED)
            break;
    }
    return done;
}

/* The space of a run's batches is used again for each, unless one of them is still there. */
static void end_run(struct kvr_table_object *table)
{
    table->in_run = 0;
    PyMem_Free(table->space);
    table->space = NULL;
}

/* Apply payloads from a position on, up to the first of which there is more to say than that it was applied. Returns how
 * many, the rank that was announced last, and where the reference goes on in the one after them, or None. */
PyObject *kvr_apply_plain(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    struct kvr_table_object *table = kvr_table_of(self);
    if (given != 2 || (!PyList_Check(arguments[0]) && !kvr_are_payloads(arguments[0])))
        return PyErr_Format(PyExc_TypeError, "apply_plain takes payloads and a position");
    Py_ssize_t start = PyLong_AsSsize_t(arguments[1]), at = start;
    if (start < 0)
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "position %zd", start);
    long long announced = -1;
    PyObject *stop = NULL;
    table->run_end = start;
    table->in_run = 1;
    int done = apply_all_plain(table, arguments[0], &at, &stop, &announced);
    if (done != KVR_FAILED && stop == NULL) {
        kvr_abandon(table);
        table->run_end = at;
    }
    PyObject *read = NULL;
    if (done != KVR_FAILED) {
        PyObject *rank = announced < 0 ? Py_NewRef(Py_None) : PyLong_FromLongLong(announced);
        read = Py_BuildValue("(nNN)", at - start, rank, stop == NULL ? Py_NewRef(Py_None) : stop);
    }
    if (read == NULL)
        (void)kvr_fail(table);
    end_run(table);
    return read;
}
