//! The agent: takes stanzas, runs operations, remembers answers. What it says goes to a channel.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use futures::future::{BoxFuture, FutureExt, Shared, join_all, ready};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{Instant, timeout};
use tokio_xmpp::jid::Jid;
use tokio_xmpp::minidom::Element;
use tokio_xmpp::parsers::stanza_error::DefinedCondition::{BadRequest, ServiceUnavailable};
use tokio_xmpp::parsers::stanza_error::{ErrorType::*, StanzaError};
use tokio_xmpp::parsers::{iq::Iq, presence::Presence, stanza};

use crate::events::{self, Event, Op, failed};
use crate::ops::{self, DESCRIPTION};
use crate::stream::{SPINAL, Stanza};

/// Calls that run, calls that are remembered, stanzas that wait for one call, callers greeted.
const SLOTS: usize = 100;
const CALLS: usize = 2000;
const WAITING: usize = 200;
const GREETED: usize = 10_000;
/// An answer is remembered for so long after its deadline.
const LONGER: Duration = Duration::from_secs(10);
/// The first tick after this is the heartbeat.
const HEARTBEAT: Duration = Duration::from_millis(4500);
/// What may stand in `must`.
const UNDERSTOOD: [&str; 7] = ["id", "attempt", "op", "left", "args", "epoch", "must"];

/// Who asked, under which id, in which attempt.
type Key = (String, String, u64);
/// What a call ends with, for each stanza that waits for it.
type Answer = Shared<BoxFuture<'static, Value>>;

pub struct Agent {
    pub draining: bool,
    said: UnboundedSender<stanza::Stanza>,
    domain: String,
    dispatchers: Vec<Jid>,
    epoch: u64,
    description: Value,
    hash: String,
    calls: HashMap<Key, (Instant, Answer)>,
    greeted: HashSet<Jid>,
    advertised: (Value, Instant),
}

impl Agent {
    pub fn new(domain: &str, dispatchers: Vec<Jid>, said: UnboundedSender<stanza::Stanza>) -> Self {
        let now = SystemTime::UNIX_EPOCH.elapsed().expect("a clock that is set");
        Agent {
            draining: false,
            said,
            domain: domain.to_owned(),
            dispatchers,
            epoch: now.as_millis() as u64,
            description: serde_json::from_str(DESCRIPTION).expect("a description in JSON"),
            hash: format!("{:x}", Sha256::digest(DESCRIPTION)),
            calls: HashMap::new(),
            greeted: HashSet::new(),
            advertised: (Value::Null, Instant::now()),
        }
    }

    /// A new stream: nobody has heard of us on it.
    pub fn online(&mut self) {
        self.greeted.clear();
        self.advertised.0 = Value::Null;
    }

    pub fn busy(&self) -> usize {
        self.calls.values().filter(|(_, answer)| answer.peek().is_none()).count()
    }

    /// Once a second: forget what is over, and tell the dispatchers what is new.
    pub fn tick(&mut self) {
        let now = Instant::now();
        self.calls.retain(|_, (until, _)| *until > now);
        let state = if self.draining { "draining" } else { "available" };
        let news = json!({"type": "advertisement", "hash": self.hash, "epoch": self.epoch,
            "state": state, "slots": SLOTS, "busy": self.busy()});
        if news != self.advertised.0 || now > self.advertised.1 + HEARTBEAT {
            self.dispatchers.iter().for_each(|dispatcher| self.direct(dispatcher, &news));
            self.advertised = (news, now);
        }
    }

    pub fn take(&mut self, stanza: Stanza) {
        match stanza {
            Stanza::Iq { from, id, kind, x } if kind == "set" || kind == "get" => {
                let events = x.first().filter(|_| kind == "set").map(|x| events::read(&x.0));
                match (events, from) {
                    (Some(Some(events)), Some(from)) => self.request(from, id, events),
                    (events, from) => self.error(from, id, events.is_some()),
                }
            }
            Stanza::Presence { from, x } if self.allows(&from) => {
                let events = x.first().and_then(|x| events::read(&x.0)).unwrap_or_default();
                if !events.contains(&Event::Hello) {
                    self.greeted.remove(&from);
                } else if self.dispatchers.contains(&from) {
                    // The next tick tells it.
                    self.advertised.0 = Value::Null;
                } else if self.greeted.len() < GREETED && self.greeted.insert(from.clone()) {
                    let hello = json!({"type": "hello", "role": "agent", "epoch": self.epoch});
                    self.direct(&from, &hello);
                }
            }
            _ => (),
        }
    }

