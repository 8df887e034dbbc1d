/* lt: a load client and the server behind the proxies, in one program (epoll, OpenSSL), so that both sides cost as
 * little as possible and share one clock and one idea of what a right answer is.
 *
 *   lt server TLSPORT PLAINPORT CERT KEY
 *   lt client --port P [--connect HOST:PORT] [--host NAME] [--plain] [--answer json|sse:N|paced:RATE:N|bytes:N]
 *             [--body BYTES] [--conns N] [--count N] [--secs S] [--warm N] [--new] [--hold S] [--skip-ms MS] [--h2]
 *   claude ...          (the same program under that name) prints when it began, in nanoseconds of CLOCK_MONOTONIC
 *
 * The client sends POST /v1/messages, says in x-bench-answer what it wants back, checks every byte count and the order
 * of all events, and prints one line of JSON; times are microseconds. --new opens a connection per request; --warm
 * requests of each connection, events of the first --skip-ms, and the last second of a paced stream are not counted
 * (all streams end at about the same time, which is a load of its own); --hold keeps the connections open
 * when all have been answered, says so in a line, and ends after S seconds; --h2 speaks HTTP/2 on one connection, one
 * request at a time, with fields that are not indexed. Loopback only; certificates are not verified, neither through
 * a proxy nor without one.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

typedef long long i64;
enum { BUFFER = 65536, BLOCK = 16384, MOST_CONNS = 8192, MOST_ERRORS = 20 };

static int poller;

__attribute__((noreturn)) static void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(2);
}

static i64 now(void) { /* nanoseconds */
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void make_quick(int fd) {
    int on = 1;
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static void watch(int operation, int fd, unsigned events, void *what) {
    struct epoll_event event = {.events = events, .data.ptr = what};
    epoll_ctl(poller, operation, fd, &event);
}

static struct sockaddr_in loopback(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

/* Bytes moved, 0 when it would block, -1 at the end or on an error. */
static long settle(SSL *tls, int result) {
    if (result > 0) return result;
    int why = SSL_get_error(tls, result);
    return why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE ? 0 : -1;
}

static long take(int fd, SSL *tls, void *into, size_t size) {
    if (tls) {
        ERR_clear_error();
        return settle(tls, SSL_read(tls, into, size));
    }
    ssize_t got = recv(fd, into, size, 0);
    if (got > 0) return got;
    return got < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
}

static long give(int fd, SSL *tls, const void *from, size_t size) {
    if (tls) {
        ERR_clear_error();
        return settle(tls, SSL_write(tls, from, size));
    }
    ssize_t sent = send(fd, from, size, MSG_NOSIGNAL);
    if (sent >= 0) return sent;
    return errno == EAGAIN || errno == EINTR ? 0 : -1;
}

static SSL_CTX *tls_context(const SSL_METHOD *method) {
    SSL_CTX *context = SSL_CTX_new(method);
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    return context;
}

/* ---- the answers, known to both sides ---- */

#define STREAM_HEAD                                                                                                    \
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"                 \
    "request-id: req_0123456789\r\nanthropic-ratelimit-unified-status: allowed\r\nserver: fake\r\n"                    \
    "transfer-encoding: chunked\r\n\r\n"

static const char BEFORE[] =
    "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_01\",\"type\":\"message\","
    "\"role\":\"assistant\",\"model\":\"claude-x\",\"content\":[],\"stop_reason\":null,\"stop_sequence\":null,"
    "\"usage\":{\"input_tokens\":25,\"output_tokens\":1}}}\n\n"
    "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,"
    "\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n";
static const char AFTER[] =
    "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n"
    "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\","
    "\"stop_sequence\":null},\"usage\":{\"output_tokens\":15}}\n\n"
    "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";
enum { MARKS = 5 }; /* events in BEFORE and AFTER */

/* One delta; every one has the same size. */
static int delta(char *out, i64 number, i64 when) {
    return sprintf(out,
                   "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":"
                   "{\"type\":\"text_delta\",\"text\":\" word%08lld @T%016lld@\"}}\n\n",
                   number, when);
}

static char json_answer[8192];
static size_t json_size, json_body;

static void make_json(void) {
    char body[4096];
    int n = sprintf(body, "{\"id\":\"msg_01ABC\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"claude-x\","
                          "\"content\":[{\"type\":\"text\",\"text\":\"");
    while (n < 1850) n += sprintf(body + n, "The quick brown fox %d. ", n);
    n += sprintf(body + n, "\"}],\"stop_reason\":\"end_turn\",\"stop_sequence\":null,\"usage\":{\"input_tokens\":2095,"
                           "\"output_tokens\":503,\"cache_creation_input_tokens\":0,\"cache_read_input_tokens\":1800}}");
    json_body = n;
    json_size = sprintf(json_answer,
                        "HTTP/1.1 200 OK\r\ndate: Mon, 01 Jan 2026 00:00:00 GMT\r\ncontent-type: application/json\r\n"
                        "content-length: %d\r\nrequest-id: req_0123456789\r\nanthropic-organization-id: 0123\r\n"
                        "anthropic-ratelimit-unified-status: allowed\r\nserver: fake\r\n\r\n%s",
                        n, body);
}

enum answer { JSON, FLAT, PACED, BYTES };
struct wish {
    enum answer kind;
    double rate;
    i64 count;
};

static struct wish parse_wish(const char *text) {
    struct wish wish = {JSON, 0, 0};
    if (sscanf(text, "sse:%lld", &wish.count) == 1) wish.kind = FLAT;
    else if (sscanf(text, "paced:%lf:%lld", &wish.rate, &wish.count) == 2) wish.kind = PACED;
    else if (sscanf(text, "bytes:%lld", &wish.count) == 1) wish.kind = BYTES;
    return wish;
}

/* Body bytes of the right answer, chunk framing not counted. */
static i64 right_size(struct wish wish) {
    char event[512];
    if (wish.kind == JSON) return json_body;
    if (wish.kind == BYTES) return wish.count;
    return strlen(BEFORE) + wish.count * delta(event, 0, 0) + strlen(AFTER);
}

/* ---- server ---- */

struct served {
    int listener, tls_wanted, fd, writing, closed;
    SSL *tls;
    char in[BUFFER];
    size_t in_size;
    i64 body_left;              /* of the request; -1 while its head is incomplete */
    int bad;                    /* the request body did not end as it should */
    char tail[4];
    struct wish wish;
    int answering;
    char out[BLOCK + 2048];
    size_t out_size, out_done;
    i64 number, next;           /* of the next delta: its number, and when it is due */
    i64 period;
    int last;                   /* everything was put into out */
    int queued;                 /* in busy */
};

static SSL_CTX *server_context;
static struct served *paced[MOST_CONNS], *busy[MOST_CONNS];
static int paced_count, busy_count, phase;
static char block[BLOCK];

static void server_close(struct served *c) {
    if (c->closed) return;
    c->closed = 1;
    for (int i = 0; i < paced_count; i++)
        if (paced[i] == c) paced[i--] = paced[--paced_count];
    for (int i = 0; i < busy_count; i++)
        if (busy[i] == c) busy[i--] = busy[--busy_count];
    if (c->tls) SSL_free(c->tls);
    close(c->fd);
}

static void server_writing(struct served *c, int on) {
    if (c->writing == on) return;
    c->writing = on;
    watch(EPOLL_CTL_MOD, c->fd, EPOLLIN | (on ? EPOLLOUT : 0), c);
}

static int server_flush(struct served *c) { /* 1 all out, 0 later, -1 closed */
    while (c->out_done < c->out_size) {
        long sent = give(c->fd, c->tls, c->out + c->out_done, c->out_size - c->out_done);
        if (sent < 0) {
            server_close(c);
            return -1;
        }
        if (!sent) {
            server_writing(c, 1);
            return 0;
        }
        c->out_done += sent;
    }
    c->out_size = c->out_done = 0;
    server_writing(c, 0);
    return 1;
}

static void put_chunk(struct served *c, const char *data, size_t size) {
    c->out_size += sprintf(c->out + c->out_size, "%zx\r\n", size);
    memcpy(c->out + c->out_size, data, size);
    memcpy(c->out + c->out_size + size, "\r\n", 2);
    c->out_size += size + 2;
}

/* Put the next piece of the answer into the empty out: one event is one chunk and one TLS record. */
static void server_produce(struct served *c) {
    if (c->wish.kind == BYTES) {
        size_t size = c->wish.count > BLOCK ? BLOCK : c->wish.count;
        memcpy(c->out, block, size);
        c->out_size = size;
        c->wish.count -= size;
        c->last = !c->wish.count;
    } else if (c->wish.count) {
        char event[512];
        put_chunk(c, event, delta(event, c->number++, now()));
        c->wish.count--;
    } else {
        put_chunk(c, AFTER, strlen(AFTER));
        c->out_size += sprintf(c->out + c->out_size, "0\r\n\r\n");
        c->last = 1;
    }
}

/* Send what can be sent; a few pieces at a time, so that all streams get their turn. */
static void server_pump(struct served *c) {
    for (int turns = 16;; turns--) {
        if (server_flush(c) <= 0) return;
        if (c->last) {
            c->answering = 0;
            for (int i = 0; i < paced_count; i++)
                if (paced[i] == c) paced[i--] = paced[--paced_count];
            return;
        }
        if (c->wish.kind == PACED) return;
        if (!turns) {
            if (!c->queued) busy[busy_count++] = c;
            c->queued = 1;
            return;
        }
        server_produce(c);
    }
}

static void server_answer(struct served *c) {
    c->answering = 1;
    c->last = 0;
    c->number = 0;
    c->out_size = c->out_done = 0;
    if (c->bad) {
        c->out_size = sprintf(c->out, "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
        c->last = 1;
    } else if (c->wish.kind == JSON) {
        memcpy(c->out, json_answer, c->out_size = json_size);
        c->last = 1;
    } else if (c->wish.kind == BYTES) {
        c->out_size = sprintf(c->out,
                              "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\n"
                              "content-length: %lld\r\nserver: fake\r\n\r\n",
                              c->wish.count);
        c->last = !c->wish.count;
    } else {
        memcpy(c->out, STREAM_HEAD, c->out_size = strlen(STREAM_HEAD));
        put_chunk(c, BEFORE, strlen(BEFORE));
        if (c->wish.kind == PACED) {
            c->period = 1e9 / c->wish.rate;
            phase = (phase + 37) % 256; /* streams do not tick in step */
            c->next = now() + c->period * phase / 256;
            paced[paced_count++] = c;
        }
    }
    server_pump(c);
}

static void server_take_body(struct served *c) {
    size_t size = (i64)c->in_size < c->body_left ? c->in_size : (size_t)c->body_left;
    if (size >= 4) memcpy(c->tail, c->in + size - 4, 4);
    else if (size) {
        memmove(c->tail, c->tail + size, 4 - size);
        memcpy(c->tail + 4 - size, c->in, size);
    }
    memmove(c->in, c->in + size, c->in_size -= size);
    c->body_left -= size;
    if (!c->body_left) {
        c->bad |= memcmp(c->tail, "\"}]}", 4) != 0;
        c->body_left = -1;
        server_answer(c);
    }
}

/* 0 when more is needed, -1 when the connection is closed. */
static int server_take(struct served *c) {
    while (!c->answering && !c->closed) {
        if (c->body_left < 0) {
            c->in[c->in_size] = 0;
            char *end = strstr(c->in, "\r\n\r\n");
            if (!end) return 0;
            *end = 0;
            char *length = strcasestr(c->in, "\r\ncontent-length:"), *wish = strcasestr(c->in, "\r\nx-bench-answer:");
            c->body_left = length ? atoll(length + 17) : 0;
            c->bad = !length || !c->body_left;
            c->wish = parse_wish(wish ? wish + 17 + strspn(wish + 17, " ") : "json");
            size_t head = end + 4 - c->in;
            memmove(c->in, c->in + head, c->in_size -= head);
        }
        if (!c->in_size && c->body_left) return 0;
        server_take_body(c);
    }
    return c->closed ? -1 : 0;
}

static void server_read(struct served *c) {
    while (c->in_size < sizeof c->in - 1) {
        long got = take(c->fd, c->tls, c->in + c->in_size, sizeof c->in - 1 - c->in_size);
        if (got < 0) {
            server_close(c);
            return;
        }
        if (!got) return;
        c->in_size += got;
        if (server_take(c) < 0) return;
    }
}

static void server_accept(struct served *listener) {
    for (int fd; (fd = accept(listener->fd, 0, 0)) >= 0;) {
        make_quick(fd);
        struct served *c = calloc(1, sizeof *c);
        c->fd = fd;
        c->body_left = -1;
        if (listener->tls_wanted) {
            c->tls = SSL_new(server_context);
            SSL_set_fd(c->tls, fd);
            SSL_set_accept_state(c->tls);
        }
        watch(EPOLL_CTL_ADD, fd, EPOLLIN, c);
    }
}

static void server_listen(struct served *listener, int port, int tls) {
    int on = 1;
    struct sockaddr_in address = loopback(port);
    listener->listener = 1;
    listener->tls_wanted = tls;
    listener->fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener->fd, (void *)&address, sizeof address) || listen(listener->fd, 4096)) die("cannot listen on %d", port);
    make_quick(listener->fd);
    watch(EPOLL_CTL_ADD, listener->fd, EPOLLIN, listener);
}

static void server_tick(void) {
    i64 time = now();
    for (int i = 0; i < paced_count; i++) {
        struct served *c = paced[i];
        if (c->next > time) continue;
        c->next += c->period;
        if (c->next < time) c->next = time + c->period;
        if (c->out_size) continue; /* the reader is behind; it misses this one's time, not the event */
        server_produce(c);
        int before = paced_count;
        server_pump(c);
        if (paced_count < before) i--;
    }
}

static struct timespec server_patience(void) {
    i64 wait = 1000000000;
    if (busy_count) wait = 0;
    else {
        i64 time = now();
        for (int i = 0; i < paced_count; i++)
            if (paced[i]->next - time < wait) wait = paced[i]->next - time;
    }
    if (wait < 0) wait = 0;
    return (struct timespec){wait / 1000000000, wait % 1000000000};
}

__attribute__((noreturn)) static void server_main(int argc, char **argv) {
    if (argc != 6) die("lt server TLSPORT PLAINPORT CERT KEY");
    static struct served listeners[2];
    struct epoll_event events[512];
    server_context = tls_context(TLS_server_method());
    if (SSL_CTX_use_certificate_chain_file(server_context, argv[4]) != 1 ||
        SSL_CTX_use_PrivateKey_file(server_context, argv[5], SSL_FILETYPE_PEM) != 1)
        die("cannot use the certificate %s", argv[4]);
    memset(block, 'x', sizeof block);
    server_listen(&listeners[0], atoi(argv[2]), 1);
    server_listen(&listeners[1], atoi(argv[3]), 0);
    for (;;) {
        struct timespec patience = server_patience();
        static struct served *gone[MOST_CONNS + 512];
        int gone_count = 0, count = epoll_pwait2(poller, events, 512, &patience, NULL);
        for (int i = 0; i < count; i++) {
            struct served *c = events[i].data.ptr;
            if (c->listener) server_accept(c);
            else {
                if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) server_read(c);
                if (!c->closed && events[i].events & EPOLLOUT) server_pump(c);
                if (!c->closed && !c->answering && c->in_size) server_take(c);
                if (c->closed) gone[gone_count++] = c;
            }
        }
        int turns = busy_count;
        static struct served *now_busy[MOST_CONNS];
        memcpy(now_busy, busy, turns * sizeof *busy);
        busy_count = 0;
        for (int i = 0; i < turns; i++) {
            now_busy[i]->queued = 0;
            server_pump(now_busy[i]);
            if (now_busy[i]->closed) gone[gone_count++] = now_busy[i];
        }
        server_tick();
        for (int i = 0; i < gone_count; i++) free(gone[i]);
    }
}

