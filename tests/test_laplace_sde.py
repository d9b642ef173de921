"""Laplace under process noise: exact where drift and measurement are linear and normal."""

import itertools

import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import (
    DOUBLE,
    FIRST,
    MATRIX,
    NOISE,
    OFFSET,
    PROCESS,
    ConstantDrift,
    kalman,
    known_model,
    random_data,
)

import bayesode as bo

KINDS = ["plain", "masked", "irregular", "late start"]
STEPS = [None, 0.11]


def fit(model, train, **settings):
    return bo.fit_laplace(model, train, seed=0, progress=False, **settings)


def course_of(posterior, question=None):
    return posterior.predictive.course(posterior.train if question is None else question)


def moments(posterior, question):
    """Mean and variance at the asked times, (series, time, state) each."""
    course = course_of(posterior, question)
    variance = course.variance(posterior.guide.covariance_weights)
    index = course.asked.unsqueeze(-1).expand(-1, -1, 2)
    return course.states.gather(1, index), variance.gather(1, index)


def smoothers(posterior, train, extra=(), **scales):
    """The exact smoother of each series on the knots of the fit and of a question."""
    longest, found = posterior.guide.longest.item(), []
    for row in range(train.num_series):
        knots = posterior.guide.times[row].tolist()
        found.append(kalman(train, row, [*knots, *extra], longest, **scales))
    return found


def check_moments(posterior, train, question, tolerance=1e-6, extra=(), **scales):
    mean, variance = moments(posterior, question)
    exact = smoothers(posterior, train, extra, **scales)
    for row, smoother in enumerate(exact):
        count = int(question.num_times[row])
        expected = smoother.at(question.grid[row, :count].tolist())
        for found, right in zip((mean, variance), expected, strict=True):
            torch.testing.assert_close(found[row, :count], right, rtol=0, atol=tolerance)
    return exact


# ---- the Kalman smoother of the same transition --------------------------------------------------
@pytest.mark.parametrize("noise_step", STEPS)
@pytest.mark.parametrize("kind", KINDS)
def test_known_linear_models_give_the_kalman_smoother_and_its_evidence(kind, noise_step):
    train = random_data(kind)
    posterior = fit(known_model(noise_step=noise_step), train)
    exact = check_moments(posterior, train, train)
    expected = sum(smoother.log_evidence for smoother in exact)
    assert posterior.log_evidence == pytest.approx(expected, abs=1e-6)
    assert torch.allclose(posterior.guide.noise.exp(), torch.cat([NOISE, PROCESS]), rtol=1e-9)


@pytest.mark.parametrize("noise_step", STEPS)
@pytest.mark.parametrize("kind", ["irregular", "late start"])
def test_covariances_between_knots_are_those_of_the_smoother(kind, noise_step):
    train = random_data(kind)
    posterior = fit(known_model(noise_step=noise_step), train)
    chain = course_of(posterior).chain
    blocks = chain.blocks()
    beside = chain.links @ blocks[:, :-1]  # of a knot and the one before
    for row, smoother in enumerate(smoothers(posterior, train)):
        for k in range(len(smoother.times) - 1):
            for found, right in (
                (blocks[row, k], smoother.covariance[k, :, k]),
                (beside[row, k], smoother.covariance[k + 1, :, k]),
            ):
                torch.testing.assert_close(found, right, rtol=0, atol=1e-6)


@pytest.mark.parametrize("noise_step", STEPS)
@pytest.mark.parametrize("kind", ["plain", "irregular", "late start"])
def test_asked_times_between_the_data_are_smoothed_on_the_finer_grid(kind, noise_step):
    train = random_data(kind)
    posterior = fit(known_model(noise_step=noise_step), train)
    begin = train.start.max().item()
    times = torch.linspace(begin + 0.07, begin + 2.9, 17, dtype=DOUBLE)
    check_moments(posterior, train, train.at(times), extra=times.tolist())


@pytest.mark.parametrize("noise_step", STEPS)
@pytest.mark.parametrize("kind", ["plain", "irregular"])
def test_forecasts_have_the_kalman_mean_and_variance(kind, noise_step):
    train = random_data(kind)
    posterior = fit(known_model(noise_step=noise_step), train)
    times = train.grid.max() + torch.tensor([0.2, 0.9, 1.0, 4.0], dtype=DOUBLE)
    exact = check_moments(posterior, train, train.at(times), extra=times.tolist())
    variance = torch.stack([smoother.at(times.tolist())[1] for smoother in exact])
    assert (variance.diff(dim=1) > 0).all()  # else a forecast without noise would pass


