"""Likelihoods with a decoder: densities, masks, traps, errors, and the ELBO around them."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

import bayesode as bo
from bayesode.distributions import ContinuousBernoulli, SoftBernoulli
from bayesode.inference.checks import check_data
from bayesode.inference.predictive import squared_distance

DOUBLE, DIM, SHAPE = torch.float64, 2, (1, 3, 4)


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(DOUBLE)
    torch.manual_seed(0)
    with pyro.get_param_store().scope():
        yield
    torch.set_default_dtype(torch.float32)


def network(shape=SHAPE, dim=DIM) -> nn.Module:
    return bo.MLPDecoder(shape, dim, hidden=[5])


LIKELIHOODS = {
    "bernoulli": lambda decoder: bo.BernoulliLikelihood(decoder),
    "continuous bernoulli": lambda decoder: bo.ContinuousBernoulliLikelihood(decoder),
    "gaussian": lambda decoder: bo.GaussianLikelihood(decoder=decoder),
    "gaussian per channel": lambda decoder: bo.GaussianLikelihood(decoder=decoder, noise="channel"),
    "gaussian per entry": lambda decoder: bo.GaussianLikelihood(decoder=decoder, noise="entry"),
}
DECODERS = {
    "deterministic": network,
    "bayesian": lambda: bo.BayesianModule(network(), prior_scale=0.7),
    "last layer": lambda: bo.BayesianModule(network(), layers=["layers.2"]),
}
each_kind = pytest.mark.parametrize("kind", LIKELIHOODS)
each_decoder = pytest.mark.parametrize("decoder", DECODERS)


def drawn(part: nn.Module, *draws: int) -> dict[str, Tensor]:
    return {s: law.sample(draws + (1,) * len(draws)) for s, law in part.priors().items()}


# ---- the laws -----------------------------------------------------------------------------------
LOGITS = [-1000.0, -30.0, -16.5, -4.0, -0.11, -0.09, -1e-3, 0.0, 1e-5, 0.05, 0.2, 3.0, 17.0, 40.0]


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("logit", LOGITS)
def test_the_continuous_bernoulli_density_integrates_to_one(logit: float, dtype: torch.dtype):
    # nodes where the mass is: the distance from the likely end is x = s / (1 + |logit|)
    nodes, weights = map(torch.tensor, np.polynomial.legendre.leggauss(200))
    top = min(1.0, 40 / (1 + abs(logit)))
    distance = top * (nodes + 1) / 2
    x = distance if logit < 0 else 1 - distance
    law = ContinuousBernoulli(logits=torch.tensor(logit, dtype=dtype))
    density = law.log_prob(x.to(dtype)).double().exp()
    # float32 gives log densities of 1000 x to 6e-5 nats
    room = 1e-10 if dtype == DOUBLE else 1e-5 * (1 + abs(logit) / 10)
    assert abs((weights * density).sum().item() * top / 2 - 1) < room
    if logit == -30.0 and dtype == torch.float32:  # what torch's own law makes of it
        theirs = torch.distributions.ContinuousBernoulli(logits=torch.tensor(logit, dtype=dtype))
        total = (weights * theirs.log_prob(x.float()).double().exp()).sum() * top / 2
        assert abs(total - 1) > 0.3


def test_the_continuous_bernoulli_is_torchs_where_torchs_is_right():
    logits = torch.tensor([-12.0, -3.0, -0.5, 0.3, 1.0, 4.0, 12.0], dtype=DOUBLE)
    ours = ContinuousBernoulli(logits=logits)
    theirs = torch.distributions.ContinuousBernoulli(logits=logits)
    x = torch.linspace(0, 1, 21).unsqueeze(-1)
    for way in ("log_prob", "cdf"):
        torch.testing.assert_close(
            getattr(ours, way)(x), getattr(theirs, way)(x), rtol=1e-9, atol=1e-10
        )
    levels = torch.linspace(0.001, 0.999, 21).unsqueeze(-1)
    torch.testing.assert_close(ours.icdf(levels), theirs.icdf(levels), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(ours.mean, theirs.mean, rtol=1e-9, atol=0)
    torch.testing.assert_close(ours.variance, theirs.variance, rtol=1e-7, atol=0)
    assert ours.expand((2, 7)).log_prob(torch.tensor(0.3)).shape == (2, 7)


@pytest.mark.parametrize("logit", LOGITS)
def test_mean_variance_and_quantiles_of_the_continuous_bernoulli_belong_to_its_density(logit):
    nodes, weights = map(torch.tensor, np.polynomial.legendre.leggauss(200))
    top = min(1.0, 40 / (1 + abs(logit)))
    distance = top * (nodes + 1) / 2
    x = distance if logit < 0 else 1 - distance
    law = ContinuousBernoulli(logits=torch.tensor(logit))
    mass = weights * law.log_prob(x).exp() * top / 2
    mean = (mass * x).sum()
    torch.testing.assert_close(law.mean, mean, rtol=1e-9, atol=0)
    torch.testing.assert_close(law.variance, (mass * (x - mean) ** 2).sum(), rtol=1e-8, atol=0)
    levels = torch.tensor([0.0, 1e-3, 0.3, 0.9, 1.0])
    found = law.icdf(levels)
    assert ((found >= 0) & (found <= 1)).all()
    torch.testing.assert_close(law.cdf(found), levels, rtol=1e-6, atol=1e-9)


def test_gradients_by_the_logit_are_the_mean_of_a_natural_exponential_family():
    logits = torch.tensor(LOGITS).requires_grad_()
    (gradient,) = torch.autograd.grad(
        ContinuousBernoulli(logits=logits).log_prob(torch.tensor(0.3)).sum(), logits
    )
    expected = 0.3 - ContinuousBernoulli(logits=logits.detach()).mean
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-11)


def test_grey_pixels_are_cross_entropy_under_the_bernoulli_law_and_no_density():
    logits, grey = torch.tensor([-2.0, 0.0, 1.5]), torch.tensor([0.2, 0.5, 1.0])
    with pytest.raises(ValueError, match="support"):
        torch.distributions.Bernoulli(logits=logits).log_prob(grey)
    p = torch.sigmoid(logits)
    expected = grey * p.log() + (1 - grey) * torch.log1p(-p)
    law = SoftBernoulli(logits=logits)
    torch.testing.assert_close(law.log_prob(grey), expected, rtol=1e-12, atol=0)
    x = torch.linspace(0, 1, 2001).unsqueeze(-1)
    total = torch.trapezoid(law.log_prob(x).exp(), x, dim=0)
    assert (total < 0.5 + 1e-6).all()
    assert set(law.sample((50,)).unique().tolist()) == {0.0, 1.0}
    assert law.expand((2, 3)).log_prob(grey).shape == (2, 3)


# ---- the likelihoods ----------------------------------------------------------------------------
def by_hand(kind: str, decoded: Tensor, y: Tensor, scale: Tensor | None) -> Tensor:
    if scale is not None:
        z = (y - decoded) / scale
        return -0.5 * z**2 - scale.log() - 0.5 * math.log(2 * math.pi)
    kernel = y * decoded - torch.nn.functional.softplus(decoded)
    ratio = decoded / torch.tanh(decoded / 2)
    return kernel + (ratio.log() if kind.startswith("continuous") else 0.0)


@each_kind
@each_decoder
@pytest.mark.parametrize("shape", [SHAPE, (2, 5), (6,)])
def test_the_density_is_the_formula_around_what_is_decoded(kind, decoder, shape):
    net = network(shape)
    decoders = {
        "deterministic": net,
        "bayesian": bo.BayesianModule(net),
        "last layer": bo.BayesianModule(net, layers=["layers.2"]),
    }
    part = LIKELIHOODS[kind](decoders[decoder])
    assert part.event_shape == shape
    values, path = drawn(part, 3), torch.randn(3, 4, 5, DIM)
    observe, y = part.build(values), torch.rand(4, 5, *shape)
    law = observe(path)
    assert (law.batch_shape, law.event_shape) == ((3, 4), (5, *shape))
    own = {s.removeprefix("decoder."): v for s, v in values.items() if s.startswith("decoder.")}
    decoded = part.decoder.build(own)(path)
    scale = values.get("noise_scale")
    scale = None if scale is None else scale.unsqueeze(1)  # (draws, series, time, *event)
    expected = by_hand(kind, decoded, y, scale)
    torch.testing.assert_close(law.base_dist.log_prob(y), expected, rtol=1e-10, atol=1e-12)
    total = expected.flatten(2).sum(-1)
    torch.testing.assert_close(law.log_prob(y), total, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(observe.signal(path), law.mean, rtol=0, atol=0)
    if scale is not None:
        torch.testing.assert_close(observe.signal(path), decoded, rtol=0, atol=0)
    if kind == "bernoulli":
        torch.testing.assert_close(observe.signal(path), torch.sigmoid(decoded))


def test_a_black_pixel_has_its_density_in_float32():
    decoder = bo.LinearDecoder((3,), DIM)
    decoder.set_linear(torch.zeros(3, DIM), torch.full((3,), -30.0), 1.0)
    observe = bo.ContinuousBernoulliLikelihood(decoder).float().build({})
    law = observe(torch.zeros(1, 1, DIM, dtype=torch.float32))
    density = law.base_dist.log_prob(torch.zeros(1, 1, 3, dtype=torch.float32))
    torch.testing.assert_close(density, torch.full_like(density, math.log(30.0)))


def test_noise_scales_are_one_for_all_or_one_per_channel_or_entry():
    shapes = {
        ("shared", (3, 8, 8)): (1, 1, 1),
        ("channel", (3, 8, 8)): (3, 1, 1),
        ("entry", (3, 8, 8)): (3, 8, 8),
        ("shared", (6,)): (1,),
        ("channel", (6,)): (6,),
        ("entry", (6,)): (6,),
    }
    for (noise, shape), expected in shapes.items():
        part = bo.GaussianLikelihood(decoder=network(shape), noise=noise)
        law = part.priors()["noise_scale"]
        assert law.event_shape == expected
        assert law.base_dist.icdf(torch.full(expected, 0.5)).flatten()[0] == pytest.approx(0.1)
        labels = part.labels.get("noise_scale")
        assert labels is None or len(labels) == expected[0]
    with pytest.raises(bo.DataError, match="noise must be one of"):
        bo.GaussianLikelihood(decoder=network(), noise="pixel")
    with pytest.raises(bo.DataError, match="prior_median must be a positive number, not 0"):
        bo.GaussianLikelihood(decoder=network(), prior_median=0.0)


def test_a_gaussian_of_the_state_is_what_it_was_and_no_decoder_goes_elsewhere():
    assert type(bo.GaussianLikelihood(2)) is bo.GaussianLikelihood
    assert hasattr(bo.GaussianLikelihood(2), "fisher")
    decoded = bo.GaussianLikelihood(decoder=network())
    for name in ("fisher", "working_response", "starting_values"):
        assert not hasattr(decoded, name)
    with pytest.raises(TypeError):
        bo.StudentTLikelihood(2, decoder=network())


def test_sites_labels_and_prior_scales_of_the_decoder_are_nested():
    part = bo.GaussianLikelihood(decoder=bo.BayesianModule(network((6,))))
    assert list(part.priors()) == ["noise_scale", "decoder.weights"]
    assert part.labels["noise_scale"] == ["all"]
    assert part.labels["decoder.weights"][0] == "layers.0.weight[0,0]"
    tuning = part.tunable()["decoder.weights"]
    assert part.get_buffer(tuning.buffer) is part.decoder.prior_sd
    assert part.config["decoder"]["type"] == "BayesianModule"
    plain = bo.BernoulliLikelihood(network())
    assert plain.priors() == plain.tunable() == plain.labels == {}


def test_units_of_the_time_are_accepted_and_leave_values_alone():
    part = bo.BernoulliLikelihood(network())
    model = bo.DynamicalModel(
        initial=bo.NormalInitial(DIM),
        field=bo.BayesianMLP(DIM, [3], DIM),
        likelihood=part,
        solver=bo.FixedGridSolver(step=0.5),
        units=bo.Units(time_origin=3.0, time_unit=4.0),
    )
    path = torch.randn(4, 5, DIM)
    assert torch.equal(model.likelihood.build({}).signal(path), part.build({}).signal(path))


def test_a_decoder_sees_the_leading_components_of_the_state():
    part, path = bo.BernoulliLikelihood(network()), torch.randn(4, 5, DIM + 3)
    observe = part.build({})
    assert torch.equal(observe.signal(path), observe.signal(path[..., :DIM]))
    with pytest.raises(bo.ShapeError, match=r"takes a state of 2 components, the model's has 1"):
        observe(path[..., :1])


# ---- masks --------------------------------------------------------------------------------------
@each_kind
@each_decoder
@pytest.mark.parametrize("hidden", [math.nan, math.inf, -3.0, 255.0])
def test_a_hidden_pixel_counts_nothing_whatever_it_is(kind, decoder, hidden):
    part = LIKELIHOODS[kind](DECODERS[decoder]())
    values = {s: v.requires_grad_() for s, v in drawn(part, 3).items()}
    path, y = torch.randn(3, 4, 5, DIM, requires_grad=True), torch.rand(4, 5, *SHAPE)
    mask = torch.rand(4, 5, *SHAPE) > 0.4
    mask[0, 2] = False  # a whole frame
    leaves = [path, *values.values(), *part.parameters()]
    found = []
    for y_seen in (y, torch.where(mask, y, hidden)):
        law = part.build(values)(path, mask)
        pointwise = law.base_dist.log_prob(y_seen)
        assert ((pointwise == 0) | mask).all()
        total = law.log_prob(y_seen).sum()
        found.append([total, *torch.autograd.grad(total, leaves, allow_unused=True)])
    for a, b in zip(*found, strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)
    assert (found[0][1][:, 0, 2] == 0).all()


# ---- decoders that are no functions -------------------------------------------------------------
class Noisy(nn.Module):
    dim = DIM

    def forward(self, rows):
        return nn.functional.dropout(rows, 0.1).unsqueeze(1)


class Normalised(nn.Module):
    dim = DIM

    def forward(self, rows):
        return (rows - rows.mean(0)) / (rows.std(0) + 1)


@pytest.mark.parametrize("decoder", [Noisy, Normalised])
@each_kind
def test_a_decoder_that_is_another_function_at_each_call_or_batch_is_refused(kind, decoder):
    with pytest.raises(bo.DataError, match="other outputs at a second call or beside other states"):
        LIKELIHOODS[kind](decoder())


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(12), nn.Dropout(0.5)])
def test_no_layer_may_differ_between_training_and_prediction(layer):
    net = nn.Sequential(nn.Linear(DIM, 12), layer)
    with pytest.raises(bo.DataError, match=type(layer).__name__):
        bo.BernoulliLikelihood(net)


@each_kind
def test_a_frame_does_not_depend_on_its_batch_mates_or_on_the_mode(kind):
    part = LIKELIHOODS[kind](bo.ConvDecoder(SHAPE, DIM))
    observe, path = part.build(drawn(part)), torch.randn(4, 5, DIM)
    together = observe.signal(path)
    alone = torch.cat([observe.signal(path[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-14)
    part.eval()
    assert torch.equal(observe.signal(path), together)


def test_building_a_likelihood_leaves_the_random_state_alone():
    before = torch.random.get_rng_state()
    decoder = bo.BayesianModule(network())
    torch.random.set_rng_state(before)
    bo.BernoulliLikelihood(decoder)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_size_of_the_state_is_found_or_asked_for():
    assert bo.BernoulliLikelihood(nn.Sequential(nn.Linear(7, 3), nn.Linear(3, 4))).dim == 7
    assert bo.BernoulliLikelihood(bo.BayesianModule(nn.Linear(7, 3))).dim == 7
    with pytest.raises(bo.DataError, match="give it an attribute dim"):
        bo.BernoulliLikelihood(nn.Flatten())
    with pytest.raises(bo.ShapeError, match="a single number per state"):
        bo.BernoulliLikelihood(nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)))


# ---- data at the border -------------------------------------------------------------------------
def model_of(likelihood: nn.Module, dim: int = DIM) -> bo.DynamicalModel:
    return bo.DynamicalModel(
        initial=bo.NormalInitial(dim),
        field=bo.BayesianMLP(dim, [3], dim, prior_scale=1.0),
        likelihood=likelihood,
        solver=bo.FixedGridSolver("rk4", step=0.5),
    ).double()


def frames(shape=SHAPE, series: int = 4) -> bo.Trajectories:
    torch.manual_seed(7)
    values = torch.rand(series, 5, *shape)
    mask = torch.rand(series, 5) > 0.2
    mask[:, 0] = True
    return bo.Trajectories(torch.arange(5.0), values, mask=mask)


@each_kind
@pytest.mark.parametrize("value", [-0.5, 1.01, 255.0])
def test_pixels_outside_zero_and_one_are_one_clear_error(kind, value, monkeypatch):
    monkeypatch.setattr("bayesode.inference.checks.MAX_AT_ONCE", 100)  # by two series at a time
    data = frames()
    check_data(model_of(LIKELIHOODS[kind](network())), data)
    hidden = data.values.clone()
    hidden[~data.mask] = value
    check_data(
        model_of(LIKELIHOODS[kind](network())), bo.Trajectories(data.times, hidden, mask=data.mask)
    )
    values = data.values.clone()
    values[3, 0, 0, 1, 2] = value
    wrong = bo.Trajectories(data.times, values, mask=data.mask)
    model = model_of(LIKELIHOODS[kind](network()))
    if kind.startswith("gaussian"):
        return check_data(model, wrong)
    with pytest.raises(
        bo.DataError, match=rf"the value {value:g} of series 3 is impossible .*rescale"
    ):
        check_data(model, wrong)


@each_kind
@pytest.mark.parametrize("shape", [(3, 3, 4), (1, 4, 4), (12,), (1, 1, 4)])
def test_frames_of_another_shape_are_one_clear_error(kind, shape):
    model = model_of(LIKELIHOODS[kind](network()))
    with pytest.raises(bo.ShapeError, match=r"\(5, 1, 3, 4\) for .*, the data have .*event_shape"):
        check_data(model, frames(shape))


def test_the_border_takes_float32_frames_and_models_of_another_dtype():
    model = model_of(bo.BernoulliLikelihood(bo.BayesianModule(network(), layers=["layers.2"])))
    data = frames()
    check_data(model, data.to(dtype=torch.float32))
    check_data(model.float(), data)


@each_kind
def test_engines_of_data_space_name_fit_svi(kind):
    model, data = model_of(LIKELIHOODS[kind](network())), frames()
    name = type(model.likelihood).__name__
    with pytest.raises(bo.FitError, match=rf"{name} .*fit_svi"):
        bo.fit_laplace(model, data, progress=False)
    guide = bo.MeanFieldGuide(model, data)
    with pytest.raises(bo.FitError, match=r"fit_svi\(.*warm_start=False\)"):
        bo.fit_svi(model, guide, data, progress=False)
    with pytest.raises(bo.ShapeError, match="fit_svi"):
        bo.plan(data)
    with pytest.raises(bo.DataError, match="likelihood must be one of"):
        bo.plan(data, "bernoulli")


# ---- the ELBO -----------------------------------------------------------------------------------
def scattered_guide(model: bo.DynamicalModel, data: bo.Trajectories) -> bo.MeanFieldGuide:
    guide = bo.MeanFieldGuide(model, data)
    torch.manual_seed(8)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(torch.randn_like(parameter))
    return guide


def pyro_elbo(way: type, num_particles: int) -> Trace_ELBO:
    return way(num_particles=num_particles, vectorize_particles=True, max_plate_nesting=1)


@each_kind
@each_decoder
@pytest.mark.parametrize("num_particles", [1, 3])
def test_the_elbo_is_pyros_draw_by_draw_and_so_are_all_gradients(kind, decoder, num_particles):
    data, model = frames(), model_of(LIKELIHOODS[kind](DECODERS[decoder]()))
    guide = scattered_guide(model, data)
    batch = data.batch(torch.tensor([3, 1]))
    torch.manual_seed(1)
    ours = -bo.elbo_terms(model, guide, batch, num_particles=num_particles).elbo
    torch.manual_seed(1)
    elbo = pyro_elbo(TraceMeanField_ELBO, num_particles)
    theirs = elbo.differentiable_loss(model, guide, batch)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=0)
    # pyro.module registers what is deterministic, and Pyro's optimisers find it there
    names = [f"likelihood.{name}" for name, _ in model.likelihood.named_parameters()]
    stored = [name.replace("$$$", ".") for name in pyro.get_param_store()]
    assert set(names) <= set(stored)
    assert bool(names) == (decoder != "bayesian")
    parameters = [*guide.parameters(), *model.parameters()]
    pairs = zip(
        torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), strict=True
    )
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * b.abs().max().item())
        assert (a != 0).any()


@pytest.mark.parametrize("kind", ["bernoulli", "gaussian"])
@each_decoder
def test_the_elbo_is_that_of_pyros_trace_on_average(kind, decoder):
    data, model = frames(), model_of(LIKELIHOODS[kind](DECODERS[decoder]()))
    guide = bo.MeanFieldGuide(model, data)
    with torch.no_grad():
        for name, parameter in guide.named_parameters():
            parameter.fill_(math.log(0.1) if "log_scale" in name else 0.0)
        torch.manual_seed(2)
        ours = [bo.elbo_terms(model, guide, data, num_particles=20).elbo for _ in range(20)]
    theirs = [-pyro_elbo(Trace_ELBO, 20).loss(model, guide, data) for _ in range(20)]
    a, b = torch.stack(ours), torch.tensor(theirs)
    # 5 standard errors of the difference of two means: a false alarm in 2e6 seeds
    assert (a.mean() - b.mean()).abs() < 5 * ((a.var() + b.var()) / 20).sqrt()
    assert b.std() < 0.1 * b.mean().abs()


# ---- predictions --------------------------------------------------------------------------------
@each_kind
@each_decoder
def test_the_solver_error_is_told_in_units_of_the_noise(kind, decoder):
    model, data = model_of(LIKELIHOODS[kind](DECODERS[decoder]())), frames()
    values = {s: v.expand(3, 1, *v.shape) for s, v in model.prototype().items()}
    path = torch.randn(3, 4, 5, DIM)
    distance = squared_distance(model, values, data, path + 1e-4, path)
    observe = model.likelihood.build(
        {s.removeprefix("likelihood."): v for s, v in values.items() if s.startswith("likelihood.")}
    )
    own, signal = observe.signal(path + 1e-4), observe.signal(path)
    torch.testing.assert_close(distance, (own - signal) ** 2 / observe(path).variance)
    assert torch.equal(
        squared_distance(model, values, data, path, path), torch.zeros_like(distance)
    )


def test_a_certain_pixel_makes_no_solver_error():
    model = model_of(bo.BernoulliLikelihood(bo.LinearDecoder((3,), DIM)))
    with torch.no_grad():
        model.likelihood.decoder.module.weight.fill_(1.0)
        model.likelihood.decoder.module.bias.copy_(torch.tensor([0.0, 40.0, 1000.0]))
    path = torch.zeros(1, 4, 5, DIM)
    distance = squared_distance(model, {}, frames(), path + 1e-8, path)
    assert distance.isfinite().all()
    assert distance[..., 1:].max() < 1e-12


@each_decoder
def test_a_fit_predicts_frames_in_float32_and_tells_its_solver_error(decoder):
    data = frames().to(dtype=torch.float32)
    model = model_of(bo.BernoulliLikelihood(DECODERS[decoder]())).float()
    guide = bo.MeanFieldGuide(model, data)
    posterior = bo.fit_svi(
        model, guide, data, num_steps=3, warm_start=False, seed=0, progress=False
    )
    ensemble = posterior.predict(data, num_draws=4, seed=0)
    assert ensemble.values.shape == (4, 4, 5, *SHAPE)
    assert ensemble.values.dtype == ensemble.signal.dtype == torch.float32
    assert set(ensemble.values.unique().tolist()) <= {0.0, 1.0}
    assert 0 <= ensemble.solver_error < 0.1
    assert ensemble.log_prob(data).shape == (4, 4, 5, *SHAPE)
