"""What to train in so many hours on this machine: size, tokens and batch, from a fit to small trainings of its own.

python -m flows.planner --hours 2                      small trainings (half an hour, once), then the plan
python -m flows.lifecycle --profile planned pretrain   trains it
python -m flows.planner --check                        what was predicted, and what came out

The small trainings are the pretrain stage's variants in the profile `scaling`, or in another that stands on it; the
plan is written as the profile `planned`. Their losses give a law (flows/scaling.py), their timings the price of a token
here. Nothing else is kept: --check reckons the prediction again from the same trainings.
"""

import math
import subprocess
import sys
from collections import Counter
from functools import cached_property
from pathlib import Path
from statistics import mean, median
from typing import Annotated, Any, NamedTuple

import numpy as np
from cyclopts import Parameter
from cyclopts.validators import Number
from scipy.optimize import nnls

from flows import profiles, scaling
from flows.init import duration, write
from flows.promote import ARTIFACTS
from flows.scaling import Law, Run
from stages.lib.frame import files, params
from stages.lib.frame.errors import UserError, command
from stages.pretrain.decoder import Decoder

BASE, PLANNED = "scaling", "planned"
HEAD = 32  # channels of one
WIDEST = 64 * HEAD
DRAWS = 200  # of the runs, for the interval
SHOWN = 2  # sizes on either side of the best
EPOCHS = 4  # of the same tokens are about as good as new ones: Muennighoff et al. 2023, arXiv:2305.16264


class Small(NamedTuple):
    """A small training: how it came out and what it took."""

    run: Run
    entry: dict[str, Any]  # of params.yaml
    lr: float
    seconds: float  # of the training
    watts: float


class Price(NamedTuple):
    """Seconds that a token costs here, `fixed` + `slope` for each parameter, and watts meanwhile."""

    fixed: float
    slope: float
    watts: float

    def seconds(self, parameters: int, tokens: float) -> float:
        return tokens * (self.fixed + self.slope * parameters)


class Data(NamedTuple):
    """What the trainings read."""

    context: int  # tokens a row
    vocabulary: int
    tokens: int  # to train on


def shape(hidden: int) -> dict[str, int]:
    """One dial for the whole network, as the profile's small trainings have it."""
    blocks = hidden // HEAD
    return {"hidden": hidden, "layers": blocks, "heads": blocks, "kv_heads": blocks, "ffn": 3 * hidden}


def parameters(hidden: int, vocabulary: int) -> int:
    """Of a decoder of that shape: embedding, and in each block attention, SwiGLU and two gains."""
    blocks = hidden // HEAD
    return vocabulary * hidden + blocks * (4 * hidden**2 + 9 * hidden**2 + 2 * hidden) + hidden


# What the small trainings say


def read(profile: str) -> tuple[list[Small], Data]:
    entries = profiles.merged(profile)["pretrain"]
    found = [small(name, entry, profile) for name, entry in entries.items()]
    if len({each.entry["tokens"] for each in found}) != 1:
        raise UserError(f"profile {profile}: the trainings under pretrain must be several, and read the same tokens")
    return found, data(found[0].entry["tokens"])


def data(tokens: str) -> Data:
    about = result(tokens, "tokens/tokens.json")
    return Data(about["context"], about["vocab_size"], result(tokens, "metrics.json")["train_tokens"])


def small(name: str, entry: dict[str, Any], profile: str) -> Small:
    place = f"profile {profile}"
    technique = params.technique("pretrain", name, entry, Path(place))
    if not isinstance(technique, Decoder) or not technique.training:
        raise UserError(f"{place}: pretrain.{name} is no decoder with a `training`; the planner can't compare it")
    if any(entry.get(key) != value for key, value in shape(technique.hidden).items()):
        raise UserError(f"{place}: pretrain.{name} is of another shape than the planner's, {shape(technique.hidden)}")
    training = technique.training
    metrics, timings = (result(f"pretrain/{name}", file) for file in ("metrics.json", "timings.json"))
    tokens = training.steps * training.batch_size * data(technique.tokens).context
    run = Run(metrics["parameters"], tokens, training.batch_size, metrics["loss_after"])
    return Small(run, entry, training.lr, timings["train_seconds"], timings["joules"] / timings["seconds"])


def result(variant: str, file: str) -> dict[str, Any]:
    if not (place := ARTIFACTS / variant / file).is_file():
        raise UserError(f"{place} is missing: python -m flows.planner --hours H makes it, and `dvc repro -f` timings")
    return files.read_json(place)


