import pytest
from training_pro import views
from training_pro.dataset_tools import prepare
from training_pro.slicer_view import PART, Slices, histogram, pieces


def test_the_stretches_between_the_edges_of_blocks_and_hard_cuts():
    text = "One. Two. Three.|Four."
    found = pieces(text, 0, len(text), [(1, 0, 9, False), (2, 5, 16, True), (3, 17, 22, False)], "|")
    assert [(piece.text, piece.block, piece.overlapping, piece.is_cut) for piece in found] == [
        ("One. ", 1, (), False),
        ("Two.", 1, (2,), False),
        (" Three.", None, (2,), False),
        ("|", None, (), True),
        ("Four.", 3, (), False),
    ]
    assert [piece.text for piece in pieces(text, 3, 8, [(1, 0, 9, False), (2, 5, 16, True)], "|")] == [". ", "Two"]


def test_a_histogram_up_to_the_cutoff():
    found = histogram([1, 16, 17, 256, 256], 256)
    assert len(found) == 16 and found[0] == (1, 16, 2) and found[1] == (17, 32, 1) and found[-1] == (241, 256, 2)
    assert sum(count for *_, count in histogram([40, 1, 33], 40)) == 3 and histogram([40], 40)[-1] == (40, 40, 1)


@pytest.fixture
def sliced(host, settings):
    def make(**changes):
        chosen = settings(dataset=None, format=None, raw_text_file="tale", cutoff_len=32, **changes)
        return Slices(prepare(chosen, host.tokenizer, host), chosen), chosen

    return make


def test_how_much_is_trained_never_and_more_than_once(host, sliced):
    tale = "The fox lives in a den. The owl eats seeds! " * 6
    (host.datasets_dir / "tale.txt").write_text(f"{tale}\n\n\nShort.\n\n\n{tale}", encoding="utf-8")
    letters = len("".join(tale.split()))
    slices, _ = sliced(precize_slicing_overlap=False)
    assert (slices.characters, slices.never, slices.twice) == (2 * letters + 6, 0, 0)
    slices, _ = sliced(precize_slicing_overlap=False, min_chars=10)
    assert (slices.never, slices.twice) == (6, 0)
    slices, chosen = sliced(min_chars=10)
    text = f"{tale}\n\n\nShort.\n\n\n{tale}"
    held = [0] * len(text)
    for number in range(len(slices.blocks)):
        item = slices.blocks[number]
        for place in range(item.start, item.end):
            held[place] += not text[place].isspace()
    assert slices.twice == sum(count > 1 for count in held) > 0
    shown = views.slicer_view(slices, 1, chosen)
    assert "Part 1 of 1" in shown and shown.count("✂ hard cut") == 2 and 'title="never trained">Short.<' in shown


def test_the_files_of_a_folder_are_shown_one_after_the_other(host, sliced):
    folder = host.datasets_dir / "tale"
    (host.datasets_dir / "tale.txt").unlink()
    folder.mkdir()
    (folder / "1.txt").write_text("The fox <b>lives</b> in a den. " * 200, encoding="utf-8")
    (folder / "2.txt").write_text("Nobody knows.", encoding="utf-8")
    slices, chosen = sliced()
    first = slices.part(0)
    assert slices.parts == 3 and (first.file, first.begin, first.end) == ("1.txt", 0, PART)
    assert "".join(piece.text for number in (0, 1) for piece in slices.part(number).pieces) == "The fox <b>lives</b> in a den. " * 200
    last = slices.part(2)
    assert (last.file, [piece.text for piece in last.pieces]) == ("2.txt", ["Nobody knows."])
    assert last.pieces[0].block == len(slices.blocks)
    assert "<b>" not in views.slicer_view(slices, 1, chosen).replace('<div class="tp-block">', "")
