"Standard deviations of seeds and images, and power: against plain formulas and experiments made by chance"

import math

import numpy as np
import pytest
from scipy.stats import chi2

from adt_repro.base.parameters import ParameterError
from adt_repro.base.power import (
    Components,
    detectable,
    images_needed,
    power_of,
    seeds_needed,
    variance_components,
    with_seeds_at,
)
from adt_repro.base.stats import careful_df, two_level, two_sample
from adt_repro.paper.verdicts import Claim, judge

inf = math.inf


def normal(rng, S, n, seeds, images, rest):
    "(S, n) outcomes; `images` is a standard deviation, or the (n,) values themselves"
    images = rng.normal(0, images, n) if np.ndim(images) == 0 else images
    return rng.normal(0, seeds, (S, 1)) + images + rng.normal(0, rest, (S, n))


def plain_squares(d):
    "Mean squares of seeds, images and the rest, in loops"
    S, n = d.shape
    mean, rows, columns = d.mean(), d.mean(1), d.mean(0)
    rest = sum((d[s, i] - rows[s] - columns[i] + mean) ** 2 for s in range(S) for i in range(n))
    seeds, images = n * sum((rows - mean) ** 2), S * sum((columns - mean) ** 2)
    return seeds / (S - 1), images / (n - 1), rest / ((S - 1) * (n - 1))


# Components


def test_components_are_those_of_the_analysis_of_variance():
    d = normal(np.random.default_rng(0), 4, 40, 2, 3, 4)
    seeds, images, rest = plain_squares(d)
    found = variance_components(d)
    assert found.seeds == pytest.approx([((seeds - rest) / 40) ** 0.5])
    assert found.examples == pytest.approx(((images - rest) / 4) ** 0.5)
    assert found.interaction == pytest.approx([rest**0.5])
    assert [values[0] for values in found.intervals.values()] == pytest.approx(
        [found.seeds[0], found.examples, found.interaction[0]]
    )


@pytest.mark.parametrize('S', [(3, 3), (5, 2)])
def test_components_give_the_standard_errors_of_the_interval(S):
    "What `two_sample` and `two_level` take for the variance of the mean is the sum of these parts"
    rng = np.random.default_rng(1)
    images = rng.normal(0, 30, 200)
    a, b = (normal(rng, k, 200, 3, images + rng.normal(0, 8, 200), 10) for k in S)
    found, stats = variance_components(a, b), two_sample(a, b)
    by_seed = sum(
        sd**2 / k + rest**2 / (k * 200) for sd, rest, k in zip(found.seeds, found.interaction, S, strict=True)
    )
    assert stats['se_examples'] == pytest.approx(found.examples / 200**0.5)
    if S[0] == S[1]:  # else two estimates of one sum are shared out otherwise
        assert stats['se_seeds'] ** 2 == pytest.approx(by_seed)
    one, stats = variance_components(a), two_level(a)
    by_seed = one.seeds[0] ** 2 / S[0] + one.interaction[0] ** 2 / (S[0] * 200)
    assert stats['se'] ** 2 == pytest.approx(by_seed + one.examples**2 / 200)


def test_the_rest_of_normal_outcomes_has_the_exact_interval():
    d = normal(np.random.default_rng(2), 4, 3000, 1, 5, 10)
    _, lo, hi = variance_components(d).intervals['interaction']
    square, df = plain_squares(d)[2], 3 * 2999
    assert lo**2 == pytest.approx(square * df / chi2.ppf(0.975, df), rel=0.003)
    assert hi**2 == pytest.approx(square * df / chi2.ppf(0.025, df), rel=0.003)


def test_seeds_alone_have_the_exact_interval():
    v = np.random.default_rng(3).normal(0, 2, 6)
    found = variance_components(v)
    sd, lo, hi = found.intervals['seeds']
    assert sd == found.seeds[0] == pytest.approx(v.std(ddof=1))
    assert (lo, hi) == pytest.approx([sd * (5 / chi2.ppf(p, 5)) ** 0.5 for p in (0.975, 0.025)])
    assert found.examples == found.interaction[0] == 0


def right_or_wrong(rng, S, n):
    "A process with known parts, right or wrong, and the standard deviation of the rest"
    return 100.0 * (rng.random((S, n)) < rng.beta(0.25, 0.25, n)), 100 * (0.25 - 1 / 6) ** 0.5


