import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image
from tests.processes import alive

import spinal
from spinal.bus import Home, HomeError
from spinal.cli.demo import WORKERS, Photo, Play, Stage, example, inputs
from spinal.cli.scoreboard import Scoreboard, Show

from .conftest import COMMAND, Spinal, environment

MARK = "SPINAL_TEST_OF_THE_DEMO"


def marked(mark: str) -> list[psutil.Process]:
    """Give the processes that were started with this in their environment, and live."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and alive(process):
                found.append(process)
        except psutil.Error:
            continue  # Ended meanwhile, or somebody else's.
    return found


@pytest.fixture
def mark() -> Iterator[str]:
    """A word in the environment by which all processes of a demo are found."""
    found = uuid.uuid4().hex
    yield found
    for process in marked(found):
        process.kill()


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """Where the demo has its temporary files."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


# All of it.


def test_nothing_is_lost_although_a_worker_is_killed(
    spinal: Spinal, tmp_path: Path, scratch: Path, mark: str
) -> None:
    out = tmp_path / "results"
    done = spinal(
        "demo", "--jobs", "40", "--json", "--out", str(out), **{MARK: mark, "TMPDIR": str(scratch)}
    )
    assert done.code == 0, done.err
    told = done.json
    assert told["jobs"] == 40
    assert told["lost"] == 0
    assert told["wrong"] == []
    assert told["killed"]["agent"] == "steady"
    assert 13 <= told["killed"]["after"] <= 25
    assert told["moved"] >= 1
    assert {worker["agent"] for worker in told["workers"]} == set(WORKERS)
    assert sum(worker["jobs"] for worker in told["workers"]) == 40
    assert 0 < told["first_answer"] < told["seconds"] < 60
    assert len(list(out.iterdir())) == 40
    assert not marked(mark)
    assert not list(scratch.iterdir())


