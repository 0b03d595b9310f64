// An agent on a Spinal bus: the core profile of docs/protocol.md, and `cancel`.
// One thread does everything: an operation that takes long is an answer that is due later.

#include <err.h>
#include <jansson.h>
#include <openssl/sha.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strophe.h>
#include <time.h>

#define NS "urn:spinal:1"
#define SAFE ((1LL << 53) - 1)
#define COUNT(array) (sizeof(array) / sizeof *(array))
#define TEXT (JSON_COMPACT | JSON_ENCODE_ANY | JSON_ENSURE_ASCII) // XML cannot hold U+FFFE
#define JSON(...) #__VA_ARGS__

enum {
    TICK = 5,
    SECOND = 1000,
    HEARTBEAT = 5 * SECOND,
    KEPT = 10 * SECOND,
    GRACE = 10 * SECOND,
    BACKOFF = 30 * SECOND
};                                                                              // milliseconds
enum { STANZA = 61440, INLINE = 32768, LEVELS = 32 };                           // section 11
enum { CALLS = 5000, SLOTS = 1000, WAITERS = 8, PEERS = 10000, NAMES = 10000 }; // what is remembered

// ---- Operations: each gives its answer, and says how many seconds it takes. Its arguments fit its description.

static json_t *counts;

// A "final" if the operation was started, an "error" if it was not.
static json_t *problem(const char *type, const char *reason, const char *member, const char *content) {
    return json_pack("{s:s, s:{s:s, s:s*}}", "type", type, "problem", "reason", reason, member, content);
}

// The result, if it is not too large.
static json_t *done(json_t *value) {
    if (json_dumpb(value, NULL, 0, TEXT) <= INLINE) return json_pack("{s:s, s:o}", "type", "final", "value", value);
    json_decref(value);
    return problem("final", "too-large", "text", NULL);
}

static json_t *echo(json_t *args, double *seconds) { return done(json_incref(json_object_get(args, "value"))); }

static json_t *repeat(json_t *args, double *seconds) {
    json_t *text = json_object_get(args, "text"), *times = json_object_get(args, "times");
    size_t size = json_string_length(text), whole = size * (times ? json_integer_value(times) : 1);
    char *copies = malloc(whole + 1);
    for (size_t i = 0; i < whole; i++) copies[i] = json_string_value(text)[i % size];
    json_t *value = json_stringn(copies, whole);
    free(copies);
    return done(value);
}

static json_t *work(json_t *args, double *seconds) {
    const char *name;
    size_t size;
    json_unpack(args, "{s:s%, s?F}", "name", &name, &size, "seconds", seconds);
    json_int_t count = json_integer_value(json_object_getn(counts, name, size)) + 1;
    void *oldest = json_object_iter(counts);
    if (json_object_size(counts) == NAMES)
        json_object_deln(counts, json_object_iter_key(oldest), json_object_iter_key_len(oldest));
    json_object_setn_new(counts, name, size, json_integer(count));
    return done(json_integer(count));
}

static json_t *fail(json_t *args, double *seconds) {
    return problem("final", "failed", "text", json_string_value(json_object_get(args, "text")));
}

static json_t *refuse(json_t *args, double *seconds) {
    return problem("error", "refused", "text", json_string_value(json_object_get(args, "text")));
}

// clang-format off
static const struct operation {
    const char *path;
    json_t *(*run)(json_t *args, double *seconds);
    const char *description;
} OPERATIONS[] = {
    {"/conform/echo", echo, JSON({"summary": "Give the value back.", "effects": "reads", "safe": true,
        "args": {"required": ["value"], "properties": {"value": {}}}})},
    {"/conform/repeat", repeat, JSON({"summary": "Give the text, so many times.", "effects": "reads", "safe": true,
        "args": {"required": ["text"], "properties": {"text": {"type": "string", "maxLength": 1000},
            "times": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 1}}}})},
    {"/conform/work", work, JSON({"summary": "Wait, and count.", "effects": "writes", "timeout": 600,
        "args": {"required": ["name"], "properties": {"name": {"type": "string", "maxLength": 64},
            "seconds": {"type": "number", "minimum": 0, "maximum": 600, "default": 0}}}})},
    {"/conform/fail", fail, JSON({"summary": "Start, and fail with the text.", "effects": "reads", "safe": true,
        "args": {"required": ["text"], "properties": {"text": {"type": "string", "maxLength": 1000}}}})},
    {"/conform/refuse", refuse, JSON({"summary": "Refuse with the text.", "effects": "reads", "safe": true,
        "args": {"required": ["text"], "properties": {"text": {"type": "string", "maxLength": 1000}}}})},
};
// clang-format on

