package agent;

import com.fasterxml.jackson.databind.JsonNode;
import java.util.Optional;
import java.util.Set;
import java.util.regex.Pattern;

/** So much of JSON Schema as description.json and events.json use, and the formats of sections 5 and 12. */
final class Schema {
    private static final Pattern ID = Pattern.compile("[!-~]{1,128}");
    private static final Pattern PART = Pattern.compile("(?!\\.{1,2}$)[^\\p{C}\\p{Z}/*?{}\\[\\]<>\"'\\\\]+");
    private static final Set<String> ROLES = Set.of("agent", "caller", "dispatcher");

    /** What is wrong, and with which member. */
    record Misfit(String name, String text) {}

    private Schema() {}

    static Optional<Misfit> misfit(JsonNode schema, JsonNode object) {
        for (var name : schema.path("required"))
            if (!object.has(name.textValue())) return Optional.of(new Misfit(name.textValue(), "is required"));
        for (var property : schema.path("properties").properties())
            if (object.has(property.getKey()) && !fits(property.getValue(), object.get(property.getKey())))
                return Optional.of(new Misfit(property.getKey(), "does not fit"));
        return Optional.empty();
    }

    private static boolean fits(JsonNode schema, JsonNode value) {
        return switch (schema.path("type").asText()) {
            case "object" -> value.isObject();
            case "integer" -> value.isIntegralNumber() && inRange(schema, value);
            case "number" -> value.isNumber() && inRange(schema, value);
            case "string" -> value.isTextual() && isString(schema, value.textValue());
            case "array" -> value.isArray() && isArray(schema, value);
            default -> true;
        };
    }

    private static boolean inRange(JsonNode schema, JsonNode value) {
        return value.doubleValue() >= schema.path("minimum").asDouble(-Double.MAX_VALUE)
                && value.doubleValue() <= schema.path("maximum").asDouble(Double.MAX_VALUE);
    }

    private static boolean isArray(JsonNode schema, JsonNode value) {
        for (var item : value) if (!fits(schema.path("items"), item)) return false;
        return value.size() <= schema.path("maxItems").asInt(Integer.MAX_VALUE);
    }

    private static boolean isString(JsonNode schema, String text) {
        return text.codePointCount(0, text.length()) <= schema.path("maxLength").asInt(Integer.MAX_VALUE)
                && switch (schema.path("format").asText()) {
                    case "id" -> ID.matcher(text).matches();
                    case "path" -> isPath(text);
                    case "role" -> ROLES.contains(text);
                    default -> true;
                };
    }

    private static boolean isPath(String text) {
        if (text.equals("/")) return true;
        if (!text.startsWith("/") || Json.size(Json.MAPPER.getNodeFactory().textNode(text)) > 514) return false;
        var parts = text.substring(1).split("/", -1);
        for (var part : parts) if (!PART.matcher(part).matches()) return false;
        return parts.length <= 32;
    }
}
