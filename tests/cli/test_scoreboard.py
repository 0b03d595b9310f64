from spinal.cli.scoreboard import Scoreboard, Show, rows


def event(what: str, job: str, agent: str, **more: object) -> dict[str, object]:
    return {
        "what": what,
        "id": job,
        "agent": f"{agent}@spinal.localhost/agent",
        "caller": "owner@spinal.localhost/here",
        "op": "/image/resize",
        **more,
    }


def board(jobs: int = 10) -> Scoreboard:
    return Scoreboard(["fast", "slow"], jobs, "owner@spinal.localhost/here", "/image/resize")


def test_a_worker_has_a_job_from_its_op_to_its_final() -> None:
    shown = board()
    shown.seen(event("op", "1", "fast"))
    assert shown.workers["fast"].running == {"1"}
    shown.seen(event("final", "1", "fast", ran=1500))
    assert not shown.workers["fast"].running
    assert shown.workers["fast"].seconds == 1.5


def test_a_job_of_a_killed_worker_has_moved_once_another_one_has_it() -> None:
    shown = board()
    shown.seen(event("op", "1", "fast"))
    shown.killed("fast")
    assert not shown.moved
    for _ in range(2):
        shown.seen(event("op", "1", "slow"))
    assert shown.moved == {"1"}
    assert not shown.workers["fast"].running
    assert shown.workers["slow"].running == {"1"}


def test_a_job_that_a_living_worker_had_no_room_for_has_not_moved() -> None:
    shown = board()
    shown.seen(event("op", "1", "fast"))
    shown.seen(event("op", "1", "slow"))
    assert not shown.moved
    assert not shown.workers["fast"].running


def test_other_calls_do_not_count() -> None:
    shown = board()
    shown.seen(event("op", "1", "stranger"))
    shown.seen(event("op", "2", "fast", caller="somebody@spinal.localhost/else"))
    shown.seen(event("op", "3", "fast", op="/image/histogram"))
    shown.seen({"type": "seen", "what": "dropped", "state": "7"})
    assert not any(worker.running for worker in shown.workers.values())


def test_a_killed_worker_is_shown_as_killed() -> None:
    shown = board()
    shown.seen(event("op", "1", "slow"))
    shown.killed("slow")
    assert "slow 0 (killed)" in shown.line()
    assert rows(shown)[1][3] == "killed half-way"


def test_results_are_counted_by_worker() -> None:
    shown = board()
    shown.result("fast@spinal.localhost/agent")
    shown.result(None)
    assert shown.done == 1
    assert shown.line() == "1/10 done: fast 1 (+0), slow 0 (+0)"


def test_plain_lines_come_once_a_second() -> None:
    now = [0.0]
    said: list[str] = []
    shown = board()
    show = Show(shown, drawn=False, clock=lambda: now[0], out=said.append)
    with show:
        for tenth in range(25):
            now[0] = tenth / 10
            show.tick()
    assert len(said) == 3  # After one second, after two, and at the end.


def test_a_quiet_show_says_nothing() -> None:
    said: list[str] = []
    with Show(board(), quiet=True, drawn=True, out=said.append) as show:
        show.tick()
        show.line("something")
    assert said == []
