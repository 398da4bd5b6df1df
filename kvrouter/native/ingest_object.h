/* The blocks of a rank as a Python object, for the files that hold its methods. */
#ifndef KVR_INGEST_OBJECT_H
#define KVR_INGEST_OBJECT_H

#include "events_batch.h"
#include "ingest_rank.h"
#include "payloads.h"
#include "python_abi.h"

/* A group of layers of which events have told all that they can. */
struct kvr_group {
    uint32_t group, block_size;
    uint8_t has_kind, is_mamba, is_full;
};

struct kvr_table_object {
    PyObject_HEAD
    PyObject *index; /* keeps `rank.index` */
    struct kvr_rank rank;
    /* The reference's own dictionaries, looked at only while there is something in them: engine hash to namespace, to
     * keys inside a larger block, to stores that wait for it; and namespace to seed. */
    PyObject *namespaces, *inner, *orphans, *seeds;
    struct kvr_group *groups; /* the layout; without any, all is left to the reference */
    uint32_t group_count, unit;
    uint8_t names_namespaces, clears_all_tiers;
    size_t unknown_removals;
    Py_ssize_t run_end; /* Of the last run, the batches before this one were begun. */
    struct kvr_batch *batch; /* that is being applied */
    struct kvr_batch *space; /* for the next one of a run */
    int in_run;
    size_t next_event;
};

KVR_INLINE struct kvr_table_object *kvr_table_of(PyObject *object)
{
    return (struct kvr_table_object *)(void *)object;
}

/* A tier and a group; 0, or -1 with an exception set. */
int kvr_read_place(PyObject *tier, PyObject *group, uint32_t *tier_number, uint32_t *group_number);

/* Methods in `ingest_export.c`. */
PyObject *kvr_export_meanings(PyObject *self, PyObject *unused);
PyObject *kvr_export_blocks(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names);
PyObject *kvr_export_copies(PyObject *self, PyObject *unused);
PyObject *kvr_export_idle_hashes(PyObject *self, PyObject *unused);
PyObject *kvr_export_tiers(PyObject *self, PyObject *unused);

/* Methods in `ingest_layout.c`. */
PyObject *kvr_attach(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names);
PyObject *kvr_describe(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names);

/* Methods in `ingest_apply.c`. */
PyObject *kvr_apply(PyObject *self, PyObject *payload);
PyObject *kvr_tells(PyObject *self, PyObject *payload);
PyObject *kvr_proceed(PyObject *self, PyObject *unused);
void kvr_abandon(struct kvr_table_object *table);

/* What became of an event or a batch. */
enum { KVR_APPLIED = 0, KVR_FAILED = -1, KVR_LEFT = 1 };

/* In `ingest_namespaces.c`. Whether stores wait for one of the hashes; -1 with an exception set. */
int kvr_has_orphans(const struct kvr_table_object *table, const uint64_t *hashes, size_t count);
/* The namespace that children of an event's parent inherit, borrowed or NULL, and its seed. */
int kvr_inherit(const struct kvr_table_object *table, const struct kvr_event *event, PyObject **namespace,
                uint64_t *seed);
int kvr_note_namespace(const struct kvr_table_object *table, uint64_t hash, PyObject *namespace);

/* Read a payload, and find out whether it can be applied under the layout that is known; what is left to the reference
 * has not been begun. */
int kvr_begin(struct kvr_table_object *table, const struct kvr_payload *payload);
/* Apply events up to the first one that is left to the reference: its place, or None at the end. */
PyObject *kvr_go_on(struct kvr_table_object *table);
/* Give up the batch for an error: returns NULL, with an exception set. */
PyObject *kvr_fail(struct kvr_table_object *table);

/* Methods in `ingest_runs.c`. */
PyObject *kvr_apply_plain(PyObject *self, PyObject *const *arguments, Py_ssize_t given);

#endif
