// The events that an agent reads, and how it writes its own (sections 2, 4 and 5 of the protocol).

import { Ajv } from "ajv";

export const EPOCH = Date.now(); // the number of this life of the agent
export const ajv = new Ajv({ strict: false, useDefaults: true });

const UNSAFE = /^-?(\d+|Infinity)$/;
const STRING_OR_NUMBER = /"[^"\\]*(?:\\.[^"\\]*)*"|-?\d[\d.eE+-]*/g;
export const isOp = object({
  id: { type: "string", pattern: "^[!-~]{1,128}$" },
  attempt: { type: "integer", minimum: 1, maximum: 1_000_000, default: 1 },
  op: { type: "string", pattern: "^(/|(/[^/]+)+)$" },
  left: { type: "integer", minimum: 0, maximum: 31_622_400_000 },
  args: { type: "object", default: {} },
  epoch: { type: "integer", minimum: 0, default: EPOCH },
  must: { type: "array", items: { type: "string" }, default: [] },
});

/** What went wrong, with a reason of section 9.1. */
export class Problem extends Error {
  constructor(reason, text) {
    super(text);
    Object.assign(this, { reason, text });
  }
}

/** A check of objects that fills in defaults; a property without default is required. */
export function object(properties, additionalProperties = true) {
  const required = Object.keys(properties).filter((name) => !("default" in properties[name]));
  return ajv.compile({ type: "object", properties, required, additionalProperties });
}

/** Reads a list of events. Throws an error if anything is wrong. */
export function read(text) {
  const events = JSON.parse(text);
  if (text.match(STRING_OR_NUMBER)?.some(isRounded)) throw new Error("a number is too large");
  check(events, 0);
  if (!Array.isArray(events)) throw new Error("the text is not a list");
  for (const event of events) {
    if (typeof event?.type !== "string") throw new Error("an event is an object with a type");
    for (const name of Object.keys(event)) if (event[name] === null) delete event[name];
    if (event.type === "op" && !isOp(event)) throw new Error(ajv.errorsText(isOp.errors, { dataVar: "op" }));
  }
  return events;
}

/** JSON.parse rounds large integers without a word, and JSON.stringify would write 1e16 as one. */
function isRounded(token) {
  return !Number.isSafeInteger(Number(token)) && (UNSAFE.test(token) || UNSAFE.test(Number(token)));
}

function check(value, depth) {
  if (typeof value === "string" && !value.isWellFormed()) throw new Error("a string holds a lone surrogate");
  if (typeof value !== "object" || value === null) return;
  if (depth > 32) throw new Error("an event is too deep");
  for (const item of Object.entries(value).flat()) check(item, depth + 1);
}

/** JSON without the two characters that XML cannot carry. */
export const write = (value) => JSON.stringify(value).replaceAll("\ufffe", "\\ufffe").replaceAll("\uffff", "\\uffff");
