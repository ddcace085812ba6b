/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * udp_to_file PORT FILE: appends the payload of each datagram to the file, until it is killed.
 *
 * Runs inside a guest, statically linked. Stopped by SIGSTOP it leaves datagrams in the socket, in the buffers that the
 * NIC's driver gave to the device. Its socket is bound when it goes into the background.
 */
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(argc == 3 ? (uint16_t)atoi(argv[1]) : 0)};
    int space = 64 << 20, fd = socket(AF_INET, SOCK_DGRAM, 0);
    int file = argc == 3 ? open(argv[2], O_WRONLY | O_CREAT | O_TRUNC, 0600) : -1;
    static char data[65536];
    ssize_t n;

    if (fd < 0 || file < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &space, sizeof(space)) < 0 ||
        bind(fd, (struct sockaddr *)&any, sizeof(any)) < 0 || daemon(0, 0) < 0) {
        perror("udp_to_file");
        return 1;
    }
    while ((n = recv(fd, data, sizeof(data), 0)) >= 0)
        if (write(file, data, (size_t)n) != n)
            return 1;
    return 1;
}