// ---- The agent

struct event {      // what it reads of an op, a cancel or a describe
    char key[4096]; // the caller, id and attempt
    const char *type, *id, *path, *hash;
    json_int_t attempt, left, epoch;
    json_t *args, *must;
    bool strange; // it names in `must` what we do not understand
};

struct reply { // to a stanza
    xmpp_stanza_t *result;
    json_t *answers;
};

static struct call {  // an exchange, until some time after its deadline
    char *key, *from; // who asked last
    json_t *answer;
    json_int_t due, deadline;
    bool ended;
    struct reply waiters[WAITERS];
    size_t waiting;
} calls[CALLS];

static size_t known, running;
static json_t *ops, *description, *understood, *dispatchers, *greeted;
static char *account, *domain, hash[2 * SHA256_DIGEST_LENGTH + 1];
static json_int_t epoch, advertised, heartbeat;
static bool online, ever;
static volatile sig_atomic_t stopping, changed;
static xmpp_ctx_t *ctx;
static xmpp_conn_t *conn;

static bool is(const char *a, const char *b) { return strcmp(a, b) == 0; }

static json_int_t now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

// ---- What is read

// Whether all integers are exact and there are not too many levels.
static bool is_value(json_t *value, int level) {
    const char *name;
    json_t *item;
    size_t i;
    if (json_is_integer(value)) return llabs(json_integer_value(value)) <= SAFE;
    if (level > LEVELS) return !json_is_array(value) && !json_is_object(value);
    json_array_foreach (value, i, item)
        if (!is_value(item, level + 1)) return false;
    json_object_foreach (value, name, item)
        if (!is_value(item, level + 1)) return false;
    return true;
}

static bool is_word(const char *text, size_t size, size_t most) {
    for (size_t i = 0; i < size; i++)
        if ((unsigned char)text[i] <= ' ') return false;
    return size >= 1 && size <= most;
}

// Reads an event; false if it breaks a rule. Of one that is not for us only the type is read.
static bool read_event(json_t *object, struct event *event) {
    const char *name;
    json_t *value;
    size_t i, id_size, path_size = 1;
    void *next;
    *event = (struct event){.id = "-", .path = "/", .attempt = 1, .left = 60 * SECOND, .epoch = epoch};
    json_object_foreach_safe (object, next, name, value)
        if (json_is_null(value)) json_object_del(object, name);
    if (json_unpack(object, "{s:s}", "type", &event->type) != 0 || !is_value(object, 1)) return false;
    if (is(event->type, "describe")) return json_unpack(object, "{s:s}", "hash", &event->hash) == 0;
    if (!is(event->type, "op") && !is(event->type, "cancel")) return true;
    const char *members = is(event->type, "op") ? "{s:s%, s?I, s:I, s:s%, s?I, s?o, s?o}" : "{s:s%, s?I, s?I}";
    if (json_unpack(object, members, "id", &event->id, &id_size, "attempt", &event->attempt, "left", &event->left, "op",
            &event->path, &path_size, "epoch", &event->epoch, "args", &event->args, "must", &event->must) != 0)
        return false;
    json_array_foreach (event->must, i, value) {
        if (!json_is_string(value)) return false;
        event->strange = event->strange || !json_object_get(understood, json_string_value(value));
    }
    return is_word(event->id, id_size, 128) && event->attempt >= 1 && event->attempt <= 1000000 && event->left >= 0 &&
           event->left <= 31622400000 && event->epoch >= 0 && (!event->args || json_is_object(event->args)) &&
           (!event->must || json_is_array(event->must)) && is_word(event->path, path_size, 512) &&
           *event->path == '/' && !strstr(event->path, "//") && (path_size == 1 || event->path[path_size - 1] != '/');
}

