package agent;

import static java.nio.charset.StandardCharsets.UTF_8;
import static java.util.concurrent.TimeUnit.MILLISECONDS;

import agent.Bus.Incoming;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import com.fasterxml.jackson.databind.util.RawValue;
import com.networknt.schema.*;
import java.security.MessageDigest;
import java.util.*;
import java.util.concurrent.*;
import java.util.logging.*;
import org.jxmpp.jid.Jid;
import org.jxmpp.jid.util.JidUtil;

/** An agent on a Spinal bus, as docs/protocol.md has it; the sections named here are of that page. */
final class Agent {
    private static final int CALLS = 2000, PEERS = 10_000, READS = 1 << 20, INLINE = 32_768;
    private static final long KEPT = 10_000; // milliseconds
    private static final Set<String> STARTED = Set.of("failed", "deadline", "too-large");
    private static final Set<String> UNDERSTOOD = Set.of("id", "attempt", "op", "left", "args", "epoch", "must");
    private static final JsonSchemaFactory SCHEMAS = JsonSchemaFactory.getInstance(SpecVersion.VersionFlag.V202012);

    /** Names a call of an account; all dispatchers are one, null. */
    private record Key(Jid caller, String id, int attempt) {
        ObjectNode event(String type) {
            var event = Json.object(type).put("id", id);
            return attempt == 1 ? event : event.put("attempt", attempt);
        }

        ObjectNode event(Problem problem) {
            var event = event(STARTED.contains(problem.reason) ? "final" : "error");
            event.putObject("problem").put("reason", problem.reason).put("text", problem.getMessage());
            return event;
        }

        ObjectNode end(Object value, Throwable failure) {
            if (failure instanceof Problem problem) return event(problem);
            if (failure instanceof TimeoutException) return event(new Problem("deadline", "its time is over"));
            if (failure != null) return event(new Problem("failed", "the operation broke"));
            var text = Json.write(value);
            if (text.getBytes(UTF_8).length > INLINE) return event(new Problem("too-large", "the result is too large"));
            return event("final").putRawValue("value", new RawValue(text));
        }
    }

    private final Bus bus = new Bus(this::take, this::online);
    private final Set<Jid> dispatchers =
            JidUtil.jidSetFrom(Bus.variable("SPINAL_DISPATCHER").split(" "));
    private final JsonSchema events = SCHEMAS.getSchema(Agent.class.getResourceAsStream("/events.json"));
    private final Map<String, JsonSchema> schemas = new HashMap<>();
    private final long epoch = System.currentTimeMillis();
    private final byte[] sha256 = MessageDigest.getInstance("SHA-256").digest(Operations.DESCRIPTION.getBytes(UTF_8));
    private final ObjectNode description = Json.object("description")
            .put("hash", HexFormat.of().formatHex(sha256))
            .put("text", Operations.DESCRIPTION);
    private final ObjectNode hello = Json.object("hello").put("role", "agent").put("epoch", epoch);
    private final Map<Key, CompletableFuture<ObjectNode>> calls = new ConcurrentHashMap<>(); // with their answers
    private final Map<Key, Incoming> asked = new ConcurrentHashMap<>(); // the last stanza of each that runs
    private final Set<Jid> greeted = new HashSet<>();
    private ObjectNode advertised;
    private int ticks;
    private volatile boolean draining;

    private Agent() throws Exception {
        for (var operation : Json.read(Operations.DESCRIPTION).get("ops").properties())
            schemas.put(
                    operation.getKey(), SCHEMAS.getSchema(operation.getValue().at("/args")));
    }

    public static void main(String[] arguments) {
        Logger.getLogger("").setLevel(Level.OFF); // that of Smack
        try {
            var agent = new Agent();
            agent.bus.connect().login();
            Runtime.getRuntime().addShutdownHook(new Thread(agent::drain));
            for (; ; Thread.sleep(ThreadLocalRandom.current().nextInt(1000, 1100))) agent.advertise();
        } catch (Exception e) {
            System.err.println("agent: " + e);
            System.exit(1);
        }
    }

    // ---- Presence (section 7)

    private synchronized void online() {
        System.out.println("online " + bus.getUser());
        advertised = null;
        greeted.clear();
    }

    /** Advertises what has changed; each fifth time, which is each fifth second, in any case. */
    private synchronized void advertise() {
        ObjectNode event = Json.object("advertisement")
                .put("epoch", epoch)
                .put("state", draining ? "draining" : "available")
                .put("slots", CALLS)
                .put("busy", asked.size())
                .set("hash", description.get("hash"));
        if (++ticks >= 5 || !event.equals(advertised)) {
            for (var dispatcher : dispatchers) bus.tell(dispatcher, event);
            advertised = event;
            ticks = 0;
        }
    }

