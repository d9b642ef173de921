"""The two weights of the `path` objective: the divergence from the encoder, and tempering."""

from __future__ import annotations

import copy

import pyro
import pytest
import torch
from pyro.distributions import HalfNormal, Normal
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from test_path_objective import DOUBLE, Known, loss, pushed, random_data, random_model, terms
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence

import bayesode as bo
from bayesode.errors import DataError, FitError
from bayesode.inference.encoder_penalty import readable
from bayesode.inference.encoders.seen import most_frames
from bayesode.inference.path_objective import path_objective
from bayesode.models.contracts import VectorField, without_plate

PENALTY, TEMPERING = "path.encoder", "path.tempering"
ENCODERS = {
    "linear": lambda: bo.LinearEncoder((2,), 2),
    "two frames": lambda: bo.StackedEncoder(
        bo.LinearEncoder((2,), 1), bo.MLPEncoder((2,), 1, num_frames=2)
    ),
    "whatever is visible": lambda: bo.GRUEncoder((2,), 2, hidden=3),
}


@pytest.fixture(autouse=True)
def empty_store():
    with pyro.get_param_store().scope():
        yield


def amortised(model: bo.DynamicalModel, encoder: nn.Module | None = None) -> bo.AmortizedGuide:
    torch.manual_seed(8)
    guide = bo.AmortizedGuide(model, encoder or bo.LinearEncoder((2,), 2)).double()
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return guide


def seen_at_first(kind: str) -> bo.Trajectories:
    """Random data whose first two frames any encoder can read."""
    data = random_data("masked" if kind == "minibatch" else kind)
    if kind == "own grids":  # one of its series is a single frame
        return data.rows([0, 1, 2])
    mask = data.mask.clone()
    mask[:, :2] = True
    mask[1, 3, 0] = False  # one entry of a frame
    kept = bo.Trajectories(data.times, data.values.nan_to_num(0.3), mask=mask)
    return kept.batch(torch.tensor([3, 1])) if kind == "minibatch" else kept


# ---- the same objective three times --------------------------------------------------------------
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("kind", ["plain", "masked", "own grids", "minibatch"])
def test_the_three_ways_agree_draw_by_draw_with_both_weights(kind: str, encoder: str):
    plain_model, data = random_model(), seen_at_first(kind)
    plain_guide = amortised(plain_model, ENCODERS[encoder]())
    pair = path_objective(plain_model, plain_guide, gamma=0.7, beta=0.2)
    ours, strict = terms(*pair, data), terms(plain_model, plain_guide, data)
    assert ours.kl[PENALTY].abs() > 0.1 and ours.kl[TEMPERING].abs() > 0.1
    assert ours.is_closed_form[TEMPERING] and not ours.is_closed_form[PENALTY]
    extra = sum(ours.kl[term] for term in ("path.objective", PENALTY, TEMPERING))
    torch.testing.assert_close(ours.elbo, strict.elbo - extra, rtol=1e-12, atol=0.0)
    found = [-ours.elbo, loss(TraceMeanField_ELBO, *pair, data)]
    torch.testing.assert_close(*found, rtol=1e-10, atol=0.0)
    more = loss(Trace_ELBO, *pair, data) - loss(Trace_ELBO, plain_model, plain_guide, data)
    torch.testing.assert_close(more, extra, rtol=1e-9, atol=1e-9)
    parameters = list(pair[1].parameters())
    gradients = [torch.autograd.grad(value, parameters, allow_unused=True) for value in found]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_weights_of_nothing_are_the_objective_without_them():
    data, plain = random_data("masked"), random_model()
    guide = amortised(plain)
    without = path_objective(plain, guide)
    weighted = path_objective(plain, guide, gamma=0.0, beta=1.0)
    ours, old = terms(*weighted, data), terms(*without, data)
    assert list(ours.kl) == list(old.kl) and PENALTY not in ours.kl and TEMPERING not in ours.kl
    assert torch.equal(ours.elbo, old.elbo)
    for way in (Trace_ELBO, TraceMeanField_ELBO):
        assert torch.equal(loss(way, *weighted, data), loss(way, *without, data))


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_the_penalty_is_proportional_to_gamma_and_leaves_the_other_terms(gamma: float):
    data, plain = random_data(), random_model()
    guide = amortised(plain)
    one, other = (terms(*path_objective(plain, guide, gamma=g), data).kl for g in (1.0, gamma))
    torch.testing.assert_close(other[PENALTY], gamma * one[PENALTY])
    assert all(torch.equal(one[term], other[term]) for term in one if term != PENALTY)


