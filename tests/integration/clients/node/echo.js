// An agent of the core profile (docs/protocol.md, section 3) that offers /node/echo.
// Environment: that of `spinal account add --json`, and NODE_EXTRA_CA_CERTS=$SPINAL_CA.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { client, xml } from "@xmpp/client";

const NS = "urn:spinal:1";
const ERRORS = "urn:ietf:params:xml:ns:xmpp-stanzas";
const MAX_REMEMBERED = 10_000;

const { env } = process;
const [username, domain] = env.SPINAL_ADDRESS.split("@");
const [password] = readFileSync(env.SPINAL_PASSWORD_FILE, "utf8").split(/\r?\n/);
const dispatchers = (env.SPINAL_DISPATCHER ?? "").split(" ").filter(Boolean);
const service = `xmpp://${env.SPINAL_SERVER.split(" ")[0]}`;
const xmpp = client({ service, domain, username, password, resource: "agent" });

const args = { type: "object", properties: { text: { type: "string" } }, required: ["text"] };
const echo = { summary: "Say it again.", args, result: { type: "string" }, safe: true };
const text = JSON.stringify({ ops: { "/node/echo": { ...echo, effects: "reads", timeout: 10 } } });
const hash = createHash("sha256").update(text).digest("hex");
const epoch = Date.now();

const remembered = new Map(); // exchange -> { until, answer }

const bare = (address) => address.split("/")[0];
const allowed = (address) =>
  dispatchers.includes(address) || bare(address).split("@").at(-1) === domain;

function body(events) {
  const escape = (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return xml("x", { xmlns: NS }, JSON.stringify(events).replace(/[&<>\ufffe\uffff]/g, escape));
}

function run(op) {
  const refused = (reason, text) => ({ type: "error", problem: { reason, text } });
  if (op.left === 0) return refused("expired");
  if (op.epoch != null && op.epoch !== epoch) return refused("stale-epoch");
  if (op.must?.length) return refused("not-understood");
  if (op.op !== "/node/echo") return refused("unknown-op", `only /node/echo is offered`);
  const { text, ...others } = op.args ?? {};
  if (typeof text !== "string" || !text.isWellFormed() || Object.keys(others).length)
    return refused("bad-arguments", "'text' is needed, a string, and nothing else");
  if (remembered.size >= MAX_REMEMBERED) return refused("busy");
  console.log(`ran ${op.id}`);
  return { type: "final", value: text };
}

function take(from, event) {
  if (typeof event?.type !== "string") throw new Error("an event lacks its type");
  if (event.type === "describe" && event.hash === hash)
    return [{ type: "description", hash, text }];
  if (event.type !== "op") return [];
  const { id, left } = event, attempt = event.attempt ?? 1;
  if (typeof id !== "string" || !Number.isInteger(left)) throw new Error("an op lacks id or left");
  const now = performance.now();
  for (const [key, { until }] of remembered) if (until < now) remembered.delete(key);
  const exchange = JSON.stringify([bare(from), id, attempt]);
  const known = remembered.get(exchange);
  const answer = known?.answer ?? { ...run(event), id, attempt };
  if (remembered.size < MAX_REMEMBERED) remembered.set(exchange, { until: now + left, answer });
  return [answer];
}

xmpp.iqCallee.set(NS, "x", ({ stanza, element }) => {
  const { from } = stanza.attrs;
  const refused = (type, is, why) => xml("error", { type }, xml(is, ERRORS), xml("reason", NS, why));
  if (!allowed(from)) return refused("auth", "forbidden", "not-allowed");
  try {
    const answers = JSON.parse(element.text()).flatMap((event) => take(from, event));
    return answers.length ? body(answers) : {};
  } catch (error) {
    console.error(`${from} sent what cannot be read: ${error.message}`);
    return refused("modify", "bad-request", "malformed");
  }
});

function advertise() {
  const news = { type: "advertisement", hash, epoch, slots: 8 };
  for (const to of dispatchers) xmpp.send(xml("presence", { to }, body([news])));
}

let heartbeat;
// Else Nagle's algorithm and delayed ACKs hold up every answer for 40 ms.
xmpp.on("status", () => (xmpp.socket?.socket ?? xmpp.socket)?.setNoDelay?.(true));
xmpp.on("online", async (address) => {
  await xmpp.send(xml("presence"));
  advertise();
  heartbeat = setInterval(advertise, 5000 * (0.9 + 0.2 * Math.random()));
  console.log(`online ${address}`);
});
xmpp.on("disconnect", () => clearInterval(heartbeat));
xmpp.on("stanza", (stanza) => {
  const { type, from } = stanza.attrs;
  if (stanza.is("presence") && !type && dispatchers.includes(from)) advertise(); // its hello
});
xmpp.on("error", (error) => console.error(`${error}`));
process.once("SIGTERM", () => {
  setTimeout(() => process.exit(), 5000).unref(); // a server may not answer the end of the stream
  xmpp.stop();
});
await xmpp.start().catch(() => process.exit(1));