/* ---- client ---- */

struct series {
    unsigned *values;
    size_t count, room;
};

static void note(struct series *s, i64 nanoseconds) {
    if (s->count == s->room) s->values = realloc(s->values, (s->room = s->room ? s->room * 2 : 4096) * sizeof *s->values);
    s->values[s->count++] = nanoseconds < 0 ? 0 : nanoseconds > 4000000000LL ? 4000000000U : (unsigned)nanoseconds;
}

static int by_size(const void *a, const void *b) {
    unsigned x = *(const unsigned *)a, y = *(const unsigned *)b;
    return (x > y) - (x < y);
}

static void print_series(const char *name, struct series *s) {
    if (!s->count) return;
    qsort(s->values, s->count, sizeof *s->values, by_size);
    double at[5] = {0.5, 0.9, 0.99, 0.999, 1.0};
    printf(",\"%s\":{\"n\":%zu", name, s->count);
    const char *names[5] = {"p50", "p90", "p99", "p999", "max"};
    for (int i = 0; i < 5; i++) printf(",\"%s\":%.1f", names[i], s->values[(size_t)((s->count - 1) * at[i])] / 1000.0);
    printf("}");
}

enum step { CONNECTING, TUNNELLING, SHAKING, HEAD, BODY, HOLDING, ENDED };

