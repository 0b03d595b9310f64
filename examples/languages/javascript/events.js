// The text of <x>: which events may come, and how they are written (sections 2, 4, 5 and 11 of the protocol).

/** Bytes of JSON text that are read in one stanza. */
export const READS = 262_144;

const LIMITS = { events: 1000, depth: 32, members: 20_000 };
const YEAR = 31_622_400_000;
const NUMBER_OR_STRING = /"[^"\\]*(?:\\.[^"\\]*)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;

/** What went wrong, with one of the reasons of section 9. */
export class Problem extends Error {
  constructor(reason, text, argument) {
    super(text);
    Object.assign(this, { reason, argument });
  }

  toJSON() {
    const short = (text, most) => text?.slice(0, most).toWellFormed(); // it may have been cut within a character
    return { reason: this.reason, text: short(this.message, 4096), argument: short(this.argument, 256) };
  }
}

/** Thrown by an operation before it has done anything: answered with `error`, not with `final`. */
export class Refusal extends Problem {}

const malformed = (text) => new Problem("malformed", text);

const text = (most) => (v) => typeof v === "string" && (v.length <= most || [...v].length <= most);
const int = (low, high) => (v) => Number.isSafeInteger(v) && v >= low && v <= high;
const list = (most, fits) => (v) => Array.isArray(v) && v.length <= most && v.every(fits);
const oneOf =
  (...words) =>
  (v) =>
    words.includes(v);
const object = (v) => typeof v === "object" && v !== null && !Array.isArray(v);
const pattern = (regex) => (v) => typeof v === "string" && regex.test(v);

const id = pattern(/^[\x21-\x7e]{1,128}$/);
const attempt = int(1, 1_000_000);
const epoch = int(0, Number.MAX_SAFE_INTEGER);
const part = String.raw`(?!\.{1,2}(?:/|$))[^\p{C}\p{Z}*?{}[\]<>"'\\/]+`;
const parts = pattern(new RegExp(`^(?:/|(?:/${part}){1,32})$`, "u"));
const path = (v) => parts(v) && Buffer.byteLength(v) <= 512;
const exchange = (v) => Array.isArray(v) && v.length === 2 && id(v[0]) && attempt(v[1]);

/** Members of the events that an agent reads: what fits, and the default. An event that is not here is left out. */
const REQUIRED = Symbol("required");
const EVENTS = {
  op: {
    id: [id, REQUIRED],
    attempt: [attempt, 1],
    op: [path, REQUIRED],
    left: [int(0, YEAR), REQUIRED],
    args: [object, {}],
    epoch: [epoch],
    key: [text(256)],
    caller: [text(3071)],
    grant: [text(4096)],
    trace: [text(128)],
    window: [int(0, 10_000), 0],
    must: [list(32, text(64)), []],
    want: [object],
  },
  ack: { id: [id, REQUIRED], attempt: [attempt, 1], also: [list(255, exchange), []] },
  cancel: { id: [id, REQUIRED], attempt: [attempt, 1], left: [int(0, YEAR), 60_000] },
  describe: { hash: [text(64), REQUIRED] },
  hello: {
    version: [text(16), "1.0"],
    role: [oneOf("agent", "caller", "dispatcher"), "caller"],
    features: [list(64, text(64)), []],
    stanza: [int(4096, Number.MAX_SAFE_INTEGER), 61_440],
    dispatchers: [list(64, text(3071)), []],
    epoch: [epoch],
  },
};

/** Reads the text of one <x>: a list of known events, with their defaults. Throws a Problem if anything is wrong. */
export function readEvents(json) {
  if (Buffer.byteLength(json) > READS) throw new Problem("too-large", "the text is too large");
  const [events, strict] = parse(json);
  if (!Array.isArray(events)) throw malformed("the text is not a list of events");
  if (events.length > LIMITS.events) throw new Problem("too-large", "there are too many events");
  return events.map((event, n) => readEvent(event, strict[n])).filter(Boolean);
}

/** The text as JavaScript reads it, and again with 0.5 for each number that is not written as an integer. */
function parse(json) {
  const strict = json.replace(NUMBER_OR_STRING, (token) => {
    if (token[0] === '"') return token;
    if (!Number.isFinite(Number(token))) throw malformed("a number is too large");
    if (/[.eE]/.test(token)) return "0.5";
    if (!Number.isSafeInteger(Number(token))) throw malformed("integers beyond 2^53 - 1 travel as strings");
    return token;
  });
  try {
    const events = JSON.parse(json);
    return [events, strict === json ? events : JSON.parse(strict)];
  } catch {
    throw malformed("the text is not JSON");
  }
}

function readEvent(event, strict) {
  if (!object(event) || typeof event.type !== "string") throw malformed("an event is an object with a 'type'");
  if (count(event, 1) > LIMITS.members) throw malformed("an event has too many members");
  if (!Object.hasOwn(EVENTS, event.type)) return null;
  const read = { type: event.type };
  for (const [name, [fits, otherwise]] of Object.entries(EVENTS[event.type])) {
    const absent = (event[name] ?? null) === null;
    if (absent && otherwise === REQUIRED) throw malformed(`'${event.type}' lacks '${name}'`);
    if (!absent && !fits(strict[name])) throw malformed(`'${name}' of '${event.type}' does not fit`);
    read[name] = absent ? otherwise : event[name];
  }
  return read;
}

/** How many elements and members there are, to the bottom. */
function count(value, depth) {
  if (typeof value === "string" && !value.isWellFormed()) throw malformed("a string holds a lone surrogate");
  if (typeof value !== "object" || value === null) return 0;
  if (depth > LIMITS.depth) throw malformed("an event is too deep");
  let sum = 0;
  for (const [key, item] of Object.entries(value)) {
    if (!key.isWellFormed()) throw malformed("a key holds a lone surrogate");
    sum += 1 + count(item, depth + 1);
  }
  return sum;
}

/** Writes JSON that XML can carry, and no integer beyond 2^53 - 1 (1e16 is JavaScript's 10000000000000000). */
export function writeJSON(value) {
  return JSON.stringify(value).replace(NUMBER_OR_STRING, (token) => {
    if (token[0] === '"') return token.replace(/[&<>\ufffe\uffff]/g, escape);
    return /[.e]/.test(token) || Number.isSafeInteger(Number(token)) ? token : Number(token).toExponential();
  });
}

const escape = (character) => "\\u" + character.charCodeAt(0).toString(16).padStart(4, "0");

/** Checks arguments against the keywords of section 8.1 that this program uses; gives them with their defaults. */
export function readArguments({ properties, required = [] }, args) {
  const wrong = (name, says) => new Problem("bad-arguments", `'${name}' ${says}`, name);
  for (const name of Object.keys(args)) if (!Object.hasOwn(properties, name)) throw wrong(name, "is not an argument");
  const read = {};
  for (const [name, schema] of Object.entries(properties)) {
    if (!Object.hasOwn(args, name)) {
      if (required.includes(name)) throw wrong(name, "is required");
      read[name] = schema.default;
      continue;
    }
    const value = args[name];
    if (schema.type && !TYPES[schema.type](value)) throw wrong(name, `must be of type ${schema.type}`);
    if (value < schema.minimum) throw wrong(name, `must be at least ${schema.minimum}`);
    if (value > schema.maximum) throw wrong(name, `must be at most ${schema.maximum}`);
    if (schema.maxLength !== undefined && !text(schema.maxLength)(value)) throw wrong(name, "is too long");
    read[name] = value;
  }
  return read;
}

const TYPES = {
  object,
  string: (v) => typeof v === "string",
  number: (v) => typeof v === "number",
  integer: Number.isInteger,
};
