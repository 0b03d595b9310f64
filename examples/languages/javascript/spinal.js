// An agent on a Spinal bus: what becomes of an op, and who is told what (sections 3, 6, 7, 8 and 14 of the protocol).

import { xml } from "@xmpp/client";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import { address, client, dispatchers } from "./bus.js";
import { ajv, EPOCH, isOp, object, Problem, read, write } from "./events.js";

const NS = "urn:spinal:1";
const NS_STANZAS = "urn:ietf:params:xml:ns:xmpp-stanzas";
const SLOTS = 200; // calls that run at once
const MOST = { calls: 10_000, peers: 5000, stanzas: 1000 }; // that are remembered, stanzas of each call
const MARGIN = 10_000; // milliseconds for which a call is remembered after its deadline
const INLINE = 32_768; // bytes of JSON text in one result

const operations = new Map();
const calls = new Map(); // by caller, id and attempt
const greeted = new Set(); // callers that have got our hello
let running = 0;
let draining = false;
let told = ""; // what the dispatchers know

const bare = (from) => from.split("/")[0];
const domain = (from) => bare(from).split("@").at(-1);
const isDispatcher = (from) => dispatchers.includes(from);
const mayAsk = (from) => domain(from) === domain(address) || isDispatcher(from);
const x = (...events) => xml("x", NS, write(events));
// An error ends the connection, and that is heard of.
const send = (stanza) => client.status === "online" && client.send(stanza).catch(() => {});

/** Keeps an agent with these operations on the bus until SIGTERM. */
export async function serve(offered) {
  for (const [path, { args, ...operation }] of Object.entries(offered)) {
    const fits = object(args, false);
    operations.set(path, { ...operation, args: fits.schema, fits });
  }
  const text = write({ ops: Object.fromEntries(operations) }); // JSON leaves the functions out
  const hash = createHash("sha256").update(text).digest("hex");
  const describe = (event, from) => event.hash === hash && mayAsk(from) && { type: "description", hash, text };
  client.on("stanza", (stanza) => stanza.is("presence") && meet(stanza.attrs, stanza.getChild("x", NS)));
  client.iqCallee.set(NS, "x", ({ stanza, element }) =>
    answer(stanza.attrs.from, element, { __proto__: null, op, describe }),
  );
  client.on("online", () => {
    console.log(`online ${client.jid}`);
    greeted.clear();
    told = "";
    send(xml("presence"));
  });
  client.start().catch(() => {}); // it has said why, and tries again
  process.once("SIGTERM", () => (draining = true));
  for (let second = 0; running > 0 || !draining; second += 1) {
    const state = draining ? "draining" : "available";
    const news = { type: "advertisement", hash, epoch: EPOCH, state, slots: SLOTS, busy: running };
    if (second % 5 === 0 || write(news) !== told) for (const to of dispatchers) send(xml("presence", { to }, x(news)));
    told = write(news);
    for (const [key, { until }] of calls) if (performance.now() > until) calls.delete(key);
    await sleep(1000 + 100 * Math.random());
  }
  await client.stop();
  process.exit(0);
}

/** Says hello to a caller that has come, once, and advertises to a dispatcher. */
function meet({ from, type }, element) {
  if (type) greeted.delete(from);
  else if (isDispatcher(from)) told = "";
  else if (element && mayAsk(from) && !greeted.has(from) && greeted.size < MOST.peers) {
    greeted.add(from);
    send(xml("presence", { to: from }, x({ type: "hello", role: "agent", epoch: EPOCH })));
  }
}

/** Gives what the answer to an IQ holds: events, nothing, or an error. */
async function answer(from = address, element, handlers) {
  try {
    const events = read(element.text());
    const many = events.filter(({ type }) => type === "op").length > 1;
    if (many) throw new Problem("not-understood", "there is more than one op in the stanza");
    const answers = await Promise.all(events.map((event) => handlers[event.type]?.(event, from)));
    const said = answers.filter(Boolean);
    return said.length > 0 ? x(...said) : {};
  } catch ({ reason, message }) {
    const [type, condition] = reason ? ["cancel", "feature-not-implemented"] : ["modify", "bad-request"];
    element.children = ["[]"]; // or the library sends it back with the error
    const texts = [xml("text", NS_STANZAS, message), xml("reason", NS, reason ?? "malformed")];
    return xml("error", { type }, xml(condition, NS_STANZAS), ...texts);
  }
}

/** Refuses or runs it, once, and gives the answer when there is one. */
function op(op, from) {
  const key = `${isDispatcher(from) ? "" : bare(from)} ${op.id} ${op.attempt}`;
  const problem = calls.has(key) ? undefined : refusal(op, from);
  if (problem) return { type: "error", id: op.id, attempt: op.attempt, problem };
  const call = calls.get(key) ?? { until: 0, stanzas: 0, answer: run(op).finally(() => (running -= 1)) };
  call.until = Math.max(call.until, performance.now() + op.left + MARGIN);
  call.stanzas += 1;
  calls.set(key, call);
  return call.stanzas > MOST.stanzas ? undefined : call.answer;
}

function refusal(op, from) {
  const operation = operations.get(op.op);
  const reasons = {
    "not-allowed": !mayAsk(from),
    "not-understood": op.must.some((name) => !Object.hasOwn(isOp.schema.properties, name)),
    "stale-epoch": op.epoch !== EPOCH,
    expired: op.left === 0,
    draining,
    "unknown-op": !operation,
    busy: running >= SLOTS || calls.size >= MOST.calls,
    "bad-arguments": !operation?.fits(op.args),
  };
  const reason = Object.keys(reasons).find((reason) => reasons[reason]);
  return reason && { reason, text: reason === "bad-arguments" ? ajv.errorsText(operation.fits.errors) : undefined };
}

/** Runs an operation to its end or its deadline. */
async function run({ id, attempt, op, args, left }) {
  const { run, timeout = 60 } = operations.get(op);
  const signal = AbortSignal.timeout(Math.min(left, timeout * 1000));
  running += 1;
  try {
    const value = (await Promise.race([run(args, signal), once(signal, "abort")])) ?? null;
    signal.throwIfAborted();
    if (Buffer.byteLength(write(value)) > INLINE) throw new Problem("too-large", "the result is too large");
    return { type: "final", id, attempt, value };
  } catch (error) {
    const known = error instanceof Problem;
    if (!known && !signal.aborted) console.error(error);
    const problem = signal.aborted ? { reason: "deadline" } : known ? error : { reason: "failed" };
    return { type: problem.reason === "refused" ? "error" : "final", id, attempt, problem };
  }
}
