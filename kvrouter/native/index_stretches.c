/* Giving places to blocks; `index_stretches.h` says what for. */
#include "index_stretches.h"
#include "index_memory.h"

/* As many as a link can name; further blocks stay loose. */
#define PAGES_MAX ((1u << (32 - KVR_STRETCH_BITS - KVR_STRETCHES_PER_PAGE_BITS)) - 1)

/* -- pages -------------------------------------------------------------------------------------------------------- */

static int has_room(const struct kvr_stretch_page *page)
{
    return page->free != 0 || page->fresh < KVR_STRETCHES_PER_PAGE;
}

static void list_page(struct kvr_stretches *stretches, uint32_t number)
{
    struct kvr_stretch_page *page = stretches->pages[number];
    page->before = 0;
    page->after = stretches->roomy;
    if (page->after != 0)
        stretches->pages[page->after - 1]->before = number + 1;
    stretches->roomy = number + 1;
}

static void unlist_page(struct kvr_stretches *stretches, const struct kvr_stretch_page *page)
{
    if (page->before != 0)
        stretches->pages[page->before - 1]->after = page->after;
    else
        stretches->roomy = page->after;
    if (page->after != 0)
        stretches->pages[page->after - 1]->before = page->before;
}

static int more_pages(struct kvr_stretches *stretches)
{
    uint32_t larger = stretches->pages_max ? 2 * stretches->pages_max : 8;
    larger = larger < PAGES_MAX ? larger : PAGES_MAX;
    if (larger == stretches->pages_max)
        return -1;
    struct kvr_stretch_page **pages =
        kvr_retake(stretches->account, stretches->pages, stretches->pages_max * sizeof *pages, larger * sizeof *pages);
    if (pages == NULL)
        return -1;
    memset(pages + stretches->pages_max, 0, (larger - stretches->pages_max) * sizeof *pages);
    stretches->pages = pages;
    stretches->pages_max = larger;
    return 0;
}

static int add_page(struct kvr_stretches *stretches)
{
    uint32_t number = 0;
    while (number < stretches->pages_used && stretches->pages[number] != NULL)
        number++;
    if (number == stretches->pages_max && more_pages(stretches))
        return -1;
    struct kvr_stretch_page *page = kvr_take(stretches->account, sizeof *page);
    if (page == NULL)
        return -1;
    page->used = page->fresh = page->free = 0;
    stretches->pages[number] = page;
    if (number >= stretches->pages_used)
        stretches->pages_used = number + 1;
    list_page(stretches, number);
    return 0;
}

static void drop_page(struct kvr_stretches *stretches, uint32_t number)
{
    unlist_page(stretches, stretches->pages[number]);
    kvr_give(stretches->account, stretches->pages[number], sizeof **stretches->pages);
    stretches->pages[number] = NULL;
    while (stretches->pages_used > 0 && stretches->pages[stretches->pages_used - 1] == NULL)
        stretches->pages_used--;
}

/* -- stretches ---------------------------------------------------------------------------------------------------- */

kvr_link kvr_stretches_begin(struct kvr_stretches *stretches, uint32_t position)
{
    if (stretches->roomy == 0 && add_page(stretches))
        return KVR_LOOSE_BLOCK;
    uint32_t number = stretches->roomy - 1, at;
    struct kvr_stretch_page *page = stretches->pages[number];
    if (page->free != 0) {
        at = page->free - 1;
        page->free = page->all[at].next;
    } else {
        at = page->fresh++;
    }
    page->used++;
    if (!has_room(page))
        unlist_page(stretches, page);
    page->all[at].sum = 0;
    page->all[at].present = 0;
    return ((number << KVR_STRETCHES_PER_PAGE_BITS | at) + 1) << KVR_STRETCH_BITS | position;
}

void kvr_stretches_end(struct kvr_stretches *stretches, kvr_link link)
{
    uint32_t number = (link >> KVR_STRETCH_BITS) - 1, at = number & (KVR_STRETCHES_PER_PAGE - 1);
    number >>= KVR_STRETCHES_PER_PAGE_BITS;
    struct kvr_stretch_page *page = stretches->pages[number];
    if (!has_room(page))
        list_page(stretches, number);
    page->all[at].next = page->free;
    page->free = at + 1;
    if (--page->used == 0)
        drop_page(stretches, number);
}

void kvr_stretches_abandon(struct kvr_stretches *stretches, kvr_link link)
{
    if (link != KVR_LOOSE_BLOCK && kvr_stretches_at(stretches, link)->present == 0)
        kvr_stretches_end(stretches, link);
}

/* -- life --------------------------------------------------------------------------------------------------------- */

void kvr_stretches_open(struct kvr_stretches *stretches, size_t *account, uint64_t secret)
{
    memset(stretches, 0, sizeof *stretches);
    stretches->account = account;
    stretches->secret = secret;
}

void kvr_stretches_close(struct kvr_stretches *stretches)
{
    for (uint32_t number = 0; number < stretches->pages_used; number++)
        kvr_give(stretches->account, stretches->pages[number], sizeof **stretches->pages);
    kvr_give(stretches->account, stretches->pages, stretches->pages_max * sizeof *stretches->pages);
}
