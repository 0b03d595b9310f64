// What an agent knows of the calls that it was asked for (sections 5 and 6 of the protocol).

import { EventEmitter } from "node:events";
import { performance } from "node:perf_hooks";
import { Problem, Refusal, writeJSON } from "./events.js";

const INLINE = 32_768; // bytes of JSON text in one result
const KEPT = 600_000; // milliseconds after its deadline that a final is kept which nobody acknowledges
const MARGIN = 60_000; // and that anything else is remembered: an op that was sent again may be on its way

/** One attempt of one call. Emits "said" with events that may be lost, "ended", and "over" when nothing is kept of it. */
export class Call extends EventEmitter {
  answer = null; // the final or the error, once there is one
  running = false;
  kept = false; // it has a final that nobody has acknowledged
  addresses = []; // that asked for it, the last one first
  #controller = new AbortController();
  #deadline = 0;
  #first = null; // the stanza that came first
  #open = null; // the stanza that still waits for the final

  constructor({ id, attempt }) {
    super();
    Object.assign(this, { id, attempt });
  }

  /** For `setTimeout` and the like: aborted when the call is cancelled or its deadline has passed. */
  get signal() {
    return this.#controller.signal;
  }

  /** Whether a stanza is open that its final can go into. */
  get open() {
    return this.#open !== null;
  }

  /** When nothing need be known of it any more, in milliseconds of the monotonic clock. */
  get forgotten() {
    return this.running ? Infinity : this.#deadline + (this.kept ? KEPT : MARGIN);
  }

  event(type, members) {
    return { type, id: this.id, attempt: this.attempt === 1 ? undefined : this.attempt, ...members };
  }

  remember(left) {
    this.#deadline = Math.max(this.#deadline, performance.now() + left);
  }

  /** Somebody asks for it, for the first time or again: what it has to say goes there from now on. */
  asked(from, stanza, left) {
    this.remember(left);
    this.#first ??= stanza;
    this.#open = stanza;
    this.addresses = [...new Set([from, ...this.addresses])].slice(0, 8);
  }

  refuse(problem) {
    this.answer = this.event("error", { problem });
  }

  /** Runs the operation, and ends the call at its deadline even if the operation does not heed the signal. */
  async run({ run, timeout }, args, left) {
    const began = performance.now();
    const late = () => this.stop(new Problem("deadline", "the deadline passed"));
    const timer = setTimeout(late, Math.min(left, timeout * 1000));
    const stopped = new Promise((_resolve, reject) => this.signal.addEventListener("abort", reject));
    this.running = true;
    try {
      const value = (await Promise.race([run(args, this), stopped])) ?? null;
      if (Buffer.byteLength(writeJSON(value)) > INLINE) throw new Problem("too-large", "the result is too large");
      this.answer = this.event("final", { value });
    } catch (error) {
      if (error instanceof Refusal) this.refuse(error);
      else this.answer = this.event("final", { problem: this.signal.aborted ? this.signal.reason : expected(error) });
    }
    clearTimeout(timer);
    this.running = false;
    if (this.answer.type === "final") {
      this.answer.ran = Math.round(performance.now() - began);
      this.kept = true;
      this.repeatAfter(1);
    }
    this.emit("ended");
    if (!this.kept) this.emit("over");
  }

  report(done, total, text) {
    this.emit("said", [this.event("progress", { done, total }), this.event("log", { text })]);
  }

  stop(problem) {
    this.#controller.abort(problem);
  }

  /** What is said to a stanza that asked for it. */
  reply(stanza) {
    if (this.#open !== stanza) return this.event("accepted"); // another address has asked since
    this.#open = null;
    if (!this.answer) return this.event("accepted");
    return this.answer.type === "final" && stanza !== this.#first ? { ...this.answer, again: true } : this.answer;
  }

  /** The final need not be kept: from now on it is only remembered that there was one. */
  acknowledge() {
    if (!this.kept) return;
    this.kept = false;
    this.refuse(new Problem("already-done", "it was already done, and its answer has been taken"));
    this.emit("over");
  }

  /** A final that is not acknowledged is said again after so many seconds. */
  repeatAfter(pause) {
    this.pause = Math.min(pause, 30);
    this.due = performance.now() + this.pause * 1000;
  }
}

function expected(error) {
  if (error instanceof Problem) return error;
  console.error(error);
  return new Problem("failed", "the operation failed");
}
