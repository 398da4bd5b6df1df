/* Python's stable ABI (3.11): from <Python.h> where it is installed, otherwise declared here.
 *
 * Distributions ship Python without its headers more often than with them. The stable ABI is a promise about symbols
 * and struct layouts, not about a header, so the part of it that we use can be stated in one page; it also lets one
 * machine build for all platforms. Every name here is listed in https://docs.python.org/3/c-api/stable.html. Whoever
 * needs another one adds it below; the test suite builds with and without <Python.h>.
 */
#ifndef KVR_PYTHON_ABI_H
#define KVR_PYTHON_ABI_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000

/* <Python.h> brings fewer of these along from version to version; whoever includes this page can rely on them. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if !defined(KVR_WITHOUT_PYTHON_H) && defined(__has_include)
#if __has_include(<Python.h>)
#include <Python.h>
#include <structmember.h>
#define KVR_HAS_PYTHON_H 1
#endif
#endif

#ifndef KVR_HAS_PYTHON_H

#ifdef _WIN32
#define KVR_IMPORT __declspec(dllimport)
#define PyMODINIT_FUNC __declspec(dllexport) PyObject *
#else
#define KVR_IMPORT
#define PyMODINIT_FUNC __attribute__((visibility("default"))) PyObject *
#endif

typedef intptr_t Py_ssize_t;
typedef Py_ssize_t Py_hash_t;
#define PY_SSIZE_T_MAX INTPTR_MAX

/* -- objects ------------------------------------------------------------------------------------------------------ */

typedef struct _object PyObject;
typedef struct _typeobject PyTypeObject;
typedef struct _ts PyThreadState;

struct _object {
    Py_ssize_t ob_refcnt;
    PyTypeObject *ob_type;
};
#define PyObject_HEAD PyObject ob_base;

typedef PyObject *(*PyCFunction)(PyObject *, PyObject *);
typedef PyObject *(*_PyCFunctionFast)(PyObject *, PyObject *const *, Py_ssize_t);
typedef int (*inquiry)(PyObject *);
typedef int (*visitproc)(PyObject *, void *);
typedef int (*traverseproc)(PyObject *, visitproc, void *);
typedef void (*freefunc)(void *);

KVR_IMPORT void Py_IncRef(PyObject *);
KVR_IMPORT void Py_DecRef(PyObject *);
#define Py_INCREF(object) Py_IncRef((PyObject *)(object))
#define Py_XINCREF(object) Py_IncRef((PyObject *)(object))
#define Py_DECREF(object) Py_DecRef((PyObject *)(object))
#define Py_XDECREF(object) Py_DecRef((PyObject *)(object))
KVR_IMPORT PyObject *Py_NewRef(PyObject *);
#define Py_TYPE(object) (((PyObject *)(object))->ob_type)

KVR_IMPORT extern PyObject _Py_NoneStruct, _Py_TrueStruct, _Py_FalseStruct, _Py_NotImplementedStruct;
#define Py_None (&_Py_NoneStruct)
#define Py_True ((PyObject *)&_Py_TrueStruct)
#define Py_False ((PyObject *)&_Py_FalseStruct)
#define Py_NotImplemented (&_Py_NotImplementedStruct)
#define Py_RETURN_NONE return Py_NewRef(Py_None)
#define Py_RETURN_TRUE return Py_NewRef(Py_True)
#define Py_RETURN_FALSE return Py_NewRef(Py_False)

/* -- modules and types -------------------------------------------------------------------------------------------- */

typedef struct PyMethodDef {
    const char *ml_name;
    PyCFunction ml_meth;
    int ml_flags;
    const char *ml_doc;
} PyMethodDef;
#define METH_VARARGS 0x0001
#define METH_KEYWORDS 0x0002
#define METH_NOARGS 0x0004
#define METH_O 0x0008
#define METH_CLASS 0x0010
#define METH_STATIC 0x0020
#define METH_FASTCALL 0x0080
#define METH_METHOD 0x0200

typedef struct {
    int slot;
    void *value;
} PyModuleDef_Slot;
#define Py_mod_exec 2

typedef struct {
    PyObject_HEAD
    PyObject *(*m_init)(void);
    Py_ssize_t m_index;
    PyObject *m_copy;
} PyModuleDef_Base;
#define PyModuleDef_HEAD_INIT {{1, NULL}, NULL, 0, NULL}

