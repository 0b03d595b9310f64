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
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define NS "urn:spinal:1"
#define SAFE ((1LL << 53) - 1)
#define JSON(...) #__VA_ARGS__

enum { // milliseconds
    TICK = 2, // libstrophe waits for so long before it reads the rest of a TLS record
    HEARTBEAT = 5000,
    CHANGE = 1000,
    GRACE = 10000,
    BACKOFF = 30000,
    SILENCE = 20000,
};

enum { // what one stanza and one event may hold (section 11), and what is remembered
    STANZA = 61440, READS = 1048576, INLINE = 32768, EVENTS = 1000, DEPTH = 32, ELEMENTS = 20000,
    SLOTS = 1000, CALLS = 10000, ANSWERS = 64 << 20, WAITERS = 8, PEERS = 10000, NAMES = 10000, DISPATCHERS = 64,
};

// clang-format off
static const char DESCRIPTION[] = JSON({"ops": {
    "/conform/echo": {"summary": "Give the value back.", "effects": "reads", "safe": true,
        "args": {"type": "object", "required": ["value"], "properties": {"value": {}}}},
    "/conform/repeat": {"summary": "Give the text, so many times.", "effects": "reads", "safe": true,
        "args": {"type": "object", "required": ["text"], "properties": {
            "text": {"type": "string", "maxLength": 1000},
            "times": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 1}}},
        "result": {"type": "string"}},
    "/conform/work": {"summary": "Wait, then say how often it began under this name.", "effects": "writes", "timeout": 600,
        "args": {"type": "object", "required": ["name"], "properties": {
            "name": {"type": "string", "maxLength": 64},
            "seconds": {"type": "number", "minimum": 0, "maximum": 600, "default": 0}}},
        "result": {"type": "integer"}},
    "/conform/fail": {"summary": "Start, and fail with the text.", "effects": "reads", "safe": true,
        "args": {"type": "object", "required": ["text"], "properties": {"text": {"type": "string", "maxLength": 1000}}}},
    "/conform/refuse": {"summary": "Refuse with the text.", "effects": "reads", "safe": true,
        "args": {"type": "object", "required": ["text"], "properties": {"text": {"type": "string", "maxLength": 1000}}}},
    "/conform/report": {"summary": "Tell each step.", "effects": "reads", "safe": true,
        "args": {"type": "object", "required": ["steps"], "properties": {
            "steps": {"type": "integer", "minimum": 1, "maximum": 100}}},
        "result": {"type": "integer"}}}});

static const char TAKEN[] = JSON({ // the events that are not left out, section 5
    "op": {"required": ["id", "op", "left"], "properties": {
        "id": {"type": "string", "format": "id"}, "attempt": {"type": "integer", "minimum": 1, "maximum": 1000000},
        "op": {"type": "string", "format": "path"}, "left": {"type": "integer", "minimum": 0, "maximum": 31622400000},
        "args": {"type": "object"}, "each": {"type": "array", "maxItems": 1000, "items": {"type": "object"}},
        "epoch": {"type": "integer", "minimum": 0}, "key": {"type": "string", "maxLength": 256},
        "caller": {"type": "string", "maxLength": 3071}, "grant": {"type": "string", "maxLength": 4096},
        "trace": {"type": "string", "maxLength": 128}, "window": {"type": "integer", "minimum": 0, "maximum": 10000},
        "must": {"type": "array", "maxItems": 32, "items": {"type": "string", "maxLength": 64}}, "want": {"type": "object"}}},
    "cancel": {"required": ["id"], "properties": {
        "id": {"type": "string", "format": "id"}, "attempt": {"type": "integer", "minimum": 1, "maximum": 1000000},
        "left": {"type": "integer", "minimum": 0, "maximum": 31622400000},
        "of": {"type": "array", "maxItems": 1000, "items": {"type": "integer", "minimum": 0, "maximum": 1000}}}},
    "ack": {"required": ["id"], "properties": {
        "id": {"type": "string", "format": "id"}, "attempt": {"type": "integer", "minimum": 1, "maximum": 1000000},
        "also": {"type": "array", "maxItems": 255, "items": {"type": "array", "maxItems": 2}}}},
    "describe": {"required": ["hash"], "properties": {"hash": {"type": "string", "maxLength": 64}}},
    "hello": {"properties": {
        "version": {"type": "string", "maxLength": 16}, "role": {"type": "string", "maxLength": 10},
        "features": {"type": "array", "maxItems": 64, "items": {"type": "string", "maxLength": 64}},
        "stanza": {"type": "integer", "minimum": 4096}, "epoch": {"type": "integer", "minimum": 0},
        "dispatchers": {"type": "array", "maxItems": 64, "items": {"type": "string", "maxLength": 3071}}}}});
