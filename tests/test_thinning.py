"""Steps that see some frames."""

from __future__ import annotations

import pytest
import torch

import bayesode as bo
from bayesode.inference.elbo import elbo_terms

EVERY, FIRST = 4, 3


@pytest.fixture(scope="module")
def case():
    """A linear model of few series of different length, in float64."""
    torch.manual_seed(0)
    times = torch.rand(3, 17, dtype=torch.float64).cumsum(-1)
    data = bo.Trajectories(
        times,
        torch.randn(3, 17, 2, dtype=torch.float64),
        num_times=torch.tensor([17, 9, 17]),
        mask=torch.rand(3, 17, 2) < 0.8,
    )
    model = bo.DynamicalModel(
        initial=bo.NormalInitial(2),
        field=bo.LinearField(2),
        likelihood=bo.GaussianLikelihood(2),
        solver=bo.MatrixExponentialSolver(),
    ).double()
    return model, bo.MeanFieldGuide(model, data).double(), data


def test_the_mean_over_all_offsets_is_the_log_likelihood_of_whole_series(case):
    model, guide, data = case
    schedule, found = bo.ThinnedFrames(EVERY, first=FIRST), []
    for offset in range(EVERY):
        window = schedule.window(data, offset=offset)
        torch.manual_seed(1)
        terms = elbo_terms(model, guide, window.trajectories, time_weights=window.weights)
        found.append(terms.log_likelihood)
    torch.manual_seed(1)
    exact = elbo_terms(model, guide, data).log_likelihood
    torch.testing.assert_close(torch.stack(found).mean(), exact, rtol=1e-10, atol=0)


def test_every_offset_is_drawn_and_the_first_frames_are_always_there(case):
    _, _, data = case
    torch.manual_seed(0)
    seen = [bo.ThinnedFrames(EVERY, first=FIRST)(0.0, data).trajectories for _ in range(60)]
    assert len({window.grid[0, FIRST].item() for window in seen}) == EVERY
    for window in seen:
        assert torch.equal(window.grid[:, :FIRST], data.grid[:, :FIRST])
        assert window.num_times.tolist() == [window.grid.shape[1]] * 3 or window.num_times[1] < 17
        assert window.num_total == data.num_total and window.series == data.series


def test_minibatches_keep_their_scale(case):
    _, _, data = case
    batch = data.batch(torch.tensor([2, 0]))
    window = bo.ThinnedFrames(EVERY).window(batch, offset=0).trajectories
    assert window.num_total == 3 and window.index.tolist() == [2, 0]


def test_a_fit_tells_its_schedule_and_a_guide_may_suggest_it(case):
    model = case[0]
    own = bo.AmortizedGuide(
        model,
        bo.MLPEncoder((2,), 2),
        defaults={"num_steps": 2, "schedule": bo.ThinnedFrames(2), "kl_weight": 3.0},
    )
    whole = bo.Trajectories(torch.arange(9.0).double(), torch.randn(2, 9, 2).double())
    posterior = bo.fit_svi(model, own, whole, seed=0, progress=False)
    assert posterior.settings["schedule"] == {"scheme": "thinned", "every": 2, "first": 1}
    assert posterior.settings["kl_weight"] == 3.0
    asked = bo.fit_svi(model, own, whole, seed=0, progress=False, kl_weight=1.0)
    assert "kl_weight" not in asked.settings


def test_numbers_that_are_not_positive_are_one_clear_error():
    for make in (lambda: bo.ThinnedFrames(0), lambda: bo.ThinnedFrames(2, first=0)):
        with pytest.raises(bo.DataError, match="must be a positive whole number"):
            make()


def test_series_that_end_before_the_first_thinned_frame_are_seen_as_they_are():
    short = bo.Trajectories(torch.arange(4.0), torch.zeros(2, 4, 1))
    seen = [bo.ThinnedFrames(4, first=3).window(short, offset=k) for k in range(4)]
    assert [window.trajectories.times.tolist()[3:] for window in seen] == [[3.0], [], [], []]
    assert [window.weights[0, 3:].tolist() for window in seen] == [[4.0], [], [], []]
