"""What is put away of an adapter's folder; whole runs over it are in test_train_utils.py and test_continued.py."""

from pathlib import Path

import pytest
from training_pro import saving


def test_a_backup_is_all_or_nothing(tmp_path, monkeypatch):
    entries = [tmp_path / name for name in ("a.json", "b.json", "c.json")]
    for entry in entries:
        entry.write_text(entry.name, encoding="utf-8")
    rename = Path.rename

    def fails_at_b(self, target):
        if self.name == "b.json":
            raise PermissionError("in use")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails_at_b)
    with pytest.raises(PermissionError):
        saving._move(entries, tmp_path / "Backup-1")
    with pytest.raises(IsADirectoryError), monkeypatch.context() as patch:
        patch.setattr(saving.shutil, "copy2", lambda *_: (_ for _ in ()).throw(IsADirectoryError("odd")))
        saving._copy_files(entries, tmp_path / "Backup-2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json", "c.json"]
    monkeypatch.undo()
    saving._move(entries, tmp_path / "Backup-1")
    assert [path.name for path in tmp_path.iterdir()] == ["Backup-1"]
