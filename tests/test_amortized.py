"""The amortised guide: its ELBO, what predictions may read, new series, files."""

from __future__ import annotations

import copy
import itertools
import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn

import bayesode as bo
from bayesode import systems
from bayesode.distributions import observed_law
from bayesode.inference import elbo
from bayesode.inference.loop import History
from bayesode.models.contracts import Observe

DOUBLE = torch.float64
FRAME = (1, 3, 2)
DIM = 3


@pytest.fixture(autouse=True)
def empty_store():
    with pyro.get_param_store().scope():
        yield


class Frames(nn.Module):
    """Frames (channel, height, width) that are a linear map of the state plus normal noise."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {}
        self.decoder = nn.Linear(DIM, math.prod(FRAME))
        self.register_buffer("prior_sd", torch.ones(1, 1, 1))

    def priors(self):
        return {"noise_scale": dist.LogNormal(0 * self.prior_sd - 1, self.prior_sd).to_event(3)}

    def build(self, values, inputs=None):
        scale = values["noise_scale"].unsqueeze(-4)

        def signal(path):
            return self.decoder(path).unflatten(-1, FRAME)

        def law(path, mask):
            return observed_law(dist.Normal(signal(path), scale), mask, event_dim=4, fill=0.0)

        return Observe(law, signal)


def make_model() -> bo.DynamicalModel:
    torch.manual_seed(3)
    return bo.DynamicalModel(
        initial=bo.NormalInitial(DIM),
        field=bo.Sum(linear=bo.LinearField(DIM, prior_scale=0.5), bend=bo.BayesianMLP(3, [2], 3)),
        likelihood=Frames(),
        solver=bo.FixedGridSolver("rk4", step=0.5),
    ).double()


def make_guide(model: bo.DynamicalModel, encoder: nn.Module | None = None) -> bo.AmortizedGuide:
    """Away from every special value, with moderate scales."""
    torch.manual_seed(4)
    guide = bo.AmortizedGuide(model, encoder or bo.ConvEncoder(FRAME, DIM, channels=(4,))).double()
    for site, law in guide.posteriors(data()).items():
        if site != "x0":
            value = 0.4 * torch.rand(law.event_shape) - 0.2
            value = value + 0.6 if site == "likelihood.noise_scale" else value
            guide.set_site(site, value, torch.full(law.event_shape, 0.1))
    return guide


def data(num_series: int = 5, seed: int = 0, **settings) -> bo.Trajectories:
    torch.manual_seed(seed)
    values = torch.rand(num_series, 4, *FRAME, dtype=DOUBLE)
    mask = torch.rand(num_series, 4) > 0.25
    mask[:, 0] = True
    fields = {"mask": mask, "series": [f"s{k}" for k in range(num_series)]}
    return bo.Trajectories(torch.arange(4.0, dtype=DOUBLE), values, **(fields | settings))


def posterior_of(guide=None, train=None) -> bo.Posterior:
    model = make_model()
    guide = guide or make_guide(model)
    settings = {"engine": "svi", "seed": 0}
    return bo.Posterior(model, guide, train or data(), history=History(), settings=settings)


# ---- the ELBO -----------------------------------------------------------------------------------
def pyro_elbo(way: type, num_particles: int) -> Trace_ELBO:
    return way(num_particles=num_particles, vectorize_particles=True, max_plate_nesting=1)


@pytest.mark.parametrize("num_particles", [1, 4])
@pytest.mark.parametrize("is_minibatch", [False, True])
def test_terms_and_pyros_mean_field_elbo_agree_draw_by_draw(num_particles, is_minibatch):
    model, train = make_model(), data()
    guide, batch = make_guide(model), train.batch([3, 1]) if is_minibatch else train
    torch.manual_seed(1)
    ours = -bo.elbo_terms(model, guide, batch, num_particles=num_particles).elbo
    torch.manual_seed(1)
    theirs = pyro_elbo(TraceMeanField_ELBO, num_particles).differentiable_loss(model, guide, batch)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0.0)
    parameters = [*guide.parameters(), *model.parameters()]
    pairs = zip(
        torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), strict=True
    )
    for one, other in pairs:
        assert other.norm() > 0
        assert (one - other).norm() < 1e-10 * other.norm()


@pytest.mark.parametrize("is_minibatch", [False, True])
def test_all_three_ways_agree_on_average(is_minibatch):
    model, train = make_model(), data()
    guide, batch = make_guide(model), train.batch([3, 1]) if is_minibatch else train
    torch.manual_seed(2)
    with torch.no_grad():
        found = [
            [float(estimate()) for _ in range(40)]
            for estimate in (
                lambda: bo.elbo_terms(model, guide, batch, num_particles=100).elbo,
                lambda: -pyro_elbo(Trace_ELBO, 100).loss(model, guide, batch),
                lambda: -pyro_elbo(TraceMeanField_ELBO, 100).loss(model, guide, batch),
            )
        ]
    values = torch.tensor(found, dtype=DOUBLE)
    means, errors = values.mean(-1), values.std(-1) / math.sqrt(40)
    assert errors.max() < 1.0
    for k in (1, 2):  # 5 standard errors: false alarm 6e-7
        assert (means[k] - means[0]).abs() < 5 * torch.hypot(errors[k], errors[0])


def test_the_kl_of_x0_counts_once_per_series_whatever_the_number_of_frames():
    model, train = make_model(), data()
    guide = make_guide(model)
    law, prior = guide.posteriors(train)["x0"].base_dist, model.initial.build({}).base_dist
    ratio = (law.scale / prior.scale).square()
    each = (ratio + ((law.loc - prior.loc) / prior.scale).square() - 1 - ratio.log()).sum(-1) / 2
    for frames in (1.0, 3.0):
        kl = bo.elbo_terms(model, guide, train.until(frames)).kl["x0"]
        torch.testing.assert_close(kl, each.sum(), rtol=1e-12, atol=0.0)
    batch = bo.elbo_terms(model, guide, train.batch([3, 1])).kl["x0"]
    torch.testing.assert_close(batch, 5 / 2 * each[[3, 1]].sum(), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_mean_over_all_minibatches_is_the_elbo_of_all_data(size, monkeypatch):
    """Trap 33: with latents held at their means nothing else varies."""
    monkeypatch.setattr(elbo, "_draw", lambda law: law.mean)
    model, train = make_model(), data()
    guide = make_guide(model)
    whole = bo.elbo_terms(model, guide, train)
    batches = [
        bo.elbo_terms(model, guide, train.batch(rows))
        for rows in itertools.combinations(range(5), size)
    ]

    def mean(values):
        return torch.stack(values).mean(0)

    likelihood = mean([terms.log_likelihood for terms in batches])
    torch.testing.assert_close(likelihood, whole.log_likelihood, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(mean([t.elbo for t in batches]), whole.elbo, rtol=1e-12, atol=0.0)
    for site in set(whole.kl) - {"x0"}:
        for terms in batches:
            torch.testing.assert_close(terms.kl[site], whole.kl[site], rtol=1e-12, atol=0.0)
    parameters = list(guide.encoder.parameters())
    found, expected = (
        torch.autograd.grad(value, parameters, allow_unused=True)
        for value in (mean([t.elbo for t in batches]), whole.elbo)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


# ---- parameters ---------------------------------------------------------------------------------
def test_every_parameter_is_in_one_group():
    encoder = bo.SumEncoder(bo.LinearEncoder(FRAME, DIM), bo.MLPEncoder(FRAME, DIM))
    guide = make_guide(make_model(), encoder)
    groups = guide.parameter_groups()
    assert set(groups) == {"locations", "log_scales", "networks"}
    grouped = [id(p) for parameters in groups.values() for p in parameters]
    assert sorted(grouped) == sorted(id(p) for p in guide.parameters())
    names = {id(p): name for name, p in guide.named_parameters()}
    assert {names[id(p)] for p in groups["locations"]} == {
        "sites.offset.field__linear__weights",
        "sites.offset.field__bend__weights",
        "sites.offset.likelihood__noise_scale",
    }
    scales = {names[id(p)] for p in groups["log_scales"]}
    assert "encoder.base.log_scale" in scales and len(scales) == 4
    assert guide.row_parameters() == []


def test_the_encoder_is_copied_and_a_fit_leaves_it_as_it_was():
    encoder = bo.MLPEncoder(FRAME, DIM)
    before = copy.deepcopy(encoder.state_dict())
    model, train = make_model(), data().to(dtype=torch.float32)
    guide = bo.AmortizedGuide(model, encoder)
    assert guide.encoder is not encoder
    posterior = bo.fit_svi(model, guide, train, seed=0, num_steps=3, progress=False)
    assert all(torch.equal(v, before[n]) for n, v in encoder.state_dict().items())
    moved = posterior.guide.encoder.state_dict()
    assert all((v != before[n]).any() for n, v in moved.items())


def test_a_fit_finds_a_rotation():
    torch.manual_seed(0)
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    x0, times = torch.randn(40, 2), torch.arange(12) * 0.3
    truth = torch.stack([x0 @ torch.matrix_exp(t * turn) for t in times], 1)
    train = bo.Trajectories(times, truth + 0.05 * torch.randn_like(truth))
    model = bo.DynamicalModel(
        initial=bo.NormalInitial(2),
        field=bo.LinearField(2),
        likelihood=bo.GaussianLikelihood(2),
        solver=bo.MatrixExponentialSolver(),
    )
    calls = []

    def start(model, guide, train):
        calls.append(train)
        guide.encoder.set_linear(torch.eye(2), torch.zeros(2), 1.0)
        guide.set_site("field.weights", torch.zeros(4), torch.full((4,), 0.1), torch.ones(4))

    guide = bo.AmortizedGuide(model, bo.LinearEncoder((2,), 2), start=start)
    posterior = bo.fit_svi(model, guide, train, seed=0, num_steps=300, progress=False)
    assert calls == [train]
    found = posterior.draws(200, seed=0)["field.weights"].mean(0)
    torch.testing.assert_close(found, turn.mT.flatten(), rtol=0, atol=0.02)
    new = posterior.condition(bo.Trajectories([0.0], torch.tensor([[[1.0, 0.0]]]), series=["new"]))
    ahead = new.predict(new.train.at([math.pi, 2 * math.pi]), num_draws=300, seed=0)
    expected = torch.tensor([[[-1.0, 0.0], [1.0, 0.0]]])
    torch.testing.assert_close(ahead.mean, expected, rtol=0, atol=0.15)


def test_a_start_can_be_left_out():
    guide = make_guide(make_model())
    before = copy.deepcopy(guide.state_dict())
    guide.warm_start(make_model(), data())
    assert all(torch.equal(v, before[n]) for n, v in guide.state_dict().items())


# ---- predictions --------------------------------------------------------------------------------
def test_predictions_never_read_the_values_of_the_question():
    posterior, train = posterior_of(), data()
    asked = posterior.predict(train.at([1.0, 5.0]), num_draws=7, seed=0)
    other = data(seed=9).values[:, :2]
    for values in (other, torch.full_like(other, math.nan)):
        question = bo.Trajectories(
            [1.0, 5.0], values, series=train.series, start=train.start, names=train.names
        )
        found = posterior.predict(question, num_draws=7, seed=0)
        assert torch.equal(found.path, asked.path) and torch.equal(found.values, asked.values)


def test_predictions_begin_where_the_encoder_says():
    posterior, train = posterior_of(), data()
    law = posterior.guide.encoder(train)
    ensemble = posterior.predict(train.at([0.0]), num_draws=4000, seed=0)
    error = law.base_dist.scale / math.sqrt(4000)
    assert ((ensemble.path[:, :, 0].mean(0) - law.mean).abs() < 5 * error).all()


def test_rows_are_addressed_by_label():
    posterior, train = posterior_of(), data()
    question = train.at([2.0]).rows([4, 1])
    found = posterior.predictive.sample(question, 2000)["x0"].mean(0)
    law = posterior.guide.encoder(train)
    error = law.base_dist.scale[[4, 1]] / math.sqrt(2000)
    assert ((found - law.mean[[4, 1]]).abs() < 5 * error).all()


def test_an_unknown_series_is_one_clear_error():
    posterior = posterior_of()
    with pytest.raises(bo.DataError, match=r"'z' was not in the fit.*posterior\.condition\(new\)"):
        posterior.predict(data(2, series=["s1", "z"]).at([1.0]), num_draws=2)
    with pytest.raises(bo.DataError, match=r"'z' was not in the fit.*posterior\.condition\(new\)"):
        posterior.predictive.sample(data(2, series=["s1", "z"]), 2)


def test_all_that_a_posterior_gives_works_for_frames():
    posterior, train = posterior_of(), data()
    draws = posterior.draws(6, seed=0)
    assert draws["x0"].shape == (6, 5, DIM) and draws["likelihood.noise_scale"].shape == (
        6,
        1,
        1,
        1,
    )
    ensemble = posterior.predict(train, num_draws=6, seed=0)
    assert ensemble.values.shape == (6, 5, 4, *FRAME)
    assert posterior.elbo_terms(num_particles=2).elbo.isfinite()
    parts = posterior.predict(train, num_draws=40, seed=0).variance_parts()
    assert (parts.weights + parts.initial).sum() > 0 and parts.observation.shape == (5, 4, *FRAME)


# ---- new series ---------------------------------------------------------------------------------
def test_conditioning_reads_the_new_series():
    posterior, new = posterior_of(), data(3, seed=5)  # labels of the fit, other values
    conditioned = posterior.condition(new, seed=0)
    found = conditioned.predictive.sample(new.at([1.0]), 2000)["x0"].mean(0)
    law = posterior.guide.encoder(new)
    assert ((found - law.mean).abs() < 5 * law.base_dist.scale / math.sqrt(2000)).all()
    before = posterior.predictive.sample(data(), 2000)["x0"][:, :3].mean(0)
    assert ((found - before).abs() > 5 * law.base_dist.scale / math.sqrt(2000)).any()
    shared = conditioned.guide.posteriors(new)["field.linear.weights"]
    assert torch.equal(shared.mean, posterior.guide.posteriors(new)["field.linear.weights"].mean)


def test_a_conditioned_guide_is_a_copy():
    posterior = posterior_of()
    conditioned = posterior.condition(data(3, seed=5), seed=0)
    with torch.no_grad():
        for parameter in conditioned.guide.parameters():
            parameter.add_(1.0)
    fresh = make_guide(make_model())
    for one, other in zip(posterior.guide.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_the_encoder_cannot_read_is_refused_when_conditioning():
    posterior = posterior_of()
    mask = torch.ones(2, 4, dtype=torch.bool)
    mask[1, 0] = False
    with pytest.raises(bo.DataError, match=r"frame 0 of series 's1' is hidden.*GRUEncoder"):
        posterior.condition(data(2, mask=mask))
    mask[1] = False
    with pytest.raises(bo.DataError, match="series 's1' has no visible value"):
        posterior.condition(data(2, mask=mask))
    with pytest.raises(bo.DataError, match=r"shape \(1, 2, 3\)"):
        posterior.condition(bo.Trajectories([0.0], torch.rand(1, 1, 1, 2, 3)))
    with pytest.raises(bo.DataError, match="nothing to condition on"):
        posterior.condition(data().at([1.0]))


# ---- the border of fits, for events of any rank -------------------------------------------------
@pytest.mark.parametrize("event", [(4,), (2, 3), (1, 3, 2), (2, 1, 3, 2)])
def test_values_that_are_impossible_are_found_in_events_of_any_rank(event):
    class Positive(nn.Module):
        def priors(self):
            return {}

        def build(self, values, inputs=None):
            def signal(path):
                return (
                    path.mean(-1)
                    .view(*path.shape[:-1], *[1] * len(event))
                    .expand(*path.shape[:-1], *event)
                )

            def law(path, mask):
                base = dist.LogNormal(signal(path), 1.0)
                return observed_law(base, mask, event_dim=1 + len(event), fill=1.0)

            return Observe(law, lambda path: signal(path).exp())

    model = bo.DynamicalModel(
        initial=bo.NormalInitial(2),
        field=bo.LinearField(2),
        likelihood=Positive(),
        solver=bo.MatrixExponentialSolver(),
    )
    values = torch.rand(3, 4, *event) + 0.1
    guide = bo.AmortizedGuide(model, bo.MLPEncoder(event, 2))
    fit = {"seed": 0, "num_steps": 2, "progress": False}
    train = bo.Trajectories(torch.arange(4.0), values)
    posterior = bo.fit_svi(model, guide, train, **fit)
    posterior.condition(train.rows([1]))
    wrong = values.clone()
    place = (1, 2, *[0] * len(event))
    wrong[place] = -3.0
    for refuse in (
        lambda data: bo.fit_svi(model, guide, data, **fit),
        lambda data: posterior.condition(data),
    ):
        with pytest.raises(bo.DataError, match="value -3 of series 1"):
            refuse(bo.Trajectories(torch.arange(4.0), wrong))
        mask = torch.ones_like(wrong, dtype=torch.bool)
        mask[place] = False
        refuse(bo.Trajectories(torch.arange(4.0), wrong, mask=mask))
    other = bo.Trajectories(torch.arange(4.0), torch.rand(3, 4, *event, 2))
    with pytest.raises(bo.ShapeError, match=r"Positive is of values .* for \(time, \*event\)"):
        bo.fit_svi(model, guide, other, **fit)


# ---- files --------------------------------------------------------------------------------------
def assert_equal_predictions(one: bo.Posterior, two: bo.Posterior) -> None:
    question = one.train.at([1.0, 6.0])
    a, b = (p.predict(question, num_draws=5, seed=3) for p in (one, two))
    assert torch.equal(a.values, b.values) and torch.equal(a.path, b.path)


def fresh_parts() -> dict:
    """Model and guide built like the saved ones, with other numbers in them."""
    model = make_model()
    guide = bo.AmortizedGuide(model, bo.ConvEncoder(FRAME, DIM, channels=(4,)))
    return {"model": model, "guide": guide}


@pytest.mark.parametrize("is_conditioned", [False, True])
def test_a_saved_run_predicts_the_same(tmp_path, is_conditioned):
    posterior = posterior_of()
    if is_conditioned:
        posterior = posterior.condition(data(3, seed=5, series=["a", "b", "c"]), seed=0)
    loaded = bo.load(posterior.save(tmp_path / "run"), **fresh_parts())
    assert_equal_predictions(posterior, loaded)
    assert loaded.settings == posterior.settings
    assert loaded.train.series == posterior.train.series


def test_a_conditioned_run_of_a_system_is_rebuilt_with_its_encoder(tmp_path, monkeypatch):
    monkeypatch.setattr(systems, "rebuild", lambda recipe, train: tuple(fresh_parts().values()))
    posterior = posterior_of()
    posterior.model.recipe = {"system": "frames", "arguments": {}}
    conditioned = posterior.condition(data(3, seed=5), seed=0)
    folder = conditioned.save(tmp_path / "run")
    assert json.loads((folder / "config.json").read_text())["settings"]["conditioned"] == {
        "seed": 0
    }
    assert_equal_predictions(conditioned, bo.load(folder))


def test_a_run_of_hand_made_parts_asks_for_its_guide(tmp_path):
    folder = posterior_of().condition(data(3, seed=5), seed=0).save(tmp_path / "run")
    with pytest.raises(bo.DataError, match="hand-made model or guide"):
        bo.load(folder, model=make_model())


# ---- what it is not for -------------------------------------------------------------------------
def test_bad_parts_are_one_clear_error():
    with pytest.raises(bo.DataError, match="is no module; take ConvEncoder"):
        bo.AmortizedGuide(make_model(), lambda trajectories: None)
    noisy = bo.DynamicalModel(
        initial=bo.NormalInitial(2),
        field=bo.SDEField(bo.BayesianMLP(2, [2], 2), bo.AdditiveNoise(2)),
        likelihood=bo.GaussianLikelihood(2),
        solver=bo.SDESolver(2, 0.1),
    )
    with pytest.raises(bo.DataError, match="random paths needs a guide that draws them"):
        bo.AmortizedGuide(noisy, bo.MLPEncoder((2,), 2))
    guide = make_guide(make_model())
    with pytest.raises(bo.DataError, match="question without values"):
        guide.posteriors(data().at([1.0]))
