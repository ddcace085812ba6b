/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * vnet_test.c - virtio-net headers between QEMU's backend and another port of a switch, without a guest
 *
 *     qemu-vnet-test QEMU DEVICE
 *
 * Theory of operation: QEMU runs no guest code (-accel qtest); we are the driver of its virtio-net NIC, by reads and writes
 * of its virtio-mmio registers and of its memory over the qtest protocol, and the other port is ours through libvale.
 *
 *     this program --- qtest --- virtio-net NIC, netmap netdev --- vale7:q  switch  vale7:p --- this program
 *
 * So it is decided here what the driver accepts, and every byte that passes is compared. Each test resets the device and begins with
 * empty queues. Output is TAP. Layout of the device's memory, queue q: descriptors, avail and used rings at RINGS + q *
 * RING_SIZE, a buffer at BUFFERS + q * BUFFER_SIZE; every queue has one buffer in use at a time.
 */
#include <libvale.h>

#include <arpa/inet.h>
#include <inttypes.h>
#include <linux/virtio_config.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_net.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define DEVICE_AT   0xfeb00e00u
#define RINGS       0x100000u
#define RING_SIZE   0x10000u
#define BUFFERS     0x200000u
#define BUFFER_SIZE 0x20000u
#define QUEUE_NUM   16u
#define WAIT_S      20.0
#define QUIET_S     0.2

#define HDR   12u /* bytes of virtio-net header, VERSION_1 */
#define ETH   14u
#define IP    20u
#define TCP   20u
#define HEADS (ETH + IP + TCP)
#define MSS   1000u
#define BIG   8000u /* bytes of TCP payload: eight segments */

static FILE *to_qemu, *from_qemu;
static struct vale_port *port;
static uint16_t avail[2]; /* of each queue */
static unsigned int tests, failures;

