"""Measuring contenders: turns, failures, waiting, and the device memory that a process takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from hart_edge.runtime import bench, bench_memory
from hart_edge.runtime.bench import WARM_UPS, Contender, Loader, Measurement, Run, measure
from hart_edge.runtime.bench_memory import WATCHED, DeviceWatch, open_watch
from hart_edge.runtime.errors import GpuMemoryError, HartError
from hart_edge.runtime.timing import StageTimes

Log = list[str]


class InProcess:
    """Stands in for `Worker`: the loader's contender, called here."""

    def __init__(self, loader: Loader) -> None:
        self.contender = loader.function(*loader.arguments)

    def once(self) -> Run:
        return bench._run(self.contender)

    def measurement(self, runs: list[Run]) -> Measurement:
        return Measurement(0.5, runs, 2, 10, 1 << 20, None, self.contender.backend, {})

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None: ...


def load(name: str, log: Log, fails_at: int | None = None) -> Contender:
    """Notes its runs; the run of that number, counted from 1, fails, and loading does for 0."""

    def once(times: StageTimes) -> None:
        log.append(name)
        if log.count(name) == fails_at:
            raise GpuMemoryError(f"{name} is full.")
        with times("decoder"):
            pass

    if fails_at == 0:
        raise HartError(f"{name} does not load.")
    return Contender(once, 2, 10, name)


def test_contenders_take_turns_and_one_that_fails_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "Worker", InProcess)
    log: Log = []
    fails: dict[str, int | None] = {"unloadable": 0, "a": None, "cold": 1, "late": WARM_UPS + 2, "b": None}
    outcome = bench._in_turn({name: Loader(load, (name, log, at)) for name, at in fails.items()}, 3)
    assert {name: str(error) for name, error in outcome.failed.items()} == {
        "unloadable": "unloadable does not load.",
        "cold": "cold is full.",
        "late": "late is full.",
    }
    warm = [name for name in ("a", "late", "b") for _ in range(WARM_UPS)]
    assert [name for name in log if name != "cold"] == [*warm, "a", "late", "b", "a", "late", "b", "a", "b"]
    assert {name: len(result.runs) for name, result in outcome.results.items()} == {"a": 3, "b": 3}


def test_one_that_fails_beside_the_others_is_measured_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "Worker", InProcess)
    log: Log = []
    fails: dict[str, int | None] = {"unloadable": 0, "late": WARM_UPS + 2, "a": None, "cold": 1}
    outcome = measure({name: Loader(load, (name, log, at)) for name, at in fails.items()}, 3)
    assert (list(outcome.results), outcome.alone, list(outcome.failed)) == (["late", "a", "cold"], ("late", "cold"), ["unloadable"])
    assert log[-2 * (WARM_UPS + 3) :] == ["late"] * (WARM_UPS + 3) + ["cold"] * (WARM_UPS + 3)
    assert all(len(result.runs) == 3 for result in outcome.results.values())
    alone = measure({"cold": Loader(load, ("cold", [], 1))}, 3)
    assert (alone.results, alone.alone, list(alone.failed)) == ({}, (), ["cold"])


def test_a_measurement_gives_medians_and_rates() -> None:
    runs = [Run({"decoder": seconds}, seconds + 1) for seconds in (1.0, 9.0, 3.0)]
    written = Measurement(0.5, runs, 2, 10, 1 << 20, 7, "cpu", {"decoder": 5}).to_json()
    assert (written["stages"], written["seconds"]) == ({"decoder": 3.0}, 4.0)
    assert (written["images_per_second"], written["tokens_per_second"]) == (0.5, 2.5)
    assert written["runs"][1] == {"stages": {"decoder": 9.0}, "seconds": 10.0}
    assert (written["peak_device_bytes"], written["flops"]) == (7, {"decoder": 5})


def test_a_stage_lasts_until_the_work_that_it_began_is_done() -> None:
    times = StageTimes(lambda: time.sleep(0.02))
    with times("decoder"):
        pass
    assert 0.02 <= times.seconds["decoder"] < 1


