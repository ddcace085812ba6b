/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * netmap.sock: messages of any form on up to four connections, answers that are read or not
 *
 * An input is a sequence of operations. REQUEST builds a message of a header and a body where they belong, RAW sends bytes,
 * RESUME hands over memory as after a restart, sound in its size and seals and with anything in its control block.
 */
#include "fuzz.h"

#include "attach.h"
#include "region.h"

#include <net/netmap.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>
#include <vale_proto.h>

#define CLIENTS 4
#define ANSWERS 8

enum { REQUEST, RAW, HANG_UP, TURN, READ, TRAFFIC, RESUME, OPERATIONS };

static struct port *honest; /* what monitors see */
static int client[CLIENTS];
static int answer[ANSWERS]; /* our ends of reply sockets */
static unsigned int answers;

static int sock_of(struct input *in)
{
    unsigned int i = (unsigned int)take(in, 1) % CLIENTS;

    if (client[i] < 0)
        client[i] = fuzz_connect("netmap.sock", SOCK_SEQPACKET);
    return client[i];
}

/* Reads what came, descriptors and all; every answer is well-formed. */
static void read_answer(int fd)
{
    struct {
        struct vale_reply reply;
        uint8_t bytes[VALE_MSG_MAX + 1];
    } data;
    struct iovec iov = {&data, sizeof(data)};
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(VALE_FD_COUNT * sizeof(int))];
    } control;
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    ssize_t n = recvmsg(fd, &msg, MSG_DONTWAIT);
    struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&msg) : NULL;

    if (n <= 0)
        return;
    MUST((size_t)n >= sizeof(data.reply) && data.reply.magic == VALE_REPLY_MAGIC && !(msg.msg_flags & MSG_CTRUNC));
    MUST((size_t)n == sizeof(data.reply) + data.reply.length && data.reply.error >= 0);
    MUST(!c || c->cmsg_len == CMSG_LEN(VALE_FD_COUNT * sizeof(int)));
    for (unsigned int i = 0; c && i < VALE_FD_COUNT; i++)
        close(((int *)(void *)CMSG_DATA(c))[i]);
}

static void read_answers(void)
{
    while (answers) {
        read_answer(answer[--answers]);
        close(answer[answers]);
    }
}

/* Sends a message; mostly with one reply socket, as it should be. */
static void send_message(struct input *in, int sock, const void *data, size_t len)
{
    unsigned int how = (unsigned int)take(in, 1), n = how % 16 < 12 ? 1 : how % 5 * 3;
    int fds[16], pair[2];

    if (answers == ANSWERS)
        read_answers();
    for (unsigned int i = 0; i < n; i++)
        fds[i] = i == 0 && how < 192 && socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0 ? pair[1] : fuzz_some_fd(how + i);
    if (n && how < 192)
        answer[answers++] = pair[0];
    fuzz_send(sock, data, len, fds, n);
    while (n)
        close(fds[--n]);
}

static void send_request(struct input *in, int sock)
{
    static const char *const names[] = {"vale1:a", "vale1:b", "vale2:a", "valex", "", "vale1:"};
    static const uint16_t types[] = {NETMAP_REQ_REGISTER, NETMAP_REQ_REGISTER, NETMAP_REQ_PORT_INFO_GET,
                                     NETMAP_REQ_PORT_HDR_SET, NETMAP_REQ_PORT_HDR_GET, NETMAP_REQ_VALE_LIST};
    struct {
        struct nmreq_header header;
        uint8_t bytes[256];
    } message = {.header = {.nr_version = NETMAP_API, .nr_body = sizeof(struct nmreq_header)}};
    struct nmreq_register *reg = (struct nmreq_register *)(void *)message.bytes;
    uint8_t form = (uint8_t)take(in, 1);
    size_t n;

    message.header.nr_reqtype = types[form % 6];
    strcpy(message.header.nr_name, names[form / 8 % 6]);
    reg->nr_mode = NR_REG_ALL_NIC;
    reg->nr_tx_slots = reg->nr_rx_slots = 64;
    reg->nr_flags = form & 128 ? NR_EXCLUSIVE : 0;
    if (form & 64) {
        message.header.nr_options = take(in, 1) * 8;
        reg->nr_flags |= take(in, 1) * NR_MONITOR_TX % (NR_ZCOPY_MON << 1);
    }
    n = (size_t)take(in, 1);
    memcpy(message.bytes, take_bytes(in, &n), n);
    reg->nr_extra_bufs %= 64;
    send_message(in, sock, &message, sizeof(message));
}