// clang-format on

static const char *const UNDERSTOOD[] = { // by this agent, in `must`
    "type", "id", "attempt", "op", "left", "args", "epoch", "caller", "trace", "window", "must", "cancel"};

static const char TOO_LARGE[] = "the stanza holds too much";

struct call { // one exchange
    struct call *next; // in its bucket
    char *key, *to;    // caller, id and attempt; the address that asked last
    json_t *id, *attempt;
    json_t *value, *answer; // what it will give; the final or error, once it is there
    json_t *waiters;        // stanzas to be answered: [address, id, other answers]
    size_t bytes;           // of the answer
    int64_t began, due, deadline, gone;
};

static struct dispatcher {
    char *address;
    bool named, listed, gone; // by the credentials; by a dispatcher; from the bus
} dispatchers[DISPATCHERS];

static struct call *buckets[4096];
static size_t dispatcher_count, call_count, running, answer_bytes, told_running;
static int64_t epoch, wake, advertised, heartbeat;
static json_t *taken, *ops, *counts, *greeted;
static char hash[2 * SHA256_DIGEST_LENGTH + 1], refusal[256];
static bool online, told_draining;
static volatile sig_atomic_t stopping;
static xmpp_ctx_t *ctx;
static xmpp_conn_t *conn;
static char *domain;

static void *need(void *memory) {
    if (!memory)
        errx(1, "out of memory");
    return memory;
}

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

static void wake_at(int64_t time) {
    if (time < wake)
        wake = time;
}

// ---- JSON

// Text that may stand in XML: neither markup, nor U+FFFE and U+FFFF.
static char *text_of(const json_t *value) {
    char *text, *plain = need(json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY));
    size_t size;
    FILE *out = need(open_memstream(&text, &size));
    for (const unsigned char *c = (unsigned char *)plain; *c; c++) {
        if (strchr("&<>", *c)) {
            fprintf(out, "\\u%04x", *c);
        } else if (c[0] == 0xef && c[1] == 0xbf && c[2] >= 0xbe) {
            fprintf(out, "\\uff%02x", c[2] + 0x40);
            c += 2;
        } else {
            fputc(*c, out);
        }
    }
    fclose(out);
    free(plain);
    return need(text);
}

static size_t size_of(const json_t *value) {
    char *text = text_of(value);
    size_t size = strlen(text);
    free(text);
    return size;
}

static bool is_bounded(json_t *value, int depth, size_t *elements) {
    const char *name;
    json_t *item;
    size_t i;
    if (json_is_integer(value))
        return json_integer_value(value) >= -SAFE && json_integer_value(value) <= SAFE;
    *elements += json_array_size(value) + json_object_size(value);
    if ((json_is_array(value) || json_is_object(value)) && (depth > DEPTH || *elements > ELEMENTS))
        return false;
    json_array_foreach(value, i, item) {
        if (!is_bounded(item, depth + 1, elements))
            return false;
    }
    json_object_foreach(value, name, item) {
        if (!is_bounded(item, depth + 1, elements))
            return false;
    }
    return true;
}

static bool is_id(const char *text, size_t size) {
    for (size_t i = 0; i < size; i++)
        if (text[i] < '!' || text[i] > '~')
            return false;
    return size >= 1 && size <= 128;
}

static bool is_path(const char *path, size_t size) {
    size_t n, parts = 0;
    for (size_t i = 0; i < size; i++)
        if ((unsigned char)path[i] <= ' ' || strchr("*?{}[]<>\"'\\\x7f", path[i]))
            return false;
    for (const char *part = path + 1; size > 1 && part <= path + size; part += n + 1) {
        n = strcspn(part, "/");
        if (n == 0 || (n <= 2 && strncmp(part, "..", n) == 0) || ++parts > 32)
            return false;
    }
    return *path == '/' && size <= 512;
}

static const char *string_at(const json_t *list, size_t i) { return json_string_value(json_array_get(list, i)); }

static json_int_t number(const json_t *object, const char *name, json_int_t absent) {
    json_t *value = json_object_get(object, name);
    return value ? json_integer_value(value) : absent;
}