class Queue:
    """A device with a clock: work takes a second, is put there at once, and passes when it is waited for."""

    def __init__(self) -> None:
        self.now = self.left = 0.0

    def once(self, times: StageTimes) -> None:
        for stage in ("transformer", "decoder"):
            with times(stage):
                self.left += 1

    def wait(self) -> None:
        self.now, self.left = self.now + self.left, 0.0


def test_on_a_device_the_whole_run_is_one_in_which_only_its_end_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    queue, ends = Queue(), []
    monkeypatch.setattr(time, "perf_counter", lambda: queue.now)

    def wait() -> None:
        ends.append(queue.left)
        queue.wait()

    run = bench._run(Contender(queue.once, 1, 1, "card", wait))
    assert ends == [2, 1, 1, 0], "the whole run's end; then the end of every stage, and of that run"
    assert (run.seconds, run.stages) == (2, {"transformer": 1, "decoder": 1})


def test_where_nothing_is_waited_for_one_run_gives_both() -> None:
    log: Log = []
    run = bench._run(load("cpu", log))
    assert log == ["cpu"]
    assert run.seconds >= run.stages["decoder"]


class Connection:
    """One end of a pipe: answers with requests, keeps what is sent."""

    def __init__(self, *requests: str) -> None:
        self.requests, self.sent = list(requests), []

    def recv(self) -> str:
        if not self.requests:
            raise EOFError
        return self.requests.pop(0)

    def send(self, answer: Any) -> None:
        self.sent.append(answer)


def test_a_process_answers_until_the_other_side_closes() -> None:
    connection = Connection("run", "memory")
    bench._serve(connection, Loader(load, ("a", [])))
    facts, run, peaks = connection.sent
    assert (facts["pictures"], facts["tokens"], facts["backend"], facts["flops"]) == (2, 10, "a", {})
    assert set(run.stages) == {"decoder"} and run.seconds >= run.stages["decoder"]
    assert peaks["peak_device_bytes"] is None and peaks["peak_memory_bytes"] > 2**20


def test_an_error_of_a_contenders_library_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> Contender:
        raise RuntimeError("no kernel\nfor this card")

    connection = Connection()
    bench._serve(connection, Loader(broken, ()))
    assert [str(error) for error in connection.sent] == ["RuntimeError: no kernel"]
    assert isinstance(connection.sent[0], HartError)
    assert "for this card" in capsys.readouterr().err, "the traceback is for whoever wants to know more"


class Card:
    """Device memory that the test takes and gives back."""

    def __init__(self, free: int) -> None:
        self.free, self.looks = free, 0

    def look(self) -> int:
        self.looks += 1
        return self.free

    def wait(self) -> None:
        """Until somebody has looked from start to end."""
        seen = self.looks
        while self.looks < seen + 2:
            time.sleep(0.001)


def spend(card: Card, most: int, kept: int) -> Callable[[], None]:
    """Take `most`, give all but `kept` back."""

    def work() -> None:
        card.free -= most
        card.wait()
        card.free += most - kept

    return work


def test_the_peak_counts_what_is_given_back_and_leaves_out_what_others_take() -> None:
    card = Card(1000)
    watch = DeviceWatch(card.look)
    for most, kept, peak in ((300, 200, 300), (90, 0, 300), (150, 10, 350)):
        with watch.turn():
            spend(card, most, kept)()
        assert watch.peak() == peak
        card.free -= 50  # another process's turn
    looks = card.looks
    with watch.turn():
        card.free -= 900
    assert (watch.peak(), card.looks) == (350, looks), f"only the first {WATCHED} turns are watched"


def test_nothing_is_watched_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_memory, "has_driver", lambda: False)
    for backend in ("auto", "cpu"):
        watch = open_watch(backend)
        with watch.turn():
            pass
        assert watch.peak() == 0
