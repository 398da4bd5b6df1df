/* `BlockTable`, as Python sees it; `kvrouter/ingest/block_table.py` says what every method does. */
#include "index_arguments.h"
#include "index_keys.h"
#include "index_memory.h"
#include "index_object.h"
#include "ingest_object.h"
#include "module.h"

typedef PyObject *method(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names);

/* Where the type remembers the type of the indexes that it works on. */
#define INDEX_TYPE "_index_type"

static PyObject *no_memory_or_none(int failed)
{
    if (failed)
        return PyErr_Occurred() ? NULL : PyErr_NoMemory();
    Py_RETURN_NONE;
}

/* -- arguments ---------------------------------------------------------------------------------------------------- */

/* Read (tier, group, hashes): the number of the place, -1 if there never was anything, -2 with an exception set. The
 * keys are open unless it is -2. */
static int read_change(PyObject *self, PyObject **found, struct kvr_keys *keys, int is_new)
{
    uint32_t tier, group;
    struct kvr_rank *rank = &kvr_table_of(self)->rank;
    if (kvr_read_place(found[0], found[1], &tier, &group) || kvr_keys_open(keys, found[2]))
        return -2;
    int place = is_new ? kvr_rank_add_place(rank, tier, group) : kvr_rank_find_place(rank, tier, group);
    if (place < 0 && is_new) {
        kvr_keys_close(keys);
        (void)PyErr_NoMemory();
        return -2;
    }
    return place;
}

/* -- meanings: a mapping ------------------------------------------------------------------------------------------ */

static const uint8_t *find(PyObject *self, PyObject *hash)
{
    uint64_t number;
    if (kvr_read_uint64(hash, &number))
        return NULL;
    return kvr_rank_find_known(&kvr_table_of(self)->rank, number);
}

