/* The floor in C: blocking hiredis over a unix socket, as little as a program can do.
 *
 *     floor ROLE name=value ...        (see job.py for the names, child.py for the conversation on stdin and stdout)
 *
 * Built by the bench into a temporary directory: cc -O2 floor.c -lhiredis
 */
#define _GNU_SOURCE
#include <hiredis/hiredis.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

#define BLOCK "20000"
#define BATCH 64

static const char *text(int argc, char **argv, const char *name, const char *otherwise) {
    size_t length = strlen(name);
    for (int i = 2; i < argc; i++)
        if (strncmp(argv[i], name, length) == 0 && argv[i][length] == '=') return argv[i] + length + 1;
    return otherwise;
}

static struct job {
    const char *address;
    long count, warmup, rate, in_flight, size;
} job;

static char padding[65536];

static void die(const char *what) {
    fprintf(stderr, "floor: %s\n", what);
    exit(1);
}

static void say(const char *word) {
    puts(word);
    fflush(stdout);
}

static void hear(const char *word) {
    char line[256];
    if (!fgets(line, sizeof line, stdin)) exit(0);
    line[strcspn(line, "\n")] = 0;
    if (strcmp(line, word) != 0) die("unexpected word from the bench");
}

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static redisContext *dial(void) {
    redisContext *c = redisConnectUnix(job.address);
    if (!c || c->err) die(c ? c->errstr : "no memory");
    return c;
}

/* One reply; ends the program on any error. */
static redisReply *reply(redisContext *c) {
    void *r = NULL;
    if (redisGetReply(c, &r) != REDIS_OK || !r) die(c->errstr);
    if (((redisReply *)r)->type == REDIS_REPLY_ERROR) die(((redisReply *)r)->str);
    return r;
}

static void drop(redisContext *c) { freeReplyObject(reply(c)); }

/* Everything that was appended leaves now. */
static void flush_out(redisContext *c) {
    int done = 0;
    while (!done)
        if (redisBufferWrite(c, &done) != REDIS_OK) die(c->errstr);
}

static void add(redisContext *c, const char *stream, long sequence, long long sent) {
    static char data[65536 + 256];
    int length = snprintf(data, sizeof data,
                          "{\"sent\":%lld,\"command\":\"goto\",\"sequence\":%ld,\"parameters\":"
                          "{\"altitude\":10.5,\"speed\":3.5},\"note\":\"%s\"}", sent, sequence, padding);
    const char *words[] = {"XADD", stream, "*", "data", data};
    size_t lengths[] = {4, strlen(stream), 1, 4, (size_t)length};
    redisAppendCommandArgv(c, 5, words, lengths);
}

static void read_group(redisContext *c, const char *stream) {
    redisAppendCommand(c, "XREADGROUP GROUP group one COUNT %d BLOCK " BLOCK " STREAMS %s >", BATCH, stream);
}

static void make_group(redisContext *c, const char *stream) {
    redisAppendCommand(c, "XGROUP CREATE %s group 0 MKSTREAM", stream);
    drop(c);
}

/* The entries of a (group) read's reply over one stream. */
static redisReply *entries(redisReply *r) {
    if (r->type != REDIS_REPLY_ARRAY || r->elements == 0) die("a read ran out of time");
    return r->element[0]->element[1];
}

static void acknowledge(redisContext *c, const char *stream, redisReply *rows) {
    static const char *words[3 + 4096];
    static size_t lengths[3 + 4096];
    words[0] = "XACK", words[1] = stream, words[2] = "group";
    lengths[0] = 4, lengths[1] = strlen(stream), lengths[2] = 5;
    for (size_t i = 0; i < rows->elements; i++) {
        words[3 + i] = rows->element[i]->element[0]->str;
        lengths[3 + i] = rows->element[i]->element[0]->len;
    }
    redisAppendCommandArgv(c, (int)(3 + rows->elements), words, lengths);
}

static int ascending(const void *a, const void *b) {
    long long x = *(const long long *)a, y = *(const long long *)b;
    return (x > y) - (x < y);
}

static double at(const long long *ordered, long n, double part) {
    long rank = (long)(part * n + 0.999999) - 1;
    return ordered[rank < 0 ? 0 : rank >= n ? n - 1 : rank] / 1e3;
}

static void latency_result(long long *times, long n) {
    qsort(times, n, sizeof *times, ascending);
    printf("result {\"p50_us\": %.3f, \"p90_us\": %.3f, \"p99_us\": %.3f, \"max_us\": %.3f, \"samples\": %ld}\n",
           at(times, n, 0.5), at(times, n, 0.9), at(times, n, 0.99), times[n - 1] / 1e3, n);
    fflush(stdout);
}

static void requester(void) {
    redisContext *c = dial();
    long total = job.warmup + job.count;
    long long *times = calloc(total, sizeof *times);
    char last[64] = "0-0";
    say("ready");
    hear("go");
    for (long i = 0; i < total; i++) {
        long long start = now();
        add(c, "requests", i, start);
        redisAppendCommand(c, "XREAD BLOCK " BLOCK " STREAMS replies %s", last);
        drop(c);
        redisReply *r = reply(c);
        snprintf(last, sizeof last, "%s", entries(r)->element[0]->element[0]->str);
        freeReplyObject(r);
        times[i] = now() - start;
    }
    latency_result(times + job.warmup, job.count);
}

