/* The fields of events: what they are called in maps, and their places in arrays. */
#ifndef KVR_EVENTS_FIELDS_H
#define KVR_EVENTS_FIELDS_H

#include "events_batch.h"

enum field {
    TYPE,
    HASHES,
    PARENT,
    TOKENS,
    BLOCK_SIZE,
    LORA_ID,
    MEDIUM,
    LORA_NAME,
    EXTRA_KEYS,
    GROUP,
    KIND,
    WINDOW,
    LOCALITY,
    OWNERSHIP,
    SESSION_ID,
    SALT,     /* plain where it is empty */
    OTHER,    /* plain where it is nil */
    IGNORED,  /* known, and without any meaning here */
    FOREIGN,  /* of shared stores: never plain */
    UNKNOWN,
};

struct name {
    const char *text;
    uint8_t length, field;
};

struct key {
    const char *text;
    size_t length;
};

/* The names of an event's fields in their usual order, and how many of them an array has. */
const struct name *kvr_field_names(const struct kvr_event *event);
const uint8_t *kvr_field_order(const struct kvr_event *event, size_t *count);

/* The field of a key; `next` is where it stands if keys come in the usual order. */
enum field kvr_find_field(const struct kvr_event *event, const struct key *key, const struct name **next);

#endif
