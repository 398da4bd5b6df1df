/* Reading batches of events; `events_batch.h` says what of them. */
#include "events_batch.h"
#include "events_fields.h"
#include "events_tokens.h"
#include "python_abi.h"

/* The limits of the reference decoder. */
#define PAYLOAD_BYTES_MAX ((size_t)64 << 20)
#define EVENTS_MAX ((size_t)1 << 18)
#define HASHES_PER_EVENT_MAX ((size_t)1 << 20)
#define TOKENS_PER_EVENT_MAX ((size_t)1 << 22)
#define BLOCK_TOKENS_MAX 65536u
#define GROUPS_MAX 256u

#define UNKNOWN_KEYS_MAX 8
/* The array encoding of an event of a later version may have so many elements that are counted. */
#define UNNAMED_MAX 4

struct reader {
    struct kvr_batch *batch;
    struct kvr_cursor cursor;
    const uint8_t *payload;
    int no_memory;
};

/* -- space -------------------------------------------------------------------------------------------------------- */

/* Space for `more` behind `used`; NULL without memory. */
static void *grow(void *old, void *few, size_t used, size_t more, size_t *allocated, size_t size)
{
    if (more <= *allocated - used)
        return old;
    size_t larger = *allocated * 2 > used + more ? *allocated * 2 : used + more;
    void *space = old == few ? PyMem_Malloc(larger * size) : PyMem_Realloc(old, larger * size);
    if (space == NULL)
        return NULL;
    if (old == few)
        memcpy(space, few, used * size);
    *allocated = larger;
    return space;
}

static uint64_t *make_hashes(struct reader *reader, size_t count)
{
    struct kvr_batch *batch = reader->batch;
    uint64_t *hashes = grow(batch->hashes, batch->few_hashes, batch->hash_count, count, &batch->hashes_allocated,
                            sizeof *hashes);
    if (hashes == NULL) {
        reader->no_memory = 1;
        return NULL;
    }
    batch->hashes = hashes;
    return hashes + batch->hash_count;
}

static uint32_t *make_tokens(struct reader *reader, size_t count)
{
    struct kvr_batch *batch = reader->batch;
    uint32_t *tokens = grow(batch->tokens, batch->few_tokens, batch->token_count, count, &batch->tokens_allocated,
                            sizeof *tokens);
    if (tokens == NULL) {
        reader->no_memory = 1;
        return NULL;
    }
    batch->tokens = tokens;
    return tokens + batch->token_count;
}

static struct kvr_event *make_event(struct reader *reader)
{
    struct kvr_batch *batch = reader->batch;
    struct kvr_event *events = grow(batch->events, batch->few_events, batch->event_count, 1,
                                    &batch->events_allocated, sizeof *events);
    if (events == NULL) {
        reader->no_memory = 1;
        return NULL;
    }
    batch->events = events;
    return events + batch->event_count;
}

/* -- values: 0, or -1 where they are not plain -------------------------------------------------------------------- */

/* Bytes are taken by their last eight, as vLLM itself does to make an integer of a digest. */
static int read_hash(struct kvr_cursor *cursor, uint64_t *hash)
{
    int is_negative;
    if (kvr_read_integer(cursor, hash, &is_negative) == 0)
        return 0;
    size_t left = kvr_left(cursor);
    if (left < 2 || cursor->at[0] != 0xC4)
        return -1;
    size_t length = cursor->at[1];
    if (length == 0 || left - 2 < length)
        return -1;
    const uint8_t *at = cursor->at + 2, *end = at + length;
    *hash = 0;
    for (at = length > 8 ? end - 8 : at; at < end; at++)
        *hash = *hash << 8 | *at;
    cursor->at = end;
    return 0;
}

/* Those at the beginning that are integers of nine bytes, as nearly all are; how many. */
static size_t read_wide_hashes(struct kvr_cursor *cursor, uint64_t *hashes, size_t count)
{
    size_t at = 0, most = kvr_left(cursor) / 9;
    for (most = most < count ? most : count; at < most && cursor->at[0] == 0xCF; at++, cursor->at += 9)
        hashes[at] = kvr_big64(cursor->at + 1);
    return at;
}