// Whether a value fits a schema; only what the descriptions use is understood.
static bool fits(json_t *schema, const json_t *value) {
    const char *type = "any", *text = json_string_value(value);
    double low = -SAFE, high = SAFE, chars = SAFE, length = 0;
    if (json_unpack(
            schema, "{s?s, s?F, s?F, s?F}", "type", &type, "minimum", &low, "maximum", &high, "maxLength", &chars))
        return false;
    for (size_t i = 0; i < json_string_length(value); i++) length += (text[i] & 0xc0) != 0x80;
    if (is(type, "any")) return true;
    if (is(type, "string")) return text && length <= chars;
    return (json_is_integer(value) || (json_is_real(value) && is(type, "number"))) && json_number_value(value) >= low &&
           json_number_value(value) <= high;
}

// The name of an argument that is missing, unknown or does not fit, or NULL.
static const char *misfit(json_t *schema, json_t *args) {
    const char *name;
    json_t *value;
    size_t i;
    json_object_foreach (args, name, value)
        if (!fits(json_object_get(json_object_get(schema, "properties"), name), value)) return name;
    json_array_foreach (json_object_get(schema, "required"), i, value)
        if (!json_object_get(args, name = json_string_value(value))) return name;
    return NULL;
}

// ---- What is said

static void add_element(xmpp_stanza_t *parent, const char *name, const char *text) {
    xmpp_stanza_t *element = xmpp_stanza_new(ctx), *inner = xmpp_stanza_new(ctx);
    xmpp_stanza_set_name(element, name);
    xmpp_stanza_set_ns(element, NS);
    xmpp_stanza_set_text(inner, text);
    xmpp_stanza_add_child_ex(element, inner, false);
    xmpp_stanza_add_child_ex(parent, element, false);
}

// Sends a stanza with events, if there is a stream, and releases both.
static void say(xmpp_stanza_t *stanza, const char *to, json_t *events) {
    char *text = json_dumps(events, TEXT);
    if (to) xmpp_stanza_set_to(stanza, to);
    if (json_array_size(events) > 0 && strlen(text) <= STANZA) add_element(stanza, "x", text);
    if (online) xmpp_send(conn, stanza);
    xmpp_stanza_release(stanza);
    json_decref(events);
    free(text);
}

static int turn_down(xmpp_stanza_t *iq, const char *type, const char *condition, const char *reason) {
    xmpp_stanza_t *error = xmpp_stanza_reply_error(iq, type, condition, NULL);
    if (reason) add_element(xmpp_stanza_get_child_by_name(error, "error"), "reason", reason);
    say(error, NULL, json_array());
    return 1;
}

// To all dispatchers: on change at most once a second, and as a heartbeat.
static void advertise(void) {
    json_int_t t = now(CLOCK_MONOTONIC);
    const char *address;
    json_t *unused;
    if (!online || t < (changed ? advertised + SECOND : heartbeat)) return;
    changed = false;
    json_object_foreach (dispatchers, address, unused)
        say(xmpp_presence_new(ctx), address,
            json_pack("[{s:s, s:s, s:I, s:s, s:i, s:I, s:[s]}]", "type", "advertisement", "hash", hash, "epoch", epoch,
                "state", stopping ? "draining" : "available", "slots", SLOTS, "busy", (json_int_t)running, "features",
                "cancel"));
    advertised = t;
    heartbeat = t + HEARTBEAT * 9 / 10 + rand() % (HEARTBEAT / 5);
}

// ---- Calls

static bool is_dispatcher(const char *address) { return json_object_get(dispatchers, address); }

static bool is_allowed(const char *from) {
    char *theirs = xmpp_jid_domain(ctx, from);
    bool same = theirs && is(theirs, domain);
    xmpp_free(ctx, theirs);
    return same || is_dispatcher(from);
}

