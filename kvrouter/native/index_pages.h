/* Memory for the segments of tables: runs of pages in large chunks.
 *
 * Segments come and go in many sizes of some dozen kilobytes, and are read at random. In large chunks the system can back
 * them with huge pages, so that a read at random does not first have to look for where its page is. What is asked for gets
 * the shortest free run that is long enough, so that little is left between segments of a dozen sizes. Small and very
 * large blocks are Python's.
 */
#ifndef KVR_INDEX_PAGES_H
#define KVR_INDEX_PAGES_H

#include <stddef.h>
#include <stdint.h>

#define KVR_PAGE_BYTES ((size_t)4096)
#define KVR_PAGES_ALIGNMENT ((size_t)256)
#define KVR_CHUNK_PAGES 512u
/* Free runs are listed by their length; in the last list are all that are long enough for everything. */
#define KVR_RUN_LISTS (KVR_CHUNK_PAGES / 4 + 1)

/* A run that is free is told by its first and its last page. */
struct kvr_chunk {
    uint8_t *base; /* its first page is not given out: it has the number of the chunk, and the links of free runs */
    uint32_t used;
    uint16_t free[KVR_CHUNK_PAGES]; /* pages in the run that begins or ends here; 0 where that is in use */
};

struct kvr_pages {
    struct kvr_chunk *chunks;
    uint32_t count, allocated;
    uint32_t lists[KVR_RUN_LISTS]; /* the first run of each: number of its chunk and first page in one; 0: none */
};

/* Room for `size` bytes, aligned as by Python's allocator; NULL when there is no memory. Without `pages` it is Python's.
 * The account counts whole pages. */
void *kvr_pages_take(struct kvr_pages *pages, size_t *account, size_t size);

/* The same for one page, or less, that begins at a multiple of KVR_PAGES_ALIGNMENT. */
void *kvr_pages_take_aligned(struct kvr_pages *pages, size_t *account, size_t size);

/* Give back what was taken, with its size. When all has been given back, `pages` may be closed. */
void kvr_pages_give(struct kvr_pages *pages, size_t *account, void *memory, size_t size);
void kvr_pages_give_aligned(struct kvr_pages *pages, size_t *account, void *memory, size_t size);
void kvr_pages_close(struct kvr_pages *pages);

#endif
