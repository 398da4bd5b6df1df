/* Runs of batches: what comes one after the other is applied in one call, as long as there is nothing to say about it. */
#include "ingest_object.h"

/* Apply one batch of a run: KVR_APPLIED or KVR_FAILED, or KVR_LEFT if there is something to say about it. Then `*stop` is NULL where
 * nothing was applied, else the place of the event where the reference goes on. */
static int apply_one_plain(struct kvr_table_object *table, PyObject *payload, PyObject **stop, long long *announced)
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

/* Apply payloads from a position on, up to the first of which there is more to say than that it was applied. Returns how
 * many, the rank that was announced last, and where the reference goes on in the one after them, or None. */
PyObject *kvr_apply_plain(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    struct kvr_table_object *table = kvr_table_of(self);
    if (given != 2 || !PyList_Check(arguments[0]))
        return PyErr_Format(PyExc_TypeError, "apply_plain takes a list and a position");
    Py_ssize_t start = PyLong_AsSsize_t(arguments[1]), at = start;
    if (start < 0)
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "position %zd", start);
    long long announced = -1;
    PyObject *stop = NULL;
    int done = KVR_APPLIED;
    table->run_end = start;
    for (; at < PyList_Size(arguments[0]); at++) {
        table->run_end = at + 1;
        PyObject *payload = Py_NewRef(PyList_GetItem(arguments[0], at));
        done = apply_one_plain(table, payload, &stop, &announced);
        Py_DECREF(payload);
        if (done != KVR_APPLIED)
            break;
    }
    if (done == KVR_FAILED)
        return kvr_fail(table);
    if (stop == NULL) {
        kvr_abandon(table);
        table->run_end = at;
    }
    PyObject *rank = announced < 0 ? Py_NewRef(Py_None) : PyLong_FromLongLong(announced);
    PyObject *read = Py_BuildValue("(nNN)", at - start, rank, stop == NULL ? Py_NewRef(Py_None) : stop);
    return read == NULL ? kvr_fail(table) : read;
}
