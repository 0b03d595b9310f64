from __future__ import annotations

import asyncio
import os
import stat
import threading
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

import pytest

from spinal.agents.errors import Refused
from spinal.agents.machine.config import FilesConfig
from spinal.agents.machine.files import Files
from spinal.agents.machine.folder import Folder, find
from spinal.testing import eventually

from .conftest import Start, World


@dataclass
class Tree:
    """Two folders, of which one may be written, and a secret beside them."""

    root: Path

    @property
    def read(self) -> Path:
        return self.root / "read"

    @property
    def write(self) -> Path:
        return self.root / "write"

    @property
    def secret(self) -> Path:
        return self.root / "secret"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    tree = Tree(tmp_path / "tree")
    for folder in (tree.read / "inner", tree.write, tree.secret):
        folder.mkdir(parents=True)
    (tree.read / "a.txt").write_text("quiet")
    (tree.read / "inner" / "b.log").write_text("deep")
    (tree.secret / "key").write_text("SECRET")
    return tree


@pytest.fixture
async def world(start: Start, tree: Tree) -> AsyncGenerator[World]:
    text = f"files: {{read: [{tree.read}, {tree.write}], write: [{tree.write}], largest: 1M}}"
    async with start(text) as world:
        yield world


class TestReading:
    async def test_the_folders_are_told(self, world: World, tree: Tree) -> None:
        assert await world.ask("/files/roots") == [
            {"path": str(tree.read), "read": True, "write": False},
            {"path": str(tree.write), "read": True, "write": True},
        ]

    async def test_a_folder_is_listed(self, world: World, tree: Tree) -> None:
        (tree.read / "link").symlink_to(tree.secret)
        os.mkfifo(tree.read / "pipe")
        found = await world.ask("/files/list", path=str(tree.read))
        kinds = {entry["name"]: entry["kind"] for entry in found["entries"]}
        assert kinds == {"a.txt": "file", "inner": "folder", "link": "link", "pipe": "other"}
        assert found["entries"][0]["size"] == 5 and not found["more"]

    async def test_a_large_folder_comes_in_pages(self, world: World, tree: Tree) -> None:
        many = tree.read / "many"
        many.mkdir()
        for number in range(250):
            (many / f"{number:03}.log").touch()
        (many / "other.txt").touch()
        names: list[str] = []
        more, after = True, ""
        while more:
            page = await world.ask(
                "/files/list", path=str(many), match="*.log", after=after, limit=100
            )
            names += [entry["name"] for entry in page["entries"]]
            more, after = page["more"], names[-1]
        assert names == [f"{number:03}.log" for number in range(250)]

    async def test_names_that_are_long_do_not_burst_the_answer(
        self, world: World, tree: Tree
    ) -> None:
        many = tree.read / "many"
        many.mkdir()
        for number in range(300):
            (many / f"{number:03}{'<' * 240}").touch()
        page = await world.ask("/files/list", path=str(many), limit=300)
        assert page["more"] and 0 < len(page["entries"]) < 300

    async def test_a_name_that_is_no_unicode_is_shown(self, world: World, tree: Tree) -> None:
        (Path(os.fsdecode(os.fsencode(tree.read) + b"/inner/\xff.bin"))).touch()
        found = await world.ask("/files/list", path=str(tree.read / "inner"))
        assert [entry["name"] for entry in found["entries"]] == ["b.log", "�.bin"]

    async def test_a_path_is_explained(self, world: World, tree: Tree) -> None:
        (tree.read / "a.txt").chmod(0o640)
        found = await world.ask("/files/stat", path=str(tree.read / "a.txt"))
        assert (found["kind"], found["size"], found["mode"], found["links"]) == (
            "file",
            5,
            "0640",
            1,
        )
        assert (await world.ask("/files/stat", path=str(tree.read)))["kind"] == "folder"

    async def test_of_a_link_the_link_is_explained(self, world: World, tree: Tree) -> None:
        (tree.read / "link").symlink_to(tree.secret / "key")
        found = await world.ask("/files/stat", path=str(tree.read / "link"))
        assert found["kind"] == "link" and found["size"] != len("SECRET")

    async def test_a_file_comes_as_a_blob(self, world: World, tree: Tree) -> None:
        answer = await world.ask("/files/read", path=str(tree.read / "a.txt"))
        assert world.content(answer) == b"quiet"
        assert answer["blob"]["media"] == "text/plain"

    async def test_a_part_of_a_file_is_read(self, world: World, tree: Tree) -> None:
        path = str(tree.read / "a.txt")
        assert world.content(await world.ask("/files/read", path=path, offset=1, length=3)) == (
            b"uie"
        )
        assert world.content(await world.ask("/files/read", path=path, offset=99)) == b""

    async def test_what_is_too_large_is_refused_and_read_in_parts(
        self, world: World, tree: Tree
    ) -> None:
        path = tree.read / "large"
        path.write_bytes(bytes(2**20) + b"end")
        reason, said = await world.problem("/files/read", path=str(path))
        assert reason == "refused" and "give offset and length" in said
        part = await world.ask("/files/read", path=str(path), offset=2**20)
        assert world.content(part) == b"end"
        reason, said = await world.problem("/files/read", path=str(path), length=2**20 + 1)
        assert reason == "refused" and "at most 1048576 bytes" in said

    async def test_a_file_that_grows_without_end_is_cut(self, tmp_path: Path) -> None:
        # Its size is 0 beforehand, like that of all in /proc.
        files = Files(FilesConfig(read=("/proc/self",), largest=100))
        await asyncio.to_thread(files.read, "/proc/self/environ", 0, 0, tmp_path / "copy")
        assert (tmp_path / "copy").stat().st_size == 100

    @pytest.mark.parametrize("name", ["pipe", "inner", "socket", "nothing", "null"])
    async def test_only_files_are_read_and_nothing_is_waited_for(
        self, world: World, tree: Tree, name: str
    ) -> None:
        os.mkfifo(tree.read / "pipe")
        os.mknod(tree.read / "socket", stat.S_IFSOCK | 0o600)
        if os.geteuid() == 0:
            os.mknod(tree.read / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        reason, _ = await world.problem("/files/read", path=str(tree.read / name))
        assert reason == "refused"

    async def test_what_may_only_be_written_is_not_read(self, start: Start, tree: Tree) -> None:
        async with start(f"files: {{read: [{tree.read}], write: [{tree.write}]}}") as world:
            (tree.write / "x").write_text("x")
            reason, said = await world.problem("/files/read", path=str(tree.write / "x"))
        assert reason == "refused" and "in no folder in which this agent may read" in said


class TestWriting:
    async def test_a_file_is_written(self, world: World, tree: Tree) -> None:
        path = tree.write / "new.txt"
        done = await world.ask("/files/write", path=str(path), content=world.blob(b"new"))
        assert done == {"path": str(path), "size": 3, "replaced": False}
        assert path.read_bytes() == b"new" and stat.S_IMODE(path.stat().st_mode) == 0o644
        assert [one.name for one in tree.write.iterdir()] == ["new.txt"]

    async def test_one_that_is_there_is_replaced_and_keeps_its_rights(
        self, world: World, tree: Tree
    ) -> None:
        path = tree.write / "old.txt"
        path.write_text("old")
        path.chmod(0o600)
        before = path.stat().st_ino
        with path.open() as reader:
            done = await world.ask("/files/write", path=str(path), content=world.blob(b"new"))
            # Whoever has the old one open has all of it still.
            assert reader.read() == "old"
        assert done["replaced"] and path.read_text() == "new"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600 and path.stat().st_ino != before

    @pytest.mark.parametrize(("mode", "rights"), [("0640", 0o640), ("777", 0o777)])
    async def test_its_rights_can_be_given(
        self, world: World, tree: Tree, mode: str, rights: int
    ) -> None:
        path = tree.write / "new.txt"
        await world.ask("/files/write", path=str(path), content=world.blob(b""), mode=mode)
        assert stat.S_IMODE(path.stat().st_mode) == rights

    @pytest.mark.parametrize("mode", ["4755", "02777", "rw", "-644", "0o644", "999"])
    async def test_other_rights_are_refused(self, world: World, tree: Tree, mode: str) -> None:
        path = tree.write / "new.txt"
        args = {"path": str(path), "content": world.blob(b""), "mode": mode}
        assert (await world.problem("/files/write", **args))[0] == "bad-arguments"
        assert not path.exists()

    async def test_a_link_is_not_written_through(self, world: World, tree: Tree) -> None:
        (tree.write / "link").symlink_to(tree.secret / "key")
        args = {"path": str(tree.write / "link"), "content": world.blob(b"overwritten")}
        reason, said = await world.problem("/files/write", **args)
        assert reason == "refused" and "is a link" in said
        assert (tree.secret / "key").read_text() == "SECRET"

    async def test_a_hard_link_is_replaced_and_its_other_name_stays(
        self, world: World, tree: Tree
    ) -> None:
        os.link(tree.secret / "key", tree.write / "hard")
        await world.ask("/files/write", path=str(tree.write / "hard"), content=world.blob(b"new"))
        assert (tree.secret / "key").read_text() == "SECRET"

    @pytest.mark.parametrize("name", ["", "folder", "none/x", "a.txt/x"])
    async def test_where_no_file_can_be_nothing_is_left(
        self, world: World, tree: Tree, name: str
    ) -> None:
        (tree.write / "folder").mkdir()
        (tree.write / "a.txt").touch()
        args = {"path": str(tree.write / name), "content": world.blob(b"x")}
        assert (await world.problem("/files/write", **args))[0] == "refused"
        assert sorted(one.name for one in tree.write.iterdir()) == ["a.txt", "folder"]

    async def test_what_is_too_large_is_refused_before_it_is_fetched(
        self, world: World, tree: Tree
    ) -> None:
        reference = world.blob(bytes(2**20 + 1))
        world.shelf.kept.clear()
        reason, _ = await world.problem(
            "/files/write", path=str(tree.write / "x"), content=reference
        )
        assert reason == "refused"

    async def test_what_cannot_be_fetched_changes_nothing(self, world: World, tree: Tree) -> None:
        (tree.write / "x").write_text("old")
        reference = world.blob(b"new")
        world.shelf.kept.clear()
        reason, _ = await world.problem(
            "/files/write", path=str(tree.write / "x"), content=reference
        )
        assert reason == "blob" and (tree.write / "x").read_text() == "old"

    async def test_what_may_only_be_read_is_not_written(self, world: World, tree: Tree) -> None:
        args = {"path": str(tree.read / "a.txt"), "content": world.blob(b"x")}
        assert (await world.problem("/files/write", **args))[0] == "refused"
        assert (await world.problem("/files/remove", path=args["path"]))[0] == "refused"
        assert (tree.read / "a.txt").read_text() == "quiet"


class TestRemoving:
    async def test_files_links_and_empty_folders_are_removed(
        self, world: World, tree: Tree
    ) -> None:
        (tree.write / "file").touch()
        (tree.write / "folder").mkdir()
        (tree.write / "link").symlink_to(tree.secret)
        for name in ("file", "folder", "link"):
            assert await world.ask("/files/remove", path=str(tree.write / name)) == name
        assert not [*tree.write.iterdir()] and (tree.secret / "key").exists()

    @pytest.mark.parametrize("name", ["", "full", "none", "pipe"])
    async def test_nothing_else_is(self, world: World, tree: Tree, name: str) -> None:
        (tree.write / "full" / "inner").mkdir(parents=True)
        os.mkfifo(tree.write / "pipe")
        assert (await world.problem("/files/remove", path=str(tree.write / name)))[0] == "refused"
        assert (tree.write / "full" / "inner").is_dir()


ESCAPES = [
    "../secret/key",
    "read/../secret/key",
    "read/inner/../../secret/key",
    "read/./../secret/key",
    "readable/key",
    "secret/key",
    "read/link/key",
    "read/keylink",
    "read/inner/up/secret/key",
    "read/chain/key",
    "read/proc/1/root/etc/shadow",
    "read//../secret/key",
    "read/..//secret/key",
    "read/...",
    "read/.. /secret/key",
    "read/%2e%2e/secret/key",
    "read/..\\secret\\key",
    "read/\0/../../secret/key",
    "read/a.txt\0.png",
    "read/a.txt\n",
    "read/" + "x" * 256,
    "read/" + "x/" * 1500 + "y",
    "read/-rf",
    "read/$(cat ../secret/key)",
    "read/`id`",
    "read/a.txt;id",
    "read/*",
    "read/~root",
]


class TestEscapes:
    """No path leads out of the folders."""

    @pytest.mark.parametrize("path", ESCAPES, ids=lambda path: repr(path)[:30])
    @pytest.mark.parametrize("op", ["read", "stat", "list"])
    async def test_no_path_leads_out(self, world: World, tree: Tree, op: str, path: str) -> None:
        links = {"link": tree.secret, "keylink": tree.secret / "key", "proc": Path("/proc")}
        for name, target in {**links, "chain": Path("link"), "inner/up": Path("../..")}.items():
            (tree.read / name).symlink_to(target)
        if (op, path) == ("stat", "read/keylink"):
            return  # It tells of the link itself; see above.
        reason, said = await world.problem(f"/files/{op}", path=f"{tree.root}/{path}")
        assert reason in ("refused", "bad-arguments")
        assert "\n" not in said and "SECRET" not in said and len(said) < 500

    @pytest.mark.parametrize(
        "path",
        ["", "a", "read/a.txt", "./x", "-", "~", "\0", "\n/x", "C:\\x", "file:///etc", "//.."],
    )
    async def test_what_is_no_path_from_the_root_is_refused(self, world: World, path: str) -> None:
        for op in ("read", "stat", "list"):
            reason, _ = await world.problem(f"/files/{op}", path=path)
            assert reason in ("refused", "bad-arguments")

    async def test_odd_names_are_taken_literally(self, world: World, tree: Tree) -> None:
        for name in ("-rf", "$(id)", "a;b", "new\nline", "%2e", "*", "~", '"q"', "..."):
            (tree.write / name).write_text(name)
            answer = await world.ask("/files/read", path=str(tree.write / name))
            assert world.content(answer) == name.encode()
            await world.ask("/files/remove", path=str(tree.write / name))
        assert not [*tree.write.iterdir()]

    def test_a_megabyte_is_refused_in_a_short_line(self, tree: Tree) -> None:
        for path in ("/" * 10**6, "/" + "ü" * 10**6, "x" * 10**6, "/" + "../" * 10**6):
            with pytest.raises(Refused) as caught:
                find(path, [Folder(str(tree.read))], "read")
            assert len(str(caught.value)) < 300

    def test_the_innermost_folder_counts(self, tree: Tree) -> None:
        outer, inner = Folder(str(tree.root)), Folder(str(tree.read))
        assert find(f"{tree.read}/a", [outer, inner], "read") == (inner, ("a",))
        assert find(f"{tree.root}/a", [outer, inner], "read") == (outer, ("a",))

    def test_a_link_that_the_configuration_names_is_followed_as_it_was_at_the_start(
        self, tree: Tree
    ) -> None:
        link = tree.root / "link"
        link.symlink_to(tree.read)
        files = Files(FilesConfig(read=(str(link),)))
        link.unlink()
        link.symlink_to(tree.secret)
        assert [one.name for one in files.page(str(link), "*", "", 10).entries] == [
            "a.txt",
            "inner",
        ]

    @pytest.mark.parametrize("swapped", ["folder", "file"])
    async def test_no_race_with_a_link_leads_out(self, tree: Tree, swapped: str) -> None:
        """One thread swaps what is there for a link to the secret, another one uses it."""
        files = Files(FilesConfig(read=(str(tree.write),), write=(str(tree.write),)))
        now, real, away = tree.write / "now", tree.write / "real", tree.write / "away"
        if swapped == "folder":
            real.mkdir()
            (real / "key").write_text("harmless")
            away.symlink_to(tree.secret)
        else:
            real.write_text("harmless")
            away.symlink_to(tree.secret / "key")
        path = str(now / "key" if swapped == "folder" else now)
        source = tree.root / "source"
        source.write_text("harmless")
        stop = threading.Event()

        def swap() -> None:
            while not stop.is_set():
                for there in (real, away):
                    os.rename(there, now)
                    os.rename(now, there)

        def use() -> tuple[int, int]:
            done = refused = 0
            copy = tree.root / "copy"
            for _ in range(20_000):
                try:
                    files.read(path, 0, 0, copy)
                    assert copy.read_text() == "harmless"
                    if swapped == "folder":
                        files.write(path, source, "")
                        files.write(str(now / "new"), source, "")
                    done += 1
                except Refused:
                    refused += 1
                if min(done, refused) > 200 and swapped == "folder":
                    break
            return done, refused

        swapper = threading.Thread(target=swap)
        swapper.start()
        try:
            done, refused = await asyncio.to_thread(use)
        finally:
            stop.set()
            swapper.join()
        # Both ways were met, so there was a race to lose.
        assert done and refused
        assert [one.name for one in tree.secret.iterdir()] == ["key"]
        assert (tree.secret / "key").read_text() == "SECRET"

    async def test_descriptors_are_given_back(self, world: World, tree: Tree) -> None:
        def held() -> int:
            return len(os.listdir("/proc/self/fd"))

        await world.ask("/files/list", path=str(tree.read))
        before = held()
        for path in (tree.read, tree.read / "a.txt", tree.read / "none" / "x", tree.secret):
            for op in ("list", "stat", "read"):
                for _ in range(10):
                    call = world.call(f"/files/{op}", path=str(path))
                    await asyncio.gather(call.result(), return_exceptions=True)
        await eventually(lambda: held() <= before, 5)
