"""``spinal resolve``: who could do it, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .common import (
    CONTEXT,
    client,
    json_option,
    place_option,
    places,
    policy_option,
    print_json,
    run,
    show_home,
    table,
    tag_option,
)

if TYPE_CHECKING:
    from spinal.bus import Resolution


@click.command(context_settings=CONTEXT)
@click.argument("op")
@policy_option
@place_option
@tag_option
@json_option
@show_home
def resolve(
    op: str, policy: str | None, place: tuple[str, ...], tags: tuple[str, ...], as_json: bool
) -> None:
    """Show who could do the operation OP now, best first, and why the others cannot."""
    found = run(_fetch(op, policy, places(place), tags))
    if as_json:
        print_json(
            {
                "candidates": [
                    {"agent": one.agent, "reasons": list(one.reasons)} for one in found.candidates
                ],
                "rejected": [{"agent": one.agent, "reason": one.reason} for one in found.rejected],
            }
        )
        return
    rows = [
        (str(rank), one.agent, "; ".join(one.reasons))
        for rank, one in enumerate(found.candidates, 1)
    ]
    rows += [("-", one.agent, one.reason) for one in found.rejected]
    table(
        rows,
        ("rank", "agent", "why"),
        f"no agent offers {op}: `spinal ops` shows what is offered",
    )


async def _fetch(
    op: str, policy: str | None, place: dict[str, str], tags: tuple[str, ...]
) -> Resolution:
    async with client() as bus:
        chosen = bus.options(policy=policy, place=place or None, tags=tags or None)
        return await chosen.resolve(op)
