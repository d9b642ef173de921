"""Encoders: what they read, what they must not read, and what they tell."""

import math

import pytest
import torch

import bayesode as bo
from bayesode.inference.encoders.heads import NormalHeads

DOUBLE = torch.float64
FRAME = (2, 5, 6)  # odd and even sides, two channels


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(DOUBLE)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def video(num_series=6, num_times=7, event=FRAME, **settings):
    values = torch.rand(num_series, num_times, *event)
    return bo.Trajectories(torch.arange(float(num_times)), values, **settings)


def hidden(data, *places):
    """The same data with some frames of some series hidden."""
    mask = data.mask.clone()
    for place in places:
        mask[place] = False
    return bo.Trajectories(data.times, data.values, mask=mask, series=data.series)


def with_values(data, values):
    return bo.Trajectories(
        data.times, values, mask=data.mask, series=data.series, num_times=data.num_times
    )


NETWORKS = {
    "mlp": lambda: bo.MLPEncoder(FRAME, 3, hidden=(20, 10)),
    "mlp of two frames": lambda: bo.MLPEncoder(FRAME, 3, hidden=(20,), num_frames=2),
    "conv": lambda: bo.ConvEncoder(FRAME, 3, channels=(4, 6)),
    "conv of three frames": lambda: bo.ConvEncoder(FRAME, 3, num_frames=3, channels=(4,)),
    "gru": lambda: bo.GRUEncoder(FRAME, 3, hidden=12),
}
ALL = NETWORKS | {
    "linear": lambda: bo.LinearEncoder(FRAME, 3),
    "linear and mlp": lambda: bo.SumEncoder(bo.LinearEncoder(FRAME, 3), bo.MLPEncoder(FRAME, 3)),
    "position and velocity": lambda: bo.StackedEncoder(
        bo.LinearEncoder(FRAME, 2), bo.MLPEncoder(FRAME, 1, num_frames=2)
    ),
}
each_encoder = pytest.mark.parametrize("name", ALL)
each_network = pytest.mark.parametrize("name", NETWORKS)


def moments(law):
    return law.base_dist.loc, law.base_dist.scale


def same(one, other, **tolerance):
    for a, b in zip(moments(one), moments(other), strict=True):
        torch.testing.assert_close(a, b.expand_as(a), **tolerance)


# ---- every encoder ------------------------------------------------------------------------------
@each_encoder
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_it_gives_a_normal_law_of_x0_for_each_series(name, dtype):
    law = ALL[name]().to(dtype)(video().to(dtype=dtype))
    assert law.batch_shape == (6,) and law.event_shape == (3,)
    assert law.rsample().dtype == dtype
    assert (law.variance > 0).all()


