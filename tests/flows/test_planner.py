"""The planner against laws that are known: a published example, the closed form of the best size, exact prices."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from flows import planner, profiles, scaling
from flows.scaling import Law, Run
from stages.lib.frame.errors import UserError
from stages.pretrain.decoder import Decoder

CHINCHILLA = Law(1.69, 406.4, 410.7, 0.34, 0.28)  # Hoffmann et al. 2022, arXiv:2203.15556, equation 10
CONTEXT, VOCABULARY = 256, 1024
SLOPE, WATTS = 3e-10, 12.0  # seconds a token and parameter


def isoflop(noise: float = 0.0) -> list[Run]:
    """The example of vpnls (github.com/Open-Athena/vpnls): 8 budgets, 16 sizes each around 20 tokens a parameter."""
    random, runs = np.random.default_rng(0), []
    for flops in np.geomspace(1e17, 1e22, 8):
        for size in math.sqrt(flops / 120) * np.geomspace(1 / 16, 16, 16):
            tokens = flops / 6 / size
            runs.append(Run(size, tokens, 8, CHINCHILLA.loss(size, tokens) + noise * random.standard_normal()))
    return runs


def test_the_published_example_is_recovered():
    assert scaling.fit(isoflop()) == pytest.approx(CHINCHILLA, rel=1e-6)


def test_an_interval_holds_the_truth_and_narrows_with_the_noise():
    widths = []
    for noise in (0.02, 0.002):
        losses = [law.loss(1e9, 2e10) for law in scaling.resampled(isoflop(noise), 30)]
        low, high = np.quantile(losses, (0.025, 0.975))
        assert low < CHINCHILLA.loss(1e9, 2e10) < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


def test_nothing_of_a_law_is_negative():
    """Losses that rise with the size would want a negative A."""
    runs = [Run(n, d, 8, 2 + n / 1e7 + 100 / d**0.5) for n in (1e5, 3e5, 1e6) for d in (1e5, 3e5, 1e6)]
    assert min(scaling.fit(runs)) >= 0


def test_the_batch_follows_the_tokens():
    """A valley over log2 batch whose bottom lies at 3 for 2^18 tokens and a step further for four times as many."""
    runs = [
        Run(10**6, 2**d, 2**b, CHINCHILLA.loss(10**6, 2**d) + 0.1 * (b - 3 - (d - 18) / 2) ** 2)
        for d in (18, 19, 20)
        for b in (2, 3, 4, 5)
    ]
    batches = scaling.fit_batches(runs, CHINCHILLA)
    assert [batches.best(2**d) for d in (14, 18, 20, 30)] == [4, 8, 16, 16]  # as far as it was tried
    assert batches.extra(4, 2**20) - batches.extra(16, 2**20) == pytest.approx(0.4)


@pytest.mark.parametrize("hidden", [32, 96, 160])
def test_parameters_are_those_of_the_model(hidden, tokenizer):
    entry = {"method": "decoder", "tokens": "tokenize/text", **planner.shape(hidden)}
    model = Decoder.model_validate(entry).build(tokenizer)
    assert planner.parameters(hidden, len(tokenizer)) == model.num_parameters()


def write(variant: str, metrics: dict, timings: dict | None = None) -> None:
    folder = Path("artifacts", variant)
    (folder / "tokens").mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "timings.json").write_text(json.dumps(timings or {}))


def ran(name: str, entry: dict) -> None:
    """What the pretrain stage leaves, had its loss been the law's and its seconds the product's."""
    size = planner.parameters(entry["hidden"], VOCABULARY)
    tokens = entry["training"]["steps"] * entry["training"]["batch_size"] * CONTEXT
    seconds = SLOPE * size * tokens
    timings = {"train_seconds": seconds, "seconds": seconds + 3, "joules": WATTS * (seconds + 3)}
    write(f"pretrain/{name}", {"parameters": size, "loss_after": CHINCHILLA.loss(size, tokens)}, timings)


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """The profile `scaling` after its trainings."""
    folder = profiles.PROFILES.absolute()
    (tmp_path / "infra").mkdir()
    monkeypatch.chdir(tmp_path)
    profiles.PROFILES.mkdir()
    for name in ("laptop", "scaling"):
        (profiles.PROFILES / f"{name}.yaml").write_text((folder / f"{name}.yaml").read_text())
    write("tokenize/text", {"train_tokens": 8_000_000})
    Path("artifacts/tokenize/text/tokens/tokens.json").write_text(
        json.dumps({"context": CONTEXT, "vocab_size": VOCABULARY})
    )
    for name, entry in profiles.merged("scaling")["pretrain"].items():
        ran(name, entry)


def test_the_best_size_is_that_of_the_closed_form(finished):
    """Hoffmann et al. 2022, equation 4, where a budget is 6 N D: here N D = seconds / SLOPE."""
    forecast = planner.Forecast("scaling")
    assert forecast.law == pytest.approx(CHINCHILLA, rel=1e-4)
    assert (forecast.price.fixed, forecast.price.slope, forecast.price.watts) == pytest.approx((0, SLOPE, WATTS))
    seconds, law = 7200, CHINCHILLA
    best = (law.alpha * law.A / law.beta / law.B) ** (1 / (law.alpha + law.beta))
    best *= (seconds / SLOPE) ** (law.beta / (law.alpha + law.beta))
    plan, table = planner.choose(forecast, seconds)
    sizes = [planner.parameters(hidden, VOCABULARY) for hidden in range(32, 2048, 32)]
    around = sorted(sizes, key=lambda size: abs(math.log(size / best)))[:2]  # the loss is flat there
    assert plan.parameters in around and table.count("<-") == 1
    assert plan.parameters * plan.tokens * SLOPE == pytest.approx(seconds, rel=0.01)
    low, high = forecast.interval(plan)
    assert low <= CHINCHILLA.loss(plan.parameters, plan.tokens) <= high
    assert forecast.joules(plan) == pytest.approx(seconds * WATTS, rel=0.01)


def test_a_plan_is_a_profile_and_its_outcome_is_held_against_it(finished):
    forecast = planner.Forecast("scaling")
    plan, _ = planner.choose(forecast, 3600)
    planner.save(forecast, plan, 1, "scaling")
    entry = profiles.merged("planned")["pretrain"]["planned"]
    training = Decoder.model_validate(entry).training
    assert training and training.steps * training.batch_size * CONTEXT == plan.tokens
    assert entry["hidden"] == plan.hidden and training.precision == "float32"
    assert training.lr == pytest.approx(0.005 * math.sqrt(plan.batch / 8), rel=0.01)
    with pytest.raises(UserError, match="artifacts/pretrain/planned/metrics.json is missing"):
        planner.check()
    ran("planned", entry)
    said = planner.check()
    assert said.count("+0.0%") + said.count("-0.0%") == 3


def test_what_is_read_too_often_or_lies_far_off_is_said(finished):
    forecast = planner.Forecast("scaling")
    small, large = (planner.choose(forecast, seconds)[0] for seconds in (600, 500_000))
    assert planner.warnings(forecast, small) == []
    assert [line.split(" ", 1)[0] for line in planner.warnings(forecast, large)] == ["careful", "careful"]


def test_what_can_not_be_compared_is_refused(finished):
    file = profiles.PROFILES / "scaling.yaml"
    text = file.read_text()
    for old, new, message in (
        ("hidden: 32, layers: 1", "hidden: 32, layers: 2", "w32-200k is of another shape than the planner's"),
        ("w64-500k: {<<: *w64", "w64-500k: {<<: *w64, tokens: tokenize/other", "read the same tokens|other"),
    ):
        file.write_text(text.replace(old, new))
        with pytest.raises(UserError, match=message):
            planner.Forecast("scaling")