def price(found: list[Small]) -> Price:
    """By nonnegative least squares of the relative error."""
    measured = np.array([each.seconds / each.run.tokens for each in found])
    sizes = np.array([each.run.parameters for each in found])
    fixed, slope = nnls(np.stack([1 / measured, sizes / measured], axis=1), np.ones(len(found)))[0]
    return Price(fixed, slope, median(each.watts for each in found))


def split(found: list[Small]) -> tuple[list[Small], list[Small]]:
    """Those of the batch that most have, for the law; those of the size that has most batches, for the batch."""
    usual = Counter(each.run.batch for each in found).most_common(1)[0][0]
    size = Counter(each.run.parameters for each in found).most_common(1)[0][0]
    alike = [each for each in found if each.run.batch == usual]
    if len({each.run.parameters for each in alike}) < 3 or len({each.run.tokens for each in alike}) < 3:
        raise UserError(f"a fit wants three sizes and three token counts at one batch; at {usual} rows there are fewer")
    return alike, [each for each in found if each.run.parameters == size]


# The plan


class Plan(NamedTuple):
    """A training that nobody has run yet."""

    hidden: int
    parameters: int
    tokens: int
    batch: int
    steps: int


class Forecast:
    """What the small trainings let expect."""

    def __init__(self, profile: str):
        self.small, self.data = read(profile)
        self.alike, same_size = split(self.small)
        runs = [each.run for each in self.alike]
        self.law = scaling.fit(runs)
        self.batches = scaling.fit_batches([each.run for each in same_size], self.law)
        self.price = price(self.alike)

    @cached_property
    def laws(self) -> list[Law]:
        """Of drawn trainings: some seconds."""
        return list(scaling.resampled([each.run for each in self.alike], DRAWS))

    def plan(self, hidden: int, seconds: float) -> Plan:
        """The training of that width that takes so long."""
        size = parameters(hidden, self.data.vocabulary)
        tokens = seconds / self.price.seconds(size, 1)
        batch = self.batches.best(tokens)
        steps = max(1, round(tokens / batch / self.data.context))
        return Plan(hidden, size, steps * batch * self.data.context, batch, steps)

    def loss(self, plan: Plan | Run) -> float:
        """By the law, and what another batch than that of the law's trainings adds or saves."""
        return self.law.loss(plan.parameters, plan.tokens) + self.by_batch(plan)

    def by_batch(self, plan: Plan | Run) -> float:
        usual = self.alike[0].run.batch
        return self.batches.extra(plan.batch, plan.tokens) - self.batches.extra(usual, plan.tokens)

    def interval(self, plan: Plan | Run) -> tuple[float, float]:
        """Of 95 %, by drawing other trainings; the batch's part stays."""
        drawn = [law.loss(plan.parameters, plan.tokens) for law in self.laws]
        low, high = np.quantile(drawn, (0.025, 0.975)) + self.by_batch(plan)
        return float(low), float(high)

    def seconds(self, plan: Plan | Run) -> float:
        return self.price.seconds(plan.parameters, plan.tokens)

    def joules(self, plan: Plan | Run) -> float:
        return self.seconds(plan) * self.price.watts

    def entry(self, plan: Plan) -> dict[str, Any]:
        """For params.yaml: as the small trainings, but for shape, steps and batch; the rate with the batch's root
        (Malladi et al. 2022, arXiv:2205.10287)."""
        like = self.alike[0]
        lr = float(f"{like.lr * math.sqrt(plan.batch / like.run.batch):.3g}")
        training = like.entry["training"] | {"steps": plan.steps, "batch_size": plan.batch, "lr": lr}
        return like.entry | shape(plan.hidden) | {"training": training}

    def said(self, plan: Plan) -> str:
        low, high = self.interval(plan)
        cost = f"{duration(self.seconds(plan))}, {self.joules(plan):,.0f} J"
        return f"loss {self.loss(plan):.3f} ({low:.3f}-{high:.3f}), {cost}"

    def __str__(self) -> str:
        runs, law, price = [each.run for each in self.alike], self.law, self.price
        sizes, counts = ([getattr(run, name) for run in runs] for name in ("parameters", "tokens"))
        off = math.sqrt(mean((run.loss - law.loss(run.parameters, run.tokens)) ** 2 for run in runs))
        return (
            f"trainings  {len(self.small)} in {duration(sum(each.seconds for each in self.small))}: {min(sizes):,} to "
            f"{max(sizes):,} parameters, {min(counts):,} to {max(counts):,} tokens\n"
            f"fit        L = {law.E:.3g} + {law.A:.3g} N^-{law.alpha:.3f} + {law.B:.3g} D^-{law.beta:.3f} nats/token, "
            f"off by {off:.3f} (root mean square of {len(runs)})\n"
            f"speed      {price.fixed * 1e6:.3g} us a token and {price.slope * 1e12:.3g} us more for each million of "
            f"parameters, {price.watts:.1f} W"
        )


