/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * QMP: what a client may send, in pieces, with descriptors now and then; every line that comes back is JSON
 *
 * The input is the text. A byte 0x01 to 0x08 cuts it: what stands before is sent, with a descriptor if the byte is odd, and
 * the switch has a turn. Negotiation is done before, unless the first byte is 0x01.
 */
#include "fuzz.h"

#include "qmp.h"

#include <jansson.h>
#include <sys/socket.h>
#include <unistd.h>

#define ANSWER_MAX (1024 * 1024)

static char answers[ANSWER_MAX];
static bool hung_up;

static bool is_cut(uint8_t c)
{
    return c >= 1 && c <= 8;
}

/* What has been answered so far, added to what there was. */
static size_t read_answers(int sock, size_t have)
{
    ssize_t n = 1;

    while (have < ANSWER_MAX && (n = recv(sock, answers + have, ANSWER_MAX - have, MSG_DONTWAIT)) > 0)
        have += (size_t)n;
    hung_up = hung_up || n == 0;
    return have;
}

static void check_answers(size_t len)
{
    for (size_t at = 0; at < len;) {
        const char *end = memchr(answers + at, '\n', len - at);
        json_error_t error;
        json_t *line;

        if (!end)
            return;
        line = json_loadb(answers + at, (size_t)(end - answers) - at, 0, &error);
        MUST(line);
        json_decref(line);
        at = (size_t)(end - answers) + 1;
    }
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    fuzz_start();
    MUST(qmp_start(fuzz_listen("qmp.sock", SOCK_STREAM)) == 0);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char negotiation[] = "{\"execute\": \"qmp_capabilities\"}\n";
    size_t have = 0;
    int sock;

    fuzz_begin();
    hung_up = false;
    sock = fuzz_connect("qmp.sock", SOCK_STREAM);
    if (size == 0 || data[0] != 1)
        fuzz_send(sock, negotiation, sizeof(negotiation) - 1, NULL, 0);
    for (size_t at = 0; at < size;) {
        size_t n = 0;
        int fd = -1;

        while (at + n < size && !is_cut(data[at + n]))
            n++;
        if (at + n < size && data[at + n] & 1)
            fd = fuzz_some_fd(data[at + n] / 2);
        if (n)
            fuzz_send(sock, data + at, n, &fd, fd >= 0);
        if (fd >= 0)
            close(fd);
        fuzz_turn();
        have = read_answers(sock, have);
        at += n + 1;
    }
    fuzz_turn();
    fuzz_turn();
    have = read_answers(sock, have);
    check_answers(have);
    /* Only who sends a NUL is hung up, or who asks for more than he reads. */
    MUST(!hung_up || memchr(data, '\0', size) || have > ANSWER_MAX / 16);
    close(sock);
    fuzz_end();
    return 0;
}
