"""Start after Verify prepares nothing again, and is never given data that has changed."""

import json

import pytest
from tiny import CHATML, ROWS, make_tokenizer
from training_pro import dataset_tools
from training_pro.dataset_tools import prepare
from training_pro.settings import TrainingSettings


@pytest.fixture
def gathered(monkeypatch):
    """How often data was gathered anew."""
    count = []
    gather = dataset_tools._Work.gathered
    monkeypatch.setattr(dataset_tools._Work, "gathered", lambda self, look: (count.append(look), gather(self, look))[1])
    return count


def test_start_after_verify_has_nothing_to_prepare(host, settings, gathered):
    verified = prepare(settings(), host.tokenizer, host, look=True)
    chosen = settings(epochs=2, micro_batch_size=2, learning_rate="1e-5", packing=True, lora_rank=4)
    started = prepare(chosen, host.tokenizer, host)
    assert gathered == [True] and started.blocks is verified.blocks
    assert (verified.report.total_steps, verified.report.steps_per_epoch) == (10, 10)  # of its own settings, also afterwards
    assert started.report.steps_per_epoch == -(-started.report.packed_rows // 2) and started.packing is not None
    assert verified.report.packed_rows == started.report.packed_rows and verified.packing is None
    prepare(settings(), host.tokenizer, host, look=True)
    assert gathered == [True]


def test_what_was_not_looked_through_for_repeats_is_not_given_to_verify(host, settings, gathered):
    prepare(settings(), host.tokenizer, host)
    prepare(settings(), host.tokenizer, host, look=True)
    assert gathered == [False, True]


def test_a_changed_file_setting_or_tokenizer_is_prepared_again(host, settings, gathered, monkeypatch):
    import os

    path = host.datasets_dir / "rows.json"
    prepare(settings(), host.tokenizer, host)
    before = path.stat()
    path.write_text(json.dumps(ROWS).replace("hello 0", "holla 0"), encoding="utf-8")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # the same size and time
    changed = prepare(settings(), host.tokenizer, host)
    assert len(gathered) == 2 and "holla 0" in host.tokenizer.decode(changed.train[0]["input_ids"])
    prepare(settings(cutoff_len=64), host.tokenizer, host)
    prepare(settings(cutoff_len=64), make_tokenizer(CHATML), host)
    prepare(settings(cutoff_len=64), host.tokenizer, host)
    assert len(gathered) == 4
    (host.formats_dir / "plain.json").write_text(json.dumps({"instruction,output": "%instruction% → %output%"}), encoding="utf-8")
    assert "say 0 → holla 0" in host.tokenizer.decode(prepare(settings(), host.tokenizer, host).train[0]["input_ids"])
    chats = TrainingSettings(datasetJSONL="chats")
    prepare(chats, host.tokenizer, host)
    monkeypatch.setattr(host.tokenizer, "chat_template", CHATML.replace("im_end", "im_over"))
    assert "im_over" in host.tokenizer.decode(prepare(chats, host.tokenizer, host).train[0]["input_ids"])


def test_a_file_that_changes_while_it_is_read_is_not_kept(host, settings, gathered, monkeypatch):
    path, count = host.datasets_dir / "rows.json", dataset_tools._Work.gathered

    def changing(self, look):
        path.write_text(json.dumps(ROWS[:9]), encoding="utf-8")
        return count(self, look)

    monkeypatch.setattr(dataset_tools._Work, "gathered", changing)
    prepare(settings(), host.tokenizer, host)
    monkeypatch.setattr(dataset_tools._Work, "gathered", count)
    assert prepare(settings(), host.tokenizer, host).report.blocks == 9 and len(gathered) == 2


def test_every_setting_that_is_said_not_to_matter_is_a_setting():
    from training_pro.kept import WITHOUT_DATA
    from training_pro.settings import OPTIONS

    assert set(OPTIONS) >= WITHOUT_DATA
