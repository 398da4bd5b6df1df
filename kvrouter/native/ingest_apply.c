/* Whole batches of plain events, from the engine's bytes into the tables; `kvrouter/ingest/rank_cache.py` says what every
 * event means.
 *
 * Whatever is not done here is left to it, event by event, in order, on the same tables: see `kvr_proceed`.
 */
#include "hashing.h"
#include "index_memory.h"
#include "ingest_object.h"

#define KEYS_ON_STACK 128

/* What became of an event. */
enum { APPLIED = KVR_APPLIED, FAILED = KVR_FAILED, LEFT = KVR_LEFT };

/* -- layout ------------------------------------------------------------------------------------------------------- */

static const struct kvr_group *find_group(const struct kvr_table_object *table, uint32_t group)
{
    for (uint32_t at = 0; at < table->group_count; at++)
        if (table->groups[at].group == group)
            return &table->groups[at];
    return NULL;
}

/* Whether a store says something about the layout that is not known yet. */
static int tells_layout(const struct kvr_table_object *table, const struct kvr_event *event)
{
    if (event->kind != KVR_STORED || event->tier != 0 || event->block_size == 0)
        return 0;
    const struct kvr_group *known = find_group(table, event->group);
    return known == NULL || (!known->has_kind && event->has_kind) ||
           (known->is_mamba && event->block_size > known->block_size);
}

/* -- learning ----------------------------------------------------------------------------------------------------- */

/* How many of an event's hashes have a meaning, and how many are not known at all. */
static void count_known(const struct kvr_rank *rank, const uint64_t *hashes, size_t count, size_t *known, size_t *new)
{
    *known = *new = 0;
    for (size_t at = 0; at < count; at++) {
        if (at + KVR_PREFETCH_BLOCKS < count)
            kvr_rank_prefetch(rank, hashes[at + KVR_PREFETCH_BLOCKS]);
        uint8_t *row;
        uint32_t number = kvr_rank_find_number(rank, hashes[at], &row);
        *new += row == NULL;
        *known += (size_t)kvr_copies_is_known(&rank->copies, number);
    }
}

/* The sequence hashes of the blocks of a store, into `keys`, and of the block before them. */
static int chain(const struct kvr_table_object *table, const struct kvr_event *event, PyObject **namespace,
                 uint64_t *keys, struct kvr_parent *parent)
{
    uint64_t seed;
    parent->present = event->has_parent;
    parent->hash = 0;
    if (event->has_parent) {
        const uint8_t *row = kvr_rank_find_known(&table->rank, event->parent);
        if (row == NULL)
            return LEFT;
        parent->hash = kvr_row_key(row);
    }
    int inherited = kvr_inherit(table, event, namespace, &seed);
    if (inherited != APPLIED)
        return inherited;
    size_t stride = 4 * (size_t)event->block_size;
    kvr_hash_blocks((const uint8_t *)(table->batch->tokens + event->tokens), (Py_ssize_t)event->hash_count, stride,
                    stride, seed, keys);
    kvr_chain(parent, keys, (Py_ssize_t)event->hash_count);
    return APPLIED;
}

static const uint64_t *hash_of(const struct kvr_parent *parent)
{
    return parent->present ? &parent->hash : NULL;
}

/* Give the hashes of an event their meaning, as far as they agree with what is known. */
static int learn_each(struct kvr_table_object *table, const uint64_t *hashes, const uint64_t *keys, size_t count,
                      PyObject *namespace)
{
    struct kvr_rank *rank = &table->rank;
    for (size_t at = 0; at < count; at++) {
        const uint8_t *row = kvr_rank_find_known(rank, hashes[at]);
        if (row != NULL && kvr_row_key(row) != keys[at])
            return APPLIED;
        if (row != NULL)
            continue;
        if (kvr_rank_learn(rank, hashes[at], keys[at]))
            return FAILED;
        if (namespace != NULL && kvr_note_namespace(table, hashes[at], namespace))
            return FAILED;
    }
    return APPLIED;
}

/* Whether the meaning of the hashes of a store, of which `new` were never heard of, can be told here. */
static int can_learn(const struct kvr_table_object *table, const struct kvr_event *event, size_t new)
{
    if (event->block_size != table->unit || event->token_count != event->hash_count * event->block_size ||
        (new < event->hash_count && PyDict_Size(table->inner) != 0))
        return 0;
    const uint64_t *hashes = table->batch->hashes + event->hashes;
    return kvr_has_orphans(table, hashes, event->hash_count) == 0;
}

/* Offloaded copies are described without salt and items: hashes would get the meaning of other blocks. */
static int may_learn(struct kvr_table_object *table, const struct kvr_event *event)
{
    if (event->tier != 0)
        return !table->names_namespaces || event->has_extra_keys;
    if (event->has_extra_keys)
        table->names_namespaces = 1;
    return 1;
}

