"""Our own wheel, so that a machine which joins runs what its home runs.

Spinal is plain Python, so the files that are installed here are those of the wheel: of an installed
package those that its RECORD names, of a checkout those that ``pyproject.toml`` maps.  The same
files give the same bytes, and so the same hash, at every home.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Final

import spinal
from spinal.bus.server.files import write

from .ticket import JoiningError

#: Wheels that a home keeps: machines that were ordered before an update still ask for the old one.
KEPT: Final = 5

#: The oldest time that a zip file can hold; any would do, as long as it is always the same.
_TIME: Final = (1980, 1, 1, 0, 0, 0)
#: What an installer adds to the files of a wheel, or what is about the one installation.
_INSTALLED: Final = frozenset({"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"})
_WHEEL: Final = b"Wheel-Version: 1.0\nGenerator: spinal\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel on disk."""

    path: Path
    sha256: str

    @property
    def name(self) -> str:
        """What pip wants the file to be called."""
        return self.path.name


def build(folder: Path, package: Path | None = None) -> Wheel:
    """Make the wheel of the package that runs here, below a folder; takes a second.

    Args:
        folder: where wheels are kept, each in a folder named after its hash.
        package: of which folder ``spinal``; by default ours.

    Raises:
        JoiningError: its files cannot be found.
        OSError: the folder cannot be written.
    """
    package = Path(spinal.__file__).parent if package is None else package
    content = pack(_files(package))
    sha256 = hashlib.sha256(content).hexdigest()
    path = folder / sha256 / f"spinal-{spinal.__version__}-py3-none-any.whl"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write(path, content, 0o600)
    path.touch()
    _tidy(folder)
    return Wheel(path, sha256)


def kept(folder: Path, sha256: str) -> Path | None:
    """Give the wheel with this hash, if the folder still has it."""
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        return None
    return next((folder / sha256).glob("*.whl"), None)


def _tidy(folder: Path) -> None:
    wheels = sorted(folder.glob("*/*.whl"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in wheels[KEPT:]:
        old.unlink()
        old.parent.rmdir()


def pack(files: Mapping[str, bytes]) -> bytes:
    """Put files into a wheel (PyPA, binary distribution format); their order does not matter.

    Args:
        files: path within the wheel -> content, with all of ``.dist-info`` but ``RECORD``.
    """
    (info,) = {name.split("/")[0] for name in files if name.split("/")[0].endswith(".dist-info")}
    lines = [f"{name},sha256={_record(files[name])},{len(files[name])}" for name in sorted(files)]
    record = "\n".join([*lines, f"{info}/RECORD,,", ""])
    found = io.BytesIO()
    with zipfile.ZipFile(found, "w") as archive:
        for name, content in [*sorted(files.items()), (f"{info}/RECORD", record.encode())]:
            entry = zipfile.ZipInfo(name, _TIME)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return found.getvalue()


def _record(content: bytes) -> str:
    digest = hashlib.sha256(content).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _files(package: Path) -> dict[str, bytes]:
    try:
        known = distribution("spinal")
    except PackageNotFoundError:
        known = None
    if known is not None and _is_at(known, package):
        return dict(_installed(known))
    checkout = package.parent.parent
    try:
        project = tomllib.loads((checkout / "pyproject.toml").read_text())
        found = dict(_mapped(checkout, project["tool"]["hatch"]["build"]["targets"]["wheel"]))
        info = f"spinal-{spinal.__version__}.dist-info"
        return {**found, **_about(project["project"], info)}
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        raise JoiningError(
            f"{package} is neither an installed package nor a checkout, so no wheel can be made of "
            f"it for machines that join: install spinal with pip ({error})"
        ) from error


def _is_at(known: Distribution, package: Path) -> bool:
    init = Path(str(known.locate_file("spinal/__init__.py")))
    return init.exists() and init.samefile(package / "__init__.py")


def _installed(known: Distribution) -> Iterator[tuple[str, bytes]]:
    for file in known.files or ():
        outside = ".." in file.parts or file.is_absolute()
        if outside or file.name in _INSTALLED or file.suffix == ".pyc":
            continue
        yield file.as_posix(), Path(str(known.locate_file(file))).read_bytes()


def _mapped(checkout: Path, target: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Give what hatchling would: the mapped folders, without links, caches and hidden files."""
    for source, name in target["sources"].items():
        folder = checkout / source
        for path in sorted(folder.rglob("*")):
            inner = path.relative_to(folder)
            # A link stands for one of the other folders.
            linked = any(
                (folder / one).is_symlink() for one in (inner, *inner.parents) if one.parts
            )
            hidden = any(one.startswith(".") or one == "__pycache__" for one in inner.parts)
            if path.is_file() and not linked and not hidden and path.suffix != ".pyc":
                yield f"{name}/{inner.as_posix()}", path.read_bytes()


def _about(project: Mapping[str, Any], info: str) -> dict[str, bytes]:
    """Give the metadata (core metadata 2.1) of a project."""
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {project['name']}",
        f"Version: {project['version']}",
        f"Summary: {project['description']}",
        f"Requires-Python: {project['requires-python']}",
        *(f"Requires-Dist: {one}" for one in project["dependencies"]),
    ]
    for extra, wanted in project["optional-dependencies"].items():
        lines.append(f"Provides-Extra: {extra}")
        for one in wanted:
            need, semicolon, marker = one.partition(";")
            only = f"({marker.strip()}) and " if semicolon else ""
            lines.append(f"Requires-Dist: {need.strip()}; {only}extra == '{extra}'")
    scripts = [f"{name} = {target}" for name, target in project["scripts"].items()]
    return {
        f"{info}/METADATA": "\n".join([*lines, ""]).encode(),
        f"{info}/WHEEL": _WHEEL,
        f"{info}/entry_points.txt": "\n".join(["[console_scripts]", *scripts, ""]).encode(),
    }
