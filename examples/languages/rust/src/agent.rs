//! The agent: takes stanzas, runs operations, remembers answers, and says what it has to say.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use futures::future::{BoxFuture, FutureExt, Shared, join_all, ready};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{Instant, timeout};
use tokio_xmpp::jid::{BareJid, Jid};
use tokio_xmpp::minidom::Element;
use tokio_xmpp::parsers::stanza_error::DefinedCondition::{BadRequest, ServiceUnavailable};
use tokio_xmpp::parsers::stanza_error::ErrorType::{Cancel, Modify};
use tokio_xmpp::parsers::{
    iq::Iq, message::Message, presence::Presence, stanza, stanza_error::StanzaError,
};

use crate::events::{self, Event, Op, failed};
use crate::ops;
use crate::stream::{SPINAL, Stanza};

/// Calls that run, calls that are remembered, stanzas that wait for one call, callers greeted.
const SLOTS: usize = 100;
const CALLS: usize = 2000;
const WAITING: usize = 200;
const GREETED: usize = 10_000;
/// An answer is remembered for so long after its deadline.
const LONGER: Duration = Duration::from_secs(10);
/// The tick after this is the heartbeat.
const HEARTBEAT: Duration = Duration::from_millis(4500);

/// What an op may name in `must`.
const UNDERSTOOD: [&str; 7] = ["id", "attempt", "op", "left", "args", "epoch", "must"];

/// What a call ends with, for each stanza that waits for it.
type Answer = Shared<BoxFuture<'static, Value>>;
type Said = UnboundedSender<stanza::Stanza>;

/// A call, to the operation that it runs.
pub struct Call {
    id: String,
    attempt: u64,
    from: Jid,
    said: Said,
}

impl Call {
    /// The event, with the members that say which call it is about.
    fn about(&self, mut event: Value) -> Value {
        event["id"] = json!(self.id);
        event["attempt"] = json!(self.attempt);
        event
    }

    /// Tell progress, or a line of log.
    pub fn tell(&self, event: Value) {
        let x = x(&[self.about(event)]);
        let _ = self.said.send(Message::headline(self.from.clone()).with_payloads(vec![x]).into());
    }
}

pub struct Agent {
    pub draining: bool,
    said: Said,
    address: BareJid,
    dispatchers: Vec<Jid>,
    epoch: u64,
    description: Value,
    hash: String,
    calls: HashMap<(String, String, u64), (Instant, Answer)>,
    greeted: HashSet<Jid>,
    advertised: (Value, Instant),
}

impl Agent {
    pub fn new(address: BareJid, dispatchers: Vec<Jid>, said: Said) -> Self {
        let now = SystemTime::UNIX_EPOCH.elapsed().expect("a clock that is set");
        Agent {
            draining: false,
            said,
            address,
            dispatchers,
            epoch: now.as_millis() as u64,
            description: serde_json::from_str(ops::DESCRIPTION).expect("a description in JSON"),
            hash: format!("{:x}", Sha256::digest(ops::DESCRIPTION)),
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
            self.dispatchers.iter().for_each(|dispatcher| self.direct(dispatcher, news.clone()));
            self.advertised = (news, now);
        }
    }

    pub fn take(&mut self, stanza: Stanza) {
        match stanza {
            Stanza::Iq { from: Some(from), id, kind, x } if kind == "set" && !x.is_empty() => {
                match events::read(&x[0].text) {
                    Ok(events) => self.request(from, id, events),
                    Err(why) => {
                        let mut error = StanzaError::new(Modify, BadRequest, "en", why);
                        error.other = Some(child("reason", "malformed"));
                        self.say(Iq::from_error(id, error).with_to(from));
                    }
                }
            }
            Stanza::Iq { from, id, kind, .. } if kind == "set" || kind == "get" => {
                let error = StanzaError::new(Cancel, ServiceUnavailable, "en", "not understood");
                self.say(Iq::Error { from: None, to: from, id, error, payload: None });
            }
            Stanza::Presence { from, x } => {
                let events = x.first().and_then(|x| events::read(&x.text).ok());
                match events.into_iter().flatten().find(|event| matches!(event, Event::Hello)) {
                    Some(_) => self.hello(&from),
                    None => _ = self.greeted.remove(&from),
                }
            }
            _ => (),
        }
    }

    /// Take the events of an IQ, and answer it when its ops have ended.
    fn request(&mut self, from: Jid, id: String, events: Vec<Event>) {
        let mut answers = Vec::new();
        for event in events {
            match event {
                Event::Op(op) => answers.extend(self.op(&from, op)),
                Event::Describe(asked) if asked.hash == self.hash && self.allows(&from) => {
                    let text = ops::DESCRIPTION;
                    answers
                        .push(now(json!({"type": "description", "hash": self.hash, "text": text})));
                }
                Event::Hello => self.hello(&from),
                _ => (),
            }
        }
        let said = self.said.clone();
        tokio::spawn(async move {
            let events = join_all(answers).await;
            let payload = (!events.is_empty()).then(|| x(&events));
            said.send(Iq::Result { from: None, to: Some(from), id, payload }.into())
        });
    }

    /// Take an op: its answer, unless too many stanzas wait for that.
    fn op(&mut self, from: &Jid, asked: Op) -> Option<Answer> {
        let dispatcher = self.dispatchers.contains(from);
        // All dispatchers are one caller.
        let owner = if dispatcher { String::new() } else { from.to_bare().to_string() };
        let call = Call {
            id: asked.id,
            attempt: asked.attempt.unwrap_or(1),
            from: from.clone(),
            said: self.said.clone(),
        };
        let key = (owner, call.id.clone(), call.attempt);
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
            return Some(now(call.about(json!({"type": "error", "problem": problem}))));
        }
        let left = Duration::from_millis(asked.left);
        let most = Duration::from_secs_f64(offered["timeout"].as_f64().unwrap_or(60.0));
        let work = async move {
            let ended = timeout(left.min(most), ops::run(&asked.op, &args, &call)).await;
            call.about(ended.unwrap_or_else(|_| failed("deadline", "the deadline passed")))
        };
        let answer = work.boxed().shared();
        self.calls.insert(key, (Instant::now() + left + LONGER, answer.clone()));
        Some(answer)
    }

    fn hello(&mut self, from: &Jid) {
        if self.dispatchers.contains(from) {
            // The next tick tells it.
            self.advertised.0 = Value::Null;
        } else if self.allows(from)
            && self.greeted.len() < GREETED
            && self.greeted.insert(from.clone())
        {
            self.direct(from, json!({"type": "hello", "role": "agent", "epoch": self.epoch}));
        }
    }

    fn allows(&self, from: &Jid) -> bool {
        from.domain() == self.address.domain() || self.dispatchers.contains(from)
    }

    fn direct(&self, to: &Jid, event: Value) {
        self.say(Presence::available().with_to(to.clone()).with_payloads(vec![x(&[event])]));
    }

    fn say(&self, stanza: impl Into<stanza::Stanza>) {
        // The receiver lives as long as the program.
        self.said.send(stanza.into()).unwrap_or_default();
    }
}

fn now(event: Value) -> Answer {
    ready(event).boxed().shared()
}

fn x(events: &[Value]) -> Element {
    child("x", &events::write(events))
}

fn child(name: &str, text: &str) -> Element {
    Element::builder(name, SPINAL).append(text).build()
}
