package agent;

import static agent.Json.MAPPER;
import static java.nio.charset.StandardCharsets.UTF_8;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.IntNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import com.fasterxml.jackson.databind.node.TextNode;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayDeque;
import java.util.Collection;
import java.util.Deque;
import java.util.HashMap;
import java.util.HashSet;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.Future;
import java.util.concurrent.ScheduledThreadPoolExecutor;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import java.util.function.BiConsumer;
import org.jivesoftware.smack.AbstractXMPPConnection;
import org.jivesoftware.smack.SmackException.NotConnectedException;
import org.jivesoftware.smack.packet.EmptyResultIQ;
import org.jivesoftware.smack.packet.IQ;
import org.jivesoftware.smack.packet.Message;
import org.jivesoftware.smack.packet.Presence;
import org.jivesoftware.smack.packet.Stanza;
import org.jivesoftware.smack.packet.StanzaBuilder;
import org.jivesoftware.smack.packet.StanzaError;
import org.jxmpp.jid.Jid;
import org.jxmpp.jid.impl.JidCreate;
import org.jxmpp.stringprep.XmppStringprepException;

/** The agent's side of the protocol: exchanges, presence, operations. Its methods may be called from any thread. */
final class Agent {
    private static final int SLOTS = 1000, CALLS = 10000, ANSWERS = 64 << 20, WAITERS = 8, PEERS = 10000, NAMES = 10000;
    private static final int DISPATCHERS = 64, STANZA = 61440, INLINE = 32768;
    private static final long HEARTBEAT = 5000, CHANGE = 1000, GRACE = 10000; // milliseconds
    private static final List<String> FEATURES = List.of("cancel");
    private static final Set<String> UNDERSTOOD = Set.of(
            "type", "id", "attempt", "op", "left", "args", "epoch", "caller", "trace", "window", "must", "cancel");

    private static final String DESCRIPTION = Json.resource("/description.json");
    private static final JsonNode OPS = Json.tree(DESCRIPTION).get("ops");
    private static final String HASH = sha256(DESCRIPTION);

    /** Names an exchange; the caller of all dispatchers is the empty string. */
    private record Key(String caller, String id, int attempt) {
        ObjectNode event(String type) {
            var event = Json.object("type", type).put("id", id);
            return attempt == 1 ? event : event.put("attempt", attempt);
        }
    }

    /** A stanza to be answered, with what else it has to be told. */
    private record Waiter(Jid to, String stanza, ArrayNode others) {}

    /** One exchange, until its deadline has passed. */
    private static final class Call {
        final Key key;
        final long began = milliseconds();
        final Deque<Waiter> waiters = new ArrayDeque<>();
        Jid to;
        ObjectNode answer;
        int bytes;

        Call(Key key, Jid to) {
            this.key = key;
            this.to = to;
        }

        boolean runs() {
            return answer == null;
        }
    }

    private final Map<String, BiConsumer<Call, JsonNode>> operations = Map.of(
            "/conform/echo", (call, args) -> finish(call, args.get("value")),
            "/conform/repeat",
                    (call, args) -> finish(
                            call,
                            TextNode.valueOf(args.get("text")
                                    .textValue()
                                    .repeat(args.path("times").asInt(1)))),
            "/conform/work", this::work,
            "/conform/fail", (call, args) -> fail(call, problem("failed").set("text", args.get("text"))),
            "/conform/refuse", (call, args) -> refuse(call, problem("refused").set("text", args.get("text"))),
            "/conform/report", this::report);

    private final long epoch = System.currentTimeMillis();
    private final String domain;
    private final Set<String> named;
    private final Map<String, Boolean> dispatchers = new LinkedHashMap<>(); // and whether it stays when it is gone
    private final Map<Key, Call> calls = new HashMap<>();
    private final Set<Jid> greeted = new HashSet<>();
    private final Map<Jid, Future<?>> graces = new HashMap<>();
    private final Map<String, Integer> counts = new LinkedHashMap<>(16, 0.75f, true) {
        private static final long serialVersionUID = 1;

        @Override
        protected boolean removeEldestEntry(Map.Entry<String, Integer> eldest) {
            return size() > NAMES;
        }
    };
    private final ScheduledThreadPoolExecutor clock = new ScheduledThreadPoolExecutor(1, task -> {
        var thread = new Thread(task, "clock");
        thread.setDaemon(true);
        return thread;
    });

    private AbstractXMPPConnection connection;
    private int running, answerBytes;
    private long advertised, heartbeat;
    private boolean changed, draining, toldDraining;

