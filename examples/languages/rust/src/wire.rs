//! The text of `<x>`: reading it within the limits of the protocol, checking it, writing it.

use serde_json::{Map, Number, Value, json};

pub type Object = Map<String, Value>;
pub type Problem = Value;

const LARGEST: u64 = (1 << 53) - 1;
const LONGEST_LEFT: u64 = 31_622_400_000;
pub const INLINE: usize = 32_768;
const STANZA: usize = 61_440;

type Check = fn(&Value) -> bool;
type Rule = (&'static str, bool, Check);

/// The events that this agent takes: their members, whether they are required, what fits.
const RULES: &[(&str, &[Rule])] = &[
    (
        "op",
        &[
            ("id", true, id),
            ("attempt", false, attempt),
            ("op", true, path),
            ("left", true, left),
            ("args", false, Value::is_object),
            ("each", false, |v| list(v, 1000, Value::is_object)),
            ("epoch", false, |v| integer(v, 0, LARGEST)),
            ("key", false, |v| text(v, 256)),
            ("caller", false, |v| text(v, 3071)),
            ("grant", false, |v| text(v, 4096)),
            ("trace", false, |v| text(v, 128)),
            ("window", false, |v| integer(v, 0, 10_000)),
            ("must", false, |v| list(v, 32, |v| text(v, 64))),
            ("want", false, Value::is_object),
        ],
    ),
    (
        "cancel",
        &[
            ("id", true, id),
            ("attempt", false, attempt),
            ("left", false, left),
            ("of", false, |v| list(v, 1000, |v| integer(v, 0, 1000))),
        ],
    ),
    ("ack", &[("id", true, id), ("attempt", false, attempt), ("also", false, |v| list(v, 255, pair))]),
    ("describe", &[("hash", true, |v| text(v, 64))]),
    (
        "hello",
        &[
            ("version", false, |v| text(v, 16)),
            ("role", false, |v| ["agent", "caller", "dispatcher"].iter().any(|role| v == role)),
            ("features", false, |v| list(v, 64, |v| text(v, 64))),
            ("stanza", false, |v| integer(v, 4096, LARGEST)),
            ("dispatchers", false, |v| list(v, 64, |v| text(v, 3071))),
            ("epoch", false, |v| integer(v, 0, LARGEST)),
        ],
    ),
];

/// The members of `op` that this agent understands, and may find in `must`.
pub const UNDERSTOOD: &[&str] = &["id", "attempt", "op", "left", "args", "epoch", "must"];

pub fn problem(reason: &str, text: impl Into<String>) -> Problem {
    json!({"reason": reason, "text": text.into()})
}

/// The events of this text that have a known type, or why none of them can be taken.
pub fn read(text: &str) -> Result<Vec<Object>, String> {
    let value = serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
    let Value::Array(items) = value else {
        return Err("not a list of events".into());
    };
    if items.len() > 1000 {
        return Err("more than 1000 events".into());
    }
    let mut events = Vec::new();
    for item in items {
        bounded(&item, 32, &mut 20_000)?;
        let Value::Object(mut event) = item else {
            return Err("an event is not an object".into());
        };
        event.retain(|_, member| !member.is_null());
        let kind = event.get("type").and_then(Value::as_str).ok_or("an event has no type")?;
        if let Some((_, rules)) = RULES.iter().find(|(name, _)| *name == kind) {
            for (member, required, fits) in *rules {
                match event.get(*member) {
                    None if *required => return Err(format!("'{kind}' lacks '{member}'")),
                    Some(value) if !fits(value) => {
                        return Err(format!("'{member}' of '{kind}' does not fit"));
                    }
                    _ => (),
                }
            }
            events.push(event);
        }
    }
    Ok(events)
}

/// The events as text that XML can hold; those that would make it too long are left out.
pub fn write(events: &[Value]) -> String {
    let mut text = String::from("[");
    for event in events {
        let event = escape(event);
        if text.len() + event.len() + 2 <= STANZA {
            text.push_str(if text.len() > 1 { "," } else { "" });
            text.push_str(&event);
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

/// I-JSON, at most so many levels, and so many elements and members in all.
fn bounded(value: &Value, levels: usize, room: &mut usize) -> Result<(), String> {
    let inner: Vec<&Value> = match value {
        Value::Number(number) if !exact(number) => return Err("a number is too large".into()),
        Value::Array(items) => items.iter().collect(),
        Value::Object(members) => members.values().collect(),
        _ => return Ok(()),
    };
    *room = room.checked_sub(inner.len()).ok_or("more than 20000 elements and members")?;
    let levels = levels.checked_sub(1).ok_or("more than 32 levels")?;
    inner.into_iter().try_for_each(|value| bounded(value, levels, room))
}

fn exact(number: &Number) -> bool {
    match whole(number) {
        Some(digits) => digits.parse().is_ok_and(|size: u64| size <= LARGEST),
        None => number.as_f64().is_some_and(f64::is_finite),
    }
}

/// The digits of a number that was written as an integer.
fn whole(number: &Number) -> Option<&str> {
    let text = number.as_str();
    (!text.contains(['.', 'e', 'E'])).then(|| text.trim_start_matches('-'))
}

pub fn integer(value: &Value, least: u64, most: u64) -> bool {
    value.as_u64().is_some_and(|number| (least..=most).contains(&number))
}

fn id(value: &Value) -> bool {
    value.as_str().is_some_and(|id| (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic()))
}

fn attempt(value: &Value) -> bool {
    integer(value, 1, 1_000_000)
}

fn left(value: &Value) -> bool {
    integer(value, 0, LONGEST_LEFT)
}

fn text(value: &Value, most: usize) -> bool {
    value.as_str().is_some_and(|text| text.chars().count() <= most)
}

fn list(value: &Value, most: usize, fits: Check) -> bool {
    value.as_array().is_some_and(|items| items.len() <= most && items.iter().all(fits))
}

fn pair(value: &Value) -> bool {
    value.as_array().is_some_and(|pair| pair.len() == 2 && id(&pair[0]) && attempt(&pair[1]))
}

fn path(value: &Value) -> bool {
    let Some(path) = value.as_str().filter(|path| path.len() <= 512) else {
        return false;
    };
    let part = |part: &str| {
        let odd = |c: char| c.is_whitespace() || c.is_control() || "*?{}[]<>\"'\\".contains(c);
        !["", ".", ".."].contains(&part) && !part.contains(odd)
    };
    match path.strip_prefix('/') {
        Some(parts) => parts.is_empty() || (parts.split('/').count() <= 32 && parts.split('/').all(part)),
        None => false,
    }
}

/// Do these arguments fit this schema of an object? If not, the problem.
pub fn check(schema: &Value, args: &Object) -> Result<(), Problem> {
    let bad = |name: &str, text: String| json!({"reason": "bad-arguments", "text": text, "argument": name});
    for (name, value) in args {
        // The name is the peer's: it is told back shortened.
        let short: String = name.chars().take(64).collect();
        match schema["properties"].get(name) {
            None => return Err(bad(&short, format!("unknown argument '{short}'"))),
            Some(schema) => fits(schema, value).map_err(|why| bad(&short, format!("'{short}' {why}")))?,
        }
    }
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !args.contains_key(name) {
            return Err(bad(name, format!("'{name}' is missing")));
        }
    }
    Ok(())
}

fn fits(schema: &Value, value: &Value) -> Result<(), String> {
    let number = value.as_f64();
    let fits = match schema["type"].as_str() {
        Some("string") => value.is_string(),
        Some("number") => value.is_number(),
        Some("integer") => number.is_some_and(|number| number.fract() == 0.0),
        _ => true,
    };
    if !fits {
        return Err(format!("must be of type {}", schema["type"]));
    }
    for (keyword, size) in [
        ("maxLength", value.as_str().map(|text| text.chars().count() as f64)),
        ("maximum", number),
        ("minimum", number.map(|number| -number)),
    ] {
        let sign = if keyword == "minimum" { -1.0 } else { 1.0 };
        if let (Some(bound), Some(size)) = (schema[keyword].as_f64(), size)
            && size > bound * sign
        {
            return Err(format!("goes beyond its {keyword}, {bound}"));
        }
    }
    Ok(())
}
