// An agent on a Spinal bus, written from docs/protocol.md: the core profile, `cancel`, and progress.
// One thread does everything: an operation that takes long is a time at which it ends.

#include <err.h>
#include <jansson.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/sha.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strophe.h>
#include <time.h>
#include <unistd.h>

#define NS "urn:spinal:1"
#define SAFE ((1LL << 53) - 1)
#define COUNT(array) (sizeof(array) / sizeof *(array))

// Milliseconds. In each TICK libstrophe reads 4 KiB of a TLS record, so it is short.
enum { TICK = 2, HEARTBEAT = 5000, CHANGE = 1000, GRACE = 10000, SILENCE = 20000, BACKOFF = 30000 };
// What a stanza and an event may hold: section 11.
enum { STANZA = 61440, READS = 1048576, INLINE = 32768, EVENTS = 1000, DEPTH = 32, ELEMENTS = 20000 };
// What is remembered; ANSWERS are bytes.
enum { SLOTS = 1000, CALLS = 10000, ANSWERS = 64 << 20, WAITERS = 8, PEERS = 10000, NAMES = 10000, DISPATCHERS = 64 };

struct call { // an exchange, until its deadline has passed
    struct call *next;
    char *key, *to; // caller, id and attempt; the address that asked last
    json_t *id, *attempt, *value, *answer;
    json_t *waiters; // stanzas to be answered: [address, id, other answers]
    size_t bytes;
    int64_t began, due, deadline, gone;
};

extern const char _binary_description_json_start[], _binary_description_json_end[];
extern const char _binary_events_json_start[], _binary_events_json_end[];
static const char TOO_LARGE[] = "the stanza holds too much", MALFORMED[] = "the text is not a list of events";

static struct call *buckets[4096];
static size_t calls, running, answer_bytes;
static int64_t epoch, wake, advertised, heartbeat;
static json_t *schemas, *ops, *counts, *greeted, *named,
    *dispatchers; // an address and whether it stays when it is gone
static char *domain, hash[2 * SHA256_DIGEST_LENGTH + 1], refusal[256];
static bool online, changed, told_draining;
static volatile sig_atomic_t stopping;
static xmpp_ctx_t *ctx;
static xmpp_conn_t *conn;

static void *need(void *memory) {
    if (!memory) errx(1, "out of memory");
    return memory;
}

static int64_t now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

static void wake_at(int64_t time) {
    if (time < wake) wake = time;
}

// ---- JSON

// Text without what XML would have to escape, or cannot hold.
static char *text_of(const json_t *value, size_t *size) {
    char *text, *plain = need(json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY));
    FILE *out = need(open_memstream(&text, size));
    for (const unsigned char *c = (unsigned char *)plain; *c; c++) {
        if (strchr("&<>", *c)) {
            fprintf(out, "\\u%04x", *c);
        } else if (c[0] == 0xef && c[1] == 0xbf && c[2] >= 0xbe) { // U+FFFE and U+FFFF
            fprintf(out, "\\uff%02x", c[2] + 0x40);
            c += 2;
        } else {
            fputc(*c, out);
        }
    }
    if (fclose(out) != 0) errx(1, "out of memory");
    free(plain);
    return text;
}

static size_t size_of(const json_t *value) {
    size_t size;
    free(text_of(value, &size));
    return size;
}

static const char *string_at(const json_t *list, size_t i) { return json_string_value(json_array_get(list, i)); }

static const char *string(const json_t *object, const char *name) {
    return json_string_value(json_object_get(object, name));
}

static json_int_t number(const json_t *object, const char *name, json_int_t absent) {
    json_t *value = json_object_get(object, name);
    return value ? json_integer_value(value) : absent;
}

static bool is_bounded(json_t *value, int depth, size_t *elements) {
    const char *name;
    json_t *item;
    size_t i;
    *elements += json_array_size(value) + json_object_size(value);
    if (json_is_integer(value)) return json_integer_value(value) >= -SAFE && json_integer_value(value) <= SAFE;
    if (!json_is_array(value) && !json_is_object(value)) return true;
    if (depth > DEPTH || *elements > ELEMENTS) return false;
    json_array_foreach (value, i, item)
        if (!is_bounded(item, depth + 1, elements)) return false;
    json_object_foreach (value, name, item)
        if (!is_bounded(item, depth + 1, elements)) return false;
    return true;
}

