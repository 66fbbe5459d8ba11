import os
import re
import tempfile
import unicodedata
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_pro.paths import name_problem, natural_key, path_for_new, path_in, shown_name, whole_folder, without_folders, write_whole

BAD = [
    ("", "is empty"),
    ("  ", "is empty"),
    ("\u3000", "is empty"),  # the wide space of Japanese
    (None, "is not a text"),
    (["a"], "is not a text"),
    (b"a", "is not a text"),
    ("..", "ends with a dot"),
    (".", "ends with a dot"),
    ("...", "ends with a dot"),
    ("x.", "ends with a dot"),
    ("x. ", "ends with a space"),
    ("x ", "ends with a space"),
    (" x", "begins or ends with a space"),
    ("x\u00a0", "ends with a space"),
    ("../x", "holds “/”"),
    ("a/b", "holds “/”"),
    ("/etc", "holds “/”"),
    ("a/../../b", "holds “/”"),
    ("a\\b", "holds “\\”"),
    ("..\\x", "holds “\\”"),
    ("\\\\server\\share", "holds “\\”"),
    ("\\\\?\\C:\\x", "holds “\\”"),
    ("//server/share", "holds “/”"),
    ("C:", "holds “:”"),
    ("C:x", "holds “:”"),
    ("C:\\x", "holds “:”"),
    ("x:stream", "holds “:”"),  # of NTFS
    ("file::$DATA", "holds “:”"),
    ("~", "leads out of its folder"),
    ("~root", "leads out of its folder"),
    ('a"b', 'holds “"”'),
    ("a*b", "holds “*”"),
    ("a?b", "holds “?”"),
    ("a|b", "holds “|”"),
    ("a<b", "holds “<”"),
    ("a>b", "holds “>”"),
    ("a\0b", "holds the character U+0000"),
    ("a\nb", "holds the character U+000A"),
    ("a\x1bb", "holds the character U+001B"),
    ("a\x7fb", "holds the character U+007F"),
    ("a\x85b", "holds the character U+0085"),
    ("a\u00adb", "holds the character U+00AD"),  # soft hyphen
    ("a\u200bb", "holds the character U+200B"),
    ("a\u200db", "holds the character U+200D"),  # joins nothing between two plain letters
    ("\u200cمن", "holds the character U+200C"),
    ("می\u200c\u200cخوا", "holds the character U+200C"),
    ("a\u200eb", "holds the character U+200E"),
    ("txt\u202ejson.exe", "holds the character U+202E"),
    ("a\u2028b", "holds the character U+2028"),
    ("a\u2060b", "holds the character U+2060"),
    ("a\u2066b", "holds the character U+2066"),
    ("a\u3164b", "holds the character U+3164"),
    ("a\ufeffb", "holds the character U+FEFF"),
    ("a\uffffb", "holds the character U+FFFF"),
    ("a\ufdd0b", "holds the character U+FDD0"),
    ("a\U000e0041b", "holds the character U+E0041"),  # tags
    ("a\ud800b", "holds the character U+D800"),
    ("\udc80", "holds the character U+DC80"),  # how Python shows a name that is not UTF-8
    ("con", "Windows keeps for itself"),
    ("NUL", "Windows keeps for itself"),
    ("Aux", "Windows keeps for itself"),
    ("com1.txt", "Windows keeps for itself"),
    ("nul .tar.gz", "Windows keeps for itself"),
    ("LPT9", "Windows keeps for itself"),
    ("COM¹", "Windows keeps for itself"),
    ("lpt³.csv", "Windows keeps for itself"),
    ("CONIN$", "Windows keeps for itself"),
    ("conout$.json", "Windows keeps for itself"),
    ("x" * 201, "is 201 characters long"),
    ("語" * 67, "is 67 characters long"),
]
GOOD = ["a", "my LoRA 2", "über-größe_1.5", "日本語", "日本\u3000語", ".hidden", "a..b", "console", "com10", "com0", "nullify", "a~1", "x" * 200,
        "می\u200cخواهم", "👩\u200d💻", "❤️\u200d🔥", "क्\u200dष", "$x", "%TEMP%", "${HOME}", "-rf", "a;b", "a'b"]  # fmt: skip