    Agent(String domain, Collection<String> dispatchers) {
        this.domain = domain;
        named = Set.copyOf(dispatchers);
        named.forEach(address -> this.dispatchers.put(address, true));
        clock.setRemoveOnCancelPolicy(true);
        clock.scheduleWithFixedDelay(guarded(this::advertise), 0, 50, TimeUnit.MILLISECONDS);
    }

    // ---- The connection

    synchronized void online(AbstractXMPPConnection connection) {
        this.connection = connection;
        greeted.clear();
        advertised = heartbeat = 0;
        say(StanzaBuilder.buildPresence().build());
    }

    synchronized void offline() {
        connection = null;
        notifyAll();
    }

    /** Takes nothing new, and returns when nothing runs and the dispatchers know. */
    synchronized void drain() throws InterruptedException {
        draining = true;
        while (running > 0 || (connection != null && !toldDraining)) wait();
        if (connection != null) connection.disconnect(); // it sends unavailable presence first
    }

    private void say(Stanza stanza) {
        if (connection == null) return;
        try {
            connection.sendStanza(stanza);
        } catch (NotConnectedException e) {
            connection = null; // its listener says so, too
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
    }

    private void sayPresence(Jid to, ObjectNode event) {
        say(StanzaBuilder.buildPresence()
                .to(to)
                .addExtension(Wire.extension(MAPPER.createArrayNode().add(event)))
                .build());
    }

    private void answer(Jid to, String stanza, ArrayNode answers) {
        for (int i = 0, size = 2; i < answers.size(); i++)
            if ((size += Json.size(answers.get(i)) + 1) > STANZA && i > 0)
                answers.remove(i--); // that of an op is the first
        var iq = answers.isEmpty() ? new EmptyResultIQ() : new Wire.EventsIq(Json.text(answers));
        iq.setType(IQ.Type.result);
        iq.setTo(to);
        iq.setStanzaId(stanza);
        say(iq);
    }

    private Runnable guarded(Runnable task) {
        return () -> {
            try {
                synchronized (this) {
                    task.run();
                }
            } catch (RuntimeException e) {
                System.err.println("agent: " + e);
            }
        };
    }

    private Future<?> after(long milliseconds, Runnable task) {
        return clock.schedule(guarded(task), milliseconds, TimeUnit.MILLISECONDS);
    }

    // ---- Dispatchers

    private void advertise() {
        var now = milliseconds();
        if (connection == null || advertised != 0 && now < advertised + CHANGE) return;
        if (heartbeat != 0 && now < heartbeat && !changed && draining == toldDraining) return;
        var event = Json.object("type", "advertisement")
                .put("hash", HASH)
                .put("epoch", epoch)
                .put("state", draining ? "draining" : "available")
                .put("slots", SLOTS)
                .put("busy", running)
                .put("load", running / (double) SLOTS)
                .set("features", MAPPER.valueToTree(FEATURES));
        for (var address : dispatchers.keySet()) {
            try {
                sayPresence(JidCreate.from(address), (ObjectNode) event);
            } catch (XmppStringprepException e) {
                System.err.println("agent: no address: " + address);
            }
        }
        advertised = milliseconds();
        heartbeat =
                advertised + HEARTBEAT * 9 / 10 + ThreadLocalRandom.current().nextLong(HEARTBEAT / 5);
        changed = false;
        toldDraining = draining;
        notifyAll();
    }

    private static long milliseconds() {
        return TimeUnit.NANOSECONDS.toMillis(System.nanoTime());
    }

    private boolean isDispatcher(Jid address) {
        return dispatchers.containsKey(address.toString());
    }

    private boolean isAllowed(Jid from) {
        return from.getDomain().toString().equals(domain) || isDispatcher(from);
    }

    private void greet(Jid from, ObjectNode hello) {
        if (isDispatcher(from)) {
            var listed = hello.path("dispatchers");
            if (!listed.isEmpty()) dispatchers.replaceAll((address, stays) -> named.contains(address));
            for (var address : listed)
                if (dispatchers.size() < DISPATCHERS || dispatchers.containsKey(address.textValue()))
                    dispatchers.put(address.textValue(), true);
            heartbeat = 0;
        } else if (isAllowed(from) && greeted.size() < PEERS && greeted.add(from)) {
            var event = Json.object("type", "hello").put("role", "agent").put("epoch", epoch);
            sayPresence(from, event.set("features", MAPPER.valueToTree(FEATURES)));
        }
    }

    // ---- Stanzas

    /** Takes the events of an IQ set, and gives the answer, or null if it comes later. */
    synchronized IQ take(Wire.EventsIq iq) {
        List<ObjectNode> events;
        if (iq.getFrom() == null)
            return Wire.error(
                    null, iq.getStanzaId(), StanzaError.getBuilder(StanzaError.Condition.service_unavailable));
        try {
            events = Json.events(iq.text);
        } catch (Json.Unreadable e) {
            return e.large
                    ? error(
                            iq,
                            StanzaError.Condition.policy_violation,
                            StanzaError.Type.MODIFY,
                            "too-large",
                            e.getMessage())
                    : error(
                            iq,
                            StanzaError.Condition.bad_request,
                            StanzaError.Type.MODIFY,
                            "malformed",
                            e.getMessage());
        }
        if (events.stream().filter(event -> is(event, "op")).count() > 1)
            return error(
                    iq,
                    StanzaError.Condition.feature_not_implemented,
                    StanzaError.Type.CANCEL,
                    "not-understood",
                    "more than one op needs 'batch'");
        var from = iq.getFrom();
        var answers = MAPPER.createArrayNode();
        Call call = null;
        for (var event : events) {
            switch (event.get("type").textValue()) {
                case "op" -> call = ask(event, from, answers);
                case "cancel" -> answers.add(cancel(event, from));
                case "describe" -> describe(event, from, answers);
                case "hello" -> greet(from, event);
                default -> {}
            }
        }
        if (call != null && call.runs()) {
            if (call.waiters.size() == WAITERS) { // it hears that its op was received, and no more
                var oldest = call.waiters.remove();
                answer(oldest.to, oldest.stanza, MAPPER.createArrayNode());
            }
            call.waiters.add(new Waiter(from, iq.getStanzaId(), answers));
        } else {
            if (call != null) answers.insert(0, call.answer);
            answer(from, iq.getStanzaId(), answers);
        }
        return null;
    }

    synchronized void take(Presence presence) {
        var from = presence.getFrom();
        var type = presence.getType();
        if (from == null) return;
        if (type == Presence.Type.available) {
            var grace = graces.remove(from);
            if (grace != null) grace.cancel(false);
            try {
                for (var event : Json.events(Wire.eventsOf(presence))) if (is(event, "hello")) greet(from, event);
            } catch (Json.Unreadable e) {
                return; // presence that cannot be taken is dropped
            }
        } else if (type == Presence.Type.unavailable || type == Presence.Type.error) {
            greeted.remove(from);
            var mine = calls.values().stream()
                    .filter(call -> call.runs() && call.to.equals(from))
                    .toList();
            if (!isDispatcher(from) && !mine.isEmpty())
                graces.computeIfAbsent(from, address -> after(GRACE, () -> abandon(address)));
            dispatchers.remove(from.toString(), false);
        }
    }

    private void abandon(Jid caller) {
        graces.remove(caller);
        for (var call : List.copyOf(calls.values()))
            if (call.runs() && call.to.equals(caller))
                fail(call, problem("cancelled").put("text", "its caller is gone"));
    }

    private static IQ error(IQ iq, StanzaError.Condition condition, StanzaError.Type type, String reason, String text) {
        var error = StanzaError.getBuilder(condition).setType(type).setDescriptiveEnText(text);
        return Wire.error(iq.getFrom(), iq.getStanzaId(), error.addExtension(Wire.reason(reason)));
    }

    private static boolean is(ObjectNode event, String type) {
        return event.get("type").textValue().equals(type);
    }

    private void describe(ObjectNode event, Jid from, ArrayNode answers) {
        if (isAllowed(from) && event.get("hash").textValue().equals(HASH))
            answers.add(Json.object("type", "description").put("hash", HASH).put("text", DESCRIPTION));
    }

    // ---- Exchanges

    private Key key(ObjectNode event, Jid from) {
        var caller = isDispatcher(from) ? "" : from.asBareJid().toString();
        return new Key(
                caller, event.get("id").textValue(), event.path("attempt").asInt(1));
    }

    /** The exchange of an op; null if it makes none, or had ended: then its answer is among the others. */
    private Call ask(ObjectNode op, Jid from, ArrayNode answers) {
        var key = key(op, from);
        var known = calls.get(key);
        var left = op.get("left").longValue();
        if (known != null && known.runs()) {
            known.to = from;
            return known;
        }
        if (known != null) {
            answers.insert(
                    0, is(known.answer, "final") ? known.answer.deepCopy().put("again", true) : known.answer);
            return null;
        }
        var reason = !isAllowed(from)
                ? "not-allowed"
                : left == 0 ? "expired" : calls.size() >= CALLS || answerBytes >= ANSWERS ? "busy" : null;
        if (reason != null) {
            answers.insert(0, key.event("error").set("problem", problem(reason)));
            return null;
        }
        var call = begin(key, from, left);
        var problem = objection(op);
        if (problem != null) refuse(call, problem);
        else operations.get(op.get("op").textValue()).accept(call, op.path("args"));
        return call;
    }

    /** Why an op is refused, or null. */
    private ObjectNode objection(ObjectNode op) {
        if (draining) return problem("draining");
        if (op.path("epoch").asLong(epoch) != epoch) return problem("stale-epoch");
        for (var name : op.path("must"))
            if (!UNDERSTOOD.contains(name.textValue()))
                return problem("not-understood").set("argument", name);
        if (op.has("each")) return problem("not-understood").put("argument", "each");
        var operation = OPS.get(op.get("op").textValue());
        if (operation == null) return problem("unknown-op");
        for (var names = op.path("args").fieldNames(); names.hasNext(); ) {
            var name = names.next();
            if (!operation.at("/args/properties").has(name))
                return problem("bad-arguments")
                        .put("text", "there is no such argument")
                        .put(
                                "argument",
                                name.substring(
                                        0,
                                        name.offsetByCodePoints(
                                                0, Math.min(256, name.codePointCount(0, name.length())))));
        }
        var misfit = Schema.misfit(operation.get("args"), op.path("args"));
        if (misfit.isPresent())
            return problem("bad-arguments")
                    .put("argument", misfit.get().name())
                    .put(
                            "text",
                            "'%s' %s"
                                    .formatted(misfit.get().name(), misfit.get().text()));
        return running > SLOTS ? problem("busy") : null;
    }

    private Call begin(Key key, Jid from, long left) {
        var call = new Call(key, from);
        calls.put(key, call);
        running++;
        changed = true;
        after(left, () -> {
            if (call.runs()) fail(call, problem("deadline"));
            answerBytes -= call.bytes;
            calls.remove(key);
        });
        return call;
    }

    private ObjectNode cancel(ObjectNode event, Jid from) {
        var key = key(event, from);
        var call = calls.get(key);
        if (call == null && isAllowed(from) && calls.size() < CALLS) // a tombstone: it may have overtaken its op
        refuse(begin(key, from, event.path("left").asLong(60000)), problem("cancelled"));
        var state = call == null ? "unknown" : call.runs() ? "cancelled" : "late";
        if (call != null && call.runs()) fail(call, problem("cancelled"));
        return key.event("cancelled").put("state", state);
    }

    private static ObjectNode problem(String reason) {
        return Json.object("reason", reason);
    }

    private void finish(Call call, JsonNode value) {
        if (Json.size(value) > INLINE) fail(call, problem("too-large").put("text", "the result is larger than 32 KiB"));
        else settle(call, call.key.event("final").set("value", value));
    }

    private void fail(Call call, JsonNode problem) {
        settle(call, call.key.event("final").set("problem", problem));
    }

    private void refuse(Call call, JsonNode problem) {
        settle(call, call.key.event("error").set("problem", problem));
    }

    /** Ends a call: the answer is kept, and goes to every stanza that waits for it. */
    private void settle(Call call, ObjectNode answer) {
        if (is(answer, "final")) answer.put("ran", milliseconds() - call.began);
        call.answer = answer;
        call.bytes = Json.size(answer);
        answerBytes += call.bytes;
        running--;
        changed = true;
        for (var waiter : call.waiters) answer(waiter.to, waiter.stanza, waiter.others.insert(0, answer));
        call.waiters.clear();
        notifyAll();
    }

    // ---- Operations that take longer than a line

    private void work(Call call, JsonNode args) {
        var count = counts.merge(args.get("name").textValue(), 1, Integer::sum);
        after(Math.round(args.path("seconds").asDouble() * 1000), () -> {
            if (call.runs()) finish(call, IntNode.valueOf(count));
        });
    }

    private void report(Call call, JsonNode args) {
        var steps = args.get("steps").intValue();
        for (var step = 1; step <= steps; step++) {
            var progress = call.key.event("progress").put("done", step).put("total", steps);
            var events = MAPPER.createArrayNode()
                    .add(progress)
                    .add(call.key.event("log").put("text", "step " + step));
            say(StanzaBuilder.buildMessage()
                    .ofType(Message.Type.headline)
                    .to(call.to)
                    .addExtension(Wire.extension(events))
                    .build());
        }
        finish(call, IntNode.valueOf(steps));
    }

    private static String sha256(String text) {
        try {
            var digest = MessageDigest.getInstance("SHA-256").digest(text.getBytes(UTF_8));
            return HexFormat.of().formatHex(digest);
        } catch (NoSuchAlgorithmException e) {
            throw new IllegalStateException(e); // every Java has it
        }
    }
}