/* -- events ------------------------------------------------------------------------------------------------------- */

/* Whether all hashes have a copy in a place already. */
static int are_all_in(const struct kvr_rank *rank, int place, const uint64_t *hashes, size_t count)
{
    for (size_t at = 0; at < count; at++) {
        uint8_t *row;
        if (!kvr_copies_in(&rank->copies, kvr_rank_find_number(rank, hashes[at], &row), (uint32_t)place))
            return 0;
    }
    return 1;
}

/* Whether this may be one of vLLM's reports of what it holds; the reference tells. */
static int may_be_repetition(const struct kvr_table_object *table, const struct kvr_event *event)
{
    if (event->tier != 0 || event->has_parent || !event->has_kind || table->group_count != 1)
        return 0;
    int place = kvr_rank_find_place(&table->rank, 0, event->group);
    return place >= 0 && are_all_in(&table->rank, place, table->batch->hashes + event->hashes, event->hash_count);
}

/* A store of tokens, not all of whose hashes are known; `new` of them were never heard of. */
static int store_and_learn(struct kvr_table_object *table, const struct kvr_event *event, size_t new)
{
    uint64_t few[KEYS_ON_STACK], *keys = few;
    size_t count = event->hash_count;
    const uint64_t *hashes = table->batch->hashes + event->hashes;
    struct kvr_rank *rank = &table->rank;
    if (!can_learn(table, event, new))
        return PyErr_Occurred() ? FAILED : LEFT;
    if (count > KEYS_ON_STACK && (keys = PyMem_Malloc(count * sizeof *keys)) == NULL)
        return FAILED;
    PyObject *namespace;
    struct kvr_parent parent;
    int done = chain(table, event, &namespace, keys, &parent);
    if (done == APPLIED) {
        int learns = may_learn(table, event), place = kvr_rank_add_place(rank, event->tier, event->group);
        done = place < 0 ? FAILED : APPLIED;
        if (done == APPLIED && learns && new == count && namespace == NULL) {
            done = kvr_rank_add_new(rank, (uint32_t)place, hashes, hash_of(&parent), keys, count);
        } else if (done == APPLIED) {
            done = learns ? learn_each(table, hashes, keys, count, namespace) : APPLIED;
            if (done == APPLIED)
                done = kvr_rank_add(rank, (uint32_t)place, hashes, count);
            kvr_index_note_chain(rank->index, hash_of(&parent), keys, count);
        }
    }
    if (keys != few)
        PyMem_Free(keys);
    return done;
}

/* Tell the index what the blocks of a store follow, if it has forgotten: it does when nobody holds them any more. Only
 * what their tokens say is told. */
static int note_chain(struct kvr_table_object *table, const struct kvr_event *event)
{
    size_t count = event->hash_count;
    if (event->block_size != table->unit || event->token_count != count * event->block_size)
        return APPLIED;
    const uint8_t *last = kvr_rank_find_known(&table->rank, table->batch->hashes[event->hashes + count - 1]);
    if (last == NULL || !kvr_index_is_loose(table->rank.index, kvr_row_key(last)))
        return APPLIED;
    uint64_t few[KEYS_ON_STACK], *keys = few;
    if (count > KEYS_ON_STACK && (keys = PyMem_Malloc(count * sizeof *keys)) == NULL)
        return FAILED;
    PyObject *namespace;
    struct kvr_parent parent;
    int done = chain(table, event, &namespace, keys, &parent);
    if (done == APPLIED)
        kvr_index_note_chain(table->rank.index, hash_of(&parent), keys, count);
    if (keys != few)
        PyMem_Free(keys);
    return done == FAILED ? FAILED : APPLIED;
}

static int is_new(const struct kvr_table_object *table, uint64_t hash)
{
    return kvr_rank_find(&table->rank, hash) == NULL;
}

static int store(struct kvr_table_object *table, const struct kvr_event *event)
{
    size_t known, new;
    const uint64_t *hashes = table->batch->hashes + event->hashes;
    kvr_rank_prefetch_first(&table->rank, hashes, event->hash_count);
    table->clears_all_tiers |= event->is_pinned;
    if (event->hash_count == 0)
        return APPLIED;
    if (may_be_repetition(table, event))
        return LEFT;
    if (!kvr_rank_admit(&table->rank, event->hash_count))
        return APPLIED;
    if (event->token_count > 0 && is_new(table, hashes[0]) && is_new(table, hashes[event->hash_count - 1])) {
        /* Then so are those between, as nearly always: they need not be looked for twice. */
        int done = store_and_learn(table, event, event->hash_count);
        if (done != LEFT)
            return done;
    }
    count_known(&table->rank, hashes, event->hash_count, &known, &new);
    if (event->token_count > 0 && known < event->hash_count)
        return store_and_learn(table, event, new);
    int place = kvr_rank_add_place(&table->rank, event->tier, event->group);
    if (place < 0 || kvr_rank_add(&table->rank, (uint32_t)place, hashes, event->hash_count))
        return FAILED;
    return event->token_count > 0 ? note_chain(table, event) : APPLIED;
}