static bool is_id(const char *text, size_t size) {
    for (size_t i = 0; i < size; i++)
        if (text[i] < '!' || text[i] > '~') return false;
    return size >= 1 && size <= 128;
}

static bool is_path(const char *path, size_t size) {
    size_t n, parts = 0;
    for (size_t i = 0; i < size; i++)
        if ((unsigned char)path[i] <= ' ' || strchr("*?{}[]<>\"'\\\x7f", path[i])) return false;
    for (const char *part = path + 1; size > 1 && part <= path + size; part += n + 1) {
        n = strcspn(part, "/");
        if (n == 0 || (n <= 2 && strncmp(part, "..", n) == 0) || ++parts > 32) return false;
    }
    return *path == '/' && size <= 512;
}

static bool is_string(const json_t *schema, const char *text, size_t size) {
    const char *format = string(schema, "format");
    json_int_t points = 0;
    for (size_t i = 0; i < size; i++) points += (text[i] & 0xc0) != 0x80;
    if (points > number(schema, "maxLength", SAFE)) return false;
    if (!format) return true;
    if (strcmp(format, "role") == 0)
        return !strcmp(text, "agent") || !strcmp(text, "caller") || !strcmp(text, "dispatcher");
    return strcmp(format, "id") == 0 ? is_id(text, size) : is_path(text, size);
}

// Whether a value fits a schema, of which only what our two tables use is understood.
static bool fits(const json_t *schema, const json_t *value) {
    const char *type = string(schema, "type");
    json_t *item;
    size_t i;
    if (!type) return true;
    if (strcmp(type, "object") == 0) return json_is_object(value);
    if (strcmp(type, "string") == 0)
        return json_is_string(value) && is_string(schema, json_string_value(value), json_string_length(value));
    if (strcmp(type, "array") == 0) {
        json_array_foreach (value, i, item)
            if (!fits(json_object_get(schema, "items"), item)) return false;
        return json_is_array(value) && json_array_size(value) <= (size_t)number(schema, "maxItems", 0);
    }
    return (json_is_integer(value) || (json_is_real(value) && strcmp(type, "number") == 0)) &&
           json_number_value(value) >= number(schema, "minimum", -SAFE) &&
           json_number_value(value) <= number(schema, "maximum", SAFE);
}

// What is wrong with the members of an object, and with which one, or NULL.
static const char *misfit(const json_t *schema, json_t *object, const char **name) {
    json_t *item;
    size_t i;
    json_array_foreach (json_object_get(schema, "required"), i, item)
        if (!json_object_get(object, *name = json_string_value(item))) return "is required";
    json_object_foreach (json_object_get(schema, "properties"), *name, item)
        if (json_object_get(object, *name) && !fits(item, json_object_get(object, *name))) return "does not fit";
    return NULL;
}

static bool is(const json_t *event, const char *type) { return strcmp(string(event, "type"), type) == 0; }

// What is wrong with an event, or NULL. A member that is null counts as absent, and is taken out.
static const char *fault_of(json_t *event) {
    static char fault[80];
    const char *name, *wrong, *type = string(event, "type");
    size_t elements = 0;
    json_t *value;
    void *next;
    if (!type) return "an event is an object with a 'type'";
    if (!is_bounded(event, 1, &elements)) return "an event goes beyond the limits";
    json_object_foreach_safe(event, next, name, value) {
        if (json_is_null(value)) json_object_del(event, name);
    }
    if (!(wrong = misfit(json_object_get(schemas, type), event, &name))) return NULL;
    snprintf(fault, sizeof fault, "'%s' of '%s' %s", name, type, wrong);
    return fault;
}

// The events of a stanza, or NULL and what is wrong with them.
static json_t *read_events(xmpp_stanza_t *x, const char **fault) {
    char *text = xmpp_stanza_get_text(x);
    json_t *event, *events = text && strlen(text) <= READS ? json_loads(text, JSON_ALLOW_NUL, NULL) : NULL;
    size_t i;
    *fault = json_is_array(events) ? NULL : MALFORMED;
    if ((text && strlen(text) > READS) || json_array_size(events) > EVENTS) *fault = TOO_LARGE;
    if (text) xmpp_free(ctx, text);
    json_array_foreach (events, i, event)
        if (*fault || (*fault = fault_of(event))) break;
    if (!*fault) return events;
    json_decref(events);
    return NULL;
}

