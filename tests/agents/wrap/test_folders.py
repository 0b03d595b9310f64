from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from spinal.agents.wrap.kinds.files import folder as folders
from spinal.agents.wrap.kinds.files.inbox import Lock
from spinal.bus.blob import Blob
from spinal.bus.errors import BlobError, CallError, NotConnected
from spinal.protocols import Problem
from spinal.testing import eventually

from . import hostile
from .kinds import Opened, check_mistake, op, opened, read


class Desk:
    """Takes jobs as a dispatcher does: a key that it knows gives the same job."""

    def __init__(self) -> None:
        self.jobs: dict[str, tuple[str, dict[str, Any], Sequence[str]]] = {}
        self.asked = 0
        #: Raised by the next submissions.
        self.trouble: list[Exception] = []
        #: Raised after a job was taken, as by a crash before we hear of it.
        self.deaf: list[BaseException] = []
        self.uploaded = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def upload(self, source: Path, media_type: str) -> Blob:
        data = source.read_bytes()
        self.uploaded.set()
        await self.go_on.wait()
        return Blob.of(data, media_type)

    async def submit(
        self, op: str, args: Mapping[str, Any], key: str, labels: Sequence[str] = ()
    ) -> str:
        self.asked += 1
        if self.trouble:
            raise self.trouble.pop(0)
        said = {
            name: await value.read() if isinstance(value, Blob) else value
            for name, value in args.items()
        }
        self.jobs.setdefault(key, (op, said, labels))
        if self.deaf:
            raise self.deaf.pop(0)
        return key

    @property
    def contents(self) -> list[bytes]:
        return sorted(args["document"] for _, args, _ in self.jobs.values())


