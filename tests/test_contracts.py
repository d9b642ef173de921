"""Every random part against the contract, and `draw`, `nest`, `unnest` on parts inside parts."""

import copy
import json
from types import FunctionType

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from bayesode.errors import ShapeError
from bayesode.models import NormalInitial
from bayesode.models.contracts import (
    SDE,
    Diffusion,
    Observe,
    Solver,
    VectorField,
    draw,
    named_sites,
    nest,
    resolve,
    unnest,
    without_plate,
)
from bayesode.models.fields import (
    AdditiveNoise,
    BayesianMLP,
    LinearField,
    Paced,
    PhysicsField,
    SDEField,
    SecondOrder,
    StateNoise,
    Sum,
    WithConstants,
)
from bayesode.models.frames import ConvDecoder, LinearDecoder, Logits, MLPDecoder, SumDecoder
from bayesode.models.likelihoods import (
    BernoulliLikelihood,
    ContinuousBernoulliLikelihood,
    GaussianLikelihood,
    LogNormalLikelihood,
    StudentTLikelihood,
)
from bayesode.models.modules import BayesianModule
from bayesode.models.solvers import (
    FixedGridSolver,
    MatrixExponentialSolver,
    ODESolver,
    OnFrames,
    SDESolver,
)

SERIES, TIMES, STATE = 4, 5, 2


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


class Hierarchical(nn.Module):
    """A field whose weights have a drawn scale."""

    def __init__(self, dim, dim_out=None):
        super().__init__()
        self.config = {"dim": dim, "dim_out": dim_out}
        self.net = BayesianMLP(dim, [3], dim_out or dim)
        self.register_buffer("unit", torch.ones(()))

    def priors(self):
        zeros = torch.zeros_like(self.net.prior_sd)
        return {
            "scale": dist.HalfNormal(self.unit),
            "weights": lambda v: dist.Normal(zeros, v["scale"].unsqueeze(-1)).to_event(1),
        }

    def build(self, values, inputs=None):
        return self.net.build({"weights": values["weights"]})


def decay(t, x, rate, gain):
    return gain * torch.sin(t).unsqueeze(-1) - rate.unsqueeze(-1) * x


def physics():
    return PhysicsField(
        decay,
        {
            "rate": dist.LogNormal(0.0, 0.5),
            "gain": dist.Normal(torch.zeros(STATE), torch.ones(STATE)).to_event(1),
        },
    )


