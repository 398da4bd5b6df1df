/* An index as a Python object, for the files that hold its methods. */
#ifndef KVR_INDEX_OBJECT_H
#define KVR_INDEX_OBJECT_H

#include "index_answers.h"
#include "index_core.h"
#include "python_abi.h"

struct kvr_index_object {
    PyObject_HEAD
    struct kvr_index index;
    struct kvr_answers answers;
};

KVR_INLINE struct kvr_index *kvr_index_of(PyObject *object)
{
    return &((struct kvr_index_object *)(void *)object)->index;
}

KVR_INLINE int kvr_is_given(PyObject *argument)
{
    return argument != NULL && argument != Py_None;
}

KVR_INLINE struct kvr_answers *kvr_answers_of(PyObject *object)
{
    return &((struct kvr_index_object *)(void *)object)->answers;
}

struct kvr_keys;

/* Match keys that are open, in the tiers of a collection of names, or all if it is NULL or None. 0, or -1 with an
 * exception set. */
int kvr_match_keys(PyObject *self, struct kvr_keys *keys, int exact, PyObject *tiers, struct kvr_reaches *reaches);

/* The `k` ranks that have most, deepest first: a list of pairs. */
PyObject *kvr_list_best(const struct kvr_reaches *reaches, Py_ssize_t k);

/* How many are wanted: an integer, or NULL for 1. -1 with an exception set. */
Py_ssize_t kvr_read_k(PyObject *number);

PyObject *kvr_match_depths(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names);
PyObject *kvr_match(PyObject *self, PyTypeObject *defining, PyObject *const *arguments, Py_ssize_t count,
                    PyObject *names);
PyObject *kvr_match_tokens(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names);
PyObject *kvr_match_best(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names);
PyObject *kvr_match_many(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names);
PyObject *kvr_holds_bytes(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names);

/* Methods in `index_map_type.c`. */
PyObject *kvr_share_index(PyObject *self, PyObject *arguments);
PyObject *kvr_freeze_index(PyObject *self, PyObject *unused);

/* Methods in `index_budget_methods.c`. */
PyObject *kvr_budget_doubt(PyObject *self, PyObject *number);
PyObject *kvr_budget_trust(PyObject *self, PyObject *number);
PyObject *kvr_budget_dropped(PyObject *self, PyObject *unused);
PyObject *kvr_budget_charge(PyObject *self, PyObject *number);
PyObject *kvr_budget_admit(PyObject *self, PyObject *number);
PyObject *kvr_budget_losses(PyObject *self, PyObject *unused);
PyObject *kvr_budget_bytes_max(PyObject *self, PyObject *unused);
PyObject *kvr_budget_beside(PyObject *self, PyObject *unused);

#endif
