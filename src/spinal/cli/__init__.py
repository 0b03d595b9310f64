"""The command line: one module a verb, each imported when it is used.

``spinal --help`` imports click and nothing else, so that it is there at once.  What all verbs have
in common (``--home``, ``--json``, how errors end) is here and in :mod:`spinal.cli.common`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final, NoReturn

import click

from spinal import __version__

from .common import CONTEXT, Ended, report, show_home

#: Verb -> where its command is, and what it is for.
VERBS: Final = {
    "up": ("spinal.cli.up:up", "Start the platform: server and dispatcher, in the foreground."),
    "demo": ("spinal.cli.demo:demo", "See it at work on photographs."),
    "account": ("spinal.cli.account:account", "Add, list and remove accounts."),
    "agent": ("spinal.cli.agent:agent", "Run an agent."),
    "wrap": ("spinal.cli.wrap:wrap", "Make an agent of something that exists, from one file."),
    "ticket": ("spinal.cli.ticket:ticket", "Let a new machine join the bus."),
    "join": ("spinal.cli.join:join", "Make this machine part of a bus, and run its agents."),
    "call": ("spinal.cli.call:call", "Call an operation and print its value."),
    "map": ("spinal.cli.map:map_command", "Call an operation once for each of many files."),
    "submit": ("spinal.cli.submit:submit", "Submit a job: a call that is seen through."),
    "jobs": ("spinal.cli.jobs:jobs", "List the jobs, or watch them."),
    "job": ("spinal.cli.job:job", "Show, explain, wait for, cancel or retry one job."),
    "dead": ("spinal.cli.dead:dead", "List, retry or delete the jobs that failed."),
    "schedule": ("spinal.cli.schedule:schedule", "Submit jobs at the times of a cron line."),
    "limit": ("spinal.cli.limit:limit", "Bound how much of an operation runs at once."),
    "offers": ("spinal.cli.offers:offers", "List what all vendors rent, the cheapest first."),
    "pool": ("spinal.cli.pool:pool", "Keep machines, rented where they are cheapest."),
    "cost": ("spinal.cli.cost:cost", "Say what the machines cost, and what they will."),
    "sweep": ("spinal.cli.sweep:sweep", "Find machines that nobody remembers."),
    "service": ("spinal.cli.service:service", "Keep services running on some machine."),
    "provider": ("spinal.cli.provider:provider", "Rent machines of vendors, by accounts."),
    "agents": ("spinal.cli.agents:agents", "List the agents and how busy they are."),
    "ops": ("spinal.cli.ops:ops", "List the operations and what they take."),
    "resolve": ("spinal.cli.resolve:resolve", "Show who could do an operation, and why."),
    "tap": ("spinal.cli.tap:tap", "Watch the calls on the bus."),
    "conform": ("spinal.cli.conform:conform", "Try whether an agent keeps the protocol."),
}


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, _, name = VERBS[cmd_name][0].partition(":")
        command = getattr(import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(verb, about) for verb, (_, about) in VERBS.items()])


@click.group(cls=_Verbs, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="spinal", message="%(prog)s %(version)s")
@show_home
def cli() -> None:
    """Spinal: a message bus for automation.

    Start with `spinal up` in one terminal and `spinal agent run FILE.py` in another; then `spinal
    ops` shows what can be called.

    Exit codes: 0 done, 1 the operation failed, 2 usage, 3 no agent can do it, 4 not reached or
    timed out, 5 not allowed. An error is one line on stderr; with --json it is on stdout too, as
    {"error": {"text", "exit", ...}}. SPINAL_DEBUG=1 shows tracebacks, SPINAL_LOG=debug more log.
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = cli.main(words, prog_name="spinal", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has seen enough.  Python would complain at exit when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (Ended, click.exceptions.Exit) as ended:
        sys.exit(ended.exit_code)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    except Exception as error:
        if os.environ.get("SPINAL_DEBUG"):
            raise
        sys.exit(report(error, as_json="--json" in words))
    sys.exit(status if isinstance(status, int) else 0)
