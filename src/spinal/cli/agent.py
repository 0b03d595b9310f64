"""``spinal agent``: running agents."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from .common import (
    CONTEXT,
    home_path,
    json_option,
    print_json,
    say,
    show_home,
    start_logging,
    table,
    together,
)
from .common import places as read_places

if TYPE_CHECKING:
    from spinal.agents import Agent
    from spinal.agents.life import Life
    from spinal.agents.runner import Login


@click.group(context_settings=CONTEXT)
@show_home
def agent() -> None:
    """Run an agent."""


@agent.command(name="list", context_settings=CONTEXT)
@json_option
@show_home
def list_shipped(as_json: bool) -> None:
    """List the agents that come with Spinal.

    With --json: a list of {"name", "about"}.
    """
    from spinal.agents.shipped import SHIPPED

    if as_json:
        print_json([{"name": name, "about": about} for name, (_, about) in SHIPPED.items()])
    else:
        rows = [(name, about) for name, (_, about) in SHIPPED.items()]
        table(rows, ("agent", "what it does"), "None come with this version.")


#: Decorator: gives a verb that runs an agent what can be said of it.
run_options: Final = together(
    click.option(
        "--name",
        help="Its name on the bus; must be free. Default: the agent's own name, "
        "with a number if that is taken.",
    ),
    click.option("--slots", type=click.IntRange(1, 100_000), help="Calls that run at once."),
    click.option(
        "--place",
        multiple=True,
        metavar="KEY=/PATH",
        help="Where it is; without a key it is the site. Added to what the file says.",
    ),
    click.option(
        "--tag", "tags", multiple=True, metavar="TAG", help="Added to what the file says."
    ),
    click.option("--cost", type=click.FloatRange(0), help="Price of an hour."),
)


@agent.command(name="run", context_settings=CONTEXT)
@click.argument("file", type=click.Path(path_type=Path))
@run_options
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="YAML file for an agent that comes with Spinal.",
)
@json_option
@show_home
def run_file(
    file: Path,
    name: str | None,
    slots: int | None,
    place: tuple[str, ...],
    tags: tuple[str, ...],
    cost: float | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Run the agent of a Python FILE, or one that comes with Spinal, until Ctrl-C or SIGTERM.

    The file has `agent = Agent(...)` at its top. `spinal agent list` names the agents that come with
    Spinal. The first signal lets what runs end, the second
    one stops it. Its account is made in the home if there is none; away from the home, the
    SPINAL_* variables say how to log in.

    With --json: {"event": "ready", "agent", "slots", "ops"} once it is on the bus.
    """
    start_logging("info")
    from spinal.agents import runner, shipped

    if str(file) in shipped.SHIPPED and not file.exists():
        found = shipped.make(str(file), config)
    elif config is not None:
        raise click.UsageError("--config is for agents that come with Spinal (`spinal agent list`)")
    else:
        found = runner.load_file(file)
    serve(found, name, slots, place, tags, cost, as_json)


def serve(
    found: Agent,
    name: str | None,
    slots: int | None,
    place: Sequence[str],
    tags: Sequence[str],
    cost: float | None,
    as_json: bool,
) -> None:
    """Run an agent, changed as :func:`run_options` say, until it is told to end."""
    from spinal.agents import runner
    from spinal.bus.loops import run

    found.place = {**found.place, **read_places(place)}
    found.tags = tuple(dict.fromkeys((*found.tags, *tags)))
    found.slots = found.slots if slots is None else slots
    found.cost = found.cost if cost is None else cost
    home = home_path()

    def log_in(one: Agent) -> AbstractAsyncContextManager[Login]:
        return runner.log_in(one, home, name=name)

    def ready(lives: Sequence[Life]) -> None:
        for life in lives:
            ops = sorted(life.agent.operations)
            if as_json:
                print_json(
                    {
                        "event": "ready",
                        "agent": life.address,
                        "slots": life.slots.size,
                        "ops": ops,
                    }
                )
            else:
                serves = f" serves {' '.join(ops)}" if ops else " is there"
                say(f"{life.address}{serves} ({life.slots.size} slots)")

    run(runner.serve(found, log_in=log_in, ready=ready))