def test_intervals_cover():
    "Of normal outcomes all three, also of two grids of other sizes; of right or wrong the one that chi-square misses"
    rng, held, by_chi2, reps = np.random.default_rng(4), np.zeros(4), 0, 300
    for _ in range(reps):
        images = rng.normal(0, 30, 200)
        a = normal(rng, 5, 200, 2, images + rng.normal(0, 8, 200), 15)
        b = normal(rng, 3, 200, 1, images, 10)
        parts = variance_components(a, b).intervals
        for k, (name, truth) in enumerate(dict(seeds=5**0.5, examples=8, interaction=325**0.5).items()):
            held[k] += parts[name][1] <= truth <= parts[name][2]
        d, truth = right_or_wrong(rng, 5, 300)
        sd, lo, hi = variance_components(d).intervals['interaction']
        held[3] += lo <= truth <= hi
        ends = [sd * (4 * 299 / chi2.ppf(p, 4 * 299)) ** 0.5 for p in (0.975, 0.025)]
        by_chi2 += ends[0] <= truth <= ends[1]
    assert (held / reps > 0.95 - 0.038).all(), held / reps  # three standard errors
    assert by_chi2 / reps < 0.85  # the control: plain chi-square is too narrow here


def mean_squares_bound(d):
    "The plain upper limit of the seeds' variance by the modified large sample method, by plain chi-square"
    S, n = d.shape
    seeds, _, rest = plain_squares(d)
    upper = (S - 1) / chi2.ppf(0.025, S - 1) - 1
    lower = 1 - (S - 1) * (n - 1) / chi2.ppf(0.975, (S - 1) * (n - 1))
    return (seeds - rest) / n + math.hypot(upper * seeds, lower * rest) / n


@pytest.mark.parametrize('sd', [0.05, 0.3])
def test_what_is_estimated_as_none_has_an_upper_limit(sd):
    "Seeds that hardly differ, judged on few images: the plain limit is 0 in some experiments (the control)"
    rng, reps = np.random.default_rng(9), 300
    held, plain_none, estimates = 0, 0, []
    for _ in range(reps):
        d = normal(rng, 5, 40, sd, 2, 40**0.5)
        found = variance_components(d).intervals['seeds']
        plain = mean_squares_bound(d)
        plain_none += plain <= 0
        held += found[1] <= sd <= found[2]
        estimates.append(found[0])
        assert found[2] > 0
        if plain <= 0:
            assert found[0] == 0 and found[2] > 0.5  # the luck of images moves a mean by 1
    assert held / reps > 0.95 - 0.038 and np.mean(np.array(estimates) == 0) > 0.4
    assert plain_none >= 2


def test_the_upper_limit_has_no_step_where_the_estimate_is_none():
    "Just above and just below 0 the limits agree, and two grids may change places"
    rng = np.random.default_rng(10)
    a, b = normal(rng, 4, 30, 0, 1, 5), normal(rng, 3, 30, 0, 1, 5)

    def with_gap(d, gap):
        "The same rest and images; the means of the seeds have the mean square that their rest explains, times 1 + gap"
        means = d.mean(1, keepdims=True) - d.mean()
        wanted = plain_squares(d)[2] / d.shape[1] * (1 + gap)
        return d - means + means * (wanted / (means.var(ddof=1))) ** 0.5

    limits = [
        variance_components(with_gap(a, gap), with_gap(b, gap)).intervals['seeds'] for gap in (-1e-6, 1e-6)
    ]
    assert limits[0][0] == 0 < limits[1][0]
    assert limits[0][2] == pytest.approx(limits[1][2], rel=1e-4)
    low = with_gap(a, -0.5), with_gap(b, -0.9)
    both = [variance_components(*grids).intervals['seeds'] for grids in (low, low[::-1])]
    assert both[0] == pytest.approx(both[1]) and both[0][0] == 0 and both[0][2] > 0
    same = np.tile(b[0], (3, 1))
    assert variance_components(same).intervals['seeds'] == pytest.approx((0, 0, 0), abs=1e-12)


def test_seeds_that_differ_are_told_from_seeds_that_do_not():
    "A positive and a negative control"
    rng, above = np.random.default_rng(5), {}
    for sd in 3, 0:
        parts = [variance_components(normal(rng, 8, 500, sd, 20, 20)).intervals for _ in range(60)]
        above[sd] = np.mean([of['seeds'][1] > 0 for of in parts])
    assert above[3] > 0.9 and above[0] < 0.1  # 2.5 %, and three standard errors


def test_images_that_both_find_hard_do_not_count():
    rng = np.random.default_rng(6)
    images = rng.normal(0, 30, 500)
    a, b = (normal(rng, 4, 500, 1, images, 10) for _ in range(2))
    assert variance_components(a).examples > 25 and variance_components(a, b).examples < 5