// ---- Stanzas

static void add_element(xmpp_stanza_t *parent, const char *name, const char *text) {
    xmpp_stanza_t *element = need(xmpp_stanza_new(ctx)), *inner = need(xmpp_stanza_new(ctx));
    xmpp_stanza_set_name(element, name);
    xmpp_stanza_set_ns(element, NS);
    xmpp_stanza_set_text(inner, text);
    xmpp_stanza_add_child_ex(element, inner, 0);
    xmpp_stanza_add_child_ex(parent, element, 0);
}

// Sends a stanza with events, if the stream is there, and releases both.
static void say(xmpp_stanza_t *stanza, const char *to, json_t *events) {
    size_t size;
    char *text = json_array_size(events) ? text_of(events, &size) : NULL;
    if (to) xmpp_stanza_set_to(stanza, to);
    if (text) add_element(stanza, "x", text);
    if (online) xmpp_send(conn, stanza);
    xmpp_stanza_release(stanza);
    json_decref(events);
    free(text);
}

// Answers that do not fit are left out; that of an op is the first.
static void answer_iq(const char *to, const char *id, json_t *answers) {
    size_t i, size = 2;
    json_t *answer;
    json_array_foreach (answers, i, answer)
        if ((size += size_of(answer) + 1) > STANZA && i > 0) json_array_remove(answers, i--);
    say(xmpp_iq_new(ctx, "result", id), to, answers);
}

static int refuse_iq(xmpp_stanza_t *iq, const char *type, const char *condition, const char *reason, const char *text) {
    xmpp_stanza_t *error = xmpp_stanza_reply_error(iq, type, condition, text);
    if (reason) add_element(xmpp_stanza_get_child_by_name(error, "error"), "reason", reason);
    say(error, NULL, NULL);
    return 1;
}

// ---- Dispatchers

static bool is_dispatcher(const char *address) { return json_object_get(dispatchers, address); }

// Adds whom a dispatcher names; whom it does not name is dropped once it is gone.
static void list_dispatchers(json_t *addresses) {
    const char *address;
    json_t *item;
    size_t i;
    if (json_array_size(addresses) == 0) return;
    json_object_foreach (dispatchers, address, item) json_object_set_new(dispatchers, address, json_false());
    json_object_update_existing(dispatchers, named);
    json_array_foreach (addresses, i, item)
        if (is_dispatcher(json_string_value(item)) || json_object_size(dispatchers) < DISPATCHERS)
            json_object_set_new(dispatchers, json_string_value(item), json_true());
}

static void advertise(void) {
    int64_t t = now(CLOCK_MONOTONIC);
    const char *address;
    json_t *stays;
    if (!online || t < advertised + CHANGE) return;
    if (t < heartbeat && !changed && !stopping == !told_draining) return;
    json_t *event = json_pack("{s:s, s:s, s:I, s:s, s:i, s:I, s:f, s:[s]}", "type", "advertisement", "hash", hash,
        "epoch", (json_int_t)epoch, "state", stopping ? "draining" : "available", "slots", SLOTS, "busy",
        (json_int_t)running, "load", running / (double)SLOTS, "features", "cancel");
    json_object_foreach (dispatchers, address, stays) say(xmpp_presence_new(ctx), address, json_pack("[O]", event));
    json_decref(event);
    advertised = t;
    heartbeat = t + HEARTBEAT * 9 / 10 + rand() % (HEARTBEAT / 5);
    changed = false;
    told_draining = stopping;
}

static bool is_allowed(const char *from) {
    char *theirs = xmpp_jid_domain(ctx, from);
    bool same = theirs && strcmp(theirs, domain) == 0;
    xmpp_free(ctx, theirs);
    return same || is_dispatcher(from);
}

// ---- Exchanges

// Its key: to an agent all dispatchers are one caller.
static char *key_of(const json_t *event, const char *from) {
    char *key, *bare = is_dispatcher(from) ? NULL : xmpp_jid_bare(ctx, from);
    if (asprintf(&key, "%s %s %lld", bare ? bare : "", string(event, "id"), number(event, "attempt", 1)) < 0)
        errx(1, "out of memory");
    if (bare) xmpp_free(ctx, bare);
    return key;
}

