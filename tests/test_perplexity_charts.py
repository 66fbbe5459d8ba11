import math

from training_pro import perplexity_charts
from training_pro.checkpoints import Checkpoint
from training_pro.evaluation import Evaluation, Measured, Request, ranking
from training_pro.learned import Learned, Line


def measured(value, lora="", dataset="tale", **more):
    return Measured("llama", (lora,) if lora else (), dataset, value, 90, 100, **more)


def job(*results, run="", ranked=()):
    return Evaluation("<b>", Request((), run=run), results=list(results), ranked={each.name: each for each in ranked})


def test_the_status_says_how_far_it_is_and_what_is_wrong():
    assert "Nothing is being measured" in perplexity_charts.status(None)
    running = Evaluation("<b>", status="running", message="Measuring", done=25.0, total=100.0, spent=10.0)
    shown = perplexity_charts.status(running)
    assert "&lt;b&gt;" in shown and "25%" in shown and "<dd>0:30</dd>" in shown and "tp-running" in shown
    running.stop()
    assert "Interrupting" in perplexity_charts.status(running)
    assert "tp-bad" in perplexity_charts.status(Evaluation("x", status="done", problems=["one was not measured"]))


def test_figures():
    found = [perplexity_charts.figure(value) for value in (12.345678, 2290.68, 1.23e9, math.inf, math.nan)]
    assert found == ["12.3457", "2,290.7", "1.23e+09", "not a number", "not a number"]


def test_checkpoints_are_ranked_by_the_mean_loss_over_the_texts():
    ranked = [Checkpoint("run/checkpoint-10", 10, 0.5, 2.0, 1.9, False), Checkpoint("run/checkpoint-20", 20, 1.0, 1.5, None, True)]
    found = job(
        measured(400.0), measured(50.0, dataset="wiki"), measured(10.0, "run/checkpoint-10"), measured(9.0, "run/checkpoint-10", "wiki"),
        measured(2.0, "run/checkpoint-20"), measured(40.0, "run/checkpoint-20", "wiki", before="2026-01-02 03:04:05"),
        measured(1.5, "run/checkpoint-30"), measured(1.5, "run", partial=True), measured(1.0, "run", "wiki"), run="run", ranked=ranked,
    )  # fmt: skip
    assert [name for name, _, _ in ranking(found)][:3] == ["", "run/checkpoint-20", "run/checkpoint-10"]  # 2 · 40 < 10 · 9
    table = perplexity_charts.ranking_table(found)
    assert "checkpoint-20 <span" in table and "is the LoRA" in table and "earlier" in table and "partial" in table
    assert table.index("base model") < table.index("checkpoint-20") < table.index("checkpoint-10") and "<td>1.5000</td><td>–</td>" in table
    chart = perplexity_charts.checkpoints_svg(found)
    assert chart.count("<polyline") == 2 and "tale: best 2.0000 at step 20, base model 400.0000" in chart
    assert chart.count("tp-base-line") == 1  # the base of “tale” is more than three times above all lines
    assert perplexity_charts.checkpoints_svg(job(measured(1.0), run="run")) == ""


def test_a_bar_is_as_long_as_the_loss():
    chart = perplexity_charts.datasets_svg(
        [measured(math.e), measured(math.e**2, "a<b"), measured(math.inf, "c"), measured(math.e**2, "a<b", "wiki")]
    )
    widths = [float(part.split('"')[0]) for part in chart.split('width="')[1:]]
    assert widths == [251.0, 502.0, 502.0] and "a&lt;b" in chart
    assert perplexity_charts.datasets_svg([measured(3.0)]) == ""


def test_the_page_of_what_was_learned():
    found = Learned("<lora>", "llama", [Line("training text", 20.0, 5.0, 90)], [("<p>", "a", "b")], [(f"layer.{n}", n / 1000) for n in range(400)])
    shown = perplexity_charts.learned_page(found)
    assert "Not all is measured yet" in shown and "-75.0%" in shown and "<p>" not in shown and "<lora>" not in shown
    assert shown.count("tp-run-bar tp-run-2") == 134  # three layers share a column
    assert "400 changed weights, 19.95% on average, most layer.399 (39.90%)" in shown
    assert "<title>layer.2: 0.002</title>" in shown


def test_a_long_history_is_cut_and_says_so():
    rows = [{"Model": f"<{n}>", "Perplexity": "x" if n else "1e400"} for n in range(301)]
    shown = perplexity_charts.history(rows, ["Model", "Perplexity"])
    assert shown.count("<tr>") == 301 and "1 more rows" in shown and "&lt;0&gt;" in shown and "not a number" in shown
