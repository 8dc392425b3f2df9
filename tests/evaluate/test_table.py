"""The score table over settings: rows, resuming, refusals, floor, Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from hart_edge.export.evaluate import RealPictures, evaluate, held_out_prompts, real, table
from hart_edge.export.evaluate.pictures import Pixels, rendered
from hart_edge.export.evaluate.prompts import held_out_scenes
from hart_edge.export.evaluate.sweep import RENDERER, Model, Row, Sweep, settings_of
from hart_edge.runtime import InputError, Options

COUNT, SIZE = 6, 128
OWN = Options(cfg=3.0, diffusion_steps=8)
FACTS = {"name": "tiny", "sha256": "0" * 64}


class Canvas:
    """A model that draws the right picture at cfg 3, else another prompt's; counts what it draws."""

    def __init__(self, pictures: Sequence[Pixels], fail_at: float | None = None) -> None:
        self.pictures, self.fail_at, self.drawn = pictures, fail_at, []

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int], options: Options) -> list[Pixels]:
        if options.cfg == self.fail_at:
            raise KeyboardInterrupt
        self.drawn += [options] * len(prompts)
        return [self.pictures[(seed + (options.cfg != 3.0)) % len(self.pictures)] for seed in seeds]


@pytest.fixture(scope="module")
def pictures() -> list[Pixels]:
    return list(rendered(held_out_scenes(COUNT), SIZE))


