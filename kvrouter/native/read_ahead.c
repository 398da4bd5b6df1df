/* Reading sockets ahead, by a thread that knows nothing of Python; `kvrouter_subscribers/read_ahead.py` specifies it.
 *
 * The thread owns nothing. Somebody asks for one reading of a socket that does not block, goes on with other work, and
 * fetches what it brought. A reading that the thread has not begun by then is done by who fetches it, so that nobody ever
 * waits for a thread that gets no processor, and without the thread all is as if it had not been asked for.
 */
#include "module.h"

#ifdef _WIN32

int kvr_add_read_ahead(PyObject *module)
{
    (void)module;
    return 0;
}

#else

#include "memory.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

#define READINGS_MAX 16

enum state { FREE = 0, ASKED, RUNNING, DONE, FETCHED };

struct reading {
    enum state state;
    int descriptor;
    uint8_t *at;
    size_t size;
    Py_ssize_t result;
    Py_buffer view; /* keeps the space */
};

/* `lock` guards what the thread looks at: all but `view`, `process`, `runs` and `closed`. */
struct read_ahead {
    PyObject_HEAD
    pthread_mutex_t lock;
    pthread_cond_t asked, done;
    pthread_t thread;
    pid_t process; /* in which the thread is; a forked one has none */
    int runs, closed, stops;
    int queue[READINGS_MAX], queued; /* the numbers of those that are asked for, in order */
    struct reading readings[READINGS_MAX];
};

static struct read_ahead *read_ahead_of(PyObject *object)
{
    return (struct read_ahead *)(void *)object;
}

/* -- the thread --------------------------------------------------------------------------------------------------- */

/* What a reading brings: how many bytes, 0 at the end of the stream, or the negative number of an error. */
static Py_ssize_t read_once(const struct reading *reading)
{
    Py_ssize_t received = recv(reading->descriptor, reading->at, reading->size, MSG_DONTWAIT);
    return received < 0 ? -(Py_ssize_t)errno : received;
}

static void leave_queue(struct read_ahead *ahead, int number)
{
    int kept = 0;
    for (int at = 0; at < ahead->queued; at++)
        if (ahead->queue[at] != number)
            ahead->queue[kept++] = ahead->queue[at];
    ahead->queued = kept;
}

static void *work(void *argument)
{
    struct read_ahead *ahead = argument;
#ifdef __linux__
    (void)prctl(PR_SET_NAME, "kvr-read-ahead"); /* as `top -H` shows it */
#endif
    pthread_mutex_lock(&ahead->lock);
    for (;;) {
        while (!ahead->stops && ahead->queued == 0)
            pthread_cond_wait(&ahead->asked, &ahead->lock);
        if (ahead->stops)
            break;
        struct reading *reading = &ahead->readings[ahead->queue[0]];
        leave_queue(ahead, ahead->queue[0]);
        reading->state = RUNNING;
        pthread_mutex_unlock(&ahead->lock);
        Py_ssize_t result = read_once(reading);
        pthread_mutex_lock(&ahead->lock);
        reading->result = result;
        reading->state = DONE;
        pthread_cond_broadcast(&ahead->done);
    }
    pthread_mutex_unlock(&ahead->lock);
    return NULL;
}

/* Whether there is a thread now. Signals are for Python's own threads. */
static int start(struct read_ahead *ahead)
{
    if (ahead->runs)
        return 1;
    sigset_t all, before;
    sigfillset(&all);
    if (pthread_sigmask(SIG_SETMASK, &all, &before))
        return 0;
    ahead->runs = pthread_create(&ahead->thread, NULL, work, ahead) == 0;
    ahead->process = getpid();
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    return ahead->runs;
}

/* -- asking and fetching ------------------------------------------------------------------------------------------ */