def seeded(network, *arguments, **settings):
    """The same network at each call: its own weights are drawn."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return network(*arguments, **settings)


def mlp():
    return seeded(MLPDecoder, (STATE,), STATE, hidden=[3])


def residual():
    return seeded(
        lambda: Logits(
            SumDecoder(linear=LinearDecoder((STATE,), STATE), net=MLPDecoder((STATE,), STATE, [3]))
        )
    )


PARTS = {
    "mlp": lambda: BayesianMLP(STATE, [3], STATE),
    "driven linear mlp": lambda: BayesianMLP(
        STATE, [3, 4], STATE, activation="silu", linear=True, time=True, prior_scale=0.7
    ),
    "affine": lambda: BayesianMLP(STATE, [], STATE),
    "hierarchical": lambda: Hierarchical(STATE),
    "hierarchical in a sum in a sum": lambda: Sum(
        first=BayesianMLP(STATE, [2], STATE),
        second=Sum(inner=Hierarchical(STATE), other=BayesianMLP(STATE, [], STATE)),
    ),
    "linear": lambda: LinearField(STATE, prior_scale=0.5),
    "linear and network of parts": lambda: Sum(
        linear=LinearField(STATE), network=BayesianMLP(STATE, [2], STATE)
    ),
    "second order of parts": lambda: SecondOrder(BayesianMLP(STATE, [3], STATE // 2)),
    "second order of hierarchical parts in a sum": lambda: Sum(
        only=SecondOrder(
            Sum(first=Hierarchical(STATE, STATE // 2), second=LinearField(1, dim_in=STATE))
        )
    ),
    "acceleration": lambda: LinearField(1, dim_in=STATE, prior_scale=0.5),
    "paced of parts": lambda: WithConstants(Paced(BayesianMLP(1, [3], 1)), 1),
    "with constants of parts": lambda: WithConstants(BayesianMLP(STATE, [3], 1), 1),
    "physics": physics,
    "physics and network": lambda: Sum(physics=physics(), network=BayesianMLP(STATE, [2], STATE)),
    "additive noise": lambda: AdditiveNoise(STATE, prior_median=0.4),
    "state noise": lambda: StateNoise(STATE, [3], floor=0.2),
    "sde of parts": lambda: SDEField(BayesianMLP(STATE, [3], STATE), AdditiveNoise(STATE)),
    "sde of hierarchical parts": lambda: SDEField(
        Sum(only=Hierarchical(STATE)),
        StateNoise(STATE, [2], prior_median=0.5),
        interpretation="stratonovich",
    ),
    "initial": lambda: NormalInitial(STATE),
    "given initial": lambda: NormalInitial(STATE, location=[1.0, 2.0], scale=[0.5, 0.1]),
    "initial with constants of parts": lambda: WithConstants.initial(
        NormalInitial(1), NormalInitial(1, scale=[0.3])
    ),
    "gaussian": lambda: GaussianLikelihood(STATE),
    "shared gaussian": lambda: GaussianLikelihood(STATE, shared=True, prior_median=0.3),
    "student t": lambda: StudentTLikelihood(STATE, freedom=5.0),
    "lognormal": lambda: LogNormalLikelihood(STATE, prior_log_scale=0.5),
    "bayesian module": lambda: BayesianModule(mlp()),
    "bayesian last layer module": lambda: BayesianModule(mlp(), layers=["layers.2"]),
    "bayesian convolutional module": lambda: BayesianModule(
        seeded(ConvDecoder, (2, 5, 6), STATE, channels=[2, 3])
    ),
    "bernoulli decoder": lambda: BernoulliLikelihood(mlp()),
    "bernoulli bayesian decoder": lambda: BernoulliLikelihood(BayesianModule(residual())),
    "continuous bernoulli decoder": lambda: ContinuousBernoulliLikelihood(
        BayesianModule(residual(), layers=["decoder.parts.net"])
    ),
    "gaussian decoder": lambda: GaussianLikelihood(decoder=mlp(), noise="entry"),
    "gaussian bayesian decoder": lambda: GaussianLikelihood(
        decoder=BayesianModule(mlp(), prior_scale=0.5), prior_median=0.3
    ),
}
each_part = pytest.mark.parametrize("part", PARTS)
CODE = ("hierarchical", "physics", "of parts", "module", "decoder")  # no plain numbers rebuild them
OWN = [name for name in PARTS if not any(word in name for word in CODE)]


def sample(part, num_particles):
    """One draw of a part: without particles (None), or as Pyro vectorises them."""
    if num_particles is None:
        return draw("part", part.priors())
    with pyro.plate("particles", num_particles, dim=-2):
        return draw("part", part.priors())


def run(part, values, states):
    """Something that depends on every value: (*draws, series, ...)."""
    built = part.build(values)
    if isinstance(built, VectorField):
        return built(torch.tensor(0.3, dtype=states.dtype), states[..., 0, :])
    if isinstance(built, Diffusion):  # a noise scale may be broadcast over the series
        return states[..., 0, :] * built(torch.tensor(0.3, dtype=states.dtype), states[..., 0, :])
    if isinstance(built, SDE):
        t, x = torch.tensor(0.3, dtype=states.dtype), states[..., 0, :]
        return built.drift(t, x) + built.diffusion(t, x) * x
    if isinstance(built, Observe):
        return built(states).log_prob(0.1 + 0.5 * states.detach())
    if isinstance(built, FunctionType):  # a decoder
        return built(states)
    return built.expand(states.shape[:-2]).log_prob(states[..., 0, :])


def states(*draws, dtype=None):
    return 0.5 + torch.rand(*draws, SERIES, TIMES, STATE, dtype=dtype)


@each_part
@pytest.mark.parametrize("num_particles", [None, 1, 3])
def test_declared_sites_are_drawn_once_each_in_order(part, num_particles):
    part = PARTS[part]()
    trace = poutine.trace(lambda: sample(part, num_particles)).get_trace()
    drawn = [name for name, node in trace.nodes.items() if name.startswith("part.")]
    assert drawn == [f"part.{site}" for site in part.priors()]
    values, lead = {}, [] if num_particles is None else [num_particles, 1]
    for site, prior in part.priors().items():
        law = resolve(prior, values)
        values[site] = trace.nodes[f"part.{site}"]["value"]
        assert values[site].shape == (*lead, *law.event_shape)
        expected = law.log_prob(values[site])
        trace.compute_log_prob()
        assert torch.equal(trace.nodes[f"part.{site}"]["log_prob"], expected)


@each_part
def test_all_draws_at_once_are_the_draws_one_by_one(part):
    part, state = PARTS[part](), states(3)
    values = sample(part, 3)
    together = run(part, values, state)
    for index in range(3):
        alone = {site: value[index, 0] for site, value in values.items()}
        torch.testing.assert_close(
            together[index], run(part, alone, state[index]), rtol=1e-12, atol=1e-12
        )
        kept = {site: value[index : index + 1] for site, value in values.items()}
        one = run(part, kept, state[index : index + 1])
        torch.testing.assert_close(one[0], together[index], rtol=1e-12, atol=1e-12)


@each_part
@pytest.mark.parametrize("num_particles", [None, 1, 3])
def test_draws_lead_the_shape_of_what_is_built(part, num_particles):
    part, lead = PARTS[part](), [] if num_particles is None else [num_particles]
    out = run(part, sample(part, num_particles), states(*lead))
    assert out.shape[: len(lead) + 1] == (*lead, SERIES)
    if part.priors():  # draws of the values alone, one state for all of them
        assert run(part, sample(part, num_particles), states()).shape == out.shape


@each_part
@pytest.mark.parametrize("num_particles", [None, 3])
def test_gradients_reach_every_value(part, num_particles):
    part, lead = PARTS[part](), [] if num_particles is None else [num_particles]
    values = {s: v.detach().requires_grad_() for s, v in sample(part, num_particles).items()}
    state = states(*lead).requires_grad_()
    # a scale behind weights acts through them, when they are drawn
    behind = [s for s in values if s.removesuffix("scale") + "weights" in values]
    used = {s: v for s, v in values.items() if s not in behind}
    gradients = torch.autograd.grad(run(part, values, state).sum(), [state, *used.values()])
    assert all(gradient.isfinite().all() for gradient in gradients)
    for gradient in gradients[1:]:
        assert (gradient != 0).all()
    assert (gradients[0] != 0).any()


@pytest.mark.parametrize("part", [name for name in PARTS if "hierarchical" in name])
def test_gradients_reach_the_scale_behind_drawn_weights(part):
    part = PARTS[part]()
    sites = part.priors()
    (scale_site,) = [site for site in sites if site.endswith("scale")]
    scale = torch.tensor([[0.5], [2.0]], requires_grad=True)
    values = {scale_site: scale}
    (law_site,) = [
        site for site, prior in sites.items() if not isinstance(prior, dist.Distribution)
    ]
    law = resolve(sites[law_site], values)
    weights = torch.ones(2, 1, *law.event_shape)
    (gradient,) = torch.autograd.grad(law.log_prob(weights).sum(), scale)
    num = weights.shape[-1]  # d/ds of -n log s - n / (2 s^2)
    torch.testing.assert_close(gradient, -num / scale.detach() + num / scale.detach() ** 3)


@pytest.mark.parametrize("part", ["mlp", "driven linear mlp", "affine", "linear"])
def test_what_is_built_lists_the_tensors_that_it_closes_over(part):
    part = PARTS[part]()
    values = {s: v.detach().requires_grad_() for s, v in sample(part, 2).items()}
    built = part.build(values)
    total = sum(tensor.sum() for tensor in built.tensors)
    (gradient,) = torch.autograd.grad(total, values["weights"])
    assert torch.equal(gradient, torch.ones_like(gradient))


@each_part
def test_a_cast_part_draws_and_runs_in_the_new_dtype(part):
    torch.set_default_dtype(torch.float32)
    part = PARTS[part]()
    assert all(v.dtype == torch.float32 for v in sample(part, 2).values())
    part = part.double()
    values = sample(part, 2)
    assert all(value.dtype == torch.float64 for value in values.values())
    assert run(part, values, states(2, dtype=torch.float64)).dtype == torch.float64


def perturbed(part):
    """The part with other numbers in every floating buffer and parameter."""
    with torch.no_grad():
        for number in (*part.buffers(), *part.parameters()):
            number.mul_(1.25).add_(0.1)
    return part


def laws(part):
    """Something that tells two parts apart: their priors, and what they build, at fixed values."""
    values, out = {}, []
    for site, prior in part.priors().items():
        law = resolve(prior, values)
        values[site] = torch.full(law.event_shape, 0.3)
        out.append(law.log_prob(values[site]))
    return torch.stack([*out, run(part, values, torch.full((SERIES, TIMES, STATE), 0.7)).sum()])


@each_part
def test_a_deep_copy_is_equal_and_independent(part):
    part = PARTS[part]()
    twin, before = copy.deepcopy(part), laws(part)
    assert torch.equal(laws(twin), before)
    perturbed(twin)
    assert torch.equal(laws(part), before)
    assert not torch.equal(laws(twin), before)


@each_part
def test_a_state_dict_carries_the_numbers_over(part, tmp_path):
    source = perturbed(PARTS[part]())
    torch.save(source.state_dict(), tmp_path / "part.pt")
    target = PARTS[part]()
    assert not torch.equal(laws(target), laws(source))
    target.load_state_dict(torch.load(tmp_path / "part.pt", weights_only=True))
    assert torch.equal(laws(target), laws(source))


@pytest.mark.parametrize("part", OWN)
def test_the_config_is_plain_and_rebuilds_an_equal_part(part):
    part = PARTS[part]()
    config = json.loads(json.dumps(part.config))
    twin = type(part)(**config)
    assert twin.config == part.config
    assert torch.equal(laws(twin), laws(part))


@pytest.mark.parametrize(
    "part",
    [
        "mlp",
        "hierarchical in a sum in a sum",
        "additive noise",
        "sde of parts",
        "bayesian module",
        "bernoulli bayesian decoder",
    ],
)
@pytest.mark.parametrize("num_particles", [None, 3])
def test_weights_drawn_inside_the_plate_of_series_are_refused(part, num_particles):
    part = PARTS[part]()

    def inside():
        with pyro.plate("trajectories", SERIES, dim=-1):
            return sample(part, num_particles)

    with pytest.raises(ShapeError, match="outside the plate"):
        part.build(inside())


# ---- names --------------------------------------------------------------------------------------
def test_nest_puts_the_name_before_each_site_and_unnest_takes_it_off():
    normal = dist.Normal(0.0, 1.0)
    nested = nest("outer", nest("inner", {"a": normal, "b": normal}))
    assert nested == {"outer.inner.a": normal, "outer.inner.b": normal}
    values = {site: torch.tensor(float(index)) for index, site in enumerate(nested)}
    values |= {
        "outer.c": torch.tensor(7.0),
        "inner.a": torch.tensor(8.0),
        "outermost.d": torch.ones(()),
    }
    assert list(unnest("outer", values)) == ["inner.a", "inner.b", "c"]
    assert unnest("inner", unnest("outer", values)) == {"a": 0.0, "b": 1.0}


def test_a_nested_prior_sees_the_values_of_its_own_part_alone():
    seen = []

    def prior(values):
        seen.append(dict(values))
        return dist.Normal(values["a"], 1.0)

    priors = {
        **nest("p", {"a": dist.Delta(torch.tensor(1.0)), "b": prior}),
        **nest("q", {"a": dist.Delta(torch.tensor(2.0)), "b": prior}),
    }
    draw("field", priors)
    assert seen == [{"a": 1.0}, {"a": 2.0}]


@pytest.mark.parametrize("num_particles", [None, 1, 500])
def test_a_nested_hierarchy_draws_weights_on_its_drawn_scale(num_particles):
    part = Sum(only=Hierarchical(STATE))
    values = sample(part, num_particles)
    scale, weights = values["only.scale"], values["only.weights"]
    standard = weights / scale.unsqueeze(-1)
    num = standard.numel()
    # mean square of standard normals: 1 with variance 2 / n; 5 standard errors, 1 seed in 6e5
    assert abs(standard.square().mean() - 1) < 5 * (2 / num) ** 0.5
    if num_particles == 500:
        # log |w| moves with log scale one to one, and scales differ between particles
        assert scale.log().std() > 0.5


def test_named_sites_join_parts_in_the_order_of_drawing():
    parts = {"b": Hierarchical(STATE), "a": BayesianMLP(STATE, [], STATE)}
    assert [site for site, _ in named_sites(parts.items())] == ["b.scale", "b.weights", "a.weights"]


def test_without_plate_takes_the_plate_out_of_global_values():
    assert without_plate(torch.zeros(7)).shape == (7,)
    assert without_plate(torch.zeros(3, 1, 7)).shape == (3, 7)
    assert without_plate(torch.zeros(2, 3, 1, 7)).shape == (2, 3, 7)
    assert without_plate(torch.zeros(3, 1, 7, 5), event_dim=2).shape == (3, 7, 5)
    assert without_plate(torch.zeros(()), event_dim=0).shape == ()
    assert without_plate(torch.zeros(3, 1), event_dim=0).shape == (3,)
    for shape in [(3, 7), (5, 3, 7)]:
        with pytest.raises(ShapeError, match="1 in the plate's place"):
            without_plate(torch.zeros(shape))


def test_the_solvers_keep_the_protocol_and_other_objects_do_not():
    assert isinstance(FixedGridSolver(), Solver)
    assert isinstance(ODESolver(), Solver)
    assert isinstance(SDESolver(2), Solver)
    assert isinstance(MatrixExponentialSolver(), Solver)
    assert isinstance(OnFrames(ODESolver(), 0.5), Solver)
    assert not isinstance(BayesianMLP(2, [], 2), Solver)