static int read_hashes(struct reader *reader, struct kvr_event *event)
{
    size_t count;
    if (kvr_read_array(&reader->cursor, &count) || count > HASHES_PER_EVENT_MAX)
        return -1;
    uint64_t *hashes = make_hashes(reader, count);
    if (hashes == NULL)
        return -1;
    for (size_t at = read_wide_hashes(&reader->cursor, hashes, count); at < count; at++)
        if (read_hash(&reader->cursor, hashes + at))
            return -1;
    event->hashes = reader->batch->hash_count;
    event->hash_count = count;
    reader->batch->hash_count += count;
    return 0;
}

static int read_tokens(struct reader *reader, struct kvr_event *event)
{
    size_t count;
    if (kvr_read_nil(&reader->cursor))
        return 0;
    if (kvr_read_array(&reader->cursor, &count) || count > TOKENS_PER_EVENT_MAX)
        return -1;
    uint32_t *tokens = make_tokens(reader, count);
    if (tokens == NULL || kvr_read_tokens(&reader->cursor, tokens, count))
        return -1;
    event->tokens = reader->batch->token_count;
    event->token_count = count;
    reader->batch->token_count += count;
    return 0;
}

static int read_bounded(struct kvr_cursor *cursor, uint32_t limit, uint32_t *value)
{
    uint64_t wide;
    int is_negative;
    *value = 0;
    if (kvr_read_nil(cursor))
        return 0;
    if (kvr_read_integer(cursor, &wide, &is_negative) || is_negative || wide > limit)
        return -1;
    *value = (uint32_t)wide;
    return 0;
}

/* Inline, because `wanted` is mostly a constant, and then its length is one too. */
KVR_INLINE int is_text(const char *text, size_t length, const char *wanted)
{
    return strlen(wanted) == length && memcmp(text, wanted, length) == 0;
}

/* The names that engines use; of others the reference knows what they mean. */
static int read_medium(struct kvr_cursor *cursor, struct kvr_event *event)
{
    const char *text;
    size_t length;
    event->tier = 0;
    if (kvr_read_nil(cursor))
        return 0;
    if (kvr_read_text(cursor, &text, &length))
        return -1;
    if (is_text(text, length, "GPU"))
        return 0;
    event->is_pinned = (uint8_t)is_text(text, length, "CPU_PINNED");
    if (event->is_pinned || is_text(text, length, "CPU") || is_text(text, length, "cpu"))
        event->tier = 1;
    else if (is_text(text, length, "DISK") || is_text(text, length, "STORAGE"))
        event->tier = 2;
    else
        return -1;
    return 0;
}

/* A text that changes nothing, unless it is `not_plain`. */
static int read_remark(struct kvr_cursor *cursor, const char *not_plain)
{
    const char *text;
    size_t length;
    if (kvr_read_nil(cursor))
        return 0;
    return kvr_read_text(cursor, &text, &length) || (not_plain != NULL && is_text(text, length, not_plain)) ? -1 : 0;
}

static int read_no_text(struct kvr_cursor *cursor)
{
    const char *text;
    size_t length;
    return kvr_read_nil(cursor) || (kvr_read_text(cursor, &text, &length) == 0 && length == 0) ? 0 : -1;
}

/* Plain are only those that say nothing. */
static int read_extra_keys(struct reader *reader, struct kvr_event *event)
{
    event->has_extra_keys = !kvr_read_nil(&reader->cursor);
    if (!event->has_extra_keys)
        return 0;
    if (kvr_read_array(&reader->cursor, &event->extra_keys))
        return -1;
    for (size_t at = 0; at < event->extra_keys; at++)
        if (!kvr_read_nil(&reader->cursor))
            return -1;
    return 0;
}

static int read_parent(struct kvr_cursor *cursor, struct kvr_event *event)
{
    event->has_parent = !kvr_read_nil(cursor);
    return event->has_parent ? read_hash(cursor, &event->parent) : 0;
}

static int read_window(struct kvr_cursor *cursor)
{
    uint64_t value;
    int is_negative;
    return kvr_read_nil(cursor) ? 0 : kvr_read_integer(cursor, &value, &is_negative);
}

