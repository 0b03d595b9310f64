"""Loading an agent's file: by its path, the same way in the agent and in its worker processes.

The module is named after the file, its folder is on the search path, as for a script.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from .agent import Agent
from .errors import AgentError, describe


def load_module(path: Path | str) -> ModuleType:
    """Load a Python file, once.

    Raises:
        AgentError: there is no such file, or it raises; one line with the place.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise AgentError(f"no file {path}: give the path of the agent's Python file")
    name = path.stem
    known = sys.modules.get(name)
    if known is not None:
        if getattr(known, "__file__", None) == str(path):
            return known
        # Named like something that is loaded already, such as json.py: that one must stay.
        name = f"agent:{path}"
        if name in sys.modules:
            return sys.modules[name]
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise AgentError(f"{path} is not a Python file: its name must end with .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as exc:
        del sys.modules[name]
        if isinstance(exc, (Exception, SystemExit)):
            raise AgentError(f"{_place(exc, path)}: {describe(exc)}") from exc
        raise
    return module


def _place(error: BaseException, path: Path) -> str:
    """Say where in the file it happened: the last line of it that was involved."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    return f"{path}, line {lines[-1]}" if lines else str(path)


def agents_in(module: ModuleType) -> list[Agent]:
    """Give the agents at the top of a module, each once, in order."""
    return list(
        {id(item): item for item in vars(module).values() if isinstance(item, Agent)}.values()
    )


def load_file(path: Path | str) -> Agent:
    """Load a file and give its agent: the one named ``agent``, else the only one.

    Raises:
        AgentError: the file is missing or raises, or holds no agent; one line that says so.
    """
    module = load_module(path)
    named = getattr(module, "agent", None)
    if isinstance(named, Agent):
        return named
    found = agents_in(module)
    if len(found) == 1:
        return found[0]
    if found:
        raise AgentError(f"{path} has {len(found)} agents: name the one to run 'agent'")
    raise AgentError(f'{path} has no agent: put "agent = Agent()" at the top of it')
