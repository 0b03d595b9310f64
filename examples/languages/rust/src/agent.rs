//! The agent: takes stanzas, runs operations, remembers answers. What is to be sent is in `out`.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::{Instant, timeout};
use tokio_xmpp::jid::{BareJid, Jid};
use tokio_xmpp::minidom::Element;
use tokio_xmpp::parsers::stanza_error::{DefinedCondition, ErrorType, StanzaError};
use tokio_xmpp::parsers::{iq::Iq, message::Message, presence::Presence, stanza::Stanza};

use crate::events::{self, failed, refused};
use crate::ops;

const SPINAL: &str = "urn:spinal:1";
const FEATURES: [&str; 1] = ["cancel"];
/// Calls that run, calls that are remembered, stanzas of one call that wait, callers that were greeted.
const SLOTS: usize = 100;
const CALLS: usize = 4000;
const WAITING: usize = 8;
const GREETED: usize = 10_000;
/// An answer is remembered for so long after its deadline.
const LONGER: Duration = Duration::from_secs(10);
/// A tick later than this, dispatchers are told again.
const HEARTBEAT: Duration = Duration::from_millis(4500);

/// What names a call: the bare address of its caller, its id, its attempt.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key(String, String, u64);

struct Call {
    until: Instant,
    state: State,
}

enum State {
    Running(AbortHandle, Vec<Reply>),
    Ended(Value),
}

/// The answer to an IQ, so far.
struct Reply {
    to: Jid,
    id: String,
    events: Vec<Value>,
}

/// Whom a running operation may tell how far it is.
pub struct Caller {
    key: Key,
    to: Jid,
    out: Sender<Stanza>,
}

pub struct Agent {
    pub out: Vec<Stanza>,
    pub running: JoinSet<(Key, Value)>,
    pub told: Receiver<Stanza>,
    pub draining: bool,
    tell: Sender<Stanza>,
    address: BareJid,
    dispatchers: Vec<Jid>,
    epoch: u64,
    description: Value,
    hash: String,
    calls: HashMap<Key, Call>,
    greeted: HashSet<Jid>,
    advertised: (Value, Instant),
}

impl Agent {
    pub fn new(address: BareJid, dispatchers: Vec<Jid>) -> Self {
        let (tell, told) = channel(100);
        Agent {
            out: Vec::new(),
            running: JoinSet::new(),
            told,
            draining: false,
            tell,
            address,
            dispatchers,
            epoch: SystemTime::UNIX_EPOCH
                .elapsed()
                .expect("a clock that is set")
                .as_millis() as u64,
            description: serde_json::from_str(ops::DESCRIPTION)
                .expect("a description that is JSON"),
            hash: format!("{:x}", Sha256::digest(ops::DESCRIPTION)),
            calls: HashMap::new(),
            greeted: HashSet::new(),
            advertised: (Value::Null, Instant::now()),
        }
    }

    /// A new stream: nobody has heard of us on it.
    pub fn online(&mut self) {
        self.out = vec![Presence::available().into()];
        self.greeted.clear();
        self.advertised.0 = Value::Null;
    }

    /// Once a second: forget what is over, and tell the dispatchers what is new.
    pub fn tick(&mut self) {
        let now = Instant::now();
        self.calls.retain(|_, call| call.until > now);
        let news = json!({
            "type": "advertisement", "hash": self.hash, "epoch": self.epoch, "features": FEATURES,
            "state": if self.draining { "draining" } else { "available" },
            "slots": SLOTS, "busy": self.running.len(),
        });
        if news != self.advertised.0 || now > self.advertised.1 + HEARTBEAT {
            let told = self
                .dispatchers
                .iter()
                .map(|dispatcher| presence(dispatcher, &news));
            self.out.extend(told);
            self.advertised = (news, now);
        }
    }

