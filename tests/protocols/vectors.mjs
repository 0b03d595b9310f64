// Reads codec.json, malformed.json and values.json with nothing but JSON.parse and events.json,
// to show that the vectors need no Python.  `node vectors.mjs VECTORS EVENTS.JSON`
//
// JSON.parse does not tell how a number was written, so what needs the digits is left out, and so
// is what only a validator or an XML parser can judge; both are counted.

import { readFileSync } from "node:fs";
import { join } from "node:path";

const [, , folder, schemaFile] = process.argv;
const schema = JSON.parse(readFileSync(schemaFile, "utf8"));
const types = new Set(schema.$defs.event.allOf.map((one) => one.if.properties.type.const));
const cases = (file) => JSON.parse(readFileSync(join(folder, file), "utf8")).cases;
const tally = { passed: 0, failed: 0, "left out": 0 };

function check(name, holds) {
  tally[holds ? "passed" : "failed"] += 1;
  if (!holds) console.log(`failed: ${name}`);
}

function textOf(said) {
  if (typeof said === "string") return said;
  return said
    .map((piece) => {
      if (typeof piece === "string") return piece;
      if (piece.repeat) return piece.repeat[0].repeat(piece.repeat[1]);
      const [one, times] = piece.count;
      return Array.from({ length: times }, (_, n) => one.replaceAll("#", n)).join("");
    })
    .join("");
}

// A byte order mark is to be refused, and not to be taken off.
const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

function parsed(one) {
  const bytes = "bytes" in one ? Buffer.from(one.bytes, "hex") : Buffer.from(textOf(one.text));
  try {
    return { value: JSON.parse(decoder.decode(bytes)) };
  } catch (error) {
    return { error };
  }
}

// Equal whatever the order of the members; -0 is 0.
function canonical(value) {
  if (Array.isArray(value)) return value.map(canonical);
  if (value === null || typeof value !== "object") return value;
  return Object.keys(value).sort().map((key) => [key, canonical(value[key])]);
}
const same = (one, other) =>
  JSON.stringify(canonical(one)) === JSON.stringify(canonical(other));

const meanings = Object.fromEntries(
  cases("errors.json").filter((one) => one.kind === "reason").map((one) => [one.reason, one]),
);

// Fill an object by the definition of that name: every member, with its default or null.
function filled(name, raw) {
  const out = {};
  for (const [member, said] of Object.entries(schema.$defs[name].properties)) {
    const given = raw[member] ?? said.default ?? null;
    const inner = (said.anyOf?.[0] ?? said).$ref?.split("/").at(-1);
    const nested = given !== null && ["want", "problem"].includes(inner);
    out[member] = nested ? filled(inner, given) : given;
  }
  if (name === "problem") {
    const meaning = meanings[out.reason] ?? meanings.failed;
    for (const member of ["type", "condition", "text"]) out[member] ??= meaning[member];
  }
  return out;
}

for (const one of cases("codec.json")) {
  if (one.xml) {
    tally["left out"] += 1;
    continue;
  }
  const { value, error } = parsed(one);
  const known = error ? [] : value.filter((event) => types.has(event.type));
  if ("count" in one) {
    check(one.name, !error && known.length === one.count);
    continue;
  }
  const found = known.map((event) => filled(event.type, event));
  check(one.name, !error && same(found, one.events));
  check(`${one.name}, written`, same(one.written.map((e) => filled(e.type, e)), one.events));
}

for (const one of cases("malformed.json")) {
  if (one.json === false) check(one.name, "error" in parsed(one));
  else tally["left out"] += 1;
}

for (const one of cases("values.json")) {
  if (one.needs?.includes("digits") || !("same" in one)) tally["left out"] += 1;
  else check(one.name, same(parsed(one).value, JSON.parse(one.same)));
}

console.log(Object.entries(tally).map(([how, count]) => `${count} ${how}`).join(", "));
process.exit(tally.failed ? 1 : 0);
