"""A program that is kept running, and does what it is asked, also what it should not."""

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any


def say(**message: Any) -> None:
    """Write one message."""
    print(json.dumps(message), flush=True)


def nap() -> None:
    """Do nothing for long."""
    time.sleep(600)


count = 0
if len(sys.argv) > 1 and sys.argv[1] == "slow-start":
    print("a line before it is ready", flush=True)
    say(ready=True)
elif len(sys.argv) > 1 and sys.argv[1] == "never-ready":
    nap()
elif len(sys.argv) > 1 and sys.argv[1] == "dead":
    print("no licence", file=sys.stderr)
    sys.exit(3)

for line in sys.stdin:
    count += 1
    request = json.loads(line)
    id, args = request["id"], request["args"]
    match request["op"]:
        case "/echo":
            say(id=id, value=args)
        case "/pid":
            say(id=id, value={"pid": os.getpid(), "count": count})
        case "/news":
            say(id=id, progress={"done": 1, "total": 2, "note": "half"})
            say(id=id, progress="no mapping")
            say(id=id, log="a line", level="warning")
            say(id=id, log="another", level="shouting")
            say(id=id, value=None)
        case "/stray":
            print("a stray print", flush=True)
            print('{"id": 999999, "value": "of somebody else"}', flush=True)
            say(id=str(id), value="a text for an id")
            print("[1, 2]", flush=True)
            print("\x00\x01{{{", flush=True)
            print("[" * 100_000, flush=True)
            sys.stdout.buffer.write(b"\xff\xfe\n")
            sys.stdout.buffer.flush()
            print("said to nobody", file=sys.stderr, flush=True)
            say(id=id, value="the answer")
            say(id=id, value="the answer again")
        case "/end":
            say(id=id, **{args["how"]: args["text"]})
        case "/file":
            folder = request["folder"]
            with open(request["files"]["document"]["path"], "rb") as file:
                data = file.read()
            with open(os.path.join(folder, "out.bin"), "wb") as out:
                out.write(data[::-1])
            os.symlink("/etc/passwd", os.path.join(folder, "link"))
            say(id=id, file=args.get("name") or "out.bin", media="application/x-reversed")
        case "/long":
            print("x" * 5_000_000, flush=True)
            say(id=id, value="behind it")
        case "/babble":
            while True:
                print("blah " * 10_000)
        case "/die":
            # The first time, if it is to die once.
            if args.get("once") and os.path.exists(args["once"]):
                say(id=id, value="the second time")
                continue
            if args.get("once"):
                open(args["once"], "w").close()
            print("out of paper", file=sys.stderr, flush=True)
            os._exit(7)
        case "/last":
            say(id=id, value="my last answer")
            os._exit(0)
        case "/hang":
            say(id=id, log=str(os.getpid()))
            nap()
        case "/stubborn":
            # A child that will not go, and one that has left the group too.
            code = (
                "import signal, time\n"
                "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
                "print('here', flush=True)\n"
                "time.sleep(600)"
            )
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            argv = [sys.executable, "-c", code]
            children = [
                subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=leaves)
                for leaves in (False, True)
            ]
            for child in children:
                assert child.stdout is not None
                child.stdout.readline()
            say(id=id, log=" ".join(str(pid) for pid in [os.getpid(), *(c.pid for c in children)]))
            if not args.get("answers"):
                nap()
            say(id=id, value=None)
        case "/environment":
            say(id=id, value=dict(os.environ))
        case _:
            say(id=id, refused="what is that?")
