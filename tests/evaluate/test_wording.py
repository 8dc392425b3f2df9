"""What a wrong word costs, with the bundled model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hart_edge.export.evaluate.wording import RELATIONS, main


def test_wrong_words_cost_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "wording.json"
    monkeypatch.setattr("sys.argv", ["wording", "bundled", "--n", "2", "--json", str(target)])
    main()
    rows = json.loads(target.read_text())
    assert [row["relation"] for row in rows] == list(RELATIONS)
    for row in rows:
        assert 0.5 < row["right"] < 4.0
        assert row["added"]["colour of the first"] > 0.05
        assert row["added"]["colour of the second"] > 0.05
    assert "colour of the second" in capsys.readouterr().out


def test_bad_options_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in ((["bundled", "--n", "0"], "--n is 0"), ([str(tmp_path / "none")], "none")):
        monkeypatch.setattr("sys.argv", ["wording", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
