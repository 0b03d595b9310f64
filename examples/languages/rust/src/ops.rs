//! The operations of the conformance profile.

use std::collections::{HashMap, VecDeque};
use std::{pin::Pin, time::Duration};

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::wire::{Object, Problem, problem};

const NAMES: usize = 10_000;

pub type Outcome = Result<Value, Problem>;
pub type Work = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// The capability description: what each operation takes, and what it does.
pub fn description() -> Value {
    let text = |most: u64| json!({"type": "string", "maxLength": most});
    let integer = |least: u64, most: u64| json!({"type": "integer", "minimum": least, "maximum": most});
    let reads = |summary: &str, properties: Value, required: &str, result: Value| {
        let args = json!({"type": "object", "properties": properties, "required": [required]});
        json!({"summary": summary, "args": args, "result": result, "effects": "reads", "safe": true})
    };
    let mut times = integer(1, 1000);
    times["default"] = json!(1);
    let mut work = reads(
        "Wait; give how often this name has been worked on.",
        json!({"name": text(64), "seconds": {"type": "number", "minimum": 0, "maximum": 600, "default": 0}}),
        "name",
        json!({"type": "integer"}),
    );
    (work["effects"], work["safe"], work["timeout"]) = (json!("writes"), json!(false), json!(600));
    json!({"ops": {
        "/conform/echo": reads("Give the same value.", json!({"value": {}}), "value", json!({})),
        "/conform/repeat": reads(
            "Repeat a text.", json!({"text": text(1000), "times": times}), "text", json!({"type": "string"})),
        "/conform/work": work,
        "/conform/fail": reads("Fail with this text.", json!({"text": text(1000)}), "text", json!({})),
        "/conform/refuse": reads("Refuse with this text.", json!({"text": text(1000)}), "text", json!({})),
        "/conform/report": reads(
            "Report progress.", json!({"steps": integer(1, 100)}), "steps", json!({"type": "integer"})),
    }})
}

/// How often each name was worked on, of the last names.
#[derive(Default)]
pub struct Counts(HashMap<String, u64>, VecDeque<String>);

impl Counts {
    fn begin(&mut self, name: &str) -> u64 {
        if !self.0.contains_key(name) {
            if self.1.len() == NAMES {
                self.1.pop_front().map(|oldest| self.0.remove(&oldest));
            }
            self.1.push_back(name.to_owned());
        }
        *self.0.entry(name.to_owned()).and_modify(|count| *count += 1).or_insert(1)
    }
}

/// Start an operation whose arguments fit, or refuse it. What it tells on its way goes to `tell`.
pub fn start(op: &str, args: &Object, counts: &mut Counts, tell: Teller) -> Result<Work, Problem> {
    let text = |name: &str| args.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let number = |name: &str, default| args.get(name).and_then(Value::as_f64).unwrap_or(default);
    Ok(match op {
        "/conform/echo" => ready(Ok(args["value"].clone())),
        "/conform/repeat" => ready(Ok(json!(text("text").repeat(number("times", 1.0) as usize)))),
        "/conform/work" => {
            let (count, pause) = (counts.begin(&text("name")), number("seconds", 0.0));
            Box::pin(async move {
                sleep(Duration::from_secs_f64(pause)).await;
                Ok(json!(count))
            })
        }
        "/conform/fail" => ready(Err(problem("failed", text("text")))),
        "/conform/refuse" => return Err(problem("refused", text("text"))),
        "/conform/report" => {
            let steps = number("steps", 1.0) as u64;
            Box::pin(async move {
                for step in 1..=steps {
                    let progress = json!({"type": "progress", "done": step, "total": steps});
                    let log = json!({"type": "log", "text": format!("step {step}")});
                    tell(vec![progress, log]).await;
                }
                Ok(json!(steps))
            })
        }
        _ => return Err(problem("unknown-op", "the agent does not offer this operation")),
    })
}

pub type Teller = Box<dyn Fn(Vec<Value>) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

fn ready(outcome: Outcome) -> Work {
    Box::pin(std::future::ready(outcome))
}