static int remove_(struct kvr_table_object *table, const struct kvr_event *event)
{
    table->clears_all_tiers |= event->is_pinned;
    kvr_rank_prefetch_first(&table->rank, table->batch->hashes + event->hashes, event->hash_count);
    int place = kvr_rank_find_place(&table->rank, event->tier, event->group);
    if (place < 0) {
        table->unknown_removals += event->hash_count;
        return APPLIED;
    }
    return kvr_rank_remove(&table->rank, (uint32_t)place, table->batch->hashes + event->hashes, event->hash_count,
                           &table->unknown_removals);
}

/* vLLM means its GPU blocks and keeps offloaded ones, SGLang means its whole tree. */
static int clear(struct kvr_table_object *table)
{
    static const uint32_t by_name[KVR_TIERS] = {1, 2, 0};
    if (PyDict_Size(table->orphans) != 0)
        return LEFT;
    for (int at = 0; at < KVR_TIERS; at++)
        if ((by_name[at] == 0 || table->clears_all_tiers) && kvr_rank_clear_tier(&table->rank, by_name[at]))
            return FAILED;
    return APPLIED;
}

static int apply_event(struct kvr_table_object *table, const struct kvr_event *event)
{
    switch (event->kind) {
    case KVR_STORED:
        return store(table, event);
    case KVR_REMOVED:
        return remove_(table, event);
    case KVR_CLEARED:
        return clear(table);
    default:
        return LEFT;
    }
}

/* Other groups name their blocks by hashes that a full group explains, maybe later in the same batch. */
static int learn_from_full_groups(struct kvr_table_object *table)
{
    const struct kvr_batch *batch = table->batch;
    for (size_t at = 0; at < batch->event_count; at++) {
        const struct kvr_event *event = &batch->events[at];
        const struct kvr_group *group = find_group(table, event->group);
        size_t known, new;
        if (event->kind != KVR_STORED || event->tier != 0 || event->token_count == 0 || !group || !group->is_full ||
            (event->has_parent && kvr_rank_find_known(&table->rank, event->parent) == NULL) ||
            !kvr_rank_admit(&table->rank, 0))
            continue;
        const uint64_t *hashes = batch->hashes + event->hashes;
        count_known(&table->rank, hashes, event->hash_count, &known, &new);
        if (known == event->hash_count)
            continue;
        if (!can_learn(table, event, new))
            return PyErr_Occurred() ? FAILED : LEFT;
        uint64_t *keys = PyMem_Malloc(event->hash_count * sizeof *keys);
        if (keys == NULL)
            return FAILED;
        PyObject *namespace;
        struct kvr_parent parent;
        int done = chain(table, event, &namespace, keys, &parent);
        if (done == APPLIED && may_learn(table, event))
            done = learn_each(table, hashes, keys, event->hash_count, namespace);
        PyMem_Free(keys);
        if (done != APPLIED)
            return done;
    }
    return APPLIED;
}

/* -- batches ------------------------------------------------------------------------------------------------------ */

void kvr_abandon(struct kvr_table_object *table)
{
    struct kvr_batch *batch = table->batch;
    table->batch = NULL;
    if (batch == NULL)
        return;
    kvr_batch_close(batch);
    if (table->in_run && table->space == NULL)
        table->space = batch;
    else
        PyMem_Free(batch);
}

PyObject *kvr_fail(struct kvr_table_object *table)
{
    kvr_abandon(table);
    return PyErr_Occurred() ? NULL : PyErr_NoMemory();
}

static PyObject *place_of(const struct kvr_batch *batch, size_t position)
{
    const struct kvr_event *event = &batch->events[position];
    return Py_BuildValue("(nnn)", (Py_ssize_t)position, (Py_ssize_t)event->start, (Py_ssize_t)event->end);
}

PyObject *kvr_go_on(struct kvr_table_object *table)
{
    struct kvr_batch *batch = table->batch;
    while (table->next_event < batch->event_count) {
        size_t position = table->next_event++;
        int done = apply_event(table, &batch->events[position]);
        if (done == FAILED)
            return kvr_fail(table);
        if (done == LEFT)
            return place_of(batch, position);
    }
    kvr_abandon(table);
    Py_RETURN_NONE;
}