static struct call **place_of(const char *key) {
    uint32_t sum = 2166136261; // FNV-1a
    for (const char *c = key; *c; c++) sum = (sum ^ (unsigned char)*c) * 16777619;
    struct call **place = &buckets[sum % COUNT(buckets)];
    while (*place && strcmp((*place)->key, key) != 0) place = &(*place)->next;
    return place;
}

static struct call *find(const json_t *event, const char *from) {
    char *key = key_of(event, from);
    struct call *call = *place_of(key);
    free(key);
    return call;
}

static struct call *begin(const json_t *event, const char *from, json_int_t left) {
    int64_t t = now(CLOCK_MONOTONIC);
    struct call *call = need(malloc(sizeof *call));
    *call = (struct call){.key = key_of(event, from),
        .to = need(strdup(from)),
        .waiters = json_array(),
        .id = json_incref(json_object_get(event, "id")),
        .attempt = json_incref(json_object_get(event, "attempt")),
        .began = t,
        .deadline = t + left,
        .due = INT64_MAX,
        .gone = INT64_MAX};
    wake_at(call->deadline);
    calls++;
    running++;
    changed = true;
    return *place_of(call->key) = call;
}

static void forget(struct call **place) {
    struct call *call = *place;
    json_t *parts[] = {call->id, call->attempt, call->value, call->answer, call->waiters};
    for (size_t i = 0; i < COUNT(parts); i++) json_decref(parts[i]);
    *place = call->next;
    calls--;
    answer_bytes -= call->bytes;
    free(call->key);
    free(call->to);
    free(call);
}

static json_t *problem(const char *reason, json_t *text, const char *argument) {
    if (argument && strlen(argument) > 256) argument = NULL;
    return json_pack("{s:s, s:o*, s:s*}", "reason", reason, "text", text, "argument", argument);
}

static json_t *about(const char *type, const json_t *id, const json_t *attempt, const char *member, json_t *content) {
    return json_pack("{s:s, s:O, s:O*, s:o}", "type", type, "id", id, "attempt", attempt, member, content);
}

// Ends a call: the answer is kept, and goes to every stanza that waits for it.
static void settle(struct call *call, const char *type, const char *member, json_t *content) {
    json_t *waiter;
    size_t i;
    call->answer = about(type, call->id, call->attempt, member, content);
    if (is(call->answer, "final"))
        json_object_set_new(call->answer, "ran", json_integer(now(CLOCK_MONOTONIC) - call->began));
    answer_bytes += call->bytes = size_of(call->answer);
    running--;
    changed = true;
    json_array_foreach (call->waiters, i, waiter) {
        json_t *answers = json_incref(json_array_get(waiter, 2));
        json_array_insert(answers, 0, call->answer);
        answer_iq(string_at(waiter, 0), string_at(waiter, 1), answers);
    }
    json_array_clear(call->waiters);
}

static void refuse(struct call *call, json_t *problem) { settle(call, "error", "problem", problem); }

static void fail(struct call *call, json_t *problem) { settle(call, "final", "problem", problem); }

static void finish(struct call *call, json_t *value) {
    if (size_of(value) <= INLINE) {
        settle(call, "final", "value", value);
    } else {
        json_decref(value);
        fail(call, problem("too-large", json_string("the result is larger than 32 KiB"), NULL));
    }
}

// Stanzas that wait are bounded: the oldest hears that its op was received, and no more.
static void await_answer(struct call *call, const char *from, const char *id, json_t *answers) {
    json_t *oldest = json_array_get(call->waiters, 0);
    if (json_array_size(call->waiters) == WAITERS) {
        answer_iq(string_at(oldest, 0), string_at(oldest, 1), json_array());
        json_array_remove(call->waiters, 0);
    }
    json_array_append_new(call->waiters, json_pack("[s, s?, o]", from, id, answers));
}

static void sweep(int64_t t) {
    if (t < wake) return;
    wake = INT64_MAX;
    for (size_t i = 0; i < COUNT(buckets); i++) {
        for (struct call **place = &buckets[i], *call; (call = *place);) {
            if (call->answer && call->deadline <= t) {
                forget(place);
                continue;
            }
            if (!call->answer && call->due <= t && call->due <= call->deadline) finish(call, json_incref(call->value));
            if (!call->answer && call->deadline <= t) fail(call, problem("deadline", NULL, NULL));
            if (!call->answer && call->gone <= t) fail(call, problem("cancelled", NULL, NULL));
            wake_at(call->deadline);
            if (!call->answer) wake_at(call->due < call->gone ? call->due : call->gone);
            place = &call->next;
        }
    }
}