@pytest.fixture
def few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fréchet distances of six pictures, which mean nothing but have a value."""
    monkeypatch.setattr(real, "ENOUGH", COUNT)


def sweep(paint: Canvas, path: Path | None, **changes: object) -> Sweep:
    settings = {"n": COUNT, "seed": 0, "batch": 4} | changes
    return Sweep(Model(paint, SIZE, OWN, settings.pop("facts", FACTS)), path=path, **settings)


def rows_of(paint: Canvas, path: Path | None, cfg: Sequence[float]) -> list[Row]:
    wanted = [s for s in settings_of(OWN, cfg, [], []) if s.name.startswith(("the", "cfg"))]
    return list(sweep(paint, path).run(wanted, lambda name, done, total: None))


def test_settings_change_one_thing_each() -> None:
    wanted = {setting.name: setting.options for setting in settings_of(OWN, [0, 1.5], [2], [20])}
    assert list(wanted) == [
        RENDERER,
        "the model's own: cfg 3, 8 steps",
        "cfg 0",
        "cfg 1.5",
        "diffusion steps 2",
        "no residual",
        "no smooth sampling",
        "top-k 20",
    ]
    assert wanted.pop(RENDERER) is None
    assert [{k: v for k, v in vars(options).items() if v != vars(OWN)[k]} for options in wanted.values()] == [
        {},
        {"cfg": 0},
        {"cfg": 1.5},
        {"diffusion_steps": 2},
        {"residual": False},
        {"smooth": False},
        {"top_k": 20},
    ]


def test_a_model_whose_own_settings_leave_things_out_gets_rows_with_them() -> None:
    own = Options(cfg=2.5, diffusion_steps=4, residual=False, smooth=False, top_k=50, top_p=0.9)
    wanted = {setting.name: setting.options for setting in settings_of(own, [], [8], [])}
    assert "the model's own: cfg 2.5, no residual, no smooth sampling, top-k 50, top-p 0.9" in wanted
    assert wanted["residual"].residual and wanted["smooth sampling"].smooth
    assert wanted["diffusion steps 8"].residual


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="top-k is 0"):
        settings_of(OWN, [], [], [0])


def test_rows_tell_good_settings_from_bad_ones(pictures: list[Pixels]) -> None:
    renderer, own, other = rows_of(Canvas(pictures), None, [1.5])
    assert (renderer.setting, renderer.options) == (RENDERER, None)
    assert renderer.shares["all_correct"] == own.shares["all_correct"] == 1.0
    assert other.shares["all_correct"] < 0.5
    assert {row.frechet for row in (renderer, own, other)} == {None}


def test_equal_options_are_drawn_once(pictures: list[Pixels]) -> None:
    paint = Canvas(pictures)
    _, own, again = rows_of(paint, None, [3.0])
    assert len(paint.drawn) == COUNT
    assert (again.setting, again.shares) == ("cfg 3", own.shares)


def test_interrupted_run_keeps_its_rows_and_goes_on(pictures: list[Pixels], tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    with pytest.raises(KeyboardInterrupt):
        rows_of(Canvas(pictures, fail_at=6), path, [1.5, 6])
    assert [row["setting"] for row in json.loads(path.read_text())["rows"]] == [RENDERER, "the model's own: cfg 3, 8 steps", "cfg 1.5"]
    paint = Canvas(pictures)
    rows = rows_of(paint, path, [1.5, 6])
    assert [options.cfg for options in paint.drawn] == [6] * COUNT
    assert rows == rows_of(Canvas(pictures), None, [1.5, 6])
    content = json.loads(path.read_text())
    assert [Row(**row) for row in content["rows"]] == rows
    assert (content["n"], content["seed"], content["model"]) == (COUNT, 0, FACTS)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"n": 5}, "n 6, here 5"),
        ({"seed": 7}, "seed 0, here 7"),
        ({"facts": {"name": "tiny", "sha256": "1" * 64}}, f"model {'0' * 64}, here {'1' * 64}"),
    ],
    ids=["n", "seed", "model"],
)
def test_file_of_something_else_is_refused_and_kept(pictures: list[Pixels], tmp_path: Path, changes: dict[str, object], named: str) -> None:
    path = tmp_path / "scores.json"
    rows_of(Canvas(pictures), path, [])
    before = path.read_bytes()
    with pytest.raises(InputError, match="holds another table") as caught:
        sweep(Canvas(pictures), path, **changes)
    assert named in str(caught.value) and caught.value.hint
    assert path.read_bytes() == before


def test_file_of_a_renamed_model_is_gone_on_with(pictures: list[Pixels], tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    rows_of(Canvas(pictures), path, [])
    assert len(sweep(Canvas(pictures), path, facts=FACTS | {"name": "moved"}).file.rows) == 2


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": [{"setting": 1}]}', '{"rows": []}'])
def test_file_that_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(InputError, match="no score table"):
        sweep(Canvas([]), path)


@pytest.mark.usefixtures("few_are_enough")
def test_real_features_are_made_once_for_all_rows(pictures: list[Pixels], monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(real, "rendered", lambda scenes, size: made.append(len(scenes)) or rendered(scenes, size))
    rows = rows_of(Canvas(pictures), None, [0, 1.5, 6])
    assert len(rows) == 5 and all(row.frechet is not None for row in rows)
    assert made.count(COUNT) == len(made) <= 3  # measured to; the prompts' scenes for the scores and for the floor


@pytest.mark.usefixtures("few_are_enough")
def test_renderer_row_is_the_floor(pictures: list[Pixels]) -> None:
    """A model that draws exactly what the renderer draws scores the renderer's distance; grey pictures are further off."""
    renderer, own = rows_of(Canvas(pictures), None, [])
    assert renderer.frechet == own.frechet == RealPictures(COUNT, SIZE).floor
    assert RealPictures(COUNT, SIZE).distance([np.full((SIZE, SIZE, 3), 128, np.uint8)] * COUNT) > 2 * own.frechet > 0


@pytest.mark.usefixtures("few_are_enough")
def test_evaluation_has_the_floor_beside_the_distance(pictures: list[Pixels]) -> None:
    content = evaluate(Canvas(pictures), held_out_prompts(COUNT), OWN).to_json()
    assert content["frechet"] == content["frechet_floor"] > 0


def test_two_hundred_pictures_are_needed_for_a_distance() -> None:
    assert RealPictures(199, SIZE).floor is None
    assert RealPictures(199, SIZE).distance([]) is None
    assert RealPictures(200, 64).floor > 0


def test_markdown_shows_percent_and_dashes() -> None:
    shares = {"colour": 1.0, "shape": 0.5, "count": 1 / 3, "relation": None, "all_correct": 0.0}
    lines = table.markdown([Row("a", None, shares, None), Row("b", {}, shares, 0.12346)]).splitlines()
    assert lines[0] == "| setting | colour | shape | count | relation | all correct | Fréchet distance |"
    assert lines[2] == "| a | 100.0 | 50.0 | 33.3 | - | 0.0 | - |"
    assert lines[3].endswith("| 0.1235 |")
    assert len({line.count("|") for line in lines}) == 1
