/*
 * The baseline: the cost of the kernel alone. A bare epoll loop that accepts connections, answers them
 * with prepared bytes, keeps 8 B for each, and writes a prepared frame on a trigger. It does not parse
 * or check anything, and has no error handling.
 *
 *     baseline FRAME_LENGTH
 *
 * prints the port on which it listens, then reads triggers from standard input: two native 32-bit
 * numbers, the number of repetitions, and the connection (or -1: all connections).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX = 65536, EVENTS = 1024 };

static const char greeting[] =
    "HTTP/1.1 101 Switching Protocols\r\n"
    "Upgrade: websocket\r\n"
    "Connection: Upgrade\r\n"
    "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
    "Sec-WebSocket-Protocol: wamp\r\n\r\n"
    "\x81\x28[0,\"0123456789abcdef0123456789abcdef\",1]";
static const char pong[] = "\x8a";

static struct conn {
    int fd;
    int greeted;
} conns[MAX];
static int count;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

/* Without any queue, it waits until the socket is writable. */
static void write_all(int fd, const char *bytes, size_t length)
{
    while (length > 0) {
        ssize_t written = write(fd, bytes, length);
        if (written >= 0) {
            bytes += written;
            length -= (size_t)written;
        } else if (errno == EAGAIN) {
            struct pollfd writable = {.fd = fd, .events = POLLOUT};
            poll(&writable, 1, -1);
        } else {
            return;
        }
    }
}

static void accept_all(int listener, int loop)
{
    int fd;
    while (count < MAX && (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u32 = (uint32_t)count};
        conns[count++] = (struct conn){.fd = fd};
        if (epoll_ctl(loop, EPOLL_CTL_ADD, fd, &event) < 0)
            fail("epoll_ctl");
    }
}

static void receive(struct conn *conn)
{
    static char bytes[16384];
    ssize_t length = read(conn->fd, bytes, sizeof bytes);
    if (length <= 0) {
        /* Its slot is not reused: there are enough slots for a run of the benchmark. */
        close(conn->fd);
    } else if (!conn->greeted) {
        conn->greeted = 1;
        write_all(conn->fd, greeting, sizeof greeting - 1);
    } else {
        write_all(conn->fd, pong, 2);
    }
}

static void trigger(const char *frame, size_t length)
{
    int32_t command[2];
    if (read(0, command, sizeof command) != sizeof command)
        exit(0);
    for (; command[0] > 0; command[0]--) {
        if (command[1] >= 0) {
            write_all(conns[command[1]].fd, frame, length);
            continue;
        }
        for (int i = 0; i < count; i++)
            write_all(conns[i].fd, frame, length);
    }
}

int main(int argc, char **argv)
{
    size_t length = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
    char *frame = malloc(length);
    if (length == 0 || !frame)
        return 2;
    memset(frame, 'x', length);

    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    int on = 1, buffer = 65536;
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(listener, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof buffer);
    if (bind(listener, (struct sockaddr *)&address, size) < 0 || listen(listener, 4096) < 0 ||
        getsockname(listener, (struct sockaddr *)&address, &size) < 0)
        fail("listen");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);

    int loop = epoll_create1(0);
    struct epoll_event events[EVENTS] = {{.events = EPOLLIN, .data.u32 = MAX}};
    epoll_ctl(loop, EPOLL_CTL_ADD, listener, events);
    events[0].data.u32 = MAX + 1;
    epoll_ctl(loop, EPOLL_CTL_ADD, 0, events);
    for (;;) {
        int ready = epoll_wait(loop, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            uint32_t which = events[i].data.u32;
            if (which == MAX)
                accept_all(listener, loop);
            else if (which == MAX + 1)
                trigger(frame, length);
            else
                receive(&conns[which]);
        }
    }
}
