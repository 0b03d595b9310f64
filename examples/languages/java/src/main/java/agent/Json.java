package agent;

import static java.nio.charset.StandardCharsets.UTF_8;

import com.fasterxml.jackson.core.*;
import com.fasterxml.jackson.databind.*;
import com.fasterxml.jackson.databind.json.JsonMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import com.networknt.schema.*;
import java.io.InputStream;
import java.io.UncheckedIOException;

/** JSON as docs/protocol.md has it: sections 4, 8.1 and 11. */
final class Json {
    private static final double LARGEST = (1L << 53) - 1;

    private static final JsonMapper MAPPER = JsonMapper.builder(new JsonFactoryBuilder()
                    .streamReadConstraints(
                            StreamReadConstraints.builder().maxNestingDepth(33).build()) // of list, event and values
                    .highestNonEscapedChar(0xFFFD) // XML cannot hold what is above
                    .build())
            .enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS)
            .build();

    static ObjectNode object() {
        return MAPPER.createObjectNode();
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
            if (UTF_8.newEncoder().canEncode(node.toString()) && isExact(node)) return node; // no lone surrogates
        } catch (JsonProcessingException e) {
            throw new Problem("malformed", "it is not JSON of at most 32 levels");
        }
        throw new Problem("malformed", "it is not I-JSON");
    }

    private static boolean isExact(JsonNode node) {
        for (var child : node) if (!isExact(child)) return false;
        return Math.abs(node.doubleValue()) <= (node.isIntegralNumber() ? LARGEST : Double.MAX_VALUE);
    }

    static JsonSchema schema(JsonNode schema) {
        return JsonSchemaFactory.getInstance(SpecVersion.VersionFlag.V202012).getSchema(schema);
    }

    static JsonSchema schema(InputStream schema) {
        return JsonSchemaFactory.getInstance(SpecVersion.VersionFlag.V202012).getSchema(schema);
    }

    /** Refuses what does not fit a schema. */
    static void check(JsonSchema schema, JsonNode node, String reason) throws Problem {
        for (var misfit : schema.validate(node)) throw new Problem(reason, misfit.getMessage());
    }
}