static struct call *find(const char *key) {
    for (size_t i = 0; i < known; i++)
        if (is(calls[i].key, key)) return &calls[i];
    return NULL;
}

static json_t *about(const struct event *event, json_t *answer) {
    json_object_set_new(answer, "id", json_string(event->id));
    json_object_set_new(answer, "attempt", json_integer(event->attempt));
    return answer;
}

// Ends a call, because of `reason` or, if that is NULL, with the answer that it has.
static void end(struct call *call, const char *reason) {
    if (reason) {
        json_object_del(call->answer, "value");
        json_object_set_new(call->answer, "problem", json_pack("{s:s}", "reason", reason));
    }
    changed = call->ended = true;
    running--;
    for (struct reply *reply = call->waiters; reply < call->waiters + WAITERS && reply->result; reply++) {
        json_array_append(reply->answers, call->answer);
        say(reply->result, NULL, reply->answers);
    }
}

static struct call *begin(const struct event *event, json_t *answer, double seconds) {
    json_int_t t = now(CLOCK_MONOTONIC);
    struct call *call = &calls[known++];
    *call = (struct call){.key = strdup(event->key), .answer = about(event, answer), .deadline = t + event->left};
    call->due = t + (json_int_t)(seconds * SECOND);
    running++;
    changed = true;
    if (call->due == t) end(call, NULL);
    return call;
}

// The stanza waits for the end of the call. There are few such: the oldest makes room.
static void wait_for(struct call *call, struct reply reply) {
    struct reply *oldest = &call->waiters[call->waiting++ % WAITERS];
    if (oldest->result) say(oldest->result, NULL, oldest->answers);
    *oldest = reply;
}

static void sweep(void) {
    json_int_t t = now(CLOCK_MONOTONIC);
    for (struct call *call = calls + known; call-- > calls;) {
        json_int_t gone = json_integer_value(json_object_get(greeted, call->from ? call->from : ""));
        if (!call->ended && call->due <= t) end(call, NULL);
        if (!call->ended && gone && gone + GRACE <= t) end(call, "cancelled");
        if (!call->ended && call->deadline <= t) end(call, "deadline");
        if (!call->ended || call->deadline + KEPT > t) continue;
        free(call->key);
        free(call->from);
        json_decref(call->answer);
        *call = calls[--known];
    }
}

// ---- What peers ask

static const struct operation *operation_of(const char *path) {
    for (size_t i = 0; i < COUNT(OPERATIONS); i++)
        if (is(OPERATIONS[i].path, path)) return &OPERATIONS[i];
    return NULL;
}

// Why an op is not started, or NULL.
static const char *objection(const struct event *op, const char **argument) {
    if (stopping) return "draining";
    if (op->left == 0) return "expired";
    if (op->epoch != epoch) return "stale-epoch";
    if (op->strange) return "not-understood";
    if (!operation_of(op->path)) return "unknown-op";
    if ((*argument = misfit(json_object_get(json_object_get(ops, op->path), "args"), op->args))) return "bad-arguments";
    return running == SLOTS || known == CALLS ? "busy" : NULL;
}

// Finds or begins the call of an op; or its refusal. A second op in one stanza would be a batch.
static json_t *ask(const struct event *op, struct call **call) {
    const char *argument = NULL, *reason = *call ? "not-understood" : NULL;
    double seconds = 0;
    if (!reason && !(*call = find(op->key))) reason = objection(op, &argument);
    if (reason) return about(op, problem("error", reason, "argument", argument));
    if (*call && (*call)->ended) json_object_set_new((*call)->answer, "again", json_true());
    if (*call) return NULL;
    json_t *answer = operation_of(op->path)->run(op->args, &seconds);
    *call = begin(op, answer, seconds);
    return NULL;
}

// Of an unknown op its refusal is remembered, because the cancel may have overtaken it.
static json_t *cancel(const struct event *event) {
    struct call *call = find(event->key);
    const char *state = !call ? "unknown" : call->ended ? "late" : "cancelled";
    if (call && !call->ended) end(call, "cancelled");
    if (!call && known < CALLS) begin(event, problem("error", "cancelled", "text", NULL), 0);
    return about(event, json_pack("{s:s, s:s}", "type", "cancelled", "state", state));
}