    pub fn take(&mut self, stanza: &Element) {
        // Without `from` it is from the own account (RFC 6120, 8.1.2.1).
        let from = stanza.attr("from").and_then(|from| Jid::new(from).ok());
        let from = from.unwrap_or_else(|| self.address.clone().into());
        let allowed = from.domain() == self.address.domain() || self.dispatchers.contains(&from);
        let id = stanza.attr("id").unwrap_or_default().to_owned();
        let events = stanza
            .get_child("x", SPINAL)
            .map(|x| events::read(&x.text()));
        let (kind, condition, reason, text) = match (
            stanza.name(),
            stanza.attr("type").unwrap_or_default(),
            events,
        ) {
            ("iq", "set", Some(_)) if !allowed => (
                ErrorType::Auth,
                DefinedCondition::Forbidden,
                "not-allowed",
                "that is not allowed".into(),
            ),
            ("iq", "set", Some(Err(why))) => (
                ErrorType::Modify,
                DefinedCondition::BadRequest,
                "malformed",
                why,
            ),
            ("iq", "set", Some(Ok(events))) => return self.request(from, id, &events),
            ("iq", "set" | "get", _) => (
                ErrorType::Cancel,
                DefinedCondition::ServiceUnavailable,
                "",
                "not understood here".into(),
            ),
            ("presence", "", Some(Ok(events))) if allowed => {
                return events
                    .iter()
                    .filter(|event| event["type"] == "hello")
                    .for_each(|_| self.hello(&from));
            }
            ("presence", "unavailable", _) => {
                self.greeted.remove(&from);
                return;
            }
            _ => return,
        };
        let mut error = StanzaError::new(kind, condition, "en", text);
        error.other =
            (!reason.is_empty()).then(|| Element::builder("reason", SPINAL).append(reason).build());
        self.out.push(
            Iq::Error {
                from: None,
                to: Some(from),
                id,
                error,
                payload: None,
            }
            .into(),
        );
    }

    /// Take the events of an IQ. It is answered when its op, if it has one, has ended.
    fn request(&mut self, to: Jid, id: String, events: &[Value]) {
        let mut reply = Reply {
            to,
            id,
            events: Vec::new(),
        };
        let mut asked = None;
        for event in events {
            let key = self.key(&reply.to, event);
            match event["type"].as_str() {
                Some("op") if asked.is_some() => {
                    reply
                        .events
                        .push(key.about(refused("not-understood", "one op in a stanza")));
                }
                Some("op") => match self.op(&key, event, &reply.to) {
                    Some(answer) => reply.events.push(answer),
                    None => asked = Some(key),
                },
                Some("cancel") => reply.events.push(self.cancel(&key, event)),
                Some("describe") if event["hash"] == self.hash.as_str() => reply.events.push(
                    json!({"type": "description", "hash": self.hash, "text": ops::DESCRIPTION}),
                ),
                Some("hello") => self.hello(&reply.to),
                _ => (),
            }
        }
        match asked
            .and_then(|key| self.calls.get_mut(&key))
            .map(|call| &mut call.state)
        {
            Some(State::Running(_, waiting)) => {
                waiting.push(reply);
                if waiting.len() > WAITING {
                    self.out.push(waiting.remove(0).into());
                }
            }
            // It was cancelled in the same stanza.
            Some(State::Ended(answer)) => self.out.push(reply.with(answer)),
            None => self.out.push(reply.into()),
        }
    }

