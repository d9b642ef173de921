"""Draws and paths of a Laplace posterior under process noise."""

import pytest
import torch
from linear_gaussian import DOUBLE, NOISE, PROCESS, ConstantDrift, known_model, random_data

import bayesode as bo
from bayesode.inference.predictive import solve_draws

LIMIT = 5  # standard errors
NUM = 4000


@pytest.fixture(scope="module")
def posterior():
    """Random rate, random scales, series of own lengths and starts, values missing."""
    train = random_data("late start")
    model = known_model(ConstantDrift())
    model.field.diffusion.log_scale.fill_(0.3)
    model.likelihood.log_scale.fill_(0.3)
    return bo.fit_laplace(model, train, seed=0, progress=False)


def later(train, *gaps):
    """The training times and some after them."""
    ends = train.grid[:, -1:] + torch.tensor(gaps, dtype=DOUBLE)
    count = train.num_times + len(gaps)
    times = torch.cat([train.grid, ends], 1)
    for row in range(train.num_series):  # padding at the end
        own = int(train.num_times[row])
        times[row] = torch.cat(
            [
                train.grid[row, :own],
                ends[row],
                ends[row, -1:].expand(times.shape[1] - own - len(gaps)),
            ]
        )
    return train.at(times, count)


def sampled(posterior, question, num_draws=NUM, given=None, seed=1):
    torch.manual_seed(seed)
    with torch.no_grad():
        return posterior.predictive.sample(question, num_draws, given)


def uncapped(posterior, question, values):
    """Linearised states of draws at all knots, (draws, series, knot, state)."""
    predictive = posterior.predictive
    course = predictive.course(question)
    change = course.change_of(
        values["x0"] - course.states[:, 0],
        values["path.noise"],
        predictive._deviation(values),
        predictive._spread(values, course),
    )
    return course.states + change


def is_after(course):
    return ~course.is_inside & (course.grid.times > course.grid.begins)


def has_moments(draws, mean, variance):
    """Whether draws (draws, ...) have these moments, five standard errors each."""
    error = (variance / len(draws)).sqrt()
    has_mean = ((draws.mean(0) - mean).abs() < LIMIT * error + 1e-12).all()
    ratio = draws.var(0) / variance
    return bool(has_mean and ((ratio - 1).abs() < LIMIT * (2 / len(draws)) ** 0.5).all())


# ---- what is drawn -------------------------------------------------------------------------------
def test_paths_have_the_moments_of_the_course(posterior):
    question = later(posterior.train, 0.5, 2.0)
    values, course = sampled(posterior, question), posterior.predictive.course(question)
    variance = course.variance(posterior.guide.covariance_weights)
    inside = torch.nn.functional.pad(course.is_inside, (1, 0), value=True)
    states = uncapped(posterior, question, values)
    assert has_moments(states[:, inside], course.states[inside], variance[inside])
    assert not has_moments(1.1 * states[:, inside], course.states[inside], variance[inside])
    # after the data the noise scale is drawn, so the variance is that of its posterior mean square
    scale = values["field.diffusion.scale"].square().mean(0) / posterior.guide.noise[2:].exp() ** 2
    assert (scale > 1).all() and (scale < 1.2).all()
    after = is_after(course)
    spare = states.var(0)[:, 1:][after] / variance[:, 1:][after]
    assert ((spare > 0.9) & (spare < 1.2)).all()


def test_ensembles_are_the_draws_within_the_climate(posterior):
    question = later(posterior.train, 0.5)
    ensemble = posterior.predict(question, num_draws=NUM, seed=0)
    course = posterior.predictive.course(question)
    index = course.asked.unsqueeze(-1).expand(-1, -1, 2)
    variance = course.variance(posterior.guide.covariance_weights).gather(1, index)
    share = 1 / (1 + variance / 4)
    is_real = torch.arange(question.grid.shape[1]) < posterior.train.num_times[:, None]
    mean = course.states.gather(1, index) * share
    assert has_moments(ensemble.states[:, is_real], mean[is_real], (variance * share)[is_real])
    assert not ensemble.failed.any()


def test_later_times_change_no_path_before(posterior):
    train = posterior.train
    short = posterior.predict(train, num_draws=20, seed=3)
    long = posterior.predict(later(train, 0.3, 0.31, 5.0), num_draws=20, seed=3)
    for row in range(train.num_series):
        count = int(train.num_times[row])
        one, two = (e.states[:, row, :count] for e in (short, long))
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)
    assert torch.equal(short.draws["x0"], long.draws["x0"])