// Whether the value fits so much of JSON Schema as is used above.
static bool fits(const json_t *schema, const json_t *value) {
    const char *type = json_string_value(json_object_get(schema, "type"));
    const char *format = json_string_value(json_object_get(schema, "format"));
    const char *text = json_string_value(value);
    size_t i, size = json_string_length(value), length = size;
    json_t *item;
    if (!type)
        return true;
    if (strcmp(type, "object") == 0)
        return json_is_object(value);
    if (strcmp(type, "array") == 0) {
        json_array_foreach(value, i, item) {
            if (!fits(json_object_get(schema, "items"), item))
                return false;
        }
        return json_is_array(value) && json_array_size(value) <= (size_t)number(schema, "maxItems", SAFE);
    }
    if (strcmp(type, "string") == 0) {
        for (i = 0; i < size; i++)
            length -= (text[i] & 0xc0) == 0x80; // code points, not bytes
        return text && length <= (size_t)number(schema, "maxLength", SAFE) &&
            (!format || (strcmp(format, "id") == 0 ? is_id(text, size) : is_path(text, size)));
    }
    return (json_is_integer(value) || (json_is_real(value) && strcmp(type, "number") == 0)) &&
        json_number_value(value) >= number(schema, "minimum", -SAFE) &&
        json_number_value(value) <= number(schema, "maximum", SAFE);
}

// What is wrong with the members of an object, and with which, or NULL.
static const char *misfit(const json_t *schema, json_t *object, const char **name) {
    json_t *item;
    size_t i;
    json_array_foreach(json_object_get(schema, "required"), i, item) {
        if (!json_object_get(object, *name = json_string_value(item)))
            return "is required";
    }
    json_object_foreach(json_object_get(schema, "properties"), *name, item) {
        if (json_object_get(object, *name) && !fits(item, json_object_get(object, *name)))
            return "does not fit";
    }
    return NULL;
}

static bool is_type(const json_t *event, const char *type) {
    return strcmp(json_string_value(json_object_get(event, "type")), type) == 0;
}

// What is wrong with an event, or NULL; a member that is null counts as absent.
static const char *fault_of(json_t *event) {
    static char fault[80];
    const char *name, *wrong, *type = json_string_value(json_object_get(event, "type"));
    size_t elements = 0;
    json_t *member;
    void *next;
    if (!type)
        return "an event is an object with a 'type'";
    if (!is_bounded(event, 1, &elements))
        return "an event goes beyond the limits";
    json_object_foreach_safe(event, next, name, member) {
        if (json_is_null(member))
            json_object_del(event, name);
    }
    if (!(wrong = misfit(json_object_get(taken, type), event, &name)))
        return NULL;
    snprintf(fault, sizeof fault, "'%s' of '%s' %s", name, type, wrong);
    return fault;
}

// The events of a stanza, or NULL and what is wrong with them.
static json_t *read_events(xmpp_stanza_t *x, const char **fault) {
    char *text = xmpp_stanza_get_text(x);
    json_t *event, *events = text && strlen(text) <= READS ? json_loads(text, JSON_ALLOW_NUL, NULL) : NULL;
    size_t i;
    *fault = NULL;
    if ((text && strlen(text) > READS) || json_array_size(events) > EVENTS)
        *fault = TOO_LARGE;
    else if (!json_is_array(events))
        *fault = "the text is not a list of events";
    json_array_foreach(events, i, event) {
        if (*fault || (*fault = fault_of(event)))
            break;
    }
    if (text)
        xmpp_free(ctx, text);
    if (!*fault)
        return events;
    json_decref(events);
    return NULL;
}

// ---- Stanzas

// Sends the stanza with these events, and releases both.
static void say(xmpp_stanza_t *stanza, json_t *events) {
    if (json_array_size(events)) {
        xmpp_stanza_t *x = xmpp_stanza_new(ctx), *inner = xmpp_stanza_new(ctx);
        char *text = text_of(events);
        xmpp_stanza_set_name(x, "x");
        xmpp_stanza_set_ns(x, NS);
        xmpp_stanza_set_text(inner, text);
        xmpp_stanza_add_child_ex(x, inner, 0);
        xmpp_stanza_add_child_ex(stanza, x, 0);
        free(text);
    }
    if (online)
        xmpp_send(conn, stanza);
    xmpp_stanza_release(stanza);
    json_decref(events);
}

static void say_presence(const char *to, json_t *event) {
    xmpp_stanza_t *presence = xmpp_presence_new(ctx);
    xmpp_stanza_set_to(presence, to);
    say(presence, json_pack("[O]", event));
}

