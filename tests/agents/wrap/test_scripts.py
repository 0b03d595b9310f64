from __future__ import annotations

import pytest

from spinal.agents import document
from spinal.agents.document import BadDocument
from spinal.agents.wrap import manifest


def read(command: str, argument: str = "{}") -> None:
    text = f"agent: a\nops:\n  /x:\n    args: {{x: {argument}}}\n    command: {command}\n"
    manifest.of(document.read(text, "m.yaml", manifest.schema()))


@pytest.mark.parametrize(
    "command",
    [
        "[sh, -c, 'echo {x}']",
        "[/bin/sh, -c, '{x}']",
        "[sh, '{x}']",
        "[bash, -lc, 'echo {x}']",
        "[bash, -c, ':', -c, '{x}']",
        "[bash, --norc, -c, 'echo {x}']",
        "[bash, -o, pipefail, -c, 'echo {x}']",
        "[dash, [-c, '{x}']]",
        "[env, -S, 'sh -c {x}']",
        "[env, MODE=a, sh, -c, 'echo {x}']",
        "[busybox, sh, -c, 'echo {x}']",
        "[busybox, '{x}']",
        "[sudo, -u, bob, sh, -c, 'echo {x}']",
        "[su, -, bob, -c, 'echo {x}']",
        "[timeout, '5', sh, -c, 'echo {x}']",
        "[chroot, /srv, sh, -c, '{x}']",
        "[docker, exec, c, sh, -c, '{x}']",
        "[systemd-run, --wait, sh, -c, '{x}']",
        "[flock, /tmp/l, -c, '{x}']",
        "[find, ., -name, a, -exec, sh, -c, 'echo {x}', ';']",
        "[find, ., -exec, '{x}', ';']",
        "[xargs, '{x}']",
        "[xargs, -n, '1', '{x}']",
        "[timeout, '5', '{x}']",
        "[env, '{x}', echo]",
        "[env, MODE=a, '{x}']",
        "[sudo, -u, bob, '{x}']",
        "[nice, -n, '5', '{x}']",
        "[stdbuf, -oL, '{x}']",
        "[chroot, /srv, '{x}']",
        "[setsid, -w, '{x}']",
        "[script, -qec, 'ls {x}', /dev/null]",
        "[psql, -tAc, 'select {x}']",
        "[su, bob, -lc, 'echo {x}']",
        "[env, -iS, 'echo {x}']",
        "[watch, 'ls {x}']",
        "[ssh, '{x}']",
        "[ssh, -p, '22', host, 'ls {x}']",
        "[ssh, -o, 'ProxyCommand={x}', host]",
        "[python3, -c, 'print({x})']",
        "[python3.11, -Ic, 'print({x})']",
        "[python3, '{x}']",
        "[perl, -ne, 'print {x}']",
        "[node, --eval, '{x}']",
        "[node, '--eval={x}']",
        "[php, -r, '{x}']",
        "[Rscript, -e, '{x}']",
        "[awk, -F, ':', '{{print}} {x}']",
        "[sed, -n, -e, 's/a/{x}/', file]",
        "[jq, '{x}', file]",
        "[make, 'X={x}']",
        "[git, -c, 'alias.a=!{x}', a]",
        "[tar, cf, a.tar, '--checkpoint-action=exec={x}', dir]",
        "[psql, shop, -c, 'select {x}']",
        "[psql, '--command=select {x}']",
        "[mysql, -e, 'select {x}']",
        "[sqlite3, -json, a.db, 'select {x}']",
    ],
)
def test_no_argument_becomes_part_of_a_script(command: str) -> None:
    with pytest.raises(BadDocument) as caught:
        read(command)

    (told,) = caught.value.mistakes
    assert told.line == 5 and told.key.startswith("ops./x.command.")
    assert any(
        words in told.text for words in ("part of a script", "agent there", "program itself")
    )


@pytest.mark.parametrize(
    "command",
    [
        "[sh, -c, 'echo \"$1\"', sh, '{x}']",
        "[sh, run.sh, '{x}']",
        "[python3, -m, json.tool, '{x}']",
        "[python3, -u, tool.py, --name, '{x}']",
        "[perl, -w, report.pl, '{x}']",
        "[awk, -v, 'a={x}', '{{print a}}', file]",
        "[sed, s/a/b/, '{x}']",
        "[env, 'MODE={x}', prog]",
        "[timeout, '5', prog, '{x}']",
        "[find, '{x}', -type, f]",
        "[git, log, --author, '{x}']",
        "[git, -C, folder, show, '{x}']",
        "[tar, tf, '{x}']",
        "[docker, run, --rm, image, '{x}']",
        "[apt-cache, show, make, '{x}']",
        "[man, sh, '{x}']",
        "[sqlite3, '{x}', .tables]",
        "[jq, .name, '{x}']",
    ],
)
def test_what_is_no_script_may_come_from_an_argument(command: str) -> None:
    read(command)


def test_a_number_or_a_choice_can_do_no_harm_in_a_script() -> None:
    read("[sed, -n, '{x}p', file]", "{type: integer}")
    read("[jq, '.{x}', file]", "{enum: [name, size]}")