def test_the_law_inside_the_data_does_not_depend_on_later_times(posterior):
    train = posterior.train
    short, long = (posterior.predictive.course(q) for q in (train, later(train, 0.3, 6.0)))
    covariance = posterior.guide.covariance_weights
    one, two = short.variance(covariance), long.variance(covariance)
    for row in range(train.num_series):
        count = int(short.asked[row].max()) + 1
        torch.testing.assert_close(short.states[row, :count], long.states[row, :count])
        torch.testing.assert_close(one[row, :count], two[row, :count])


@pytest.mark.parametrize("seed", [1, 2])
def test_draws_that_are_solved_again_are_the_linearised_ones(posterior, seed):
    question = later(posterior.train, 0.5, 0.9, 3.0)
    values, course = (
        sampled(posterior, question, 30, seed=seed),
        posterior.predictive.course(question),
    )
    states = uncapped(posterior, question, values)
    index = course.asked.unsqueeze(-1).expand(30, -1, -1, 2)
    with torch.no_grad():
        path, failed = posterior.predictive.paths(values, question, posterior.model.solver)
    torch.testing.assert_close(path, states.gather(2, index), rtol=0, atol=1e-9)
    assert not failed.any()
    wrong = values | {"path.noise": 1.01 * values["path.noise"]}
    path, _ = posterior.predictive.paths(wrong, question, posterior.model.solver)
    assert (path - states.gather(2, index)).abs().max() > 1e-3


def test_increments_after_the_data_are_standard_normal_and_independent(posterior):
    question = later(posterior.train, 0.3, 0.5, 1.2)
    values, course = sampled(posterior, question), posterior.predictive.course(question)
    noise = values["path.noise"][:, is_after(course)].flatten(1)
    assert noise.shape[1] > 10
    assert has_moments(noise, torch.zeros(()), torch.ones_like(noise[0]))
    columns = torch.cat([noise, values["field.drift.rate"].flatten(1), values["x0"].flatten(1)], 1)
    correlation = torch.corrcoef(columns.mT)[: noise.shape[1]]
    correlation = correlation - torch.eye(*correlation.shape)
    assert (correlation.abs() < LIMIT / NUM**0.5).all()
    # nor does their size follow the scale that was drawn: that acts in the paths
    scales = values["field.diffusion.scale"].squeeze(1).log()
    num = noise.shape[1]
    correlation = torch.corrcoef(torch.cat([noise.square(), scales], 1).mT)[:num, num:]
    assert (correlation.abs() < LIMIT / NUM**0.5).all()


def test_increments_inside_follow_the_data(posterior):
    values, course = (
        sampled(posterior, posterior.train),
        posterior.predictive.course(posterior.train),
    )
    noise = values["path.noise"][:, course.is_inside]
    assert noise.var(0).mean() < 0.95  # the data have said something of them
    assert noise.mean(0).abs().max() > 0.5


def test_noise_scales_are_inverse_chi_square(posterior):
    draws = posterior.draws(NUM, seed=1)
    guide = posterior.guide
    scales = torch.cat([draws["likelihood.noise_scale"], draws["field.diffusion.scale"]], 1)
    chi = guide.freedom * (guide.noise.exp() / scales) ** 2
    error = (2 * guide.freedom / NUM).sqrt()
    assert ((chi.mean(0) - guide.freedom).abs() < LIMIT * error).all()
    assert ((chi.var(0) / (2 * guide.freedom) - 1).abs() < LIMIT * (2 / NUM) ** 0.5 * 1.5).all()


def test_the_same_seed_gives_the_same_draws(posterior):
    question, before = later(posterior.train, 1.0), torch.get_rng_state()
    one, two = (posterior.predict(question, num_draws=5, seed=4) for _ in range(2))
    other = posterior.predict(question, num_draws=5, seed=5)
    assert torch.equal(one.values, two.values)
    assert not torch.equal(one.states, other.states)
    assert torch.equal(before, torch.get_rng_state())


# ---- given a part of the draws -------------------------------------------------------------------
def shared(values):
    return {site: v for site, v in values.items() if site.startswith(("field.", "likelihood."))}


