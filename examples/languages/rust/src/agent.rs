//! The agent: takes stanzas, runs operations, and says what is to be sent. The stream is elsewhere.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::Sender;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};
use tokio_xmpp::parsers::stanza_error::{DefinedCondition, ErrorType, StanzaError};
use tokio_xmpp::parsers::{iq::Iq, message::Message, presence::Presence};
use tokio_xmpp::{Stanza as Outgoing, jid::Jid, minidom::Element};

use crate::ops::{self, Counts, Outcome, Teller};
use crate::stream::{SPINAL, Stanza};
use crate::wire::{self, Object, Problem, problem};

const FEATURES: [&str; 1] = ["cancel"];
const SLOTS: usize = 1000;
const PEERS: usize = 10_000;
/// Bytes that may be remembered, and what anything that is remembered counts at least.
const MEMORY: usize = 64 << 20;
const OVERHEAD: usize = 512;
/// Stanzas of one call that wait for its end. A caller says its op again every 5 s.
const WAITING: usize = 200;
/// With the fifth tick after the last advertisement.
const HEARTBEAT: Duration = Duration::from_millis(4500);
const GRACE: Duration = Duration::from_secs(10);
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
    to: Option<Jid>,
    id: String,
    events: Vec<Value>,
}

struct Exchange {
    asker: String,
    deadline: Instant,
    state: State,
}

enum State {
    Running { task: AbortHandle, since: Instant, waiting: Vec<Reply> },
    Over { answer: Value, size: usize },
}

impl Exchange {
    fn runs(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    fn size(&self) -> usize {
        match &self.state {
            State::Over { size, .. } => OVERHEAD + size,
            State::Running { waiting, .. } => OVERHEAD + waiting.iter().map(Reply::size).sum::<usize>(),
        }
    }
}

impl Reply {
    fn size(&self) -> usize {
        OVERHEAD * (1 + self.events.len())
    }
}

pub struct Agent {
    pub out: Vec<Outgoing>,
    pub draining: bool,
    domain: String,
    named: BTreeSet<String>,
    dispatchers: BTreeSet<String>,
    epoch: u64,
    description: Value,
    hash: String,
    counts: Counts,
    said: Sender<(Key, Said)>,
    exchanges: HashMap<Key, Exchange>,
    running: usize,
    memory: usize,
    present: BTreeSet<String>,
    gone: BTreeMap<String, Instant>,
    advertised: Value,
    heartbeat: Instant,
}

impl Agent {
    pub fn new(domain: &str, dispatchers: BTreeSet<String>, said: Sender<(Key, Said)>) -> Self {
        let description: Value = serde_json::from_str(ops::DESCRIPTION).expect("a description that is JSON");
        let now = SystemTime::UNIX_EPOCH.elapsed().expect("a clock that is set");
        Agent {
            out: Vec::new(),
            draining: false,
            domain: domain.to_owned(),
            named: dispatchers.clone(),
            dispatchers,
            epoch: now.as_millis() as u64,
            hash: format!("{:x}", Sha256::digest(ops::DESCRIPTION)),
            description,
            counts: Counts::default(),
            said,
            exchanges: HashMap::new(),
            running: 0,
            memory: 0,
            present: BTreeSet::new(),
            gone: BTreeMap::new(),
            advertised: Value::Null,
            heartbeat: Instant::now(),
        }
    }

    pub fn drained(&self) -> bool {
        self.draining && self.running == 0
    }

    /// A new stream: nobody has heard of us on it.
    pub fn online(&mut self) {
        self.present.clear();
        self.out.push(Presence::available().into());
        self.advertise(true);
    }

    /// About once a second: forget what is over, cancel for who is gone, tell the dispatchers.
    pub fn tick(&mut self) {
        let now = Instant::now();
        self.exchanges.retain(|_, exchange| exchange.runs() || exchange.deadline > now);
        self.memory = self.exchanges.values().map(Exchange::size).sum();
        let gone = |asker: &str| self.gone.get(asker).is_some_and(|at| now > *at + GRACE);
        let given_up = |(key, it): &(&Key, &Exchange)| key.0 != DISPATCHERS && it.runs() && gone(&it.asker);
        let keys: Vec<Key> = self.exchanges.iter().filter(given_up).map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.end(&key, Err(problem("cancelled", "its caller left")));
        }
        self.gone.retain(|_, at| now <= *at + GRACE);
        self.advertise(false);
    }