    /** Answers a hello, so that the peer sees when we are gone. */
    private void greet(Jid peer) {
        if (dispatchers.contains(peer)) advertised = null;
        else if (greeted.size() < PEERS && greeted.add(peer)) bus.tell(peer, hello);
    }

    /** Takes nothing new, and ends when what runs has ended. */
    private void drain() {
        draining = true;
        try {
            for (var n = 0; n < 30 && !asked.isEmpty(); n++) Thread.sleep(1000);
        } catch (InterruptedException e) {
            System.err.println("agent: interrupted while it drained");
        }
        bus.disconnect();
        Runtime.getRuntime().halt(0); // SIGTERM would give 143
    }

    // ---- Stanzas (sections 2, 9.2 and 14)

    private synchronized void take(Incoming stanza) {
        var isOurs = stanza.text() != null;
        try {
            switch (stanza.kind()) {
                case "iq get", "iq set" -> {
                    if (!isOurs) throw new Problem("unreachable", "that is not for an agent");
                    answer(stanza);
                }
                case "presence available" -> { // with <x> it is a hello
                    if (isOurs && mayAsk(stanza.from())) greet(stanza.from());
                }
                case "presence unavailable", "presence error" -> greeted.remove(stanza.from());
                default -> {} // needs no answer
            }
        } catch (Problem problem) {
            bus.refuse(stanza, problem);
        }
    }

    private boolean mayAsk(Jid from) {
        return dispatchers.contains(from) || bus.getXMPPServiceDomain().equals(from.asDomainBareJid());
    }

    private static void check(JsonSchema schema, JsonNode node, String reason) throws Problem {
        for (var misfit : schema.validate(node)) throw new Problem(reason, misfit.getMessage());
    }

    private void answer(Incoming iq) throws Problem {
        if (!mayAsk(iq.from())) throw new Problem("not-allowed", "you may not ask");
        if (iq.text().length() > READS) throw new Problem("too-large", "the text is too long");
        var list = Json.read(iq.text());
        check(events, list, "malformed");
        JsonNode op = null;
        for (var event : list)
            switch (event.get("type").textValue()) {
                case "hello" -> greet(iq.from());
                case "describe" -> {
                    if (event.get("hash").equals(description.get("hash")))
                        iq.answer().add(description);
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
        var caller = dispatchers.contains(iq.from()) ? null : iq.from().asBareJid();
        var key = new Key(caller, op.get("id").textValue(), op.path("attempt").asInt(1));
        try {
            if (!calls.containsKey(key)) calls.put(key, begin(key, op));
            var before = asked.put(key, iq);
            if (before != null) bus.answer(before); // one stanza is open at a time
            if (calls.get(key).isDone()) reply(key);
        } catch (Problem problem) {
            iq.answer().add(key.event(problem));
            bus.answer(iq);
        }
    }

    private CompletableFuture<ObjectNode> begin(Key key, JsonNode op) throws Problem {
        var path = op.get("op").textValue();
        var left = op.get("left").longValue();
        var args = op.path("args").isObject() ? op.get("args") : Json.read("{}");
        if (left == 0) throw new Problem("expired", "no time is left");
        if (op.path("epoch").asLong(epoch) != epoch) throw new Problem("stale-epoch", "that was another life");
        for (var name : op.path("must"))
            if (!UNDERSTOOD.contains(name.textValue())) throw new Problem("not-understood", "'must' asks too much");
        if (!schemas.containsKey(path)) throw new Problem("unknown-op", "there is no such operation");
        check(schemas.get(path), args, "bad-arguments");
        if (draining) throw new Problem("draining", "the agent is about to end");
        if (calls.size() >= CALLS) throw new Problem("busy", "too many calls are remembered");
        var answer =
                Operations.ALL.get(path).run(args).orTimeout(left, MILLISECONDS).handle(key::end);
        answer.thenRun(() -> reply(key));
        CompletableFuture.delayedExecutor(left + KEPT, MILLISECONDS).execute(() -> calls.remove(key));
        return answer;
    }

    /** Answers the stanza that asked last, if none has been answered since the call ended. */
    private synchronized void reply(Key key) {
        var iq = asked.get(key);
        if (iq == null) return;
        var answer = calls.get(key).join();
        iq.answer().add(answer);
        bus.answer(iq);
        asked.remove(key);
        if (answer.path("type").textValue().equals("final")) answer.put("again", true); // for who asks later
    }
}
