/* SPDX-License-Identifier: BSD-2-Clause */
/* What one user may hold of a switch that many share. */
#include "quota.h"

#include "log.h"

#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

struct account {
    uid_t uid;
    uint64_t used[QUOTA_KINDS];
    struct account *next;
};

static const char *const names[QUOTA_KINDS] = {
    [QUOTA_CONNECTIONS] = "connections", [QUOTA_ANSWERS] = "unread answers",
    [QUOTA_PORTS] = "ports",             [QUOTA_BYTES] = "bytes of ports",
};

static uint64_t limit[QUOTA_KINDS] = {[QUOTA_ANSWERS] = 512};
static struct account *accounts; /* of who holds something */

void quota_set(uint64_t ports, uint64_t bytes)
{
    uint64_t memory = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);

    limit[QUOTA_PORTS] = ports;
    limit[QUOTA_CONNECTIONS] = 2 * ports + 16; /* two processes may share a port; some only ask */
    limit[QUOTA_BYTES] = bytes ? bytes : memory / 2;
}

/* The link to the account, or to the end of the list. */
static struct account **find(uid_t uid)
{
    struct account **link = &accounts;

    while (*link && (*link)->uid != uid)
        link = &(*link)->next;
    return link;
}

bool quota_take(uid_t uid, enum quota_kind kind, uint64_t amount)
{
    struct account **link = find(uid);

    if (!*link) {
        *link = calloc(1, sizeof(**link));
        if (!*link)
            return false;
        (*link)->uid = uid;
    }
    if (amount > limit[kind] - (*link)->used[kind]) {
        log_limited("uid %u is refused more: %" PRIu64 " %s are its limit", uid, limit[kind], names[kind]);
        quota_give(uid, kind, 0);
        return false;
    }
    (*link)->used[kind] += amount;
    return true;
}

void quota_give(uid_t uid, enum quota_kind kind, uint64_t amount)
{
    struct account **link = find(uid), *account = *link;

    account->used[kind] -= amount;
    for (unsigned int i = 0; i < QUOTA_KINDS; i++)
        if (account->used[i])
            return;
    *link = account->next;
    free(account);
}
