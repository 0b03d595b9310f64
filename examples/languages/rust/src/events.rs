//! Events: the JSON text in `<x>`, read within the limits of the protocol, and written.

use serde::Deserialize;
use serde_json::{Map, Value, from_str, from_value, json};

const LEVELS: usize = 32;
const INLINE: usize = 32_768;
const STANZA: usize = 61_440;

/// The events that this agent takes. A member that is `null` counts as absent.
#[derive(Deserialize, PartialEq)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Event {
    Op(Op),
    Describe {
        hash: String,
    },
    Hello,
    #[serde(other)]
    Other,
}

#[derive(Deserialize, PartialEq)]
pub struct Op {
    pub id: String,
    pub attempt: Option<u64>,
    pub op: String,
    pub left: u64,
    pub args: Option<Map<String, Value>>,
    pub epoch: Option<u64>,
    pub must: Option<Vec<String>>,
}

impl Event {
    fn within_bounds(&self) -> bool {
        let Event::Op(op) = self else { return true };
        (1..=128).contains(&op.id.len())
            && op.id.bytes().all(|byte| byte.is_ascii_graphic())
            && (1..=1_000_000).contains(&op.attempt.unwrap_or(1))
            && op.left <= 31_622_400_000
            && op.op.starts_with('/')
            && (op.op == "/" || !op.op[1..].split('/').any(str::is_empty))
    }
}

/// The events in this text, or none if one of them cannot be taken.
pub fn read(text: &str) -> Option<Vec<Event>> {
    let events: Value = from_str::<Vec<Map<String, Value>>>(text).ok()?.into();
    let events: Vec<Event> = from_value(plain(&events, LEVELS + 1).then_some(events)?).ok()?;
    events.iter().all(Event::within_bounds).then_some(events)
}

/// Is it I-JSON of at most so many levels? serde_json refuses lone surrogates, and 128 levels.
fn plain(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(items) => levels > 0 && items.iter().all(|item| plain(item, levels - 1)),
        Value::Object(all) => levels > 0 && all.values().all(|item| plain(item, levels - 1)),
        Value::Number(it) if it.as_str().contains(['.', 'e', 'E']) => it.as_f64().is_some(),
        Value::Number(it) => it.as_i64().is_some_and(|it| it.unsigned_abs() < 1 << 53),
        _ => true,
    }
}

/// The first argument that does not fit this schema.
pub fn misfit(schema: &Value, args: &Value) -> Option<String> {
    let mut required = schema["required"].as_array().into_iter().flatten().flat_map(Value::as_str);
    let missing = required.find(|name| args.get(name).is_none());
    let mut given = args.as_object().into_iter().flatten();
    let wrong = given.find(|(name, value)| !fits(&schema["properties"][name], value));
    // It may be the peer's own: it is told back shortened.
    Some(missing.or(wrong.map(|(name, _)| name.as_str()))?.chars().take(64).collect())
}

/// Of the keywords of a schema only those that the description here uses.
fn fits(schema: &Value, value: &Value) -> bool {
    let size = match schema["type"].as_str() {
        Some("string") => value.as_str().map(|text| text.chars().count() as f64),
        Some("integer") => value.as_i64().map(|number| number as f64),
        Some("number") => value.as_f64(),
        _ => return schema.is_object(),
    };
    let least = schema["minimum"].as_f64().unwrap_or(f64::MIN);
    let most = schema["maximum"].as_f64().or(schema["maxLength"].as_f64()).unwrap_or(f64::MAX);
    size.is_some_and(|size| (least..=most).contains(&size))
}

pub fn done(value: impl Into<Value>) -> Value {
    let value = value.into();
    if escaped(&value).len() > INLINE {
        return failed("too-large", "the result is too large");
    }
    json!({"type": "final", "value": value})
}

/// The operation was started, and failed.
pub fn failed(reason: &str, text: &str) -> Value {
    json!({"type": "final", "problem": {"reason": reason, "text": text}})
}

/// The operation was not started.
pub fn refused(reason: &str, text: &str) -> Value {
    json!({"type": "error", "problem": {"reason": reason, "text": text}})
}

/// The text of these events, without those at the end that would make it too long.
pub fn write(events: &[Value]) -> String {
    let mut room = STANZA;
    let texts = events.iter().map(escaped).map_while(|text| {
        room = room.checked_sub(text.len() + 2)?;
        Some(text)
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