struct caller {
    int fd, writing, chunk_step, chunked, closing;
    SSL *tls;
    enum step step;
    i64 opened, asked, left, chunk_left, got, number;
    unsigned stream;
    size_t sent, in_size, line_size;
    long requests;
    char in[BUFFER], line[1024];
};

static SSL_CTX *client_context;
static struct caller *callers;
static struct series latency, first_byte, handshake, whole, event_delay;
static i64 started, finished, errors, events, body_bytes, began, ends;
static int alive, answered_callers;
static char *request, tunnel_request[512], complaint[512];
static size_t request_size, request_body, preface_size; /* the preface is sent once, before the first request */
static struct wish wish;

static struct {
    int port, plain, conns, fresh, body, h2;
    const char *connect, *host, *answer;
    double secs, hold;
    long warm;
    i64 count, skip;
} options = {0, 0, 1, 0, 1000, 0, NULL, "localhost", "json", 5, 0, 0, 1LL << 60, 0};

static void open_caller(struct caller *c);

static void client_writing(struct caller *c, int on) {
    if (c->writing == on) return;
    c->writing = on;
    watch(EPOLL_CTL_MOD, c->fd, EPOLLIN | (on ? EPOLLOUT : 0), c);
}

static void hang_up(struct caller *c) {
    if (c->tls) SSL_free(c->tls);
    if (c->fd >= 0) close(c->fd);
    c->tls = NULL;
    c->fd = -1;
}

