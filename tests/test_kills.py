"""A few of the kills of kills.py; many by hand: `python tests/kills.py --count 50`."""

import kills


def test_a_killed_run_goes_on_exactly(tmp_path):
    figures = kills.rounds(tmp_path, count=3, seed=5)
    assert figures["kills"] == 3 and figures["finished and equal"] == 1
