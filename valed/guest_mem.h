/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * guest_mem - a guest's memory, as a vhost-user front end hands it over
 *
 * A table is immutable: a change makes a new one, and the old one is reclaimed when no worker uses it any more. Mappings are
 * shared between tables. Memory must be memfd, tmpfs or hugetlbfs: of other files, writing a page can block on a disk.
 */
#ifndef VALED_GUEST_MEM_H
#define VALED_GUEST_MEM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GUEST_REGIONS_MAX 64

/* One region as the front end describes it. */
struct guest_region {
    uint64_t gpa;  /* guest physical address */
    uint64_t size; /* bytes */
    uint64_t uva;  /* address in the front end: how it names rings */
};

struct guest_mapping;

struct guest_mem {
    unsigned int count;
    struct guest_region region[GUEST_REGIONS_MAX];
    uint8_t *base[GUEST_REGIONS_MAX]; /* of gpa */
    struct guest_mapping *mapping[GUEST_REGIONS_MAX];
};

/*
 * A table with one region more than old (NULL: none), mapped from fd at offset; fd stays the caller's. 0 or -errno:
 * -EINVAL overlap, overflow or size; -ENOSPC too many; -EMEDIUMTYPE not memory (allow_file lifts that). dead is set if the
 * front end takes the memory away (guard.h).
 */
int guest_mem_add(struct guest_mem **mem, const struct guest_mem *old, const struct guest_region *region, int fd,
                  uint64_t offset, bool allow_file, atomic_bool *dead);

/* A table without the region that begins where `region` does. 0, -ENOENT, -ENOMEM. */
int guest_mem_remove(struct guest_mem **mem, const struct guest_mem *old, const struct guest_region *region);

/* Another table with the same regions, or NULL. */
struct guest_mem *guest_mem_copy(const struct guest_mem *old);

/* Gives up a table; mappings that no other table has are unmapped. For reclaim(). */
void guest_mem_free(void *mem);

/* `len` bytes at a guest address, or fewer: *len is cut where the region ends. NULL when there is nothing. */
static inline uint8_t *guest_mem_at(const struct guest_mem *mem, uint64_t gpa, uint32_t *len)
{
    for (unsigned int i = 0; i < mem->count; i++) {
        uint64_t offset = gpa - mem->region[i].gpa;

        if (offset < mem->region[i].size) {
            uint64_t left = mem->region[i].size - offset;

            if (*len > left)
                *len = (uint32_t)left;
            return mem->base[i] + offset;
        }
    }
    return NULL;
}

/* All of `len` bytes at an address of the front end, or NULL. *gpa: the guest address of the same. */
uint8_t *guest_mem_at_uva(const struct guest_mem *mem, uint64_t uva, uint64_t len, uint64_t *gpa);

#endif
