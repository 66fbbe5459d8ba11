import os
import threading
import time

import pytest
from training_pro import train_utils, training_run
from training_pro.background import Cancelled, Job, in_a_thread_that_ends


def test_work_in_a_thread_says_how_far_it_is():
    go_on, seen = threading.Event(), threading.Event()

    def work(progress):
        progress("Reading", 0.25)
        seen.set()
        go_on.wait(10)
        progress("Reading", 7)
        return "done"

    job = Job(work)
    assert seen.wait(10) and (job.doing, job.share) == ("Reading", 0.25) and not job.done.is_set()
    go_on.set()
    assert job.done.wait(10) and job.result == "done" and job.share == 1 and job.error is None and not job.cancelled


def test_it_is_called_off_where_it_next_says_how_far_it_is():
    go_on = threading.Event()

    def work(progress):
        go_on.wait(10)
        progress("Reading", 0.5)
        raise AssertionError("not called off")

    job = Job(work)
    job.cancel()
    go_on.set()
    assert job.done.wait(10) and job.cancelled and isinstance(job.error, Cancelled) and job.result is None


def test_what_it_raises_is_kept():
    job = Job(lambda progress: 1 / 0)
    assert job.done.wait(10) and isinstance(job.error, ZeroDivisionError) and not job.cancelled


def test_a_thread_that_ends():
    threads = []

    def work():
        threads.append(threading.current_thread())
        return 7

    assert in_a_thread_that_ends(work) == 7
    assert threads[0] is not threading.current_thread() and not threads[0].is_alive()
    assert threads[0].daemon  # Ctrl-C while a large model is loaded does not wait for it
    with pytest.raises(ZeroDivisionError):
        in_a_thread_that_ends(lambda: 1 / 0)


@pytest.fixture
def four_threads():
    """As on a machine with four processors. Telling torch so makes a pool that stays, which is another one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def systems_threads():
    return set(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts the system's threads as Linux has them")
def test_what_looks_at_the_settings_leaves_no_helpers_of_torch_behind(host, settings, monkeypatch, four_threads):
    import torch

    begun = set()  # by name, not by number: a thread of an earlier test may end in between

    def check(settings, host):
        torch.ones(2000, 2000).sqrt()
        begun.update(systems_threads() - before)
        return []

    monkeypatch.setattr(training_run, "in_background", lambda run, work: None)
    monkeypatch.setattr(train_utils, "check", check)
    before = systems_threads()
    train_utils.start(settings(), host)
    assert len(begun) >= 4  # the thread and its three helpers
    ended = time.monotonic() + 10
    while begun & systems_threads() and time.monotonic() < ended:
        time.sleep(0.05)  # they are told to end, and take their time
    assert not begun & systems_threads()
