import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_pro.perplexity import perplexity, windows


def brute_force(model, ids, stride, max_length):
    """Each token scored once, from a whole forward pass of its window."""
    total, scored, done = 0.0, 0, 1
    with torch.no_grad():
        for begin in range(0, len(ids), stride):
            end = min(begin + max_length, len(ids))
            found = torch.log_softmax(model(torch.tensor([ids[begin:end]])).logits[0].double(), -1)
            for place in range(max(done, begin + 1), end):
                total -= float(found[place - begin - 1, ids[place]])
                scored += 1
            done = max(done, end)
            if end == len(ids):
                break
    return math.exp(total / scored), scored, total


@pytest.mark.parametrize(
    ("length", "stride", "max_length", "batch_size"), [(100, 16, 32, None), (100, 32, 32, 3), (20, 5, 64, 1), (50, 1, 8, 4), (2, 1, 16, None)]
)
def test_against_a_brute_force(host, length, stride, max_length, batch_size):
    torch.manual_seed(3)
    ids = torch.randint(5, 200, (length,)).tolist()
    found = perplexity(host.model, ids, stride=stride, max_length=max_length, batch_size=batch_size)
    value, scored, nll = brute_force(host.model, ids, stride, max_length)
    assert (found.value, found.scored_tokens, found.nll) == (pytest.approx(value, rel=1e-5), scored, pytest.approx(nll, rel=1e-5))


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(host):
    with torch.no_grad():
        host.model.lm_head.weight.zero_()
    found = perplexity(host.model, list(range(5, 60)), stride=8, max_length=16)
    assert found.value == pytest.approx(host.model.config.vocab_size, rel=1e-6) and found.scored_tokens == 54


@given(st.integers(2, 300), st.integers(1, 60), st.integers(2, 80))
def test_every_token_but_the_first_is_scored_once(length, stride, max_length):
    if stride > max_length:
        return
    scored = [place for window in windows(length, stride=stride, max_length=max_length) for place in range(window.first_scored, window.end)]
    alone = set(range(0, length, stride)) if stride == max_length else {0}  # first in its window, so without context
    assert scored == [place for place in range(length) if place not in alone]
    assert all(
        window.begin < window.first_scored and window.end - window.begin <= max_length
        for window in windows(length, stride=stride, max_length=max_length)
    )


@pytest.mark.parametrize(
    ("ids", "stride", "max_length", "words"),
    [([5], 1, 8, "at least 2"), ([5, 6, 7], 9, 8, "between 1 and max_length"), ([5, 6], 0, 8, "between 1"), ([5, 6], 1, 1, "at least 2 tokens")],
)
def test_what_cannot_be_measured_is_said(host, ids, stride, max_length, words):
    with pytest.raises(ValueError, match=words):
        perplexity(host.model, ids, stride=stride, max_length=max_length)


def test_the_models_context_is_the_default_and_its_mode_stays(host):
    host.model.train()
    found = perplexity(host.model, list(range(5, 305)), stride=256, max_length=0)
    assert found.scored_tokens == 298 and host.model.training
