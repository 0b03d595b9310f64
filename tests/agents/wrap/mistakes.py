"""Manifests with one mistake each: what stands in them, and what is to be said about it.

A case is the text of a manifest or a change to :data:`GOOD`, the line and key that are named, and
words that must be in the text: what is wrong, and what to write.
"""

from __future__ import annotations

from tests.mistakes import Case

GOOD = """\
agent: units
place: {site: /eu/fra/rack7}
tags: [gnu]
slots: 4
health: {run: [units, --version], every: 30s, fail_after: 2}
load: {file: /proc/loadavg, field: 1, full: 4}
rights: {call: [ann@example.org]}
ops:
  /units/convert:
    summary: Convert between units of measurement.
    args:
      from: {type: string, max_length: 80}
      to: {type: string, default: m}
    command: [units, --terse, "{from}", "{to}"]
    output: text
    exit: {0: done, 1: refused}
    timeout: 5s
    effects: reads
"""


def _case(old: str, new: str, line: int, key: str, *words: str) -> Case:
    return Case(GOOD, old, new, line, key, words)


OP = "ops./units/convert"
COMMAND = f"{OP}.command"
ARGV = '[units, --terse, "{from}", "{to}"]'

MISTAKES = [
    # The file.
    _case("", "", 1, "", "not a mapping"),
    _case("", "agent: [units\n", 2, "", "no YAML", "brackets"),
    _case("", "agent: units\n\tops: {}\n", 2, "", "tab", "spaces"),
    _case("", "- agent\n", 1, "", "a list is not a mapping"),
    _case("summary: Convert between", "summary: Convert: between", 10, "", "second ': '", "quotes"),
    _case("tags: [gnu]", "tags: !python/object [gnu]", 3, "tags", "tag", "leave it out"),
    _case("slots: 4", "slots: 4\nslots: 5", 5, "slots", "stands twice", "line 4"),
    _case("slots: 4", "[a]: 4", 4, "", "a key must be a word"),
    # The agent.
    _case("agent: units\n", "", 1, "", "'agent' is missing", "write agent: units"),
    _case("agent: units", "agent: 5", 1, "agent", "5 is not a text", "agent: units"),
    _case("agent: units", "agent: Units!", 1, "agent", "'Units!' is no name", "agent: units"),
    _case("agent: units", "agnet: units", 1, "agnet", "not known", "did you mean 'agent'?"),
    _case("place: {site: /eu/fra/rack7}", "place: {site: eu}", 2, "place", "'eu'", "/eu/fra"),
    _case("place: {site: /eu/fra/rack7}", "place: 7", 2, "place", "7", "site: /eu/fra/rack7"),
    _case("tags: [gnu]", "tags: gnu", 3, "tags", "'gnu' is not a list", "tags: [gnu]"),
    _case("tags: [gnu]", "tags: [3]", 3, "tags.0", "3 is not a text"),
    _case("slots: 4", "slots: four", 4, "slots", "'four' is not an integer", "slots: 4"),
    _case("slots: 4", "slots: 0", 4, "slots", "at least 1", "slots: 4"),
    _case("slots: 4", "cost: -1", 4, "cost", "at least 0"),
    _case("every: 30s", "every: 30 parsecs", 5, "health.every", "length of time", "5s"),
    _case("fail_after: 2", "fail_after: never", 5, "health.fail_after", "integer", "fail_after: 2"),
    _case("run: [units, --version], ", "", 5, "health", "asks nothing", "run, http, tcp"),
    _case("health: {run", "health: {tcp: 'x:1', run", 5, "health", "together", "one of"),
    _case("run: [units, --version]", "run: units", 5, "health.run", "list", "[units, --version]"),
    _case("run: [units, --version]", "http: ftp://x", 5, "health.http", "no URL"),
    _case("health: {run: [units, --version]", "health: {tcp: 11211", 5, "health.tcp", "text"),
    _case("file: /proc/loadavg, field", "field", 6, "load", "measures nothing", "file, run, http"),
    _case("field: 1", "field: 0", 6, "load.field", "at least 1"),
    _case("full: 4", "full: 0", 6, "load.full", "more than 0"),
    _case("load: {file: /proc/loadavg, field: 1, full: 4}", "load: slots", 6, "load", "busy"),
    _case("[ann@example.org]", "[ann]", 7, "rights.call.0", "no address", "ann@example.org"),
    _case("rights: {call: [ann@example.org]}", "rights: {}", 7, "rights", "'call' is missing"),
    # The operation.
    _case("", "agent: units\n", 1, "", "'ops' is missing", "/units/convert"),
    _case("", "agent: units\nops: {}\n", 2, "ops", "is empty", "/units/convert"),
    _case("  /units/convert:", "  units/convert:", 9, "ops.units/convert", "'/'", "/units/convert"),
    _case("  /units/convert:", "  /:", 9, "ops./", "no operation", "/units/convert"),
    _case("timeout: 5s", "timeout: soon", 17, f"{OP}.timeout", "length of time", "5s"),
    _case("timeout: 5s", "timeout: 0", 17, f"{OP}.timeout", "length of time"),
    _case("effects: reads", "effects: read", 18, f"{OP}.effects", "did you mean reads?"),
    _case("effects: reads", "safe: 'yes'", 18, f"{OP}.safe", "true or false"),
    _case("effects: reads", "retry: often", 18, f"{OP}.retry", "integer or a mapping", "retry: 3"),
    _case(
        "effects: reads", "retry: {counts: 3}", 18, f"{OP}.retry.counts", "did you mean 'count'?"
    ),
    _case("effects: reads", "slots: 0", 18, f"{OP}.slots", "at least 1"),
    _case("effects: reads", "timeuot: 3s", 18, f"{OP}.timeuot", "did you mean 'timeout'?"),
    # Its arguments.
    _case(
        "type: string, max_length",
        "type: text, max_length",
        12,
        f"{OP}.args.from.type",
        "none of",
        "string",
    ),
    _case(
        "from: {type: string", "from-: {type: string", 12, f"{OP}.args.from-", "'from-'", "letters"
    ),
    _case(
        "type: string, max_length",
        "type: integer, max_length",
        12,
        f"{OP}.args.from.max_length",
        "string",
        "integer",
    ),
    _case(
        "max_length: 80", "pattern: '[0-9'", 12, f"{OP}.args.from.pattern", "no regular expression"
    ),
    _case(
        "max_length: 80",
        "min_length: 9, max_length: 3",
        12,
        f"{OP}.args.from.min_length",
        "more than",
    ),
    _case("max_length: 80", "enum: []", 12, f"{OP}.args.from.enum", "is empty", "[EUR, USD]"),
    _case("max_length: 80", "enum: [1, 2]", 12, f"{OP}.args.from.enum", "holds 1", "quotes"),
    _case(
        "max_length: 80",
        "maxlength: 80",
        12,
        f"{OP}.args.from.maxlength",
        "did you mean 'max_length'?",
    ),
    _case("default: m", "default: 3", 13, f"{OP}.args.to.default", "does not fit"),
    _case(
        "default: m",
        "default: m, max_length: 80, pattern: '[0-9]+'",
        13,
        f"{OP}.args.to.default",
        "must match",
    ),
    _case("default: m", "default: m}\n      why: {", 14, f"{OP}.args.why", "is not used", "{why}"),
    _case("default: m", "optional: true", 14, f"{COMMAND}.3", "may be missing", "inner list"),
    _case("to: {type", "tmp: {type", 13, f"{OP}.args.tmp", "another name"),
    # Its kind.
    _case(f"    command: {ARGV}\n", "", 9, OP, "does nothing", "command"),
    _case(ARGV, "units --terse {from} {to}", 14, COMMAND, "is not a list", "[units"),
    _case(
        ARGV,
        '["units --terse", "{from}", "{to}"]',
        14,
        f"{COMMAND}.0",
        "one list entry for each",
        "units, --terse",
    ),
    _case(ARGV, "[]", 14, COMMAND, "is empty", "[units"),
    _case(ARGV, '["{from}", "{to}"]', 14, f"{COMMAND}.0", "cannot come from an argument"),
    _case(ARGV, '[units, "{form}", "{to}"]', 14, f"{COMMAND}.1", "{form}", "it has from, to"),
    _case(ARGV, '[units, "{from", "{to}"]', 14, f"{COMMAND}.1", "stands alone", "twice"),
    _case(ARGV, '[units, "{a b}", "{to}"]', 14, f"{COMMAND}.1", "no name"),
    _case(ARGV, "[sh, -c, 'units {from} {to}']", 14, f"{COMMAND}.2", "script of sh", '"$1"'),
    _case(ARGV, "[bash, -ec, 'units {from} {to}']", 14, f"{COMMAND}.2", "script of bash"),
    _case(ARGV, "[python3, -c, 'print({from}, {to})']", 14, f"{COMMAND}.2", "script of python"),
    _case(ARGV, "[awk, '{{ print {from} {to} }}']", 14, f"{COMMAND}.1", "script of awk"),
    _case(ARGV, "[env, sh, -c, 'units {from} {to}']", 14, f"{COMMAND}.3", "script of sh"),
    _case(
        ARGV,
        "[ssh, old-box, units, '{from}', '{to}']",
        14,
        f"{COMMAND}.3",
        "other machine",
        "agent there",
    ),
    _case(ARGV, '[units, {if: from, argv: [-t]}, "{to}"]', 14, f"{COMMAND}.1.if", "no boolean"),
    _case("output: text", "output: yaml", 15, f"{OP}.output", "none of", "json"),
    _case(
        "output: text", "output: {regex: '('}", 15, f"{OP}.output.regex", "no regular expression"
    ),
    _case(
        "output: text",
        "output: {regex: '[0-9]+'}",
        15,
        f"{OP}.output.regex",
        "has no group",
        "(?P<",
    ),
    _case(
        "output: text",
        r"output: {regex: '(?P<n>\d+)', sample: none}",
        15,
        f"{OP}.output.sample",
        "does not match",
    ),
    _case(
        "output: text",
        r"output: {regex: '(?P<n>\d+)', fields: {m: integer}}",
        15,
        f"{OP}.output.fields.m",
        "no named group",
    ),
    _case(
        "output: text",
        "output: {json: data}",
        15,
        f"{OP}.output.json",
        "no JSON pointer",
        "/data/items",
    ),
    _case(
        "output: text",
        "output: {blob: picture}",
        15,
        f"{OP}.output.blob",
        "no media type",
        "image/png",
    ),
    _case("1: refused", "1: refuse", 16, f"{OP}.exit.1", "done, refused, retry or error"),
    _case("1: refused", "256: refused", 16, f"{OP}.exit.256", "not known here"),
    _case("output: text", "stdin: '{form}'", 15, f"{OP}.stdin", "{form}"),
    _case("output: text", "progress: dots", 15, f"{OP}.progress", "lines"),
    _case("output: text", "limits: {memory: lots}", 15, f"{OP}.limits.memory", "256M"),
    _case("output: text", "env: {A-B: x}", 15, f"{OP}.env.A-B", "'A-B'", "letters"),
    _case(
        "output: text", "env: {A: {password: x}}", 15, f"{OP}.env.A", "by reference", "env: NAME"
    ),
]
