//! The agent: takes stanzas, runs operations, and says what is to be sent. It does no I/O itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::Sender;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};
use tokio_xmpp::parsers::iq::Iq;
use tokio_xmpp::parsers::message::Message;
use tokio_xmpp::parsers::presence::{Presence, Type};
use tokio_xmpp::parsers::stanza_error::{DefinedCondition, ErrorType, StanzaError};
use tokio_xmpp::{Stanza as Outgoing, jid::Jid, minidom::Element};

use crate::ops::{self, Counts, Outcome};
use crate::stream::{SPINAL, Stanza};
use crate::wire::{self, Object, Problem, problem};

const SLOTS: usize = 1000;
const WAITING: usize = 200;
const PEERS: usize = 10_000;
const MEMORY: usize = 64 << 20;
const OVERHEAD: usize = 512;
const GRACE: Duration = Duration::from_secs(10);
const FEATURES: [&str; 1] = ["cancel"];
/// All dispatchers of the home are one caller; no bare address is empty.
const DISPATCHERS: &str = "";

/// An exchange: the caller, the id, the attempt.
pub type Key = (String, String, u64);

/// What a running operation says.
pub enum Said {
    Along(Vec<Value>),
    End(Outcome),
}

/// A stanza that is to be answered, with what there is to say so far.
struct Reply {
    to: Option<String>,
    id: String,
    events: Vec<Value>,
}

struct Exchange {
    asker: String,
    waiting: Vec<Reply>,
    task: Option<AbortHandle>,
    answer: Option<Value>,
    began: Instant,
    deadline: Instant,
    size: usize,
}

pub struct Agent {
    pub out: Vec<Outgoing>,
    pub draining: bool,
    domain: String,
    named: Vec<String>,
    dispatchers: BTreeSet<String>,
    epoch: u64,
    ops: Value,
    text: String,
    hash: String,
    counts: Counts,
    said: Sender<(Key, Said)>,
    exchanges: HashMap<Key, Exchange>,
    running: usize,
    size: usize,
    present: BTreeSet<String>,
    gone: BTreeMap<String, Instant>,
    advertised: Value,
    due: Instant,
}

impl Agent {
    pub fn new(domain: String, dispatchers: Vec<String>, said: Sender<(Key, Said)>) -> Self {
        let ops = ops::description();
        let text = ops.to_string();
        let since = SystemTime::UNIX_EPOCH.elapsed().expect("the clock is set");
        Agent {
            out: Vec::new(),
            draining: false,
            domain,
            dispatchers: dispatchers.iter().cloned().collect(),
            named: dispatchers,
            epoch: since.as_millis() as u64,
            hash: format!("{:x}", Sha256::digest(&text)),
            ops,
            text,
            counts: Counts::default(),
            said,
            exchanges: HashMap::new(),
            running: 0,
            size: 0,
            present: BTreeSet::new(),
            gone: BTreeMap::new(),
            advertised: Value::Null,
            due: Instant::now(),
        }
    }

    pub fn idle(&self) -> bool {
        self.running == 0
    }

    /// A new stream: nobody has heard of us on it.
    pub fn online(&mut self) {
        self.present.clear();
        self.out.push(Presence::available().into());
        self.advertise(true);
    }

