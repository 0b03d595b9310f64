//! The operations. For an agent of your own, change this file and description.json.

use std::{collections::HashMap, sync::LazyLock, sync::Mutex, time::Duration};

use serde_json::Value;
use tokio::time::sleep;

use crate::events::{done, failed, refused};

/// The capability description, exactly as it is hashed and told.
pub const DESCRIPTION: &str = include_str!("description.json");

/// Run an operation, with arguments that fit the description.
pub async fn run(op: &str, args: &Value) -> Value {
    let text = args["text"].as_str().unwrap_or_default();
    match op {
        "/conform/echo" => done(args["value"].clone()),
        "/conform/repeat" => done(text.repeat(args["times"].as_u64().unwrap_or(1) as usize)),
        "/conform/work" => work(args).await,
        "/conform/fail" => failed("failed", text),
        "/conform/refuse" => refused("refused", text),
        _ => refused("unknown-op", "it is described, and not there"),
    }
}

/// How often each name was worked on.
static BEGUN: LazyLock<Mutex<HashMap<String, u64>>> = LazyLock::new(Mutex::default);

async fn work(args: &Value) -> Value {
    let count = {
        let mut begun = BEGUN.lock().expect("nobody panics with it");
        if begun.len() >= 10_000 {
            return refused("busy", "it can count no more names");
        }
        let count = begun.entry(args["name"].to_string()).or_default();
        *count += 1;
        *count
    };
    sleep(Duration::from_secs_f64(args["seconds"].as_f64().unwrap_or(0.0))).await;
    done(count)
}
