package agent;

import static java.nio.charset.StandardCharsets.UTF_8;
import static java.util.concurrent.TimeUnit.MILLISECONDS;
import static java.util.concurrent.TimeUnit.SECONDS;

import agent.Bus.Incoming;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import com.fasterxml.jackson.databind.util.RawValue;
import com.networknt.schema.JsonSchema;
import java.security.MessageDigest;
import java.util.*;
import java.util.concurrent.*;
import java.util.logging.*;
import java.util.stream.*;
import org.jivesoftware.smack.ConnectionListener;
import org.jivesoftware.smack.XMPPConnection;
import org.jxmpp.jid.Jid;
import org.jxmpp.jid.impl.JidCreate;

/** An agent on a Spinal bus: docs/protocol.md, section 3. */
final class Agent {
    private static final int SLOTS = 100, CALLS = 2000, PEERS = 10_000, READS = 1 << 20, INLINE = 32_768;
    private static final long KEPT = 10_000; // milliseconds
    private static final Set<String> UNDERSTOOD = Set.of("id", "attempt", "op", "left", "args", "epoch", "must");
    private static final Set<String> STARTED = Set.of("failed", "deadline", "too-large");

    /** Names a call, under the account that asked; all dispatchers are one, the empty string. */
    private record Key(String caller, String id, int attempt) {
        ObjectNode event(String type) {
            var event = Json.object().put("type", type).put("id", id);
            return attempt == 1 ? event : event.put("attempt", attempt);
        }

        ObjectNode event(Problem problem) {
            var event = event(STARTED.contains(problem.reason) ? "final" : "error");
            event.putObject("problem").put("reason", problem.reason).put("text", problem.getMessage());
            return event;
        }
    }

    /** A call: while it runs the stanza that asked last, then its answer. */
    private static final class Call {
        Incoming asked;
        ObjectNode answer;
    }

    private final Bus bus = new Bus(this::take);
    private final JsonSchema events = Json.schema(Agent.class.getResourceAsStream("/events.json"));
    private final Map<String, JsonSchema> schemas = new HashMap<>();
    private final String hash = HexFormat.of()
            .formatHex(MessageDigest.getInstance("SHA-256").digest(Operations.DESCRIPTION.getBytes(UTF_8)));
    private final long epoch = System.currentTimeMillis();
    private final Set<Jid> dispatchers = Stream.of(Bus.variable("SPINAL_DISPATCHER").split(" "))
            .map(JidCreate::fromOrThrowUnchecked)
            .collect(Collectors.toSet());
    private final Set<Jid> greeted = new HashSet<>();
    private final Map<Key, Call> calls = new ConcurrentHashMap<>();
    private final ScheduledExecutorService clock = Executors.newSingleThreadScheduledExecutor();
    private final ThreadPoolExecutor workers =
            new ThreadPoolExecutor(0, SLOTS, KEPT, MILLISECONDS, new SynchronousQueue<>());
    private ObjectNode advertised;
    private int ticks;
    private volatile boolean draining;

    private Agent() throws Exception {
        for (var operation : Json.read(Operations.DESCRIPTION).get("ops").properties())
            schemas.put(operation.getKey(), Json.schema(operation.getValue().get("args")));
        bus.addConnectionListener(new ConnectionListener() {
            @Override
            public void authenticated(XMPPConnection connection, boolean resumed) {
                online();
            }
        });
        tick();
    }

    public static void main(String[] arguments) {
        Logger.getLogger("").setLevel(Level.OFF); // Smack's
        try {
            var agent = new Agent();
            agent.bus.connect().login();
            Runtime.getRuntime().addShutdownHook(new Thread(agent::drain));
        } catch (Exception e) {
            System.err.println("agent: " + e.getMessage());
            System.exit(1);
        }
    }

    // ---- Presence (section 7)

    private synchronized void online() {
        advertised = null;
        greeted.clear();
        System.out.println("online " + bus.getUser());
    }

    /** Advertises what has changed, at most once a second; every fifth time in any case. */
    private synchronized void tick() {
        var event = Json.object().put("type", "advertisement")
                .put("hash", hash)
                .put("epoch", epoch)
                .put("state", draining ? "draining" : "available")
                .put("slots", SLOTS)
                .put("busy", workers.getActiveCount());
        if (bus.isAuthenticated() && (++ticks >= 5 || !event.equals(advertised))) {
            for (var dispatcher : dispatchers) bus.tell(dispatcher, event);
            advertised = event;
            ticks = 0;
        }
        clock.schedule(this::tick, ThreadLocalRandom.current().nextInt(1000, 1100), MILLISECONDS);
    }

    /** Answers a hello; whoever gets presence sees our end. */
    private void greet(Jid peer) {
        if (dispatchers.contains(peer)) advertised = null;
        else if (greeted.size() < PEERS && greeted.add(peer))
            bus.tell(peer, Json.object().put("type", "hello").put("role", "agent").put("epoch", epoch));
    }

