/* Whole messages out of what a ZMTP 3 connection has brought: `kvrouter_subscribers/zmtp_frames.py` specifies it.
 *
 * Most messages are batches of an engine, one after the other: those come out as runs, without an object for anything
 * but the batches themselves. What is not plainly one of them comes out frame by frame, for Python to judge.
 */
#include "memory.h"
#include "module.h"
#include "payloads.h"

#define FLAG_MORE 1
#define FLAG_LONG 2
#define FLAG_COMMAND 4
#define FRAMES_MAX 16
#define AROUND_BYTES_MAX (64 * 1024)
#define RUN_BYTES_MAX (32 * 1024)
#define PAYLOADS_AT_ONCE 64

enum fault { NO_FAULT = 0, TOO_LONG = 1, BAD_FLAGS = 2, TOO_MANY_FRAMES = 3 };
enum reading { FAILED = -1, WHOLE = 0, PARTIAL = 1, FAULTY = 2 };

struct frame {
    const uint8_t *body;
    uint64_t size;
    uint8_t flags;
};

struct message {
    struct frame frames[FRAMES_MAX];
    int frame_count, command_count;
};

/* What is cut, and what is looked for in it. */
struct cutter {
    const uint8_t *at, *end;
    const char *topic, *apart;
    Py_ssize_t topic_size, apart_size;
    uint64_t frame_bytes_max;
    Py_ssize_t run_max;
    enum fault fault;
    PyObject *module, *items;
    /* The run that is being gathered; there is none while `run_count` is 0. */
    struct kvr_payload *payloads;
    uint64_t run_first, run_next;
    Py_ssize_t run_bytes, run_count, run_allocated;
};

/* `kvr_load64` reads little-endian integers on every machine. */
static uint64_t load_big_endian(const uint8_t *at)
{
    return kvr_swap64(kvr_load64(at));
}

/* -- frames ------------------------------------------------------------------------------------------------------- */

/* Read one frame. Its size is told as soon as it is known; it is 0 before. */
static enum reading read_frame(struct cutter *cutter, const uint8_t **at, struct frame *frame)
{
    const uint8_t *from = *at, *end = cutter->end;
    frame->size = 0;
    if (from == end)
        return PARTIAL;
    frame->flags = *from++;
    if (frame->flags & ~(FLAG_MORE | FLAG_LONG | FLAG_COMMAND) ||
        (frame->flags & (FLAG_COMMAND | FLAG_MORE)) == (FLAG_COMMAND | FLAG_MORE)) {
        cutter->fault = BAD_FLAGS;
        return FAULTY;
    }
    if (end - from < (frame->flags & FLAG_LONG ? 8 : 1))
        return PARTIAL;
    if (frame->flags & FLAG_LONG) {
        frame->size = load_big_endian(from);
        from += 8;
    } else {
        frame->size = *from++;
    }
    if (frame->size > cutter->frame_bytes_max) {
        cutter->fault = TOO_LONG;
        return FAULTY;
    }
    frame->body = from;
    if ((uint64_t)(end - from) < frame->size)
        return PARTIAL;
    *at = from + frame->size;
    return WHOLE;
}

/* Read a message, or a command before one; a publisher may send commands between the frames of a message as well. */
static enum reading read_message(struct cutter *cutter, struct message *message)
{
    const uint8_t *at = cutter->at;
    uint64_t bytes = 0;
    message->frame_count = message->command_count = 0;
    for (;;) {
        if (message->frame_count == FRAMES_MAX) {
            cutter->fault = TOO_MANY_FRAMES;
            return FAULTY;
        }
        struct frame *frame = &message->frames[message->frame_count];
        enum reading reading = read_frame(cutter, &at, frame);
        if (reading == FAULTY)
            return FAULTY;
        bytes += frame->size;
        if (bytes > cutter->frame_bytes_max + AROUND_BYTES_MAX) {
            cutter->fault = TOO_LONG;
            return FAULTY;
        }
        if (reading == PARTIAL)
            return PARTIAL;
        message->frame_count++;
        message->command_count += (frame->flags & FLAG_COMMAND) != 0;
        if (frame->flags & FLAG_COMMAND ? message->frame_count == 1 : !(frame->flags & FLAG_MORE))
            break;
    }
    cutter->at = at;
    return WHOLE;
}

/* -- runs --------------------------------------------------------------------------------------------------------- */

/* Whether it is a bare batch under our topic. What begins as a map is an envelope, which Python opens. */
static int is_batch(const struct cutter *cutter, const struct message *message)
{
    const struct frame *topic = &message->frames[0], *payload = &message->frames[2];
    if (message->frame_count != 3 || message->command_count || message->frames[1].size != 8 ||
        topic->size < (uint64_t)cutter->topic_size || memcmp(topic->body, cutter->topic, (size_t)cutter->topic_size))
        return 0;
    if (cutter->apart_size && topic->size == (uint64_t)cutter->apart_size &&
        memcmp(topic->body, cutter->apart, (size_t)cutter->apart_size) == 0)
        return 0;
    uint8_t first = payload->size ? payload->body[0] : 0;
    return !((first & 0xF0) == 0x80 || first == 0xDE || first == 0xDF);
}

static PyObject *bytes_of(const struct frame *frame)
{
    return PyBytes_FromStringAndSize((const char *)frame->body, (Py_ssize_t)frame->size);
}

/* Append an object that is ours, and give it up. */
static int append(PyObject *list, PyObject *object)
{
    int failed = object == NULL || PyList_Append(list, object);
    Py_XDECREF(object);
    return failed ? -1 : 0;
}