typedef struct PyModuleDef {
    PyModuleDef_Base m_base;
    const char *m_name;
    const char *m_doc;
    Py_ssize_t m_size;
    PyMethodDef *m_methods;
    PyModuleDef_Slot *m_slots;
    traverseproc m_traverse;
    inquiry m_clear;
    freefunc m_free;
} PyModuleDef;

KVR_IMPORT PyObject *PyModuleDef_Init(PyModuleDef *);
KVR_IMPORT int PyModule_AddFunctions(PyObject *, PyMethodDef *);
KVR_IMPORT int PyModule_AddObjectRef(PyObject *, const char *, PyObject *);
KVR_IMPORT int PyModule_AddStringConstant(PyObject *, const char *, const char *);
KVR_IMPORT int PyModule_AddIntConstant(PyObject *, const char *, long);
KVR_IMPORT int PyModule_AddType(PyObject *, PyTypeObject *);

typedef struct {
    int slot;
    void *pfunc;
} PyType_Slot;
typedef struct {
    const char *name;
    int basicsize;
    int itemsize;
    unsigned int flags;
    PyType_Slot *slots;
} PyType_Spec;
#define Py_TPFLAGS_DISALLOW_INSTANTIATION (1UL << 7)
#define Py_TPFLAGS_IMMUTABLETYPE (1UL << 8)
#define Py_TPFLAGS_BASETYPE (1UL << 10)
#define Py_TPFLAGS_DEFAULT 0UL
#define Py_bf_getbuffer 1
#define Py_bf_releasebuffer 2
#define Py_mp_ass_subscript 3
#define Py_mp_length 4
#define Py_sq_contains 41
#define Py_mp_subscript 5
#define Py_sq_item 44
#define Py_sq_length 45
#define Py_tp_alloc 47
#define Py_tp_dealloc 52
#define Py_tp_doc 56
#define Py_tp_init 60
#define Py_tp_hash 59
#define Py_tp_repr 66
#define Py_tp_richcompare 67
#define Py_tp_methods 64
#define Py_tp_new 65
#define Py_tp_members 72
#define Py_tp_getset 73
#define Py_tp_free 74

typedef PyObject *(*getter)(PyObject *, void *);
typedef int (*setter)(PyObject *, PyObject *, void *);
typedef struct PyGetSetDef {
    const char *name;
    getter get;
    setter set;
    const char *doc;
    void *closure;
} PyGetSetDef;
typedef struct PyMemberDef {
    const char *name;
    int type;
    Py_ssize_t offset;
    int flags;
    const char *doc;
} PyMemberDef;
#define T_DOUBLE 4
#define T_OBJECT 6
#define T_UINT 11
#define T_BOOL 14
#define T_OBJECT_EX 16
#define T_LONGLONG 17
#define READONLY 1
#define Py_EQ 2
#define Py_NE 3
typedef PyObject *(*newfunc)(PyTypeObject *, PyObject *, PyObject *);
typedef PyObject *(*allocfunc)(PyTypeObject *, Py_ssize_t);
typedef int (*initproc)(PyObject *, PyObject *, PyObject *);
typedef void (*destructor)(PyObject *);
typedef Py_ssize_t (*lenfunc)(PyObject *);

KVR_IMPORT PyObject *PyType_FromModuleAndSpec(PyObject *, PyType_Spec *, PyObject *);
KVR_IMPORT void *PyType_GetSlot(PyTypeObject *, int);
KVR_IMPORT unsigned long PyType_GetFlags(PyTypeObject *);
KVR_IMPORT int PyType_IsSubtype(PyTypeObject *, PyTypeObject *);
KVR_IMPORT PyObject *PyType_GenericAlloc(PyTypeObject *, Py_ssize_t);
KVR_IMPORT PyObject *PyObject_CallNoArgs(PyObject *);
KVR_IMPORT PyObject *PyObject_CallMethod(PyObject *, const char *, const char *, ...);
KVR_IMPORT PyObject *PyImport_ImportModule(const char *);
KVR_IMPORT PyObject *PyObject_GetAttrString(PyObject *, const char *);
KVR_IMPORT int PyObject_SetAttrString(PyObject *, const char *, PyObject *);
KVR_IMPORT void PyObject_Free(void *);
KVR_IMPORT int PyObject_AsFileDescriptor(PyObject *);

/* -- values ------------------------------------------------------------------------------------------------------- */