// ---- Operations

static void echo(struct call *call, json_t *args) { finish(call, json_incref(json_object_get(args, "value"))); }

static void repeat(struct call *call, json_t *args) {
    json_t *text = json_object_get(args, "text");
    size_t size = json_string_length(text), times = number(args, "times", 1);
    char *all = need(malloc(size * times + 1));
    for (size_t i = 0; i < times; i++) memcpy(all + i * size, json_string_value(text), size);
    finish(call, json_stringn(all, size * times));
    free(all);
}

static void work(struct call *call, json_t *args) {
    json_t *name = json_object_get(args, "name");
    const char *key = json_string_value(name);
    size_t size = json_string_length(name);
    call->value = json_integer(json_integer_value(json_object_getn(counts, key, size)) + 1);
    json_object_deln(counts, key, size); // it becomes the youngest; the oldest makes room
    void *oldest = json_object_iter(counts);
    if (json_object_size(counts) >= NAMES)
        json_object_deln(counts, json_object_iter_key(oldest), json_object_iter_key_len(oldest));
    json_object_setn(counts, key, size, call->value);
    wake_at(call->due = call->began + (int64_t)(1000 * json_number_value(json_object_get(args, "seconds"))));
}

static void fail_as_told(struct call *call, json_t *args) {
    fail(call, problem("failed", json_incref(json_object_get(args, "text")), NULL));
}

static void refuse_as_told(struct call *call, json_t *args) {
    refuse(call, problem("refused", json_incref(json_object_get(args, "text")), NULL));
}

static void report(struct call *call, json_t *args) {
    json_int_t steps = number(args, "steps", 1);
    for (json_int_t step = 1; step <= steps; step++) {
        json_t *progress = about("progress", call->id, call->attempt, "done", json_integer(step));
        json_t *log = about("log", call->id, call->attempt, "text", json_sprintf("step %lld", step));
        json_object_set_new(progress, "total", json_integer(steps));
        say(xmpp_message_new(ctx, "headline", NULL, NULL), call->to, json_pack("[o, o]", progress, log));
    }
    finish(call, json_integer(steps));
}

static const struct {
    const char *path;
    void (*run)(struct call *call, json_t *args);
} RUNS[] = {{"/conform/echo", echo}, {"/conform/repeat", repeat}, {"/conform/work", work},
    {"/conform/fail", fail_as_told}, {"/conform/refuse", refuse_as_told}, {"/conform/report", report}};

// ---- Events

// The first name in `must` that is neither a member that is understood nor a feature, or NULL.
static const char *not_understood(const json_t *op) {
    static const char *const NAMES_KNOWN[] = {
        "type", "id", "attempt", "op", "left", "args", "epoch", "caller", "trace", "window", "must", "cancel"};
    json_t *name;
    size_t i, k;
    json_array_foreach (json_object_get(op, "must"), i, name) {
        for (k = 0; k < COUNT(NAMES_KNOWN) && strcmp(json_string_value(name), NAMES_KNOWN[k]) != 0;) k++;
        if (k == COUNT(NAMES_KNOWN)) return json_string_value(name);
    }
    return json_object_get(op, "each") ? "each" : NULL;
}

static const char *unknown_argument(const json_t *schema, json_t *args) {
    const char *name;
    json_t *value;
    json_object_foreach (args, name, value)
        if (!json_object_get(json_object_get(schema, "properties"), name)) return name;
    return NULL;
}

static void start(struct call *call, const json_t *op) {
    const char *path = string(op, "op"), *reason = NULL, *name = NULL, *wrong = NULL;
    json_t *operation = json_object_get(ops, path), *schema = json_object_get(operation, "args");
    json_t *given = json_object_get(op, "args"), *args = given ? json_incref(given) : json_object();
    if (stopping)
        reason = "draining";
    else if (number(op, "epoch", epoch) != epoch)
        reason = "stale-epoch";
    else if ((name = not_understood(op)))
        reason = "not-understood";
    else if (!operation)
        reason = "unknown-op";
    else if ((name = unknown_argument(schema, args)) || (wrong = misfit(schema, args, &name)))
        reason = "bad-arguments";
    else if (running > SLOTS)
        reason = "busy";
    if (reason) refuse(call, problem(reason, wrong ? json_sprintf("'%s' %s", name, wrong) : NULL, name));
    for (size_t i = 0; !reason && i < COUNT(RUNS); i++)
        if (strcmp(RUNS[i].path, path) == 0) RUNS[i].run(call, args);
    json_decref(args);
}