    fn advertise(&mut self, at_once: bool) {
        let state = if self.draining { "draining" } else { "available" };
        let advertisement = json!({
            "type": "advertisement", "hash": self.hash, "epoch": self.epoch, "state": state, "slots": SLOTS,
            "busy": self.running, "load": self.running as f64 / SLOTS as f64, "features": FEATURES,
        });
        if at_once || advertisement != self.advertised || Instant::now() >= self.heartbeat {
            for dispatcher in self.dispatchers.clone() {
                self.direct(&dispatcher, &advertisement);
            }
            self.advertised = advertisement;
            self.heartbeat = Instant::now() + HEARTBEAT;
        }
    }

    fn direct(&mut self, to: &str, event: &Value) {
        if let Ok(to) = Jid::new(to) {
            let event = x(std::slice::from_ref(event));
            self.out.push(Presence::available().with_to(to).with_payloads(vec![event]).into());
        }
    }

    pub fn take(&mut self, stanza: Stanza) {
        let from = stanza.from.unwrap_or_default();
        let to = Jid::new(&from).ok();
        match (stanza.name.as_str(), stanza.kind.as_str(), stanza.text) {
            ("iq", "set", Some(text)) => match text.as_deref().map_err(Clone::clone).and_then(wire::read) {
                Ok(events) => self.request(&from, Reply { to, id: stanza.id, events: Vec::new() }, &events),
                Err(why) => {
                    let mut error =
                        StanzaError::new(ErrorType::Modify, DefinedCondition::BadRequest, "en", why);
                    error.other = Some(Element::builder("reason", SPINAL).append("malformed").build());
                    self.out.push(Iq::Error { from: None, to, id: stanza.id, error, payload: None }.into());
                }
            },
            ("iq", "set" | "get", _) => {
                let condition = DefinedCondition::ServiceUnavailable;
                let error = StanzaError::new(ErrorType::Cancel, condition, "en", "not understood here");
                self.out.push(Iq::Error { from: None, to, id: stanza.id, error, payload: None }.into());
            }
            ("presence", "unavailable", _) => {
                self.present.remove(&from);
                if self.exchanges.values().any(|exchange| exchange.runs() && exchange.asker == from) {
                    self.gone.insert(from, Instant::now());
                }
            }
            ("presence", "", text) => {
                self.gone.remove(&from);
                let events = text.and_then(Result::ok).and_then(|text| wire::read(&text).ok());
                for event in events.into_iter().flatten().filter(|event| event["type"] == "hello") {
                    self.hello(&from, &event);
                }
            }
            _ => (),
        }
    }

    /// Take the events of an IQ set. It is answered when its op, if it has one, has ended.
    fn request(&mut self, from: &str, mut reply: Reply, events: &[Object]) {
        let (mut asked, mut running) = (false, None);
        for event in events {
            let key = self.key(from, event);
            match event["type"].as_str().unwrap_or_default() {
                "op" if asked => {
                    let why = problem("not-understood", "one op in a stanza: there is no 'batch' here");
                    reply.events.push(answer("error", &key, "problem", why));
                }
                "op" => {
                    let answer = self.op(from, &key, event);
                    (asked, running) = (true, answer.is_none().then_some(key));
                    reply.events.extend(answer);
                }
                "cancel" => reply.events.push(self.cancel(from, &key, event)),
                "ack" => self.acknowledge(&key),
                "describe" if event["hash"] == self.hash.as_str() && self.allows(from) => {
                    let text = json!({"type": "description", "hash": self.hash, "text": ops::DESCRIPTION});
                    reply.events.push(text);
                }
                "hello" => self.hello(from, event),
                _ => (),
            }
        }
        match running.and_then(|key| self.exchanges.get_mut(&key)).map(|exchange| &mut exchange.state) {
            Some(State::Running { waiting, .. }) => {
                if waiting.len() == WAITING || self.memory >= MEMORY && !waiting.is_empty() {
                    waiting.remove(0);
                }
                self.memory += reply.size();
                return waiting.push(reply);
            }
            // It was cancelled in the same stanza.
            Some(State::Over { answer, .. }) => reply.events.insert(0, answer.clone()),
            None => (),
        }
        self.out.push(reply.into());
    }

