/* An agent of the core profile (docs/protocol.md, section 3) that offers /c/echo.
 * Its environment is the "env" of `spinal account add NAME --role agent --json`.
 *
 * cc echo.c $(pkg-config --cflags --libs libstrophe jansson libcrypto)
 */
#define _POSIX_C_SOURCE 200809L
#include <jansson.h>
#include <openssl/evp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strophe.h>
#include <time.h>

#define NS "urn:spinal:1"
#define MAX_REMEMBERED 10000
#define HEARTBEAT 5000 /* milliseconds */

static const char *const DESCRIPTION =
    "{\"ops\":{\"/c/echo\":{\"summary\":\"Say it again.\",\"args\":{\"type\":\"object\","
    "\"properties\":{\"text\":{\"type\":\"string\"}},\"required\":[\"text\"]},"
    "\"result\":{\"type\":\"string\"},\"effects\":\"reads\",\"safe\":true,\"timeout\":10}}}";

static xmpp_ctx_t *ctx;
static char *domain;
static const char *dispatchers; /* separated by spaces */
static char hash[65];
static json_int_t epoch;
static json_t *remembered; /* exchange -> {"until", "answer"} */
static volatile sig_atomic_t asked_to_end;
static int gone, failed;

static void note_signal(int number) {
    (void)number;
    asked_to_end = 1;
}

