// The operations by which `spinal conform` tries an agent (section 18 of the protocol), offered on the bus.

import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { Problem, Refusal } from "./events.js";
import { Agent } from "./spinal.js";

const text = { type: "string", maxLength: 1000 };
const begun = new Map(); // how often /conform/work was begun, by name

const operations = {
  "/conform/echo": reading("Gives back the value.", { value: {} }, ({ value }) => value),

  "/conform/repeat": reading(
    "Gives the text, so many times.",
    { text, times: { type: "integer", minimum: 1, maximum: 1000, default: 1 } },
    ({ text, times }) => text.repeat(times),
  ),

  "/conform/fail": reading("Fails with the text.", { text }, ({ text }) => {
    throw new Problem("failed", text);
  }),

  "/conform/refuse": reading("Refuses with the text.", { text }, ({ text }) => {
    throw new Refusal("refused", text);
  }),

  "/conform/report": reading(
    "Reports each step.",
    { steps: { type: "integer", minimum: 1, maximum: 100 } },
    ({ steps }, call) => {
      for (let step = 1; step <= steps; step += 1) call.report(step, steps, `step ${step}`);
      return steps;
    },
  ),

  "/conform/work": {
    summary: "Waits, and says how often it was begun under this name.",
    args: object({
      name: { type: "string", maxLength: 64 },
      seconds: { type: "number", minimum: 0, maximum: 600, default: 0 },
    }),
    effects: "writes",
    safe: false,
    timeout: 600,
    async run({ name, seconds }, { signal }) {
      const times = (begun.get(name) ?? 0) + 1;
      begun.delete(name); // so that the first name is the one that was begun longest ago
      begun.set(name, times);
      if (begun.size > 10_000) begun.delete(begun.keys().next().value);
      await sleep(seconds * 1000, undefined, { signal });
      return times;
    },
  },
};

function reading(summary, properties, run) {
  return { summary, args: object(properties), effects: "reads", safe: true, timeout: 60, run };
}

/** The schema of an argument object; what has no default is required. */
function object(properties) {
  const required = Object.keys(properties).filter((name) => properties[name].default === undefined);
  return { type: "object", properties, required };
}

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