def choose(forecast: Forecast, seconds: float) -> tuple[Plan, str]:
    """The plan with the least loss, and a table of its neighbours."""
    plans = [forecast.plan(hidden, seconds) for hidden in range(HEAD, WIDEST + 1, HEAD)]
    losses = [forecast.loss(plan) for plan in plans]
    place = losses.index(min(losses))
    if plans[place].hidden == WIDEST:
        raise UserError(f"the best size is beyond a width of {WIDEST}: fewer --hours, or larger small trainings")
    rows = [f"           {'hidden':>6} {'parameters':>11} {'tokens':>11} {'batch':>6} {'loss':>6}"]
    for plan, loss in list(zip(plans, losses, strict=True))[max(0, place - SHOWN) : place + SHOWN + 1]:
        mark = " <-" if plan is plans[place] else ""
        rows.append(
            f"           {plan.hidden:6} {plan.parameters:11,} {plan.tokens:11,} {plan.batch:6} {loss:6.3f}{mark}"
        )
    return plans[place], "\n".join(rows)


def warnings(forecast: Forecast, plan: Plan) -> list[str]:
    said, epochs = [], plan.tokens / forecast.data.tokens
    if epochs > EPOCHS:
        said.append(
            f"it reads {forecast.data.tokens:,} tokens {epochs:.1f} times; beyond {EPOCHS} the law hopes too much"
        )
    largest = max(each.run.parameters * each.run.tokens for each in forecast.alike)
    if (times := plan.parameters * plan.tokens / largest) > 10:
        said.append(f"it is {times:.0f} times the work of the largest small training: far from what was fitted")
    return [f"careful    {line}" for line in said]


def check() -> str:
    """Prediction and outcome of the planned training, side by side."""
    forecast = Forecast(str(profiles.load(PLANNED)[1]["base"]))
    got = small(PLANNED, profiles.merged(PLANNED)["pretrain"][PLANNED], PLANNED)
    rows = [
        ("loss", forecast.loss(got.run), got.run.loss, ".3f"),
        ("minutes", forecast.seconds(got.run) / 60, got.seconds / 60, ".1f"),
        ("joules", forecast.joules(got.run), got.seconds * got.watts, ",.0f"),
    ]
    lines = [f"{name:8} predicted {a:>9{form}}   got {b:>9{form}}   {b / a - 1:+.1%}" for name, a, b, form in rows]
    low, high = forecast.interval(got.run)
    where = "inside" if low <= got.run.loss <= high else "outside"
    return "\n".join([*lines, f"the loss is {where} the predicted interval, {low:.3f} to {high:.3f}"])


def prepare(hours: float, profile: str) -> None:
    """Run the small trainings, as far as they have not run; print the plan and write its profile."""
    flow = [sys.executable, "-m", "flows.lifecycle", "--profile", profile, "pretrain"]
    if subprocess.run(flow).returncode:
        raise UserError("the small trainings did not end well; see above")
    forecast = Forecast(profile)
    plan, table = choose(forecast, hours * 3600)
    print(forecast, table, *warnings(forecast, plan), sep="\n")
    print(f"predicted  {forecast.said(plan)}\n           in {plan.steps:,} steps of {plan.batch} rows")
    target = save(forecast, plan, hours, profile)
    print(f"profile    {target}; it runs by `python -m flows.lifecycle --profile {PLANNED} pretrain`")


def save(forecast: Forecast, plan: Plan, hours: float, profile: str) -> Path:
    """As a profile on that of the small trainings."""
    target = profiles.PROFILES / f"{PLANNED}.yaml"
    header = f"# Profile {PLANNED}: {hours:g} hours here. Predicted: {forecast.said(plan)}. By flows.planner.\n"
    write(target, header, {"base": profile, "pretrain": {PLANNED: forecast.entry(plan)}})
    return target


def main(
    *,
    hours: Annotated[float | None, Parameter(validator=Number(gt=0))] = None,
    profile: str = BASE,
    check_: Annotated[bool, Parameter(name="--check", negative="")] = False,
) -> None:
    """Plan a training for so many hours, or look at how good a plan was.

    Args:
        hours: That the training may take on this machine, as busy as it was during the small ones.
        profile: With the small trainings; one of your own has `base: scaling` and other data.
        check_: Compare what was predicted with what the planned training got.
    """
    if check_:
        print(check())
    elif hours:
        prepare(hours, profile)
    else:
        raise UserError("--hours is missing: how long may the training take?")


if __name__ == "__main__":
    command(main)
