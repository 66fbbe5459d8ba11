import json

from training_pro import token_view, views
from training_pro.blocks import Item
from training_pro.dataset_tools import prepare


def test_each_token_has_its_text_and_what_becomes_of_it(tokenizer):
    ids = [1, *tokenizer("Q: é 🦊\n", add_special_tokens=False)["input_ids"], 2]
    found = token_view.tokens(Item(ids, [(3, len(ids))], "json"), tokenizer)
    assert "".join(token.text for token in found) == "<s>Q: é 🦊\n</s>"
    assert [token.id for token in found] == ids and [token.trained for token in found] == [False] * 3 + [True] * (len(ids) - 3)
    assert [token.special for token in found] == [True] + [False] * (len(ids) - 2) + [True]
    fox = [token.text for token in found if token.text == "" or "🦊" in token.text]
    assert fox[-1].endswith("🦊") and set(fox[:-1]) == {""}  # a character of several tokens stands at the last of them


def test_a_space_before_a_word_of_sentencepiece_is_not_lost():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"▁the": 0, "▁fox": 1, "<unk>": 2}, unk_token="<unk>"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    assert [token.text for token in token_view.tokens(Item([0, 1], [(1, 2)], "text"), tokenizer)] == [" the", " fox"]


def test_the_choices_are_the_blocks_that_start_would_train_and_those_it_would_not(host, settings):
    rows = [{"instruction": f"say {n}", "output": "yes " * (60 if n == 3 else 1)} for n in range(6)]
    (host.datasets_dir / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    prepared = prepare(settings(cutoff_len=32), host.tokenizer, host)
    blocks, numbers = token_view.chosen(prepared, token_view.TRIMMED)
    assert [blocks[number].row for number in numbers] == [4] and blocks[3].trimmed and len(blocks[3].input_ids) == 32
    assert [row["input_ids"] for row in prepared.train] == [blocks[n].input_ids for n in token_view.chosen(prepared, token_view.ALL)[1]]

    prepared = prepare(settings(cutoff_len=32, eliminate_long_blocks=True), host.tokenizer, host)
    blocks, numbers = token_view.chosen(prepared, token_view.TOO_LONG)
    assert [blocks[number].row for number in numbers] == [4] and len(prepared.train) == 5

    rows[2]["output"] = "no mark"
    (host.formats_dir / "marked.json").write_text(json.dumps({"instruction,output": "%instruction% %output%"}), encoding="utf-8")
    (host.datasets_dir / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    prepared = prepare(settings(format="marked", train_on_inputs=False, train_only_after="yes"), host.tokenizer, host)
    blocks, numbers = token_view.chosen(prepared, token_view.UNTRAINED)
    assert [blocks[number].row for number in numbers] == [3]


def test_overlapping_blocks_of_a_text(host, settings):
    (host.datasets_dir / "tale.txt").write_text("The fox lives in a den. The owl eats seeds! Who is there? " * 20, encoding="utf-8")
    prepared = prepare(settings(dataset=None, format=None, raw_text_file="tale", cutoff_len=64), host.tokenizer, host)
    blocks, numbers = token_view.chosen(prepared, token_view.OVERLAPPING)
    text = (host.datasets_dir / "tale.txt").read_text(encoding="utf-8")
    assert len(numbers) == prepared.report.kinds["overlapping"] > 0
    for number in numbers:
        item = blocks[number]
        assert "".join(token.text for token in token_view.tokens(item, host.tokenizer)[1:-1]) == text[item.start : item.end]


def test_the_view_escapes_what_is_in_the_data(tokenizer):
    item = Item(tokenizer("<b>x</b>\n", add_special_tokens=False)["input_ids"], [], "json", True, 1234)
    shown = views.token_view(item, token_view.tokens(item, tokenizer), 2, 5000, token_view.TRIMMED)
    assert "<b>" not in shown and "&lt;" in shown and "⏎\n" in shown
    for words in ("2 of 5,000", "row 1,234", "trimmed at the cutoff", "0 trained", "position 0 · masked"):
        assert words in shown
    assert "No block here: Overlapping" in views.no_block(token_view.OVERLAPPING)
