/* Memory for the segments of tables: runs of pages in large chunks.
 *
 * Segments come and go in many sizes of some dozen kilobytes, and are read at random. In large chunks the system can back
 * them with huge pages, so that a read at random does not first have to look for where its page is. Small and very large blocks are Python's.
 */
#ifndef KVR_INDEX_PAGES_H
#define KVR_INDEX_PAGES_H

#include <stddef.h>
#include <stdint.h>

#define KVR_PAGE_BYTES ((size_t)4096)
#define KVR_CHUNK_PAGES 512u

struct kvr_chunk {
    uint8_t *base; /* its first page tells the number of the chunk, and is not given out */
    uint32_t used;
    uint32_t longest; /* no run of free pages is longer; maybe none is as long */
    uint64_t taken[KVR_CHUNK_PAGES / 64];
};

struct kvr_pages {
    struct kvr_chunk *chunks;
    uint32_t count, allocated;
};

/* Room for `size` bytes, aligned as by Python's allocator; NULL when there is no memory. Without `pages` it is Python's.
 * The account counts whole pages. */
void *kvr_pages_take(struct kvr_pages *pages, size_t *account, size_t size);

/* Give back what was taken, with its size. When all has been given back, `pages` may be closed. */
void kvr_pages_give(struct kvr_pages *pages, size_t *account, void *memory, size_t size);
void kvr_pages_close(struct kvr_pages *pages);

#endif
