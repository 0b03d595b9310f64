//! Events: the JSON text in `<x>`, read within the limits of the protocol, checked, and written.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

const LEVELS: usize = 32;
const READ: usize = 1_048_576;
const WRITTEN: usize = 61_440;
const INLINE: usize = 32_768;

/// The events that this agent takes, in JSON Schema; `id` is a format of their own.
pub static TAKEN: LazyLock<Value> = LazyLock::new(|| {
    let id = json!({"type": "string", "format": "id", "maxLength": 128});
    let attempt = json!({"type": "integer", "minimum": 1, "maximum": 1_000_000});
    let left = json!({"type": "integer", "minimum": 0, "maximum": 31_622_400_000_u64});
    let must =
        json!({"type": "array", "maxItems": 32, "items": {"type": "string", "maxLength": 64}});
    json!({
        "op": {"required": ["id", "op", "left"], "properties": {
            "id": id, "attempt": attempt, "op": {"type": "string", "format": "path", "maxLength": 512},
            "left": left, "args": {"type": "object"}, "epoch": {"type": "integer", "minimum": 0}, "must": must}},
        "cancel": {"required": ["id"], "properties": {"id": id, "attempt": attempt, "left": left}},
        "describe": {"required": ["hash"], "properties": {"hash": {"type": "string", "maxLength": 64}}},
        "hello": {},
    })
});

/// The events in this text that are taken here, or why none of them can be.
pub fn read(text: &str) -> Result<Vec<Value>, String> {
    if text.len() > READ {
        return Err("the text is too long".to_owned());
    }
    let all: Vec<Map<String, Value>> =
        serde_json::from_str(text).map_err(|_| "not a list of events")?;
    let mut taken = Vec::new();
    for mut event in all {
        if !event.values().all(|value| plain(value, LEVELS - 1)) {
            return Err("a number is too large, or a value too deep".to_owned());
        }
        event.retain(|_, value| !value.is_null());
        let event = Value::Object(event);
        let schema = &TAKEN[event["type"].as_str().ok_or("an event has no type")?];
        if let Some(name) = misfit(schema, &event) {
            return Err(format!("'{name}' does not fit"));
        }
        if !schema.is_null() {
            taken.push(event);
        }
    }
    Ok(taken)
}

/// Is it I-JSON of at most so many levels? serde_json itself refuses lone surrogates, and 128 levels.
fn plain(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(items) => levels > 0 && items.iter().all(|item| plain(item, levels - 1)),
        Value::Object(members) => {
            levels > 0 && members.values().all(|item| plain(item, levels - 1))
        }
        Value::Number(number) if number.as_str().contains(['.', 'e', 'E']) => {
            number.as_f64().is_some()
        }
        Value::Number(number) => number
            .as_i64()
            .is_some_and(|number| number.unsigned_abs() < 1 << 53),
        _ => true,
    }
}

/// The first member that does not fit this schema of an object.
pub fn misfit(schema: &Value, object: &Value) -> Option<String> {
    let required = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str);
    let missing = required.into_iter().find(|name| object.get(name).is_none());
    let wrong = object
        .as_object()
        .into_iter()
        .flatten()
        .find(|(name, value)| {
            let closed = schema["additionalProperties"] == false;
            schema["properties"]
                .get(name)
                .map_or(closed, |schema| !fits(schema, value))
        });
    // The name may be the peer's: it is told back shortened.
    Some(
        missing
            .or(wrong.map(|(name, _)| name.as_str()))?
            .chars()
            .take(64)
            .collect(),
    )
}

fn fits(schema: &Value, value: &Value) -> bool {
    let bound = |name, default| schema[name].as_f64().unwrap_or(default);
    let number =
        |value: f64| (bound("minimum", f64::MIN)..=bound("maximum", f64::MAX)).contains(&value);
    match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.as_array().is_some_and(|items| {
            items.len() as f64 <= bound("maxItems", f64::MAX)
                && items.iter().all(|item| fits(&schema["items"], item))
        }),
        Some("string") => value.as_str().is_some_and(|text| {
            text.chars().count() as f64 <= bound("maxLength", f64::MAX)
                && match schema["format"].as_str() {
                    Some("id") => {
                        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
                    }
                    Some("path") => {
                        text == "/"
                            || text.starts_with('/') && !text[1..].split('/').any(str::is_empty)
                    }
                    _ => true,
                }
        }),
        Some("integer") => value.is_i64() && value.as_f64().is_some_and(number),
        Some("number") => value.as_f64().is_some_and(number),
        _ => true,
    }
}

pub fn done(value: impl Into<Value>) -> Value {
    let value = value.into();
    if escaped(&value).len() > INLINE {
        return failed("too-large", "the result is too large");
    }
    json!({"type": "final", "value": value})
}

/// An operation that was started, and failed.
pub fn failed(reason: &str, text: &str) -> Value {
    json!({"type": "final", "problem": {"reason": reason, "text": text}})
}

/// An operation that was not started.
pub fn refused(reason: &str, text: &str) -> Value {
    json!({"type": "error", "problem": {"reason": reason, "text": text}})
}

/// The text of these events, without those at the end that would make it too long.
pub fn write(events: &[Value]) -> String {
    let mut size = 0;
    let texts = events.iter().map(escaped).take_while(|text| {
        size += text.len() + 2;
        size <= WRITTEN
    });
    format!("[{}]", texts.collect::<Vec<_>>().join(","))
}

/// JSON text whose strings hold nothing that XML reserves or forbids.
fn escaped(value: &Value) -> String {
    let letters = ['&', '<', '>', '\u{fffe}', '\u{ffff}'];
    letters.into_iter().fold(value.to_string(), |text, letter| {
        text.replace(letter, &format!("\\u{:04x}", letter as u32))
    })
}