static int read_field(struct reader *reader, struct kvr_event *event, enum field field)
{
    struct kvr_cursor *cursor = &reader->cursor;
    uint32_t zero;
    switch (field) {
    case HASHES:
        return read_hashes(reader, event);
    case PARENT:
        return read_parent(cursor, event);
    case TOKENS:
        return read_tokens(reader, event);
    case BLOCK_SIZE:
        return read_bounded(cursor, BLOCK_TOKENS_MAX, &event->block_size);
    case LORA_ID:
        return read_bounded(cursor, 0, &zero);
    case MEDIUM:
        return read_medium(cursor, event);
    case LORA_NAME:
    case SALT:
        return read_no_text(cursor);
    case EXTRA_KEYS:
        return read_extra_keys(reader, event);
    case GROUP:
        return read_bounded(cursor, GROUPS_MAX - 1, &event->group);
    case KIND:
        event->has_kind = kvr_left(cursor) > 0 && *cursor->at != 0xC0;
        return read_remark(cursor, NULL);
    case WINDOW:
        return read_window(cursor);
    case LOCALITY:
        return read_remark(cursor, "REMOTE");
    case OWNERSHIP:
    case SESSION_ID:
        return read_remark(cursor, NULL);
    case OTHER:
        return kvr_read_nil(cursor) ? 0 : -1;
    case IGNORED:
    case UNKNOWN:
        return kvr_skip(cursor, KVR_NESTING_MAX);
    default:
        return -1;
    }
}

/* -- events ------------------------------------------------------------------------------------------------------- */

static int read_kind(struct kvr_cursor *cursor, struct kvr_event *event)
{
    const char *text;
    size_t length;
    if (kvr_read_text(cursor, &text, &length))
        return -1;
    if (is_text(text, length, "BlockStored"))
        event->kind = KVR_STORED;
    else if (is_text(text, length, "BlockRemoved"))
        event->kind = KVR_REMOVED;
    else if (is_text(text, length, "AllBlocksCleared"))
        event->kind = KVR_CLEARED;
    else
        return -1;
    return 0;
}

static int read_array_event(struct reader *reader, struct kvr_event *event, size_t *unknown)
{
    size_t count;
    if (kvr_read_array(&reader->cursor, &count) || count == 0 || read_kind(&reader->cursor, event))
        return -1;
    if (event->kind == KVR_CLEARED)
        return count == 1 ? 0 : -1;
    if (count == 1)
        return -1;
    size_t named;
    const uint8_t *order = kvr_field_order(event, &named);
    for (size_t at = 1; at < count; at++)
        if (read_field(reader, event, at < named ? (enum field)order[at] : UNKNOWN))
            return -1;
    if (count > named)
        *unknown = count - named < UNNAMED_MAX ? count - named : UNNAMED_MAX;
    return 0;
}

/* Note an unknown key; -1 if that is not simple: there are many, one twice, or one that is not ASCII. */
static int note_unknown(struct key *noted, size_t *count, const struct key *key)
{
    if (*count == UNKNOWN_KEYS_MAX)
        return -1;
    for (size_t at = 0; at < *count; at++)
        if (noted[at].length == key->length && memcmp(noted[at].text, key->text, key->length) == 0)
            return -1;
    for (size_t at = 0; at < key->length; at++)
        if ((uint8_t)key->text[at] >= 0x80)
            return -1;
    noted[(*count)++] = *key;
    return 0;
}

static int read_key(struct kvr_cursor *cursor, struct key *key)
{
    return kvr_read_text(cursor, &key->text, &key->length);
}

static int read_map_event(struct reader *reader, struct kvr_event *event, size_t *unknown)
{
    struct key key, noted[UNKNOWN_KEYS_MAX];
    uint32_t seen = 0;
    size_t count;
    if (kvr_read_map(&reader->cursor, &count) || count == 0 || read_key(&reader->cursor, &key) ||
        !is_text(key.text, key.length, "type") || read_kind(&reader->cursor, event))
        return -1;
    if (event->kind == KVR_CLEARED)
        return count == 1 ? 0 : -1;
    const struct name *next = kvr_field_names(event) + 1;
    for (size_t at = 1; at < count; at++) {
        if (read_key(&reader->cursor, &key))
            return -1;
        enum field field = kvr_find_field(event, &key, &next);
        uint32_t bit = (uint32_t)1 << field;
        int is_twice = seen & bit && field != OTHER && field != IGNORED;
        if (field == UNKNOWN ? note_unknown(noted, unknown, &key) : field == TYPE || is_twice)
            return -1;
        seen |= bit;
        if (read_field(reader, event, field))
            return -1;
    }
    return seen & (uint32_t)1 << HASHES ? 0 : -1;
}