static void take(xmpp_stanza_t *iq, json_t *events) {
    const char *from = xmpp_stanza_get_from(iq);
    char *caller = xmpp_jid_bare(ctx, is_dispatcher(from) ? "dispatchers" : from); // who are one caller
    struct reply reply = {xmpp_stanza_reply(iq), json_array()};
    struct call *call = NULL;
    struct event event;
    json_t *object;
    size_t i;
    xmpp_stanza_set_type(reply.result, "result");
    json_array_foreach (events, i, object) {
        read_event(object, &event);
        snprintf(event.key, sizeof event.key, "%s %s %lld", caller, event.id, event.attempt);
        if (is(event.type, "op")) json_array_append_new(reply.answers, ask(&event, &call));
        if (is(event.type, "cancel")) json_array_append_new(reply.answers, cancel(&event));
        if (is(event.type, "describe") && is(event.hash, hash)) json_array_append(reply.answers, description);
    }
    xmpp_free(ctx, caller);
    if (call && !call->ended) {
        free(call->from);
        call->from = strdup(from);
        return wait_for(call, reply);
    }
    if (call) json_array_append(reply.answers, call->answer);
    say(reply.result, NULL, reply.answers);
}

static int on_iq(xmpp_conn_t *c, xmpp_stanza_t *iq, void *unused) {
    const char *type = xmpp_stanza_get_type(iq);
    xmpp_stanza_t *x = xmpp_stanza_get_child_by_name_and_ns(iq, "x", NS);
    struct event event;
    size_t i;
    if (!type || is(type, "result") || is(type, "error")) return 1;
    if (!xmpp_stanza_get_from(iq)) xmpp_stanza_set_from(iq, account); // RFC 6120, 8.1.2.1
    if (!x || !is(type, "set")) return turn_down(iq, "cancel", "service-unavailable", NULL);
    if (!is_allowed(xmpp_stanza_get_from(iq))) return turn_down(iq, "auth", "forbidden", "not-allowed");
    char *text = xmpp_stanza_get_text(x);
    json_t *object, *events = json_loads(text, JSON_ALLOW_NUL, NULL);
    bool fine = json_is_array(events);
    json_array_foreach (events, i, object) fine = fine && read_event(object, &event);
    if (fine) take(iq, events);
    json_decref(events);
    xmpp_free(ctx, text);
    return fine ? 1 : turn_down(iq, "modify", "bad-request", "malformed");
}

static int on_presence(xmpp_conn_t *c, xmpp_stanza_t *presence, void *unused) {
    const char *from = xmpp_stanza_get_from(presence), *type = xmpp_stanza_get_type(presence);
    if (!from || !is_allowed(from) || !(type || xmpp_stanza_get_child_by_name_and_ns(presence, "x", NS))) return 1;
    json_t *met = json_object_get(greeted, from); // 0 while it is here, else since when it is gone
    if (type) {
        if (met) json_integer_set(met, now(CLOCK_MONOTONIC));
    } else if (is_dispatcher(from)) {
        changed = true;
    } else if (!met || json_integer_value(met)) {
        if (json_object_size(greeted) == PEERS) json_object_clear(greeted); // who is here is greeted again
        json_object_set_new(greeted, from, json_integer(0));
        say(xmpp_presence_new(ctx), from,
            json_pack(
                "[{s:s, s:s, s:I, s:[s]}]", "type", "hello", "role", "agent", "epoch", epoch, "features", "cancel"));
    }
    return 1;
}

// ---- The connection

static void on_connection(xmpp_conn_t *c, xmpp_conn_event_t event, int e, xmpp_stream_error_t *error, void *unused) {
    online = event == XMPP_CONN_CONNECT;
    if (!online && !ever && !stopping) errx(1, "cannot log in as %s: check server, password, certificate", account);
    if (!online) return warnx("offline");
    changed = ever = true;
    json_object_clear(greeted);
    say(xmpp_presence_new(ctx), NULL, json_array());
    dprintf(1, "online %s\n", xmpp_conn_get_bound_jid(c));
}