static void end_caller(struct caller *c) {
    hang_up(c);
    if (c->step != ENDED) alive--;
    c->step = ENDED;
}

static void wrong(struct caller *c, const char *what) {
    if (!errors++) snprintf(complaint, sizeof complaint, "%s", what);
    hang_up(c);
    if (errors > MOST_ERRORS || now() > ends) end_caller(c);
    else open_caller(c);
}

/* The request's two frames belong to this stream. */
static void number_frames(unsigned stream) {
    unsigned char *headers = (unsigned char *)request + preface_size, *data;
    data = headers + 9 + (headers[0] << 16 | headers[1] << 8 | headers[2]);
    for (int i = 0; i < 4; i++) headers[5 + i] = data[5 + i] = stream >> (24 - 8 * i);
}

static void send_request(struct caller *c) {
    while (c->sent < request_size) {
        long sent = give(c->fd, c->tls, request + c->sent, request_size - c->sent);
        if (sent < 0) {
            wrong(c, "the connection broke while sending");
            return;
        }
        if (!sent) {
            client_writing(c, 1);
            return;
        }
        c->sent += sent;
    }
    client_writing(c, 0);
}

static void start_request(struct caller *c) {
    if (now() > ends || started >= options.count) {
        end_caller(c);
        return;
    }
    started++;
    c->step = HEAD;
    c->sent = c->line_size = 0;
    if (options.h2) {
        c->sent = c->stream ? preface_size : 0;
        c->stream += c->stream ? 2 : 1;
        number_frames(c->stream);
    } else c->in_size = 0;
    c->got = c->number = 0;
    c->asked = now();
    send_request(c);
}