    /// Answer an IQ when its ops have ended.
    fn request(&mut self, from: Jid, id: String, events: Vec<Event>) {
        let answers = join_all(events.into_iter().filter_map(|event| match event {
            Event::Op(op) => self.op(&from, op),
            Event::Describe { hash } if hash == self.hash && self.allows(&from) => {
                Some(now(json!({"type": "description", "hash": hash, "text": DESCRIPTION})))
            }
            _ => None,
        }));
        let said = self.said.clone();
        tokio::spawn(async move {
            let events = answers.await;
            let payload = (!events.is_empty()).then(|| x(&events));
            said.send(Iq::Result { from: None, to: Some(from), id, payload }.into())
        });
    }

    /// Take an op: its answer, unless too many stanzas wait for that.
    fn op(&mut self, from: &Jid, asked: Op) -> Option<Answer> {
        let dispatcher = self.dispatchers.contains(from);
        // All dispatchers are one caller.
        let owner = if dispatcher { String::new() } else { from.to_bare().to_string() };
        let (id, attempt) = (asked.id, asked.attempt.unwrap_or(1));
        let key = (owner, id.clone(), attempt);
        if let Some((_, answer)) = self.calls.get(&key) {
            let Some(ended) = answer.peek() else {
                return (answer.strong_count() < Some(WAITING)).then(|| answer.clone());
            };
            let mut ended = ended.clone();
            if ended["type"] == "final" {
                ended["again"] = json!(true);
            }
            return Some(now(ended));
        }
        let offered = &self.description["ops"][&asked.op];
        let args = Value::Object(asked.args.unwrap_or_default());
        let misfit = events::misfit(&offered["args"], &args);
        let mut must = asked.must.into_iter().flatten();
        let strange = must.find(|name| !UNDERSTOOD.contains(&name.as_str()));
        let refusals = [
            (!self.allows(from), "not-allowed", None),
            (asked.left == 0, "expired", None),
            (asked.epoch.is_some_and(|epoch| epoch != self.epoch), "stale-epoch", None),
            (strange.is_some(), "not-understood", strange),
            (offered.is_null(), "unknown-op", None),
            (misfit.is_some(), "bad-arguments", misfit),
            (self.draining, "draining", None),
            (self.calls.len() >= CALLS || self.busy() >= SLOTS, "busy", None),
        ];
        if let Some((_, reason, argument)) = refusals.into_iter().find(|(applies, ..)| *applies) {
            let problem = json!({"reason": reason, "argument": argument});
            let error = json!({"type": "error", "id": id, "attempt": attempt, "problem": problem});
            return Some(now(error));
        }
        let left = Duration::from_millis(asked.left);
        let longest = Duration::from_secs_f64(offered["timeout"].as_f64().unwrap_or(60.0));
        let work = async move {
            let ended = timeout(left.min(longest), ops::run(&asked.op, &args)).await;
            let mut event = ended.unwrap_or_else(|_| failed("deadline", "the deadline passed"));
            event["id"] = json!(id);
            event["attempt"] = json!(attempt);
            event
        };
        let answer = work.boxed().shared();
        self.calls.insert(key, (Instant::now() + left + LONGER, answer.clone()));
        Some(answer)
    }

    fn allows(&self, from: &Jid) -> bool {
        from.domain().as_str() == self.domain || self.dispatchers.contains(from)
    }

    fn direct(&self, to: &Jid, event: &Value) {
        let x = x(std::slice::from_ref(event));
        let presence = Presence::available().with_to(to.clone()).with_payloads(vec![x]);
        self.said.send(presence.into()).unwrap_or_default();
    }

    /// Refuse a stanza: one that cannot be read, or that is none of ours.
    fn error(&self, to: Option<Jid>, id: String, ours: bool) {
        let mut error = StanzaError::new(Cancel, ServiceUnavailable, "en", "it is not understood");
        if ours {
            error = StanzaError::new(Modify, BadRequest, "en", "it is no list of events that fit");
            error.other = Some(Element::builder("reason", SPINAL).append("malformed").build());
        }
        let error = Iq::Error { from: None, to, id, error, payload: None };
        self.said.send(error.into()).unwrap_or_default();
    }
}

fn now(event: Value) -> Answer {
    ready(event).boxed().shared()
}

fn x(events: &[Value]) -> Element {
    Element::builder("x", SPINAL).append(events::write(events)).build()
}