// The answer to an op that makes no exchange, or had made one that ended; else NULL, and `call` is its exchange.
static json_t *ask(const json_t *op, const char *from, struct call **call) {
    json_int_t left = number(op, "left", 0);
    bool full = calls >= CALLS || answer_bytes >= ANSWERS;
    const char *reason = !is_allowed(from) ? "not-allowed" : left == 0 ? "expired" : full ? "busy" : NULL;
    struct call *known = find(op, from);
    if (known && known->answer) {
        json_t *answer = json_copy(known->answer);
        if (is(answer, "final")) json_object_set_new(answer, "again", json_true());
        return answer;
    }
    if (!known && reason)
        return about(
            "error", json_object_get(op, "id"), json_object_get(op, "attempt"), "problem", problem(reason, NULL, NULL));
    if (!known) {
        start(*call = begin(op, from, left), op);
        return NULL;
    }
    free(known->to);
    known->to = need(strdup(from));
    known->gone = INT64_MAX;
    *call = known;
    return NULL;
}

static json_t *cancel(const json_t *event, const char *from) {
    struct call *call = find(event, from);
    const char *state = !call ? "unknown" : call->answer ? "late" : "cancelled";
    bool room = is_allowed(from) && calls < CALLS;
    if (!call && room)
        call = begin(event, from, number(event, "left", 60000)); // a tombstone: it may have overtaken its op
    if (call && !call->answer) (*state == 'u' ? refuse : fail)(call, problem("cancelled", NULL, NULL));
    return about(
        "cancelled", json_object_get(event, "id"), json_object_get(event, "attempt"), "state", json_string(state));
}

static json_t *describe(const json_t *event, const char *from) {
    if (!is_allowed(from) || strcmp(string(event, "hash"), hash) != 0) return NULL;
    return json_pack("{s:s, s:s, s:s%}", "type", "description", "hash", hash, "text", _binary_description_json_start,
        (size_t)(_binary_description_json_end - _binary_description_json_start));
}

static void greet(const json_t *hello, const char *from) {
    if (is_dispatcher(from)) {
        list_dispatchers(json_object_get(hello, "dispatchers"));
        heartbeat = 0;
    } else if (is_allowed(from) && !json_object_get(greeted, from) && json_object_size(greeted) < PEERS) {
        json_object_set_new(greeted, from, json_true());
        say(xmpp_presence_new(ctx), from,
            json_pack("[{s:s, s:s, s:I, s:[s]}]", "type", "hello", "role", "agent", "epoch", (json_int_t)epoch,
                "features", "cancel"));
    }
}

static void take(xmpp_stanza_t *iq, json_t *events) {
    const char *from = xmpp_stanza_get_from(iq), *id = xmpp_stanza_get_id(iq);
    json_t *event, *answer = NULL, *answers = json_array();
    struct call *call = NULL;
    size_t i;
    json_array_foreach (events, i, event) {
        if (is(event, "op") && (answer = ask(event, from, &call))) json_array_insert_new(answers, 0, answer);
        if (is(event, "cancel")) json_array_append_new(answers, cancel(event, from));
        if (is(event, "describe") && (answer = describe(event, from))) json_array_append_new(answers, answer);
        if (is(event, "hello")) greet(event, from);
    }
    if (call && !call->answer) {
        await_answer(call, from, id, answers);
        return;
    }
    if (call) json_array_insert(answers, 0, call->answer);
    answer_iq(from, id, answers);
}

