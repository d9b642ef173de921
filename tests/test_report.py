"""Reports find what was planted, keep silent on good fits, and never raise."""

import re
from types import SimpleNamespace

import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

import bayesode as bo
from bayesode.diagnostics import diagnose
from bayesode.diagnostics.checks import CHECKS
from bayesode.diagnostics.checks_data import check_movement, check_sampling, check_units
from bayesode.diagnostics.checks_fit import (
    _neighbours,
    check_reached,
    check_residuals,
    check_steps,
    check_width,
)
from bayesode.diagnostics.checks_forecast import check_blow_up, check_chaos, check_determined
from bayesode.diagnostics.facts import Facts
from bayesode.diagnostics.report import BANDS, UNKNOWN_BANDS
from bayesode.inference.linearised import LaplaceGuide
from bayesode.inference.svi import History
from bayesode.models.contracts import VectorField, without_plate
from benchmarks.planted_failures import FAILURES, beyond, good_fit, laplace

NAMES = ("x", "y")


def standing(**quantities):
    """Facts with the quantities that a check reads, and nothing else."""
    train = SimpleNamespace(num_series=4, num_observed=800, names=NAMES, series=tuple("abcd"))
    usual = {
        "train": train,
        "posterior": SimpleNamespace(history=History(), settings={"engine": "laplace"}),
        "residual_scale": torch.tensor([0.1, 0.1]),
        "smoothers_noise": torch.tensor([0.1, 0.1]),
        "noise": torch.tensor([0.1, 0.1]),
        "num_weights": 82,
        "time_beyond": 0.0,
    }
    usual["has_random_paths"] = False
    return SimpleNamespace(**usual | quantities)


def names_of(checked):
    return [finding.name for finding in checked.findings]


def raw(values):
    """Facts of data alone."""
    train = bo.Trajectories(torch.arange(values.shape[1]).double(), values, names=NAMES)
    return Facts(SimpleNamespace(train=train), train)


def waves(*, noise=0.05, num_series=6, num_times=60):
    generator = torch.Generator().manual_seed(0)
    phase = torch.linspace(0, 5, num_series).view(-1, 1, 1) + torch.tensor([0.0, 1.0])
    path = torch.sin(phase + 0.3 * torch.arange(num_times).view(1, -1, 1))
    error = torch.randn(path.shape, generator=generator, dtype=torch.float64)
    return path.double() + noise * error


@pytest.fixture(scope="module")
def small():
    """A short Laplace fit of few data."""
    train = bo.datasets.van_der_pol(num_series=3, num_times=40, seed=0).observed
    return laplace(train, 0, [3])


# ---- what was planted ------------------------------------------------------------------------
def test_a_series_in_other_units_is_named_with_its_factor():
    values = waves()
    assert check_units(raw(values)).findings == []
    values[2, :, 1] *= 1000
    (finding,) = check_units(raw(values)).findings
    assert finding.name == "wrong units mixed" and finding.severity == "alarm"
    assert finding.sentence.startswith("y of series 2 varies ")
    factor = float(re.search(r"varies (\S+) times", finding.sentence)[1])
    assert 800 < factor < 1250


def test_a_series_in_larger_units_or_from_another_zero_is_found():
    values = waves()
    values[1] /= 1000
    assert {f.sentence[:13] for f in check_units(raw(values)).findings} == {
        "x of series 1",
        "y of series 1",
    }
    values = waves()
    values[4, :, 0] += 273.15
    (finding,) = check_units(raw(values)).findings
    assert "lies +27" in finding.sentence and "varies" not in finding.sentence


def test_a_series_at_rest_is_no_other_unit():
    values = waves()
    values[3] = 0.05 * torch.randn(60, 2, generator=torch.Generator().manual_seed(1))
    assert check_units(raw(values)).findings == []


def test_series_that_vary_by_factors_are_no_other_units():
    factors = torch.tensor([1.0, 3.0, 10.0, 30.0, 100.0, 300.0]).view(-1, 1, 1)
    assert check_units(raw(waves() * factors)).findings == []


def test_units_of_two_series_cannot_be_told_apart():
    values = waves(num_series=2)
    values[0] *= 1000
    assert check_units(raw(values)).findings == []


