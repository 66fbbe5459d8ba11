import threading

from training_pro.background import Cancelled, Job


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