def test_one_seed():
    rng = np.random.default_rng(7)
    a, b = normal(rng, 1, 200, 1, 5, 10), normal(rng, 4, 200, 1, 5, 10)
    alone = variance_components(b)
    for found in variance_components(a, b), variance_components(b, a):
        assert found.assumed and found.known and found.seeds == pytest.approx(alone.seeds * 2)
        for name in 'seeds', 'interaction':
            assert found.intervals[name] == pytest.approx([2**0.5 * v for v in alone.intervals[name]])
        assert found.intervals['examples'][1] <= found.examples <= found.intervals['examples'][2]
    column = (a - b.mean(0)).var(ddof=1) - plain_squares(b)[2] * 1.25
    assert variance_components(a, b).examples == pytest.approx(max(0, column) ** 0.5)
    for unknown in variance_components(a), variance_components(a, a):
        assert not unknown.known
        assert math.isnan(detectable(unknown, 3, 100)) and math.isnan(seeds_needed(unknown, 1.0, 100))


# Power, against experiments that are judged by the interval itself

PLAN = Components(seeds=(1.2, 0.6), examples=12.0, interaction=(20.0, 21.0))
ONE = Components(seeds=(1.0,), examples=8.0, interaction=(15.0,))


def found_by_chance(components, effect, seeds, n, reps=1000):
    "How often `two_sample`, or `two_level` of one grid, finds an effect"
    rng, hits = np.random.default_rng(seeds), 0
    seeds_of = seeds if isinstance(seeds, tuple) else (seeds,) * len(components.seeds)
    for _ in range(reps):
        images = [effect + rng.normal(0, components.examples, n), np.zeros(n)]
        grids = [
            normal(rng, S, n, sd, of_images, rest)
            for S, sd, of_images, rest in zip(
                seeds_of, components.seeds, images, components.interaction, strict=False
            )
        ]
        stats = two_sample(*grids) if len(grids) == 2 else two_level(*grids)
        hits += stats['lo'] > 0
    return hits / reps


@pytest.mark.parametrize(
    'components, effect, seeds, n',
    [
        (PLAN, 12.0, 2, 100),
        (PLAN, 4.5, 3, 100),
        (PLAN, 3.0, 5, 200),
        (PLAN, 4.0, (6, 3), 100),
        (ONE, 3.0, 4, 200),
    ],
)
def test_power_is_how_often_an_effect_is_found(components, effect, seeds, n):
    by_chance = found_by_chance(components, effect, seeds, n)
    assert power_of(components, effect, seeds, n) == pytest.approx(by_chance, abs=0.05)


@pytest.mark.parametrize('S', [(2, 2), (2, 7), (3, 3), (4, 9), (10, 10)])
def test_degrees_of_freedom_are_those_of_the_interval(S):
    a, b = (normal(np.random.default_rng(k), S[k], 50, 1 + k, 3, 5) for k in (0, 1))
    va, vb = (np.array([d.mean(1).var(ddof=1) / len(d)]) for d in (a, b))
    assert careful_df((va, vb), S) == pytest.approx(two_sample(a, b)['df_seeds'])


def test_what_is_detectable_is_found_that_often():
    effect = detectable(PLAN, 4, 100, power=0.6)
    assert found_by_chance(PLAN, effect, 4, 100) == pytest.approx(0.6, abs=0.05)
    assert detectable(PLAN, 4, 100, power=0.6, alpha=0.005) > effect
    assert detectable(PLAN, 4, 100, power=0.7) > effect > detectable(PLAN, 5, 100, power=0.6)


@pytest.mark.parametrize('effect', [2.0, 3.0])
def test_as_many_as_are_needed_are_enough_and_no_fewer(effect):
    seeds, n = seeds_needed(PLAN, effect, 500), images_needed(PLAN, effect, 7)
    by_trying = next(S for S in range(2, 100) if power_of(PLAN, effect, S, 500) >= 0.8)
    assert seeds == by_trying
    assert power_of(PLAN, effect, 7, n) >= 0.8 > power_of(PLAN, effect, 7, n - 1)
    assert found_by_chance(PLAN, effect, seeds, 500, reps=300) > 0.8 - 0.075


def test_what_no_number_is_enough_for():
    assert images_needed(PLAN, 0.5, 3) == inf and images_needed(PLAN, 5.0, 1) == inf
    assert seeds_needed(Components((0.0, 0.0), 50.0, (0.0, 0.0)), 1.0, 100) == inf
    assert detectable(PLAN, 1, 10**6) == detectable(PLAN, (1, 9), 10**6) == inf
    assert power_of(PLAN, 1e6, 1, 1000) == 0