def test_a_component_of_noise_does_not_move_and_one_of_waves_does():
    values = waves()
    values[..., 1] = 5 + 0.1 * torch.randn(6, 60, generator=torch.Generator().manual_seed(1))
    (finding,) = check_movement(SimpleNamespace(response=values, train=standing().train)).findings
    assert finding.name == "constant component" and finding.sentence.startswith("y does not move")
    values[0, :, 1] = waves()[0, :, 1] * 10  # one series that moves is enough
    assert not check_movement(SimpleNamespace(response=values, train=standing().train)).findings


def test_a_level_of_its_own_in_every_series_is_constant_too():
    values = waves()
    values[..., 0] = torch.arange(6.0).unsqueeze(-1)
    (finding,) = check_movement(SimpleNamespace(response=values, train=standing().train)).findings
    assert finding.sentence.startswith("x does not move")


def test_a_fit_that_was_not_reached_is_an_alarm_unless_starts_agree():
    posterior = SimpleNamespace(history=SimpleNamespace(log_evidence=[1.0, 2.0, 5.0, 9.0]))
    facts = standing(residual_scale=torch.tensor([0.1, 0.2]), posterior=posterior)
    (finding,) = check_reached(facts).findings
    assert finding.severity == "alarm" and "residual of y is 2 times" in finding.sentence
    posterior.history.log_evidence = [1.0, 1.0]
    (finding,) = check_reached(facts).findings
    assert finding.severity == "note" and "differ" in finding.sentence


def test_noise_that_pays_for_weights_is_an_alarm_for_mean_field_alone():
    svi = SimpleNamespace(history=History(start_ratio=1.0), settings={"engine": "svi"})
    facts = standing(noise=torch.tensor([0.11, 0.13]), posterior=svi)
    (finding,) = check_width(facts).findings
    assert finding.name == "too wide" and "noise of y is 1.3 times" in finding.sentence
    assert "halve the width" in finding.mend
    steered = standing(noise=torch.tensor([0.11, 0.13]), posterior=svi, has_random_paths=True)
    assert check_width(steered).findings == []
    svi.history = History(start_ratio=1.3)  # the smoother's noise was too small from the start
    facts.residual_scale = torch.tensor([0.11, 0.125])
    assert check_width(facts).findings == []
    svi.settings = {"engine": "laplace"}
    svi.history = History(start_ratio=1.0)
    assert check_width(facts).findings == []


def residuals(residual, **quantities):
    """Facts of these residuals, of noise 1 and a path that is known."""
    plain = {"precision": torch.ones_like(residual), "deviation": torch.zeros(1, *residual.shape)}
    return standing(residual=residual, **plain | quantities)


def white(*shape, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("shape", "expected"), [((5, 200), []), ((1, 12), []), ((5, 200, "last"), ["structure"])]
)
def test_residuals_that_last_are_found_and_white_ones_are_not(shape, expected):
    num_series, num_times, *last = shape
    residual = white(num_series, num_times, 2)
    if last:
        residual[..., 1] += residual[..., 1].roll(1, 1)  # a moving average, correlation a half
    residual[0, 3] = torch.nan
    found = check_residuals(residuals(residual)).findings
    assert [finding.name.split()[0] for finding in found] == expected
    if expected:
        stated = float(re.search(r"correlation (\S+?),", found[0].sentence)[1])
        assert abs(stated - 0.5) < 5 / 1000**0.5 and "residuals of y" in found[0].sentence
        assert "bo.fit(*bo.neural_sde(train), train)" in found[0].mend


def test_structure_in_all_components_is_found_where_no_component_tells_it_alone():
    noise = white(3, 40, 4)
    noise = noise[:, 1:] + 0.25 * noise[:, :-1]
    four = SimpleNamespace(names=tuple("abcd"))
    (finding,) = check_residuals(residuals(noise, train=four)).findings
    assert "residuals of all components together" in finding.sentence
    for component in range(4):
        alone = residuals(noise[..., [component]], train=SimpleNamespace(names=("a",)))
        assert check_residuals(alone).findings == []


def test_the_spread_of_mean_field_paths_is_no_excuse_and_no_charge():
    """It is far too large along a path: only a Laplace fit's is allowed for."""
    residual, deviation = white(5, 40, 2), white(100, 5, 1, 2, seed=1).expand(-1, -1, 40, -1)
    svi = SimpleNamespace(settings={"engine": "svi"})
    told = check_residuals(residuals(residual, deviation=deviation, posterior=svi))
    assert told == check_residuals(residuals(residual))
    assert check_residuals(residuals(residual, deviation=deviation)).findings != []