static PyObject *get(PyObject *self, PyObject *hash)
{
    const uint8_t *row = find(self, hash);
    if (row != NULL)
        return PyLong_FromUnsignedLongLong(kvr_row_key(row));
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *subscript(PyObject *self, PyObject *hash)
{
    const uint8_t *row = find(self, hash);
    if (row != NULL)
        return PyLong_FromUnsignedLongLong(kvr_row_key(row));
    if (!PyErr_Occurred())
        PyErr_Format(PyExc_KeyError, "%S", hash);
    return NULL;
}

static int assign(PyObject *self, PyObject *hash, PyObject *key)
{
    uint64_t number, meaning;
    struct kvr_rank *rank = &kvr_table_of(self)->rank;
    if (kvr_read_uint64(hash, &number) || (key != NULL && kvr_read_uint64(key, &meaning)))
        return -1;
    int done = key != NULL ? kvr_rank_learn(rank, number, meaning) : kvr_rank_forget(rank, number);
    if (done > 0)
        PyErr_Format(PyExc_KeyError, "%S has no meaning, or has copies", hash);
    else if (done < 0)
        (void)PyErr_NoMemory();
    return done ? -1 : 0;
}

static int contains(PyObject *self, PyObject *hash)
{
    const uint8_t *row = find(self, hash);
    return row != NULL ? 1 : PyErr_Occurred() ? -1 : 0;
}

static Py_ssize_t length(PyObject *self)
{
    const struct kvr_rank *rank = &kvr_table_of(self)->rank;
    return (Py_ssize_t)(rank->aliases.used - kvr_queue_count(&rank->unresolved));
}

/* -- copies ------------------------------------------------------------------------------------------------------- */

static PyObject *add(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names)
{
    static const struct kvr_signature signature = {"add", 3, 3, {"tier", "group", "hashes"}};
    PyObject *found[3];
    struct kvr_keys keys;
    if (kvr_read_arguments(&signature, arguments, count, names, found))
        return NULL;
    int place = read_change(self, found, &keys, 1);
    if (place < 0)
        return NULL;
    int failed = kvr_rank_add(&kvr_table_of(self)->rank, (uint32_t)place, keys.array, keys.count);
    kvr_keys_close(&keys);
    return no_memory_or_none(failed);
}

static PyObject *remove_(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names)
{
    static const struct kvr_signature signature = {"remove", 3, 3, {"tier", "group", "hashes"}};
    PyObject *found[3];
    struct kvr_keys keys;
    if (kvr_read_arguments(&signature, arguments, count, names, found))
        return NULL;
    int place = read_change(self, found, &keys, 0), failed = 0;
    if (place == -2)
        return NULL;
    size_t *unknown = &kvr_table_of(self)->unknown_removals;
    if (place >= 0)
        failed = kvr_rank_remove(&kvr_table_of(self)->rank, (uint32_t)place, keys.array, keys.count, unknown);
    else
        *unknown += keys.count;
    kvr_keys_close(&keys);
    return no_memory_or_none(failed);
}

static PyObject *holds_all(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names)
{
    static const struct kvr_signature signature = {"holds_all", 3, 3, {"tier", "group", "hashes"}};
    PyObject *found[3];
    struct kvr_keys keys;
    const struct kvr_rank *rank = &kvr_table_of(self)->rank;
    if (kvr_read_arguments(&signature, arguments, count, names, found))
        return NULL;
    int place = read_change(self, found, &keys, 0);
    if (place == -2)
        return NULL;
    size_t held = 0;
    while (place >= 0 && held < keys.count) {
        uint8_t *row;
        if (!kvr_copies_in(&rank->copies, kvr_rank_find_number(rank, keys.array[held], &row), (uint32_t)place))
            break;
        held++;
    }
    PyObject *answer = PyBool_FromLong(held == keys.count);
    kvr_keys_close(&keys);
    return answer;
}

static PyObject *holds(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names)
{
    static const struct kvr_signature signature = {"holds", 3, 3, {"tier", "group", "key"}};
    PyObject *found[3];
    uint32_t tier, group;
    uint64_t key;
    const struct kvr_rank *rank = &kvr_table_of(self)->rank;
    if (kvr_read_arguments(&signature, arguments, count, names, found) ||
        kvr_read_place(found[0], found[1], &tier, &group) || kvr_read_uint64(found[2], &key))
        return NULL;
    int place = kvr_rank_find_place(rank, tier, group);
    return PyBool_FromLong(place >= 0 && kvr_rank_holds(rank, (uint32_t)place, key));
}

/* -- the rest ----------------------------------------------------------------------------------------------------- */

static PyObject *settle(PyObject *self, PyObject *hashes)
{
    (void)self; /* Copies count from the moment their hash is learnt. */
    (void)hashes;
    Py_RETURN_NONE;
}

static PyObject *retire(PyObject *self, PyObject *hashes)
{
    struct kvr_keys keys;
    int failed = 0;
    if (kvr_keys_open(&keys, hashes))
        return NULL;
    for (size_t at = 0; at < keys.count && !failed; at++)
        failed = kvr_rank_retire(&kvr_table_of(self)->rank, keys.array[at]);
    kvr_keys_close(&keys);
    return no_memory_or_none(failed);
}

static PyObject *clear_tier(PyObject *self, PyObject *name)
{
    uint32_t tier, group;
    PyObject *zero = PyLong_FromLong(0);
    int failed = zero == NULL || kvr_read_place(name, zero, &tier, &group);
    Py_XDECREF(zero);
    if (failed)
        return NULL;
    return no_memory_or_none(kvr_rank_clear_tier(&kvr_table_of(self)->rank, tier));
}

static PyObject *clear(PyObject *self, PyObject *unused)
{
    (void)unused;
    kvr_abandon(kvr_table_of(self));
    return no_memory_or_none(kvr_rank_clear(&kvr_table_of(self)->rank));
}

/* set_main(group): None lets the index alone */
static PyObject *set_main(PyObject *self, PyObject *group)
{
    uint32_t tier, number = KVR_NO_GROUP;
    if (group != Py_None) {
        PyObject *gpu = PyUnicode_FromString("gpu");
        int failed = gpu == NULL || kvr_read_place(gpu, group, &tier, &number);
        Py_XDECREF(gpu);
        if (failed)
            return NULL;
    }
    return no_memory_or_none(kvr_rank_set_main(&kvr_table_of(self)->rank, number));
}

static void forget(void *context, uint64_t hash)
{
    struct kvr_table_object *table = context;
    PyObject *dictionaries[2] = {table->namespaces, table->inner};
    for (int at = 0; at < 2; at++) {
        if (dictionaries[at] == NULL || PyDict_Size(dictionaries[at]) == 0)
            continue;
        PyObject *key = PyLong_FromUnsignedLongLong(hash);
        if (key != NULL && PyDict_GetItemWithError(dictionaries[at], key) != NULL)
            (void)PyDict_DelItem(dictionaries[at], key);
        Py_XDECREF(key);
        PyErr_Clear(); /* Without memory for one integer an entry stays; it is dropped with the rank. */
    }
}

static PyObject *admit(PyObject *self, PyObject *number)
{
    size_t blocks = PyLong_AsSize_t(number);
    if (blocks == (size_t)-1 && PyErr_Occurred())
        return NULL;
    return PyBool_FromLong(kvr_rank_admit(&kvr_table_of(self)->rank, blocks));
}

static PyObject *nbytes(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyLong_FromSsize_t((Py_ssize_t)(sizeof(struct kvr_table_object) + kvr_table_of(self)->rank.bytes));
}

/* -- attributes --------------------------------------------------------------------------------------------------- */

static PyObject *get_unresolved(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromSsize_t((Py_ssize_t)kvr_queue_count(&kvr_table_of(self)->rank.unresolved));
}

/* A number of the table; `where` is its offset. */
static PyObject *get_size(PyObject *self, void *where)
{
    size_t number;
    memcpy(&number, (const char *)kvr_table_of(self) + (uintptr_t)where, sizeof number);
    return PyLong_FromSsize_t((Py_ssize_t)number);
}

static PyObject *get_run_end(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromSsize_t(kvr_table_of(self)->run_end);
}

static PyObject *get_idle(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromSsize_t((Py_ssize_t)kvr_queue_count(&kvr_table_of(self)->rank.idle));
}

static uint8_t *flag_of(PyObject *self, void *which)
{
    struct kvr_table_object *table = kvr_table_of(self);
    return which != NULL ? &table->names_namespaces : &table->clears_all_tiers;
}

static PyObject *get_flag(PyObject *self, void *which)
{
    return PyBool_FromLong(*flag_of(self, which));
}

static int set_flag(PyObject *self, PyObject *value, void *which)
{
    int is_true = value ? PyObject_IsTrue(value) : 0;
    if (is_true < 0)
        return -1;
    *flag_of(self, which) = (uint8_t)is_true;
    return 0;
}

/* -- life --------------------------------------------------------------------------------------------------------- */

/* Whether it is an index of the core, whose memory is used directly. */
static int check_index(PyTypeObject *type, PyObject *index)
{
    PyObject *wanted = PyObject_GetAttrString((PyObject *)type, INDEX_TYPE);
    if (wanted == NULL)
        return -1;
    int fits = PyType_IsSubtype(Py_TYPE(index), (PyTypeObject *)wanted);
    Py_DECREF(wanted);
    if (!fits)
        PyErr_SetString(PyExc_TypeError, "index is not a native PrefixIndex");
    return fits ? 0 : -1;
}

static PyObject *new(PyTypeObject *type, PyObject *arguments, PyObject *names)
{
    static char *known[] = {"index", "rank", "idle_max", "unresolved_max", NULL};
    PyObject *index, *rank_object;
    Py_ssize_t idle_max, unresolved_max;
    uint32_t rank;
    if (!PyArg_ParseTupleAndKeywords(arguments, names, "OOnn", known, &index, &rank_object, &idle_max,
                                     &unresolved_max) ||
        check_index(type, index) || kvr_read_rank(rank_object, &rank))
        return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    PyObject *self = allocate(type, 0);
    if (self == NULL)
        return NULL;
    struct kvr_table_object *table = kvr_table_of(self);
    table->index = Py_NewRef(index);
    if (kvr_rank_open(&table->rank, kvr_index_of(index), rank)) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    table->rank.idle_max = (size_t)(idle_max > 0 ? idle_max : 0);
    table->rank.unresolved_max = (size_t)(unresolved_max > 0 ? unresolved_max : 0);
    table->rank.forget = forget;
    table->rank.context = table;
    return self;
}

static void dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    struct kvr_table_object *table = kvr_table_of(self);
    kvr_abandon(table);
    if (table->rank.index != NULL)
        kvr_rank_close(&table->rank);
    PyMem_Free(table->groups);
    Py_XDECREF(table->namespaces);
    Py_XDECREF(table->inner);
    Py_XDECREF(table->orphans);
    Py_XDECREF(table->seeds);
    Py_XDECREF(table->index);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

#define FAST(name, function) {name, (PyCFunction)(void (*)(void))(method *)function, METH_FASTCALL | METH_KEYWORDS, NULL}

static PyMethodDef methods[] = {
    {"get", get, METH_O, NULL},
    {"meanings", kvr_export_meanings, METH_NOARGS, NULL},
    FAST("add", add),
    FAST("remove", remove_),
    FAST("holds_all", holds_all),
    FAST("holds", holds),
    FAST("blocks", kvr_export_blocks),
    {"copies", kvr_export_copies, METH_NOARGS, NULL},
    {"settle", settle, METH_O, NULL},
    {"retire", retire, METH_O, NULL},
    {"idle_hashes", kvr_export_idle_hashes, METH_NOARGS, NULL},
    {"clear_tier", clear_tier, METH_O, NULL},
    {"clear", clear, METH_NOARGS, NULL},
    {"set_main", set_main, METH_O, NULL},
    {"tiers", kvr_export_tiers, METH_NOARGS, NULL},
    FAST("attach", kvr_attach),
    FAST("describe", kvr_describe),
    {"apply", kvr_apply, METH_O, NULL},
    {"apply_plain", (PyCFunction)(void (*)(void))kvr_apply_plain, METH_FASTCALL, NULL},
    {"tells", kvr_tells, METH_O, NULL},
    {"proceed", kvr_proceed, METH_NOARGS, NULL},
    {"admit", admit, METH_O, NULL},
    {"nbytes", nbytes, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

#define SIZE_AT(field) (void *)offsetof(struct kvr_table_object, field)

static PyGetSetDef attributes[] = {
    {"unresolved", get_unresolved, NULL, NULL, NULL},
    {"unresolved_dropped", get_size, NULL, NULL, SIZE_AT(rank.unresolved_dropped)},
    {"run_end", get_run_end, NULL, NULL, NULL},
    {"unknown_removals", get_size, NULL, NULL, SIZE_AT(unknown_removals)},
    {"idle", get_idle, NULL, NULL, NULL},
    {"evicted", get_size, NULL, NULL, SIZE_AT(rank.evicted)},
    {"returned", get_size, NULL, NULL, SIZE_AT(rank.returned)},
    {"names_namespaces", get_flag, set_flag, NULL, (void *)1},
    {"clears_all_tiers", get_flag, set_flag, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, (void *)"The native form of kvrouter.ingest.block_table.BlockTable."},
    {Py_tp_new, (void *)new},
    {Py_tp_dealloc, (void *)dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, attributes},
    {Py_mp_length, (void *)length},
    {Py_mp_subscript, (void *)subscript},
    {Py_mp_ass_subscript, (void *)assign},
    {Py_sq_contains, (void *)contains},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "kvrouter._native.BlockTable",
    .basicsize = sizeof(struct kvr_table_object),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = slots,
};

int kvr_add_block_table(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &spec, NULL);
    if (type == NULL)
        return -1;
    PyObject *index = PyObject_GetAttrString(module, "PrefixIndex");
    int failed = index == NULL || PyObject_SetAttrString(type, INDEX_TYPE, index) ||
                 PyModule_AddObjectRef(module, "BlockTable", type);
    Py_XDECREF(index);
    Py_DECREF(type);
    return failed ? -1 : 0;
}