static void answer_iq(const char *to, const char *id, json_t *answers) {
    xmpp_stanza_t *iq = xmpp_iq_new(ctx, "result", id);
    xmpp_stanza_set_to(iq, to);
    while (json_array_size(answers) > 1 && size_of(answers) > STANZA)
        json_array_remove(answers, json_array_size(answers) - 1); // that of the op is the first
    say(iq, answers);
}

static int refuse_iq(xmpp_stanza_t *iq, const char *type, const char *condition, const char *reason, const char *text) {
    xmpp_stanza_t *error = xmpp_stanza_reply_error(iq, type, condition, text);
    if (reason) {
        xmpp_stanza_t *element = xmpp_stanza_new(ctx), *inner = xmpp_stanza_new(ctx);
        xmpp_stanza_set_name(element, "reason");
        xmpp_stanza_set_ns(element, NS);
        xmpp_stanza_set_text(inner, reason);
        xmpp_stanza_add_child_ex(element, inner, 0);
        xmpp_stanza_add_child_ex(xmpp_stanza_get_child_by_name(error, "error"), element, 0);
    }
    say(error, NULL);
    return 1;
}

// ---- Dispatchers

static struct dispatcher *dispatcher_at(const char *address) {
    for (size_t i = 0; i < dispatcher_count; i++)
        if (strcmp(dispatchers[i].address, address) == 0)
            return &dispatchers[i];
    return NULL;
}

static struct dispatcher *add_dispatcher(const char *address) {
    struct dispatcher *d = dispatcher_at(address);
    if (!d && dispatcher_count < DISPATCHERS) {
        d = &dispatchers[dispatcher_count++];
        *d = (struct dispatcher){.address = need(strdup(address))};
    }
    return d;
}

static void drop_dispatchers(void) {
    for (size_t i = 0; i < dispatcher_count;) {
        struct dispatcher *d = &dispatchers[i++];
        if (d->gone && !d->named && !d->listed) {
            free(d->address);
            *d = dispatchers[--dispatcher_count];
            i--;
        }
    }
}

static void list_dispatchers(const json_t *addresses) {
    struct dispatcher *d;
    json_t *address;
    size_t i;
    if (json_array_size(addresses))
        for (i = 0; i < dispatcher_count; i++)
            dispatchers[i].listed = false;
    json_array_foreach(addresses, i, address) {
        if ((d = add_dispatcher(json_string_value(address))))
            d->listed = true;
    }
    drop_dispatchers();
}

static void advertise(void) {
    int64_t t = now();
    bool same = running == told_running && !stopping == !told_draining;
    if (!online || t < advertised + CHANGE || (t < heartbeat && same))
        return;
    json_t *event = json_pack("{s:s, s:s, s:I, s:s, s:i, s:i, s:f, s:[s]}", "type", "advertisement", "hash", hash,
        "epoch", (json_int_t)epoch, "state", stopping ? "draining" : "available", "slots", SLOTS, "busy",
        (int)running, "load", running / (double)SLOTS, "features", "cancel");
    for (size_t i = 0; i < dispatcher_count; i++)
        say_presence(dispatchers[i].address, event);
    json_decref(event);
    advertised = t;
    heartbeat = t + HEARTBEAT * 9 / 10 + rand() % (HEARTBEAT / 5);
    told_running = running;
    told_draining = stopping;
}

// ---- Exchanges

static bool is_allowed(const char *from) {
    char *theirs = xmpp_jid_domain(ctx, from);
    bool same = theirs && strcmp(theirs, domain) == 0;
    xmpp_free(ctx, theirs);
    return same || dispatcher_at(from);
}

// Where the exchange of an event is, or would be; all dispatchers are one caller.
static struct call **place_of(const json_t *event, const char *from, char **key) {
    char *bare = dispatcher_at(from) ? NULL : xmpp_jid_bare(ctx, from);
    if (asprintf(key, "%s %s %lld", bare ? bare : "", json_string_value(json_object_get(event, "id")),
            number(event, "attempt", 1)) < 0)
        errx(1, "out of memory");
    if (bare)
        xmpp_free(ctx, bare);
    uint32_t sum = 2166136261; // FNV-1a
    for (const char *c = *key; *c; c++)
        sum = (sum ^ (unsigned char)*c) * 16777619;
    struct call **place = &buckets[sum % (sizeof buckets / sizeof *buckets)];
    while (*place && strcmp((*place)->key, *key) != 0)
        place = &(*place)->next;
    return place;
}