def test_without_an_effect_the_power_is_the_level():
    "Exactly with Student's t of one grid; of two, whose degrees of freedom are the careful ones, a little below"
    for alpha in 0.025, 0.01:
        one = power_of(Components((1.0,), 0.0, (0.0,)), 1e-9, 6, 1000, alpha=alpha)
        two = power_of(Components((1.0, 1.0), 0.0, (0.0, 0.0)), 1e-9, 6, 1000, alpha=alpha)
        assert one == pytest.approx(alpha, rel=0.01) and 0.8 * alpha < two < 1.01 * alpha
    assert power_of(Components((0.0,), 0.0, (0.0,)), 1e-9, 2, 10) == 1  # nothing varies


def test_the_ends_of_the_seeds():
    a, b = (normal(np.random.default_rng(k), 3, 200, 1, 0, 10) for k in (1, 2))
    found = variance_components(a, b)
    _, lo, hi = found.intervals['seeds']
    for end, wanted in ('lo', lo), ('hi', hi):
        assert math.hypot(*with_seeds_at(found, end).seeds) == pytest.approx(wanted)
    with pytest.raises(ParameterError, match="end='top'"):
        with_seeds_at(found, 'top')


WRONG = dict(effect=0), dict(effect=math.nan), dict(seeds=0), dict(seeds=(2, 2, 2)), dict(n=0), dict(alpha=0)


@pytest.mark.parametrize('wrong', WRONG, ids=str)
def test_one_line_for_numbers_that_fit_nothing(wrong):
    with pytest.raises(ParameterError, match=f'^{[*wrong][0]}=.*expected') as e:
        power_of(PLAN, **dict(effect=1.0, seeds=3, n=100) | wrong)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize(
    'args', [([[1.0]],), (np.zeros((2, 3)), np.zeros((2, 4))), ([[1.0, math.nan]],)], ids=str
)
def test_one_line_for_grids_that_are_none(args):
    with pytest.raises(ParameterError, match='expected'):
        variance_components(*args)
    with pytest.raises(ParameterError, match='confidence='):
        variance_components(np.eye(3), confidence=1)


# Verdicts

KEYS = [('a', 'b'), ('a', 'c'), ('b', 'c'), ('d', 'a'), ('d', 'b')]


def experiment(rng, S, shift, n=120, gain=0.0):
    "Four methods, right or wrong on the same images; d is better by `gain` points"
    easy = rng.beta(0.7, 0.4, n)
    grids = {}
    for method in 'abcd':
        chance = easy + rng.normal(0, shift / 100, (S, 1)) + (gain / 100 if method == 'd' else 0)
        grids[method] = 100.0 * (rng.random((S, n)) < chance)
    return {f'{x}{y}': two_sample(grids[x], grids[y]) for x, y in KEYS}


@pytest.mark.parametrize('S, shift', [(2, 3), (3, 0), (5, 1), (10, 3)])
def test_intervals_cover_and_families_seldom_err(S, shift):
    "The truth at a bound, or just within: the main claim, the other four together, and all five"
    bounds = [(0 if k % 2 == 0 else -1e-9, inf) for k in range(len(KEYS))]
    wrong = ['contradicted' if k % 2 else 'supported' for k in range(len(KEYS))]
    claims = [Claim(f'{x}{y}', 'better', bounds[k], primary=k == 0) for k, (x, y) in enumerate(KEYS)]
    rng, held, errors, reps = np.random.default_rng([S, shift]), 0, np.zeros(3), 60
    for _ in range(reps):
        found = experiment(rng, S, shift)
        held += sum(f['lo'] <= 0 <= f['hi'] for f in found.values()) / len(found)
        false = judge(claims, found).verdict == wrong
        errors += false.iloc[0], false.iloc[1:].any(), false.any()
    most = np.array([0.025, 0.025, 0.05])
    assert held / reps > 0.91 and (errors / reps <= most + 3 * (most * (1 - most) / reps) ** 0.5).all()


def test_a_large_effect_is_seen_by_all_seeds_but_one():
    claims = [Claim('da', 'd is better', (0, inf), primary=True)]
    rng = np.random.default_rng(8)
    words = {S: judge(claims, {'da': experiment(rng, S, 1, gain=40)['da']}).verdict[0] for S in (1, 5)}
    assert words == {1: 'one network', 5: 'supported'}