@pytest.mark.parametrize(("name", "words"), BAD)
def test_names_that_are_refused(name, words, tmp_path):
    with pytest.raises(ValueError, match=r"^The name ") as refused:
        path_in(tmp_path, name)
    assert words in str(refused.value) and name_problem(name) in str(refused.value)
    assert not {"Cc", "Cf", "Cs"} & set(map(unicodedata.category, str(refused.value)))  # a page and a log can hold it
    with pytest.raises(ValueError, match=r"^The name "):
        path_for_new(tmp_path, name)


@pytest.mark.parametrize("name", GOOD)
def test_names_that_are_taken(name, tmp_path):
    assert name_problem(name) is None
    assert path_in(tmp_path, name, ".json") == tmp_path / f"{name}.json"
    path_for_new(tmp_path, name, ".json").write_text("x", encoding="utf-8")
    assert os.listdir(tmp_path) == [f"{name}.json"] and path_for_new(tmp_path, name, ".json").is_file()


def test_a_message_shows_what_cannot_be_seen_and_stays_short():
    assert shown_name("txt\u202ejson\ud800") == "txt<U+202E>json<U+D800>"
    assert shown_name("می\u200cخواهم") == "می\u200cخواهم"
    assert shown_name("x" * 1_000_000) == "x" * 61 + "…" and len(name_problem("/" * 1_000_000)) < 200


PIECES = [
    "..",
    ".",
    "/",
    "\\",
    "C:",
    "~",
    "\0",
    " ",
    "\n",
    "con",
    "COM¹",
    "nul",
    "$",
    "a",
    "B",
    "é",
    "e\u0301",
    "\u202e",
    "\u200d",
    "\ud800",
    "link",
    "out",
    "x" * 90,
]
TEXTS = st.text(st.characters(), max_size=40) | st.lists(st.sampled_from(PIECES), max_size=6).map("".join)


@pytest.fixture(scope="module")
def folder_with_links():
    """A folder with links out, in, to itself and in a circle, beside one that is not its own."""
    with tempfile.TemporaryDirectory() as made:
        top = Path(made, "loras")
        top.mkdir()
        (Path(made) / "secret").mkdir()
        (top / "a").mkdir()
        for name, goal in (("link", "a"), ("out", ".."), ("B", "../secret"), ("é", "."), ("~", "/"), ("linkout", "linkout"), ("aa", "/etc/passwd")):
            (top / name).symlink_to(goal)
        yield top


@given(name=TEXTS, ending=st.sampled_from(["", ".json"]))
def test_whatever_is_taken_stays_in_its_folder(folder_with_links, name, ending):
    for make in (path_in, path_for_new):
        try:
            path = make(folder_with_links, name, ending)
        except ValueError as refused:
            str(refused).encode("utf-8")  # no half characters on the page
            continue
        assert path.parent == folder_with_links and path.name == name + ending
        whole = path.resolve()
        assert whole != folder_with_links.resolve() and whole.is_relative_to(folder_with_links.resolve())
        windows = PureWindowsPath("C:\\loras") / f"{name}{ending}"
        assert windows.parent == PureWindowsPath("C:\\loras") and windows.name == name + ending
        assert len(os.fsencode(path.name)) <= 255


@given(TEXTS)
def test_what_is_made_under_a_new_name_is_found_again(name):
    with tempfile.TemporaryDirectory() as made:
        try:
            path = path_for_new(Path(made), name)
        except ValueError:
            return
        path.write_text("x", encoding="utf-8")
        assert os.listdir(made) == [name]


@pytest.mark.parametrize(
    ("name", "goal"), [("out", ".."), ("self", "."), ("circle", "circle"), ("far", "/etc/passwd"), ("beside", "../loras-2/x"), ("gone", "../gone")]
)
def test_a_link_that_leads_out_is_refused(tmp_path, name, goal):
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras-2").mkdir()
    (tmp_path / "loras" / name).symlink_to(goal)
    with pytest.raises(ValueError, match="is a link that leads in a circle" if name == "circle" else "is a link that leads out of loras"):
        path_in(tmp_path / "loras", name)