static struct call *find(const json_t *event, const char *from) {
    char *key;
    struct call *call = *place_of(event, from, &key);
    free(key);
    return call;
}

static struct call *begin(const json_t *event, const char *from, json_int_t left) {
    struct call *call = need(calloc(1, sizeof *call));
    *place_of(event, from, &call->key) = call;
    call->to = need(strdup(from));
    call->id = json_incref(json_object_get(event, "id"));
    call->attempt = json_incref(json_object_get(event, "attempt"));
    call->waiters = json_array();
    call->began = now();
    call->deadline = call->began + left;
    call->due = call->gone = INT64_MAX;
    wake_at(call->deadline);
    call_count++;
    running++;
    return call;
}

static void forget(struct call **place) {
    struct call *call = *place;
    json_t *const parts[] = {call->id, call->attempt, call->value, call->answer, call->waiters};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        json_decref(parts[i]);
    *place = call->next;
    call_count--;
    answer_bytes -= call->bytes;
    free(call->key);
    free(call->to);
    free(call);
}

static bool is_full(void) { return call_count >= CALLS || answer_bytes >= ANSWERS; }

static json_t *problem(const char *reason, json_t *text, const char *argument) {
    if (argument && strlen(argument) > 256)
        argument = NULL;
    return json_pack("{s:s, s:o*, s:s*}", "reason", reason, "text", text, "argument", argument);
}

static json_t *about(const char *type, const json_t *id, const json_t *attempt) {
    return json_pack("{s:s, s:O, s:O*}", "type", type, "id", id, "attempt", attempt);
}

// Ends the call: the answer is kept until the deadline, and goes to every stanza that waits for it.
static void settle(struct call *call, const char *type, const char *member, json_t *content) {
    json_t *waiter;
    size_t i;
    call->answer = about(type, call->id, call->attempt);
    json_object_set_new(call->answer, member, content);
    if (strcmp(type, "final") == 0)
        json_object_set_new(call->answer, "ran", json_integer(now() - call->began));
    answer_bytes += call->bytes = size_of(call->answer);
    running--;
    json_array_foreach(call->waiters, i, waiter) {
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
        return;
    }
    json_decref(value); // no operation with such results has an effect, so it counts as not begun
    refuse(call, problem("too-large", json_string("the result is larger than 32 KiB"), NULL));
}

