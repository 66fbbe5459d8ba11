"""What an open page is told and when, without a browser and without a tab of ours."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import gradio as gr
import pytest
from training_pro import following
from training_pro.following import Follower


class Counter:
    """A tab that shows one number all the time, and another one seldom."""

    def __init__(self):
        self.shown, self.button, self.choices = gr.HTML(""), gr.Button("Go"), gr.Dropdown([])
        self.at_first, self.live, self.rest = [self.shown, self.button, self.choices], [self.shown], [self.button, self.choices]
        self.number, self.kind, self.gone, self.asked = 0, "old", [], []

    def opened(self, page):
        return {self.shown: str(self.number), self.button: gr.update(value=self.kind), self.choices: gr.update(choices=[self.kind])}

    def live_look(self, page):
        return {self.shown: str(self.number)}

    def state(self):
        return self.kind

    def changed(self, before, now, page):
        self.asked.append((before, now, page))
        return {self.button: gr.update(value=now)} if before != now else {}

    def closed(self, page):
        self.gone.append(page)


@pytest.fixture
def tab(monkeypatch):
    monkeypatch.setattr(following, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(following, "SECONDS_A_PAGE", 0.0)
    with gr.Blocks() as blocks:
        tab = Counter()
        tab.follower = Follower([tab])
    tab.blocks = blocks
    return tab


def page(name):
    return SimpleNamespace(session_hash=name)


def in_a_thread(work):
    """Playwright, once it was used, has a loop of its own in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def parts(tab, said):
    """What the page is told, by component."""
    return {tab.follower.parts[int(number)]: text for number, text in json.loads(said).items() if number != "number"}


def told(tab, name, doings):
    """What a page is told after each of `doings`; None where it is told nothing."""

    async def followed():
        found, following_it = [], tab.follower.follow(page(name))
        for do in doings:
            do()
            try:
                found.append(parts(tab, await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(anext(following_it))), 0.2)))
            except asyncio.TimeoutError:
                found.append(None)
                break
        return found

    return in_a_thread(followed())


def test_the_endless_event_has_one_output(tab):
    events = {event.fn.__name__ if event.fn else "in the page": event for event in tab.blocks.fns.values()}
    (mark,), news = tab.follower.marks, tab.follower.news
    assert events["follow"].outputs == [news] and events["follow"].inputs == []
    assert events["in the page"].targets == [(news._id, "change")]
    assert events["in the page"].inputs == [news, mark, tab.shown] and events["in the page"].outputs == [mark, tab.shown]
    assert set(events["open"].outputs) == set(tab.at_first) and events["woken"].outputs == [tab.shown, *tab.rest]
    assert events["woken"].targets == [(mark._id, "change")]


def test_only_what_changed_is_told(tab):
    assert tab.follower.open(page("mine"))[tab.shown] == "0"

    def count():
        tab.number += 1

    assert told(tab, "mine", [count, count, lambda: None]) == [{tab.shown: "1"}, {tab.shown: "2"}, None]


def test_the_same_is_told_again_where_the_page_shows_something_else_by_now(tab):
    tab.follower.open(page("mine"))

    async def followed():
        following_it = tab.follower.follow(page("mine"))
        tab.number = 1
        first = await anext(following_it)
        tab.number = 0
        assert tab.follower._woken(0)(page("mine"))[tab.shown] == "0"  # by the other event
        tab.number = 1
        return first, await anext(following_it)

    first, second = in_a_thread(followed())
    assert parts(tab, first) == parts(tab, second) == {tab.shown: "1"}
    assert first != second  # else the field would not change, and the page not hand it out


def test_a_seldom_change_wakes_an_event_of_its_own(tab):
    tab.follower.open(page("mine"))
    (mark,) = tab.follower.marks

    def become(kind):
        return lambda: setattr(tab, "kind", kind)

    tab.number = 5
    first, second, later = told(tab, "mine", [become("new"), become("newer"), lambda: None])
    assert set(first) == set(second) == {mark} and first[mark] != second[mark]  # what is live comes with the rest
    assert later == {tab.shown: "5"}  # or without it, where that event does not come through

    tab.follower.open(page("mine"))
    tab.kind, tab.number = "newest", 6
    woken = tab.follower._woken(0)
    assert woken(page("mine")) == {tab.button: gr.update(value="newest"), tab.shown: "6"} and tab.asked == [("newer", "newest", "mine")]
    assert woken(page("mine")) == {tab.shown: gr.update()}  # what stands there and was not told by us, such as problems, stays
    assert tab.shown in woken(page("a page that is not known"))
    assert tab.asked[1:] == [("newest", "newest", "mine"), (None, "newest", "a page that is not known")]
    assert "a page that is not known" not in tab.follower.pages  # whoever calls by hand leaves nothing behind


def test_what_changes_between_the_first_look_and_the_endless_event_is_told(tab):
    tab.follower.open(page("mine"))
    tab.number, tab.kind = 7, "new"
    mark, shown = told(tab, "mine", [lambda: None, lambda: None])
    assert set(mark) == {tab.follower.marks[0]} and shown == {tab.shown: "7"}


def test_a_page_that_was_never_opened_is_told_everything(tab):
    mark, shown = told(tab, "unknown", [lambda: None, lambda: None])
    assert set(mark) == {tab.follower.marks[0]} and shown == {tab.shown: "0"}


def test_a_page_that_has_gone_is_forgotten(tab):
    tab.follower.open(page("mine"))
    tab.follower.open(page("other"))

    async def leave():
        following_it = tab.follower.follow(page("mine"))
        tab.number = 1
        await anext(following_it)
        assert tab.follower.followers == 1
        await following_it.aclose()

    in_a_thread(leave())
    assert tab.follower.followers == 0 and list(tab.follower.pages) == ["other"] and tab.gone == ["mine"]


def test_pages_that_only_begin_to_open_do_not_heap_up(tab, monkeypatch):
    monkeypatch.setattr(following, "MOST_KNOWN", 3)
    for number in range(10):
        tab.follower.open(page(str(number)))
    assert list(tab.follower.pages) == ["7", "8", "9"]


def test_an_idle_page_is_spoken_to_now_and_then(tab, monkeypatch):
    monkeypatch.setattr(following, "HEARTBEAT", 0.01)
    tab.follower.open(page("mine"))

    async def first():
        following_it = tab.follower.follow(page("mine"))
        found = await anext(following_it)
        await following_it.aclose()
        return found

    assert in_a_thread(first()) == gr.skip()  # nothing changes by it; a connection that is gone is noticed


def test_many_pages_are_told_less_often(tab, monkeypatch):
    monkeypatch.setattr(following, "SECONDS_A_PAGE", 0.5)
    slept = []

    async def sleep(seconds):
        slept.append(seconds)
        tab.number += 1

    monkeypatch.setattr(following.asyncio, "sleep", sleep)

    async def watch():
        pages = [tab.follower.follow(page(str(number))) for number in range(3)]
        for each in pages:
            await anext(each)

    in_a_thread(watch())
    assert slept == [0.5, 1.0, 1.5]
