/* `kvrouter._native`: the parts of the router whose cost is counted in nanoseconds.
 *
 * The Python modules beside this folder are the specification of everything here, and take its place where it is not
 * installed; `kvrouter/native_core.py` decides which.
 */
#include "module.h"

#ifndef KVR_SOURCES
#define KVR_SOURCES "unknown"
#endif

PyTypeObject *kvr_sibling_type(PyTypeObject *type, const char *name)
{
    PyObject *module = PyType_GetModule(type);
    return module == NULL ? NULL : (PyTypeObject *)PyObject_GetAttrString(module, name);
}

static int fill(PyObject *module)
{
    if (kvr_add_hashing(module) || kvr_add_token_list(module) || kvr_add_json_tokens(module) ||
        kvr_add_json_body(module) || kvr_add_json_hashes(module) || kvr_add_index_type(module) || kvr_add_overlap_type(module) ||
        kvr_add_predictions_type(module) ||
        kvr_add_load_type(module) || kvr_add_booking_type(module) || kvr_add_weigher_type(module) ||
        kvr_add_histogram_type(module) || kvr_add_http_heads(module) ||
        kvr_add_http_chunks(module) || kvr_add_http_usage(module) || kvr_add_http_text(module) ||
        kvr_add_block_table(module) || kvr_add_mapped_index_type(module) || kvr_add_zmtp_frames(module) ||
        kvr_add_ingest_digests(module) || kvr_add_payloads_type(module) ||
        kvr_add_read_ahead(module))
        return -1;
    /* The digest of the sources, by which the tests know a core that was built from older ones. */
    return PyModule_AddStringConstant(module, "SOURCES", KVR_SOURCES);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)fill},
    {0, NULL},
};

static PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "kvrouter._native",
    .m_doc = "The native core of kvrouter; used through kvrouter.native_core only.",
    .m_size = 0,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__native(void);

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&definition);
}
