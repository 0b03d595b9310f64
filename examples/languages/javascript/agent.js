// The operations by which `spinal conform` tries an agent (section 18 of the protocol), offered on the bus.

import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { Problem, Refusal } from "./events.js";
import { Agent } from "./spinal.js";

const object = (properties, required) => ({ type: "object", properties, required });
const text = { type: "string", maxLength: 1000 };
const begun = new Map(); // how often /conform/work was begun, by name

const operations = {
  "/conform/echo": {
    summary: "Gives back the value.",
    args: object({ value: {} }, ["value"]),
    result: {},
    effects: "reads",
    safe: true,
    timeout: 60,
    run: ({ value }) => value,
  },
  "/conform/repeat": {
    summary: "Gives the text, so many times.",
    args: object({ text, times: { type: "integer", minimum: 1, maximum: 1000, default: 1 } }, ["text"]),
    result: { type: "string" },
    effects: "reads",
    safe: true,
    timeout: 60,
    run: ({ text, times }) => text.repeat(times),
  },
  "/conform/work": {
    summary: "Waits, and says how often it has begun under this name.",
    args: object(
      {
        name: { type: "string", maxLength: 64 },
        seconds: { type: "number", minimum: 0, maximum: 600, default: 0 },
      },
      ["name"],
    ),
    result: { type: "integer" },
    effects: "writes",
    safe: false,
    timeout: 600,
    async run({ name, seconds }, { signal }) {
      const times = (begun.get(name) ?? 0) + 1;
      begun.delete(name); // so that the first one is the oldest
      begun.set(name, times);
      if (begun.size > 10_000) begun.delete(begun.keys().next().value);
      await sleep(seconds * 1000, undefined, { signal });
      return times;
    },
  },
  "/conform/fail": {
    summary: "Fails with the text.",
    args: object({ text }, ["text"]),
    effects: "reads",
    safe: true,
    timeout: 60,
    run({ text }) {
      throw new Problem("failed", text);
    },
  },
  "/conform/refuse": {
    summary: "Refuses with the text.",
    args: object({ text }, ["text"]),
    effects: "reads",
    safe: true,
    timeout: 60,
    run({ text }) {
      throw new Refusal("refused", text);
    },
  },
  "/conform/report": {
    summary: "Reports each step.",
    args: object({ steps: { type: "integer", minimum: 1, maximum: 100 } }, ["steps"]),
    result: { type: "integer" },
    effects: "reads",
    safe: true,
    timeout: 60,
    run({ steps }, call) {
      for (let step = 1; step <= steps; step += 1) call.report(step, steps, `step ${step}`);
      return steps;
    },
  },
};

function variable(name) {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set`);
  return value;
}

try {
  const agent = new Agent(
    {
      address: variable("SPINAL_ADDRESS"),
      resource: "agent",
      password: readFileSync(variable("SPINAL_PASSWORD_FILE"), "utf8").split("\n", 1)[0].trim(),
      ca: readFileSync(variable("SPINAL_CA")),
      server: variable("SPINAL_SERVER"),
      dispatchers: (process.env.SPINAL_DISPATCHER ?? "").split(" ").filter(Boolean),
    },
    operations,
  );
  for (const signal of ["SIGTERM", "SIGINT"]) process.once(signal, () => agent.drain().then(() => process.exit(0)));
  await agent.run();
} catch (error) {
  console.error(error.message);
  process.exit(1);
}