    /// Take an op: its answer, unless it runs.
    fn op(&mut self, key: &Key, event: &Value, from: &Jid) -> Option<Value> {
        match self.calls.get(key).map(|call| &call.state) {
            Some(State::Running(..)) => return None,
            Some(State::Ended(answer)) => {
                let mut answer = answer.clone();
                if answer["type"] == "final" {
                    answer["again"] = json!(true);
                }
                return Some(answer);
            }
            None => (),
        }
        let op = event["op"].as_str().unwrap_or_default();
        let offered = &self.description["ops"][op];
        let understood = |name: &str| {
            !events::TAKEN["op"]["properties"][name].is_null() || FEATURES.contains(&name)
        };
        let must = event["must"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        let strange = must
            .into_iter()
            .find(|name| !understood(name))
            .map(str::to_owned);
        let misfit = events::misfit(&offered["args"], &event["args"]);
        let refusals = [
            (event["left"] == 0, "expired", None),
            (
                event.get("epoch").is_some_and(|epoch| *epoch != self.epoch),
                "stale-epoch",
                None,
            ),
            (strange.is_some(), "not-understood", strange),
            (offered.is_null(), "unknown-op", None),
            (misfit.is_some(), "bad-arguments", misfit),
            (self.draining, "draining", None),
            (
                self.running.len() >= SLOTS || self.calls.len() >= CALLS,
                "busy",
                None,
            ),
        ];
        for (applies, reason, argument) in refusals {
            if applies {
                return Some(key.about(
                    json!({"type": "error", "problem": {"reason": reason, "argument": argument}}),
                ));
            }
        }
        let left = Duration::from_millis(event["left"].as_u64().unwrap_or_default());
        let longest = left.min(Duration::from_secs_f64(
            offered["timeout"].as_f64().unwrap_or(60.0),
        ));
        let caller = Caller {
            key: key.clone(),
            to: from.clone(),
            out: self.tell.clone(),
        };
        let work = timeout(
            longest,
            ops::run(op.to_owned(), event["args"].clone(), caller),
        );
        let named = key.clone();
        let task = self.running.spawn(async move {
            (
                named,
                work.await
                    .unwrap_or_else(|_| failed("deadline", "the deadline passed")),
            )
        });
        let call = Call {
            until: Instant::now() + left + LONGER,
            state: State::Running(task, Vec::new()),
        };
        self.calls.insert(key.clone(), call);
        None
    }

    /// A task has ended; one that was aborted was answered then.
    pub fn ended(&mut self, task: Result<(Key, Value), JoinError>) {
        if let Ok((key, answer)) = task {
            self.end(&key, answer);
        }
    }

    fn end(&mut self, key: &Key, answer: Value) {
        let answer = key.about(answer);
        if let Some(Call { state, .. }) = self.calls.get_mut(key)
            && let State::Running(task, waiting) = state
        {
            task.abort();
            self.out
                .extend(waiting.drain(..).map(|reply| reply.with(&answer)));
            *state = State::Ended(answer);
        }
    }

    fn cancel(&mut self, key: &Key, event: &Value) -> Value {
        let tombstone = key.about(refused("cancelled", "it was cancelled before it arrived"));
        let state = match self.calls.get(key).map(|call| &call.state) {
            Some(State::Running(..)) => "cancelled",
            Some(State::Ended(answer)) if *answer != tombstone => "late",
            _ => "unknown",
        };
        if state == "cancelled" {
            self.end(key, failed("cancelled", "it was cancelled"));
        } else if state == "unknown" && self.calls.len() < CALLS {
            let left = Duration::from_millis(event["left"].as_u64().unwrap_or(60_000));
            let call = Call {
                until: Instant::now() + left + LONGER,
                state: State::Ended(tombstone),
            };
            self.calls.entry(key.clone()).or_insert(call);
        }
        key.about(json!({"type": "cancelled", "state": state}))
    }

    fn hello(&mut self, from: &Jid) {
        if self.dispatchers.contains(from) {
            // The next tick tells it.
            self.advertised.0 = Value::Null;
        } else if self.greeted.len() < GREETED && self.greeted.insert(from.clone()) {
            let hello = json!({"type": "hello", "role": "agent", "epoch": self.epoch, "features": FEATURES});
            self.out.push(presence(from, &hello));
        }
    }

    /// All dispatchers are one caller.
    fn key(&self, from: &Jid, event: &Value) -> Key {
        let dispatcher = self.dispatchers.contains(from);
        let owner = if dispatcher {
            String::new()
        } else {
            from.to_bare().to_string()
        };
        let id = event["id"].as_str().unwrap_or_default().to_owned();
        Key(owner, id, event["attempt"].as_u64().unwrap_or(1))
    }
}

impl Key {
    /// The event, with the members that say which call it is about.
    fn about(&self, mut event: Value) -> Value {
        event["id"] = json!(self.1);
        event["attempt"] = json!(self.2);
        event
    }
}

impl Caller {
    /// Tell progress, or a line of log. It may be lost.
    pub async fn tell(&self, event: Value) {
        let message =
            Message::headline(self.to.clone()).with_payloads(vec![x(&[self.key.about(event)])]);
        // The receiver lives as long as the program.
        self.out.send(message.into()).await.unwrap_or_default();
    }
}

impl Reply {
    fn with(mut self, answer: &Value) -> Stanza {
        self.events.insert(0, answer.clone());
        self.into()
    }
}

impl From<Reply> for Stanza {
    fn from(Reply { to, id, events }: Reply) -> Stanza {
        let payload = (!events.is_empty()).then(|| x(&events));
        Iq::Result {
            from: None,
            to: Some(to),
            id,
            payload,
        }
        .into()
    }
}

fn presence(to: &Jid, event: &Value) -> Stanza {
    let event = x(std::slice::from_ref(event));
    Presence::available()
        .with_to(to.clone())
        .with_payloads(vec![event])
        .into()
}

fn x(events: &[Value]) -> Element {
    Element::builder("x", SPINAL)
        .append(events::write(events))
        .build()
}
