"""The child's side of a start: becomes another user, within limits, and then the service.

Its orders come on standard input as JSON, because arguments can be read by everybody and an
environment would already act on this program, while it still has all its rights.  A file of its
own that imports nothing of ours, because it stands between every start and its service.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import warnings


def main() -> None:
    """Do as told; ends with 127 and one line if that cannot be."""
    orders = json.loads(os.fdopen(os.dup(0), "rb").read())
    argv = orders["argv"]
    # os.execvpe() uses the module, and would import it when we may not read it any more.
    warnings.simplefilter("ignore")
    try:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        for name, most in orders["limits"].items():
            number = getattr(resource, name)
            _, hard = resource.getrlimit(number)
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(number, (most, most))
        os.umask(0o027)
        if orders["user"] is not None:
            uid, gid, groups = orders["user"]
            os.setgroups(groups)
            os.setgid(gid)
            os.setuid(uid)
        # Not before: the folder may be one that only they may enter.
        os.chdir(orders["cwd"])
        os.execvpe(argv[0], argv, orders["env"])
    except (OSError, ValueError) as exc:
        why = getattr(exc, "strerror", None) or str(exc)
        print(f"cannot run {argv[0]!r}: {why}", file=sys.stderr, flush=True)
        os._exit(127)


if __name__ == "__main__":
    main()
