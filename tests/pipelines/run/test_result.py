"""Of a finished run with a privacy budget nobody is told to make a file again."""

from pathlib import Path

import pytest

from synthkd.errors import CheckpointError
from synthkd.pipelines.run.result import read_result
from synthkd.privacy.journal import JOURNAL
from synthkd.reports.results import RESULT, FileEntry, TeachResult, write_result


@pytest.mark.parametrize("damage", ["result", "file", "lost file"])
@pytest.mark.parametrize("has_budget", [True, False])
def test_the_remedy_for_damage_spends_no_budget(tmp_path: Path, damage: str, has_budget: bool) -> None:
    write_result(tmp_path, TeachResult(files={"teacher": FileEntry(3, "0" * 64)}))
    if damage == "result":
        (tmp_path / RESULT).write_text("{")
    elif damage == "file":
        (tmp_path / "teacher").write_text("abc")
    if has_budget:
        (tmp_path / JOURNAL).touch()
    with pytest.raises(CheckpointError) as caught:
        read_result(tmp_path, TeachResult)
    assert ("restore it from a copy" in str(caught.value)) == has_budget
    assert ("delete" in str(caught.value)) != has_budget