static void open_caller(struct caller *c) {
    long requests = c->requests;
    struct sockaddr_in address = loopback(options.port);
    memset(c, 0, offsetof(struct caller, in));
    c->requests = requests;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0) die("no socket: %s", strerror(errno));
    make_quick(c->fd);
    c->opened = now();
    c->writing = 1;
    connect(c->fd, (void *)&address, sizeof address);
    watch(EPOLL_CTL_ADD, c->fd, EPOLLIN | EPOLLOUT, c);
}

static void shake(struct caller *c) {
    if (!options.plain) {
        if (!c->tls) {
            c->tls = SSL_new(client_context);
            SSL_set_fd(c->tls, c->fd);
            SSL_set_connect_state(c->tls);
            SSL_set_tlsext_host_name(c->tls, options.host);
        }
        c->step = SHAKING;
        ERR_clear_error();
        int result = SSL_do_handshake(c->tls);
        if (result != 1) {
            int why = SSL_get_error(c->tls, result);
            if (why == SSL_ERROR_WANT_READ) client_writing(c, 0);
            else if (why == SSL_ERROR_WANT_WRITE) client_writing(c, 1);
            else wrong(c, "the TLS handshake failed");
            return;
        }
    }
    if (options.h2) {
        const unsigned char *protocol;
        unsigned size;
        SSL_get0_alpn_selected(c->tls, &protocol, &size);
        if (size != 2 || memcmp(protocol, "h2", 2)) {
            wrong(c, "no HTTP/2 was to be had");
            return;
        }
    }
    if (c->requests >= options.warm) note(&handshake, now() - c->opened);
    client_writing(c, 0);
    start_request(c);
}

/* One line of a stream; deltas must come in order, none missing. */
static void see_line(struct caller *c, const char *line, size_t size) {
    if (size < 6 || memcmp(line, "data:", 5)) return;
    events++;
    const char *word = memmem(line, size, "\" word", 6), *mark = memmem(line, size, "@T", 2);
    if (!word || !mark || line + size - mark < 18) return;
    i64 number = atoll(word + 6), when = atoll(mark + 2);
    if (number != c->number++ && !errors++) snprintf(complaint, sizeof complaint, "an event is missing or out of order");
    i64 last = wish.kind == PACED ? wish.count - (i64)wish.rate : wish.count;
    if (when > began + options.skip && number < last) note(&event_delay, now() - when);
}

static void see_body(struct caller *c, const char *data, size_t size) {
    c->got += size;
    body_bytes += size;
    if (wish.kind != FLAT && wish.kind != PACED) return;
    while (size) {
        const char *end = memchr(data, '\n', size);
        size_t length = end ? (size_t)(end - data) : size, room = sizeof c->line - c->line_size;
        if (c->line_size || !end) {
            size_t kept = length < room ? length : room;
            memcpy(c->line + c->line_size, data, kept);
            c->line_size += kept;
            if (!end) return;
            see_line(c, c->line, c->line_size);
            c->line_size = 0;
        } else see_line(c, data, length);
        data = end + 1;
        size -= length + 1;
    }
}

static void finish_request(struct caller *c) {
    i64 time = now();
    if (c->got != right_size(wish)) {
        wrong(c, "an answer has the wrong size");
        return;
    }
    finished++;
    if (c->requests++ >= options.warm) {
        note(&latency, time - c->asked);
        note(&whole, time - c->opened);
    }
    if (options.hold) {
        c->step = HOLDING;
        if (++answered_callers == options.conns) {
            printf("{\"holding\":%d}\n", answered_callers);
            fflush(stdout);
            ends = time + (i64)(options.hold * 1e9);
        }
    } else if (options.fresh || c->closing) {
        hang_up(c);
        if (time > ends || started >= options.count) end_caller(c);
        else open_caller(c);
    } else start_request(c);
}