    /// Take an op: its answer, unless it runs.
    fn op(&mut self, from: &str, key: &Key, event: &Object) -> Option<Value> {
        let left = Duration::from_millis(event["left"].as_u64().unwrap_or_default());
        let deadline = Instant::now() + left;
        let refuse = |reason, text| Some(answer("error", key, "problem", problem(reason, text)));
        if !self.allows(from) {
            return refuse("not-allowed", "that is not allowed");
        }
        if event.get("epoch").is_some_and(|epoch| epoch.as_u64() != Some(self.epoch)) {
            return refuse("stale-epoch", "the agent was restarted since");
        }
        if let Some(known) = self.exchanges.get_mut(key) {
            known.asker = from.to_owned();
            known.deadline = known.deadline.max(deadline);
            let State::Over { answer, .. } = &known.state else { return None };
            let mut answer = answer.clone();
            if answer["type"] == "final" {
                answer["again"] = json!(true);
            }
            return Some(answer);
        }
        if self.memory >= MEMORY {
            return refuse("busy", "the agent can remember no more calls");
        }
        let state = match self.start(key, event, left) {
            Ok(task) => State::Running { task, since: Instant::now(), waiting: Vec::new() },
            Err(problem) => State::Over { answer: answer("error", key, "problem", problem), size: 0 },
        };
        let over = if let State::Over { answer, .. } = &state { Some(answer.clone()) } else { None };
        self.running += usize::from(over.is_none());
        self.remember(from, key, deadline, state);
        over
    }

    fn remember(&mut self, from: &str, key: &Key, deadline: Instant, state: State) {
        self.memory += OVERHEAD;
        self.exchanges.insert(key.clone(), Exchange { asker: from.to_owned(), deadline, state });
    }

    /// Start an op, or refuse it with a problem.
    fn start(&mut self, key: &Key, event: &Object, left: Duration) -> Result<AbortHandle, Problem> {
        let must =
            event.get("must").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        let mut must = must.chain(event.contains_key("each").then_some("each"));
        if let Some(name) = must.find(|name| !wire::UNDERSTOOD.contains(name) && !FEATURES.contains(name)) {
            return Err(json!({"reason": "not-understood", "argument": name}));
        }
        let op = event["op"].as_str().unwrap_or_default();
        let offered = self.description["ops"].get(op);
        let offered =
            offered.ok_or_else(|| problem("unknown-op", "the agent does not offer this operation"))?;
        let args = event.get("args").and_then(Value::as_object).cloned().unwrap_or_default();
        wire::check(&offered["args"], &args).map_err(|(name, why)| {
            json!({"reason": "bad-arguments", "text": format!("'{name}' {why}"), "argument": name})
        })?;
        let args = Value::Object(args);
        for (refused, reason, text) in [
            (wire::escape(&args).len() > wire::INLINE, "too-large", "the arguments are too large"),
            (left.is_zero(), "expired", "the deadline had passed"),
            (self.draining, "draining", "the agent is shutting down"),
            (self.running == SLOTS, "busy", "the agent has no free slot"),
        ] {
            if refused {
                return Err(problem(reason, text));
            }
        }
        let longest = left.min(Duration::from_secs_f64(offered["timeout"].as_f64().unwrap_or(60.0)));
        let teller = Teller { key: key.clone(), said: self.said.clone() };
        let work = ops::start(op, &args, &mut self.counts, teller.clone())?;
        let run = async move {
            let late = |_| Err(problem("deadline", "the deadline passed"));
            teller.say(Said::End(timeout(longest, work).await.unwrap_or_else(late))).await;
        };
        Ok(tokio::spawn(run).abort_handle())
    }

    /// What an operation said: its end, or news for who asked last.
    pub fn hear(&mut self, key: Key, said: Said) {
        match said {
            Said::End(outcome) => self.end(&key, outcome),
            Said::Along(events) => {
                let running = self.exchanges.get(&key).filter(|exchange| exchange.runs());
                if let Some(to) = running.and_then(|exchange| Jid::new(&exchange.asker).ok()) {
                    self.out.push(Message::headline(to).with_payloads(vec![x(&events)]).into());
                }
            }
        }
    }

