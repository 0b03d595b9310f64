// An agent on a Spinal bus: who may ask, what is answered, who is told (sections 3, 6, 7 and 14 of the protocol).

import { xml } from "@xmpp/client-core";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { performance } from "node:perf_hooks";
import { setTimeout as sleep } from "node:timers/promises";
import { login, LoginRefused } from "./bus.js";
import { Call } from "./calls.js";
import { Problem, READS, readArguments, readEvents, writeJSON } from "./events.js";

const NS = "urn:spinal:1";
const NS_STANZAS = "urn:ietf:params:xml:ns:xmpp-stanzas";
const FEATURES = ["batch", "cancel", "finals", "holds"];
const UNDERSTOOD = new Set(["id", "attempt", "op", "left", "args", "epoch", "must", ...FEATURES]);
const STANZA_ERRORS = { malformed: ["modify", "bad-request"], "too-large": ["modify", "policy-violation"] };

const SLOTS = 1000;
const MOST = { calls: 50_000, live: 2000, peers: 5000, dispatchers: 256, holds: 300, backlog: 16 * 1024 * 1024 };
const STANZA = 61_440; // bytes of JSON text in one stanza; a peer may say that it reads less
const WINDOW = 250; // milliseconds in which an op is answered in the result of its own stanza
const BATCH = 5; // milliseconds from the first answer of a batch to its result
const GRACE = 10_000; // milliseconds for which a caller may be gone before its calls are cancelled
const PING = 15_000; // milliseconds of silence after which the server is asked for a sign of life,
const SILENCE = 40_000; // and after which it is taken for gone
const DRAIN = 60_000; // milliseconds for which a draining agent waits for acknowledgements

const bare = (address) => address.split("/", 1)[0];
const domain = (address) => bare(address).split("@").at(-1);
const bytes = (event) => Buffer.byteLength(writeJSON(event)) + 1;
const x = (...events) => xml("x", NS, writeJSON(events));
const error = (type, condition, ...children) => xml("error", { type }, xml(condition, NS_STANZAS), ...children);

export class Agent {
  #settings;
  #operations;
  #description; // the text that was hashed
  #hash;
  #epoch = Date.now();
  #client = null;
  #draining = false;
  #calls = new Map(); // all that are remembered, by owner, id and attempt
  #live = new Set(); // those that run, or whose final is kept
  #peers = new Map(); // by full address: whether it is here, since when, and whether it was greeted in this stream
  #dispatchers; // that are believed
  #named = []; // dispatchers that one of them has named last
  #heard = 0; // when something came from the server
  #told = { at: -Infinity, text: "" }; // what the dispatchers know, and since when

  constructor(settings, operations) {
    this.#settings = settings;
    this.#operations = new Map(Object.entries(operations));
    this.#description = writeJSON({ ops: operations }); // JSON leaves the functions out
    this.#hash = createHash("sha256").update(this.#description).digest("hex");
    this.#dispatchers = new Set(settings.dispatchers);
  }