    /// Once a second: forget what is over, cancel for who is gone, tell the dispatchers.
    pub fn tick(&mut self) {
        let now = Instant::now();
        self.exchanges.retain(|_, exchange| exchange.task.is_some() || exchange.deadline > now);
        self.size = self.exchanges.values().map(|exchange| exchange.size).sum();
        let left: Vec<Key> = self
            .exchanges
            .iter()
            .filter(|((owner, ..), exchange)| {
                let gone = self.gone.get(&exchange.asker).is_some_and(|since| now > *since + GRACE);
                owner != DISPATCHERS && exchange.task.is_some() && gone
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in left {
            self.end(&key, Err(problem("cancelled", "its caller left")));
        }
        self.gone.retain(|_, since| now <= *since + GRACE);
        self.advertise(false);
    }

    fn advertise(&mut self, at_once: bool) {
        let state = if self.draining { "draining" } else { "available" };
        let advertisement = json!({
            "type": "advertisement", "hash": self.hash, "epoch": self.epoch, "state": state, "slots": SLOTS,
            "busy": self.running, "load": self.running as f64 / SLOTS as f64, "features": FEATURES,
        });
        if at_once || advertisement != self.advertised || Instant::now() >= self.due {
            for dispatcher in self.dispatchers.clone() {
                self.direct(&dispatcher, &advertisement);
            }
            self.advertised = advertisement;
            self.due = Instant::now() + Duration::from_millis(rand::random_range(4500..5000));
        }
    }

    fn direct(&mut self, to: &str, event: &Value) {
        if let Ok(to) = Jid::new(to) {
            let presence =
                Presence::available().with_to(to).with_payloads(vec![x(std::slice::from_ref(event))]);
            self.out.push(presence.into());
        }
    }

    pub fn take(&mut self, stanza: Stanza) {
        match (stanza.name.as_str(), stanza.kind.as_str()) {
            ("iq", "set") if stanza.text.is_some() || stanza.broken => self.request(stanza),
            ("iq", "set" | "get") => {
                let text = "not understood here";
                let error =
                    StanzaError::new(ErrorType::Cancel, DefinedCondition::ServiceUnavailable, "en", text);
                self.refuse(stanza, error);
            }
            ("presence", "" | "unavailable") => self.presence(stanza),
            _ => (),
        }
    }

    fn refuse(&mut self, stanza: Stanza, error: StanzaError) {
        if let Ok(to) = stanza.from.as_deref().map(Jid::new).transpose() {
            self.out.push(Iq::Error { from: None, to, id: stanza.id, error, payload: None }.into());
        }
    }

    fn request(&mut self, stanza: Stanza) {
        let text = stanza.text.as_deref().unwrap_or_default();
        let events = match stanza.broken {
            true => Err("the text of <x> is too long, or is not text".to_owned()),
            false => wire::read(text),
        };
        let events = match events {
            Ok(events) => events,
            Err(why) => {
                let mut error = StanzaError::new(ErrorType::Modify, DefinedCondition::BadRequest, "en", why);
                error.other = Some(Element::builder("reason", SPINAL).append("malformed").build());
                return self.refuse(stanza, error);
            }
        };
        let from = stanza.from.clone().unwrap_or_default();
        let mut reply = Reply { to: stanza.from, id: stanza.id, events: Vec::new() };
        let mut asked: Option<Key> = None;
        let mut described = false;
        for event in &events {
            let key = self.key(&from, event);
            match event["type"].as_str().unwrap_or_default() {
                "op" if asked.is_some() => {
                    let why =
                        problem("not-understood", "one operation in a stanza: there is no 'batch' here");
                    reply.events.push(answer("error", &key, "problem", why));
                }
                "op" => {
                    reply.events.extend(self.op(&from, &key, event));
                    asked = Some(key);
                }
                "cancel" => reply.events.push(self.cancel(&from, &key, event)),
                "ack" => self.acknowledge(&key),
                "describe" if event["hash"] == self.hash.as_str() && self.allows(&from) && !described => {
                    described = true;
                    let description = json!({"type": "description", "hash": self.hash, "text": self.text});
                    reply.events.push(description);
                }
                "hello" => self.hello(&from, event),
                _ => (),
            }
        }
        match asked.and_then(|key| self.exchanges.get_mut(&key)) {
            Some(exchange) if exchange.task.is_some() => {
                // A caller asks again every 5 s: who has asked more often than that has stopped listening.
                if exchange.waiting.len() == WAITING {
                    exchange.waiting.remove(0);
                }
                exchange.waiting.push(reply);
            }
            _ => self.answer(reply),
        }
    }

    /// Take an op: its answer, unless it runs.
    fn op(&mut self, from: &str, key: &Key, event: &Object) -> Option<Value> {
        let now = Instant::now();
        let left = Duration::from_millis(event["left"].as_u64().unwrap_or_default());
        let refuse = |problem| Some(answer("error", key, "problem", problem));
        if !self.allows(from) {
            return refuse(problem("not-allowed", "that is not allowed"));
        }
        if event.get("epoch").is_some_and(|epoch| epoch.as_u64() != Some(self.epoch)) {
            return refuse(problem("stale-epoch", "the agent was restarted since"));
        }
        if let Some(known) = self.exchanges.get_mut(key) {
            known.asker = from.to_owned();
            known.deadline = known.deadline.max(now + left);
            let mut answer = known.answer.clone()?;
            if answer["type"] == "final" {
                answer["again"] = json!(true);
            }
            return Some(answer);
        }
        if self.size >= MEMORY {
            return refuse(problem("busy", "the agent can remember no more calls"));
        }
        let mut exchange = Exchange {
            asker: from.to_owned(),
            waiting: Vec::new(),
            task: None,
            answer: None,
            began: now,
            deadline: now + left,
            size: OVERHEAD,
        };
        match self.start(key, event, left) {
            Ok(task) => {
                self.running += 1;
                exchange.task = Some(task);
            }
            Err(problem) => exchange.answer = refuse(problem),
        }
        let answer = exchange.answer.clone();
        self.size += exchange.size;
        self.exchanges.insert(key.clone(), exchange);
        answer
    }

    fn start(&mut self, key: &Key, event: &Object, left: Duration) -> Result<AbortHandle, Problem> {
        let op = event["op"].as_str().unwrap_or_default();
        let must =
            event.get("must").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        let known = |name: &&str| wire::UNDERSTOOD.contains(name) || FEATURES.contains(name);
        if event.contains_key("each") || !must.clone().all(|name| known(&name)) {
            let name = must.clone().find(|name| !known(name)).unwrap_or("each");
            return Err(json!({"reason": "not-understood", "argument": name}));
        }
        let offered = self.ops["ops"].get(op);
        let offered =
            offered.ok_or_else(|| problem("unknown-op", "the agent does not offer this operation"))?;
        let args = event.get("args").and_then(Value::as_object).cloned().unwrap_or_default();
        wire::check(&offered["args"], &args)?;
        if wire::escape(&event.get("args").cloned().unwrap_or_default()).len() > wire::INLINE {
            return Err(problem("too-large", "the arguments are too large"));
        }
        for (refused, reason, text) in [
            (left.is_zero(), "expired", "the deadline had passed"),
            (self.draining, "draining", "the agent is shutting down"),
            (self.running == SLOTS, "busy", "the agent has no free slot"),
        ] {
            if refused {
                return Err(problem(reason, text));
            }
        }
        let longest = Duration::from_secs_f64(offered["timeout"].as_f64().unwrap_or(60.0));
        let (said, name) = (self.said.clone(), key.clone());
        let tell: ops::Teller = Box::new(move |mut events| {
            for event in &mut events {
                (event["id"], event["attempt"]) = (json!(name.1), json!(name.2));
            }
            let (said, name) = (said.clone(), name.clone());
            // The receiver lives as long as the program.
            Box::pin(async move { said.send((name, Said::Along(events))).await.unwrap_or_default() })
        });
        let work = ops::start(op, &args, &mut self.counts, tell)?;
        let (said, name) = (self.said.clone(), key.clone());
        let task = tokio::spawn(async move {
            let late = |_| Err(problem("deadline", "the deadline passed"));
            let outcome = timeout(left.min(longest), work).await.unwrap_or_else(late);
            said.send((name, Said::End(outcome))).await.unwrap_or_default();
        });
        Ok(task.abort_handle())
    }

    /// What an operation said: pass it on to who asked last.
    pub fn hear(&mut self, key: Key, said: Said) {
        match said {
            Said::End(outcome) => self.end(&key, outcome),
            Said::Along(events) => {
                let running = self.exchanges.get(&key).filter(|exchange| exchange.task.is_some());
                if let Some(to) = running.and_then(|exchange| Jid::new(&exchange.asker).ok()) {
                    self.out.push(Message::headline(to).with_payloads(vec![x(&events)]).into());
                }
            }
        }
    }

    fn end(&mut self, key: &Key, outcome: Outcome) {
        let Some(exchange) = self.exchanges.get_mut(key) else {
            return;
        };
        let Some(task) = exchange.task.take() else { return };
        task.abort();
        self.running -= 1;
        let (member, value) = match outcome {
            Ok(value) if wire::escape(&value).len() <= wire::INLINE => ("value", value),
            Ok(_) => ("problem", problem("too-large", "the result is too large")),
            Err(problem) => ("problem", problem),
        };
        let mut end = answer("final", key, member, value);
        end["ran"] = json!(exchange.began.elapsed().as_millis() as u64);
        exchange.size = OVERHEAD + end.to_string().len();
        self.size += exchange.size - OVERHEAD;
        let waiting = std::mem::take(&mut exchange.waiting);
        exchange.answer = Some(end.clone());
        for mut reply in waiting {
            reply.events.insert(0, end.clone());
            self.answer(reply);
        }
    }

    fn cancel(&mut self, from: &str, key: &Key, event: &Object) -> Value {
        let state = match self.exchanges.get(key) {
            Some(exchange) if exchange.task.is_some() => {
                self.end(key, Err(problem("cancelled", "it was cancelled")));
                "cancelled"
            }
            Some(_) => "late",
            None if self.size < MEMORY && self.allows(from) => {
                // A tombstone: the cancel may have overtaken its op.
                let left = event.get("left").and_then(Value::as_u64).unwrap_or(60_000);
                let early = problem("cancelled", "it was cancelled before it arrived");
                let now = Instant::now();
                let tombstone = Exchange {
                    asker: from.to_owned(),
                    waiting: Vec::new(),
                    task: None,
                    answer: Some(answer("error", key, "problem", early)),
                    began: now,
                    deadline: now + Duration::from_millis(left),
                    size: OVERHEAD,
                };
                self.size += OVERHEAD;
                self.exchanges.insert(key.clone(), tombstone);
                "unknown"
            }
            None => "unknown",
        };
        answer("cancelled", key, "state", json!(state))
    }

    fn acknowledge(&mut self, key: &Key) {
        if let Some(exchange) = self.exchanges.get_mut(key)
            && exchange.answer.as_ref().is_some_and(|answer| answer["type"] == "final")
        {
            let done = problem("already-done", "it was already done");
            exchange.answer = Some(answer("error", key, "problem", done));
            self.size -= exchange.size - OVERHEAD;
            exchange.size = OVERHEAD;
        }
    }

    fn presence(&mut self, stanza: Stanza) {
        let from = stanza.from.unwrap_or_default();
        if stanza.kind == "unavailable" {
            self.present.remove(&from);
            let asked = |exchange: &Exchange| exchange.task.is_some() && exchange.asker == from;
            if self.exchanges.values().any(asked) {
                self.gone.insert(from, Instant::now());
            }
            return;
        }
        self.gone.remove(&from);
        for event in wire::read(&stanza.text.unwrap_or_default()).unwrap_or_default() {
            if event["type"] == "hello" {
                self.hello(&from, &event);
            }
        }
    }

    fn hello(&mut self, from: &str, event: &Object) {
        let first = self.allows(from) && self.present.len() < PEERS && self.present.insert(from.to_owned());
        if self.dispatchers.contains(from) {
            if let Some(Value::Array(listed)) = event.get("dispatchers") {
                let listed: Vec<String> =
                    listed.iter().filter_map(Value::as_str).map(str::to_owned).collect();
                let stays = |name: &String| {
                    listed.contains(name) || self.named.contains(name) || self.present.contains(name)
                };
                self.dispatchers.retain(stays);
                self.dispatchers.extend(listed);
            }
            self.advertise(true);
        } else if first {
            let hello = json!({"type": "hello", "role": "agent", "epoch": self.epoch, "features": FEATURES});
            self.direct(from, &hello);
        }
    }

    fn allows(&self, from: &str) -> bool {
        let bare = from.split('/').next().unwrap_or_default();
        let domain = bare.rsplit('@').next().unwrap_or_default();
        domain == self.domain || self.dispatchers.contains(from)
    }

    fn key(&self, from: &str, event: &Object) -> Key {
        let owner = match self.dispatchers.contains(from) {
            true => DISPATCHERS,
            false => from.split('/').next().unwrap_or_default(),
        };
        let id = event.get("id").and_then(Value::as_str).unwrap_or_default();
        let attempt = event.get("attempt").and_then(Value::as_u64).unwrap_or(1);
        (owner.to_owned(), id.to_owned(), attempt)
    }

    fn answer(&mut self, reply: Reply) {
        if let Ok(to) = reply.to.as_deref().map(Jid::new).transpose() {
            let payload = (!reply.events.is_empty()).then(|| x(&reply.events));
            self.out.push(Iq::Result { from: None, to, id: reply.id, payload }.into());
        }
    }
}

/// An offline goodbye to everybody to whom presence was directed.
pub fn goodbye() -> Outgoing {
    Presence::new(Type::Unavailable).into()
}

fn x(events: &[Value]) -> Element {
    Element::builder("x", SPINAL).append(wire::write(events)).build()
}

fn answer(kind: &str, (_, id, attempt): &Key, member: &str, value: Value) -> Value {
    json!({"type": kind, "id": id, "attempt": attempt, member: value})
}