@each_encoder
def test_gradients_reach_every_parameter_that_has_a_say(name):
    encoder = ALL[name]()
    law = encoder(video())
    (law.mean.square().sum() + law.variance.sum()).backward()
    idle = [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert all("residual.heads.log_scale" in n for n in idle)


@each_encoder
def test_a_law_does_not_depend_on_batch_mates_nor_on_training_mode(name):
    encoder, data = ALL[name](), video()
    law = encoder.train()(data)
    same(encoder.eval()(data), law, rtol=0, atol=0)
    alone = encoder(data.batch([4]))
    for a, b in zip(moments(alone), moments(law), strict=True):
        torch.testing.assert_close(a[0], b.expand(6, 3)[4], rtol=1e-12, atol=1e-12)


@each_encoder
def test_flat_observations_are_read_too(name):
    data = video(event=(5,))
    sizes = {"hidden": 12} if name == "gru" else {}
    if "conv" in name:
        with pytest.raises(bo.ShapeError, match="take MLPEncoder for vectors"):
            bo.ConvEncoder((5,), 3)
        return
    kinds = {"gru": bo.GRUEncoder, "linear": bo.LinearEncoder}
    encoder = kinds.get(name, bo.MLPEncoder)((5,), 3, **sizes)
    assert encoder(data).batch_shape == (6,)


@each_encoder
def test_what_it_cannot_read_is_one_clear_error(name):
    encoder, data = ALL[name](), video()
    with pytest.raises(bo.DataError, match=r"question without values.*posterior\.condition\(new\)"):
        encoder(data.at([9.0]))
    with pytest.raises(bo.ShapeError, match=r"shape \(2, 5, 6\), the data have \(2, 6, 5\)"):
        encoder(video(event=(2, 6, 5)))
    with pytest.raises(bo.DataError, match="series 3 has no visible value"):
        encoder(hidden(data, 3))


@pytest.mark.parametrize("name", [n for n in ALL if n != "gru"])
def test_hidden_first_frames_name_the_encoder_that_reads_what_is_there(name):
    encoder = ALL[name]()
    with pytest.raises(bo.DataError, match=r"frame 0 of series 2 is hidden.*GRUEncoder"):
        encoder(hidden(video(), (2, 0)))
    part = (4, 0, 1, 2, 3)  # one number of one frame
    with pytest.raises(bo.DataError, match=r"frame 0 of series 4 is hidden, wholly or in part"):
        encoder(hidden(video(), part))


def test_later_frames_of_the_first_ones_have_to_be_visible_and_there():
    encoder = bo.MLPEncoder(FRAME, 3, num_frames=3)
    with pytest.raises(bo.DataError, match="frame 2 of series 1 is hidden"):
        encoder(hidden(video(), (1, 2)))
    encoder(hidden(video(), (1, 3)))
    with pytest.raises(bo.DataError, match="reads the first 3 frames, the data have 2"):
        encoder(video(num_times=2))
    short = bo.Trajectories(torch.arange(3.0), torch.rand(2, 3, *FRAME), num_times=[3, 2])
    with pytest.raises(bo.DataError, match="frame 2 of series 1 is hidden"):
        encoder(short)


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("gru", "position and velocity")])
def test_nothing_behind_the_first_frames_is_read(name):
    encoder, data = ALL[name](), video()
    count = {"mlp of two frames": 2, "conv of three frames": 3}.get(name, 1)
    values = data.values.clone()
    values[:, count:] = torch.rand_like(values[:, count:])
    same(encoder(with_values(data, values)), encoder(data), rtol=0, atol=0)
    values[:, count - 1] = torch.rand_like(values[:, 0])
    assert (encoder(with_values(data, values)).mean != encoder(data).mean).all()


# ---- trap 32 ------------------------------------------------------------------------------------
@each_network
def test_mean_and_log_scale_come_from_separate_heads(name):
    encoder, data = NETWORKS[name](), video(num_series=40)
    mean, scale = moments(encoder(data))
    told = torch.cat([mean, scale.log()], -1)
    told = told - told.mean(0)
    # one slice for both would leave 3 independent columns of 6
    assert torch.linalg.matrix_rank(told) == 6
    with torch.no_grad():
        encoder.heads.mean.weight.mul_(3.0)
    moved, kept = moments(encoder(data))
    assert (moved != mean).all() and torch.equal(kept, scale)


def test_heads_begin_with_a_scale_far_from_the_prior_and_can_be_quietened():
    heads, features = NormalHeads(30, 2), torch.randn(500, 30)
    before = heads(features)
    assert 0.05 < before.base_dist.scale.median() < 0.4
    heads.quiet()
    after = heads(features)
    assert after.mean.abs().max() < 0.05 and torch.equal(
        after.base_dist.scale, before.base_dist.scale
    )


# ---- the linear encoder and sums ----------------------------------------------------------------
def test_a_linear_encoder_undoes_the_linear_map_that_it_is_given():
    basis, _ = torch.linalg.qr(torch.randn(60, 3))
    mean, z = torch.rand(60), torch.randn(6, 3)
    frames = (mean + 2.5 * z @ basis.mT).view(6, 1, *FRAME)
    for encoder in (ALL["linear"](), ALL["linear and mlp"]()):
        encoder.set_linear(basis, mean, 2.5)
        found = encoder(bo.Trajectories([0.0], frames)).mean
        tolerance = 1e-10 if isinstance(encoder, bo.LinearEncoder) else 0.05
        assert (found - z).abs().max() < tolerance


def test_a_sum_adds_means_and_keeps_the_scale_of_its_base():
    encoder, data = ALL["linear and mlp"](), video()
    base, residual = encoder.base(data), encoder.residual(data)
    law = encoder(data)
    torch.testing.assert_close(law.mean, base.mean + residual.mean)
    assert torch.equal(law.base_dist.scale, base.base_dist.scale)
    assert encoder.log_scale is encoder.base.log_scale
    assert [p is encoder.log_scale for p in encoder.log_scales()] == [True]
    assert bo.SumEncoder(bo.MLPEncoder(FRAME, 3), encoder.residual).log_scales() == []