static int on_iq(xmpp_conn_t *c, xmpp_stanza_t *iq, void *unused) {
    const char *type = xmpp_stanza_get_type(iq), *from = xmpp_stanza_get_from(iq), *fault;
    xmpp_stanza_t *x = xmpp_stanza_get_child_by_name_and_ns(iq, "x", NS);
    json_t *event;
    size_t i, asked = 0;
    (void)c, (void)unused;
    if (!type || (strcmp(type, "set") != 0 && strcmp(type, "get") != 0)) return 1;
    if (!x || !from || *type == 'g') return refuse_iq(iq, "cancel", "service-unavailable", NULL, NULL);
    json_t *events = read_events(x, &fault);
    if (fault == TOO_LARGE) return refuse_iq(iq, "modify", "policy-violation", "too-large", fault);
    if (fault) return refuse_iq(iq, "modify", "bad-request", "malformed", fault);
    json_array_foreach (events, i, event) asked += is(event, "op");
    if (asked <= 1)
        take(iq, events);
    else
        refuse_iq(iq, "cancel", "feature-not-implemented", "not-understood", "more than one op needs 'batch'");
    json_decref(events);
    return 1;
}

static int on_presence(xmpp_conn_t *c, xmpp_stanza_t *presence, void *unused) {
    const char *type = xmpp_stanza_get_type(presence), *from = xmpp_stanza_get_from(presence), *fault;
    xmpp_stanza_t *x = xmpp_stanza_get_child_by_name_and_ns(presence, "x", NS);
    json_t *event, *events = x && !type ? read_events(x, &fault) : NULL;
    int64_t gone = type ? now(CLOCK_MONOTONIC) + GRACE : INT64_MAX;
    size_t i;
    (void)c, (void)unused;
    if (!from || (type && strcmp(type, "unavailable") != 0 && strcmp(type, "error") != 0)) return 1;
    for (i = 0; i < COUNT(buckets) && !is_dispatcher(from); i++)
        for (struct call *call = buckets[i]; call; call = call->next)
            if (!call->answer && strcmp(call->to, from) == 0) wake_at(call->gone = gone);
    if (type) json_object_del(greeted, from);
    if (type && json_is_false(json_object_get(dispatchers, from))) json_object_del(dispatchers, from);
    json_array_foreach (events, i, event)
        if (is(event, "hello")) greet(event, from);
    json_decref(events);
    return 1;
}

// ---- The connection

static void on_log(void *unused, xmpp_log_level_t level, const char *area, const char *message) {
    (void)unused;
    if (level < XMPP_LEVEL_ERROR) return;
    if (strcmp(area, "auth") == 0)
        snprintf(refusal, sizeof refusal, "the login was refused");
    else
        warnx("%s: %s", area, message);
}

static int on_certificate(const xmpp_tlscert_t *unused, const char *const message) {
    (void)unused;
    snprintf(refusal, sizeof refusal, "the certificate of the server is not trusted: %s", message);
    return 0;
}

static int on_socket(xmpp_conn_t *c, void *socket) {
    int fd = *(int *)socket, yes = 1, silence = SILENCE;
    (void)c;
    return setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes) |
           setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &silence, sizeof silence);
}

static void on_connection(xmpp_conn_t *c, xmpp_conn_event_t event, int e, xmpp_stream_error_t *error, void *unused) {
    (void)e, (void)unused;
    online = event == XMPP_CONN_CONNECT;
    if (error) warnx("the server ended the stream: %s", error->text ? error->text : "it gave no reason");
    if (!online) return;
    say(xmpp_presence_new(ctx), NULL, NULL);
    json_object_clear(greeted);
    advertised = heartbeat = 0;
    printf("online %s\n", xmpp_conn_get_bound_jid(c));
    fflush(stdout);
}

static void connect_to(const char *host, unsigned short port, const char *address, const char *password) {
    conn = need(xmpp_conn_new(ctx));
    xmpp_conn_set_jid(conn, address);
    xmpp_conn_set_pass(conn, password);
    // Without stream management a dead agent is seen as dead at once.
    xmpp_conn_set_flags(conn, XMPP_CONN_FLAG_MANDATORY_TLS | XMPP_CONN_FLAG_DISABLE_SM);
    xmpp_conn_set_certfail_handler(conn, on_certificate);
    xmpp_conn_set_sockopt_callback(conn, on_socket);
    xmpp_handler_add(conn, on_iq, NULL, "iq", NULL, NULL);
    xmpp_handler_add(conn, on_presence, NULL, "presence", NULL, NULL);
    xmpp_connect_client(conn, host, port, on_connection, NULL);
}

