/* The arguments of a fast call, by position or by name. */
#ifndef KVR_INDEX_ARGUMENTS_H
#define KVR_INDEX_ARGUMENTS_H

#include "python_abi.h"
#include "index_core.h"

#define KVR_ARGUMENTS_MAX 8

struct kvr_signature {
    const char *function;
    int required, most;
    const char *names[KVR_ARGUMENTS_MAX];
};

/* Sort arguments into `found`, NULL where absent: 0, or -1 with an exception set. */
int kvr_read_arguments(const struct kvr_signature *signature, PyObject *const *arguments, Py_ssize_t count,
                       PyObject *names, PyObject **found);

/* A rank 0..KVR_RANKS_MAX-1: 0, or -1 with an exception set. */
int kvr_read_rank(PyObject *object, uint32_t *rank);

/* The number of a tier, -1 if nothing was ever stored there, -2 with an exception set. */
int kvr_read_tier(const struct kvr_index *index, PyObject *name);

/* The same for storing: an unknown tier becomes known, if its name is sensible. -2 with an exception set. */
int kvr_read_new_tier(struct kvr_index *index, PyObject *name);

/* Python's own secret of this process, so that PYTHONHASHSEED makes every run alike. 0, or -1 with an exception set. */
int kvr_read_secret(uint64_t *secret);

#endif