def test_paths_with_noise_of_their_own_are_not_tested_for_it():
    residual = white(5, 200, 2)
    residual += residual.roll(1, 1)
    checked = check_residuals(residuals(residual, has_random_paths=True))
    assert checked.findings == [] and "residual correlation" in checked.numbers


RATE = 1 / 1000  # of false alarms, as check_residuals states it


@pytest.mark.slow
@pytest.mark.parametrize(("num_series", "num_times"), [(3, 40), (1, 14)])
def test_white_residuals_alarm_in_at_most_one_fit_of_a_thousand(num_series, num_times):
    """A quarter of the values missing; binomial bound of 5 sds."""
    num, alarms = 10_000, 0
    for residual in white(num, num_series, num_times, 2, seed=0):
        missing = torch.rand(residual.shape, generator=torch.Generator().manual_seed(0)) < 0.25
        alarms += len(check_residuals(residuals(residual.masked_fill(missing, torch.nan))).findings)
    assert alarms <= RATE * num + 5 * (RATE * num) ** 0.5


def smoother(num_times, num_kept):
    """A projection of (time,) on the slowest waves: what a path of so many free numbers follows."""
    k, j = torch.meshgrid(torch.arange(num_times), torch.arange(num_kept), indexing="ij")
    basis = torch.linalg.qr(torch.cos(torch.pi * (k + 0.5) * j / num_times).double()).Q
    return basis


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_residuals_of_a_fit_have_no_correlation_once_what_it_takes_up_is_allowed_for(share):
    """Of white noise around a path with free numbers, the residual and posterior are exact.

    The mean of the statistic is 0 (5 standard errors) though the residuals themselves correlate
    at about -share; alarms are at most one in a thousand.
    """
    num, num_times = 4000, 40
    basis = smoother(num_times, int(share * num_times))
    noise = white(num, 3, num_times, 2)
    residual = noise - basis @ (basis.mT @ noise)
    generator = torch.Generator().manual_seed(1)
    deviation = basis @ torch.randn(
        100, 3, basis.shape[1], 2, generator=generator, dtype=torch.float64
    )
    found = [check_residuals(residuals(one, deviation=deviation)) for one in residual]
    assert sum(len(one.findings) for one in found) <= RATE * num + 5 * (RATE * num) ** 0.5
    told, raw = (
        torch.stack([_neighbours(one, away, torch.ones_like(one))[0] for one in residual])
        for away in (deviation, 0 * deviation)
    )
    # a hundred draws tell the posterior's covariance of neighbours up to a tenth
    assert abs(told.mean()) < 5 * told.std() / told.numel() ** 0.5 + 0.1 * share
    assert raw.mean() < -0.5 * share


def test_values_that_are_missing_are_skipped_over():
    full = white(4, 30, 2)
    missing = torch.full((4, 60, 2), torch.nan, dtype=torch.float64)
    missing[:, ::2] = full
    one, other = (
        _neighbours(residual, torch.zeros(1, *residual.shape), torch.ones_like(residual))
        for residual in (full, missing)
    )
    torch.testing.assert_close(one, other)
    exact = (full[:, 1:] * full[:, :-1]).mean((0, 1)) / full.square().mean((0, 1))
    torch.testing.assert_close(one[0], exact)
    assert one[1].tolist() == [4 * 29] * 2


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        (History(elbo=[0.0] * 300, start_ratio=1.0), []),
        (History(elbo=[0.0] * 300, num_skipped=3), ["skipped steps"]),
        (History(elbo=[0.0, *[-500.0] * 299], start_ratio=1.0), ["warm start destroyed"]),
        (History(elbo=[0.0, *[-500.0] * 299]), []),  # without a start there is none to lose
        (History(elbo=[2.0 * k for k in range(300)]), ["ELBO not converged"]),
        (History(elbo=[0.0] * 7), ["few steps"]),
        (History(elbo=[0.0] * 300, is_interrupted=True), ["interrupted"]),
        (History(elbo=[]), []),
    ],
)
def test_the_course_of_a_fit_is_judged(history, expected):
    posterior = SimpleNamespace(history=history, settings={})
    assert names_of(check_steps(standing(posterior=posterior))) == expected


def test_many_skipped_steps_are_an_alarm_and_few_a_note():
    def severity(num_skipped):
        history = History(elbo=[0.0] * 100, num_skipped=num_skipped)
        facts = standing(posterior=SimpleNamespace(history=history, settings={}))
        return check_steps(facts).findings[0].severity

    assert (severity(2), severity(20)) == ("note", "alarm")


