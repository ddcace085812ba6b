/* SPDX-License-Identifier: BSD-2-Clause */
/* A guest's memory: mapping and translating. */
#include "guest_mem.h"

#include "guard.h"

#include <errno.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

/* One mmap, shared by the tables that have its region. Control thread only. */
struct guest_mapping {
    unsigned int users;
    void *address;
    size_t length;
};

static bool is_memory(const struct statfs *fs)
{
    return fs->f_type == TMPFS_MAGIC || fs->f_type == HUGETLBFS_MAGIC;
}

static bool overlaps(uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size)
{
    return a < b + b_size && b < a + a_size;
}

static int check_region(const struct guest_mem *old, const struct guest_region *r)
{
    if (r->size == 0 || r->gpa + r->size < r->gpa || r->uva + r->size < r->uva)
        return -EINVAL;
    for (unsigned int i = 0; old && i < old->count; i++)
        if (overlaps(r->gpa, r->size, old->region[i].gpa, old->region[i].size) ||
            overlaps(r->uva, r->size, old->region[i].uva, old->region[i].size))
            return -EINVAL;
    return old && old->count == GUEST_REGIONS_MAX ? -ENOSPC : 0;
}

/* Maps size bytes behind offset. The file must be that long now; that it stays so is for the SIGBUS handler to see. */
static int map_region(struct guest_mapping **mapping, uint64_t size, int fd, uint64_t offset, bool allow_file,
                      atomic_bool *dead)
{
    struct guest_mapping *m;
    struct statfs fs;
    struct stat st;
    size_t length;

    if (fstatfs(fd, &fs) < 0 || fstat(fd, &st) < 0)
        return -errno;
    if (!is_memory(&fs) && !allow_file)
        return -EMEDIUMTYPE;
    if (offset + size < size || offset + size > (uint64_t)st.st_size)
        return -EINVAL;
    /* Mapped from the file's start, in whole pages of its kind: a huge page cannot be mapped in part. */
    length = (offset + size + (uint64_t)st.st_blksize - 1) / (uint64_t)st.st_blksize * (uint64_t)st.st_blksize;
    m = malloc(sizeof(*m));
    if (!m)
        return -ENOMEM;
    m->users = 0;
    m->length = length;
    m->address = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (m->address == MAP_FAILED) {
        int err = -errno;

        free(m);
        return err;
    }
    if (guard_add(m->address, length, dead) < 0) {
        munmap(m->address, length);
        free(m);
        return -ENOSPC;
    }
    madvise(m->address, length, MADV_DONTDUMP);
    *mapping = m;
    return 0;
}

static void put_mapping(struct guest_mapping *m)
{
    if (--m->users > 0)
        return;
    guard_remove(m->address);
    munmap(m->address, m->length);
    free(m);
}

struct guest_mem *guest_mem_copy(const struct guest_mem *old)
{
    struct guest_mem *mem = calloc(1, sizeof(*mem));

    if (mem && old)
        *mem = *old;
    for (unsigned int i = 0; mem && i < mem->count; i++)
        mem->mapping[i]->users++;
    return mem;
}

int guest_mem_add(struct guest_mem **mem, const struct guest_mem *old, const struct guest_region *region, int fd,
                  uint64_t offset, bool allow_file, atomic_bool *dead)
{
    int err = check_region(old, region);
    struct guest_mapping *m;
    struct guest_mem *new;

    if (err == 0)
        err = map_region(&m, region->size, fd, offset, allow_file, dead);
    if (err)
        return err;
    new = guest_mem_copy(old);
    m->users++;
    if (!new) {
        put_mapping(m);
        return -ENOMEM;
    }
    new->region[new->count] = *region;
    new->base[new->count] = (uint8_t *)m->address + offset;
    new->mapping[new->count++] = m;
    *mem = new;
    return 0;
}

int guest_mem_remove(struct guest_mem **mem, const struct guest_mem *old, const struct guest_region *region)
{
    struct guest_mem *new;
    unsigned int i = 0;

    while (old && i < old->count && (old->region[i].gpa != region->gpa || old->region[i].size != region->size))
        i++;
    if (!old || i == old->count)
        return -ENOENT;
    new = guest_mem_copy(old);
    if (!new)
        return -ENOMEM;
    put_mapping(new->mapping[i]);
    new->count--;
    new->region[i] = new->region[new->count];
    new->base[i] = new->base[new->count];
    new->mapping[i] = new->mapping[new->count];
    *mem = new;
    return 0;
}

void guest_mem_free(void *arg)
{
    struct guest_mem *mem = arg;

    for (unsigned int i = 0; mem && i < mem->count; i++)
        put_mapping(mem->mapping[i]);
    free(mem);
}

uint8_t *guest_mem_at_uva(const struct guest_mem *mem, uint64_t uva, uint64_t len, uint64_t *gpa)
{
    for (unsigned int i = 0; i < mem->count; i++) {
        uint64_t offset = uva - mem->region[i].uva;

        if (offset < mem->region[i].size && len <= mem->region[i].size - offset) {
            *gpa = mem->region[i].gpa + offset;
            return mem->base[i] + offset;
        }
    }
    return NULL;
}
