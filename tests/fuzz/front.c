/* SPDX-License-Identifier: BSD-2-Clause */
/* A vhost-user front end for fuzz targets. */
#include "front.h"

#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define VERSION 1u
#define SOCKET  "v.sock"

struct port *front_port(const char *text)
{
    struct vale_name name;
    struct vale_error err;
    struct port *port;

    MUST(vale_name_parse(text, &name, &err) == 0);
    MUST(vhost_port_create(&port, &name, SOCKET, false, false) == 0);
    MUST(port_add(port) == 0);
    return port;
}

void front_connect(struct front *f)
{
    *f = (struct front){.sock = fuzz_connect(SOCKET, SOCK_STREAM), .memory = memfd_create("guest", MFD_CLOEXEC)};
    MUST(f->memory >= 0 && ftruncate(f->memory, FRONT_MEMORY) == 0);
    for (int q = 0; q < 2; q++) {
        f->kick[q] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        f->call[q] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    }
    fuzz_turn();
}

void front_close(struct front *f)
{
    close(f->sock);
    close(f->memory);
    for (int q = 0; q < 2; q++) {
        close(f->kick[q]);
        close(f->call[q]);
    }
}

void front_message(struct front *f, uint32_t request, uint32_t flags, const void *payload, uint32_t len, const int *fds,
                   unsigned int n)
{
    struct vhost_message m = {.request = request, .flags = VERSION | flags, .size = len};
    uint8_t answer[1024];

    memcpy(m.bytes, payload, len < sizeof(m.bytes) ? len : sizeof(m.bytes));
    fuzz_send(f->sock, &m, VHOST_HEADER + (len < sizeof(m.bytes) ? len : sizeof(m.bytes)), fds, n);
    for (int i = 0; i < 3; i++)
        fuzz_turn();
    while (recv(f->sock, answer, sizeof(answer), MSG_DONTWAIT) > 0)
        ;
}

static void number_message(struct front *f, uint32_t request, uint64_t value, int fd)
{
    front_message(f, request, 0, &value, sizeof(value), &fd, fd >= 0);
}

static void set_memory(struct front *f)
{
    const struct {
        uint32_t count, padding;
        uint64_t region[2][4];
    } table = {2, 0, {{FRONT_GPA, FRONT_SIZE, FRONT_UVA, 0},
                      {FRONT_GPA + FRONT_SIZE, 0x6000, FRONT_UVA + FRONT_SIZE, FRONT_SECOND}}};
    int fds[2] = {f->memory, f->memory};

    front_message(f, SET_MEM_TABLE, 0, &table, sizeof(table), fds, 2);
}

void front_start(struct front *f, uint64_t features, unsigned int order)
{
    f->size = 1u << order;
    number_message(f, SET_FEATURES, features | VHOST_USER_F_PROTOCOL, -1);
    set_memory(f);
    for (uint32_t q = 0; q < 2; q++) {
        uint64_t at = FRONT_UVA + q * FRONT_RING;
        const struct {
            uint32_t index, flags;
            uint64_t desc, used, avail, log;
        } address = {q, 0, at, at + FRONT_USED, at + FRONT_AVAIL, 0};

        number_message(f, SET_VRING_NUM, q | (uint64_t)f->size << 32, -1);
        front_message(f, SET_VRING_ADDR, 0, &address, sizeof(address), NULL, 0);
        number_message(f, SET_VRING_CALL, q, f->call[q]);
        number_message(f, SET_VRING_KICK, q, f->kick[q]);
        number_message(f, SET_VRING_ENABLE, q | 1ull << 32, -1);
    }
}

void front_store(struct front *f, uint32_t at, const void *bytes, size_t n)
{
    if (n && pwrite(f->memory, bytes, n, at) < 0)
        __builtin_trap();
}

void front_descriptor(struct front *f, unsigned int queue, unsigned int index, const struct virtq_desc *d)
{
    front_store(f, queue * FRONT_RING + index % FRONT_QUEUE * (uint32_t)sizeof(*d), d, sizeof(*d));
}

void front_available(struct front *f, unsigned int queue, uint16_t head)
{
    uint32_t at = queue * FRONT_RING + FRONT_AVAIL;

    if (f->size)
        front_store(f, at + 4 + f->avail[queue] % f->size * 2, &head, 2);
    f->avail[queue]++;
    front_store(f, at + 2, &f->avail[queue], 2);
}

void front_kick(struct front *f, unsigned int queue)
{
    eventfd_write(f->kick[queue], 1);
    fuzz_turn();
}