    fn end(&mut self, key: &Key, outcome: Outcome) {
        let Some(exchange) = self.exchanges.get_mut(key) else { return };
        let State::Running { task, since, waiting } = &mut exchange.state else { return };
        task.abort();
        let (member, value) = match outcome {
            Ok(value) if wire::escape(&value).len() <= wire::INLINE => ("value", value),
            Ok(_) => ("problem", problem("too-large", "the result is too large")),
            Err(problem) => ("problem", problem),
        };
        let mut answer = answer("final", key, member, value);
        answer["ran"] = json!(since.elapsed().as_millis() as u64);
        for mut reply in waiting.drain(..) {
            reply.events.insert(0, answer.clone());
            self.out.push(reply.into());
        }
        let size = answer.to_string().len();
        exchange.state = State::Over { answer, size };
        self.memory += size;
        self.running -= 1;
    }

    fn cancel(&mut self, from: &str, key: &Key, event: &Object) -> Value {
        let state = match self.exchanges.get(key).map(Exchange::runs) {
            Some(true) => {
                self.end(key, Err(problem("cancelled", "it was cancelled")));
                "cancelled"
            }
            Some(false) => "late",
            None => {
                // A tombstone: the cancel may have overtaken its op.
                if self.memory < MEMORY && self.allows(from) {
                    let left =
                        Duration::from_millis(event.get("left").and_then(Value::as_u64).unwrap_or(60_000));
                    let why = problem("cancelled", "it was cancelled before it arrived");
                    let state = State::Over { answer: answer("error", key, "problem", why), size: 0 };
                    self.remember(from, key, Instant::now() + left, state);
                }
                "unknown"
            }
        };
        answer("cancelled", key, "state", json!(state))
    }

    fn acknowledge(&mut self, key: &Key) {
        if let Some(State::Over { answer: kept, size }) = self.exchanges.get_mut(key).map(|it| &mut it.state)
            && kept["type"] == "final"
        {
            *kept = answer("error", key, "problem", problem("already-done", "it was already done"));
            *size = 0;
        }
    }

    fn hello(&mut self, from: &str, event: &Object) {
        let known = self.dispatchers.contains(from);
        if !self.allows(from) || self.present.len() >= PEERS && !known {
            return;
        }
        let first = self.present.insert(from.to_owned());
        if known {
            if let Some(Value::Array(all)) = event.get("dispatchers") {
                let all: BTreeSet<_> = all.iter().filter_map(Value::as_str).map(str::to_owned).collect();
                self.dispatchers.retain(|it| self.named.contains(it) || self.present.contains(it));
                self.dispatchers.extend(all);
            }
            self.advertise(true);
        } else if first {
            let hello = json!({"type": "hello", "role": "agent", "epoch": self.epoch, "features": FEATURES});
            self.direct(from, &hello);
        }
    }

    fn allows(&self, from: &str) -> bool {
        let domain = bare(from).rsplit('@').next();
        domain == Some(&self.domain) || self.dispatchers.contains(from)
    }

    fn key(&self, from: &str, event: &Object) -> Key {
        let owner = if self.dispatchers.contains(from) { DISPATCHERS } else { bare(from) };
        let id = event.get("id").and_then(Value::as_str).unwrap_or_default();
        (owner.to_owned(), id.to_owned(), event.get("attempt").and_then(Value::as_u64).unwrap_or(1))
    }
}

impl From<Reply> for Outgoing {
    fn from(Reply { to, id, events }: Reply) -> Outgoing {
        let payload = (!events.is_empty()).then(|| x(&events));
        Iq::Result { from: None, to, id, payload }.into()
    }
}

fn x(events: &[Value]) -> Element {
    Element::builder("x", SPINAL).append(wire::write(events)).build()
}

fn bare(address: &str) -> &str {
    address.split('/').next().unwrap_or_default()
}

/// An event about this exchange, with one member beside those that name it.
pub fn answer(kind: &str, (_, id, attempt): &Key, member: &str, value: Value) -> Value {
    let mut event = json!({"type": kind, "id": id, member: value});
    if *attempt != 1 {
        event["attempt"] = json!(attempt);
    }
    event
}