  /** Keeps the agent on the bus for ever. Throws if the server refuses the login. */
  async run() {
    setInterval(() => this.#tick(), 500);
    setInterval(() => this.#forget(), 10_000);
    for (let pause = 1000; ; pause = Math.min(pause * 2, 60_000)) {
      try {
        this.#client = await login(this.#settings);
        const began = performance.now();
        await this.#session(this.#client);
        if (performance.now() - began > 60_000) pause = 1000;
      } catch (error) {
        if (error instanceof LoginRefused) throw error;
        console.error(`offline: ${error.message}`);
      }
      this.#client = null;
      await sleep(pause * (0.5 + Math.random() / 2));
    }
  }

  async #session(client) {
    const gone = new Promise((resolve) => client.once("disconnect", resolve));
    client.on("error", (error) => console.error(`error: ${error.message}`));
    client.on("stanza", (stanza) => this.#take(stanza));
    this.#heard = performance.now();
    this.#send(xml("presence"));
    this.#told.at = -Infinity;
    this.#tick();
    for (const peer of this.#peers.values()) peer.greeted = false;
    for (const address of new Set([...this.#live].map((call) => call.addresses[0]))) {
      if (!this.#dispatchers.has(address)) this.#greet(address);
    }
    console.log(`online ${client.jid}`);
    await gone;
    if (!this.#draining) console.error("offline: the connection was lost");
  }

  /** Takes no new work, ends what runs, waits until the finals are acknowledged, and says goodbye. */
  async drain() {
    this.#draining = true;
    const over = Promise.all([...this.#live].map((call) => once(call, "over")));
    await Promise.all([...this.#live].filter((call) => call.running).map((call) => once(call, "ended")));
    await Promise.race([over, sleep(DRAIN)]);
    await this.#send(xml("presence", { type: "unavailable" }));
    await this.#client?.stop();
  }

  // What comes

  #take(stanza) {
    this.#heard = performance.now();
    const { from = bare(this.#settings.address), type } = stanza.attrs;
    const content = stanza.getChild("x", NS);
    if (stanza.name === "presence") this.#takePresence(from, type, content);
    else if (stanza.name !== "iq" || type === "result" || type === "error") return;
    else if (type === "set" && content) this.#takeEvents(from, stanza, content);
    else this.#answer(stanza, error("cancel", "service-unavailable"));
  }

  #takePresence(from, type, content) {
    if (type === "unavailable" || type === "error") this.#left(from);
    if (type || !content) return;
    try {
      for (const event of readEvents(content.text())) if (event.type === "hello") this.#hello(from, event);
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem; // presence that cannot be taken is dropped
    }
  }

  async #takeEvents(from, stanza, content) {
    try {
      const take = { op: this.#op, ack: this.#ack, cancel: this.#cancel, describe: this.#describe, hello: this.#hello };
      const events = readEvents(content.text());
      const answers = new Set(events.map((event) => take[event.type].call(this, from, event, stanza)));
      const calls = [...answers].filter((answer) => answer instanceof Call);
      const others = [...answers].filter((answer) => answer && !(answer instanceof Call));
      await this.#window(calls);
      const replies = this.#fit(from, stanza, calls, others);
      this.#answer(stanza, ...(replies.length > 0 ? [x(...replies)] : []));
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      const text = xml("text", NS_STANZAS, problem.message);
      this.#answer(stanza, error(...STANZA_ERRORS[problem.reason], text, xml("reason", NS, problem.reason)));
    }
  }

  /** Without other rules, who may ask: the own domain, and dispatchers. */
  #allows(from) {
    return domain(from) === domain(this.#settings.address) || this.#dispatchers.has(from);
  }

  /** All dispatchers are one caller, and all resources of an account are one. */
  #key(from, { id, attempt }) {
    return `${this.#dispatchers.has(from) ? "/dispatchers" : bare(from)} ${id} ${attempt}`;
  }

  #op(from, op, stanza) {
    const key = this.#key(from, op);
    const known = this.#allows(from) && this.#calls.get(key);
    const call = known || new Call(op);
    call.asked(from, stanza, op.left);
    if (known) return call;
    try {
      if (!this.#allows(from)) throw new Problem("not-allowed", "that is not allowed");
      if (this.#calls.size >= MOST.calls) throw new Problem("busy", "the agent can remember no more calls");
      this.#calls.set(key, call);
      const operation = this.#accept(op);
      this.#run(call, operation, readArguments(operation.args, op.args), op.left);
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      call.refuse(problem);
    }
    return call;
  }

  #accept({ op, left, epoch = this.#epoch, must }) {
    const strange = must.find((name) => !UNDERSTOOD.has(name));
    if (strange !== undefined) throw new Problem("not-understood", `'${strange}' is not understood here`, strange);
    if (epoch !== this.#epoch) throw new Problem("stale-epoch", "the agent was restarted since");
    if (left === 0) throw new Problem("expired", "the deadline passed before it was started");
    if (this.#draining) throw new Problem("draining", "the agent is shutting down and takes no new work");
    const operation = this.#operations.get(op);
    if (!operation) throw new Problem("unknown-op", `the agent does not offer ${op}`);
    if (this.#busy >= SLOTS || this.#live.size >= MOST.live) throw new Problem("busy", "the agent has no free slot");
    return operation;
  }

  #run(call, operation, args, left) {
    this.#live.add(call);
    call.on("said", (events) => this.#tell(call.addresses[0], events));
    call.once("ended", () => call.open || this.#say(call.addresses[0], call.answer));
    call.once("over", () => this.#live.delete(call));
    call.run(operation, args, left);
  }

  #ack(from, { id, attempt, also }) {
    for (const [i, a] of [[id, attempt], ...also])
      this.#calls.get(this.#key(from, { id: i, attempt: a }))?.acknowledge();
  }

  #cancel(from, cancel) {
    const key = this.#key(from, cancel);
    const known = this.#calls.get(key);
    const call = known ?? new Call(cancel);
    if (call.running) call.stop(new Problem("cancelled", "it was cancelled"));
    if (call.addresses.length > 0) return call.event("cancelled", { state: call.running ? "cancelled" : "late" });
    call.remember(cancel.left);
    call.refuse(new Problem("cancelled", "it was cancelled before it arrived"));
    if (this.#allows(from) && this.#calls.size < MOST.calls) this.#calls.set(key, call);
    return call.event("cancelled", { state: "unknown" });
  }

  #describe(from, { hash }) {
    if (hash !== this.#hash || !this.#allows(from)) return undefined;
    return { type: "description", hash, text: this.#description };
  }

  #hello(from, { dispatchers, stanza }) {
    if (!this.#allows(from)) return;
    const { here = false, greeted = false } = this.#peers.get(from) ?? {};
    this.#peers.delete(from); // so that the first one is who was silent longest
    this.#peers.set(from, { here: true, greeted, stanza });
    if (this.#peers.size > MOST.peers) this.#peers.delete(this.#peers.keys().next().value);
    if (this.#dispatchers.has(from)) {
      if (dispatchers.length > 0) this.#named = dispatchers;
      this.#believe();
      this.#advertise(from);
    } else if (!greeted) this.#greet(from);
    if (here) return;
    for (const call of this.#live) if (call.kept && call.addresses.includes(from)) this.#repeat(call, 1);
  }

  #left(from) {
    const peer = this.#peers.get(from);
    if (peer?.here) Object.assign(peer, { here: false, greeted: false, since: performance.now() });
    this.#believe();
  }

  /** Whom the credentials do not name, nor the last list of a dispatcher, is believed for as long as it is here. */
  #believe() {
    const here = [...this.#dispatchers].filter((address) => this.#peers.get(address)?.here);
    this.#dispatchers = new Set([...this.#settings.dispatchers, ...this.#named, ...here].slice(0, MOST.dispatchers));
  }

  // What goes

  async #send(stanza) {
    if (this.#client?.backlog > MOST.backlog) this.#client.drop();
    try {
      await this.#client?.send(stanza);
    } catch {
      // Lost with its stream, as any stanza may be; what matters is asked for, or said, again.
    }
  }

  #answer({ attrs: { from, id } }, ...children) {
    const type = children[0]?.is("error") ? "error" : "result";
    return this.#send(xml("iq", { type, to: from, id }, ...children));
  }

  #say(to, ...events) {
    this.#send(xml("iq", { type: "set", to, id: crypto.randomUUID() }, x(...events)));
  }

  #tell(to, events) {
    this.#send(xml("message", { type: "headline", to }, x(...events)));
  }

  /** Waits until all are answered, but in a batch not for long after the first one. */
  async #window(calls) {
    const running = calls.filter((call) => call.running);
    if (running.length === 0) return;
    const ends = running.map((call) => once(call, "ended"));
    const first = running.length < calls.length ? Promise.resolve() : Promise.race(ends);
    const enough = calls.length > 1 ? first.then(() => sleep(BATCH)) : ends[0];
    await Promise.race([Promise.all(ends), enough, sleep(WINDOW)]);
  }

  /** Adds to the events what is to say about the calls; finals that do not fit go in stanzas of their own. */
  #fit(from, stanza, calls, events) {
    let room = Math.min(STANZA, this.#peers.get(from)?.stanza ?? STANZA) - 2 - bytes(events);
    for (const call of calls) {
      const reply = call.reply(stanza);
      room -= bytes(reply);
      if (room >= 0) events.push(reply);
      else if (call.answer) this.#say(from, reply);
    }
    return events;
  }

  #greet(to) {
    const peer = this.#peers.get(to);
    if (peer) peer.greeted = true;
    const hello = { type: "hello", role: "agent", features: FEATURES, stanza: READS, epoch: this.#epoch };
    this.#send(xml("presence", { to }, x(hello)));
  }

  #advertise(...dispatchers) {
    const holds = [...this.#live].filter((call) => call.addresses.some((address) => this.#dispatchers.has(address)));
    const advertisement = {
      type: "advertisement",
      hash: this.#hash,
      epoch: this.#epoch,
      state: this.#draining ? "draining" : undefined,
      slots: SLOTS,
      busy: this.#busy,
      load: this.#busy / SLOTS,
      holds: holds.slice(0, MOST.holds).map(({ id, attempt }) => [id, attempt]),
      more: holds.length > MOST.holds || undefined,
      features: FEATURES,
      stanza: READS,
    };
    for (const to of dispatchers) this.#send(xml("presence", { to }, x(advertisement)));
  }

  /** Says a kept final again, to those who asked for it and are here. */
  #repeat(call, pause) {
    const here = (address) => this.#peers.get(address)?.here;
    const dispatched = call.addresses.some((address) => this.#dispatchers.has(address));
    const waiting = call.addresses.filter(here);
    const others = dispatched ? [...this.#dispatchers].filter(here).slice(0, 1) : [];
    for (const address of waiting.length > 0 ? waiting : others) this.#say(address, call.answer);
    call.repeatAfter(pause);
  }

  // What time brings

  get #busy() {
    let busy = 0;
    for (const call of this.#live) if (call.running) busy += 1;
    return busy;
  }

  #tick() {
    const now = performance.now();
    const text = `${this.#draining} ${this.#busy}`;
    const due = this.#told.at + (text === this.#told.text ? 4500 + 500 * Math.random() : 1000);
    if (now >= due) {
      this.#told = { at: now, text };
      this.#advertise(...this.#dispatchers);
    }
    for (const call of this.#live) {
      const peer = this.#peers.get(call.addresses[0]);
      const gone = peer?.here === false && now > peer.since + GRACE;
      if (call.kept && now > call.due) this.#repeat(call, call.pause * 2);
      if (call.running && gone && !this.#dispatchers.has(call.addresses[0])) {
        call.stop(new Problem("cancelled", "the caller is gone"));
      }
    }
    if (now > this.#heard + SILENCE) this.#client?.drop();
    else if (now > this.#heard + PING) {
      this.#send(
        xml("iq", { type: "get", to: domain(this.#settings.address), id: "ping" }, xml("ping", "urn:xmpp:ping")),
      );
    }
  }

  #forget() {
    const now = performance.now();
    for (const [key, call] of this.#calls) {
      if (now < call.forgotten) continue;
      call.acknowledge();
      this.#calls.delete(key);
    }
  }
}