def test_few_points_of_a_quick_movement_are_too_few_and_not_a_constant():
    """Four points a turn, eight in all: it looks like noise, and there is too little to tell."""
    turn = torch.arange(8.0).view(1, -1, 1) * 2 * torch.pi / 4.1 + torch.arange(6.0).view(-1, 1, 1)
    facts = sampled(torch.cat([torch.sin(turn), torch.cos(turn)], -1), noise=0.6)
    assert names_of(check_movement(facts)) == []
    assert names_of(check_sampling(facts)) == ["too few points"] * 2


def test_points_a_turn_are_counted():
    facts = sampled(waves(noise=0.0))
    few = float(check_sampling(facts).numbers["points a turn"].split()[-1])
    assert abs(few / (2 * torch.pi / 0.3) - 1) < 0.05
    assert check_sampling(facts).findings == []
    found = check_sampling(sampled(waves(noise=0.0)[:, ::4])).findings  # 5.2 points a turn
    assert [finding.name for finding in found] == ["too few points"] * 2
    assert "x has about 5." in found[0].sentence and "sample more densely" in found[0].mend


def sampled(response, noise=0.01):
    """Facts of data of which smoother and fit take so much for noise."""
    smoothed = SimpleNamespace(lengthscale=torch.tensor([5.0, 5.0]))
    return standing(
        response=response,
        smoothed=smoothed,
        gap=torch.tensor(1.0),
        smoothers_noise=torch.tensor([noise, noise]),
        noise=torch.tensor([noise, noise]),
    )


# ---- forecasts of fields that are known ------------------------------------------------------
class Known(nn.Module):
    """dx/dt = rate f(x) with a rate that is known to a hair."""

    def __init__(self, function, dim):
        super().__init__()
        self.function = function
        self.register_buffer("sd", torch.full((1,), 1e-6, dtype=torch.float64))

    def priors(self):
        return {"rate": dist.Normal(torch.ones_like(self.sd), self.sd).to_event(1)}

    def build(self, values, inputs=None):
        rate = without_plate(values["rate"])
        return VectorField(lambda t, x: rate.unsqueeze(-2) * self.function(x), (rate,))


def lorenz(x):
    a, b, c = x.unbind(-1)
    return torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], -1)


def growing(x):
    return 0.5 * x


def circling(x):
    return torch.stack([x[..., 1], -x[..., 0]], -1)


def known_posterior(function, path, times, step=0.1):
    """A Laplace posterior whose center is the true system and whose covariance is next to none."""
    dim = path.shape[-1]
    generator = torch.Generator().manual_seed(0)
    scale = path.std((0, 1))
    noise = torch.randn(path.shape, generator=generator, dtype=torch.float64)
    train = bo.Trajectories(times, path + 0.05 * scale * noise)
    model = bo.DynamicalModel(
        initial=bo.NormalInitial(dim),
        field=Known(function, dim),
        likelihood=bo.GaussianLikelihood(dim),
        solver=bo.FixedGridSolver("rk4", step=step, max_state=1e3),
    ).double()
    guide = LaplaceGuide(model, train)
    guide.weights.fill_(1.0)
    guide.x0.copy_(path[:, 0])
    guide.covariance_weights.copy_(1e-12 * torch.eye(1))
    guide.own.copy_(1e-6 * torch.eye(dim).expand_as(guide.own))
    guide.noise.copy_((0.05 * scale).log())
    guide.freedom.fill_(100.0)
    history = SimpleNamespace(log_evidence=[0.0], num_weights_used=1.0)
    return bo.Posterior(model, guide, train, history=history, settings={"engine": "laplace"})


def solved(function, x0, times):
    solver = bo.FixedGridSolver("rk4", step=0.01, max_state=1e6)
    start = times[:1].expand(len(x0))
    field = VectorField(lambda t, x: function(x), ())
    return solver.solve(field, x0, start, times.expand(len(x0), -1)).path