static json_int_t milliseconds(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (json_int_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void describe_hash(void) {
    unsigned char digest[EVP_MAX_MD_SIZE];
    EVP_Digest(DESCRIPTION, strlen(DESCRIPTION), digest, NULL, EVP_sha256(), NULL);
    for (int i = 0; i < 32; i++)
        sprintf(hash + 2 * i, "%02x", digest[i]);
}

static int is_dispatcher(const char *address) {
    size_t length = strlen(address);
    for (const char *at = dispatchers; (at = strstr(at, address)) != NULL; at += length)
        if ((at == dispatchers || at[-1] == ' ') && (at[length] == ' ' || at[length] == '\0'))
            return 1;
    return 0;
}

static int is_allowed(const char *address) {
    char *theirs = xmpp_jid_domain(ctx, address);
    int same = theirs != NULL && strcmp(theirs, domain) == 0;
    xmpp_free(ctx, theirs);
    return same || is_dispatcher(address);
}

/* Gives an <x/> with the events, which it takes. */
static xmpp_stanza_t *body_of(json_t *events) {
    xmpp_stanza_t *x = xmpp_stanza_new(ctx), *text = xmpp_stanza_new(ctx);
    /* ASCII, because U+FFFE and U+FFFF cannot occur in XML. */
    char *json = json_dumps(events, JSON_COMPACT | JSON_ENSURE_ASCII);
    xmpp_stanza_set_name(x, "x");
    xmpp_stanza_set_ns(x, NS);
    xmpp_stanza_set_text(text, json);
    xmpp_stanza_add_child_ex(x, text, 0);
    free(json);
    json_decref(events);
    return x;
}

static json_t *refused(const char *reason) {
    return json_pack("{s:s, s:{s:s}}", "type", "error", "problem", "reason", reason);
}

static int is(json_t *event, const char *member, const char *value) {
    const char *text = json_string_value(json_object_get(event, member));
    return text != NULL && strcmp(text, value) == 0;
}

static json_t *run(json_t *op) {
    json_t *args = json_object_get(op, "args"), *text = json_object_get(args, "text");
    json_t *wanted = json_object_get(op, "epoch");
    if (json_integer_value(json_object_get(op, "left")) == 0)
        return refused("expired");
    if (json_is_integer(wanted) && json_integer_value(wanted) != epoch)
        return refused("stale-epoch");
    if (json_array_size(json_object_get(op, "must")) > 0)
        return refused("not-understood");
    if (!is(op, "op", "/c/echo"))
        return refused("unknown-op");
    if (!json_is_string(text) || json_object_size(args) != 1)
        return refused("bad-arguments");
    if (json_object_size(remembered) >= MAX_REMEMBERED)
        return refused("busy");
    printf("ran %s\n", json_string_value(json_object_get(op, "id")));
    return json_pack("{s:s, s:O}", "type", "final", "value", text);
}

/* Gives the answer to an op, the one that it had before if it was resent; nothing if it is none. */
static json_t *answer_to(const char *from, json_t *op) {
    json_t *id = json_object_get(op, "id"), *left = json_object_get(op, "left");
    json_t *number = json_object_get(op, "attempt"), *known, *answer;
    json_int_t attempt = json_is_integer(number) ? json_integer_value(number) : 1;
    json_int_t now = milliseconds(CLOCK_MONOTONIC);
    const char *key;
    void *next;
    if (!json_is_string(id) || !json_is_integer(left) || strlen(json_string_value(id)) > 128)
        return NULL;
    json_object_foreach_safe(remembered, next, key, known)
        if (json_integer_value(json_object_get(known, "until")) < now)
            json_object_del(remembered, key);

    char *bare = xmpp_jid_bare(ctx, from);
    char exchange[4096];
    snprintf(exchange, sizeof exchange, "%s %s %lld", bare, json_string_value(id),
             (long long)attempt);
    xmpp_free(ctx, bare);
    known = json_object_get(remembered, exchange);
    if (known != NULL)
        return json_incref(json_object_get(known, "answer"));
    answer = run(op);
    json_object_set(answer, "id", id);
    json_object_set_new(answer, "attempt", json_integer(attempt));
    if (json_object_size(remembered) < MAX_REMEMBERED)
        json_object_set_new(remembered, exchange,
                            json_pack("{s:I, s:O}", "until", now + json_integer_value(left),
                                      "answer", answer));
    return answer;
}

/* Gives the answers to a stanza's events; nothing if they cannot be read. */
static json_t *answers_to(const char *from, const char *text) {
    json_t *events = json_loads(text, JSON_ALLOW_NUL, NULL), *answers = json_array(), *event;
    size_t i;
    int readable = json_is_array(events);
    json_array_foreach(events, i, event) {
        if (!json_is_string(json_object_get(event, "type")))
            readable = 0;
        else if (is(event, "type", "describe") && is(event, "hash", hash))
            json_array_append_new(answers, json_pack("{s:s, s:s, s:s}", "type", "description",
                                                     "hash", hash, "text", DESCRIPTION));
        else if (is(event, "type", "op") &&
                 json_array_append_new(answers, answer_to(from, event)) != 0)
            readable = 0;
    }
    json_decref(events);
    if (!readable) {
        json_decref(answers);
        return NULL;
    }
    return answers;
}

static void send_and_release(xmpp_conn_t *conn, xmpp_stanza_t *stanza) {
    xmpp_send(conn, stanza);
    xmpp_stanza_release(stanza);
}

static void send_error(xmpp_conn_t *conn, xmpp_stanza_t *iq, const char *type,
                       const char *condition, const char *reason) {
    xmpp_stanza_t *reply = xmpp_stanza_reply_error(iq, type, condition, NULL);
    if (reason != NULL) {
        xmpp_stanza_t *ours = xmpp_stanza_new(ctx), *text = xmpp_stanza_new(ctx);
        xmpp_stanza_set_text(text, reason);
        xmpp_stanza_set_name(ours, "reason");
        xmpp_stanza_set_ns(ours, NS);
        xmpp_stanza_add_child_ex(ours, text, 0);
        xmpp_stanza_add_child_ex(xmpp_stanza_get_child_by_name(reply, "error"), ours, 0);
    }
    send_and_release(conn, reply);
}

static int on_iq(xmpp_conn_t *conn, xmpp_stanza_t *iq, void *unused) {
    const char *type = xmpp_stanza_get_type(iq), *from = xmpp_stanza_get_from(iq);
    xmpp_stanza_t *x = xmpp_stanza_get_child_by_name_and_ns(iq, "x", NS);
    (void)unused;
    if (type == NULL || (strcmp(type, "get") != 0 && strcmp(type, "set") != 0))
        return 1;
    if (from == NULL || x == NULL || strcmp(type, "set") != 0) {
        send_error(conn, iq, "cancel", "service-unavailable", NULL);
        return 1;
    }
    if (!is_allowed(from)) {
        send_error(conn, iq, "auth", "forbidden", "not-allowed");
        return 1;
    }
    char *text = xmpp_stanza_get_text(x);
    json_t *answers = text == NULL ? NULL : answers_to(from, text);
    if (answers == NULL) {
        send_error(conn, iq, "modify", "bad-request", "malformed");
    } else {
        xmpp_stanza_t *reply = xmpp_stanza_reply(iq);
        xmpp_stanza_set_type(reply, "result");
        if (json_array_size(answers) > 0)
            xmpp_stanza_add_child_ex(reply, body_of(json_incref(answers)), 0);
        json_decref(answers);
        send_and_release(conn, reply);
    }
    xmpp_free(ctx, text);
    return 1;
}

static int advertise(xmpp_conn_t *conn, void *unused) {
    char *list = strdup(dispatchers), *rest = list;
    (void)unused;
    for (char *to; (to = strtok_r(rest, " ", &rest)) != NULL;) {
        xmpp_stanza_t *presence = xmpp_presence_new(ctx);
        json_t *news = json_pack("[{s:s, s:s, s:I, s:i}]", "type", "advertisement", "hash", hash,
                                 "epoch", epoch, "slots", 8);
        xmpp_stanza_set_to(presence, to);
        xmpp_stanza_add_child_ex(presence, body_of(news), 0);
        send_and_release(conn, presence);
    }
    free(list);
    return 1;
}

static int on_presence(xmpp_conn_t *conn, xmpp_stanza_t *presence, void *unused) {
    const char *from = xmpp_stanza_get_from(presence);
    (void)unused;
    if (from != NULL && xmpp_stanza_get_type(presence) == NULL && is_dispatcher(from))
        advertise(conn, NULL);
    return 1;
}

static void on_connection(xmpp_conn_t *conn, xmpp_conn_event_t status, int error,
                          xmpp_stream_error_t *stream_error, void *unused) {
    (void)stream_error, (void)unused;
    if (status != XMPP_CONN_CONNECT) {
        gone = 1;
        failed = error != 0 || !asked_to_end;
        return;
    }
    xmpp_handler_add(conn, on_iq, NULL, "iq", NULL, NULL);
    xmpp_handler_add(conn, on_presence, NS, "presence", NULL, NULL);
    xmpp_timed_handler_add(conn, advertise, HEARTBEAT, NULL);
    send_and_release(conn, xmpp_presence_new(ctx));
    advertise(conn, NULL);
    printf("online %s\n", xmpp_conn_get_bound_jid(conn));
}

static const char *needed(const char *name) {
    const char *value = getenv(name);
    if (value == NULL) {
        fprintf(stderr, "%s is not set: take the env of `spinal account add --json`\n", name);
        exit(2);
    }
    return value;
}

int main(void) {
    struct sigaction end = {.sa_handler = note_signal};
    char password[4096] = "", server[256], address[3200];
    setvbuf(stdout, NULL, _IOLBF, 0);
    sigaction(SIGTERM, &end, NULL);
    snprintf(address, sizeof address, "%s/agent", needed("SPINAL_ADDRESS"));
    snprintf(server, sizeof server, "%s", needed("SPINAL_SERVER"));
    server[strcspn(server, " ")] = '\0';
    dispatchers = getenv("SPINAL_DISPATCHER") ? getenv("SPINAL_DISPATCHER") : "";
    char *port = strrchr(server, ':');
    FILE *file = fopen(needed("SPINAL_PASSWORD_FILE"), "r");
    if (port == NULL || file == NULL || fgets(password, sizeof password, file) == NULL) {
        fprintf(stderr, "SPINAL_SERVER has no port, or SPINAL_PASSWORD_FILE no password\n");
        return 2;
    }
    fclose(file);
    *port++ = '\0';
    password[strcspn(password, "\r\n")] = '\0';

    xmpp_initialize();
    ctx = xmpp_ctx_new(NULL, xmpp_get_default_logger(XMPP_LEVEL_WARN));
    domain = xmpp_jid_domain(ctx, address);
    remembered = json_object();
    epoch = milliseconds(CLOCK_REALTIME);
    describe_hash();
    xmpp_conn_t *conn = xmpp_conn_new(ctx);
    xmpp_conn_set_jid(conn, address);
    xmpp_conn_set_pass(conn, password);
    xmpp_conn_set_cafile(conn, needed("SPINAL_CA"));
    xmpp_conn_set_flags(conn, XMPP_CONN_FLAG_MANDATORY_TLS);
    failed = xmpp_connect_client(conn, server, (unsigned short)atoi(port), on_connection, NULL);
    for (int leaving = 0; !failed && !gone;) {
        xmpp_run_once(ctx, 100);
        if (asked_to_end && !leaving) {
            leaving = 1;
            xmpp_disconnect(conn);
        }
    }
    json_decref(remembered);
    xmpp_conn_release(conn);
    xmpp_free(ctx, domain);
    xmpp_ctx_free(ctx);
    xmpp_shutdown();
    return failed != 0;
}