def test_weights_of_times_weigh_the_penalty_too():
    data, plain = random_data(), random_model()
    pair = path_objective(plain, amortised(plain), gamma=0.6)
    found = []
    for weights in ([0.0, 3.0, 0.0, 0.0, 0.0], [7.0, 0.0, 3.0, 3.0, 3.0], [1.0] * 5):
        torch.manual_seed(1)
        weight = torch.tensor(weights, dtype=DOUBLE).expand(4, 5)
        found.append(bo.elbo_terms(*pair, data, time_weights=weight).kl[PENALTY])
    torch.testing.assert_close(found[0] + found[1], 3 * found[2])


# ---- exact where exactness is known --------------------------------------------------------------
@pytest.mark.parametrize("kind", ["plain", "masked", "own grids"])
def test_the_penalty_is_the_divergence_of_two_normal_laws_for_linear_field_and_encoder(kind: str):
    data, plain = random_data(kind), random_model(Known())
    plain.solver = bo.FixedGridSolver("rk4", step=0.01)
    model, guide = path_objective(plain, amortised(plain), gamma=0.4)
    encoder, law = guide.encoder, guide.posteriors(data)["x0"].expand([data.num_series])
    spread = 2**0.5 * torch.diag_embed(law.base_dist.scale)  # exact for quadratic functions
    points = law.base_dist.loc.unsqueeze(-2) + torch.cat([spread, -spread], -2)
    values = {"x0": points.movedim(-2, 0).detach()}
    path = model.solve(Known().build({}), values, data).path
    found = guide.path_half.divergences(law, values, data, path)[PENALTY].mean(0)
    width = torch.diag(encoder.log_scale.exp().square())
    for series in range(4):
        exact, at_start = torch.zeros((), dtype=DOUBLE), data.start[series]
        first = MultivariateNormal(law.mean[series], torch.diag(law.variance[series]))
        for frame in range(int(data.num_times[series])):
            elapsed = data.grid[series, frame] - at_start
            if elapsed > 0 and data.mask[series, frame].all():
                mean = encoder.weight @ (data.values[series, frame] - encoder.shift)
                read = MultivariateNormal(mean, width)
                exact = exact + 0.4 * kl_divergence(pushed(first, elapsed), read)
        torch.testing.assert_close(found[series], exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_gradients_are_those_of_finite_differences(encoder: str):
    data, plain = seen_at_first("masked"), random_model()
    model, guide = path_objective(plain, amortised(plain, ENCODERS[encoder]()), gamma=0.7, beta=0.2)

    def extra() -> torch.Tensor:
        found = terms(model, guide, data).kl
        return found[PENALTY] + found[TEMPERING]

    parameters, step = list(guide.parameters()), 1e-6
    exact = torch.autograd.grad(extra(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, exact, strict=True):
        if gradient is None:  # the noise scale
            continue
        direction = torch.randn_like(parameter)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * step * direction)
                values.append(extra())
                parameter.sub_(sign * step * direction)
        slope = (values[0] - values[1]) / (2 * step)
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-6)


# ---- where an encoder can read -------------------------------------------------------------------
def test_an_encoder_reads_where_all_frames_of_its_window_are_wholly_visible():
    mask = torch.ones(2, 5, 2, dtype=torch.bool)
    mask[0, 2, 1] = False
    data = bo.Trajectories(torch.arange(5.0), torch.zeros(2, 5, 2), mask=mask, num_times=[5, 4])
    assert readable(data, 1).int().tolist() == [[1, 1, 0, 1, 1], [1, 1, 1, 1, 0]]
    assert readable(data, 2).int().tolist() == [[1, 0, 0, 1, 0], [1, 1, 1, 0, 0]]
    assert readable(data, 6).int().tolist() == [[0] * 5] * 2
    assert readable(data, None).int().tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]


def test_where_nothing_can_be_read_nothing_is_added():
    data, plain = random_data().until(0.5), random_model()  # two frames, one of them later
    encoder = ENCODERS["two frames"]()
    found = terms(*path_objective(plain, amortised(plain, encoder), gamma=1.0), data)
    assert found.kl[PENALTY] == 0 and found.elbo.isfinite()


def test_encoders_tell_how_many_frames_they_read():
    counts = {name: make().num_frames for name, make in ENCODERS.items()}
    assert counts == {"linear": 1, "two frames": 2, "whatever is visible": None}
    both = bo.SumEncoder(bo.LinearEncoder((2,), 2), bo.MLPEncoder((2,), 2, num_frames=3))
    assert both.num_frames == 3
    assert most_frames([both, bo.GRUEncoder((2,), 2)]) is None


