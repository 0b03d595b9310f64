import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spinal.cli.burst import read_rate

from .conftest import Program, Spinal, spinal_at, spinal_here, until

pytestmark = pytest.mark.timeout(300)

WORKER = Path(__file__).with_name("burst_worker.py")

CHEAP, DEAR = 0.018, 0.0276
PROVIDERS = f"""
currency: EUR
rates: {{USD: 0.5}}
accounts:
  north: {{driver: local, sizes: {{n-1: {{cpu: 1, ram: 2G, price: {CHEAP}}}}}, limit: 2}}
  south: {{driver: local, sizes: {{s-1: {{cpu: 1, ram: 2G, price: {DEAR}}}}}, limit: 4}}
"""


def of(home: Path) -> Spinal:
    """Give the command line in this process, with a home that is up."""
    return spinal_here(home)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a home that is up, with two vendors and not a single machine."""
    place = tmp_path_factory.mktemp("burst") / "home"
    place.mkdir()
    (place / "providers.yaml").write_text(PROVIDERS)
    up = Program(place, "up", "--json")
    try:
        up.until(60, event="ready")
        spinal = spinal_at(place)
        for _ in range(60):
            if len({one["vendor"] for one in spinal("offers", "--json").json}) == 2:
                break
        else:
            raise AssertionError(f"the vendors did not come: {up.err}")
        yield place
    finally:
        assert up.end(timeout=60) == 0, up.err


@pytest.fixture
def words(tmp_path: Path) -> Any:
    """Give a function that writes so many inputs, and gives the pattern that finds them."""

    def write(count: int) -> str:
        for number in range(count):
            (tmp_path / f"{number:03}.txt").write_text("x" * number)
        return f"word@={tmp_path}/*.txt"

    return write


def burst(over: str, *more: str) -> tuple[str, ...]:
    """Give the words of a burst over some inputs."""
    given = ("--burst", "--max", "0.2/h", "--with", str(WORKER), "--yes", "--json")
    return ("map", "/word/length", "--over", over, *given, *more)


def said(out: str) -> tuple[list[Any], Any, Any]:
    """Give what was printed: the inputs, the burst, and the end."""
    rows = [json.loads(line) for line in out.splitlines()]
    inputs = [row for row in rows if "input" in row]
    (bill,) = [row["burst"] for row in rows if "burst" in row]
    return inputs, bill, rows[-1]


def machines(home: Path) -> list[str]:
    """Give the names of all machines that the vendors have."""
    found: list[str] = []
    for vendor in ("north", "south"):
        listed = of(home)("call", "/provider/list", "--place", f"vendor=/{vendor}", "--json")
        found += [one["name"] for one in listed.json["value"]["machines"]]
    return found


def pools(home: Path) -> list[Any]:
    listed: list[Any] = of(home)("pool", "list", "--json").json["items"]
    return listed


def check_nothing_is_left(home: Path) -> None:
    assert pools(home) == []
    assert machines(home) == []


class TestRuns:
    def test_it_rents_as_many_as_the_deadline_needs_and_returns_them(
        self, home: Path, words: Any
    ) -> None:
        # 40 s of work and a quarter, and a minute that a fourth of goes by until machines start.
        ran = spinal_at(home)(*burst(words(40), "--each", "1s", "--deadline", "60s"), timeout=200)
        assert ran.code == 0, ran.err
        inputs, bill, end = said(ran.out)
        assert sorted(one["value"] for one in inputs) == list(range(40))
        assert (end["done"], end["failed"]) == (40, 0)
        assert bill["planned"]["machines"] == 2
        assert [one["vendor"] for one in bill["machines"]] == ["north", "north"]
        assert all(one["name"].startswith(bill["pool"]) for one in bill["machines"])
        hours = bill["minutes"] / 60
        assert bill["cost"] == pytest.approx(hours * CHEAP, rel=1e-3)
        assert bill["dearest"]["cost"] == pytest.approx(hours * DEAR, rel=1e-3)
        assert bill["naive"]["cost"] == pytest.approx(hours * (CHEAP + DEAR) / 2, rel=1e-3)
        assert not bill["late"]
        check_nothing_is_left(home)

    def test_without_an_estimate_the_first_machine_finds_out(self, home: Path, words: Any) -> None:
        ran = spinal_at(home)(
            *burst(words(330), "--deadline", "110s", "--machines", "6"), timeout=250
        )
        assert ran.code == 0, ran.err
        _, bill, end = said(ran.out)
        assert end["done"] == 330
        assert bill["each"] == pytest.approx(0.3, abs=0.3)
        assert len(bill["machines"]) == bill["planned"]["machines"] > 1
        assert "for each input" in ran.err
        check_nothing_is_left(home)

    def test_where_machines_are_slower_than_was_said_there_are_more(
        self, home: Path, words: Any
    ) -> None:
        # One machine would do by what is said, and takes a minute and a half in truth.
        over = words(300)
        ran = spinal_at(home)(*burst(over, "--each", "50ms", "--deadline", "85s"), timeout=200)
        assert ran.code == 0, ran.err
        _, bill, end = said(ran.out)
        assert end["done"] == 300
        assert len(bill["machines"]) > 1
        check_nothing_is_left(home)

    def test_what_it_takes_can_stand_in_a_pool_file(
        self, home: Path, words: Any, tmp_path: Path
    ) -> None:
        file = tmp_path / "pool.yaml"
        file.write_text(
            "pool: other\nserver: {cpu: 1, ram: 1G}\nsize: {min: 3, max: 3}\n"
            f"money: {{label: letters, max_per_hour: 9}}\nlife: {{agents: [{WORKER}]}}\n"
        )
        given = ("--burst", "--max", "0.2/h", "--deadline", "180s", "--pool", str(file), "--yes")
        ran = of(home)("map", "/word/length", "--over", words(1), *given)
        assert ran.code == 0, ran.err
        assert "1 machine, " in ran.err
        costs = of(home)("cost", "--by", "label", "--json").json["rows"]
        assert "letters" in [one["key"][0] for one in costs]
        check_nothing_is_left(home)


class TestEnds:
    def test_the_deadline_returns_them_whatever_is_left(self, home: Path, words: Any) -> None:
        over = words(600)
        ran = spinal_at(home)(*burst(over, "--each", "10ms", "--deadline", "40s"), timeout=200)
        assert ran.code == 1, ran.err
        _, bill, end = said(ran.out)
        assert bill["late"]
        assert end["done"] < 600
        assert f"the deadline came first: {600 - end['done']} inputs are not done" in ran.err
        check_nothing_is_left(home)

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_a_signal_returns_them_before_it_ends(
        self, home: Path, words: Any, number: int, code: int
    ) -> None:
        run = Program(home, *burst(words(300), "--each", "300ms", "--deadline", "200s"))
        first = run.next(60)
        assert "input" in first, first
        assert run.end(number, timeout=60) == code, run.err
        assert '"burst"' in "".join(run.rest())
        check_nothing_is_left(home)

    def test_killed_the_machines_go_when_nothing_waits_any_more(
        self, home: Path, words: Any
    ) -> None:
        run = Program(home, *burst(words(30), "--each", "1s", "--deadline", "100s"))
        assert "input" in run.next(60)
        run.end(signal.SIGKILL)
        (pool,) = pools(home)
        assert pool["exist"]
        until(lambda: not pools(home)[0]["exist"], 120)
        assert machines(home) == []
        # The empty pool waits for its end, two minutes after the deadline.
        assert of(home)("pool", "down", pool["name"], "--yes").code == 0
        check_nothing_is_left(home)

    def test_a_pool_goes_at_its_end_with_its_machines(self, home: Path, tmp_path: Path) -> None:
        file = tmp_path / "pool.yaml"
        file.write_text(
            "pool: short\nserver: {cpu: 1, ram: 1G}\nsize: {start: 1}\n"
            f"life: {{ttl: 5m, join: 1m, ends: 3s, agents: [{WORKER}]}}\n"
        )
        assert of(home)("pool", "apply", str(file), "--yes", "--no-wait").code == 0
        until(lambda: not pools(home), 60)
        check_nothing_is_left(home)


class TestMistakes:
    @pytest.mark.parametrize(
        ("given", "text"),
        [
            (("--max", "1/h"), "--max goes with --burst"),
            (("--with", __file__), "--with goes with --burst"),
            (("--yes",), "--yes goes with --burst"),
            (("--burst", "--max", "1/h"), "--burst needs --deadline"),
            (("--burst", "--deadline", "1m"), "--burst needs --max"),
            (
                ("--burst", "--max", "1/h", "--deadline", "1m"),
                "--burst needs the agent that offers /word/length: --with FILE.py, or --pool",
            ),
            (
                ("--burst", "--max", "cheap", "--deadline", "1m"),
                "'cheap' is no money of an hour: write 0.40/h, or 0.40 EUR/h",
            ),
            (("--burst", "--max", "1/h", "--deadline", "0s"), "more time than none"),
            (
                ("--burst", "--max", "1/h", "--deadline", "1m", "--with", "x.py"),
                "Invalid value for '--with': File 'x.py' does not exist.",
            ),
            (
                (
                    "--burst",
                    "--max",
                    "1/h",
                    "--deadline",
                    "1m",
                    "--with",
                    __file__,
                    "--region",
                    "!",
                ),
                "--region: '!' is no region: write for example eu",
            ),
            (
                ("--burst", "--max", "1/h", "--deadline", "1m", "--with", __file__, "--key", "k"),
                "a burst is not gone on with",
            ),
        ],
    )
    def test_what_is_missing_is_one_line(
        self, home: Path, words: Any, given: tuple[str, ...], text: str
    ) -> None:
        ran = of(home)("map", "/word/length", "--over", words(1), *given)
        assert ran.code in (2, 1)
        assert text in ran.line

    @pytest.mark.parametrize(
        ("more", "text"),
        [
            (("--max", "0.01/h", "--each", "1s"), "the cheapest machine costs 0.018 an hour"),
            (("--each", "1m"), "4 inputs of 60s each are not done in 50s"),
            (("--max", "1 CHF/h", "--each", "1s"), "there is no rate from CHF to EUR"),
            (("--cpu", "64", "--each", "1s"), "cpu"),
        ],
    )
    def test_what_cannot_be_is_refused_before_anything_is_rented(
        self, home: Path, words: Any, more: tuple[str, ...], text: str
    ) -> None:
        ran = of(home)(*burst(words(4), "--deadline", "50s", *more))
        assert ran.code == 4
        assert text in ran.line
        check_nothing_is_left(home)

    def test_an_agent_that_does_not_offer_it_is_returned(
        self, home: Path, words: Any, tmp_path: Path
    ) -> None:
        file = tmp_path / "other.py"
        file.write_text(WORKER.read_text().replace("/word/length", "/word/other"))
        given = ("--burst", "--max", "0.2/h", "--deadline", "60s", "--with", str(file), "--yes")
        ran = of(home)("map", "/word/length", "--over", words(1), *given)
        assert ran.code == 3
        assert "/word/length" in ran.err.splitlines()[-1]
        check_nothing_is_left(home)

    def test_somebody_has_to_say_yes(self, home: Path, words: Any) -> None:
        given = [word for word in burst(words(1), "--deadline", "60s") if word != "--yes"]
        ran = spinal_at(home)(*given)
        assert ran.code == 2
        assert "there is no terminal to ask at: add --yes" in ran.line
        check_nothing_is_left(home)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0.40/h", (0.4, "")),
        ("0.40", (0.4, "")),
        ("2", (2.0, "")),
        ("0.40 EUR/h", (0.4, "EUR")),
        ("0.40USD / h", (0.4, "USD")),
    ],
)
def test_money_of_an_hour_is_read(text: str, found: tuple[float, str]) -> None:
    assert read_rate(text) == found


@pytest.mark.parametrize("text", ["", "0/h", "-1/h", "1/day", "1 euro/h", "1e9999", "nan", "EUR"])
def test_anything_else_is_no_money_of_an_hour(text: str) -> None:
    with pytest.raises(ValueError, match="no money of an hour"):
        read_rate(text)