/* 1 when the head was taken, 0 when more is needed, -1 when the connection is gone. */
static int take_head(struct caller *c) {
    c->in[c->in_size] = 0;
    char *end = strstr(c->in, "\r\n\r\n");
    if (!end) return 0;
    *end = 0;
    if (c->requests >= options.warm && c->step == HEAD) note(&first_byte, now() - c->asked);
    if (strncmp(c->in + 8, " 200", 4)) {
        char first[160];
        snprintf(first, sizeof first, "answered %.120s", c->in);
        first[strcspn(first, "\r\n\"\\")] = 0;
        wrong(c, first);
        return -1;
    }
    char *length = strcasestr(c->in, "\r\ncontent-length:");
    c->chunked = !length && strcasestr(c->in, "\r\ntransfer-encoding:") != NULL;
    c->left = length ? atoll(length + 17) : 0;
    c->chunk_step = 0;
    c->chunk_left = 0;
    c->closing = strcasestr(c->in, "\r\nconnection: close") != NULL;
    size_t head = end + 4 - c->in;
    memmove(c->in, c->in + head, c->in_size -= head);
    return 1;
}

/* Whether the body has come to its end. */
static int take_chunks(struct caller *c) {
    const char *at = c->in;
    size_t size = c->in_size;
    c->in_size = 0;
    while (size) {
        if (c->chunk_step == 1) {
            size_t piece = (i64)size < c->chunk_left ? size : (size_t)c->chunk_left;
            see_body(c, at, piece);
            at += piece;
            size -= piece;
            c->chunk_left -= piece;
            if (!c->chunk_left) c->chunk_step = 2;
            continue;
        }
        char byte = *at++;
        size--;
        if (byte == '\n') {
            if (c->chunk_step == 3) return 1;
            if (c->chunk_step == 0) c->chunk_step = c->chunk_left ? 1 : 3;
            else c->chunk_step = 0;
        } else if (c->chunk_step == 0 && byte != '\r') {
            int low = byte | 32;
            c->chunk_left = c->chunk_left * 16 + (byte <= '9' ? byte - '0' : low - 'a' + 10);
        }
    }
    return 0;
}

static int take_body(struct caller *c) {
    if (c->chunked) return take_chunks(c);
    size_t size = c->in_size;
    c->in_size = 0;
    if (size) see_body(c, c->in, size);
    c->left -= size;
    return c->left <= 0;
}

/* Whether a block of fields begins with status 200, which every encoder takes from the static table. */
static int says_200(const unsigned char *block, size_t size) {
    while (size && (*block & 0xe0) == 0x20) { /* the table gets another size: a number, perhaps of several bytes */
        int more = (*block & 0x1f) == 0x1f;
        for (block++, size--; more && size; block++, size--) more = *block & 0x80;
    }
    return size && *block == 0x88;
}

enum { DATA, HEADERS, RST_STREAM = 3, SETTINGS, PING = 6, GOAWAY };
enum { ACK = 1, END_STREAM = 1, END_HEADERS = 4, IS_PADDED = 8, HAS_PRIORITY = 32 };

/* One frame. 1 when the answer has come to its end, 0 when not yet, -1 when the connection is gone. */
static int take_frame(struct caller *c, unsigned char *frame, size_t size) {
    int kind = frame[3], flags = frame[4];
    unsigned char *payload = frame + 9;
    if (kind == RST_STREAM || kind == GOAWAY) {
        wrong(c, kind == GOAWAY ? "GOAWAY" : "the stream was reset");
        return -1;
    }
    if ((kind == SETTINGS || kind == PING) && !(flags & ACK)) {
        frame[4] = ACK;
        if (kind == SETTINGS) frame[0] = frame[1] = frame[2] = 0;
        size_t whole = kind == SETTINGS ? 9 : size + 9;
        if (c->sent < request_size || give(c->fd, c->tls, frame, whole) != (long)whole) {
            wrong(c, "no room to acknowledge a frame");
            return -1;
        }
    }
    if (kind != DATA && kind != HEADERS) return 0;
    if (flags & IS_PADDED && size > payload[0]) {
        size -= payload[0] + 1;
        payload++;
    }
    if (kind == HEADERS) {
        size_t priority = flags & HAS_PRIORITY ? 5 : 0;
        if (c->step == HEAD) {
            if (size < priority || !says_200(payload + priority, size - priority)) {
                wrong(c, "the status is not 200");
                return -1;
            }
            if (c->requests >= options.warm) note(&first_byte, now() - c->asked);
            c->step = BODY;
        }
    } else see_body(c, (char *)payload, size);
    return flags & END_STREAM ? 1 : 0;
}

/* What has come of frames; -1 when the connection is gone. */
static int take_frames(struct caller *c) {
    size_t at = 0;
    int over = 0;
    while (!over && c->in_size - at >= 9) {
        unsigned char *frame = (unsigned char *)c->in + at;
        size_t size = frame[0] << 16 | frame[1] << 8 | frame[2];
        if (c->in_size - at < size + 9) break;
        at += size + 9;
        over = take_frame(c, frame, size);
        if (over < 0) return -1;
    }
    memmove(c->in, c->in + at, c->in_size -= at);
    if (over) finish_request(c);
    return over;
}

