//! The operations of the conformance profile.

use std::collections::{HashMap, VecDeque};
use std::{pin::Pin, time::Duration};

use futures::FutureExt;
use serde_json::{Value, json};
use tokio::sync::mpsc::Sender;
use tokio::time::sleep;

use crate::agent::{Key, Said, answer};
use crate::wire::{Problem, problem};

const NAMES: usize = 10_000;

pub type Outcome = Result<Value, Problem>;
pub type Work = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// The capability description, exactly as it is hashed and told.
pub const DESCRIPTION: &str = include_str!("description.json");

/// How often each name was worked on, of the last names.
#[derive(Default)]
pub struct Counts(HashMap<String, u64>, VecDeque<String>);

impl Counts {
    fn begin(&mut self, name: &str) -> u64 {
        if !self.0.contains_key(name) {
            self.1.push_back(name.to_owned());
            if self.1.len() > NAMES {
                self.1.pop_front().map(|oldest| self.0.remove(&oldest));
            }
        }
        *self.0.entry(name.to_owned()).and_modify(|count| *count += 1).or_insert(1)
    }
}

/// How a running operation speaks to the agent.
#[derive(Clone)]
pub struct Teller {
    pub key: Key,
    pub said: Sender<(Key, Said)>,
}

impl Teller {
    pub async fn say(&self, said: Said) {
        // The receiver lives as long as the program.
        self.said.send((self.key.clone(), said)).await.unwrap_or_default();
    }
}

/// Start an operation whose arguments fit, or refuse it.
pub fn start(op: &str, args: &Value, counts: &mut Counts, teller: Teller) -> Result<Work, Problem> {
    let text = args["text"].as_str().unwrap_or_default().to_owned();
    let number = |name: &str, default| args[name].as_f64().unwrap_or(default);
    Ok(match op {
        "/conform/echo" => ready(Ok(args["value"].clone())),
        "/conform/repeat" => ready(Ok(json!(text.repeat(number("times", 1.0) as usize)))),
        "/conform/work" => {
            let count = counts.begin(args["name"].as_str().unwrap_or_default());
            let pause = sleep(Duration::from_secs_f64(number("seconds", 0.0)));
            Box::pin(pause.map(move |()| Ok(json!(count))))
        }
        "/conform/fail" => ready(Err(problem("failed", text))),
        "/conform/refuse" => return Err(problem("refused", text)),
        "/conform/report" => Box::pin(report(teller, number("steps", 1.0) as u64)),
        _ => return Err(problem("unknown-op", "the agent does not offer this operation")),
    })
}

fn ready(outcome: Outcome) -> Work {
    Box::pin(std::future::ready(outcome))
}

async fn report(teller: Teller, steps: u64) -> Outcome {
    for step in 1..=steps {
        let mut progress = answer("progress", &teller.key, "done", json!(step));
        progress["total"] = json!(steps);
        let log = answer("log", &teller.key, "text", json!(format!("step {step}")));
        teller.say(Said::Along(vec![progress, log])).await;
    }
    Ok(json!(steps))
}
