"""How a page that is open is kept up to date: one small event that goes on as long as the page does.

Gradio makes every output of an event anew at each of its answers, in a thread of its own, whether it has changed or not; with fifty pages open that was
as much work as the training. So the endless event has one output, a field that is not seen, and what it is told is the few parts that changed, in JSON;
the page itself hands them to the components. What changes seldom (a run begins, another model is loaded) has an ordinary event of its own, which a
mark wakes: one more such field, whose change is that event. They are fields and not a `Timer`, which the Gradio of the web UI lacks.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import gradio as gr

from .versions import hidden_from_api

POLL_SECONDS = 0.7
SECONDS_A_PAGE = 0.15  # many pages are told less often: what Gradio does for each answer is taken from the training
HEARTBEAT = 15.0  # seconds: a page that has gone is noticed when something is sent to it
# In the page: each part as it is told, or as it is.
HAND_OUT = "(news, ...shown) => { const told = news ? JSON.parse(news) : {}; return shown.map((was, part) => told[part] ?? was); }"
MOST_KNOWN = 1000  # that were opened and have not gone; what is known of more is forgotten, and they are told everything once more


class Followed(Protocol):
    """A tab whose page is kept up to date. What it returns are updates by component, as of any handler."""

    at_first: Sequence[Any]  # the components that `opened` fills
    live: Sequence[Any]  # those that change all the time; HTML
    rest: Sequence[Any]  # those that `changed` updates

    def opened(self, page: str) -> dict[Any, Any]:
        """Everything, for a page that was opened or reloaded just now. Runs in a thread of its own and may read files."""

    def live_look(self, page: str) -> dict[Any, str]:
        """`live` as it is now; nothing where there is nothing to be told. Runs often, and must not wait for anything."""

    def state(self) -> Hashable:
        """Equal as long as nothing of `rest` changes."""

    def changed(self, before: Any, now: Any, page: str) -> dict[Any, Any]:
        """What another state means for `rest`; `before` is None where it is not known what the page shows."""

    def closed(self, page: str) -> None:
        """The page has gone."""


@dataclass
class Page:
    """What an open page shows: the states of the tabs, and the live parts as it was told them."""

    states: list[Any]
    told: dict[Any, str] = field(default_factory=dict)

    def of_these_new(self, live: dict[Any, str]) -> dict[Any, str]:
        """What it is not shown yet, and is now."""
        news = {part: text for part, text in live.items() if self.told.get(part) != text}
        self.told.update(news)
        return news


class Follower:
    """Made within the Blocks that hold the tabs, behind them. A page is known by its Gradio session.

    Args:
        tabs: what is followed.
    """

    def __init__(self, tabs: Sequence[Followed]):
        self.tabs = list(tabs)
        self.pages: dict[str, Page] = {}
        self.followers = 0  # endless events that are going on
        self.numbers = itertools.count(1)  # a mark is never the same twice, whoever begins anew
        # Not `visible=False`, which Gradio leaves out of the page, and its events with it.
        self.news, *self.marks = [gr.Textbox("", show_label=False, container=False, elem_classes=["tp-unseen"]) for _ in range(1 + len(self.tabs))]
        self.parts = [*self.marks, *(part for tab in self.tabs for part in tab.live)]
        self._wire()

    def _wire(self) -> None:
        load = gr.context.Context.root_block.load
        unseen = {"concurrency_limit": None, "show_progress": "hidden", **hidden_from_api(load)}
        first = dict.fromkeys(part for tab in self.tabs for part in tab.at_first)
        load(self.open, None, list(first), **unseen).then(self.follow, None, [self.news], **unseen)
        self.news.change(None, [self.news, *self.parts], self.parts, js=HAND_OUT, show_progress="hidden", **hidden_from_api(load))
        for number, tab in enumerate(self.tabs):
            self.marks[number].change(self._woken(number), None, [*tab.live, *tab.rest], trigger_mode="always_last", **unseen)

    def open(self, request: gr.Request) -> dict[Any, Any]:
        page = request.session_hash or ""
        states = [tab.state() for tab in self.tabs]  # before the looks: what changes meanwhile is told again
        looks = [tab.opened(page) for tab in self.tabs]
        told = {part: look[part] for tab, look in zip(self.tabs, looks, strict=True) for part in tab.live if part in look}
        if len(self.pages) >= MOST_KNOWN:
            self.pages.pop(next(iter(self.pages)), None)
        self.pages[page] = Page(states, told)
        return {part: shown for look in looks for part, shown in look.items()}

    async def follow(self, request: gr.Request) -> AsyncIterator[Any]:
        """Tell a page what changes, for as long as it is open: the texts of `parts` by their numbers."""
        page = request.session_hash or ""
        known = self.pages.setdefault(page, self._unknown())
        asked, quiet_for = list(known.states), 0.0
        self.followers += 1
        try:
            while True:
                pause = max(POLL_SECONDS, SECONDS_A_PAGE * self.followers)
                await asyncio.sleep(pause)
                quiet_for += pause
                if news := self._news(page, known, asked):
                    # With a number, since a field that is told the same twice does not change.
                    yield json.dumps({"number": next(self.numbers), **{self.parts.index(part): text for part, text in news.items()}})
                elif quiet_for >= HEARTBEAT:
                    yield gr.skip()
                else:
                    continue
                quiet_for = 0.0
        finally:
            self.followers -= 1
            self.pages.pop(page, None)
            for tab in self.tabs:
                tab.closed(page)

    def _unknown(self) -> Page:
        return Page([None] * len(self.tabs))

    def _news(self, page: str, known: Page, asked: list[Any]) -> dict[Any, str]:
        """The live parts that changed; of a tab whose rest did too the mark alone, so that all of it comes at one moment.
        `asked` are the states for which it was asked to be drawn."""
        news = {}
        for number, tab in enumerate(self.tabs):
            if (state := tab.state()) != asked[number]:
                asked[number] = state
                news[self.marks[number]] = str(next(self.numbers))
            else:
                news.update(known.of_these_new(tab.live_look(page)))
        return news

    def _woken(self, number: int) -> Any:
        tab = self.tabs[number]

        def woken(request: gr.Request) -> dict[Any, Any]:
            page = request.session_hash or ""
            known = self.pages.get(page) or self._unknown()
            before, known.states[number] = known.states[number], tab.state()
            found = {**tab.changed(before, known.states[number], page), **known.of_these_new(tab.live_look(page))}
            return found or {tab.live[0]: gr.update()}  # it was asked twice; Gradio takes an empty dict for one value too few

        return woken