WATCH = """
files:
  watch: in
  match: "*.pdf"
  submit: /ocr/read
  argument: document
  args: {title: "{stem} ({name}, {suffix})", pages: 3}
  labels: [scans]
  settled: 20ms
  every: 10ms
  then: {move: done}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "in"
    found.mkdir()
    return found


@contextlib.asynccontextmanager
async def watching(
    tmp_path: Path, desk: Desk, change: tuple[str, str] = ("", "")
) -> AsyncGenerator[Opened]:
    assert not change[0] or change[0] in WATCH
    async with opened(op(WATCH.replace(*change)), tmp_path, desk) as call:
        yield call


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- one job for each file


async def test_a_new_file_becomes_a_job_and_is_moved(tmp_path: Path, folder: Path) -> None:
    desk = Desk()
    async with watching(tmp_path, desk):
        (folder / "one.pdf").write_bytes(b"first")
        (folder / "two.pdf").write_bytes(b"second")
        await eventually(lambda: names(folder) == ["done"])

    assert desk.contents == [b"first", b"second"]
    path, args, labels = next(one for one in desk.jobs.values() if one[1]["document"] == b"first")
    assert (path, labels) == ("/ocr/read", ("scans",))
    assert args == {"document": b"first", "title": "one (one.pdf, .pdf)", "pages": 3}
    assert names(folder / "done") == ["one.pdf", "two.pdf"]


async def test_what_is_no_new_plain_file_is_left_alone(tmp_path: Path, folder: Path) -> None:
    outside = tmp_path / "secret"
    outside.write_text("secret")
    (folder / "link.pdf").symlink_to(outside)
    (folder / "folder.pdf").mkdir()
    (folder / ".hidden.pdf").write_text("x")
    (folder / "other.txt").write_text("x")
    os.mkfifo(folder / "pipe.pdf")
    before = names(folder)
    desk = Desk()
    async with watching(tmp_path, desk) as call:
        (folder / "last.pdf").write_bytes(b"last")
        await eventually(lambda: desk.jobs)
        await eventually(lambda: (folder / "done" / "last.pdf").exists())
        assert (await call("/op"))["waiting"] == []

    assert desk.contents == [b"last"]
    assert names(folder) == sorted([*before, "done"])


async def test_a_file_that_is_still_written_waits(tmp_path: Path, folder: Path) -> None:
    desk = Desk()
    async with watching(tmp_path, desk, ("settled: 20ms", "settled: 1s")) as call:
        with (folder / "slow.pdf").open("wb", buffering=0) as file:
            for piece in range(10):
                file.write(b"%d," % piece)
                assert (await call("/op"))["waiting"] == ["slow.pdf"]
        await eventually(lambda: desk.jobs)

    assert desk.contents == [b"0,1,2,3,4,5,6,7,8,9,"]


async def test_a_file_that_changes_while_it_is_uploaded_is_uploaded_again(
    tmp_path: Path, folder: Path
) -> None:
    desk = Desk()
    desk.go_on.clear()
    async with watching(tmp_path, desk):
        (folder / "a.pdf").write_bytes(b"before")
        await desk.uploaded.wait()
        (folder / "a.pdf").write_bytes(b"after that")
        desk.go_on.set()
        await eventually(lambda: desk.jobs)
        await eventually(lambda: names(folder) == ["done"])

    assert desk.contents == [b"after that"]


async def test_another_file_of_the_same_name_is_another_job(tmp_path: Path, folder: Path) -> None:
    desk = Desk()
    async with watching(tmp_path, desk):
        for content in (b"one", b"two", b"two"):
            (folder / "a.pdf").write_bytes(content)
            await eventually(lambda: names(folder) == ["done"])

    assert desk.contents == [b"one", b"two", b"two"]
    # None has replaced another.
    assert sorted(path.read_bytes() for path in (folder / "done").iterdir()) == desk.contents


@pytest.mark.parametrize("then", ["{move: done}", "delete", "keep"])
async def test_a_crash_between_the_job_and_the_move_doubles_nothing(
    tmp_path: Path, folder: Path, then: str
) -> None:
    desk = Desk()
    change = ("then: {move: done}", f"then: {then}")
    (folder / "a.pdf").write_bytes(b"a")
    desk.deaf = [CallError.of(Problem("no-answer"))]
    async with watching(tmp_path, desk, change):
        await eventually(lambda: desk.asked == 1)
    assert (folder / "a.pdf").exists() and len(desk.jobs) == 1

    async with watching(tmp_path, desk, change):
        await eventually(lambda: desk.asked == 2)
        (folder / "b.pdf").write_bytes(b"b")
        await eventually(lambda: len(desk.jobs) == 2)
        await eventually(
            lambda: then == "keep" or not [n for n in names(folder) if n.endswith("pdf")]
        )

    assert desk.contents == [b"a", b"b"]


async def test_kept_files_are_remembered_from_life_to_life(tmp_path: Path, folder: Path) -> None:
    desk = Desk()
    change = ("then: {move: done}", "then: keep")
    for number in range(3):
        (folder / f"{number}.pdf").write_bytes(b"%d" % number)
        async with watching(tmp_path, desk, change) as call:
            await eventually(lambda: len(desk.jobs) == number + 1)  # noqa: B023 - awaited here
            assert (await call("/op"))["submitted"] == []
        # What the dispatcher has forgotten, we have not.
        assert desk.asked == number + 1
    journal = folder / folders.journal("/op")
    (folder / "0.pdf").unlink()
    async with watching(tmp_path, desk, change):
        # Those that are gone are forgotten.
        await eventually(lambda: len(journal.read_text().splitlines()) == 2)
    assert desk.asked == 3


async def test_a_submission_that_fails_stays_and_is_tried_again_with_pauses(
    tmp_path: Path, folder: Path
) -> None:
    desk = Desk()
    desk.trouble = [NotConnected("not yet"), NotConnected("not yet"), BlobError("too large")]
    (folder / "a.pdf").write_bytes(b"a")
    async with watching(tmp_path, desk) as call:
        await eventually(lambda: desk.asked == 3)
        (folder / "b.pdf").write_bytes(b"b")
        await eventually(lambda: len(desk.jobs) == 1)
        seen = await call("/op")
        assert [row["file"] for row in seen["failed"]] == ["a.pdf"]
        assert "too large" in seen["failed"][0]["why"]
        await eventually(lambda: len(desk.jobs) == 2)

    assert desk.contents == [b"a", b"b"]


async def test_without_a_bus_it_only_tells_what_is_there(tmp_path: Path, folder: Path) -> None:
    (folder / "a.pdf").write_bytes(b"a")
    async with opened(op(WATCH), tmp_path) as call:
        assert await call("/op") == {
            "submitted": [],
            "waiting": ["a.pdf"],
            "failed": [],
            "more": False,
        }
    assert names(folder) == ["a.pdf"]


async def test_one_at_a_time_watches_a_folder(tmp_path: Path, folder: Path) -> None:
    other = Lock(folder)
    assert other.held()
    desk = Desk()
    async with watching(tmp_path, desk) as call:
        (folder / "a.pdf").write_bytes(b"a")
        second = Lock(folder)
        assert not second.held()
        with pytest.raises(CallError, match="another agent watches") as caught:
            await call("/op")
        assert caught.value.reason == "busy" and not desk.jobs
        other.release()
        await eventually(lambda: len(desk.jobs) == 1)
        assert not second.held()
    assert second.held()
    second.release()


async def test_a_folder_that_comes_back_is_watched_again(tmp_path: Path, folder: Path) -> None:
    desk = Desk()
    async with watching(tmp_path, desk):
        folder.rename(tmp_path / "away")
        (tmp_path / "away" / "a.pdf").write_bytes(b"a")
        (tmp_path / "away").rename(folder)
        await eventually(lambda: len(desk.jobs) == 1)


async def test_hostile_names_of_files_are_taken_as_they_are(tmp_path: Path, folder: Path) -> None:
    desk = Desk()
    made: dict[bytes, str] = {}
    async with watching(tmp_path, desk, ('title: "{stem} ({name}, {suffix})"', 'title: "{name}"')):
        for place, value in enumerate(hostile.texts()):
            with contextlib.suppress(ValueError, OSError):
                # As it stands in the folder: what has a / or a NUL in it is no name.
                if "/" not in value:
                    (folder / f"{value}.pdf").write_bytes(b"%d" % place)
                    made[b"%d" % place] = f"{value}.pdf"
        # A name that is no UTF-8 stays, which another test shows.
        visible = {
            data: name
            for data, name in made.items()
            if name[0] != "." and not any("\ud800" <= one <= "\udfff" for one in name)
        }
        await eventually(lambda: len(desk.jobs) == len(visible), 60)
    assert len(visible) > 500
    assert {args["document"]: args["title"] for _, args, _ in desk.jobs.values()} == visible


async def test_a_name_that_is_no_text_stays_and_is_told(tmp_path: Path, folder: Path) -> None:
    desk = Desk()
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.pdf")).touch()
    async with watching(tmp_path, desk) as call:

        async def failed() -> list[Any]:
            return list((await call("/op"))["failed"])

        found = await eventually(failed)
    assert found[0]["file"] == "?.pdf" and not desk.jobs
    assert "its name is not UTF-8: rename it" in found[0]["why"]


async def test_of_many_files_the_first_ones_are_named(tmp_path: Path, folder: Path) -> None:
    for number in range(100):
        (folder / f"{number:03}{'é' * 100}.pdf").touch()
    async with opened(op(WATCH), tmp_path) as call:
        seen = await call("/op")
    assert len(seen["waiting"]) == 20 and seen["more"] is True


def test_of_a_huge_folder_a_part_is_looked_at(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "MAX_FILES", 10)
    for number in range(30):
        (folder / f"{number}").touch()
    seen: set[tuple[str, folders.Mark]] = set()
    for look in range(3):
        found = folders.look(folder, "*", seen)
        assert len(found.new) == 10 and len(found.known) <= 10 * look
        seen |= set(found.new.items())
    assert len(seen) == 30
    assert folders.look(folder, "*", seen) == folders.Found({}, seen, True)


def test_who_swaps_a_file_for_a_link_cannot_make_us_read_another(folder: Path) -> None:
    (folder / "a").write_text("a")
    mark = folders.mark_of(folder, "a")
    assert mark is not None
    (folder / "a").unlink()
    (folder / "a").symlink_to("/etc/passwd")
    with pytest.raises(OSError, match=r"symbolic links|loop"):
        folders.contents(folder, "a", 1000)
    folders.take_away(folder, "a", mark)
    folders.move(folder, "a", mark, folder / "done")
    assert (folder / "a").is_symlink() and names(folder / "done") == []


def test_a_link_in_the_place_of_the_folder_to_move_to_is_not_followed(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (folder / "done").symlink_to(tmp_path / "elsewhere")
    (folder / "a").write_text("a")
    mark = folders.mark_of(folder, "a")
    assert mark is not None
    with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
        folders.move(folder, "a", mark, folder / "done")
    assert names(tmp_path / "elsewhere") == [] and (folder / "a").exists()


def test_a_move_that_was_cut_off_in_the_middle_is_finished(folder: Path) -> None:
    (folder / "a.pdf").write_text("a")
    mark = folders.mark_of(folder, "a.pdf")
    assert mark is not None
    (folder / "done").mkdir()
    os.link(folder / "a.pdf", folder / "done" / "a.pdf")
    folders.move(folder, "a.pdf", mark, folder / "done")

    assert names(folder) == ["done"] and names(folder / "done") == ["a.pdf"]


# -- the reverse

WRITE = """
args: {name: {}, document: {type: file}}
files:
  write: out
  name: "{name}.pdf"
  content: "{document}"