KVR_IMPORT extern PyTypeObject PyLong_Type;
#define PyLong_CheckExact(object) (Py_TYPE(object) == &PyLong_Type)
KVR_IMPORT extern PyTypeObject PyFloat_Type;
#define PyFloat_CheckExact(object) (Py_TYPE(object) == &PyFloat_Type)
#define PyLong_Check(object) (PyType_GetFlags(Py_TYPE(object)) & (1UL << 24))
#define PyList_Check(object) (PyType_GetFlags(Py_TYPE(object)) & (1UL << 25))
#define PyTuple_Check(object) (PyType_GetFlags(Py_TYPE(object)) & (1UL << 26))
#define PyBytes_Check(object) (PyType_GetFlags(Py_TYPE(object)) & (1UL << 27))
#define PyUnicode_Check(object) (PyType_GetFlags(Py_TYPE(object)) & (1UL << 28))
#define PyDict_Check(object) (PyType_GetFlags(Py_TYPE(object)) & (1UL << 29))

KVR_IMPORT PyObject *PyLong_FromLong(long);
KVR_IMPORT PyObject *PyLong_FromSsize_t(Py_ssize_t);
KVR_IMPORT PyObject *PyLong_FromUnsignedLong(unsigned long);
KVR_IMPORT PyObject *PyLong_FromLongLong(long long);
KVR_IMPORT PyObject *PyLong_FromUnsignedLongLong(unsigned long long);
KVR_IMPORT long PyLong_AsLong(PyObject *);
KVR_IMPORT size_t PyLong_AsSize_t(PyObject *);
KVR_IMPORT PyObject *PyLong_FromSize_t(size_t);
KVR_IMPORT long long PyLong_AsLongLong(PyObject *);
KVR_IMPORT Py_ssize_t PyLong_AsSsize_t(PyObject *);
KVR_IMPORT unsigned long PyLong_AsUnsignedLong(PyObject *);
KVR_IMPORT unsigned long long PyLong_AsUnsignedLongLong(PyObject *);
KVR_IMPORT unsigned long long PyLong_AsUnsignedLongLongMask(PyObject *);
KVR_IMPORT PyObject *PyNumber_Index(PyObject *);
KVR_IMPORT int PyObject_IsTrue(PyObject *);
KVR_IMPORT Py_hash_t PyObject_Hash(PyObject *);
KVR_IMPORT Py_hash_t PyObject_HashNotImplemented(PyObject *);
KVR_IMPORT PyObject *PyBool_FromLong(long);
KVR_IMPORT PyObject *PyFloat_FromDouble(double);
KVR_IMPORT double PyFloat_AsDouble(PyObject *);

KVR_IMPORT PyObject *PyBytes_FromStringAndSize(const char *, Py_ssize_t);
KVR_IMPORT char *PyBytes_AsString(PyObject *);
KVR_IMPORT Py_ssize_t PyBytes_Size(PyObject *);
KVR_IMPORT int _PyBytes_Resize(PyObject **, Py_ssize_t);
KVR_IMPORT PyObject *PyByteArray_FromStringAndSize(const char *, Py_ssize_t);
KVR_IMPORT char *PyByteArray_AsString(PyObject *);
KVR_IMPORT PyObject *PyUnicode_FromString(const char *);
KVR_IMPORT PyObject *PyUnicode_FromFormat(const char *, ...);
KVR_IMPORT PyObject *PyUnicode_FromStringAndSize(const char *, Py_ssize_t);
KVR_IMPORT const char *PyUnicode_AsUTF8AndSize(PyObject *, Py_ssize_t *);