/* Open the space behind `start` of a buffer; -1 with an exception set. */
static int open_space(struct reading *reading, PyObject *buffer, Py_ssize_t start)
{
    if (PyObject_GetBuffer(buffer, &reading->view, PyBUF_WRITABLE))
        return -1;
    if (start < 0 || start >= reading->view.len) {
        PyErr_Format(PyExc_ValueError, "position %zd of %zd", start, reading->view.len);
        PyBuffer_Release(&reading->view);
        return -1;
    }
    reading->at = (uint8_t *)reading->view.buf + start;
    reading->size = (size_t)(reading->view.len - start);
    return 0;
}

/* A reading that nobody has asked for, or -1. */
static int find_free(struct read_ahead *ahead)
{
    int found = -1;
    pthread_mutex_lock(&ahead->lock);
    for (int number = 0; number < READINGS_MAX && found < 0; number++)
        if (ahead->readings[number].state == FREE)
            found = number;
    pthread_mutex_unlock(&ahead->lock);
    return found;
}

/* ask(connection, buffer, start) -> the number of the reading, or None where nobody can read ahead now */
static PyObject *ask(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    struct read_ahead *ahead = read_ahead_of(self);
    if (given != 3)
        return PyErr_Format(PyExc_TypeError, "ask takes 3 arguments, not %zd", given);
    int descriptor = PyObject_AsFileDescriptor(arguments[0]);
    Py_ssize_t from = descriptor < 0 ? -1 : PyLong_AsSsize_t(arguments[2]);
    if (PyErr_Occurred())
        return NULL;
    int number = ahead->closed || !start(ahead) ? -1 : find_free(ahead);
    if (number < 0)
        Py_RETURN_NONE;
    struct reading *reading = &ahead->readings[number];
    if (open_space(reading, arguments[1], from))
        return NULL;
    reading->descriptor = descriptor;
    pthread_mutex_lock(&ahead->lock);
    reading->state = ASKED;
    ahead->queue[ahead->queued++] = number;
    pthread_cond_signal(&ahead->asked);
    pthread_mutex_unlock(&ahead->lock);
    return PyLong_FromLong(number);
}

/* Take a reading back: -1 if nobody asked for it. Afterwards the thread has nothing to do with it. */
static int take_back(struct read_ahead *ahead, int number)
{
    struct reading *reading = &ahead->readings[number];
    pthread_mutex_lock(&ahead->lock);
    if (reading->state == FREE || reading->state == FETCHED) {
        pthread_mutex_unlock(&ahead->lock);
        return -1;
    }
    int begun = reading->state != ASKED;
    if (!begun)
        leave_queue(ahead, number);
    while (begun && reading->state != DONE)
        pthread_cond_wait(&ahead->done, &ahead->lock);
    reading->state = FETCHED;
    pthread_mutex_unlock(&ahead->lock);
    return begun;
}

static void set_free(struct read_ahead *ahead, int number)
{
    PyBuffer_Release(&ahead->readings[number].view);
    pthread_mutex_lock(&ahead->lock);
    ahead->readings[number].state = FREE;
    pthread_mutex_unlock(&ahead->lock);
}

/* The number of a reading, or -1 with an exception set. */
static int read_number(PyObject *object)
{
    long number = PyLong_AsLong(object);
    if (number >= 0 && number < READINGS_MAX)
        return (int)number;
    if (!PyErr_Occurred())
        PyErr_Format(PyExc_ValueError, "reading %ld", number);
    return -1;
}

/* fetch(number) -> what the reading brought */
static PyObject *fetch(PyObject *self, PyObject *argument)
{
    struct read_ahead *ahead = read_ahead_of(self);
    int number = read_number(argument);
    if (number < 0)
        return NULL;
    struct reading *reading = &ahead->readings[number];
    PyThreadState *released = PyEval_SaveThread();
    int begun = take_back(ahead, number);
    Py_ssize_t result = begun > 0 ? reading->result : begun == 0 ? read_once(reading) : 0;
    PyEval_RestoreThread(released);
    if (begun < 0)
        return PyErr_Format(PyExc_ValueError, "nobody asked for reading %d", number);
    set_free(ahead, number);
    return PyLong_FromSsize_t(result);
}