static void sweep(void) {
    int64_t t = now();
    if (t < wake)
        return;
    wake = INT64_MAX;
    for (size_t i = 0; i < sizeof buckets / sizeof *buckets; i++) {
        for (struct call **place = &buckets[i], *call; (call = *place);) {
            if (call->answer && call->deadline <= t) {
                forget(place);
                continue;
            }
            if (!call->answer && call->due <= t && call->due <= call->deadline)
                finish(call, json_incref(call->value));
            else if (!call->answer && call->deadline <= t)
                fail(call, problem("deadline", NULL, NULL));
            else if (!call->answer && call->gone <= t)
                fail(call, problem("cancelled", json_string("its caller is gone"), NULL));
            wake_at(call->deadline);
            if (!call->answer) {
                wake_at(call->due);
                wake_at(call->gone);
            }
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
    for (size_t i = 0; i < times; i++)
        memcpy(all + i * size, json_string_value(text), size);
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
    call->due = call->began + (int64_t)(1000 * json_number_value(json_object_get(args, "seconds")));
    wake_at(call->due);
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
        json_t *progress = about("progress", call->id, call->attempt);
        json_t *log = about("log", call->id, call->attempt);
        json_object_set_new(progress, "done", json_integer(step));
        json_object_set_new(progress, "total", json_integer(steps));
        json_object_set_new(log, "text", json_sprintf("step %lld", step));
        say(xmpp_message_new(ctx, "headline", call->to, NULL), json_pack("[o, o]", progress, log));
    }
    finish(call, json_integer(steps));
}

static const struct {
    const char *path;
    void (*run)(struct call *call, json_t *args);
} OPERATIONS[] = {{"/conform/echo", echo}, {"/conform/repeat", repeat}, {"/conform/work", work},
    {"/conform/fail", fail_as_told}, {"/conform/refuse", refuse_as_told}, {"/conform/report", report}};

// ---- Events

// The first name in `must` that is not understood, or NULL.
static const char *not_understood(const json_t *op) {
    json_t *name;
    size_t i, known;
    json_array_foreach(json_object_get(op, "must"), i, name) {
        for (known = 0; known < sizeof UNDERSTOOD / sizeof *UNDERSTOOD; known++)
            if (strcmp(json_string_value(name), UNDERSTOOD[known]) == 0)
                break;
        if (known == sizeof UNDERSTOOD / sizeof *UNDERSTOOD)
            return json_string_value(name);
    }
    return json_object_get(op, "each") ? "each" : NULL;
}

static const char *unknown_argument(const json_t *schema, json_t *args) {
    const char *name;
    json_t *value;
    json_object_foreach(args, name, value) {
        if (!json_object_get(json_object_get(schema, "properties"), name))
            return name;
    }
    return NULL;
}

static void start(struct call *call, const json_t *op) {
    const char *path = json_string_value(json_object_get(op, "op")), *reason = NULL, *name = NULL, *wrong = NULL;
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
    if (reason) {
        json_t *text = wrong ? json_sprintf("'%s' %s", name, wrong) : NULL;
        refuse(call, problem(reason, text, name));
    }
    for (size_t i = 0; !reason && i < sizeof OPERATIONS / sizeof *OPERATIONS; i++)
        if (strcmp(OPERATIONS[i].path, path) == 0)
            OPERATIONS[i].run(call, args);
    json_decref(args);
}

// The answer to an op if it had one before, or gets none; else `call` is its exchange.
static json_t *ask(const json_t *op, const char *from, struct call **call) {
    struct call *known = find(op, from);
    json_int_t left = number(op, "left", 0);
    const char *reason = !is_allowed(from) ? "not-allowed" : left == 0 ? "expired" : is_full() ? "busy" : NULL;
    if (known && known->answer) {
        json_t *answer = json_copy(known->answer);
        if (is_type(answer, "final"))
            json_object_set_new(answer, "again", json_true());
        return answer;
    }
    if (known) {
        free(known->to);
        known->to = need(strdup(from));
        known->gone = INT64_MAX;
        *call = known;
    } else if (reason) {
        json_t *answer = about("error", json_object_get(op, "id"), json_object_get(op, "attempt"));
        json_object_set_new(answer, "problem", problem(reason, NULL, NULL));
        return answer;
    } else {
        start(*call = begin(op, from, left), op);
    }
    return NULL;
}

static json_t *cancel(const json_t *event, const char *from) {
    struct call *call = find(event, from);
    const char *state = !call ? "unknown" : call->answer ? "late" : "cancelled";
    json_int_t left = number(event, "left", 60000);
    if (call && !call->answer)
        fail(call, problem("cancelled", NULL, NULL));
    else if (!call && is_allowed(from) && !is_full() && left > 0) // the cancel may have overtaken its op
        refuse(begin(event, from, left), problem("cancelled", NULL, NULL));
    json_t *answer = about("cancelled", json_object_get(event, "id"), json_object_get(event, "attempt"));
    json_object_set_new(answer, "state", json_string(state));
    return answer;
}

static json_t *describe(const json_t *event, const char *from) {
    if (!is_allowed(from) || strcmp(json_string_value(json_object_get(event, "hash")), hash) != 0)
        return NULL;
    return json_pack("{s:s, s:s, s:s}", "type", "description", "hash", hash, "text", DESCRIPTION);
}

static void greet(const json_t *hello, const char *from) {
    if (dispatcher_at(from)) {
        list_dispatchers(json_object_get(hello, "dispatchers"));
        heartbeat = 0;
    } else if (is_allowed(from) && !json_object_get(greeted, from) && json_object_size(greeted) < PEERS) {
        json_t *event = json_pack("{s:s, s:s, s:I, s:[s]}", "type", "hello", "role", "agent", "epoch",
            (json_int_t)epoch, "features", "cancel");
        json_object_set_new(greeted, from, json_true());
        say_presence(from, event);
        json_decref(event);
    }
}

static int on_iq(xmpp_conn_t *c, xmpp_stanza_t *iq, void *unused) {
    (void)c, (void)unused;
    const char *type = xmpp_stanza_get_type(iq), *from = xmpp_stanza_get_from(iq), *id = xmpp_stanza_get_id(iq), *fault;
    xmpp_stanza_t *x = xmpp_stanza_get_child_by_name_and_ns(iq, "x", NS);
    if (!type || (strcmp(type, "set") != 0 && strcmp(type, "get") != 0))
        return 1;
    if (!x || !from || strcmp(type, "set") != 0)
        return refuse_iq(iq, "cancel", "service-unavailable", NULL, NULL);
    json_t *event, *answer, *events = read_events(x, &fault), *answers;
    struct call *call = NULL;
    size_t i, asked = 0;
    if (!events && fault == TOO_LARGE)
        return refuse_iq(iq, "modify", "policy-violation", "too-large", fault);
    if (!events)
        return refuse_iq(iq, "modify", "bad-request", "malformed", fault);
    json_array_foreach(events, i, event) {
        asked += is_type(event, "op");
    }
    if (asked > 1) {
        json_decref(events);
        return refuse_iq(iq, "cancel", "feature-not-implemented", "not-understood", "one op in a stanza, please");
    }
    answers = json_array();
    json_array_foreach(events, i, event) {
        if (is_type(event, "op") && (answer = ask(event, from, &call)))
            json_array_insert_new(answers, 0, answer);
        else if (is_type(event, "cancel"))
            json_array_append_new(answers, cancel(event, from));
        else if (is_type(event, "describe") && (answer = describe(event, from)))
            json_array_append_new(answers, answer);
        else if (is_type(event, "hello"))
            greet(event, from);
    }
    json_decref(events);
    if (call && !call->answer) {
        if (json_array_size(call->waiters) == WAITERS) { // the oldest hears that its op was received, no more
            json_t *oldest = json_array_get(call->waiters, 0);
            answer_iq(string_at(oldest, 0), string_at(oldest, 1), json_array());
            json_array_remove(call->waiters, 0);
        }
        json_array_append_new(call->waiters, json_pack("[s, s?, o]", from, id, answers));
        return 1;
    }
    if (call)
        json_array_insert(answers, 0, call->answer);
    answer_iq(from, id, answers);
    return 1;
}

static int on_presence(xmpp_conn_t *c, xmpp_stanza_t *presence, void *unused) {
    (void)c, (void)unused;
    const char *type = xmpp_stanza_get_type(presence), *from = xmpp_stanza_get_from(presence), *fault;
    xmpp_stanza_t *x = xmpp_stanza_get_child_by_name_and_ns(presence, "x", NS);
    if (!from || (type && strcmp(type, "unavailable") != 0 && strcmp(type, "error") != 0))
        return 1;
    struct dispatcher *dispatcher = dispatcher_at(from);
    if (dispatcher)
        dispatcher->gone = type != NULL;
    for (size_t i = 0; !dispatcher && i < sizeof buckets / sizeof *buckets; i++)
        for (struct call *call = buckets[i]; call; call = call->next)
            if (!call->answer && strcmp(call->to, from) == 0)
                wake_at(call->gone = type ? now() + GRACE : INT64_MAX);
    if (type) {
        json_object_del(greeted, from);
        drop_dispatchers();
    } else if (x) {
        json_t *event, *events = read_events(x, &fault);
        size_t i;
        json_array_foreach(events, i, event) {
            if (is_type(event, "hello"))
                greet(event, from);
        }
        json_decref(events);
    }
    return 1;
}

// ---- The connection

static void on_log(void *unused, xmpp_log_level_t level, const char *area, const char *message) {
    (void)unused;
    if (level == XMPP_LEVEL_ERROR && strcmp(area, "auth") == 0)
        snprintf(refusal, sizeof refusal, "the login was refused");
    else if (level == XMPP_LEVEL_ERROR)
        warnx("%s: %s", area, message);
}

static int on_certificate(const xmpp_tlscert_t *certificate, const char *const message) {
    (void)certificate;
    snprintf(refusal, sizeof refusal, "the certificate of the server is not trusted: %s", message);
    return 0;
}

static int on_socket(xmpp_conn_t *c, void *socket) {
    (void)c;
    int fd = *(int *)socket, yes = 1, silence = SILENCE;
    return setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes) |
        setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &silence, sizeof silence);
}