KVR_IMPORT PyObject *PyTuple_New(Py_ssize_t);
KVR_IMPORT PyObject *PyTuple_Pack(Py_ssize_t, ...);
KVR_IMPORT Py_ssize_t PyTuple_Size(PyObject *);
KVR_IMPORT PyObject *PyTuple_GetItem(PyObject *, Py_ssize_t);
KVR_IMPORT int PyTuple_SetItem(PyObject *, Py_ssize_t, PyObject *);
KVR_IMPORT PyObject *PyList_New(Py_ssize_t);
KVR_IMPORT Py_ssize_t PyList_Size(PyObject *);
KVR_IMPORT PyObject *PyList_GetItem(PyObject *, Py_ssize_t);
KVR_IMPORT int PyList_SetItem(PyObject *, Py_ssize_t, PyObject *);
KVR_IMPORT int PyList_Append(PyObject *, PyObject *);
KVR_IMPORT extern PyTypeObject PySlice_Type;
#define PySlice_Check(object) (Py_TYPE(object) == &PySlice_Type)
KVR_IMPORT int PySlice_Unpack(PyObject *, Py_ssize_t *, Py_ssize_t *, Py_ssize_t *);
KVR_IMPORT Py_ssize_t PySlice_AdjustIndices(Py_ssize_t, Py_ssize_t *, Py_ssize_t *, Py_ssize_t);
KVR_IMPORT PyObject *PySequence_List(PyObject *);
KVR_IMPORT int PySequence_Contains(PyObject *, PyObject *);
KVR_IMPORT Py_ssize_t PyObject_Size(PyObject *);
KVR_IMPORT PyObject *PyObject_GetAttrString(PyObject *, const char *);
KVR_IMPORT PyObject *PyType_GetModule(PyTypeObject *);
KVR_IMPORT PyObject *PyDict_New(void);
KVR_IMPORT PyObject *PyDict_GetItemWithError(PyObject *, PyObject *);
KVR_IMPORT int PyDict_SetItem(PyObject *, PyObject *, PyObject *);
KVR_IMPORT PyObject *PyDict_Copy(PyObject *);
KVR_IMPORT PyObject *PyDict_GetItemWithError(PyObject *, PyObject *);
KVR_IMPORT int PyDict_DelItem(PyObject *, PyObject *);
KVR_IMPORT int PyDict_Next(PyObject *, Py_ssize_t *, PyObject **, PyObject **);
KVR_IMPORT Py_ssize_t PyDict_Size(PyObject *);
KVR_IMPORT int PyDict_SetItemString(PyObject *, const char *, PyObject *);
KVR_IMPORT PyObject *Py_BuildValue(const char *, ...);
KVR_IMPORT int PyArg_ParseTuple(PyObject *, const char *, ...);
KVR_IMPORT int PyArg_ParseTupleAndKeywords(PyObject *, PyObject *, const char *, char **, ...);

/* -- buffers ------------------------------------------------------------------------------------------------------ */

typedef struct {
    void *buf;
    PyObject *obj;
    Py_ssize_t len;
    Py_ssize_t itemsize;
    int readonly;
    int ndim;
    char *format;
    Py_ssize_t *shape;
    Py_ssize_t *strides;
    Py_ssize_t *suboffsets;
    void *internal;
} Py_buffer;
#define PyBUF_SIMPLE 0
#define PyBUF_WRITABLE 0x0001
#define PyBUF_RECORDS_RO 0x001C /* shape, strides and format */
KVR_IMPORT int PyObject_GetBuffer(PyObject *, Py_buffer *, int);
KVR_IMPORT int PyObject_CheckBuffer(PyObject *);
KVR_IMPORT void PyBuffer_Release(Py_buffer *);
KVR_IMPORT int PyBuffer_FillInfo(Py_buffer *, PyObject *, void *, Py_ssize_t, int, int);
KVR_IMPORT PyObject *PyMemoryView_FromObject(PyObject *);

/* -- errors, memory, threads -------------------------------------------------------------------------------------- */

KVR_IMPORT extern PyObject *PyExc_BufferError, *PyExc_IndexError, *PyExc_KeyError, *PyExc_MemoryError;
KVR_IMPORT extern PyObject *PyExc_OverflowError, *PyExc_RuntimeError, *PyExc_SystemError, *PyExc_TypeError;
KVR_IMPORT extern PyObject *PyExc_ValueError;
KVR_IMPORT void PyErr_SetString(PyObject *, const char *);
KVR_IMPORT void PyErr_SetNone(PyObject *);
KVR_IMPORT PyObject *PyErr_Format(PyObject *, const char *, ...);
KVR_IMPORT PyObject *PyErr_NoMemory(void);
KVR_IMPORT PyObject *PyErr_Occurred(void);
KVR_IMPORT int PyErr_ExceptionMatches(PyObject *);
KVR_IMPORT void PyErr_Clear(void);

KVR_IMPORT void *PyMem_Malloc(size_t);
KVR_IMPORT void *PyMem_Calloc(size_t, size_t);
KVR_IMPORT void *PyMem_Realloc(void *, size_t);
KVR_IMPORT void PyMem_Free(void *);

KVR_IMPORT PyThreadState *PyEval_SaveThread(void);
KVR_IMPORT void PyEval_RestoreThread(PyThreadState *);

#endif /* KVR_HAS_PYTHON_H */

#endif
