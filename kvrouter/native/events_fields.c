/* The names of fields; `events_fields.h` says of which. */
#include "events_fields.h"

#define NAME(text, field) {text, sizeof text - 1, field}

/* As in the array encoding. */
static const uint8_t STORED_ORDER[] = {TYPE,   HASHES,    PARENT,     TOKENS, BLOCK_SIZE, LORA_ID,
                                       MEDIUM, LORA_NAME, EXTRA_KEYS, GROUP,  KIND,       WINDOW};
static const uint8_t REMOVED_ORDER[] = {TYPE, HASHES, MEDIUM, GROUP};

static const struct name STORED_NAMES[] = {
    NAME("type", TYPE),
    NAME("block_hashes", HASHES),
    NAME("parent_block_hash", PARENT),
    NAME("token_ids", TOKENS),
    NAME("block_size", BLOCK_SIZE),
    NAME("lora_id", LORA_ID),
    NAME("medium", MEDIUM),
    NAME("lora_name", LORA_NAME),
    NAME("extra_keys", EXTRA_KEYS),
    NAME("group_idx", GROUP),
    NAME("kv_cache_spec_kind", KIND),
    NAME("kv_cache_spec_sliding_window", WINDOW),
    NAME("locality", LOCALITY),
    NAME("ownership", OWNERSHIP),
    NAME("session_id", SESSION_ID),
    NAME("cache_salt", SALT),
    NAME("lookahead_token_ids", OTHER),
    NAME("mm_keys", OTHER),
    NAME("sequence_hashes", OTHER),
    {NULL, 0, UNKNOWN},
};

static const struct name REMOVED_NAMES[] = {
    NAME("type", TYPE),         NAME("block_hashes", HASHES),  NAME("medium", MEDIUM),     NAME("group_idx", GROUP),
    NAME("locality", LOCALITY), NAME("ownership", OWNERSHIP),  NAME("block_size", IGNORED), NAME("lora_name", IGNORED),
    NAME("token_ids", IGNORED), {NULL, 0, UNKNOWN},
};

/* Names in the events of shared stores. */
static const char *const FOREIGN_NAMES[] = {
    "event_id",  "timestamp", "event_type", "model_name", "additional_salt", "tenant_id",      "backend_id",
    "group_id",  "dp_rank",   "object_key", "seq_hashes", "base_block_idx",  "parent_hash",
};

const struct name *kvr_field_names(const struct kvr_event *event)
{
    return event->kind == KVR_STORED ? STORED_NAMES : REMOVED_NAMES;
}

const uint8_t *kvr_field_order(const struct kvr_event *event, size_t *count)
{
    *count = event->kind == KVR_STORED ? sizeof STORED_ORDER : sizeof REMOVED_ORDER;
    return event->kind == KVR_STORED ? STORED_ORDER : REMOVED_ORDER;
}

static int is_text(const struct key *key, const char *wanted)
{
    return strlen(wanted) == key->length && memcmp(key->text, wanted, key->length) == 0;
}

static int is_name(const struct key *key, const struct name *name)
{
    return name->length == key->length && memcmp(key->text, name->text, key->length) == 0;
}

enum field kvr_find_field(const struct kvr_event *event, const struct key *key, const struct name **next)
{
    const struct name *name = *next;
    if (name->text == NULL || !is_name(key, name)) {
        name = kvr_field_names(event);
        while (name->text != NULL && !is_name(key, name))
            name++;
    }
    if (name->text != NULL) {
        *next = name + 1;
        return (enum field)name->field;
    }
    for (size_t at = 0; at < sizeof FOREIGN_NAMES / sizeof *FOREIGN_NAMES; at++)
        if (is_text(key, FOREIGN_NAMES[at]))
            return FOREIGN;
    return UNKNOWN;
}
