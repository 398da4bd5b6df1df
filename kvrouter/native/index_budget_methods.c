/* The bound on the bytes of an index, as Python sees it; `index_budget.h` says what it does. */
#include "index_arguments.h"
#include "index_object.h"

PyObject *kvr_budget_doubt(PyObject *self, PyObject *number)
{
    uint32_t rank;
    if (kvr_read_rank(number, &rank))
        return NULL;
    if (kvr_index_doubt(kvr_index_of(self), rank))
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

PyObject *kvr_budget_trust(PyObject *self, PyObject *number)
{
    uint32_t rank;
    if (kvr_read_rank(number, &rank))
        return NULL;
    kvr_index_trust(kvr_index_of(self), rank);
    Py_RETURN_NONE;
}

PyObject *kvr_budget_dropped(PyObject *self, PyObject *unused)
{
    (void)unused;
    const struct kvr_budget *budget = &kvr_index_of(self)->budget;
    return Py_BuildValue("{s:n,s:n}", "unconfirmed", (Py_ssize_t)budget->forgotten, "refused",
                         (Py_ssize_t)budget->refused);
}

/* charge(bytes): so many bytes more are kept beside the index, or fewer */
PyObject *kvr_budget_charge(PyObject *self, PyObject *number)
{
    Py_ssize_t change = PyLong_AsSsize_t(number);
    if (change == -1 && PyErr_Occurred())
        return NULL;
    kvr_index_of(self)->budget.beside += (size_t)change;
    Py_RETURN_NONE;
}

PyObject *kvr_budget_admit(PyObject *self, PyObject *number)
{
    size_t blocks = PyLong_AsSize_t(number);
    if (blocks == (size_t)-1 && PyErr_Occurred())
        return NULL;
    return PyBool_FromLong(kvr_index_admit(kvr_index_of(self), blocks));
}

/* losses() -> None, or the ranks that were forgotten and how many blocks were refused since this was last asked */
PyObject *kvr_budget_losses(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct kvr_budget *budget = &kvr_index_of(self)->budget;
    size_t refused = budget->refused - budget->refused_before;
    if (refused == 0 && budget->lost_count == 0)
        Py_RETURN_NONE;
    PyObject *ranks = PyTuple_New((Py_ssize_t)budget->lost_count);
    for (uint32_t at = 0; ranks != NULL && at < budget->lost_count; at++) {
        PyObject *rank = PyLong_FromUnsignedLong(budget->lost[at]);
        if (rank == NULL || PyTuple_SetItem(ranks, (Py_ssize_t)at, rank)) {
            Py_DECREF(ranks);
            return NULL;
        }
    }
    PyObject *losses = ranks == NULL ? NULL : Py_BuildValue("(On)", ranks, (Py_ssize_t)refused);
    Py_XDECREF(ranks);
    if (losses != NULL) {
        budget->lost_count = 0;
        budget->refused_before = budget->refused;
    }
    return losses;
}

PyObject *kvr_budget_bytes_max(PyObject *self, PyObject *unused)
{
    (void)unused;
    size_t bytes_max = kvr_index_of(self)->budget.bytes_max;
    if (bytes_max == 0)
        Py_RETURN_NONE;
    return PyLong_FromSize_t(bytes_max);
}

PyObject *kvr_budget_beside(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyLong_FromSize_t(kvr_index_of(self)->budget.beside);
}