static void client_read(struct caller *c) {
    while (c->fd >= 0) {
        long got = take(c->fd, c->tls, c->in + c->in_size, sizeof c->in - 1 - c->in_size);
        if (!got) return;
        if (got < 0) {
            if (c->step == HOLDING) {
                errors++;
                end_caller(c);
            } else wrong(c, "the connection ended before its answer did");
            return;
        }
        c->in_size += got;
        if (options.h2 && c->step != TUNNELLING) {
            while (c->fd >= 0 && take_frames(c) > 0) {}
            continue;
        }
        if (c->step == TUNNELLING) {
            int taken = take_head(c);
            if (taken < 0) return;
            if (!taken) continue;
            c->in_size = 0;
            shake(c);
            if (c->step != HEAD) return;
            continue;
        }
        if (c->step == HEAD) {
            int taken = take_head(c);
            if (taken < 0) return;
            if (!taken) continue;
            c->step = BODY;
        }
        if (c->step == BODY && take_body(c)) {
            finish_request(c);
            return;
        }
        if (c->step == HOLDING) c->in_size = 0;
    }
}

static void client_event(struct caller *c, unsigned event) {
    if (c->fd < 0) return;
    if (c->step == CONNECTING) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) wrong(c, "the connection was refused");
        else if (event & EPOLLOUT) {
            if (options.connect) {
                c->step = TUNNELLING;
                client_writing(c, 0);
                give(c->fd, NULL, tunnel_request, strlen(tunnel_request));
            } else shake(c);
        }
        return;
    }
    if (c->step == SHAKING) {
        shake(c);
        if (c->step == HEAD) client_read(c);
        return;
    }
    if (event & EPOLLOUT && c->step == HEAD) send_request(c);
    if (c->fd >= 0 && event & (EPOLLIN | EPOLLHUP | EPOLLERR)) client_read(c);
}

static void make_head(int size) {
    request_size = sprintf(request,
                           "POST /v1/messages HTTP/1.1\r\nhost: %s\r\naccept: application/json\r\n"
                           "user-agent: claude-cli/2.0.0 (external, cli)\r\nx-bench-answer: %s\r\n"
                           "anthropic-version: 2023-06-01\r\nanthropic-beta: claude-code-20250219,oauth-2025-04-20,"
                           "interleaved-thinking-2025-05-14\r\nauthorization: Bearer not-a-key\r\nx-app: cli\r\n"
                           "x-stainless-lang: js\r\nx-stainless-os: Linux\r\nx-stainless-runtime: node\r\n"
                           "content-type: application/json\r\naccept-language: *\r\nsec-fetch-mode: cors\r\n"
                           "content-length: %d\r\n\r\n",
                           options.host, options.answer, size);
}

static void put_frame(int kind, int flags, const void *payload, size_t size) {
    unsigned char head[9] = {size >> 16, size >> 8, size, kind, flags};
    memcpy(request + request_size, head, sizeof head);
    memcpy(request + request_size + sizeof head, payload, size);
    request_size += sizeof head + size;
}

static size_t put_field(char *block, const char *name, const char *value) {
    return sprintf(block, "%c%c%s%c%s", 0, (int)strlen(name), name, (int)strlen(value), value);
}

static void make_frames(const char *body, int size) {
    static const unsigned char settings[] = {0, 2, 0, 0, 0, 0, 0, 4, 0x7f, 0xff, 0xff, 0xff}; /* no push, no window */
    static const unsigned char window[] = {0x7f, 0xff, 0, 0};
    char block[1024], length[16];
    sprintf(length, "%d", size);
    const char *fields[][2] = {
        {":method", "POST"}, {":scheme", "https"}, {":authority", options.host}, {":path", "/v1/messages"},
        {"accept", "application/json"}, {"user-agent", "claude-cli/2.0.0 (external, cli)"},
        {"x-bench-answer", options.answer}, {"anthropic-version", "2023-06-01"},
        {"anthropic-beta", "claude-code-20250219,oauth-2025-04-20,interleaved-thinking-2025-05-14"},
        {"authorization", "Bearer not-a-key"}, {"x-app", "cli"}, {"x-stainless-lang", "js"},
        {"x-stainless-os", "Linux"}, {"x-stainless-runtime", "node"}, {"content-type", "application/json"},
        {"accept-language", "*"}, {"sec-fetch-mode", "cors"}, {"content-length", length}};
    size_t used = 0;
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        used += put_field(block + used, fields[i][0], fields[i][1]);
    }
    request_size = sprintf(request, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    put_frame(SETTINGS, 0, settings, sizeof settings);
    put_frame(8, 0, window, sizeof window);
    preface_size = request_size;
    put_frame(HEADERS, END_HEADERS, block, used);
    put_frame(DATA, END_STREAM, body, size);
}

