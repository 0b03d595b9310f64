package agent;

import static java.nio.charset.StandardCharsets.UTF_8;

import com.fasterxml.jackson.core.JsonFactoryBuilder;
import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.core.SerializableString;
import com.fasterxml.jackson.core.StreamReadConstraints;
import com.fasterxml.jackson.core.io.CharacterEscapes;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.json.JsonMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.util.ArrayList;
import java.util.List;

/** JSON as sections 2, 4 and 11 want it. */
final class Json {
    private static final int READS = 1048576, EVENTS = 1000, LEVELS = 32, ELEMENTS = 20000;
    private static final long SAFE = (1L << 53) - 1;

    /** A stanza of which no event is taken; the message says why. */
    static final class Unreadable extends Exception {
        private static final long serialVersionUID = 1;
        final boolean large;

        Unreadable(String text, boolean large) {
            super(text);
            this.large = large;
        }
    }

    private static final class XmlEscapes extends CharacterEscapes {
        private static final long serialVersionUID = 1;
        private final int[] escapes = standardAsciiEscapesForJSON();

        XmlEscapes() {
            for (var c : "&<>".toCharArray()) escapes[c] = ESCAPE_STANDARD;
        }

        @Override
        public int[] getEscapeCodesForAscii() {
            return escapes;
        }

        @Override
        public SerializableString getEscapeSequence(int c) {
            return null;
        }
    }

    static final JsonMapper MAPPER = JsonMapper.builder(new JsonFactoryBuilder()
                    .streamReadConstraints(StreamReadConstraints.builder()
                            .maxNestingDepth(1 + LEVELS)
                            .build())
                    .characterEscapes(new XmlEscapes())
                    .highestNonEscapedChar(0xFFFD)
                    .build())
            .enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS)
            .build();

    private static final JsonNode SCHEMAS = tree(resource("/events.json"));

    private Json() {}

    static String resource(String name) {
        try (var stream = Json.class.getResourceAsStream(name)) {
            return new String(stream.readAllBytes(), UTF_8);
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }

    static JsonNode tree(String text) {
        try {
            return MAPPER.readTree(text);
        } catch (JsonProcessingException e) {
            throw new IllegalArgumentException(e);
        }
    }

    /** Text without what XML would have to escape, or cannot hold. */
    static String text(JsonNode node) {
        try {
            return MAPPER.writeValueAsString(node);
        } catch (JsonProcessingException e) {
            throw new IllegalStateException(e);
        }
    }

    static int size(JsonNode node) {
        return text(node).getBytes(UTF_8).length;
    }

    static ObjectNode object(String name, String value) {
        return MAPPER.createObjectNode().put(name, value);
    }

    /** The events of a stanza, without members that are null. */
    static List<ObjectNode> events(String text) throws Unreadable {
        if (text.length() > READS || text.getBytes(UTF_8).length > READS)
            throw new Unreadable("the text is too long", true);
        JsonNode read;
        try {
            read = MAPPER.readTree(text);
        } catch (JsonProcessingException e) {
            throw new Unreadable("the text is not JSON within the limits", false);
        }
        if (!(read instanceof ArrayNode list)) throw new Unreadable("the text is not a list of events", false);
        if (list.size() > EVENTS) throw new Unreadable("there are too many events", true);
        var events = new ArrayList<ObjectNode>();
        for (var item : list) {
            if (!(item instanceof ObjectNode event)) throw new Unreadable("an event is an object", false);
            if (elements(event) > ELEMENTS) throw new Unreadable("an event has too many members", false);
            event.properties().removeIf(member -> member.getValue().isNull());
            if (!event.path("type").isTextual()) throw new Unreadable("an event has a 'type'", false);
            var type = event.get("type").textValue();
            var misfit = Schema.misfit(SCHEMAS.path(type), event);
            if (misfit.isPresent())
                throw new Unreadable(
                        "'%s' of '%s' %s"
                                .formatted(
                                        misfit.get().name(), type, misfit.get().text()),
                        false);
            events.add(event);
        }
        return events;
    }

    /** How many members and elements there are, in all of them; each is I-JSON. */
    private static int elements(JsonNode node) throws Unreadable {
        if (node.isIntegralNumber()
                        && !(node.canConvertToLong() && node.longValue() >= -SAFE && node.longValue() <= SAFE)
                || node.isFloatingPointNumber() && !Double.isFinite(node.doubleValue()))
            throw new Unreadable("a number is too large", false);
        if (node.isTextual()) checkSurrogates(node.textValue());
        var count = node.size();
        for (var names = node.fieldNames(); names.hasNext(); ) checkSurrogates(names.next());
        for (var item : node) count += elements(item);
        return count;
    }

    private static void checkSurrogates(String text) throws Unreadable {
        if (text.codePoints().anyMatch(c -> c >= 0xD800 && c <= 0xDFFF))
            throw new Unreadable("a string holds a lone surrogate", false);
    }
}