def repeated(values, num_draws):
    return {site: v[:1].expand(num_draws, *v.shape[1:]) for site, v in values.items()}


def test_given_weights_the_states_have_the_law_of_their_chain(posterior):
    question = later(posterior.train, 0.7)
    given = repeated(shared(sampled(posterior, question, 1)), NUM)
    values, course = (
        sampled(posterior, question, given=given),
        posterior.predictive.course(question),
    )
    for site, value in given.items():
        assert torch.equal(values[site], value)
    deviation = posterior.predictive._deviation(given)[0]
    mean = course.states + course.gain @ deviation
    variance = course.chain.blocks().diagonal(dim1=-2, dim2=-1)
    inside = torch.nn.functional.pad(course.is_inside, (1, 0), value=True)
    states = uncapped(posterior, question, values)
    assert has_moments(states[:, inside], mean[inside], variance[inside])
    # an average over the weights gives the whole variance back
    assert (variance < course.variance(posterior.guide.covariance_weights)).all()


def test_given_x0_too_the_states_have_the_conditional_law(posterior):
    question = posterior.train
    first = sampled(posterior, question, 1)
    given = repeated(shared(first) | {"x0": first["x0"] + 0.2}, NUM)
    values, course = (
        sampled(posterior, question, given=given),
        posterior.predictive.course(question),
    )
    assert torch.equal(values["x0"], given["x0"])
    deviation = posterior.predictive._deviation(given)[0]
    mean = course.states + course.gain @ deviation
    states = uncapped(posterior, question, values)
    for row in range(question.num_series):
        blocks, link = course.chain.blocks()[row], torch.eye(2, dtype=DOUBLE)
        shift = given["x0"][0, row] - mean[row, 0]
        for k in range(1, int(course.asked[row].max()) + 1):
            link = course.chain.links[row, k - 1] @ link
            rest = blocks[k] - link @ blocks[0] @ link.mT
            assert has_moments(states[:, row, k], mean[row, k] + link @ shift, rest.diagonal())


def test_given_sites_must_be_the_first_ones(posterior):
    values = sampled(posterior, posterior.train, 3)
    for given in ({"x0": values["x0"]}, {"path.noise": values["path.noise"]}):
        with pytest.raises(bo.DataError):
            posterior.predictive.sample(posterior.train, 3, given)


def test_variance_parts_add_up_and_process_noise_grows_in_the_forecast(posterior):
    train = posterior.train
    ensemble = posterior.predict(later(train, 0.5, 4.0), num_draws=NUM, seed=2)
    parts = ensemble.variance_parts()
    total = ensemble.signal.var(0) + parts.observation
    torch.testing.assert_close(parts.total, total)
    for row in range(train.num_series):
        count = int(train.num_times[row])
        process = parts.process[row]
        assert (process[count + 1] > 2 * process[count - 1]).all()
        # noise alone adds scale^2 t, shrunk by the cap
        scale = posterior.guide.noise[2:].exp()
        assert (process[count + 1] - process[count - 1] < 1.6 * 4 * scale**2).all()
        assert (process[count + 1] - process[count - 1] > 0.6 * 4 * scale**2).all()
    observation = ensemble.draws["likelihood.noise_scale"].square().mean(0)
    torch.testing.assert_close(parts.observation, observation.expand_as(parts.observation))


# ---- errors of the solver ------------------------------------------------------------------------
def test_the_solver_error_is_that_of_the_drift(posterior):
    ensemble = posterior.predict(later(posterior.train, 1.0), num_draws=3, seed=0)
    assert ensemble.solver_error < 1e-9  # RK4 is exact for a constant rate


def test_the_center_is_the_fit(posterior):
    question = later(posterior.train, 1.0)
    values, course = posterior.predictive.center(question), posterior.predictive.course(question)
    solver = posterior.predictive._on(course, posterior.model.solver)
    path, _ = solve_draws(posterior.model, values, question, solver)
    index = course.asked.unsqueeze(-1).expand(-1, -1, 2)
    torch.testing.assert_close(path[0], course.states.gather(1, index), rtol=0, atol=1e-9)
    assert (posterior.guide.noise[:2].exp() / NOISE).log().abs().max() < 1
    assert (posterior.guide.noise[2:].exp() / PROCESS).log().abs().max() < 1