static void make_request(void) {
    static const char *words[] = {"def ", "return ", "the ", "file ", "proxy ", "stream ", "0x1f ", "token "};
    int streams = wish.kind == FLAT || wish.kind == PACED;
    char *body = malloc(options.body + 1024);
    int size = sprintf(body, "{\"model\":\"claude-x\",\"max_tokens\":1000,\"stream\":%s,\"messages\":[{\"role\":\"user\","
                             "\"content\":\"", streams ? "true" : "false");
    for (unsigned i = 0; size < options.body - 8; i++)
        size += sprintf(body + size, "%s%u ", words[(i * 7 + i / 3) % 8], i * 2654435761u % 9973);
    size += sprintf(body + size, "\"}]}");
    request = malloc(size + 2048);
    request_body = size;
    if (options.h2) make_frames(body, size);
    else {
        make_head(size);
        memcpy(request + request_size, body, size);
        request_size += size;
    }
    if (options.connect)
        snprintf(tunnel_request, sizeof tunnel_request, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", options.connect,
                 options.connect);
}
static void parse_options(int argc, char **argv) {
    for (int i = 2; i < argc; i++) {
        const char *name = argv[i];
        if (!strcmp(name, "--plain")) options.plain = 1;
        else if (!strcmp(name, "--new")) options.fresh = 1;
        else if (!strcmp(name, "--h2")) options.h2 = 1;
        else if (i + 1 == argc) die("%s wants a value", name);
        else if (!strcmp(name, "--port")) options.port = atoi(argv[++i]);
        else if (!strcmp(name, "--connect")) options.connect = argv[++i];
        else if (!strcmp(name, "--host")) options.host = argv[++i];
        else if (!strcmp(name, "--answer")) options.answer = argv[++i];
        else if (!strcmp(name, "--body")) options.body = atoi(argv[++i]);
        else if (!strcmp(name, "--conns")) options.conns = atoi(argv[++i]);
        else if (!strcmp(name, "--count")) options.count = atoll(argv[++i]);
        else if (!strcmp(name, "--secs")) options.secs = atof(argv[++i]);
        else if (!strcmp(name, "--warm")) options.warm = atol(argv[++i]);
        else if (!strcmp(name, "--hold")) options.hold = atof(argv[++i]);
        else if (!strcmp(name, "--skip-ms")) options.skip = atoll(argv[++i]) * 1000000LL;
        else die("unknown option %s", name);
    }
    if (!options.port || options.conns < 1 || options.conns > MOST_CONNS) die("--port and a sane --conns are needed");
    if (options.h2 && (options.conns > 1 || options.plain || options.body > 16000 || strlen(options.answer) > 100))
        die("--h2 goes with one TLS connection and a small request");
}

static int client_main(int argc, char **argv) {
    static const unsigned char http1[] = "\x08http/1.1", http2[] = "\x02h2";
    struct epoll_event found[512];
    parse_options(argc, argv);
    wish = parse_wish(options.answer);
    make_request();
    client_context = tls_context(TLS_client_method());
    SSL_CTX_set_verify(client_context, SSL_VERIFY_NONE, NULL);
    if (options.h2) SSL_CTX_set_alpn_protos(client_context, http2, sizeof http2 - 1);
    else SSL_CTX_set_alpn_protos(client_context, http1, sizeof http1 - 1);
    callers = calloc(options.conns, sizeof *callers);
    alive = options.conns;
    began = now();
    ends = began + (i64)(options.secs * 1e9);
    i64 too_late = ends + 15000000000LL + (i64)(options.hold * 1e9);
    for (int i = 0; i < options.conns; i++) open_caller(&callers[i]);
    while (alive > 0) {
        int count = epoll_wait(poller, found, 512, 100);
        if (options.hold && answered_callers == options.conns && now() > ends) break;
        if (now() > too_late) {
            if (!errors++) snprintf(complaint, sizeof complaint, "it did not end in time");
            break;
        }
        for (int i = 0; i < count; i++) client_event(found[i].data.ptr, found[i].events);
    }
    double seconds = (now() - began) / 1e9;
    printf("{\"requests\":%lld,\"seconds\":%.3f,\"errors\":%lld,\"complaint\":\"%s\",\"events\":%lld,\"expected_events\":"
           "%lld,\"bytes_down\":%lld,\"bytes_up\":%lld",
           finished, seconds, errors, complaint, events,
           wish.kind == FLAT || wish.kind == PACED ? finished * (wish.count + MARKS) : 0, body_bytes,
           finished * (i64)request_body);
    print_series("latency", &latency);
    print_series("first_byte", &first_byte);
    print_series("handshake", &handshake);
    print_series("whole", &whole);
    print_series("event", &event_delay);
    printf("}\n");
    return 0;
}

int main(int argc, char **argv) {
    if (!strcmp(basename(argv[0]), "claude")) {
        printf("%lld\n", now());
        return 0;
    }
    signal(SIGPIPE, SIG_IGN);
    poller = epoll_create1(0);
    make_json();
    if (argc > 1 && !strcmp(argv[1], "server")) server_main(argc, argv);
    if (argc > 1 && !strcmp(argv[1], "client")) return client_main(argc, argv);
    die("lt server ... | lt client ...");
}