static void on_connection(xmpp_conn_t *c, xmpp_conn_event_t event, int e, xmpp_stream_error_t *error, void *unused) {
    (void)e, (void)unused;
    online = event == XMPP_CONN_CONNECT;
    if (!online) {
        if (error)
            warnx("the server ended the stream: %s", error->text ? error->text : "without a reason");
        return;
    }
    say(xmpp_presence_new(ctx), NULL);
    json_object_clear(greeted);
    advertised = heartbeat = 0;
    printf("online %s\n", xmpp_conn_get_bound_jid(c));
    fflush(stdout);
}

static void connect_to(const char *address, const char *password, const char *host, unsigned short port) {
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

static void on_signal(int number) {
    (void)number;
    stopping = stopping + 1;
}

static char *variable(const char *name) {
    char *value = getenv(name);
    if (!value)
        errx(1, "%s is missing", name);
    return value;
}

static void read_password(const char *path, char *password, size_t size) {
    FILE *file = fopen(path, "r");
    if (!file)
        err(1, "%s", path);
    password[fread(password, 1, size - 1, file)] = '\0';
    password[strcspn(password, "\r\n")] = '\0';
    fclose(file);
}

int main(void) {
    char *account = variable("SPINAL_ADDRESS"), *server = variable("SPINAL_SERVER"), *ca = variable("SPINAL_CA");
    char *address, *colon = strrchr(server, ':'), password[1024];
    unsigned char digest[SHA256_DIGEST_LENGTH];
    struct timespec t;
    read_password(variable("SPINAL_PASSWORD_FILE"), password, sizeof password);
    for (char *name = strtok(variable("SPINAL_DISPATCHER"), " "); name; name = strtok(NULL, " "))
        if (add_dispatcher(name))
            add_dispatcher(name)->named = true;
    if (!colon || atoi(colon + 1) <= 0 || atoi(colon + 1) > 65535)
        errx(1, "SPINAL_SERVER is not host:port");
    if (access(ca, R_OK) != 0)
        err(1, "%s", ca);
    *colon = '\0';
    setenv("SSL_CERT_FILE", ca, 1); // in place of the authorities of the system, which libstrophe trusts too
    setenv("SSL_CERT_DIR", "/nonexistent", 1);

    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    clock_gettime(CLOCK_REALTIME, &t);
    epoch = t.tv_sec * 1000LL + t.tv_nsec / 1000000;
    srand(t.tv_nsec);
    SHA256((const unsigned char *)DESCRIPTION, strlen(DESCRIPTION), digest);
    for (size_t i = 0; i < sizeof digest; i++)
        sprintf(hash + 2 * i, "%02x", digest[i]);
    json_t *description = need(json_loads(DESCRIPTION, 0, NULL));
    ops = json_object_get(description, "ops");
    taken = need(json_loads(TAKEN, 0, NULL));
    counts = json_object();
    greeted = json_object();

    xmpp_log_t log = {on_log, NULL};
    xmpp_initialize();
    ctx = need(xmpp_ctx_new(NULL, &log));
    domain = need(xmpp_jid_domain(ctx, account));
    address = strchr(account, '/') ? need(strdup(account)) : xmpp_jid_new(ctx, need(xmpp_jid_node(ctx, account)), domain, "agent");

    bool ever = false;
    int64_t pause = 0, retry = 0;
    while (stopping < 2 && !(stopping && !running && (told_draining || !online))) {
        if (!conn && now() >= retry)
            connect_to(address, password, server, atoi(colon + 1));
        xmpp_run_once(ctx, TICK);
        if (online) {
            ever = true;
            pause = 0;
        }
        if (conn && xmpp_conn_is_disconnected(conn)) {
            if (*refusal && !ever)
                errx(1, "%s", refusal);
            pause = pause ? pause * 2 : 1000;
            pause = pause < BACKOFF ? pause : BACKOFF;
            retry = now() + pause / 2 + rand() % (pause / 2);
            warnx("%s, next try in %lld ms", *refusal ? refusal : "no connection", (long long)(retry - now()));
            *refusal = '\0';
            xmpp_conn_release(conn);
            conn = NULL;
        }
        sweep();
        advertise();
    }

    if (conn) {
        xmpp_stanza_t *bye = xmpp_presence_new(ctx);
        xmpp_stanza_set_type(bye, "unavailable");
        say(bye, NULL);
        xmpp_disconnect(conn);
        for (int64_t end = now() + 3000; !xmpp_conn_is_disconnected(conn) && now() < end;)
            xmpp_run_once(ctx, TICK);
        xmpp_conn_release(conn);
    }
    for (size_t i = 0; i < sizeof buckets / sizeof *buckets; i++)
        while (buckets[i])
            forget(&buckets[i]);
    while (dispatcher_count)
        free(dispatchers[--dispatcher_count].address);
    json_decref(description);
    json_decref(taken), json_decref(counts), json_decref(greeted);
    xmpp_free(ctx, address);
    xmpp_free(ctx, domain);
    xmpp_ctx_free(ctx);
    xmpp_shutdown();
}
