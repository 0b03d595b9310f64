"""A pool file says what a pool is; its mistakes are told with line and key."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.mistakes import Case

from spinal.agents.document import BadDocument
from spinal.agents.errors import AgentError
from spinal.agents.provider.offer import Exchange
from spinal.dispatcher.pools import document
from spinal.dispatcher.pools.document import check_money, load, of_json, to_json
from spinal.dispatcher.pools.spec import (
    Demand,
    Life,
    Money,
    Place,
    PoolSpec,
    Rule,
    Scale,
    Server,
    Size,
    Window,
)

from .mistakes import GOOD, MISTAKES

SCHEMA = Path(__file__).resolve().parents[3] / "docs/pool.schema.json"
ANEW = "run PYTHONPATH=src python -m tests.dispatcher.pools.test_document"

GIB = 1024**3
HOME = Exchange("EUR", {"USD": 0.92})
WORKER = "print('works')\n"


def published() -> str:
    return json.dumps(document.published(), indent=2, ensure_ascii=False) + "\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "more").mkdir()
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "more/worker.py").write_text(WORKER)
    (tmp_path / "worker.txt").write_text(WORKER)
    (tmp_path / "broken.py").write_text("x = 1\ndef f(:\n")
    (tmp_path / "latin.py").write_bytes("# caf\xe9\n".encode("latin-1"))
    (tmp_path / "large.py").write_text("#" * (document.MAX_AGENT_BYTES + 1))
    return tmp_path


def written(folder: Path, text: str) -> Path:
    path = folder / "pool.yaml"
    path.write_text(text)
    return path


def test_a_pool_file_is_read_with_all_that_it_says(folder: Path) -> None:
    assert load(written(folder, GOOD), HOME) == PoolSpec(
        pool="web",
        server=Server(cpu=4, ram=8 * GIB, disk=20 * GIB, region=("eu",)),
        size=Size(min=2, max=12, start=3),
        place=Place(spread="vendor", at_least_vendors=2),
        scale=Scale(
            ops=("/image/resize",),
            waiting=Rule(sign=">", bound=20, lasting=30),
            p95=Rule(sign=">", bound=0.4, lasting=180),
            remove_when={"p95": Rule(sign="<", bound=0.15, lasting=900)},
            schedule=(
                Window(cron="0 8 * * mon-fri", zone="Europe/Berlin", lasting=36_000, size=4),
            ),
        ),
        money=Money(max_per_hour=0.6, max_per_month=200, currency="EUR", label="shop"),
        life=Life(
            self_test=("/machine/health",),
            agents={"worker.py": WORKER},
            packages=("pillow>=10",),
        ),
    )


def test_all_but_the_name_and_the_server_has_a_default(folder: Path) -> None:
    spec = load(written(folder, "pool: web\nserver: {cpu: 2, ram: 4G}\n"))

    assert spec == PoolSpec(pool="web", server=Server(cpu=2, ram=4 * GIB))


@pytest.mark.parametrize(
    ("said", "size"),
    [
        ("{min: 2}", Size(min=2, max=2, start=2)),
        ("{start: 3}", Size(min=0, max=3, start=3)),
        ("{max: 5}", Size(min=0, max=5, start=0)),
        ("{min: 1, max: 5}", Size(min=1, max=5, start=1)),
        ("{}", Size(min=0, max=1, start=0)),
    ],
)
def test_sizes_that_are_not_said_follow_from_the_others(
    folder: Path, said: str, size: Size
) -> None:
    text = f"pool: web\nserver: {{cpu: 2, ram: 4G}}\nsize: {said}\n"

    assert load(written(folder, text)).size == size


def test_one_word_does_for_a_list_of_one(folder: Path) -> None:
    text = "pool: web\nserver: {cpu: 2, ram: 4G, region: eu}\nscale: {op: [/a, /b]}\n"

    spec = load(written(folder, text))

    assert (spec.server.region, spec.scale.ops) == (("eu",), ("/a", "/b"))


def test_a_demand_may_have_as_many_machines_as_jobs(folder: Path) -> None:
    text = "pool: web\nserver: {cpu: 1, ram: 1G}\ndemand: [{cpu: 0.5, ram: 512M, count: 20}]\n"

    spec = load(written(folder, text))

    assert spec.demand == (Demand(cpu=0.5, ram=GIB // 2, count=20),)
    assert spec.size.max == 20


# -- mistakes


@pytest.mark.parametrize("case", MISTAKES, ids=lambda case: f"{case.key}-{case.words[0]}")
def test_a_mistake_is_told_once_with_line_and_key(folder: Path, case: Case) -> None:
    path = written(folder, case.text)

    with pytest.raises(BadDocument) as caught:
        load(path, HOME)

    (told,) = caught.value.mistakes
    assert (told.line, told.key) == (case.line, case.key), str(told)
    assert all(word in told.text for word in case.words), str(told)
    assert str(told).startswith(f"{path}:{case.line}: ")


def test_there_are_more_than_sixty_mistakes() -> None:
    assert len(MISTAKES) > 60


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(folder: Path) -> None:
    text = GOOD.replace("min: 2", "min: 13").replace("op: /", "op: ").replace("[worker", "[other")

    with pytest.raises(BadDocument) as caught:
        load(written(folder, text))

    assert [one.line for one in caught.value.mistakes] == [3, 6, 19]


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="No such file"):
        load(tmp_path / "none.yaml")


def test_a_budget_in_a_currency_without_a_rate_says_what_to_write() -> None:
    spec = PoolSpec(pool="web", server=Server(cpu=1, ram=GIB), money=Money(currency="GBP"))

    assert "rates: {GBP: 0.92}" in (check_money(spec, HOME) or "")
    assert check_money(replace(spec, money=Money(currency="USD")), HOME) is None
    assert check_money(replace(spec, money=Money()), HOME) is None


# -- on the bus


def test_what_is_sent_is_read_back_as_it_was(folder: Path) -> None:
    spec = load(written(folder, GOOD))

    assert of_json(json.loads(json.dumps(to_json(spec)))) == spec


@settings(max_examples=30, deadline=None)
@given(
    cpu=st.floats(0.1, 1000),
    ram=st.integers(2**20, 2**45),
    least=st.integers(0, 20),
    more=st.integers(1, 20),
    jobs=st.integers(0, 1000),
    lasting=st.integers(0, 86_400),
    share=st.integers(1, 99),
    ttl=st.integers(901, 1_000_000),
)
def test_any_pool_is_read_back_as_it_was(
    cpu: float, ram: int, least: int, more: int, jobs: int, lasting: int, share: int, ttl: int
) -> None:
    spec = PoolSpec(
        pool="web",
        server=Server(cpu=cpu, ram=ram, region=("eu", "us-east-1")),
        size=Size(min=least, max=least + more, start=least),
        scale=Scale(
            ops=("/a",),
            waiting=Rule(sign=">", bound=jobs, lasting=lasting),
            remove_when={"idle": Rule(sign=">", bound=jobs, lasting=lasting)},
            consolidate=share / 100,
        ),
        life=Life(ttl=ttl),
    )

    assert of_json(to_json(spec)) == spec


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"size": {"min": 5, "max": 2}}, "size.min"),
        ({"pool": "../x"}, "pool"),
        ({"life": {"agents": ["worker.py"]}}, "life.agents"),
        ({"life": {"agents": {"../worker.py": ""}}}, "life.agents.../worker.py"),
        ({"life": {"packages": ["-r/etc/passwd"]}}, "life.packages.0"),
        ({"more": 1}, "more"),
    ],
)
def test_what_is_sent_is_checked_as_a_file_is(change: dict[str, object], key: str) -> None:
    sent = {**to_json(PoolSpec(pool="web", server=Server(cpu=1, ram=GIB))), **change}

    with pytest.raises(BadDocument) as caught:
        of_json(sent)

    assert [one.key for one in caught.value.mistakes] == [key]


@pytest.mark.parametrize("sent", [None, 7, "web", [], {}])
def test_what_is_no_pool_at_all_is_refused(sent: object) -> None:
    with pytest.raises(BadDocument):
        of_json(sent)


def test_the_schema_that_is_published_is_that_of_the_code() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == published(), ANEW


if __name__ == "__main__":
    SCHEMA.write_text(published(), encoding="utf-8")