/* drop(number): nobody wants to know what it brings, and the socket may be closed afterwards */
static PyObject *drop(PyObject *self, PyObject *argument)
{
    struct read_ahead *ahead = read_ahead_of(self);
    int number = read_number(argument);
    if (number < 0)
        return NULL;
    PyThreadState *released = PyEval_SaveThread();
    int begun = take_back(ahead, number);
    PyEval_RestoreThread(released);
    if (begun < 0)
        return PyErr_Format(PyExc_ValueError, "nobody asked for reading %d", number);
    set_free(ahead, number);
    Py_RETURN_NONE;
}

/* Whether this is a forked process, in which there is no thread, but a lock that may be held and conditions that are
 * waited for, by nobody: they are left as they are. */
static int is_forked(const struct read_ahead *ahead)
{
    return ahead->runs && ahead->process != getpid();
}

/* End the thread; nothing can be asked for afterwards. What was asked for can still be fetched. */
static void stop(struct read_ahead *ahead)
{
    ahead->closed = 1;
    if (!ahead->runs || is_forked(ahead))
        return;
    ahead->runs = 0;
    PyThreadState *released = PyEval_SaveThread();
    pthread_mutex_lock(&ahead->lock);
    ahead->stops = 1;
    pthread_cond_signal(&ahead->asked);
    pthread_mutex_unlock(&ahead->lock);
    pthread_join(ahead->thread, NULL);
    PyEval_RestoreThread(released);
}

static PyObject *close_(PyObject *self, PyObject *unused)
{
    (void)unused;
    stop(read_ahead_of(self));
    Py_RETURN_NONE;
}

/* -- the type ----------------------------------------------------------------------------------------------------- */

/* Make what the thread and its owner share; -1 where the system has none of it left. */
static int open_shared(struct read_ahead *ahead)
{
    if (pthread_mutex_init(&ahead->lock, NULL))
        return -1;
    if (pthread_cond_init(&ahead->asked, NULL) == 0) {
        if (pthread_cond_init(&ahead->done, NULL) == 0)
            return 0;
        pthread_cond_destroy(&ahead->asked);
    }
    pthread_mutex_destroy(&ahead->lock);
    return -1;
}

static void release(PyTypeObject *type, PyObject *object)
{
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static PyObject *new(PyTypeObject *type, PyObject *arguments, PyObject *names)
{
    static char *known[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, names, ":ReadAhead", known))
        return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    PyObject *self = allocate(type, 0);
    if (self != NULL && open_shared(read_ahead_of(self))) {
        release(type, self);
        return PyErr_NoMemory();
    }
    return self;
}

static void dealloc(PyObject *object)
{
    struct read_ahead *ahead = read_ahead_of(object);
    stop(ahead);
    for (int number = 0; number < READINGS_MAX; number++)
        if (ahead->readings[number].state != FREE)
            PyBuffer_Release(&ahead->readings[number].view);
    if (!is_forked(ahead)) {
        pthread_cond_destroy(&ahead->done);
        pthread_cond_destroy(&ahead->asked);
        pthread_mutex_destroy(&ahead->lock);
    }
    release(Py_TYPE(object), object);
}

static PyMethodDef methods[] = {
    {"ask", (PyCFunction)(void (*)(void))ask, METH_FASTCALL, NULL},
    {"fetch", fetch, METH_O, NULL},
    {"drop", drop, METH_O, NULL},
    {"close", close_, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, (void *)"A thread that reads sockets ahead; for one owner's thread."},
    {Py_tp_new, (void *)new},
    {Py_tp_dealloc, (void *)dealloc},
    {Py_tp_methods, methods},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "kvrouter._native.ReadAhead",
    .basicsize = sizeof(struct read_ahead),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = slots,
};

int kvr_add_read_ahead(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &spec, NULL);
    if (type == NULL)
        return -1;
    int failed = PyModule_AddObjectRef(module, "ReadAhead", type);
    Py_DECREF(type);
    return failed;
}

#endif