"""

ASK = """
args: {name: {}, question: {}}
files:
  write: out
  name: "{name}.ask"
  content: "Q: {question}\\n"
  answer: {name: "{name}.txt", folder: ../answers, within: 10s, settled: 300ms}
output: lines
"""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    (tmp_path / "answers").mkdir()
    return tmp_path / "out"


async def test_a_file_is_written_whole_and_not_replaced(tmp_path: Path, out: Path) -> None:
    data = bytes(range(256)) * 4096
    async with opened(op(WRITE), tmp_path) as call:
        assert await call("/op", name="a", document=data) == {"file": "a.pdf", "size": len(data)}
        with pytest.raises(CallError, match=r"there is a file a\.pdf already") as caught:
            await call("/op", name="a", document=b"other")
        assert caught.value.reason == "refused"
    assert (out / "a.pdf").read_bytes() == data and names(out) == ["a.pdf"]

    async with opened(op(WRITE + "  replace: true"), tmp_path) as call:
        await call("/op", name="a", document=b"other")
    assert (out / "a.pdf").read_bytes() == b"other" and names(out) == ["a.pdf"]


async def test_a_link_of_that_name_is_not_followed(tmp_path: Path, out: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("untouched")
    (out / "a.pdf").symlink_to(outside)
    async with opened(op(WRITE), tmp_path) as call:
        with pytest.raises(CallError, match="already"):
            await call("/op", name="a", document=b"x")
    async with opened(op(WRITE + "  replace: true"), tmp_path) as call:
        await call("/op", name="a", document=b"x")
    assert outside.read_text() == "untouched"
    assert (out / "a.pdf").read_bytes() == b"x" and not (out / "a.pdf").is_symlink()


@pytest.mark.parametrize("template", ["{name}.pdf", "report-{name}", "{name}"])
async def test_hostile_names_stay_in_the_folder_or_are_refused_by_name(
    tmp_path: Path, out: Path, template: str
) -> None:
    text = op(WRITE.replace('"{name}.pdf"', f'"{template}"') + "  replace: true")
    before = names(tmp_path)
    passed = 0
    async with opened(text, tmp_path) as call:
        for value in hostile.texts():
            try:
                found = await call("/op", name=value, document=b"x")
            except CallError as exc:
                assert exc.reason == "bad-arguments" and exc.problem.argument == "name"
                continue
            passed += 1
            name = template.replace("{name}", value)
            assert found["file"] == name
            assert names(out) == [name], hostile.shown(value)
            (out / name).unlink()
    assert passed > 300
    assert names(tmp_path) == before


async def test_hostile_contents_are_written_as_they_are(tmp_path: Path, out: Path) -> None:
    async with opened(op(WRITE + "  replace: true"), tmp_path) as call:
        for data in hostile.binaries():
            await call("/op", name="a", document=data)
            assert (out / "a.pdf").read_bytes() == data, hostile.shown(data)
    text = op('args: {text: {}}\nfiles: {write: out, name: a, content: "<{text}>", replace: true}')
    async with opened(text, tmp_path) as call:
        for value in hostile.texts():
            try:
                await call("/op", text=value)
            except CallError as exc:
                assert exc.problem.argument == "text"
                continue
            assert (out / "a").read_bytes() == f"<{value}>".encode(), hostile.shown(value)


class Legacy(threading.Thread):
    """Something old that answers files with files, slowly."""

    def __init__(self, out: Path) -> None:
        super().__init__(daemon=True)
        self._out = out
        self._answers = out.parent / "answers"
        self.stop = threading.Event()
        self.delay = 0.0

    def run(self) -> None:
        while not self.stop.wait(0.01):
            for path in self._out.glob("*.ask"):
                question = path.read_text()
                path.unlink()
                with (self._answers / f"{path.stem}.txt").open("w", buffering=1) as answer:
                    answer.write("A\n")
                    self.stop.wait(self.delay)
                    answer.write(question)


async def test_the_answer_is_waited_for_until_it_is_whole_and_taken_away(
    tmp_path: Path, out: Path
) -> None:
    # One of an earlier day answers nothing of today.
    (tmp_path / "answers" / "old.txt").write_text("yesterday")
    legacy = Legacy(out)
    legacy.delay = 0.03
    legacy.start()
    try:
        async with opened(op(ASK), tmp_path) as call:
            found = await asyncio.gather(
                *(call("/op", name=name, question=name.upper()) for name in ("a", "b", "old"))
            )
    finally:
        legacy.stop.set()
        legacy.join()

    assert found == [["A", "Q: A"], ["A", "Q: B"], ["A", "Q: OLD"]]
    assert names(tmp_path / "answers") == [] and names(out) == []


async def test_an_answer_that_does_not_come_is_a_failure(tmp_path: Path, out: Path) -> None:
    async with opened(op(ASK.replace("10s", "100ms")), tmp_path) as call:
        with pytest.raises(CallError, match=r"no answer a\.txt within 0\.1 s") as caught:
            await call("/op", name="a", question="x")
    assert caught.value.reason == "failed"


async def test_two_calls_do_not_wait_for_the_same_answer(tmp_path: Path, out: Path) -> None:
    async with opened(op(ASK), tmp_path) as call:
        first = asyncio.create_task(call("/op", name="a", question="x"))
        await eventually(lambda: names(out) == ["a.ask"])
        with pytest.raises(CallError, match=r"another call waits for a\.txt") as caught:
            await call("/op", name="a", question="y")
        assert caught.value.reason == "busy"
        (tmp_path / "answers" / "a.txt").write_text("well")
        assert await first == ["well"]


async def test_an_answer_is_bounded_and_no_link(tmp_path: Path, out: Path) -> None:
    text = op(ASK.replace("settled: 300ms", "settled: 100ms, most: 10"))
    async with opened(text, tmp_path) as call:
        first = asyncio.create_task(call("/op", name="a", question="x"))
        await eventually(lambda: names(out) == ["a.ask"])
        (tmp_path / "answers" / "a.txt").symlink_to("/etc/passwd")
        await eventually(lambda: not first.done())
        (tmp_path / "answers" / "a.txt").unlink()
        (tmp_path / "answers" / "a.txt").write_text("x" * 11)
        with pytest.raises(CallError, match="more than 10 bytes") as caught:
            await first
        assert caught.value.reason == "too-large"


def test_what_is_not_on_this_machine_is_told(tmp_path: Path) -> None:
    for text, keys in ((WATCH, ["watch"]), (WRITE, ["write"]), (ASK, ["answer.folder", "write"])):
        missing = {one.key: one.text for one in read(op(text), tmp_path).missing()}
        assert sorted(missing) == [f"ops./op.files.{key}" for key in keys]
        assert all("make it" in words for words in missing.values())


def test_a_name_that_may_be_missing_is_a_mistake() -> None:
    key = "ops./op.files.name"
    check_mistake(op(WRITE), "{name: {},", "{name: {optional: true},", key, "give it a default")


# -- mistakes

FILES = "ops./op.files"

WATCH_MISTAKES = [
    ("  watch: in", "  wach: in", f"{FILES}.wach", "did you mean 'watch'?"),
    ("  watch: in", "  settled: 1s", f"{FILES}.settled", "stands twice"),
    ("      watch: in\n", "", FILES, "write watch: FOLDER"),
    ("watch: in", "watch: in\n      write: out", FILES, "make two operations"),
    ("watch: in", "watch: in\n      name: x", f"{FILES}.name", "goes with write"),
    ("watch: in", "watch: in\n      replace: true", f"{FILES}.replace", "this is watch"),
    ("      submit: /ocr/read\n", "", FILES, "write submit:"),
    ("      argument: document\n", "", FILES, "'argument' is missing"),
    ("submit: /ocr/read", "submit: ocr", f"{FILES}.submit", "write a path such as /ocr/read"),
    ("submit: /ocr/read", "submit: /op", f"{FILES}.submit", "name the one that works"),
    ('"*.pdf"', '"in/*.pdf"', f"{FILES}.match", "leave the / out"),
    ("{stem}", "{steam}", f"{FILES}.args.title", "write one of {name}"),
    ("{stem}", "{stem", f"{FILES}.args.title", "write it twice"),
    ("pages: 3", "document: 3", f"{FILES}.args.document", "leave it out"),
    ("settled: 20ms", "settled: later", f"{FILES}.settled", "a length of time"),
    ("every: 10ms", "every: 0", f"{FILES}.every", "a length of time"),
    ("{move: done}", "burn", f"{FILES}.then", "write {move: FOLDER}, delete or keep"),
    ("{move: done}", "{move: .}", f"{FILES}.then.move", "write another one"),
    ("labels: [scans]", "labels: scans", f"{FILES}.labels", "is not a list"),
    ("{move: done}", "{move: done}\n    output: text", "ops./op.output", "leave it out"),
    ("    files:", "    args: {x: {}}\n    files:", "ops./op.args.x", "is not used"),
]  # fmt: skip

ASK_MISTAKES = [
    ('name: "{name}.ask"', 'name: "sub/{name}"', f"{FILES}.name", "leave the / out"),
    ('name: "{name}.ask"', 'name: ".."', f"{FILES}.name", "without a folder"),
    ('name: "{name}.ask"', 'name: "{nmae}.ask"', f"{FILES}.name", "is no argument"),
    ("{name}.ask", "{name}.txt", f"{FILES}.answer.name", "another name"),
    ("Q: {question}", "Q: {q}", f"{FILES}.content", "(it has name, question)"),
    ("question: {}", "question: {type: file}", f"{FILES}.content", "must be all of it"),
    ("{name}.txt", "{when}.txt", f"{FILES}.answer.name", "is no argument"),
    ("within: 10s", "within: soon", f"{FILES}.answer.within", "a length of time"),
    ("within: 10s", "wihtin: 10s", f"{FILES}.answer.wihtin", "did you mean 'within'?"),
    ("within: 10s", "then: move", f"{FILES}.answer.then", "none of 'delete', 'keep'"),
    ("output: lines", "output: {blob: a/b, file: x}", "ops./op.output.file", "goes with command"),
    ("write: out", "write: out\n      match: x", f"{FILES}.match", "goes with watch"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "key", "words"), WATCH_MISTAKES, ids=[m[1] for m in WATCH_MISTAKES]
)
def test_a_mistake_in_what_watches_is_told_once(old: str, new: str, key: str, words: str) -> None:
    check_mistake(op(WATCH), old, new, key, words)


@pytest.mark.parametrize(
    ("old", "new", "key", "words"), ASK_MISTAKES, ids=[m[1] for m in ASK_MISTAKES]
)
def test_a_mistake_in_what_writes_is_told_once(old: str, new: str, key: str, words: str) -> None:
    good = op(ASK.replace("folder: ../answers, ", ""))
    check_mistake(good, old, new, key, words)