    /** Takes nothing new, and leaves when what runs has ended. */
    private void drain() {
        draining = true;
        workers.shutdown();
        try {
            workers.awaitTermination(30, SECONDS);
        } catch (InterruptedException e) {
            System.err.println("agent: interrupted while it drained");
        }
        bus.disconnect();
        Runtime.getRuntime().halt(0); // not 143, as after a signal
    }

    // ---- Stanzas (sections 2 and 14)

    private synchronized void take(Incoming stanza) {
        var isOurs = stanza.text() != null && stanza.from() != null;
        try {
            switch (stanza.kind()) {
                case "iq get" -> bus.refuse(stanza, null);
                case "iq set" -> {
                    if (isOurs) answer(stanza);
                    else bus.refuse(stanza, null);
                }
                case "presence" -> {
                    if (isOurs && mayAsk(stanza.from())) greet(stanza.from()); // with <x> it is a hello
                }
                case "presence unavailable", "presence error" -> greeted.remove(stanza.from());
                default -> {} // messages, and answers to what was not asked
            }
        } catch (Problem problem) {
            bus.refuse(stanza, problem);
        }
    }

    private boolean mayAsk(Jid from) {
        return dispatchers.contains(from) || bus.getXMPPServiceDomain().equals(from.asDomainBareJid());
    }

    private void answer(Incoming iq) throws Problem {
        if (!mayAsk(iq.from())) throw new Problem("not-allowed", "you may not ask");
        if (iq.text().length() > READS) throw new Problem("too-large", "the text is too long");
        var list = Json.read(iq.text());
        Json.check(events, list, "malformed");
        JsonNode op = null;
        for (var event : list)
            switch (event.get("type").textValue()) {
                case "hello" -> greet(iq.from());
                case "describe" -> {
                    if (event.get("hash").textValue().equals(hash))
                        iq.answers().add(Json.object().put("type", "description").put("hash", hash).put("text", Operations.DESCRIPTION));
                }
                case "op" -> {
                    if (op != null) throw new Problem("not-understood", "several ops need 'batch'");
                    op = event;
                }
                default -> {}
            }
        if (op == null) bus.answer(iq);
        else ask(op, iq);
    }

    // ---- Calls (section 6)

    private void ask(JsonNode op, Incoming iq) {
        var caller = dispatchers.contains(iq.from()) ? "" : iq.from().asBareJid().toString();
        var key = new Key(caller, op.get("id").textValue(), op.path("attempt").asInt(1));
        var call = calls.get(key);
        try {
            if (call == null) call = begin(key, op);
            if (call.asked != null) bus.answer(call.asked); // one stanza is open at a time
            call.asked = iq;
            if (call.answer != null) answer(call);
        } catch (Problem problem) {
            iq.answers().add(key.event(problem));
            bus.answer(iq);
        }
    }

    private void answer(Call call) {
        call.asked.answers().add(call.answer);
        bus.answer(call.asked);
        call.asked = null;
    }

    private Call begin(Key key, JsonNode op) throws Problem {
        var path = op.get("op").textValue();
        var left = op.get("left").longValue();
        var args = op.path("args").isObject() ? op.get("args") : Json.object();
        if (left == 0) throw new Problem("expired", "no time is left");
        if (op.path("epoch").asLong(epoch) != epoch) throw new Problem("stale-epoch", "that was another life");
        for (var name : op.path("must"))
            if (!UNDERSTOOD.contains(name.textValue())) throw new Problem("not-understood", "it is not understood: " + name);
        if (!schemas.containsKey(path)) throw new Problem("unknown-op", "there is no such operation");
        Json.check(schemas.get(path), args, "bad-arguments");
        if (draining) throw new Problem("draining", "the agent is about to end");
        if (calls.size() >= CALLS) throw new Problem("busy", "too many calls are remembered");
        var call = new Call();
        try {
            var task = workers.submit(() -> end(call, run(key, path, args)));
            clock.schedule(() -> expire(call, key, task), left, MILLISECONDS);
            clock.schedule(() -> calls.remove(key), left + KEPT, MILLISECONDS);
        } catch (RejectedExecutionException e) {
            throw new Problem("busy", "too many calls run");
        }
        calls.put(key, call);
        return call;
    }

    private static ObjectNode run(Key key, String path, JsonNode args) {
        try {
            var value = Json.write(Operations.ALL.get(path).run(args));
            if (value.getBytes(UTF_8).length > INLINE) throw new Problem("too-large", "the result is too large");
            return key.event("final").putRawValue("value", new RawValue(value));
        } catch (Problem problem) {
            return key.event(problem);
        } catch (InterruptedException | RuntimeException e) {
            System.err.println("agent: " + path + ": " + e);
            return key.event(new Problem("failed", "the operation broke"));
        }
    }

    private void expire(Call call, Key key, Future<?> task) {
        end(call, key.event(new Problem("deadline", "its time is over")));
        task.cancel(true);
    }

    private synchronized void end(Call call, ObjectNode answer) {
        if (call.answer != null) return; // its deadline was faster, or slower
        call.answer = answer;
        answer(call);
        if (answer.path("type").textValue().equals("final")) answer.put("again", true); // to who asks from now on
    }
}
