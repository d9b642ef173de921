"""Constants beside a dynamic state."""

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import bayesode as bo

NOW = torch.tensor(0.0)


def field_and_values(q=2, c=1, num_draws=3):
    torch.manual_seed(0)
    inner = bo.Sum(linear=bo.LinearField(q), network=bo.BayesianMLP(q + c, [4], q))
    field = bo.WithConstants(inner, c)
    values = {
        "dynamics.linear.weights": torch.randn(num_draws, 1, q * q),
        "dynamics.network.weights": torch.randn(num_draws, 1, inner.fields["network"].num_weights),
    }
    return field, values


def test_constants_stand_still_and_the_field_reads_them():
    field, values = field_and_values()
    f, x = field.build(values), torch.randn(3, 5, 3)
    rate = f(NOW, x)
    assert rate.shape == x.shape
    assert not rate[..., 2].any()
    other = x.clone()
    other[..., 2] += 1.0
    assert (f(NOW, other)[..., :2] != rate[..., :2]).all()
    inner = field.dynamics.build({s.removeprefix("dynamics."): v for s, v in values.items()})
    assert torch.equal(rate[..., :2], inner(NOW, x))


def test_a_path_keeps_its_constants():
    field, values = field_and_values()
    x0 = torch.randn(3, 5, 3)
    times = torch.tensor([0.3, 0.9]).expand(5, -1)
    path = bo.FixedGridSolver("rk4", 0.1)(field.build(values), x0, torch.zeros(5), times)
    assert torch.equal(path[..., 2], x0[..., None, 2].expand(3, 5, 2))
    assert (path[..., :2] != x0[..., None, :2]).all()


def test_a_linear_field_beside_constants_stays_linear():
    part = bo.WithConstants(bo.LinearField(2), 2)
    field, x = part.build({"dynamics.weights": torch.randn(3, 1, 4)}), torch.randn(3, 5, 4)
    assert field.matrix.shape == (3, 4, 4)
    torch.testing.assert_close(field(NOW, x), x @ field.matrix)


def test_prior_scales_of_the_field_can_be_tuned():
    field, _ = field_and_values()
    for site, tuning in field.tunable().items():
        field.get_buffer(tuning.buffer).fill_(5.0)
        assert (field.priors()[site].variance == 25.0).all()


def test_the_law_of_x0_is_two_laws_side_by_side():
    initial = bo.WithConstants.initial(
        bo.NormalInitial(2, location=[1.0, 2.0], scale=[0.1, 0.2]), bo.NormalInitial(1)
    )
    law = initial.build({})
    assert law.event_shape == (3,)
    assert law.mean.tolist() == [1.0, 2.0, 0.0]
    torch.testing.assert_close(law.base_dist.scale, torch.tensor([0.1, 0.2, 2.0]))


class LatentScale(nn.Module):
    """Constants N(0, scale^2) whose scale is drawn."""

    def priors(self):
        return {"scale": dist.HalfNormal(torch.ones(2)).to_event(1)}

    def build(self, values, inputs=None):
        scale = values["scale"]
        return dist.Normal(torch.zeros_like(scale), scale).to_event(1)


def test_a_latent_scale_of_the_constants_is_a_site_with_draws():
    initial = bo.WithConstants.initial(bo.NormalInitial(1), LatentScale())
    assert list(initial.priors()) == ["constants.scale"]
    scale = torch.rand(3, 1, 2) + 0.1
    law = initial.build({"constants.scale": scale})
    assert law.batch_shape == (3, 1) and law.event_shape == (3,)
    torch.testing.assert_close(law.base_dist.scale[..., 1:], scale)
    assert (law.base_dist.scale[..., 0] == 2.0).all()


def test_units_are_those_of_the_dynamic_components():
    model = bo.DynamicalModel(
        initial=bo.WithConstants.initial(
            bo.NormalInitial(2, location=[10.0, 20.0], scale=[2.0, 4.0]),
            bo.NormalInitial(1, location=[0.5], scale=[0.3]),
        ),
        field=bo.WithConstants(bo.BayesianMLP(3, [4], 2), 1),
        likelihood=bo.GaussianLikelihood(2),
        solver=bo.FixedGridSolver("rk4", 0.1),
        units=bo.Units([10.0, 10.0, 0.0], [2.0, 5.0, 1.0]),
    )
    law = model.initial.build({})
    torch.testing.assert_close(law.mean, torch.tensor([0.0, 2.0, 0.5]))
    torch.testing.assert_close(law.base_dist.scale, torch.tensor([1.0, 0.8, 0.3]))
    data = bo.Trajectories([0.0, 0.5], torch.randn(4, 2, 2))
    assert model(data.at([1.0])).shape == (4, 1, 2)


def test_parts_that_do_not_fit_are_one_clear_error():
    with pytest.raises(bo.DataError, match="dim must be a positive whole number"):
        bo.WithConstants(bo.BayesianMLP(3, [4], 2), 0)
    with pytest.raises(bo.DataError, match="no random part"):
        bo.WithConstants(nn.Linear(3, 2), 1)
    part = bo.WithConstants(bo.BayesianMLP(3, [], 3), 1)
    field = part.build({"dynamics.weights": torch.zeros(12)})
    with pytest.raises(bo.ShapeError, match="its rate has to be of 2"):
        field(NOW, torch.zeros(1, 3))
    with pytest.raises(bo.DataError, match="joined if they are normal"):
        bo.WithConstants.initial(bo.NormalInitial(1), Heavy()).build({})


class Heavy(nn.Module):
    def priors(self):
        return {}

    def build(self, values, inputs=None):
        return dist.StudentT(torch.full((1,), 3.0)).to_event(1)
