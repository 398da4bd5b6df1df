/* How a part of the core becomes part of the module.
 *
 * Each part has one function that adds its functions, types and constants to the module; `module.c` calls them in turn.
 * They return 0, or -1 with a Python exception set. No part keeps static state: a module may be loaded once per
 * interpreter.
 */
#ifndef KVR_MODULE_H
#define KVR_MODULE_H

#include "python_abi.h"

int kvr_add_hashing(PyObject *module);
int kvr_add_token_list(PyObject *module);
int kvr_add_json_tokens(PyObject *module);
int kvr_add_json_body(PyObject *module);
int kvr_add_json_hashes(PyObject *module);
int kvr_add_index_type(PyObject *module);
int kvr_add_overlap_type(PyObject *module);
int kvr_add_mapped_index_type(PyObject *module);
int kvr_add_predictions_type(PyObject *module);
int kvr_add_http_heads(PyObject *module);
int kvr_add_http_chunks(PyObject *module);
int kvr_add_http_usage(PyObject *module);
int kvr_add_http_text(PyObject *module);
int kvr_add_block_table(PyObject *module);
int kvr_add_load_type(PyObject *module);
int kvr_add_booking_type(PyObject *module);
int kvr_add_weigher_type(PyObject *module);
int kvr_add_histogram_type(PyObject *module);
int kvr_add_ingest_digests(PyObject *module);
int kvr_add_zmtp_frames(PyObject *module);
int kvr_add_payloads_type(PyObject *module);
int kvr_add_read_ahead(PyObject *module);

/* A type of the module of `type`, by name; NULL with an exception set. */
PyTypeObject *kvr_sibling_type(PyTypeObject *type, const char *name);

/* Work below about 50 us is done faster than the interpreter lock is given away and got back. These are the amounts
 * of input that take about that long. */
#define KVR_HASH_UNLOCKED_BYTES (512 * 1024)
#define KVR_PARSE_UNLOCKED_BYTES (128 * 1024)

#endif
