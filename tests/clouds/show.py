"""``make cloud-sim``: all five clouds until Ctrl-C, and what to do with them."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from typing import Final

from .simulator import serving
from .vendor import TOKEN
from .vendors import VENDORS

#: The first port unless told otherwise; each vendor has the next one.
PORT: Final = 8471

TEXT: Final = """\
Five clouds on loopback, without a bill.  The token, key and password is {token}

{table}

providers.yaml:

  currency: EUR
  rates: {{USD: 0.92}}
  accounts:
    aws: {{driver: ec2, endpoint: {ec2}, key: {token}, secret: {{env: SIM_TOKEN}}, regions: [eu-west-1, us-east-1]}}
    rax: {{driver: rackspace, endpoint: {openstack}/identity, user: spinal, password: {{env: SIM_TOKEN}}, regions: [ORD, DFW]}}
    ocean: {{driver: digitalocean, endpoint: {digitalocean}, token: {{env: SIM_TOKEN}}, regions: [fra1, nyc3]}}
    akamai: {{driver: linode, endpoint: {linode}, token: {{env: SIM_TOKEN}}, regions: [eu-central, us-east]}}
    vultr: {{driver: vultr, endpoint: {vultr}, token: {{env: SIM_TOKEN}}, regions: [fra, ewr]}}

  export SIM_TOKEN={token}

Break one, look at it, mend it:

  curl -d '{{"kind": "capacity", "count": 3, "region": "fra1"}}' {digitalocean}/__sim/fault
  curl {digitalocean}/__sim/state
  curl -X DELETE {digitalocean}/__sim/fault

Kinds of fault: tests/clouds/faults.py.  Ctrl-C ends all of them.
"""


async def main(port: int) -> int:
    """Serve until a signal; gives the exit status."""
    over = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    wanted = {name: port + index if port else 0 for index, name in enumerate(VENDORS)}
    try:
        async with serving([*VENDORS], ports=wanted) as ports:
            urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
            table = "\n".join(f"  {name:13} {url}" for name, url in urls.items())
            print(TEXT.format(token=TOKEN, table=table, **urls), flush=True)
            await over.wait()
    except OSError as error:
        print(f"cloud-sim: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.clouds.show", description=__doc__)
    parser.add_argument("--port", type=int, default=PORT, help="the first port; 0: any free ones")
    sys.exit(asyncio.run(main(parser.parse_args().port)))