/* Read the event at the cursor; where it is odd, pass over it. 0, or -1 if not even that can be done. */
static int read_event(struct reader *reader)
{
    struct kvr_batch *batch = reader->batch;
    struct kvr_event *event = make_event(reader);
    if (event == NULL || kvr_left(&reader->cursor) == 0)
        return -1;
    const uint8_t *start = reader->cursor.at;
    size_t hash_count = batch->hash_count, token_count = batch->token_count, unknown = 0;
    memset(event, 0, sizeof *event);
    uint8_t tag = *start;
    int is_map = (tag & 0xF0) == 0x80 || tag == 0xDE || tag == 0xDF;
    int failed = is_map ? read_map_event(reader, event, &unknown) : read_array_event(reader, event, &unknown);
    if (reader->no_memory)
        return -1;
    if (failed || (event->has_extra_keys && event->extra_keys != event->hash_count)) {
        memset(event, 0, sizeof *event);
        batch->hash_count = hash_count;
        batch->token_count = token_count;
        batch->odd_count++;
        reader->cursor.at = start;
        if (kvr_skip(&reader->cursor, KVR_NESTING_MAX))
            return -1;
    } else {
        batch->unknown_fields += unknown;
        batch->cleared_count += event->kind == KVR_CLEARED;
    }
    event->start = (size_t)(start - reader->payload);
    event->end = (size_t)(reader->cursor.at - reader->payload);
    batch->event_count++;
    return 0;
}

/* -- batches ------------------------------------------------------------------------------------------------------ */

/* A rank beyond 32 bits counts as none. */
static int read_announced_rank(struct kvr_cursor *cursor, int64_t *rank)
{
    uint64_t value;
    int is_negative;
    if (kvr_read_nil(cursor))
        return 0;
    if (kvr_read_integer(cursor, &value, &is_negative))
        return -1;
    if (!is_negative && value <= UINT32_MAX)
        *rank = (int64_t)value;
    return 0;
}

static int read_batch(struct reader *reader)
{
    size_t elements, events;
    if (kvr_read_array(&reader->cursor, &elements) || elements < 2 || kvr_skip(&reader->cursor, KVR_NESTING_MAX) ||
        kvr_read_array(&reader->cursor, &events) || events > EVENTS_MAX)
        return -1;
    for (size_t at = 0; at < events; at++)
        if (read_event(reader))
            return -1;
    if (elements > 2 && read_announced_rank(&reader->cursor, &reader->batch->announced_rank))
        return -1;
    for (size_t at = 3; at < elements; at++)
        if (kvr_skip(&reader->cursor, KVR_NESTING_MAX))
            return -1;
    return reader->cursor.at == reader->cursor.end ? 0 : -1;
}

int kvr_batch_open(struct kvr_batch *batch, const uint8_t *payload, size_t length)
{
    batch->events = batch->few_events;
    batch->hashes = batch->few_hashes;
    batch->tokens = batch->few_tokens;
    batch->event_count = batch->hash_count = batch->token_count = 0;
    batch->events_allocated = KVR_BATCH_EVENTS;
    batch->hashes_allocated = KVR_BATCH_HASHES;
    batch->tokens_allocated = KVR_BATCH_TOKENS;
    batch->odd_count = batch->cleared_count = batch->unknown_fields = 0;
    batch->announced_rank = -1;
    if (length > PAYLOAD_BYTES_MAX)
        return 1;
    struct reader reader = {batch, {payload, payload + length}, payload, 0};
    int failed = read_batch(&reader);
    return reader.no_memory ? -1 : failed ? 1 : 0;
}

void kvr_batch_close(struct kvr_batch *batch)
{
    if (batch->events != batch->few_events)
        PyMem_Free(batch->events);
    if (batch->hashes != batch->few_hashes)
        PyMem_Free(batch->hashes);
    if (batch->tokens != batch->few_tokens)
        PyMem_Free(batch->tokens);
}
