/* Predictions as a Python object, for the files that hold its methods or take one as an argument. */
#ifndef KVR_ROUTING_PREDICTIONS_OBJECT_H
#define KVR_ROUTING_PREDICTIONS_OBJECT_H

#include "python_abi.h"
#include "routing_predictions.h"

struct kvr_predictions_object {
    PyObject_HEAD
    struct kvr_predictions predictions;
};

KVR_INLINE struct kvr_predictions *kvr_predictions_of(PyObject *object)
{
    return &((struct kvr_predictions_object *)(void *)object)->predictions;
}

#endif
