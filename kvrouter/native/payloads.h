/* Batches that came in a row, in one piece of memory: a sequence of bytes objects that are made when somebody looks at them.
 *
 * An engine that says one block at a time sends a hundred batches in what one read brings. Nobody looks at them but the core.
 */
#ifndef KVR_PAYLOADS_H
#define KVR_PAYLOADS_H

#include "python_abi.h"

struct kvr_payload {
    const uint8_t *data;
    size_t size;
};

/* Make one of copies of the parts; NULL with an exception set. */
PyObject *kvr_payloads_make(PyObject *module, const struct kvr_payload *parts, Py_ssize_t count);

/* Functions take either one of these or a list of what has a buffer, such as bytes. */
int kvr_are_payloads(PyObject *object);
Py_ssize_t kvr_payloads_count(PyObject *payloads);

/* Open the payload at a place; -1 with an exception set. `view` keeps it until it is closed. */
int kvr_payload_open(PyObject *payloads, Py_ssize_t at, Py_buffer *view, struct kvr_payload *payload);
void kvr_payload_close(Py_buffer *view);

#endif