# ---- the recurrent encoder ----------------------------------------------------------------------
def irregular(**settings):
    torch.manual_seed(1)
    times = torch.tensor([[0.0, 0.4, 1.1, 1.5, 3.0], [2.0, 2.1, 2.6, 4.0, 9.0]])
    mask = torch.tensor([[True, False, True, True, False], [True, True, True, True, True]])
    fields = {"times": times, "values": torch.rand(2, 5, 3), "mask": mask, "start": [-0.5, 2.0]}
    return bo.Trajectories(**(fields | settings))


def test_a_gru_reads_backwards_in_time_from_the_last_visible_value_to_the_start():
    encoder, data = bo.GRUEncoder((3,), 2, hidden=4, time_unit=0.5), irregular()
    law = encoder(data)
    gru = encoder.body
    for row in range(2):
        state, later = torch.zeros(4), None
        for step in reversed(range(5)):
            if not data.mask[row, step].any():
                continue
            now = data.times[row, step]
            gap = 0.0 if later is None else float(later - now) / 0.5
            state = cell(gru, data.values[row, step], torch.ones(3), gap, state)
            later = now
        gap = float(later - data.start[row]) / 0.5
        state = cell(gru, torch.zeros(3), torch.zeros(3), gap, state)
        expected = encoder.heads(state)
        torch.testing.assert_close(law.mean[row], expected.mean)
        torch.testing.assert_close(law.base_dist.scale[row], expected.base_dist.scale)


def cell(gru, values, mask, gap, state):
    """One step of a gated recurrent unit, written out."""
    x = torch.cat([values, mask, torch.tensor([gap])])
    own = gru.weight_ih_l0 @ x + gru.bias_ih_l0
    past = gru.weight_hh_l0 @ state + gru.bias_hh_l0
    (r, z, n), (pr, pz, pn) = own.chunk(3), past.chunk(3)
    reset, update = torch.sigmoid(r + pr), torch.sigmoid(z + pz)
    return (1 - update) * torch.tanh(n + reset * pn) + update * state


def test_hidden_values_do_not_matter_to_a_gru():
    encoder, mask = bo.GRUEncoder((3,), 2), irregular().mask.clone()
    mask[1, 2, 0] = mask[1, 4, 1] = False  # beside wholly hidden frames
    data = irregular(mask=mask)
    law = encoder(data)
    for other in (7.0, math.nan):
        values = torch.where(mask, data.values, other)
        same(encoder(irregular(values=values, mask=mask)), law, rtol=0, atol=0)


def test_frames_that_are_hidden_are_as_if_they_were_not_there():
    encoder, data = bo.GRUEncoder((3,), 2), irregular()
    kept = data.batch([0])
    fewer = bo.Trajectories(
        data.times[:1, [0, 2, 3]], data.values[:1, [0, 2, 3]], start=data.start[:1]
    )
    same(encoder(fewer), encoder(kept), rtol=1e-12, atol=1e-12)


def test_a_value_that_is_hidden_alone_leaves_the_rest_of_its_frame():
    encoder = bo.GRUEncoder((3,), 2)
    mask = torch.ones(2, 5, 3, dtype=torch.bool)
    whole = encoder(irregular(mask=mask)).mean
    mask[0, 2, 1] = False
    part = encoder(irregular(mask=mask)).mean
    assert (part[0] != whole[0]).all() and torch.equal(part[1], whole[1])


def test_padding_is_not_read():
    encoder = bo.GRUEncoder((3,), 2)
    data = irregular(mask=None, num_times=[3, 5])
    cut = bo.Trajectories(data.times[:1, :3], data.values[:1, :3], start=data.start[:1])
    same(encoder(cut), encoder(data.batch([0])), rtol=1e-12, atol=1e-12)


def test_gaps_and_the_start_matter_and_are_measured_in_the_unit_of_time():
    encoder, data = bo.GRUEncoder((3,), 2), irregular()
    law = encoder(data)
    later = data.times.clone()
    later[:, 3:] += 0.5
    assert (encoder(irregular(times=later)).mean != law.mean).all()
    assert (encoder(irregular(start=[-0.6, 1.9])).mean != law.mean).all()
    moved = irregular(times=data.times + 1e6, start=data.start + 1e6)
    same(encoder(moved), law, rtol=1e-7, atol=1e-9)
    hours = bo.GRUEncoder((3,), 2, time_unit=3600.0)
    hours.load_state_dict(encoder.state_dict() | {"time_unit": torch.tensor(3600.0)})
    seconds = irregular(times=3600 * data.times, start=3600 * data.start)
    same(hours(seconds), law, rtol=1e-10, atol=1e-12)