// Until it has drained, or is told a second time.
static void keep_connected(const char *host, unsigned short port, const char *address, const char *password) {
    int64_t pause = 0, retry = 0, t;
    bool ever = false;
    while (stopping < 2 && !(stopping && !running && (told_draining || !online))) {
        if (!conn && now(CLOCK_MONOTONIC) >= retry) connect_to(host, port, address, password);
        xmpp_run_once(ctx, TICK);
        sweep(t = now(CLOCK_MONOTONIC));
        advertise();
        if (online) pause = 0, ever = true;
        if (!conn || !xmpp_conn_is_disconnected(conn)) continue;
        if (*refusal && !ever) errx(1, "%s", refusal);
        pause = pause == 0 ? 1000 : pause * 2 < BACKOFF ? pause * 2 : BACKOFF;
        retry = t + pause / 2 + rand() % (pause / 2);
        warnx("%s, next try in %lld ms", *refusal ? refusal : "there is no connection", (long long)(retry - t));
        *refusal = '\0';
        xmpp_conn_release(conn);
        conn = NULL;
    }
    if (!conn) return;
    xmpp_stanza_t *presence = xmpp_presence_new(ctx);
    xmpp_stanza_set_type(presence, "unavailable");
    say(presence, NULL, NULL);
    xmpp_disconnect(conn);
    for (t = now(CLOCK_MONOTONIC) + 3000; !xmpp_conn_is_disconnected(conn) && now(CLOCK_MONOTONIC) < t;)
        xmpp_run_once(ctx, TICK);
    xmpp_conn_release(conn);
}

static void on_signal(int unused) {
    (void)unused;
    stopping = stopping + 1;
}

static char *variable(const char *name) {
    char *value = getenv(name);
    if (!value) errx(1, "%s is missing", name);
    return value;
}

static void read_password(const char *path, char *password, size_t size) {
    FILE *file = fopen(path, "r");
    if (!file) err(1, "%s", path);
    password[fread(password, 1, size - 1, file)] = '\0';
    password[strcspn(password, "\r\n")] = '\0';
    fclose(file);
}

int main(void) {
    char *account = variable("SPINAL_ADDRESS"), *server = variable("SPINAL_SERVER"), *ca = variable("SPINAL_CA");
    char password[1024], address[3072], *colon = strrchr(server, ':');
    int port = colon ? atoi(colon + 1) : 0;
    size_t size = _binary_description_json_end - _binary_description_json_start;
    unsigned char digest[SHA256_DIGEST_LENGTH];
    xmpp_log_t log = {on_log, NULL};
    struct sigaction action = {.sa_handler = on_signal};
    read_password(variable("SPINAL_PASSWORD_FILE"), password, sizeof password);
    if (port <= 0 || port > 65535) errx(1, "SPINAL_SERVER is not host:port");
    if (access(ca, R_OK) != 0) err(1, "%s", ca);
    *colon = '\0';
    setenv("SSL_CERT_FILE", ca, 1); // in place of the authorities of the system, which libstrophe would trust
    setenv("SSL_CERT_DIR", "/nonexistent", 1);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    signal(SIGPIPE, SIG_IGN);

    srand(epoch = now(CLOCK_REALTIME));
    SHA256((const unsigned char *)_binary_description_json_start, size, digest);
    for (size_t i = 0; i < sizeof digest; i++) sprintf(hash + 2 * i, "%02x", digest[i]);
    json_t *description = need(json_loadb(_binary_description_json_start, size, 0, NULL));
    ops = json_incref(json_object_get(description, "ops"));
    json_decref(description);
    schemas = need(json_loadb(_binary_events_json_start, _binary_events_json_end - _binary_events_json_start, 0, NULL));
    counts = json_object(), greeted = json_object(), named = json_object();
    for (char *name = strtok(variable("SPINAL_DISPATCHER"), " "); name; name = strtok(NULL, " "))
        json_object_set_new(named, name, json_true());
    dispatchers = json_copy(named);

    xmpp_initialize();
    ctx = need(xmpp_ctx_new(NULL, &log));
    domain = need(xmpp_jid_domain(ctx, account));
    snprintf(address, sizeof address, "%s%s", account, strchr(account, '/') ? "" : "/agent");
    keep_connected(server, port, address, password);
    xmpp_ctx_free(ctx);
    xmpp_shutdown();
}