def test_before_the_first_observation_the_start_is_smoothed_backwards():
    train = random_data("late start")
    posterior = fit(known_model(), train)
    states = course_of(posterior).states[:, 0]
    for row, smoother in enumerate(smoothers(posterior, train)):
        torch.testing.assert_close(states[row], smoother.mean[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [0.02, 0.002, 1e-4])
def test_next_to_no_process_noise_still_gives_the_exact_posterior(scale):
    process, train = torch.full((2,), scale, dtype=DOUBLE), random_data("irregular")
    posterior = fit(known_model(process=process), train)
    assert torch.allclose(posterior.guide.noise[2:].exp(), process, rtol=1e-6)
    exact = check_moments(posterior, train, train, tolerance=1e-4, process=process)
    expected = sum(smoother.log_evidence for smoother in exact)
    assert posterior.log_evidence == pytest.approx(expected, abs=1e-5)


# ---- the exact process ---------------------------------------------------------------------------
def exact_transition(length):
    """Transition of dx = (A x + b) dt + g dW without any step: Van Loan's matrix exponential."""
    eye, zero = torch.eye(2, dtype=DOUBLE), torch.zeros(2, 2, dtype=DOUBLE)
    block = torch.cat(
        [torch.cat([-MATRIX, torch.diag(PROCESS**2)], 1), torch.cat([zero, MATRIX.mT], 1)]
    )
    whole = torch.linalg.matrix_exp(block * length)
    factor = whole[2:, 2:].mT
    shift = torch.linalg.solve(MATRIX, (factor - eye) @ OFFSET)
    return factor, shift, factor @ whole[:2, 2:]


def test_the_exact_process_is_approached_at_first_order_in_the_noise_step():
    train = random_data("masked")
    exact = [kalman(train, row, transition=exact_transition) for row in range(3)]
    evidence = sum(smoother.log_evidence for smoother in exact)
    errors = []
    for cuts in (2, 4, 8):  # of the gaps, all equal
        posterior = fit(known_model(noise_step=1 / 3 / cuts), train)
        mean, variance = moments(posterior, train)
        own = [posterior.log_evidence - evidence]
        for row, smoother in enumerate(exact):
            count = int(train.num_times[row])
            expected = smoother.at(train.grid[row, :count].tolist())
            own.append((mean[row, :count] - expected[0]).norm().item())
            own.append((variance[row, :count] - expected[1]).norm().item())
        errors.append(torch.tensor(own).abs())
    assert (errors[0] > 5e-4).all()
    for coarse, fine in itertools.pairwise(errors):
        assert (fine < 0.55 * coarse).all()


# ---- a drift that is random and linear in its numbers --------------------------------------------
def walks(train, extra=()):
    """The prior law of rate and states of component j, by what they are made of.

    Returns:
        Per component the knots of each series, (row, knot) and its time; the prior covariance of
        (rate, all states); and the index, value of each observation.
    """
    knots = []
    for row in range(train.num_series):
        own = train.grid[row, : train.num_times[row]].tolist()
        times = sorted({train.start[row].item(), *own, *extra})
        knots += [(row, t, train.start[row].item()) for t in times]
    problems = []
    for j in range(2):
        size = 1 + len(knots)
        prior = torch.zeros(size, size, dtype=DOUBLE)
        prior[0, 0] = 0.7**2
        for a, (row, t, start) in enumerate(knots, 1):
            prior[0, a] = prior[a, 0] = 0.7**2 * (t - start)
            for b, (other, s, begin) in enumerate(knots, 1):
                prior[a, b] = 0.7**2 * (t - start) * (s - begin)
                if row == other:
                    prior[a, b] += FIRST**2 + PROCESS[j] ** 2 * (min(t, s) - start)
        seen = []
        for a, (row, t, _) in enumerate(knots, 1):
            for k in range(int(train.num_times[row])):
                if train.grid[row, k].item() == t and train.mask[row, k, j]:
                    seen.append((a, train.values[row, k, j]))
        problems.append((knots, prior, seen))
    return problems


@pytest.mark.parametrize("kind", ["masked", "irregular", "late start"])
def test_weights_and_states_have_their_exact_joint_posterior(kind):
    train = random_data(kind)
    times = train.grid.max() + torch.tensor([0.1, 1.5], dtype=DOUBLE)
    posterior = fit(known_model(ConstantDrift()), train)
    guide, evidence = posterior.guide, 0.0
    for question, extra in ((train, ()), (train.at(times), times.tolist())):
        course = course_of(posterior, question)
        variance = course.variance(guide.covariance_weights)
        evidence = 0.0
        for j, (knots, prior, seen) in enumerate(walks(train, extra)):
            index = [a for a, _ in seen]
            marginal = prior[index][:, index] + NOISE[j] ** 2 * torch.eye(len(seen))
            values = torch.stack([value for _, value in seen])
            gain = torch.linalg.solve(marginal, prior[index]).mT
            mean, covariance = gain @ values, prior - gain @ prior[index]
            law = torch.distributions.MultivariateNormal(torch.zeros_like(values), marginal)
            evidence += law.log_prob(values).item()
            close = {"rtol": 0, "atol": 1e-6}
            torch.testing.assert_close(guide.weights[j], mean[0], **close)
            torch.testing.assert_close(guide.covariance_weights[j, j], covariance[0, 0], **close)
            own, cross = course.chain.blocks(), course.gain @ guide.covariance_weights
            assert own.shape[1] == course.states.shape[1]
            for a, (row, t, _) in enumerate(knots, 1):
                grid = torch.cat([course.grid.start[row, None], course.grid.times[row]])
                k = int((grid - t).abs().argmin())
                torch.testing.assert_close(course.states[row, k, j], mean[a], **close)
                torch.testing.assert_close(variance[row, k, j], covariance[a, a], **close)
                torch.testing.assert_close(cross[row, k, j, j], covariance[a, 0], **close)
    assert posterior.log_evidence == pytest.approx(evidence, abs=1e-6)


def test_both_noise_scales_have_the_largest_evidence():
    train = random_data("masked")
    model = known_model()
    for part in (model.likelihood, model.field.diffusion):
        part.log_scale.fill_(0.5)
    posterior = fit(model, train)
    prior = dist.Normal(torch.cat([NOISE.log(), PROCESS.log()]), 0.5)

    def joint(noise):
        scales = {"noise": noise[:2].exp(), "process": noise[2:].exp()}
        evidence = sum(kalman(train, row, **scales).log_evidence for row in range(3))
        return evidence + prior.log_prob(noise).sum().item()

    center = posterior.guide.noise
    best = joint(center)
    for direction in 0.05 * torch.eye(4, dtype=DOUBLE):
        ahead, behind = joint(center + direction), joint(center - direction)
        slope, curvature = (ahead - behind) / 2, 2 * best - ahead - behind
        assert abs(slope / curvature) * 0.05 < 0.02  # the tolerance of the rounds
        assert curvature > 0


def test_a_wrong_transition_or_noise_would_be_seen():
    train = random_data()
    posterior = fit(known_model(), train)
    for scales in ({"process": 1.001 * PROCESS}, {"noise": 1.001 * NOISE}):
        exact = smoothers(posterior, train, **scales)
        _, variance = moments(posterior, train)
        right = torch.stack([smoother.at(train.grid[0].tolist())[1] for smoother in exact])
        assert not torch.allclose(variance, right, rtol=0, atol=1e-6)


def test_the_volume_of_open_scales_is_that_of_the_exact_evidence():
    """Little data: the fit follows the scales, and they hang together."""
    train, model = random_data(), known_model()
    assert train.num_observed < 100
    for part in (model.field.diffusion, model.likelihood):
        part.log_scale.fill_(0.8)
    posterior = fit(model, train)
    guide = posterior.guide

    def exact(scales):
        noise, process = scales.exp().split(2)
        found = [kalman(train, row, process=process, noise=noise) for row in range(3)]
        prior = dist.Normal(torch.cat([NOISE, PROCESS]).log(), 0.8).log_prob(scales)
        return sum(smoother.log_evidence for smoother in found) + prior.sum().item()

    steps, center = 0.05 * torch.eye(4, dtype=DOUBLE), guide.noise
    curvature = torch.zeros(4, 4, dtype=DOUBLE)
    for i, j in itertools.product(range(4), repeat=2):
        corners = [
            exact(center + a * steps[i] + b * steps[j]) * a * b for a in (1, -1) for b in (1, -1)
        ]
        curvature[i, j] = -sum(corners) / (4 * 0.05**2)
    sds = torch.linalg.inv(curvature).diagonal().sqrt()
    torch.testing.assert_close((2 * guide.freedom).rsqrt(), sds, rtol=0.05, atol=0)
    volume = 2 * torch.log(torch.tensor(2 * torch.pi)) - curvature.logdet() / 2
    assert posterior.log_evidence == pytest.approx(exact(center) + volume.item(), abs=0.05)