def test_chaos_is_measured_by_its_known_exponent():
    """Lorenz 63: largest exponent .906 (Sprott 2003), so errors double every .77.

    Over 12 units and 8 series the estimate has a standard error of about .06: half to double is
    far more than five of these.
    """
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(8, 3, generator=generator, dtype=torch.float64) * 8
    burnt = solved(lorenz, x0 + torch.tensor([0.0, 0.0, 25.0]), torch.linspace(0, 5, 6).double())
    times = torch.linspace(0, 2, 40).double()
    path = solved(lorenz, burnt[:, -1], times)
    scaled, center = path.std((0, 1)).double(), path.mean((0, 1))

    def standard(z):
        return lorenz(z * scaled + center) / scaled

    posterior = known_posterior(standard, (path - center) / scaled, times, step=0.02)
    forecast = posterior.train.at(torch.linspace(0, 12, 50))
    checked = check_chaos(Facts(posterior, forecast))
    doubling = float(checked.numbers["error doubling time"].split(",")[0])
    assert 0.5 < doubling / (0.6931 / 0.906) < 2
    (finding,) = checked.findings
    assert finding.name == "chaotic forecast"
    assert f"double their distance every {doubling:.3g}" in finding.sentence
    assert "climate" in finding.mend
    near = posterior.train.at(torch.linspace(0, 5, 50))  # an error of .05 needs 3.3 to fill it
    assert check_chaos(Facts(posterior, near)).findings == []
    assert check_chaos(Facts(posterior, posterior.train)).findings == []  # nothing is forecast


def test_a_circle_neither_explodes_nor_is_chaotic():
    times = torch.linspace(0, 6, 40).double()
    x0 = torch.tensor([[1.0, 0.0], [0.0, 1.5], [-1.0, 1.0]], dtype=torch.float64)
    posterior = known_posterior(circling, solved(circling, x0, times), times)
    facts = Facts(posterior, posterior.train.at(torch.linspace(0, 30, 60)))
    for check in (check_chaos, check_blow_up, check_determined):
        assert check(facts).findings == []


def test_paths_that_leave_the_data_behind_are_a_blow_up():
    times = torch.linspace(0, 4, 40).double()
    x0 = torch.tensor([[1.0], [-0.8], [0.5]], dtype=torch.float64)
    posterior = known_posterior(growing, solved(growing, x0, times), times)
    facts = Facts(posterior, posterior.train.at(torch.linspace(0, 12, 60)))
    (finding,) = check_blow_up(facts).findings
    assert finding.name == "blow-up" and "explodes in the forecast" in finding.sentence
    assert "shorter horizon" in finding.mend
    assert check_blow_up(Facts(posterior, posterior.train)).findings == []


def test_what_the_data_do_not_determine_is_counted(small):
    asked = beyond(small.train, 2)
    share = (small.predictive.uncapped_sd(asked) > 1).double().mean().item()
    told = check_determined(Facts(small, asked)).numbers["not determined by the data"]
    assert told.startswith(f"{share:.1%}")


# ---- whole reports ---------------------------------------------------------------------------
# The other failures need fits of half a minute: `python -m benchmarks.planted_failures`.
@pytest.mark.parametrize("name", ["explosive field", "chaotic forecast"])
def test_a_planted_failure_is_found_by_the_whole_report(name):
    posterior, question = FAILURES[name].plant(0)
    report = diagnose(posterior, question)
    assert FAILURES[name].finding in [finding.name for finding in report.alarms]
    assert FAILURES[name].finding in report.verdict


def test_a_good_fit_has_no_alarm_and_all_checks_are_made():
    report = diagnose(*good_fit("van_der_pol", 0))
    assert report.findings == [] and report.verdict == "no alarm."


def test_the_text_shows_verdict_findings_mends_numbers_and_bands(small):
    history = small.history
    small.history = SimpleNamespace(log_evidence=[0.0], num_weights_used=200.0)
    try:
        report = diagnose(small)
    finally:
        small.history = history
    (finding,) = report.alarms
    text = " ".join(str(report).split())
    for part in (report.verdict, finding.sentence, finding.mend, BANDS["laplace"]):
        assert part in text
    assert "alarm (too few points): weights and initial states take up 200 of 240" in text
    for name, value in report.numbers.items():
        assert f"{name} {value}" in text
    assert max(map(len, str(report).splitlines())) <= 100


def test_a_loaded_run_gives_the_same_report(small, tmp_path):
    asked = beyond(small.train, 1.5)
    loaded = bo.load(small.save(tmp_path / "run"))
    assert str(diagnose(loaded, asked)) == str(diagnose(small, asked))