# ---- tempering -----------------------------------------------------------------------------------
class Scaled(nn.Module):
    """A field with a scale and a weight whose prior it is: one KL has no closed form."""

    def priors(self):
        return {
            "scale": HalfNormal(torch.ones(1, dtype=DOUBLE)).to_event(1),
            "weight": lambda v: Normal(torch.zeros_like(v["scale"]), v["scale"]).to_event(1),
        }

    def build(self, values, inputs=None):
        weight = without_plate(values["weight"]).unsqueeze(-2)
        return VectorField(lambda t, x: weight * x.flip(-1), (weight,))


def test_tempering_weighs_hierarchies_and_terms_without_closed_form_too():
    data, plain = random_data("minibatch"), random_model(Scaled())
    guide = amortised(plain)
    pair = path_objective(plain, guide, beta=0.3)
    ours = terms(*pair, data)
    of_field = ours.kl["field.scale"] + ours.kl["field.weight"]
    torch.testing.assert_close(ours.kl[TEMPERING], -0.7 * of_field)
    assert not ours.is_closed_form[TEMPERING] and TEMPERING not in ours.kl_per_series
    expected = loss(TraceMeanField_ELBO, *pair, data)
    torch.testing.assert_close(-ours.elbo, expected, rtol=1e-10, atol=0.0)
    without = path_objective(plain, guide)
    extra = loss(Trace_ELBO, *pair, data) - loss(Trace_ELBO, *without, data)
    torch.testing.assert_close(extra, ours.kl[TEMPERING], rtol=1e-9, atol=1e-9)


def test_a_mean_field_guide_can_be_tempered():
    data, plain = random_data(), random_model()
    guide = bo.MeanFieldGuide(plain, data)
    ours = terms(*path_objective(plain, guide, beta=0.0), data)
    assert torch.equal(ours.kl[TEMPERING], -ours.kl["field.weights"])


# ---- fits ----------------------------------------------------------------------------------------
def test_a_fit_with_gamma_makes_encoder_and_flow_agree():
    data, plain = random_data(), random_model()
    start = amortised(plain)
    options = {"num_steps": 80, "warm_start": False, "progress": False, "batch_size": 2}
    missed = []
    for gamma in (1e-3, 3.0):
        pair = path_objective(plain, start, gamma=gamma)
        posterior = bo.fit_svi(*pair, data, seed=0, **options)
        half = posterior.guide.path_half
        assert half.model is posterior.model and half.penalty.encoder is posterior.guide.encoder
        missed.append(posterior.elbo_terms(num_particles=50).kl[PENALTY] / gamma)
        new = posterior.condition(data.rows([2]))
        assert new.guide.path_half.penalty.encoder is new.guide.encoder
    assert missed[1] < missed[0] - 5


# ---- what is refused -----------------------------------------------------------------------------
@pytest.mark.parametrize("way", [Trace_ELBO, TraceMeanField_ELBO])
def test_one_half_alone_raises_with_weights_too(way: type):
    data, plain = random_data(), random_model()
    plain_guide = amortised(plain)
    model, guide = path_objective(plain, plain_guide, gamma=1.0, beta=0.5)
    with pytest.raises(FitError, match="the guide has its half"):
        loss(way, plain, guide, data)
    with pytest.raises(FitError, match="the model has its half"):
        loss(way, model, plain_guide, data)
    with pytest.raises(FitError, match="the guide has its half"):
        bo.elbo_terms(plain, guide, data)
    assert loss(way, *copy.deepcopy((model, guide)), data).isfinite()


def test_gamma_without_an_encoder_is_one_clear_error():
    model = random_model()
    guide = bo.MeanFieldGuide(model, random_data())
    with pytest.raises(DataError, match=r"MeanFieldGuide has none: take AmortizedGuide"):
        path_objective(model, guide, gamma=0.1)

    class Silent(nn.Module):
        def forward(self, trajectories):
            return Normal(torch.zeros(trajectories.num_series, 2), 1.0).to_event(1)

    for encoder in (Silent(), bo.StackedEncoder(bo.LinearEncoder((2,), 1), Silent())):
        guide = bo.AmortizedGuide(model, encoder)
        with pytest.raises(DataError, match="Silent does not tell how many first frames"):
            path_objective(model, guide, gamma=0.1)


@pytest.mark.parametrize("wrong", [-0.1, float("nan"), float("inf"), "much"])
def test_weights_that_are_no_numbers_from_zero_on_are_refused(wrong):
    model = random_model()
    guide = amortised(model)
    for name in ("gamma", "beta"):
        with pytest.raises(DataError, match=f"{name} must be a number from 0 on"):
            path_objective(model, guide, **{name: wrong})
