// The operations by which `spinal conform` tries an agent (section 18 of the protocol): put yours in their place.

import { setTimeout as sleep } from "node:timers/promises";
import { Problem } from "./events.js";
import { serve } from "./spinal.js";

const name = { type: "string", maxLength: 64 };
const seconds = { type: "number", minimum: 0, maximum: 600, default: 0 };
const text = { type: "string", maxLength: 1000 };
const times = { type: "integer", minimum: 1, maximum: 1000, default: 1 };
const reads = { effects: "reads", safe: true };
const begun = new Map(); // how often /conform/work was begun, by name

async function work({ name, seconds }, signal) {
  const count = (begun.get(name) ?? 0) + 1;
  begun.set(name, count);
  if (begun.size > 10_000) begun.delete(begun.keys().next().value);
  await sleep(seconds * 1000, undefined, { signal });
  return count;
}

serve({
  "/conform/echo": { ...reads, args: { value: {} }, run: ({ value }) => value },
  "/conform/repeat": { ...reads, args: { text, times }, run: ({ text, times }) => text.repeat(times) },
  "/conform/fail": { ...reads, args: { text }, run: ({ text }) => Promise.reject(new Problem("failed", text)) },
  "/conform/refuse": { ...reads, args: { text }, run: ({ text }) => Promise.reject(new Problem("refused", text)) },
  "/conform/work": { args: { name, seconds }, timeout: 600, run: work },
});