static int end_run(struct cutter *cutter)
{
    if (cutter->run_count == 0)
        return 0;
    PyObject *payloads = kvr_payloads_make(cutter->module, cutter->payloads, cutter->run_count);
    cutter->run_count = 0;
    return payloads == NULL ? -1
                            : append(cutter->items, Py_BuildValue("(KnN)", (unsigned long long)cutter->run_first,
                                                                  cutter->run_bytes, payloads));
}

static int make_room(struct cutter *cutter)
{
    if (cutter->run_count < cutter->run_allocated)
        return 0;
    Py_ssize_t larger = cutter->run_allocated ? 2 * cutter->run_allocated : PAYLOADS_AT_ONCE;
    struct kvr_payload *payloads = PyMem_Realloc(cutter->payloads, (size_t)larger * sizeof *payloads);
    if (payloads == NULL) {
        (void)PyErr_NoMemory();
        return -1;
    }
    cutter->payloads = payloads;
    cutter->run_allocated = larger;
    return 0;
}

static int add_batch(struct cutter *cutter, const struct message *message)
{
    uint64_t sequence = load_big_endian(message->frames[1].body);
    if (cutter->run_count > 0 &&
        (sequence != cutter->run_next || sequence == 0 || cutter->run_count >= cutter->run_max ||
         cutter->run_bytes >= RUN_BYTES_MAX) &&
        end_run(cutter))
        return -1;
    if (make_room(cutter))
        return -1;
    if (cutter->run_count == 0) {
        cutter->run_first = sequence;
        cutter->run_bytes = 0;
    }
    cutter->run_next = sequence + 1;
    cutter->run_bytes += (Py_ssize_t)(message->frames[0].size + message->frames[1].size + message->frames[2].size);
    cutter->payloads[cutter->run_count].data = message->frames[2].body;
    cutter->payloads[cutter->run_count++].size = (size_t)message->frames[2].size;
    return 0;
}

/* -- everything else ---------------------------------------------------------------------------------------------- */

/* Commands, each as its body, and then the frames of the message among which they came. */
static int add_other(struct cutter *cutter, const struct message *message)
{
    for (int at = 0; message->command_count && at < message->frame_count; at++)
        if (message->frames[at].flags & FLAG_COMMAND && append(cutter->items, bytes_of(&message->frames[at])))
            return -1;
    if (message->command_count == message->frame_count)
        return 0;
    PyObject *frames = PyList_New(0);
    for (int at = 0; frames != NULL && at < message->frame_count; at++) {
        if (message->frames[at].flags & FLAG_COMMAND || append(frames, bytes_of(&message->frames[at])) == 0)
            continue;
        Py_DECREF(frames);
        return -1;
    }
    return append(cutter->items, frames);
}

static enum reading cut_all(struct cutter *cutter)
{
    struct message message;
    enum reading reading;
    while ((reading = read_message(cutter, &message)) == WHOLE) {
        if (is_batch(cutter, &message) ? add_batch(cutter, &message) : end_run(cutter) || add_other(cutter, &message))
            return FAILED;
    }
    return end_run(cutter) ? FAILED : reading;
}

/* Read the arguments that are numbers; -1 with an exception set. */
static int read_numbers(PyObject *const *arguments, Py_ssize_t size, struct cutter *cutter, Py_ssize_t *end)
{
    *end = PyLong_AsSsize_t(arguments[1]);
    Py_ssize_t frame_bytes_max = PyLong_AsSsize_t(arguments[4]);
    cutter->run_max = PyLong_AsSsize_t(arguments[5]);
    cutter->frame_bytes_max = (uint64_t)frame_bytes_max;
    if (PyErr_Occurred())
        return -1;
    if (*end < 0 || *end > size || frame_bytes_max < 0) {
        PyErr_Format(PyExc_ValueError, "%zd of %zd bytes, frames of %zd", *end, size, frame_bytes_max);
        return -1;
    }
    return 0;
}

static PyObject *cut_messages(PyObject *module, PyObject *const *arguments, Py_ssize_t given)
{
    struct cutter cutter = {0};
    Py_buffer data;
    Py_ssize_t end;
    if (given != 6)
        return PyErr_Format(PyExc_TypeError, "cut_messages takes 6 arguments, not %zd", given);
    if (!PyBytes_Check(arguments[2]) || !PyBytes_Check(arguments[3]))
        return PyErr_Format(PyExc_TypeError, "topics are bytes");
    cutter.topic = PyBytes_AsString(arguments[2]);
    cutter.topic_size = PyBytes_Size(arguments[2]);
    cutter.apart = PyBytes_AsString(arguments[3]);
    cutter.apart_size = PyBytes_Size(arguments[3]);
    if (PyObject_GetBuffer(arguments[0], &data, PyBUF_SIMPLE))
        return NULL;
    if (read_numbers(arguments, data.len, &cutter, &end) || (cutter.items = PyList_New(0)) == NULL) {
        PyBuffer_Release(&data);
        return NULL;
    }
    cutter.module = module;
    cutter.at = data.buf;
    cutter.end = cutter.at + end;
    enum reading reading = cut_all(&cutter);
    Py_ssize_t consumed = cutter.at - (const uint8_t *)data.buf;
    PyBuffer_Release(&data);
    PyMem_Free(cutter.payloads);
    if (reading == FAILED) {
        Py_DECREF(cutter.items);
        return NULL;
    }
    return Py_BuildValue("(Nni)", cutter.items, consumed, (int)cutter.fault);
}

static PyMethodDef functions[] = {
    {"cut_messages", (PyCFunction)(void (*)(void))cut_messages, METH_FASTCALL,
     "cut_messages(data, end, topic, apart, frame_bytes_max, run_max) -> (items, consumed, fault)"},
    {NULL, NULL, 0, NULL},
};

int kvr_add_zmtp_frames(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