def test_links_that_lead_to_the_folder_or_stay_in_it_are_the_users_own(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "loras").symlink_to("disk")
    (tmp_path / "disk" / "a").mkdir()
    (tmp_path / "disk" / "newest").symlink_to("a")
    assert path_in(tmp_path / "loras", "a") == tmp_path / "loras" / "a"
    assert path_in(tmp_path / "loras", "newest") == tmp_path / "loras" / "newest"


def test_each_name_below_the_folder_is_checked_with_its_links(tmp_path):
    (tmp_path / "loras" / "run").mkdir(parents=True)
    (tmp_path / "loras" / "run" / "checkpoint-1").symlink_to("../..")
    with pytest.raises(ValueError, match="“checkpoint-1” is a link that leads out of run"):
        path_in(path_in(tmp_path / "loras", "run"), "checkpoint-1")


@pytest.mark.parametrize(
    ("there", "asked", "words"),
    [
        ("mine", "Mine", "“Mine” is there already as “mine”"),
        ("STRASSE", "straße", "“straße” is there already as “STRASSE”"),
        ("ΣΑΣ", "σας", "is there already as “ΣΑΣ”"),
        (unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café"), "another Unicode form"),
        (unicodedata.normalize("NFD", "Ĝis"), unicodedata.normalize("NFC", "Ĝis"), "another Unicode form"),
        (unicodedata.normalize("NFD", "CAFÉ"), unicodedata.normalize("NFC", "café"), "is there already as “"),
        ("K", "\u212a", "another Unicode form"),  # the sign of kelvin
        ("a\u200bb", "ab", "“ab” is there already as “a<U+200B>b”"),
        ("می\u200cخواهم", "میخواهم", "is there already as"),
        ("mine.", "mine", "“mine” is there already as “mine.”"),
        ("mine .. ", "Mine", "“Mine” is there already as “mine .. ”"),
    ],
)
def test_a_new_name_that_other_disks_take_for_one_that_is_there(tmp_path, there, asked, words):
    (tmp_path / there).mkdir()
    if set(os.listdir(tmp_path)) != {there}:
        pytest.skip("this disk writes names in its own form")
    assert path_in(tmp_path, asked) == tmp_path / asked  # reading is another matter
    with pytest.raises(ValueError, match=re.escape(words)):
        path_for_new(tmp_path, asked)


def test_a_new_name_may_be_there_exactly_so_or_not_at_all(tmp_path):
    assert path_for_new(tmp_path / "not yet", "a", ".txt") == tmp_path / "not yet" / "a.txt"
    for name in ("mine.txt", "other.json"):
        (tmp_path / name).touch()
    assert path_for_new(tmp_path, "mine", ".txt").is_file()
    assert not path_for_new(tmp_path, "mine", ".json").exists() and not path_for_new(tmp_path, "mine-2", ".txt").exists()
    with pytest.raises(ValueError, match=r"“Mine.txt” is there already as “mine.txt”, and on many disks the two are one"):
        path_for_new(tmp_path, "Mine", ".txt")


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


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such rights")
def test_files_and_folders_can_be_read_by_others(tmp_path):
    write_whole(tmp_path / "a.json", "x")
    with whole_folder(tmp_path / "folder") as folder:
        (folder / "b").write_text("x")
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o644 and (tmp_path / "folder").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("[Errno 13] Permission denied: '/home/anna k/webui/user_data/loras/poet'", "[Errno 13] Permission denied: 'user_data/loras/poet'"),
        ("see /srv/models/base/config.json.", "see …/config.json."),
        ("“C:\\Users\\anna\\x y\\z.json” is broken", "“…/z.json” is broken"),
        ("https://example.org/a/b.json of owner/name, 1/2 and and/or", "https://example.org/a/b.json of owner/name, 1/2 and and/or"),
    ],
)
def test_a_message_names_no_folder_of_this_machine(said, shown):
    assert without_folders(said) == shown
