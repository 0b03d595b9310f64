package agent;

import static java.nio.charset.StandardCharsets.UTF_8;

import com.fasterxml.jackson.core.*;
import com.fasterxml.jackson.databind.*;
import com.fasterxml.jackson.databind.json.JsonMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.UncheckedIOException;

/** JSON as section 4 wants it, so that nothing is rounded or replaced in silence. */
final class Json {
    private static final double LARGEST_INTEGER = (1L << 53) - 1;
    private static final StreamReadConstraints LEVELS =
            StreamReadConstraints.builder().maxNestingDepth(33).build(); // the list's own, and 32 of an event
    private static final JsonMapper MAPPER = JsonMapper.builder(new JsonFactoryBuilder()
                    .streamReadConstraints(LEVELS)
                    .highestNonEscapedChar(0xFFFD) // XML cannot hold the others
                    .build())
            .enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS)
            .build();

    static ObjectNode object(String type) {
        return MAPPER.createObjectNode().put("type", type);
    }

    static String write(Object value) {
        try {
            return MAPPER.writeValueAsString(value);
        } catch (JsonProcessingException e) {
            throw new UncheckedIOException(e);
        }
    }

    static JsonNode read(String text) throws Problem {
        try {
            var node = MAPPER.readTree(text);
            var hasLoneSurrogate = !UTF_8.newEncoder().canEncode(node.toString());
            if (!hasLoneSurrogate && isExact(node)) return node;
        } catch (JsonProcessingException e) {
            throw new Problem("malformed", "it is not JSON of at most 32 levels");
        }
        throw new Problem("malformed", "it is not I-JSON");
    }

    private static boolean isExact(JsonNode node) {
        for (var child : node) if (!isExact(child)) return false;
        return Math.abs(node.doubleValue()) <= (node.isIntegralNumber() ? LARGEST_INTEGER : Double.MAX_VALUE);
    }
}
