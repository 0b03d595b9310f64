package agent;

import com.fasterxml.jackson.databind.JsonNode;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.Map;

/** What the agent offers: the operations of docs/protocol.md, section 18. */
final class Operations {
    /** Runs in a thread of its own, which is interrupted when the call's time is over. */
    interface Operation {
        Object run(JsonNode args) throws Problem, InterruptedException;
    }

    static final Map<String, Operation> ALL = Map.of(
            "/conform/echo", args -> args.get("value"),
            "/conform/repeat", args -> text(args).repeat(args.path("times").asInt(1)),
            "/conform/work", Operations::work,
            "/conform/fail", args -> {
                throw new Problem("failed", text(args));
            },
            "/conform/refuse", args -> {
                throw new Problem("refused", text(args));
            });

    /** The capability description (section 8): arguments are checked with it, and peers are sent it as it is. */
    static final String DESCRIPTION = """
            {"ops": {
              "/conform/echo": {
                "effects": "reads", "safe": true,
                "args": {"type": "object", "required": ["value"], "additionalProperties": false,
                  "properties": {"value": {}}}},
              "/conform/repeat": {
                "effects": "reads", "safe": true,
                "args": {"type": "object", "required": ["text"], "additionalProperties": false,
                  "properties": {
                    "text": {"type": "string", "maxLength": 1000},
                    "times": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 1}}}},
              "/conform/work": {
                "effects": "writes", "safe": false, "timeout": 600,
                "args": {"type": "object", "required": ["name"], "additionalProperties": false,
                  "properties": {
                    "name": {"type": "string", "maxLength": 64},
                    "seconds": {"type": "number", "minimum": 0, "maximum": 600, "default": 0}}}},
              "/conform/fail": {
                "effects": "reads", "safe": true,
                "args": {"type": "object", "required": ["text"], "additionalProperties": false,
                  "properties": {"text": {"type": "string", "maxLength": 1000}}}},
              "/conform/refuse": {
                "effects": "reads", "safe": true,
                "args": {"type": "object", "required": ["text"], "additionalProperties": false,
                  "properties": {"text": {"type": "string", "maxLength": 1000}}}}}}
            """;

    private static final Map<String, Integer> BEGUN = Collections.synchronizedMap(new LinkedHashMap<>() {
        @Override
        protected boolean removeEldestEntry(Map.Entry<String, Integer> eldest) {
            return size() > 10_000;
        }
    });

    private static int work(JsonNode args) throws InterruptedException {
        var times = BEGUN.merge(args.get("name").textValue(), 1, Integer::sum);
        Thread.sleep(Math.round(1000 * args.path("seconds").doubleValue()));
        return times;
    }

    private static String text(JsonNode args) {
        return args.get("text").textValue();
    }
}