static void responder(void) {
    redisContext *c = dial();
    make_group(c, "requests");
    read_group(c, "requests");
    flush_out(c);
    say("ready");
    for (;;) {
        redisReply *r = reply(c), *rows = entries(r);
        size_t n = rows->elements;
        for (size_t i = 0; i < n; i++) {
            redisAppendCommand(c, "XACK requests group %s", rows->element[i]->element[0]->str);
            redisAppendCommand(c, "XADD replies * data %s", "{\"status\":\"success\",\"sequence\":1}");
        }
        read_group(c, "requests");
        freeReplyObject(r);
        for (size_t i = 0; i < 2 * n; i++) drop(c);
    }
}

/* Appends `count` records, at most `in_flight` of them waiting for their replies: a window that slides. */
static void append(redisContext *c, const char *stream, long count, long in_flight) {
    long sent = 0, answered = 0;
    while (answered < count) {
        for (; sent < count && sent - answered < in_flight; sent++) add(c, stream, sent, now());
        flush_out(c);
        if (redisBufferRead(c) != REDIS_OK) die(c->errstr);
        for (;;) {
            void *r = NULL;
            if (redisGetReplyFromReader(c, &r) != REDIS_OK) die(c->errstr);
            if (!r) break;
            if (((redisReply *)r)->type == REDIS_REPLY_ERROR) die(((redisReply *)r)->str);
            freeReplyObject(r);
            answered++;
        }
    }
}

static void source(void) {
    redisContext *c = dial();
    say("ready");
    hear("go");
    long long start = now();
    for (long i = 0; i < job.warmup + job.count; i++) {
        long long due = start + i * 1000000000LL / job.rate;
        struct timespec until = {due / 1000000000LL, due % 1000000000LL};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
        add(c, "records", i, now());
        drop(c);
    }
    say("result {}");
}

static void sink(void) {
    redisContext *c = dial();
    long total = job.warmup + job.count, seen = 0;
    long long *times = calloc(total, sizeof *times);
    make_group(c, "records");
    say("ready");
    hear("go");
    read_group(c, "records");
    while (seen < total) {
        redisReply *r = reply(c), *rows = entries(r);
        for (size_t i = 0; i < rows->elements && seen < total; i++)
            times[seen++] = now() - atoll(rows->element[i]->element[1]->element[1]->str + strlen("{\"sent\":"));
        acknowledge(c, "records", rows);
        read_group(c, "records");
        freeReplyObject(r);
        drop(c);
    }
    latency_result(times + job.warmup, job.count);
}

static void producer(void) {
    redisContext *c = dial();
    say("ready");
    hear("go");
    long long start = now();
    append(c, "records", job.count, job.in_flight);
    printf("result {\"start\": %lld}\n", start);
    fflush(stdout);
}

static void consumer(void) {
    redisContext *c = dial();
    long seen = 0;
    long long first = 0;
    make_group(c, "records");
    say("ready");
    hear("go");
    while (seen < job.count) {
        read_group(c, "records");
        if (first) drop(c); /* of the acknowledgement that left with this read */
        redisReply *r = reply(c), *rows = entries(r);
        if (!first) first = now();
        seen += rows->elements;
        acknowledge(c, "records", rows);
        freeReplyObject(r);
    }
    drop(c);
    printf("result {\"first\": %lld, \"end\": %lld}\n", first, now());
    fflush(stdout);
}

static void publisher(void) {
    redisContext *c = dial();
    double rates[2];
    say("ready");
    hear("go");
    for (int many = 0; many < 2; many++) {
        long in_flight = many ? job.in_flight : 1;
        append(c, "topic", job.warmup, in_flight);
        long long start = now();
        append(c, "topic", job.count, in_flight);
        rates[many] = job.count * 1e9 / (now() - start);
    }
    printf("result {\"one_per_s\": %.1f, \"many_per_s\": %.1f}\n", rates[0], rates[1]);
    fflush(stdout);
}

int main(int argc, char **argv) {
    static const struct { const char *name; void (*play)(void); } roles[] = {
        {"requester", requester}, {"responder", responder}, {"source", source}, {"sink", sink},
        {"producer", producer}, {"consumer", consumer}, {"publisher", publisher}};
    if (argc < 2) die("usage: floor ROLE name=value ...");
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    job.address = text(argc, argv, "address", "");
    job.count = atol(text(argc, argv, "count", "0"));
    job.warmup = atol(text(argc, argv, "warmup", "0"));
    job.rate = atol(text(argc, argv, "rate", "0"));
    job.in_flight = atol(text(argc, argv, "in_flight", "64"));
    job.size = atol(text(argc, argv, "size", "300"));
    long fixed = 114, pad = job.size > fixed ? job.size - fixed : 0;
    memset(padding, 'x', pad < (long)sizeof padding ? pad : (long)sizeof padding - 1);
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++)
        if (strcmp(argv[1], roles[i].name) == 0) {
            say("loaded");
            hear("open");
            roles[i].play();
            return 0;
        }
    die("no such role");
}