# ---- settings -----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [n for n in ALL if " and " not in n])
def test_settings_rebuild_an_encoder_of_the_same_shape(name):
    encoder = ALL[name]()
    twin = type(encoder)(**encoder.config)
    twin.load_state_dict(encoder.state_dict())
    data = video()
    same(twin(data), encoder(data), rtol=0, atol=0)


def test_bad_settings_are_one_clear_error():
    for make in (
        lambda: bo.MLPEncoder((3,), 0),
        lambda: bo.MLPEncoder((3,), 2, hidden=(0,)),
        lambda: bo.ConvEncoder((1, 0, 3), 2),
        lambda: bo.ConvEncoder((1, 8, 8), 2, num_frames=0),
        lambda: bo.GRUEncoder((3,), 2, hidden=-1),
        lambda: bo.LinearEncoder((3.5,), 2),
    ):
        with pytest.raises(bo.DataError, match="must be a positive whole number"):
            make()
    with pytest.raises(bo.DataError, match="time_unit must be a positive number"):
        bo.GRUEncoder((3,), 2, time_unit=0.0)
    with pytest.raises(bo.ShapeError, match=r"grey pictures"):
        bo.ConvEncoder((28, 28), 2)


# ---- positions and velocities --------------------------------------------------------------------
def stacked():
    return bo.StackedEncoder(
        bo.LinearEncoder(FRAME, 2), bo.MLPEncoder(FRAME, 2, hidden=(8,), num_frames=3)
    )


def test_a_stacked_encoder_puts_two_laws_side_by_side():
    encoder, data = stacked(), video()
    location, scale = moments(encoder(data))
    for columns, part in ((slice(2), encoder.position), (slice(2, 4), encoder.velocity)):
        own = moments(part(data))
        assert torch.equal(location[:, columns], own[0])
        assert torch.equal(scale[:, columns], own[1].expand(6, 2))


def test_positions_are_read_from_the_first_frame_and_velocities_from_the_first_three():
    encoder, data = stacked(), video()
    before = moments(encoder(data))[0]
    for frame, is_read in ((0, (True, True)), (2, (False, True)), (3, (False, False))):
        values = data.values.clone()
        values[:, frame] += 1.0
        changed = (moments(encoder(with_values(data, values)))[0] != before).any(0)
        assert changed.view(2, 2).any(-1).tolist() == list(is_read)


def test_the_linear_map_of_a_stacked_encoder_is_that_of_its_positions():
    encoder, data = stacked(), video()
    basis = torch.linalg.qr(torch.randn(60, 4))[0]  # padded for a state of positions and velocities
    mean = torch.rand(60)
    encoder.set_linear(basis, mean, 0.5)
    location = moments(encoder(data))[0]
    exact = (data.values[:, 0].flatten(1) - mean) @ basis[:, :2] / 0.5
    torch.testing.assert_close(location[:, :2], exact)
    assert location[:, 2:].abs().max() < 0.1


def test_log_scales_of_a_stacked_encoder_are_those_of_its_parts():
    encoder = stacked()
    assert encoder.log_scales() == [encoder.position.log_scale]
    both = bo.StackedEncoder(bo.LinearEncoder(FRAME, 2), bo.LinearEncoder(FRAME, 1))
    assert both.log_scales() == [both.position.log_scale, both.velocity.log_scale]
    assert [both.config[name]["dim"] for name in ("position", "velocity")] == [2, 1]


def test_fewer_frames_than_the_velocity_reads_is_one_clear_error():
    with pytest.raises(bo.DataError, match="reads the first 3 frames, the data have 2"):
        stacked()(video(num_times=2))


def test_fewer_frames_than_are_read_are_refused_by_fits_validation_and_conditioning():
    train, few = video(), video(num_times=2)
    model = bo.DynamicalModel(
        initial=bo.NormalInitial(3),
        field=bo.LinearField(3),
        likelihood=bo.GaussianLikelihood(decoder=bo.LinearDecoder(FRAME, 3)),
        solver=bo.FixedGridSolver("rk4", step=0.5),
    )
    guide = bo.AmortizedGuide(model, bo.MLPEncoder(FRAME, 3, num_frames=3))
    options = {"seed": 0, "num_steps": 1, "progress": False}
    for part, validation in ((few, None), (train, few)):
        with pytest.raises(bo.DataError, match="reads the first 3 frames, the data have 2"):
            bo.fit_svi(model, guide, part, validation=validation, **options)
    posterior = bo.fit_svi(model, guide, train, **options)
    with pytest.raises(bo.DataError, match="reads the first 3 frames, the data have 2"):
        posterior.condition(few)
