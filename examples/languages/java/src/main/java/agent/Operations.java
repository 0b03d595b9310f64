package agent;

import static java.util.concurrent.CompletableFuture.completedFuture;
import static java.util.concurrent.CompletableFuture.failedFuture;
import static java.util.concurrent.TimeUnit.MILLISECONDS;

import com.fasterxml.jackson.databind.JsonNode;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.concurrent.CompletableFuture;

/** What the agent offers: the operations of docs/protocol.md, section 18. */
final class Operations {
    /** Gives its result when it is there; what fails with a {@link Problem} of the reason "refused" was not started. */
    interface Operation {
        CompletableFuture<?> run(JsonNode args);
    }

    static final Map<String, Operation> ALL = Map.of(
            "/conform/echo", args -> completedFuture(args.get("value")),
            "/conform/repeat",
                    args -> completedFuture(text(args).repeat(args.path("times").asInt(1))),
            "/conform/work", Operations::work,
            "/conform/fail", args -> failedFuture(new Problem("failed", text(args))),
            "/conform/refuse", args -> failedFuture(new Problem("refused", text(args))));

    /** The capability description (section 8): arguments are checked with it, and peers get it as it is. */
    static final String DESCRIPTION =
            """
            {"ops": {
              "/conform/echo": {"effects": "reads", "safe": true, "args": {"type": "object",
                "properties": {"value": {}}, "required": ["value"], "additionalProperties": false}},
              "/conform/repeat": {"effects": "reads", "safe": true, "args": {"type": "object",
                "properties": {"text": {"type": "string", "maxLength": 1000},
                  "times": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 1}},
                "required": ["text"], "additionalProperties": false}},
              "/conform/work": {"effects": "writes", "safe": false, "timeout": 600, "args": {"type": "object",
                "properties": {"name": {"type": "string", "maxLength": 64},
                  "seconds": {"type": "number", "minimum": 0, "maximum": 600, "default": 0}},
                "required": ["name"], "additionalProperties": false}},
              "/conform/fail": {"effects": "reads", "safe": true, "args": {"type": "object",
                "properties": {"text": {"type": "string", "maxLength": 1000}},
                "required": ["text"], "additionalProperties": false}},
              "/conform/refuse": {"effects": "reads", "safe": true, "args": {"type": "object",
                "properties": {"text": {"type": "string", "maxLength": 1000}},
                "required": ["text"], "additionalProperties": false}}}}""";

    private static final Map<String, Integer> BEGUN = new LinkedHashMap<>() {
        @Override
        protected boolean removeEldestEntry(Map.Entry<String, Integer> eldest) {
            return size() > 10_000;
        }
    };

    private static CompletableFuture<Integer> work(JsonNode args) {
        var times = BEGUN.merge(args.get("name").textValue(), 1, Integer::sum);
        var milliseconds = Math.round(1000 * args.path("seconds").doubleValue());
        return new CompletableFuture<Integer>().completeOnTimeout(times, milliseconds, MILLISECONDS);
    }

    private static String text(JsonNode args) {
        return args.get("text").textValue();
    }
}
