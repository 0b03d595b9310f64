//! The text of `<x>`: reading it within the limits of the protocol, checking it, writing it.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

pub type Object = Map<String, Value>;
pub type Problem = Value;

/// The events that this agent takes, as schemas. They know two formats more than descriptions do.
static EVENTS: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("events.json")).expect("a table that is JSON"));
/// The members of `op` that this agent understands, and may find in `must`.
pub const UNDERSTOOD: [&str; 7] = ["id", "attempt", "op", "left", "args", "epoch", "must"];
const LARGEST: u64 = (1 << 53) - 1;
/// Bytes of the arguments or the result of one call, and of what is written in one stanza.
pub const INLINE: usize = 32_768;
const STANZA: usize = 61_440;

pub fn problem(reason: &str, text: impl Into<String>) -> Problem {
    json!({"reason": reason, "text": text.into()})
}

/// The events of this text that are known here, or why none of them can be taken.
pub fn read(text: &str) -> Result<Vec<Object>, String> {
    let items: Vec<Object> = serde_json::from_str(text).map_err(|_| "not a list of events")?;
    if items.len() > 1000 {
        return Err("more than 1000 events".to_owned());
    }
    let mut events = Vec::new();
    for mut event in items {
        let mut room = 20_000_usize.checked_sub(event.len()).ok_or("an event is too large")?;
        event.values().try_for_each(|member| bounded(member, 31, &mut room))?;
        event.retain(|_, member| !member.is_null());
        let kind = event.get("type").and_then(Value::as_str).ok_or("an event has no type")?;
        if let Some(schema) = EVENTS.get(kind) {
            check(schema, &event).map_err(|(member, why)| format!("'{member}' of '{kind}' {why}"))?;
            events.push(event);
        }
    }
    Ok(events)
}

/// I-JSON, at most so many levels, and so many elements and members in all.
fn bounded(value: &Value, levels: usize, room: &mut usize) -> Result<(), &'static str> {
    let inner: Vec<&Value> = match value {
        Value::Array(items) => items.iter().collect(),
        Value::Object(members) => members.values().collect(),
        Value::Number(number) if number.as_str().contains(['.', 'e', 'E']) => {
            return number.as_f64().filter(|it| it.is_finite()).map(|_| ()).ok_or("a number is not finite");
        }
        Value::Number(number) => {
            let size = number.as_str().trim_start_matches('-').parse();
            return if size.is_ok_and(|size: u64| size <= LARGEST) {
                Ok(())
            } else {
                Err("an integer is too large")
            };
        }
        _ => return Ok(()),
    };
    *room = room.checked_sub(inner.len()).ok_or("an event is too large")?;
    let levels = levels.checked_sub(1).ok_or("an event is too deep")?;
    inner.into_iter().try_for_each(|value| bounded(value, levels, room))
}

/// Do these members fit this schema of an object? If not, which one, and why.
pub fn check(schema: &Value, members: &Object) -> Result<(), (String, &'static str)> {
    for (name, value) in members {
        let why = match schema["properties"].get(name) {
            Some(schema) if fits(schema, value) => continue,
            None if schema["additionalProperties"] != false => continue,
            Some(_) => "does not fit",
            None => "is unknown",
        };
        // The name is the peer's: it is told back shortened.
        return Err((name.chars().take(64).collect(), why));
    }
    let mut required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    required
        .find(|name| !members.contains_key(*name))
        .map_or(Ok(()), |name| Err((name.to_owned(), "is missing")))
}

fn fits(schema: &Value, value: &Value) -> bool {
    let kind = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("number") => value.is_number(),
        Some("integer") => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        _ => true,
    };
    let text = value.as_str().unwrap_or_default();
    let format = match schema["format"].as_str() {
        Some("int") => value.as_u64().is_some(),
        Some("id") => (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()),
        Some("path") => text.len() <= 512 && (text == "/" || path(text)),
        _ => true,
    };
    let (size, most) = match value {
        Value::String(text) => (Some(text.chars().count() as f64), "maxLength"),
        Value::Array(items) => (Some(items.len() as f64), "maxItems"),
        _ => (value.as_f64(), "maximum"),
    };
    let least = schema["minimum"].as_f64().unwrap_or(f64::MIN);
    let most = schema[most].as_f64().unwrap_or(f64::MAX);
    let items = value.as_array().into_iter().flatten();
    kind && format
        && size.is_none_or(|size| (least..=most).contains(&size))
        && schema["enum"].as_array().is_none_or(|values| values.contains(value))
        && schema.get("items").is_none_or(|schema| items.into_iter().all(|item| fits(schema, item)))
}

fn path(text: &str) -> bool {
    let odd = |c: char| c.is_whitespace() || c.is_control() || "*?{}[]<>\"'\\".contains(c);
    let part = |part: &str| !["", ".", ".."].contains(&part) && !part.contains(odd);
    text.strip_prefix('/').is_some_and(|parts| parts.split('/').count() <= 32 && parts.split('/').all(part))
}

/// The events as a text that XML can hold; those that would make it too long are left out.
pub fn write(events: &[Value]) -> String {
    let mut text = String::from("[");
    for event in events.iter().map(escape) {
        if text.len() + event.len() + 2 <= STANZA {
            text += if text.len() > 1 { "," } else { "" };
            text += &event;
        }
    }
    text + "]"
}

/// JSON text whose strings hold nothing that XML reserves or forbids.
pub fn escape(value: &Value) -> String {
    let mut text = String::new();
    for letter in value.to_string().chars() {
        match letter {
            '&' | '<' | '>' | '\u{fffe}' | '\u{ffff}' => text += &format!("\\u{:04x}", letter as u32),
            _ => text.push(letter),
        }
    }
    text
}