PyObject *kvr_proceed(PyObject *self, PyObject *unused)
{
    (void)unused;
    if (kvr_table_of(self)->batch == NULL)
        Py_RETURN_NONE;
    return kvr_go_on(kvr_table_of(self));
}

/* The places of events that the reference has to look at before anything is applied: those that are not plain, or with
 * `tells`, the first one of each group that tells something about the layout. */
static PyObject *list_places(const struct kvr_table_object *table, int tells)
{
    uint8_t seen[KVR_GROUPS_MAX] = {0};
    PyObject *list = PyList_New(0);
    for (size_t at = 0; list != NULL && at < table->batch->event_count; at++) {
        const struct kvr_event *event = &table->batch->events[at];
        if (tells ? !tells_layout(table, event) || seen[event->group] : event->kind != KVR_ODD)
            continue;
        seen[event->group] = 1;
        PyObject *place = place_of(table->batch, at);
        if (place == NULL || PyList_Append(list, place)) {
            Py_XDECREF(place);
            Py_DECREF(list);
            return NULL;
        }
        Py_DECREF(place);
    }
    return list;
}

/* `read` what has a buffer; FAILED with an exception set where it has none. */
static int with_buffer(struct kvr_table_object *table, PyObject *object,
                       int read(struct kvr_table_object *, const struct kvr_payload *))
{
    Py_buffer view;
    if (PyObject_GetBuffer(object, &view, PyBUF_SIMPLE))
        return FAILED;
    struct kvr_payload payload = {view.buf, (size_t)view.len};
    int done = read(table, &payload);
    PyBuffer_Release(&view);
    return done;
}

/* Read a payload; 0, FAILED, or LEFT where all of it is the reference's. */
static int read_payload(struct kvr_table_object *table, const struct kvr_payload *payload)
{
    kvr_abandon(table);
    table->batch = table->space != NULL ? table->space : PyMem_Malloc(sizeof *table->batch);
    table->space = NULL;
    table->next_event = 0;
    int read = table->batch == NULL ? -1 : kvr_batch_open(table->batch, payload->data, payload->size);
    return read < 0 ? FAILED : read > 0 ? LEFT : APPLIED;
}

int kvr_begin(struct kvr_table_object *table, const struct kvr_payload *payload)
{
    int read = table->group_count == 0 ? LEFT : read_payload(table, payload);
    if (read != APPLIED)
        return read;
    const struct kvr_batch *batch = table->batch;
    for (size_t at = 0; at < batch->event_count; at++)
        if (tells_layout(table, &batch->events[at]))
            return LEFT;
    if (table->group_count == 1)
        return APPLIED;
    return batch->odd_count ? LEFT : learn_from_full_groups(table);
}

PyObject *kvr_apply(PyObject *self, PyObject *payload)
{
    struct kvr_table_object *table = kvr_table_of(self);
    int begun = with_buffer(table, payload, kvr_begin);
    if (begun == LEFT) {
        kvr_abandon(table);
        Py_RETURN_NONE;
    }
    if (begun == FAILED)
        return kvr_fail(table);
    long long announced = table->batch->announced_rank;
    Py_ssize_t unknown = (Py_ssize_t)table->batch->unknown_fields;
    int has_odd = table->batch->odd_count > 0, cleared = table->batch->cleared_count > 0;
    PyObject *left = has_odd ? list_places(table, 0) : kvr_go_on(table);
    if (left == NULL) {
        kvr_abandon(table);
        return NULL;
    }
    PyObject *odd = has_odd ? left : Py_None, *stopped = has_odd ? Py_None : left;
    PyObject *rank = announced < 0 ? Py_NewRef(Py_None) : PyLong_FromLongLong(announced);
    PyObject *fields = PyLong_FromSsize_t(unknown), *read = NULL;
    if (rank != NULL && fields != NULL)
        read = PyTuple_Pack(5, rank, cleared ? Py_True : Py_False, fields, odd, stopped);
    Py_XDECREF(rank);
    Py_XDECREF(fields);
    Py_DECREF(left);
    if (read == NULL)
        kvr_abandon(table);
    return read;
}

PyObject *kvr_tells(PyObject *self, PyObject *payload)
{
    struct kvr_table_object *table = kvr_table_of(self);
    int read = with_buffer(table, payload, read_payload);
    if (read == FAILED)
        return kvr_fail(table);
    PyObject *places = NULL;
    if (read == APPLIED && table->batch->odd_count == 0)
        places = list_places(table, 1);
    kvr_abandon(table);
    if (places == NULL && !PyErr_Occurred())
        places = PyList_New(0);
    return places;
}