static void send_resume(struct input *in, int sock)
{
    struct region_config config = {.tx_rings = 1, .rx_rings = 1, .tx_slots = 64, .rx_slots = 64};
    size_t n = (size_t)take(in, 2) % (3 * sizeof(struct vale_ring_ctl) + 4096);
    struct {
        struct nmreq_header header;
        struct nmreq_register reg;
        struct vale_opt_resume resume;
    } message = {.header = {.nr_version = NETMAP_API,
                            .nr_reqtype = NETMAP_REQ_REGISTER,
                            .nr_name = "vale1:r",
                            .nr_options = sizeof(struct nmreq_header) + sizeof(struct nmreq_register),
                            .nr_body = sizeof(struct nmreq_header)}};
    struct region region;
    int fds[2], pair[2];

    message.header.nr_name[6] = (char)('r' + take(in, 1) % 2);
    message.reg = (struct nmreq_register){
        .nr_mode = NR_REG_ALL_NIC, .nr_tx_rings = 1, .nr_rx_rings = 1, .nr_tx_slots = 64, .nr_rx_slots = 64};
    message.resume = (struct vale_opt_resume){
        .nro.nro_reqtype = VALE_OPT_RESUME, .incarnation = take(in, 1), .hdr_len = (uint32_t)take(in, 1) % 16};
    MUST(region_create(&region, &config, "fuzz") == 0);
    memcpy(region.base + VALE_RING_CTL_OFS, take_bytes(in, &n), n);
    MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0);
    if (answers == ANSWERS)
        read_answers();
    answer[answers++] = pair[0];
    fds[0] = pair[1];
    fds[1] = region.fd;
    fuzz_send(sock, &message, sizeof(message), fds, 2);
    close(pair[1]);
    region_destroy(&region);
}

static void step(struct input *in)
{
    switch (take(in, 1) % OPERATIONS) {
    case REQUEST: send_request(in, sock_of(in)); break;
    case RAW: {
        int sock = sock_of(in);
        size_t n = (size_t)take(in, 2) % (VALE_MSG_MAX + 16);
        const uint8_t *bytes = take_bytes(in, &n);

        send_message(in, sock, bytes, n);
        break;
    }
    case HANG_UP: {
        int sock = sock_of(in);

        for (unsigned int i = 0; i < CLIENTS; i++)
            client[i] = client[i] == sock ? -1 : client[i];
        close(sock);
        break;
    }
    case TURN: fuzz_turn(); break;
    case RESUME: send_resume(in, sock_of(in)); break;
    case TRAFFIC:
        fuzz_native_drain(honest);
        fuzz_native_send(honest, 20, 14 + (uint32_t)take(in, 2) % 9000, 0);
        fuzz_turn();
        break;
    case READ:
        fuzz_turn();
        fuzz_turn();
        read_answers();
        break;
    }
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    fuzz_start();
    MUST(attach_start(fuzz_listen("netmap.sock", SOCK_SEQPACKET)) == 0);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};

    fuzz_begin();
    honest = fuzz_native("vale1:h", 0);
    for (unsigned int i = 0; i < CLIENTS; i++)
        client[i] = -1;
    while (in.left)
        step(&in);
    fuzz_settle();
    read_answers();
    for (unsigned int i = 0; i < CLIENTS; i++)
        if (client[i] >= 0)
            close(client[i]);
    fuzz_end();
    return 0;
}