def test_a_report_leaves_the_random_state_alone(small):
    before = torch.get_rng_state()
    assert str(diagnose(small)) == str(diagnose(small))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_guide_of_pyro_gets_a_report_without_missing_checks():
    train = bo.datasets.van_der_pol(num_series=2, num_times=30, missing=0.2, seed=0).observed
    model, _ = bo.neural_ode(train, hidden=[4], verbose=False)
    guide, settings = AutoNormal(model), {"warm_start": False, "progress": False}
    posterior = bo.fit_svi(model, guide, train, seed=0, num_steps=3, **settings)
    report = diagnose(posterior, beyond(train, 1.5))
    assert "not checked" not in [finding.name for finding in report.findings]
    assert "few steps" in [finding.name for finding in report.findings]
    assert report.bands == BANDS["svi"]


class Blunt(nn.Module):
    """A likelihood without working_response and fisher."""

    def priors(self):
        return {}

    def build(self, values, inputs=None):
        return bo.GaussianLikelihood(2).build({"noise_scale": torch.tensor([0.3, 0.3])})


def test_checks_that_cannot_be_made_are_named_in_one_note():
    train = bo.datasets.van_der_pol(num_series=2, num_times=8, seed=0).observed
    model = bo.DynamicalModel(
        initial=bo.NormalInitial(2),
        field=bo.BayesianMLP(2, [3], 2),
        likelihood=Blunt(),
        solver=bo.FixedGridSolver("rk4", step=0.5),
    )
    guide = bo.MeanFieldGuide(model, train)
    settings = dict(num_steps=2, warm_start=False, progress=False)
    report = diagnose(bo.fit_svi(model, guide, train, seed=0, **settings))
    note = next(finding for finding in report.findings if finding.name == "not checked")
    assert "Blunt has no working_response" in note.sentence and note.severity == "note"
    assert "movement" in note.sentence and "steps" not in note.sentence
    assert "some checks could not be made" in report.verdict


def test_a_report_never_raises_even_if_nothing_can_be_looked_at():
    train = bo.datasets.van_der_pol(num_series=3, num_times=8).observed
    broken = SimpleNamespace(train=train, settings={"engine": "other"}, history=None)
    report = diagnose(broken)
    (note,) = {f.name for f in report.findings}
    assert note == "not checked" and report.bands == UNKNOWN_BANDS
    told = " ".join(finding.sentence for finding in report.findings)
    assert all(name in told for name in set(CHECKS) - {"units", "steps"})


@pytest.fixture(scope="module")
def noisy():
    """A short fit of a model with process noise."""
    train = bo.datasets.ornstein_uhlenbeck(num_series=3, num_times=15).observed
    model = bo.DynamicalModel(
        initial=bo.NormalInitial(1),
        field=bo.SDEField(bo.BayesianMLP(1, [3], 1), bo.AdditiveNoise(1)),
        likelihood=bo.GaussianLikelihood(1, prior_median=1.0, prior_log_scale=0.01),
        solver=bo.SDESolver(1, step=0.3, noise_step=0.2),
        units=bo.Units.from_data(train),
    )
    guide = bo.SDEGuide(model, train)
    return bo.fit_svi(model, guide, train, seed=0, num_steps=5, progress=False)


def test_paths_with_noise_of_their_own_are_not_called_too_wide(noisy):
    """They pass close to the data by design: the fitted noise is above their residuals."""
    report = bo.diagnostics.diagnose(noisy)
    assert "too wide" not in [finding.name for finding in report.findings]
    assert "fitted noise / best residual" in report.numbers


@pytest.mark.parametrize("factor", [1, 2])
def test_every_check_can_be_made_of_paths_with_noise_of_their_own(noisy, factor, monkeypatch):
    report = diagnose(noisy, beyond(noisy.train, factor))
    assert {f.name for f in report.findings} <= {"few steps", "not determined"}
    assert report.numbers["error doubling time"].startswith("not looked at")
    assert report.numbers["paths far outside the data"] == "0.00%"
    assert report.bands == UNKNOWN_BANDS  # those of ODEs say nothing about it
    monkeypatch.setitem(BANDS, "svi with process noise", "as measured.")
    assert diagnose(noisy).bands == "as measured."


def test_noisy_paths_that_leave_the_data_behind_are_a_blow_up(noisy):
    facts = Facts(noisy, beyond(noisy.train, 2))
    assert check_blow_up(facts).findings == []
    facts.asked.path[:10] += 1000.0
    (finding,) = check_blow_up(facts).findings
    assert finding.name == "blow-up" and "10% of the paths" in finding.sentence
