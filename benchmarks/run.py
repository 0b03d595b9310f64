"""Spinal beside its peers: starts each in turn, measures in turn, writes RESULTS.md and a chart.

    python -m benchmarks.run [--part direct --part jobs ...] [--server embedded ...] [--runs 5]

What was measured before on this machine stays in the report; a part that is measured again replaces
its own rows.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from spinal.bus.server import available
from spinal.logs import configure

from . import chart, machine, results
from .bench import Bench
from .children import ContenderError
from .goals import ROWS, SERVERS

HERE = Path(__file__).resolve().parent
#: Parts to the module, and its function, that measures them.
PARTS = {
    "start": ("start", "measure"),
    "direct": ("direct", "measure"),
    "jobs": ("jobs", "measure"),
    "maps": ("maps", "measure"),
    "store": ("store", "measure"),
    "costs": ("costs", "measure"),
    "resolve": ("others", "resolve"),
    "blob": ("others", "blob"),
    "wrap": ("wrap", "measure"),
    "scale": ("others", "scale"),
}


async def run(bench: Bench, parts: Sequence[str], missing: Mapping[str, str]) -> bool:
    """Measure parts, and write the report after each; gives whether all of them ended well.

    ``missing`` are the servers that were asked for and are not here.
    """
    well = True
    for part in parts:
        bench.doing = part
        for key in bench.rows(part):
            if ROWS[key].server in missing:
                bench.missing(key, f"{ROWS[key].server} is missing")
        module, name = PARTS[part]
        measure = getattr(importlib.import_module(f"benchmarks.{module}"), name)
        try:
            await measure(bench)
        except (ContenderError, AssertionError, OSError) as exc:
            well = False
            bench.say(f"FAILED: {exc}")
            first = str(exc).partition("\n")[0] or repr(exc)
            for key in bench.rows(part):
                row = bench.results["rows"].get(key)
                if row is None or row["stamp"] != bench.stamp:
                    bench.missing(key, f"failed: {first}")
        write(bench)
    return well


def write(bench: Bench) -> None:
    """Write the report of all that is known."""
    bench.out.mkdir(parents=True, exist_ok=True)
    results.save(bench.out, bench.results)
    chart.draw(bench.results, bench.out / "results.svg")
    text = results.markdown(bench.results, "results.svg")
    (bench.out / "RESULTS.md").write_text(text, "utf-8")


def main() -> None:
    """Read the command line, measure and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one; repeatable")
    parser.add_argument("--server", action="append", choices=SERVERS, help="likewise")
    parser.add_argument("--runs", type=int, help="interleaved rounds of each (default 5)")
    parser.add_argument("--quick", action="store_true", help="see that it works; figures mean less")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the report")
    options = parser.parse_args()
    configure("warning")
    checked = {server: available(server) for server in options.server or SERVERS}
    missing = {server: why for server, why in checked.items() if why is not None}
    known = results.load(options.out / "results.json", machine.machine(), machine.versions())
    known["missing"].update(missing)
    bench = Bench(
        known,
        machine.stamp(sys.argv[1:]),
        options.out,
        [server for server in checked if server not in missing],
        options.runs or (2 if options.quick else 5),
        options.quick,
    )
    # Being ended is like being interrupted: what was started ends first.
    signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    try:
        well = asyncio.run(run(bench, options.part or list(PARTS), missing))
    except KeyboardInterrupt:
        sys.exit(130)
    print(options.out / "RESULTS.md")
    sys.exit(not well)


if __name__ == "__main__":
    main()