static void connect_again(const char *host, unsigned short port) {
    static json_int_t retry, pause = SECOND;
    if (online) pause = SECOND;
    if (!xmpp_conn_is_disconnected(conn) || now(CLOCK_MONOTONIC) < retry) return;
    xmpp_connect_client(conn, host, port, on_connection, NULL);
    pause = pause < BACKOFF ? 2 * pause : BACKOFF;
    retry = now(CLOCK_MONOTONIC) + pause / 2 + rand() % (pause / 2);
}

static void on_signal(int unused) { stopping = changed = true; }

static char *variable(const char *name) {
    char *value = getenv(name);
    if (!value) errx(1, "%s is missing", name);
    return value;
}

static void describe_all(void) {
    unsigned char digest[SHA256_DIGEST_LENGTH];
    understood = json_pack(
        "{s:n, s:n, s:n, s:n, s:n, s:n, s:n, s:n}", "id", "attempt", "op", "left", "args", "epoch", "must", "cancel");
    for (size_t i = 0; i < COUNT(OPERATIONS); i++)
        json_object_set_new(ops, OPERATIONS[i].path, json_loads(OPERATIONS[i].description, 0, NULL));
    json_t *whole = json_pack("{s:O}", "ops", ops);
    char *text = json_dumps(whole, TEXT);
    SHA256((unsigned char *)text, strlen(text), digest);
    for (size_t i = 0; i < sizeof digest; i++) sprintf(hash + 2 * i, "%02x", digest[i]);
    description = json_pack("{s:s, s:s, s:s}", "type", "description", "hash", hash, "text", text);
    json_decref(whole);
    free(text);
}

int main(void) {
    char address[3072], password[1024], host[256];
    unsigned short port;
    account = variable("SPINAL_ADDRESS");
    FILE *file = fopen(variable("SPINAL_PASSWORD_FILE"), "r");
    if (!file || fscanf(file, "%1023[^\r\n]", password) != 1) err(1, "%s", getenv("SPINAL_PASSWORD_FILE"));
    fclose(file);
    if (sscanf(variable("SPINAL_SERVER"), "%255[^: ]:%hu", host, &port) != 2) errx(1, "SPINAL_SERVER is not host:port");
    ops = json_object(), dispatchers = json_object(), greeted = json_object(), counts = json_object();
    for (char *name = strtok(variable("SPINAL_DISPATCHER"), " "); name; name = strtok(NULL, " "))
        json_object_set_new(dispatchers, name, json_true());
    setenv("SSL_CERT_FILE", variable("SPINAL_CA"), true); // in place of the system's authorities, which
    setenv("SSL_CERT_DIR", "/nonexistent", true);         // xmpp_conn_set_cafile would leave trusted
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTERM, on_signal);
    srand(epoch = now(CLOCK_REALTIME));
    describe_all();

    xmpp_initialize();
    ctx = xmpp_ctx_new(NULL, NULL);
    conn = xmpp_conn_new(ctx);
    domain = xmpp_jid_domain(ctx, account);
    snprintf(address, sizeof address, "%s/agent", account);
    xmpp_conn_set_jid(conn, address);
    xmpp_conn_set_pass(conn, password);
    // Without stream management a dead agent is seen as dead at once.
    xmpp_conn_set_flags(conn, XMPP_CONN_FLAG_MANDATORY_TLS | XMPP_CONN_FLAG_DISABLE_SM);
    xmpp_conn_set_sockopt_callback(conn, xmpp_sockopt_cb_keepalive);
    xmpp_handler_add(conn, on_iq, NULL, "iq", NULL, NULL);
    xmpp_handler_add(conn, on_presence, NULL, "presence", NULL, NULL);
    do {
        connect_again(host, port);
        xmpp_run_once(ctx, TICK);
        sweep();
        advertise();
    } while (!stopping || running > 0 || (online && changed));
    xmpp_disconnect(conn);
    while (!xmpp_conn_is_disconnected(conn)) xmpp_run_once(ctx, TICK);
}
