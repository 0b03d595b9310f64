"""What ordinary tools see of it, where it shows itself to them."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Mapping
from typing import Final
from xml.etree.ElementTree import Element, SubElement

from spinal.bus.errors import CallError
from spinal.protocols import NS

from ..check import Chapter
from ..trial import Trial
from ..verdict import NotOffered, Wrong

CHAPTER: Final = Chapter(16, "Ordinary tools", offer="service discovery")

INFO: Final = "{http://jabber.org/protocol/disco#info}"
ITEMS: Final = "{http://jabber.org/protocol/disco#items}"
COMMANDS: Final = "http://jabber.org/protocol/commands"
FORMS: Final = "{jabber:x:data}"
#: Seconds for an answer.
SOON: Final = 10.0


@CHAPTER.check("17", "service discovery says that it speaks this protocol")
async def says_so(trial: Trial) -> None:
    info = await _info(trial)
    if info.find(f"{INFO}identity") is None:
        raise Wrong("an identity in its answer to disco#info")
    if NS not in _features(info):
        raise Wrong(f"the feature {NS} in its answer to disco#info")


@CHAPTER.check("17", "its operations are items of it")
async def operations(trial: Trial) -> None:
    await _info(trial)
    answer = await _ask(trial, "get", Element(f"{ITEMS}query"))
    nodes = _nodes(trial, answer)
    missing = [path for path in trial.ops.paths.values() if path not in nodes]
    if trial.ops.paths["echo"] in missing:
        raise Wrong(f"an item with its address and the node {missing[0]}, beside {nodes[:20]}")


@CHAPTER.check("17", "its capabilities can be asked for by their hash, and have it")
async def capabilities(trial: Trial) -> None:
    info = await _info(trial)
    ver = _verification(info)
    named = await _ask(trial, "get", Element(f"{INFO}query", {"node": f"{NS}#{ver}"}))
    if _verification(named) != ver:
        raise Wrong(f"the same answer to disco#info for the node {NS}#{ver}")


@CHAPTER.check("17", "an operation is a command with a form, and runs when the form is submitted")
async def command(trial: Trial) -> None:
    trial.need_page("repeat")
    await _commands(trial)
    answer = await _execute(trial, "/conform/repeat")
    form = answer.find(f"{FORMS}x")
    if answer.get("status") != "executing" or form is None:
        raise Wrong("the status executing, and a form")
    fields = {field.get("var"): field for field in form.findall(f"{FORMS}field")}
    if "text" not in fields or fields["text"].find(f"{FORMS}required") is None:
        raise Wrong("a field 'text' that is required")
    if "times" not in fields or fields["times"].findtext(f"{FORMS}value") != "1":
        raise Wrong("a field 'times' with the value 1")
    done = await _execute(
        trial, "/conform/repeat", {"text": "ab", "times": "3"}, answer.get("sessionid", "")
    )
    said = done.findall(f"{FORMS}x/{FORMS}field")
    values = {field.get("var"): field.findtext(f"{FORMS}value") for field in said}
    if done.get("status") != "completed" or values.get("value") != '"ababab"':
        raise Wrong(f"the status completed and the value '\"ababab\"', not {values}")


@CHAPTER.check("17", "a form that does not fit is refused, and runs nothing")
async def bad_form(trial: Trial) -> None:
    trial.need_page("repeat")
    await _commands(trial)
    answer = await _execute(trial, "/conform/repeat")
    try:
        done = await _execute(
            trial, "/conform/repeat", {"text": "ab", "times": "0"}, answer.get("sessionid", "")
        )
    except Wrong as exc:
        if exc.got is None and "bad-request" in exc.expected:
            return
        raise
    raise Wrong(f"a stanza error with bad-request, not the status {done.get('status')}")


async def _info(trial: Trial) -> Element:
    try:
        return await _ask(trial, "get", Element(f"{INFO}query"))
    except Wrong:
        raise NotOffered("it does not answer disco#info") from None


async def _commands(trial: Trial) -> None:
    if COMMANDS not in _features(await _info(trial)):
        raise NotOffered(f"it does not name {COMMANDS}")
    query = Element(f"{ITEMS}query", {"node": COMMANDS})
    nodes = _nodes(trial, await _ask(trial, "get", query))
    if "/conform/repeat" not in nodes:
        raise Wrong(f"the command /conform/repeat, beside {nodes[:20]}")


async def _execute(
    trial: Trial, node: str, filled: Mapping[str, str] | None = None, session: str = ""
) -> Element:
    said = {"node": node, "action": "execute", "sessionid": session}
    command = Element(f"{{{COMMANDS}}}command", {k: v for k, v in said.items() if v})
    if filled is not None:
        form = SubElement(command, f"{FORMS}x", {"type": "submit"})
        for var, value in filled.items():
            SubElement(
                SubElement(form, f"{FORMS}field", {"var": var}), f"{FORMS}value"
            ).text = value
    return await _ask(trial, "set", command)


async def _ask(trial: Trial, kind: str, payload: Element) -> Element:
    name = payload.tag.rpartition("}")[2]
    try:
        answer = await trial.caller.connection.ask(kind, trial.agent, payload, SOON)
    except CallError as exc:
        problem = exc.problem
        raise Wrong(f"a result to <{name}>, not {problem.condition}: {problem.text}") from exc
    if answer is None:
        raise Wrong(f"a result with a child to <{name}>")
    return answer


def _features(info: Element) -> list[str]:
    return [feature.get("var", "") for feature in info.findall(f"{INFO}feature")]


def _nodes(trial: Trial, items: Element) -> list[str]:
    found = items.findall(f"{ITEMS}item")
    return [item.get("node", "") for item in found if item.get("jid") == trial.agent]


def _verification(info: Element) -> str:
    """The verification string, hashed (XEP-0115, 5.1)."""
    parts = sorted(
        "/".join(
            identity.get(name, "")
            for name in ("category", "type", "{http://www.w3.org/XML/1998/namespace}lang", "name")
        )
        for identity in info.findall(f"{INFO}identity")
    )
    parts += sorted(_features(info))
    for form in info.findall(f"{FORMS}x"):
        fields = {
            field.get("var", ""): sorted(v.text or "" for v in field.findall(f"{FORMS}value"))
            for field in form.findall(f"{FORMS}field")
        }
        parts += fields.pop("FORM_TYPE", [])
        for var in sorted(fields):
            parts += [var, *fields[var]]
    text = "".join(f"{part}<" for part in parts)
    return b64encode(hashlib.sha1(text.encode(), usedforsecurity=False).digest()).decode()