def test_it_says_what_happens_and_what_to_try_next(
    spinal: Spinal, tmp_path: Path, mark: str
) -> None:
    home = tmp_path / "chosen"
    out = tmp_path / "results"
    done = spinal("--home", str(home), "demo", "--jobs", "20", "--out", str(out), **{MARK: mark})
    assert done.code == 0, done.err
    assert "SIGKILL to steady" in done.err
    assert "First answer after" in done.err
    assert "20 of 20 results are there and right: 0 lost." in done.out
    assert f"Results: {out}/" in done.out
    assert "spinal agent run" in done.out
    assert (home / "home.json").is_file()
    assert not marked(mark)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_half_way_leaves_nothing(
    place: Path, tmp_path: Path, scratch: Path, mark: str, number: signal.Signals
) -> None:
    with subprocess.Popen(
        [*COMMAND, "demo", "--out", str(tmp_path / "results")],
        env={**environment(place), MARK: mark, "TMPDIR": str(scratch)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        said: list[str] = []
        for line in process.stderr:
            said.append(line)
            if "done: fast" in line:
                break
        assert len(marked(mark)) > 5, said
        process.send_signal(number)
        assert process.wait(20) == 128 + number
        assert "Traceback" not in process.stderr.read()
        assert process.stdout.read() == ""
    assert not marked(mark)
    assert not list(scratch.iterdir())


def test_a_signal_while_it_starts_leaves_nothing(
    place: Path, tmp_path: Path, scratch: Path, mark: str
) -> None:
    with subprocess.Popen(
        [*COMMAND, "demo", "--out", str(tmp_path / "results")],
        env={**environment(place), MARK: mark, "TMPDIR": str(scratch)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("Starting")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr.read() == ""
    assert not marked(mark)
    assert not list(scratch.iterdir())


def test_without_pillow_it_says_how_to_get_it(spinal: Spinal, tmp_path: Path) -> None:
    hidden = tmp_path / "sitecustomize.py"
    hidden.write_text(
        "import sys, importlib.machinery as m\n"
        "find = m.PathFinder.find_spec\n"
        "def without(name, *rest):\n"
        "    return None if name == 'PIL' else find(name, *rest)\n"
        "m.PathFinder.find_spec = without\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = spinal("demo", PYTHONPATH=path)
    assert done.code == 2
    assert "pip install 'spinal[images]'" in done.line


def test_a_home_that_is_up_already_is_one_line(spinal: Spinal, place: Path, tmp_path: Path) -> None:
    with Home.create(place).hold():
        done = spinal("--home", str(place), "demo", "--out", str(tmp_path / "results"))
    assert done.code == 2
    assert "is up already" in done.err.splitlines()[-1]


def test_results_that_cannot_be_written_are_one_line(spinal: Spinal, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = spinal("demo", "--out", str(tmp_path / "file" / "results"))
    assert done.code == 1
    assert "check the path" in done.line


# How results are judged.


def photo(name: str = "coffee.png") -> Photo:
    return Photo.load(example() / "photos" / name)


def result(
    tmp_path: Path, name: str = "coffee.png", size: tuple[int, int] = (300, 200), turn: int = 0
) -> Path:
    """Make a file as a worker might."""
    file = tmp_path / "result.png"
    with Image.open(photo(name).path) as image:
        scaled = image.resize(size)  # pyright: ignore[reportUnknownMemberType] - numpy's
        scaled.rotate(turn).save(file)
    return file


def test_a_scaled_photograph_is_right(tmp_path: Path) -> None:
    assert photo().wrong(result(tmp_path), 300) == ""


@pytest.mark.parametrize("size", [(301, 200), (300, 300)])
def test_a_result_of_another_size_is_wrong(tmp_path: Path, size: tuple[int, int]) -> None:
    told = photo().wrong(result(tmp_path, size=size), 300)
    assert told == f"is {size[0]} x {size[1]} and not 300 x 200"


def test_a_result_that_is_upside_down_is_wrong(tmp_path: Path) -> None:
    assert "something else" in photo().wrong(result(tmp_path, turn=180), 300)


@pytest.mark.parametrize("other", ["chelsea.png", "rocket.jpg"])
def test_another_photograph_of_the_same_form_is_wrong(tmp_path: Path, other: str) -> None:
    assert "something else" in photo().wrong(result(tmp_path, other), 300)


@pytest.mark.parametrize("keep", [0, 1000, 30_000])
def test_a_result_that_is_cut_off_is_wrong(tmp_path: Path, keep: int) -> None:
    file = result(tmp_path)
    file.write_bytes(file.read_bytes()[:keep])
    assert "is no image" in photo().wrong(file, 300)


@pytest.mark.parametrize("jobs", [20, 40, 300, 301, 10_000])
def test_no_job_is_asked_for_twice(jobs: int) -> None:
    photos = [photo("coffee.png"), photo("rocket.jpg")]
    asked = inputs(photos, jobs)
    assert len({(one.path, width) for one, width in asked}) == jobs
    assert all(16 <= width <= 8192 for _, width in asked)


# Where the example is.


def test_the_example_is_found_in_the_checkout_or_in_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (example() / "photos" / "rocket.jpg").is_file()
    package = tmp_path / "site-packages" / "spinal"
    (package / "demo").mkdir(parents=True)
    monkeypatch.setattr(spinal, "__file__", str(package / "__init__.py"))
    with pytest.raises(HomeError, match="install spinal again"):
        example()
    (package / "demo" / "worker.py").write_text("")
    assert example() == package / "demo"


def test_the_worker_is_killed_even_if_it_is_never_seen_busy() -> None:
    class Recording(Stage):
        def kill(self, name: str) -> int:
            return 7

    said: list[str] = []
    board = Scoreboard(WORKERS, 40, "me", "/image/resize")
    show = Show(board, drawn=False, out=said.append)
    play = Play(40, Path("out"), None, Recording(), as_json=False)
    for _ in range(20):
        board.result("fast@here/agent")
        play.perhaps_kill(board, show)
    assert said == ["SIGKILL to steady (pid 7) after 20 of 40 jobs."]
