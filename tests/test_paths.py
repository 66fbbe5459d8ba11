import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_pro.paths import name_problem, natural_key, path_in, whole_folder, write_whole

BAD = ["", "  ", "..", ".", "../x", "a/b", "a\\b", "/etc", "C:", "C:\\x", "\\\\server\\share", "~", "~root", "con", "NUL", "com1.txt", "a\0b", "a\nb",
       "x.", "x ", " x", 'a"b', "a*b", "a?b", "a|b", "a<b", "x" * 300]  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_names_that_are_refused(name, tmp_path):
    assert name_problem(name)
    with pytest.raises(ValueError, match="The name"):
        path_in(tmp_path, name)


@pytest.mark.parametrize("name", ["a", "my LoRA 2", "über-größe_1.5", "日本語", ".hidden", "a..b", "console"])
def test_names_that_are_taken(name, tmp_path):
    assert name_problem(name) is None
    assert path_in(tmp_path, name, ".json") == tmp_path / f"{name}.json"


@given(st.text(max_size=40))
def test_whatever_is_taken_stays_in_its_folder(name):
    import tempfile
    from pathlib import Path

    folder = Path(tempfile.gettempdir())
    if name_problem(name) is None:
        assert Path(os.path.normpath(path_in(folder, name))).parent == folder


def test_a_link_that_leads_out_is_refused(tmp_path):
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "out").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="leads out"):
        path_in(tmp_path / "loras", "out")


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_whole(path, "old")

    def fail(*_):
        raise OSError("power cut")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="power cut"):
        write_whole(path, "new")
    assert path.read_text(encoding="utf-8") == "old" and [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "checkpoint-1") as part:
        (part / "half").write_text("x", encoding="utf-8")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    for text in ("first", "second"):
        with whole_folder(tmp_path / "checkpoint-1") as part:
            (part / "weights").write_text(text, encoding="utf-8")
            assert part.name.startswith(".")
    assert [file.name for file in tmp_path.rglob("*")] == ["checkpoint-1", "weights"]
    assert (tmp_path / "checkpoint-1" / "weights").read_text(encoding="utf-8") == "second"


def test_natural_order():
    assert sorted(["part 10", "part 2", "Part 1", "a"], key=natural_key) == ["a", "Part 1", "part 2", "part 10"]