#define CHECK(cond)                                               \
    do {                                                          \
        if (!(cond)) {                                            \
            printf("# line %d: not true: %s\n", __LINE__, #cond); \
            return false;                                         \
        }                                                         \
    } while (0)

static void __attribute__((noreturn)) die(const char *what)
{
    fprintf(stderr, "qemu-vnet-test: %s\n", what);
    exit(1);
}

static double now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

/* ------------------------------------------------------------------------------------------------------------ qtest --- */

static char answer[2 * BUFFER_SIZE + 64];

/* Reads the answer to a command; what follows its OK. */
static const char *ok(void)
{
    fflush(to_qemu);
    if (!fgets(answer, sizeof(answer), from_qemu) || strncmp(answer, "OK", 2) != 0)
        die("QEMU does not do as it is told");
    return answer[2] ? answer + 3 : answer + 2;
}

static uint32_t reg(uint32_t at)
{
    fprintf(to_qemu, "readl 0x%x\n", DEVICE_AT + at);
    return (uint32_t)strtoull(ok(), NULL, 16);
}

static void set_reg(uint32_t at, uint32_t value)
{
    fprintf(to_qemu, "writel 0x%x 0x%x\n", DEVICE_AT + at, value);
    ok();
}

static void put(uint32_t at, const void *data, size_t len)
{
    const uint8_t *bytes = data;

    fprintf(to_qemu, "write 0x%x 0x%zx 0x", at, len);
    for (size_t i = 0; i < len; i++)
        fprintf(to_qemu, "%02x", bytes[i]);
    fputc('\n', to_qemu);
    ok();
}

static void get(uint32_t at, void *data, size_t len)
{
    const char *hex;

    fprintf(to_qemu, "read 0x%x 0x%zx\n", at, len);
    hex = ok() + 2;
    for (size_t i = 0; i < len; i++) {
        char digits[3] = {hex[2 * i], hex[2 * i + 1], 0};

        ((uint8_t *)data)[i] = (uint8_t)strtoul(digits, NULL, 16);
    }
}

static pid_t start_qemu(char *program, const char *device)
{
    char netdev[160], bios[] = "/tmp/vnet-bios-XXXXXX";
    int in[2], out[2], fd = mkstemp(bios);
    pid_t pid;

    if (fd < 0 || ftruncate(fd, 65536) < 0 || pipe(in) < 0 || pipe(out) < 0)
        die("no pipes");
    snprintf(netdev, sizeof(netdev), "netmap,id=n0,ifname=vale7:q,devname=%s", device);
    pid = fork();
    if (pid == 0) {
        dup2(in[0], 0);
        dup2(out[1], 1);
        close(in[1]);
        close(out[0]);
        execl(program, program, "-machine", "microvm,acpi=off", "-accel", "qtest", "-nodefaults", "-display", "none",
              "-bios", bios, "-m", "32", "-global", "virtio-mmio.force-legacy=false", "-netdev", netdev, "-device",
              "virtio-net-device,netdev=n0", "-qtest", "stdio", "-qtest-log", "none", (char *)NULL);
        _exit(127);
    }
    close(in[0]);
    close(out[1]);
    to_qemu = fdopen(in[1], "w");
    from_qemu = fdopen(out[0], "r");
    if (reg(VIRTIO_MMIO_DEVICE_ID) != 1)
        die("QEMU has no virtio-net where it is expected");
    unlink(bios);
    return pid;
}

/* ----------------------------------------------------------------------------------------------------------- driver --- */

static uint32_t ring_at(unsigned int queue, unsigned int part)
{
    return RINGS + queue * RING_SIZE + part * 0x1000;
}

static void start_queue(unsigned int queue)
{
    static const uint8_t zeros[0x3000];

    put(ring_at(queue, 0), zeros, sizeof(zeros));
    avail[queue] = 0;
    set_reg(VIRTIO_MMIO_QUEUE_SEL, queue);
    set_reg(VIRTIO_MMIO_QUEUE_NUM, QUEUE_NUM);
    set_reg(VIRTIO_MMIO_QUEUE_DESC_LOW, ring_at(queue, 0));
    set_reg(VIRTIO_MMIO_QUEUE_AVAIL_LOW, ring_at(queue, 1));
    set_reg(VIRTIO_MMIO_QUEUE_USED_LOW, ring_at(queue, 2));
    set_reg(VIRTIO_MMIO_QUEUE_READY, 1);
}

/* Resets the device, which then accepts this and no more, and drops what is on its way to us. */
static void start_driver(uint32_t features)
{
    const uint32_t ready = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK;
    struct netmap_ring *rx = vale_rxring(port, 0);

    set_reg(VIRTIO_MMIO_STATUS, 0);
    set_reg(VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
    set_reg(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
    set_reg(VIRTIO_MMIO_DRIVER_FEATURES, features);
    set_reg(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
    set_reg(VIRTIO_MMIO_DRIVER_FEATURES, 1u << (VIRTIO_F_VERSION_1 - 32));
    set_reg(VIRTIO_MMIO_STATUS, ready);
    if (!(reg(VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_FEATURES_OK))
        die("the device has not the features that the test asks for");
    start_queue(0);
    start_queue(1);
    set_reg(VIRTIO_MMIO_STATUS, ready | VIRTIO_CONFIG_S_DRIVER_OK);
    vale_rxsync(port);
    rx->head = rx->cur = rx->tail;
    vale_rxsync(port);
}

/* Gives the device the buffer of a queue: to be filled (queue 0), or with a frame of len bytes. */
static void offer(unsigned int queue, uint32_t len)
{
    struct {
        uint64_t addr;
        uint32_t len;
        uint16_t flags, next;
    } desc = {BUFFERS + queue * BUFFER_SIZE, len, queue == 0 ? 2 : 0, 0};
    uint16_t head = 0, index;

    put(ring_at(queue, 0), &desc, sizeof(desc));
    put(ring_at(queue, 1) + 4 + 2 * (avail[queue] % QUEUE_NUM), &head, 2);
    index = ++avail[queue];
    put(ring_at(queue, 1) + 2, &index, 2);
    set_reg(VIRTIO_MMIO_QUEUE_NOTIFY, queue);
}

/* The length of what the device has done with the buffer of a queue; 0 when it has not in time. */
static uint32_t used(unsigned int queue, double seconds)
{
    double end = now() + seconds;
    uint16_t index;
    uint32_t len;

    do {
        get(ring_at(queue, 2) + 2, &index, 2);
        if (index == avail[queue]) {
            get(ring_at(queue, 2) + 4 + 8 * ((index - 1) % QUEUE_NUM) + 4, &len, 4);
            return queue == 0 ? len : 1;
        }
        usleep(1000);
    } while (now() < end);
    return 0;
}

static bool transmit(const uint8_t *frame, uint32_t len)
{
    put(BUFFERS + BUFFER_SIZE, frame, len);
    offer(1, len);
    return used(1, WAIT_S) != 0;
}

static uint32_t receive(uint8_t *frame, double seconds)
{
    uint32_t len = used(0, seconds);

    if (len != 0)
        get(BUFFERS, frame, len);
    return len;
}

/* --------------------------------------------------------------------------------------------------------- our port --- */

/* The header that our port has. */
static void our_header(unsigned int len)
{
    struct vale_error err;

    if (vale_set_vnet_hdr(port, len, VALE_ACCEPT_ALL & ~VALE_ACCEPT_USO, &err) < 0)
        die(err.text);
}

static void port_send(const uint8_t *frame, uint32_t len)
{
    struct netmap_ring *ring = vale_txring(port, 0);
    uint32_t at = ring->head;

    for (uint32_t done = 0; done < len; at = nm_ring_next(ring, at)) {
        struct netmap_slot *slot = &ring->slot[at];
        uint32_t part = len - done < ring->nr_buf_size ? len - done : ring->nr_buf_size;

        memcpy(NETMAP_BUF(ring, slot->buf_idx), frame + done, part);
        done += part;
        slot->len = (uint16_t)part;
        slot->flags = done < len ? NS_MOREFRAG : 0;
    }
    ring->head = ring->cur = at;
    vale_txsync(port);
}

/* The next frame, put together of its slots; 0 when there is none in time. */
static uint32_t port_receive(uint8_t *frame, double seconds)
{
    struct netmap_ring *ring = vale_rxring(port, 0);
    uint32_t len = 0;
    bool more = true;

    if (vale_wait(port, VALE_RX, (int)(seconds * 1000)) <= 0)
        return 0;
    for (uint32_t at = ring->head; more && at != ring->tail; ring->head = ring->cur = at) {
        struct netmap_slot *slot = &ring->slot[at];

        memcpy(frame + len, NETMAP_BUF(ring, slot->buf_idx), slot->len);
        len += slot->len;
        more = slot->flags & NS_MOREFRAG;
        at = nm_ring_next(ring, at);
    }
    vale_rxsync(port);
    return len;
}

/* ------------------------------------------------------------------------------------------------------------ frames --- */

static uint32_t add(uint32_t sum, const uint8_t *data, size_t len)
{
    for (size_t i = 0; i < len; i++)
        sum += i % 2 ? data[i] : (uint32_t)data[i] << 8;
    return sum;
}

static uint16_t fold(uint32_t sum)
{
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

/* RFC 793: the sum over the pseudo header of an IPv4 frame. */
static uint32_t pseudo(const uint8_t *frame, uint32_t len)
{
    return add(len - ETH - IP + IPPROTO_TCP, frame + ETH + 12, 8);
}

/* A virtio-net header and a TCP frame whose checksum, and segmentation where it is long, are to be done. Its length. */
static uint32_t make_frame(uint8_t *out, uint32_t payload)
{
    static const uint8_t addresses[] = {198, 18, 0, 1, 198, 18, 0, 2};
    struct virtio_net_hdr hdr = {.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .csum_start = ETH + IP, .csum_offset = 16};
    uint8_t *frame = out + HDR, *ip = frame + ETH, *tcp = ip + IP;
    uint32_t len = HEADS + payload;
    uint16_t sum;

    if (payload > MSS) {
        hdr.gso_type = VIRTIO_NET_HDR_GSO_TCPV4;
        hdr.gso_size = MSS;
        hdr.hdr_len = HEADS;
    }
    memset(out, 0, HDR + HEADS);
    memcpy(out, &hdr, sizeof(hdr));
    memset(frame, 0xff, 6);
    memcpy(frame + 6, "\x02\x00\x00\x00\x00\x07\x08\x00", 8);
    ip[0] = 0x45;
    ip[2] = (uint8_t)((len - ETH) >> 8);
    ip[3] = (uint8_t)(len - ETH);
    ip[8] = 64;
    ip[9] = IPPROTO_TCP;
    memcpy(ip + 12, addresses, sizeof(addresses));
    sum = htons((uint16_t)~fold(add(0, ip, IP)));
    memcpy(ip + 10, &sum, 2);
    tcp[1] = tcp[3] = 7;
    tcp[12] = 0x50;
    tcp[13] = 0x10;
    sum = htons(fold(pseudo(frame, len)));
    memcpy(tcp + 16, &sum, 2);
    for (uint32_t i = 0; i < payload; i++)
        tcp[TCP + i] = (uint8_t)(i * 7 + (i >> 8));
    return HDR + len;
}

/* The frame's checksum is complete and right. */
static bool is_complete(const uint8_t *frame, uint32_t len)
{
    return fold(add(pseudo(frame, len), frame + ETH + IP, len - ETH - IP)) == 0xffff;
}

/* ------------------------------------------------------------------------------------------------------------- tests --- */

static uint8_t sent[BUFFER_SIZE], got[BUFFER_SIZE];

#define FULL                                                                                               \
    (1u << VIRTIO_NET_F_CSUM | 1u << VIRTIO_NET_F_GUEST_CSUM | 1u << VIRTIO_NET_F_HOST_TSO4 |               \
     1u << VIRTIO_NET_F_GUEST_TSO4 | 1u << VIRTIO_NET_F_HOST_TSO6 | 1u << VIRTIO_NET_F_GUEST_TSO6 |         \
     1u << VIRTIO_NET_F_HOST_ECN | 1u << VIRTIO_NET_F_GUEST_ECN)

/* The same frame, and a header that asks for the same work. */
static bool same(uint32_t len, uint32_t len_sent)
{
    CHECK(len == len_sent);
    CHECK(memcmp(got, sent, 10) == 0);
    CHECK(memcmp(got + HDR, sent + HDR, len - HDR) == 0);
    return true;
}

static bool a_long_frame_comes_to_the_nic_as_one(void)
{
    uint32_t len = make_frame(sent, BIG);

    our_header(HDR);
    start_driver(FULL);
    offer(0, BUFFER_SIZE);
    port_send(sent, len);
    return same(receive(got, WAIT_S), len);
}

static bool a_long_frame_of_the_nic_comes_as_one(void)
{
    uint32_t len = make_frame(sent, BIG);

    our_header(HDR);
    start_driver(FULL);
    CHECK(transmit(sent, len));
    return same(port_receive(got, WAIT_S), len);
}

static bool a_port_without_header_gets_segments(void)
{
    uint32_t payload = 0, len;

    our_header(0);
    start_driver(FULL);
    CHECK(transmit(sent, make_frame(sent, BIG)));
    while (payload < BIG) {
        len = port_receive(got, WAIT_S);
        /* The kernel's switch does not look at gso_size: it fills frames of 1514 bytes. */
        CHECK(len > HEADS && len <= (port->provider == VALE_PROVIDER_USER ? HEADS + MSS : 1514));
        CHECK(is_complete(got, len));
        CHECK(memcmp(got + HEADS, sent + HDR + HEADS + payload, len - HEADS) == 0);
        payload += len - HEADS;
    }
    CHECK(payload == BIG);
    return true;
}

static bool a_port_without_header_sends_to_the_nic(void)
{
    uint32_t len = make_frame(sent, 100) - HDR;

    our_header(0);
    start_driver(FULL);
    offer(0, BUFFER_SIZE);
    port_send(sent + HDR, len);
    CHECK(receive(got, WAIT_S) == HDR + len);
    CHECK(got[0] == 0 && got[1] == 0);
    CHECK(memcmp(got + HDR, sent + HDR, len) == 0);
    return true;
}

static bool checksums_are_complete_for_a_driver_that_wants_them(void)
{
    uint32_t len = make_frame(sent, 100);

    our_header(HDR);
    start_driver(0);
    offer(0, BUFFER_SIZE);
    port_send(sent, len);
    CHECK(receive(got, WAIT_S) == len);
    CHECK((got[0] & VIRTIO_NET_HDR_F_NEEDS_CSUM) == 0);
    CHECK(is_complete(got + HDR, len - HDR));
    return true;
}

/* valed cuts it; the kernel's switch hands it on, and the backend drops it: the next frame comes. */
static bool a_driver_without_tso_gets_no_long_frame(void)
{
    uint32_t len = make_frame(sent, BIG);
    bool cut = port->provider == VALE_PROVIDER_USER;

    our_header(HDR);
    start_driver(0);
    offer(0, BUFFER_SIZE);
    port_send(sent, len);
    len = receive(got, cut ? WAIT_S : QUIET_S);
    if (cut) {
        CHECK(len == HDR + HEADS + MSS);
        CHECK(is_complete(got + HDR, len - HDR));
        return true;
    }
    CHECK(len == 0);
    len = make_frame(sent, 100);
    port_send(sent, len);
    CHECK(receive(got, WAIT_S) == len);
    return true;
}

static void run(const char *name, bool (*test)(void))
{
    bool good = test();

    failures += !good;
    printf("%s %u - vnet: %s\n", good ? "ok" : "not ok", ++tests, name);
    fflush(stdout);
}

#define RUN(test) run(#test, test)

int main(int argc, char **argv)
{
    struct vale_open_args args = {.name = "vale7:p", .device = argc == 3 ? argv[2] : NULL};
    struct vale_error err;
    pid_t qemu;

    if (argc != 3) {
        fprintf(stderr, "usage: qemu-vnet-test QEMU DEVICE\n");
        return 2;
    }
    port = vale_open(&args, &err);
    if (!port)
        die(err.text);
    qemu = start_qemu(argv[1], argv[2]);
    /* First: a port that once had a header gets longer segments from the kernel's switch. */
    RUN(a_port_without_header_gets_segments);
    RUN(a_port_without_header_sends_to_the_nic);
    RUN(a_long_frame_comes_to_the_nic_as_one);
    RUN(a_long_frame_of_the_nic_comes_as_one);
    RUN(checksums_are_complete_for_a_driver_that_wants_them);
    RUN(a_driver_without_tso_gets_no_long_frame);
    printf("1..%u\n", tests);
    kill(qemu, SIGTERM);
    waitpid(qemu, NULL, 0);
    vale_close(port);
    return failures != 0;
}
