"Intervals, tests and verdicts: against plain formulations, other libraries, known simulations"

import inspect
import itertools
import math

import numpy as np
import pytest
from scipy.special import stdtrit
from scipy.stats import binomtest, ttest_1samp, ttest_ind
from scipy.stats import t as student

from adt_repro.base.parameters import ParameterError
from adt_repro.base.stats import (
    combined_interval,
    counted,
    mcnemar,
    mean_interval,
    mean_variances,
    p_inside,
    p_outside,
    two_level,
    two_sample,
)
from adt_repro.paper.verdicts import (
    SOURCES,
    WORDS,
    Claim,
    Condition,
    cell_verdict,
    claim_levels,
    judge,
    verdict,
)

inf = math.inf


def normal(rng, S, n, seeds, examples, both):
    "(S, n) normal differences whose truth is 0, with three standard deviations"
    return rng.normal(0, seeds, (S, 1)) + rng.normal(0, examples, n) + rng.normal(0, both, (S, n))


def found(estimate, se, seeds=3, df=20.0):
    half = se * student.ppf(0.975, df)
    return dict(estimate=estimate, lo=estimate - half, hi=estimate + half, se=se, df=df, seeds=seeds, n=360)


# Seeds and examples: the bootstrap is the independent way to what has a closed form


def plain_bootstrap(d, boots, rng):
    "Means of rows and columns drawn anew, in two loops"
    S, n = d.shape
    for _ in range(boots):
        rows, columns, total = [rng.integers(S) for _ in range(S)], [rng.integers(n) for _ in range(n)], 0.0
        for s in rows:
            for i in columns:
                total += d[s, i]
        yield total / (S * n)


def bootstrap_variances(d, boots, rng):
    "Of the mean, by rows, by columns and by both together: rows and columns drawn anew; shrinkage undone"
    S, n = d.shape
    rows, columns = rng.integers(S, size=(boots, S)), rng.integers(n, size=(boots, n))
    by_row = d.mean(1)[rows].mean(1)
    by_column = d.mean(0)[columns].mean(1)
    drawn = np.array([d[r][:, c].mean() for r, c in zip(rows, columns, strict=True)])
    both = drawn - by_row - by_column
    unshrink = np.array([S / (S - 1), n / (n - 1), S / (S - 1) * n / (n - 1)])
    return np.array([by_row.var(), by_column.var(), both.var()]) * unshrink


def test_against_a_plain_bootstrap():
    d = normal(np.random.default_rng(0), 4, 12, 1, 2, 0.0)  # no interaction: nothing is counted twice
    slow = np.var(list(plain_bootstrap(d, 4000, np.random.default_rng(1))))
    f = two_level(d)
    assert math.isclose(slow, 3 / 4 * f['se_seeds'] ** 2 + 11 / 12 * f['se_examples'] ** 2, rel_tol=0.06)
    assert f['estimate'] == d.mean()
    assert math.isclose(f['hi'] - f['estimate'], f['estimate'] - f['lo'])
    assert math.isclose(f['se'] * student.ppf(0.975, f['df']), f['hi'] - f['estimate'], rel_tol=1e-6)


@pytest.mark.parametrize('S, n', [(2, 8), (5, 40)])
def test_closed_form_against_the_bootstrap(S, n):
    d = normal(np.random.default_rng(S), S, n, 1, 6, 4)
    by_rows, by_columns, by_both = drawn = bootstrap_variances(d, 20_000, np.random.default_rng(1))
    assert np.allclose(mean_variances(d), drawn, rtol=0.05)
    f = two_level(d)
    assert math.isclose(f['se_seeds'] ** 2, by_rows, rel_tol=0.05)
    assert math.isclose(f['se_examples'] ** 2, by_columns - by_both, rel_tol=0.1)


def test_closed_form_is_the_table_of_the_analysis_of_variance():
    "Mean squares, summed in loops"
    d = normal(np.random.default_rng(3), 3, 7, 1, 6, 4)
    S, n = d.shape
    mean = d.sum() / (S * n)
    row = [sum(d[s]) / n for s in range(S)]
    column = [sum(d[:, i]) / S for i in range(n)]
    ms_seeds = n * sum((r - mean) ** 2 for r in row) / (S - 1)
    ms_examples = S * sum((c - mean) ** 2 for c in column) / (n - 1)
    cells = itertools.product(range(S), range(n))
    ms_rest = sum((d[s, i] - row[s] - column[i] + mean) ** 2 for s, i in cells) / ((S - 1) * (n - 1))
    f = two_level(d)
    assert math.isclose(f['se_seeds'] ** 2, ms_seeds / (S * n))
    assert math.isclose(f['se_examples'] ** 2, (ms_examples - ms_rest) / (S * n))
    assert np.allclose(np.array(mean_variances(d)) * S * n, [ms_seeds, ms_examples, ms_rest])
    many = np.array([d, d * 2])
    assert np.allclose(mean_variances(many), np.transpose([mean_variances(d), mean_variances(2 * d)]))


def test_nothing_is_drawn():
    "One table, one interval: there is no seed and no number of draws that could change it"
    assert list(inspect.signature(two_level).parameters) == ['d', 'confidence']
    d = normal(np.random.default_rng(0), 3, 50, 1, 1, 1)
    assert two_level(d) == two_level(d)


def test_what_is_in_rows_and_columns_is_counted_once():
    "The mean of independent numbers, whichever way they are arranged"
    se = [two_level(normal(np.random.default_rng(k), 8, 60, 0, 0, 1))['se'] for k in range(40)]
    assert (
        0.9 < np.sqrt(np.mean(np.square(se))) * 480**0.5 < 1.25
    )  # counted thrice: 1.73; never below what the rows show, hence a little above 1


@pytest.mark.parametrize('turned', [False, True])
def test_one_level_is_student(turned):
    v = np.random.default_rng(0).normal(1, 2, 30)
    f, m = two_level(v[None] if turned else v), mean_interval(v)
    assert (f['seeds'], f['n']) == ((1, 30) if turned else (30, 1)) and f['df'] == 29
    assert np.allclose((f['estimate'], f['lo'], f['hi']), (m['mean'], m['lo'], m['hi']))
    assert math.isclose(f['se'], v.std(ddof=1) / 30**0.5)


def test_images_stay_images():
    d = normal(np.random.default_rng(0), 3, 50, 1, 1, 1)
    order = np.random.default_rng(1).permutation(50)
    a, b = two_level(d), two_level(d[::-1][:, order])
    assert math.isclose(a['estimate'], b['estimate']) and math.isclose(a['se'], b['se'])
    mixed = np.array(
        [np.random.default_rng(k).permutation(row) for k, row in enumerate(d)]
    )  # no longer the same example in a column
    assert two_level(mixed)['se_examples'] < 0.8 * a['se_examples']


# Two samples of seeds


@pytest.mark.parametrize('S_a, S_b', [(3, 3), (5, 5), (10, 10)])
def test_without_images_it_is_welch(S_a, S_b):
    rng = np.random.default_rng(S_a)
    a, b = rng.normal(2, 1, S_a), rng.normal(1, 4, S_b)
    welch = ttest_ind(a, b, equal_var=False)
    for x, y in ((a, b), (a[:, None] + np.zeros(7), b[:, None] + np.zeros(7))):
        f = two_sample(x, y)
        assert math.isclose(f['df_seeds'], welch.df) and math.isclose(f['df'], welch.df)
        assert np.allclose((f['lo'], f['hi']), welch.confidence_interval())
        one_sided = ttest_ind(a, b, equal_var=False, alternative='greater').pvalue
        assert math.isclose(p_outside(f, (0, inf)), one_sided, rel_tol=1e-5)
        assert math.isclose(p_inside(f, (0, inf)), 1 - one_sided, rel_tol=1e-5)


@pytest.mark.parametrize('S_a, S_b', [(2, 2), (2, 9), (3, 4), (3, 10), (9, 4)])
def test_few_or_unequal_seeds_get_fewer_degrees_of_freedom(S_a, S_b):
    "Never more than Welch's, never fewer than those of the side with fewer seeds; the standard error is Welch's"
    for k in range(20):
        rng = np.random.default_rng(k)
        a, b = rng.normal(2, rng.uniform(0.1, 4), S_a), rng.normal(1, 1, S_b)
        f, welch = two_sample(a, b), ttest_ind(a, b, equal_var=False)
        assert math.isclose(f['estimate'] / f['se'], welch.statistic)
        assert min(S_a, S_b) - 1 <= f['df_seeds'] <= welch.df + 1e-9
        if min(S_a, S_b) == 2:
            assert f['df_seeds'] == 1


def test_variances_of_two_samples():
    "Over many repetitions the two parts have the mean that the process has"
    rng, seeds, images = np.random.default_rng(0), [], []
    n, of_a, of_b, of_image, of_both = 40, 1.0, 3.0, 5.0, 4.0
    for _ in range(400):
        hard, odd = rng.normal(0, 30, n), rng.normal(0, of_image, n)
        a = rng.normal(0, of_a, (4, 1)) + hard + odd + rng.normal(0, of_both, (4, n))
        b = rng.normal(0, of_b, (6, 1)) + hard + rng.normal(0, of_both, (6, n))
        f = two_sample(a, b)
        seeds.append(f['se_seeds'] ** 2)
        images.append(f['se_examples'] ** 2)
    both = of_both**2 / n
    assert math.isclose(np.mean(seeds), (of_a**2 + both) / 4 + (of_b**2 + both) / 6, rel_tol=0.1)
    assert math.isclose(np.mean(images), of_image**2 / n, rel_tol=0.1)  # hard images are hard for both


def test_seeds_are_not_paired_and_images_are():
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 40, 200)
    a, b = (rng.normal(m, 3, (5, 1)) + hard + rng.normal(0, 5, (5, 200)) for m in (2, 0))
    f = two_sample(a, b)
    for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 17):
        same = two_sample(a[list(order)], b)
        assert math.isclose(same['lo'], f['lo']) and math.isclose(same['hi'], f['hi'])
    pairings = [two_level(a - b[list(order)]) for order in itertools.permutations(range(5))]
    assert len({round(p['hi'], 6) for p in pairings}) > 50  # a pairing of seeds is arbitrary
    assert f['hi'] - f['lo'] < 0.9 * np.mean([p['hi'] - p['lo'] for p in pairings])
    columns = rng.permutation(200)
    assert math.isclose(two_sample(a[:, columns], b[:, columns])['se'], f['se'])
    assert two_sample(a[:, columns], b)['se_examples'] > 10 * f['se_examples']


def test_one_network_on_a_side():
    "The interval over images only, the same on either side: that of these networks"
    rng = np.random.default_rng(0)
    a, b = normal(rng, 1, 80, 9, 3, 3), normal(rng, 4, 80, 9, 3, 3)
    f, turned, m = two_sample(a, b), two_sample(b, a), mean_interval(a[0] - b.mean(0))
    assert (f['seeds'], f['seeds_of'], turned['seeds_of']) == (1, (1, 4), (4, 1))
    assert np.allclose((f['lo'], f['hi']), (m['lo'], m['hi'])) and f['se_seeds'] == 0
    assert math.isclose(turned['lo'], -f['hi'])
    paired = two_sample(b[:1], a)
    assert math.isclose(paired['se'], two_level(b[:1] - a)['se'])


@pytest.mark.parametrize(
    'name, a, b',
    [
        ('a', [1.0], [1.0, 2.0]),
        ('b', [1.0, 2.0], [1.0]),
        ('b', [[1.0, 2.0]], [[1.0, math.nan]]),
        ('a, b', np.zeros((2, 3)), np.zeros((2, 4))),
        ('a', [['x', 'y']], [[1, 2]]),
    ],
    ids=str,
)
def test_two_samples_refused(name, a, b):
    with pytest.raises(ParameterError, match=f'^{name}=.*expected'):
        two_sample(a, b)
    with pytest.raises(ParameterError, match='^confidence='):
        two_sample([1.0, 2], [1.0, 2], confidence=95)


def test_counted():
    f = counted(np.float32(0.5))
    assert f == dict(estimate=0.5, lo=0.5, hi=0.5, se=0.0, df=inf, seeds=0, n=0) and type(f['lo']) is float
    for bad in math.nan, inf:
        with pytest.raises(ParameterError, match='value='):
            counted(bad)


@pytest.mark.parametrize('d', [np.zeros((3, 40)), np.zeros((1, 40)), np.zeros(4), np.full((2, 7), 0.1)])
def test_no_spread(d):
    f = two_level(d)
    assert f['se'] == 0 and f['lo'] == f['hi'] == f['estimate'] and f['df'] >= 1
    words = {verdict(f, bounds)[0] for bounds in ((-2, 2), (0.5, inf))}
    assert words == {'one network' if f['seeds'] == 1 else 'inconclusive'}


@pytest.mark.parametrize(
    'd',
    [[[1.0]], [1.0], [], [[1.0, math.nan]], [[1.0, inf]], np.zeros((2, 2, 2)), 3.0, [['a', 'b']], [[1j, 2]]],
    ids=str,
)
def test_refused(d):
    with pytest.raises(ParameterError, match='^d=.*expected') as e:
        two_level(d)
    assert '\n' not in str(e.value)


# Coverage at 95 %: tables that are drawn, and many settings by what the sums of squares of normal effects are


def percentiles(d, rng, boots=200):
    "The naive interval: quantiles of the bootstrap's means, seeds and examples drawn anew"
    S, n = d.shape
    means = [d[rng.integers(S, size=S)][:, rng.integers(n, size=n)].mean() for _ in range(boots)]
    return np.quantile(means, [0.025, 0.975])


def one_t(d):
    "The two standard errors and one Student's t with Satterthwaite's degrees of freedom"
    f = two_level(d)
    s, i = f['se_seeds'] ** 2, f['se_examples'] ** 2
    half = math.sqrt(s + i) * student.ppf(
        0.975, (s + i) ** 2 / (s**2 / (f['seeds'] - 1) + i**2 / (f['n'] - 1))
    )
    return f['estimate'] - half, f['estimate'] + half


def ours(d):
    f = two_level(d)
    return f['lo'], f['hi']


def coverage(interval, S, seeds, reps=300, n=100):
    held = 0
    for k in range(reps):
        lo, hi = interval(normal(np.random.default_rng([k, S]), S, n, seeds, 3, 3))
        held += lo <= 0 <= hi
    return held / reps


@pytest.mark.parametrize('S', [2, 3, 5])
@pytest.mark.parametrize('seeds', [0, 1, 5])
def test_covers_tables(S, seeds):
    assert coverage(ours, S, seeds) > 0.915


def test_what_does_not_cover_is_found_out():
    "The same check fails the naive percentiles, and one t, with two seeds"
    rng = np.random.default_rng(0)
    assert coverage(lambda d: percentiles(d, rng), 2, 5, reps=150) < 0.75
    assert coverage(one_t, 2, 1.5) < 0.915


@pytest.mark.parametrize('S_a, S_b', [(2, 2), (3, 3), (2, 5), (5, 5)])
@pytest.mark.parametrize('effect', [0, 3])
def test_covers_right_and_wrong(S_a, S_b, effect):
    "Two equally good methods, right or wrong on the same images; seeds have an effect of so many points"
    held, reps = 0, 250
    for k in range(reps):
        rng = np.random.default_rng(k)
        easy = rng.beta(0.7, 0.4, 360)
        a, b = (
            100.0 * (rng.random((S, 360)) < easy + rng.normal(0, effect / 100, (S, 1))) for S in (S_a, S_b)
        )
        f = two_sample(a, b)
        held += f['lo'] <= 0 <= f['hi']
    assert held / reps > 0.91


DFS = 1 / np.linspace(1, 0.01, 2000)  # a table of quantiles: stdtrit is slow for so many
QUANTILES = stdtrit(DFS, 0.975)


def quantile(df):
    return np.interp(-1 / np.asarray(df, dtype=float), -1 / DFS, QUANTILES)


def welch_df(variances, seeds):
    return sum(variances) ** 2 / sum(v**2 / (S - 1) for v, S in zip(variances, seeds, strict=True))


def df_of_seeds(variances, seeds):
    "Of one side, S − 1; of two, Welch's for the fewer seeds, the gain over one side times the ratio of seeds"
    fewest, most = min(seeds), max(seeds)
    if len(seeds) == 1 or fewest == 2:
        return fewest - 1.0
    return fewest - 1 + (welch_df(variances, (fewest, fewest)) - fewest + 1) * fewest / most


def half_width(by_seeds, by_examples, seeds, n, df=df_of_seeds):
    of_seeds = quantile(df(by_seeds, seeds)) ** 2 * sum(by_seeds)
    return np.sqrt(of_seeds + stdtrit(n - 1, 0.975) ** 2 * np.maximum(by_examples, 0))


@pytest.mark.parametrize('seeds', [(2,), (5,), (2, 2), (2, 6), (3, 3), (3, 10), (6, 4)])
def test_half_width_is_that_of_the_library(seeds):
    for k in range(5):
        rng = np.random.default_rng(k)
        effect, n = rng.uniform(0.1, 3), 20
        hard = rng.normal(0, 5, n)
        sides = [normal(rng, S, n, effect, 0, 4) + s * hard for s, S in enumerate(seeds)]
        f = two_level(sides[0]) if len(seeds) == 1 else two_sample(*sides)
        by_seeds, _, rest = np.transpose([mean_variances(d) for d in sides])
        column = sides[0].mean(0) - (sides[1].mean(0) if len(seeds) == 2 else 0)
        half = half_width(by_seeds, column.var(ddof=1) / n - rest.sum(), seeds, n)
        assert math.isclose(f['hi'] - f['estimate'], half, rel_tol=1e-4)


def coverage_of_squares(seeds, n, effects, of_image, of_both, df=df_of_seeds, reps=20_000):
    "The sums of squares of normal effects are independent multiples of chi-squared numbers, and of the mean"
    rng = np.random.default_rng([*seeds, n, *effects])
    both = [of_both**2 / (S * n) for S in seeds]
    true = [e**2 / S + v for e, S, v in zip(effects, seeds, both, strict=True)]
    by_image = of_image**2 / n
    means = rng.normal(0, math.sqrt(sum(true) + by_image), reps)
    by_seeds = [v * rng.chisquare(S - 1, reps) / (S - 1) for v, S in zip(true, seeds, strict=True)]
    columns = (by_image + sum(both)) * rng.chisquare(n - 1, reps) / (n - 1)
    dfs = [(S - 1) * (n - 1) for S in seeds]
    rest = sum(v * rng.chisquare(k, reps) / k for v, k in zip(both, dfs, strict=True))
    return np.mean(abs(means) <= half_width(by_seeds, columns - rest, seeds, n, df))


@pytest.mark.parametrize('n', [10, 100, 10_000])
@pytest.mark.parametrize('seeds', [(2,), (3,), (5,), (10,)])
def test_covers(seeds, n):
    for effect, of_image in itertools.product((0, 1, 3), (5, 30)):
        assert coverage_of_squares(seeds, n, (effect,), of_image, 30) >= 0.94


@pytest.mark.parametrize('n', [10, 100, 10_000])
@pytest.mark.parametrize(
    'seeds', [(2, 2), (2, 3), (2, 10), (3, 3), (3, 5), (3, 10), (5, 5), (5, 10), (10, 10)]
)
def test_two_samples_cover(seeds, n):
    "Also where the seeds of one method differ more than those of the other, and where images hardly vary"
    for effects, of_image in itertools.product(((0, 0), (1, 1), (3, 3), (0, 3), (3, 1)), (0, 30)):
        assert coverage_of_squares(seeds, n, effects, of_image, 30) >= 0.94


def test_plain_welch_would_not_cover():
    "The same simulation finds out the degrees of freedom that are too many with few or unequal seeds"
    for seeds, effects, most in (((2, 10), (3, 3), 0.91), ((2, 5), (3, 1), 0.92), ((3, 10), (3, 1), 0.935)):
        assert coverage_of_squares(seeds, 10_000, effects, 0, 10, welch_df) < most


def test_false_positives_of_equivalence_at_the_margin():
    "Where the truth is the margin itself, at most alpha may be called the same; well inside, most are"
    margin, rates = 1.0, {}
    for truth in (1.0, 0.0):
        p = [
            p_outside(
                two_level(truth + normal(np.random.default_rng(k), 4, 150, 0.15, 1.5, 1.5)),
                (-margin, margin),
            )
            for k in range(500)
        ]
        rates[truth] = np.mean(np.array(p) <= 0.05)
    assert 0.005 < rates[1.0] < 0.075 and rates[0.0] > 0.8
    cells = [
        cell_verdict(np.random.default_rng(k).random((3, 1500)) < 0.52, 50.0, same=True)['verdict']
        for k in range(40)
    ]
    assert cells.count('supported') <= 4


def test_false_positives_against_a_claim_at_its_bound():
    "Where the truth is the bound, at most alpha is called contradicted; well outside, most are"
    rates = {}
    for truth in (0.0, -1.0):
        tables = [truth + normal(np.random.default_rng(k), 4, 150, 0.15, 1.5, 1.5) for k in range(400)]
        rates[truth] = np.mean([p_inside(two_level(d), (0, inf)) <= 0.05 for d in tables])
    assert 0.005 < rates[0.0] < 0.075 and rates[-1.0] > 0.8


# Tests


def test_p_outside_is_a_t_test():
    v = np.random.default_rng(0).normal(0.4, 1, 12)
    f = two_level(v)
    for bounds, other in ((0, inf), 'greater'), ((-inf, 0.5), 'less'):
        assert math.isclose(
            p_outside(f, bounds),
            ttest_1samp(v, max(b for b in bounds if math.isfinite(b)), alternative=other).pvalue,
            rel_tol=1e-5,
        )
    assert p_outside(f, (-1, 1)) == max(p_outside(f, (-1, inf)), p_outside(f, (-inf, 1)))


def test_p_and_interval_agree():
    "A one-sided p of alpha is an interval of 1 - 2 alpha that ends at the bound, with both parts in it"
    d = normal(np.random.default_rng(2), 3, 200, 0.5, 3, 3)
    for alpha in 0.3, 0.05, 0.025, 0.001:
        f = two_level(d, confidence=1 - 2 * alpha)
        assert math.isclose(p_outside(f, (f['lo'], inf)), alpha, rel_tol=1e-5) and math.isclose(
            p_outside(f, (-inf, f['hi'])), alpha, rel_tol=1e-5
        )
        assert math.isclose(p_outside(f, (f['hi'], inf)), 1 - alpha, rel_tol=1e-5)


def test_mcnemar():
    rng = np.random.default_rng(0)
    for n in 1, 10, 200:
        for rate in 0.5, 0.8:
            a, b = rng.random(n) < rate, rng.random(n) < 0.5
            m = mcnemar(a, b)
            pairs = list(zip(a, b, strict=True))
            one, two = sum(x and not y for x, y in pairs), sum(y and not x for x, y in pairs)
            assert (m['n'], m['only_a'], m['only_b']) == (n, one, two) and math.isclose(
                m['p'], binomtest(one, one + two).pvalue if one + two else 1.0, rel_tol=1e-9
            )
    for bad in ([1, 0], [True, False]), ([True], [True, False]):
        with pytest.raises(ParameterError):
            mcnemar(*bad)


def test_p_inside_is_the_other_side():
    "One-sided tests add up to 1; with two bounds it is a two-sided test of an interval"
    v = np.random.default_rng(0).normal(0.4, 1, 12)
    f = two_level(v)
    less = ttest_1samp(v, 0, alternative='less').pvalue
    assert math.isclose(p_inside(f, (0, inf)), less, rel_tol=1e-5)
    assert math.isclose(p_inside(f, (0, inf)) + p_outside(f, (0, inf)), 1)
    point = ttest_1samp(v, -0.3).pvalue  # of bounds that nearly meet: the plain two-sided test
    assert math.isclose(p_inside(f, (-0.3 - 1e-9, -0.3)), point, rel_tol=1e-5)
    assert p_inside(f, (-1, 1)) > 0.5 and p_inside(f, (-9, -2)) < 1e-4 and p_inside(f, (2, 9)) < 1e-3


def test_degrees_of_freedom_are_used():
    "Those of two samples, in the interval and in both p values"
    f = combined_interval(2.0, 1.0, 0.0, 3, 9, df_seeds=3.4)
    assert math.isclose(f['hi'] - 2, student.ppf(0.975, 3.4)) and math.isclose(f['df'], 3.4)
    assert math.isclose(p_outside(f, (0, inf)), student.sf(2, 3.4), rel_tol=1e-6)
    assert math.isclose(p_inside(f, (0, inf)), student.cdf(2, 3.4), rel_tol=1e-6)
    both = combined_interval(2.0, 1.0, 0.5, 3, 9, df_seeds=3.4)
    assert math.isclose(both['hi'] - 2, math.hypot(student.ppf(0.975, 3.4), 0.5 * student.ppf(0.975, 8)))
    assert 'df_seeds' not in combined_interval(2.0, 1.0, 0.0, 3, 9)


# Words

GATE = Condition('inner problem', 'gate', True, '0.90, at least 0.85')
NO_GATE = Condition('inner problem', 'gate', False, '0.58, at least 0.85')
NO_PREMISE = Condition('the loss bends', 'premise', False, '0.8 points, at least 3')
UNKNOWN = Condition('the loss bends', 'premise', None, '')

CASES = [  # the word, what was found, bounds, published, options
    ('supported', found(2, 0.5), (0, inf), 2.3, {}),
    ('supported', found(2, 0.5, seeds=2), (0, inf), 2.3, dict(p=0.025)),  # p may be alpha itself
    ('supported', found(1, 0.2), (0, inf), 2.3, {}),  # smaller than published, and yet better
    ('supported', found(0.1, 0.5), (-2, 2), 0.0, {}),
    ('supported', found(-2, 0.5), (-inf, 0), -2.0, {}),
    ('supported', found(4, 0.5), (-2, inf), -0.5, {}),  # not worse: a gain does not fail it
    ('supported', found(2, 0.5), (0, inf), None, dict(conditions=[GATE])),
    ('supported', found(2, 0.5), (0, inf), None, dict(p_against=1.0)),
    ('contradicted', found(-2, 0.5), (0, inf), 2.3, {}),
    ('contradicted', found(-2, 0.5), (0, inf), None, dict(p=1.0, p_against=0.025)),
    ('contradicted', found(2, 0.5), (-inf, 0), -2.0, {}),
    ('contradicted', found(5, 0.5), (-2, 2), 0.0, {}),
    ('contradicted', found(-5, 0.5), (-2, inf), -0.5, {}),
    ('smaller than published', found(0.2, 0.6), (0, inf), 2.3, {}),  # cannot tell from 0, but from 2.3
    ('smaller than published', found(-0.2, 0.6), (-inf, 0), -2.3, {}),
    ('smaller than published', found(-2.2, 0.5), (-2, inf), -0.5, {}),
    ('inconclusive', found(-2, 0.9), (0, inf), 2.3, dict(p_against=0.3)),
    ('inconclusive', found(2, 1.5), (0, inf), 2.3, {}),
    ('inconclusive', found(-0.5, 1.5), (0, inf), 2.3, {}),
    ('inconclusive', found(0.2, 0.6), (0, inf), None, {}),  # nothing was published that it could exclude
    ('inconclusive', found(0, 3), (-2, 2), 0.0, {}),
    ('inconclusive', found(2, 0.5), (-2, 2), 0.0, {}),  # at the margin of "the same"
    ('inconclusive', found(0.5, 0.3), (-inf, 0), 0.14, {}),  # what was published is no case of the claim
    ('inconclusive', found(2, 0.5), (-inf, 0), 0.14, dict(p_against=0.3)),
    ('inconclusive', found(4, 2.2), (0, inf), 2.3, {}),
    ('inconclusive', found(2, 0.5), (0, inf), 2.3, dict(p=0.0250001)),
    ('inconclusive', found(0, 0), (0, inf), 2.3, {}),  # no spread is no evidence, for or against
    ('inconclusive', found(9, 0), (-2, 2), 0.0, dict(p=0.0)),
    ('not testable here', found(2, 0.5), (0, inf), 2.3, dict(conditions=[NO_GATE])),
    ('not testable here', found(-2, 0.5), (0, inf), 2.3, dict(conditions=[GATE, NO_PREMISE])),
    ('not testable here', found(-2, 0.5, seeds=1), (0, inf), 2.3, dict(conditions=[NO_GATE])),
    ('not testable here', counted(3.0), (0, inf), 2.3, dict(conditions=[NO_PREMISE])),
    ('one network', found(2, 0.5, seeds=1), (0, inf), 2.3, {}),
    ('one network', found(-2, 0.5, seeds=1), (0, inf), 2.3, dict(p_against=0.0)),
    ('one network', found(0.2, 0.6, seeds=1), (0, inf), 2.3, {}),
    ('one network', found(0, 0, seeds=1), (0, inf), 2.3, {}),
    ('not complete', found(2, 0.5), (0, inf), 2.3, dict(missing='3 of 5 declared seeds')),
    (
        'not complete',
        found(2, 0.5),
        (0, inf),
        2.3,
        dict(missing='3 of 5 declared seeds', conditions=[NO_GATE]),
    ),
    ('not run', None, (0, inf), 2.3, {}),
    ('not run', None, (0, inf), 2.3, dict(conditions=[NO_GATE, UNKNOWN])),
    ('not complete', None, (0, inf), 2.3, dict(missing='0 of 5 declared seeds', conditions=[NO_GATE])),
    ('not testable here', found(2, 0.5), (0, inf), 2.3, dict(conditions=[GATE, UNKNOWN])),
    ('one network', found(2, 0.5, seeds=1), (0, inf), 2.3, dict(conditions=[UNKNOWN])),
    ('supported', counted(3.0), (0, inf), 2.3, dict(conditions=[UNKNOWN])),
    ('supported', counted(-0.75), (-inf, -0.3), -0.7, {}),
    ('contradicted', counted(-0.1), (-inf, -0.3), -0.7, {}),
]


def test_every_word_has_its_cases():
    assert {case[0] for case in CASES} == set(WORDS)


@pytest.mark.parametrize('word, f, bounds, published, options', CASES)
def test_words(word, f, bounds, published, options):
    said, why = verdict(f, bounds, published, **options)
    assert said == word and why and '\n' not in why
    unmeasured = word == 'not testable here' and any(c.met is None for c in options['conditions'])
    assert f is None or unmeasured or any(c.isdigit() for c in why)


def test_never_from_a_difference_alone():
    for estimate, bounds, published in (2.0, (0, inf), 2.3), (-1.0, (0, inf), 2.3), (0.5, (-2, 2), 0.0):
        words = [verdict(found(estimate, se), bounds, published)[0] for se in (0.1, 5.0)]
        assert words[0] != words[1] == 'inconclusive'


@pytest.mark.parametrize('bounds', [(0, inf), (-inf, 0), (-2, inf), (-2, 2)])
def test_one_network_never_gets_a_verdict(bounds):
    "However far it is off, and whatever p value it is given; it says for, against or neither"
    sides = set()
    for estimate, se in itertools.product((-50, -3, -1, 0, 1, 3, 50), (1e-9, 0.1, 1, 9)):
        for p in None, 0.0:
            word, why = verdict(found(estimate, se, seeds=1), bounds, 2.3, p=p, p_against=p)
            assert word == 'one network' and 'images only' in why
            sides.add(why.split(':')[0])
    assert sides == {'for', 'against', 'neither'}


def test_one_network_on_either_side_never_gets_a_verdict():
    "Tables of one side with one network, judged with and without others"
    rng = np.random.default_rng(0)
    five = rng.normal(0, 1, (5, 200))
    for one in (five[:1] + 9, five[:1] - 9):
        f = dict(a=two_sample(one, five), b=two_sample(five, one), c=two_level(one), d=two_level(five + 9))
        rows = judge([Claim(k, k, (0, inf), 2.3, primary=k == 'a') for k in 'abcd'], f)
        assert rows.verdict.tolist() == ['one network'] * 3 + ['supported']
        assert rows.seeds.tolist() == ['1, 5', '5, 1', '1', '5']
        assert rows.p[:3].isna().all() and rows.p_adjusted[3] == rows.p[3]


@pytest.mark.parametrize('bounds', [(0, inf), (-inf, 0), (-2, inf), (-2, 2)])
def test_word_and_interval_agree(bounds):
    "Supported: the interval of 95 % lies within the bounds; contradicted: on their wrong side. With S seeds too"
    words = set()
    for k, estimate in enumerate(np.linspace(-4, 4, 161)):
        f = combined_interval(estimate, 0.3, 0.2, 2 + k % 5, 100, df_seeds=1.2 + k % 5)
        word = verdict(f, bounds)[0]
        assert (word == 'supported') == (bounds[0] < f['lo'] and f['hi'] < bounds[1])
        assert (word == 'contradicted') == (f['hi'] < bounds[0] or f['lo'] > bounds[1])
        words.add(word)
    assert len(words) == 3


def test_an_interval_that_holds_the_bound_is_never_supported():
    "One-sided at 5 % beside a two-sided interval of 95 %: [-0.1, 4.1] was called reproduced"
    f = found(2.0, 1.0)
    assert f['lo'] < 0 and p_outside(f, (0, inf)) < 0.05
    assert verdict(f, (0, inf), 2.3)[0] == 'inconclusive'


def test_level_and_confidence_may_differ():
    assert verdict(found(2, 0.9), (0, inf), 2.3)[0] == 'supported'
    word, why = verdict(found(2, 0.9), (0, inf), 2.3, alpha=0.01)
    assert word == 'inconclusive' and 'within' in why and 'above 0.01' in why


def test_why():
    f = dict(estimate=1.1, lo=-1.2, hi=3.4, se=1.1, df=20, seeds=3, n=9)
    assert verdict(f, (0, inf), 2.3)[1] == 'interval [-1.2, 3.4] covers 0 and the published 2.3'
    assert verdict(f, (0, inf), 5)[1] == 'interval [-1.2, 3.4] covers 0 and excludes the published 5'
    assert verdict(found(2, 0.5), (0, inf), conditions=[NO_GATE, NO_PREMISE])[1] == (
        'gate not met: inner problem, 0.58, at least 0.85; premise not met: the loss bends, 0.8 points, at least 3'
    )
    why = verdict(found(2, 0.5), (0, inf), conditions=[GATE, UNKNOWN])[1]
    assert why == 'premise not measured: the loss bends'
    assert verdict(found(2, 0.5, seeds=1), (0, inf), conditions=[UNKNOWN])[1].endswith(
        '; not measured: premise the loss bends'
    )
    assert verdict(counted(3), (0, inf))[1] == 'counted: 3 lies within (0, ∞)'
    assert verdict(found(2, 0.5), (0, inf), missing='3 of 5 seeds')[1] == '3 of 5 seeds'


@pytest.mark.parametrize(
    'option', [dict(alpha=2), dict(p=-0.1), dict(p_against=1.1), dict(p=math.nan)], ids=str
)
def test_levels_are_refused(option):
    with pytest.raises(ParameterError, match=f'^{[*option][0]}='):
        verdict(found(1, 1), (0, inf), **option)


def test_conditions_and_claims_are_checked():
    with pytest.raises(ParameterError, match='kind='):
        Condition('odd', 'rule', True, '')
    for source in SOURCES:
        assert Claim('k', 't', (0, inf), source=source).published_source == ''
    for name in 'source', 'published_source':
        with pytest.raises(ParameterError, match=f'^{name}='):
            Claim('k', 't', (0, inf), **{name: 'hearsay'})


@pytest.mark.parametrize('bounds', [(1, 0), (0, 0), (-inf, inf), (0, math.nan), (0,), None, 'ab'], ids=str)
def test_bounds_are_refused(bounds):
    for f in (
        lambda: verdict(None, bounds),
        lambda: p_outside(found(1, 1), bounds),
        lambda: p_inside(found(1, 1), bounds),
        lambda: Claim('k', 't', bounds),
    ):
        with pytest.raises(ParameterError, match='bounds='):
            f()


COLUMNS = (
    'key claim source statistic unit estimate lo hi published published_source seeds n p p_adjusted '
    'conditions verdict why remark'
).split()


def test_judge():
    claims = [Claim(k, f'claim {k}', (0, inf), 2.3, 'points', 'difference') for k in 'abcd'] + [
        Claim('e', 'claim e', (-2, 2), source='ours', published_source='derived from Table 1')
    ]
    f = dict(a=found(2, 0.3), b=found(2, 0.9), c=None, e=found(0, 5.0))
    rows = judge(claims, f)
    assert list(rows.columns) == COLUMNS and list(rows.key) == list('abcde')
    assert rows.verdict.tolist() == ['supported', 'inconclusive', 'not run', 'not run', 'inconclusive']
    assert rows.source.tolist() == ['poster'] * 4 + ['ours']
    assert rows.published_source.iloc[-1] == 'derived from Table 1'
    run = rows.key.isin(list('abe'))
    assert np.allclose(rows.p_adjusted[run], np.minimum(1, run.sum() * rows.p[run]))
    assert rows.loc[~run, ['p', 'p_adjusted', 'estimate']].isna().all(axis=None)
    assert rows.seeds.tolist() == ['3', '3', '0', '0', '3'] and rows.n.tolist() == [360, 360, 0, 0, 360]
    assert judge(claims[:1], f, alpha=1e-9).verdict.item() != 'supported'
    assert math.isnan(rows.published.iloc[-1])
    with pytest.raises(ParameterError, match='claims='):
        judge(claims + claims[:1], f)


def test_the_primary_claim_pays_for_no_other():
    "Nor do the others pay for it; once, all shared one level, and C1 had a chance of 2.9 % to be found"
    claims = [Claim('C1', 'first', (0, inf), primary=True)] + [Claim(k, k, (0, inf)) for k in 'abcdefgh']
    f = {c.key: found(2.0, 0.9) for c in claims}
    rows = judge(claims, f).set_index('key')
    assert rows.verdict['C1'] == 'supported' and (rows.verdict[1:] == 'inconclusive').all()
    assert rows.p_adjusted['C1'] == rows.p['C1']
    assert np.allclose(rows.p_adjusted[1:], 8 * rows.p[1:])
    against = judge(claims, {k: found(-2.0, 0.9) for k in f}).set_index('key')
    assert against.verdict['C1'] == 'contradicted' and (against.verdict[1:] == 'inconclusive').all()


def test_rows_that_are_not_tested_do_not_count():
    claims = [Claim(k, k, (0, inf)) for k in 'abcdefgh']
    f = dict(
        a=found(2.0, 0.9), b=found(2.0, 0.1), c=found(2.0, 0.1), d=found(2.0, 0.1, seeds=1), e=counted(2)
    )
    f |= dict(g=found(2.0, 0.9), h=found(2.0, 0.1))
    conditions = dict(a=[GATE], b=[NO_GATE], h=[GATE, UNKNOWN])
    rows = judge(claims, f, conditions=conditions, missing=dict(c='3 of 5 seeds'))
    rows = rows.set_index('key')
    words = ['inconclusive', 'not testable here', 'not complete', 'one network', 'supported', 'not run']
    assert rows.verdict.tolist() == [*words, 'inconclusive', 'not testable here']
    assert np.allclose(rows.p_adjusted[['a', 'g']], 2 * rows.p[['a', 'g']])
    assert rows.p_adjusted[['b', 'c', 'd', 'e', 'f', 'h']].isna().all()
    assert rows.loc['c', ['estimate', 'lo', 'hi']].isna().all() and rows.seeds['c'] == '3'
    assert rows.estimate['b'] == 2.0 and rows.estimate['d'] == 2.0
    assert rows.conditions['h'] == f'{GATE}; {UNKNOWN}' and rows.conditions['g'] == ''
    assert (rows.seeds['e'], rows.n['e']) == ('0', 0)


def test_a_row_without_spread_gains_nothing_and_helps_no_other():
    claims = [Claim(k, k, (0, inf)) for k in 'ab']
    rows = judge(claims, dict(a=found(2.0, 0.0), b=found(2.0, 0.9)))
    assert rows.p.tolist()[0] == 1 and rows.verdict.tolist() == ['inconclusive'] * 2
    assert math.isclose(rows.p_adjusted[1], 2 * rows.p[1])


def test_levels_are_those_of_the_test():
    "A claim is found exactly if its p value is at most its level"
    claims = [Claim('C1', 'first', (0, inf), primary=True)] + [Claim(k, k, (0, inf)) for k in 'abcd']
    f = {c.key: found(2.0, 0.9) for c in claims} | dict(d=None)
    levels = claim_levels(claims, judge(claims, f))
    assert levels == pytest.approx(dict(C1=0.025, a=0.025 / 3, b=0.025 / 3, c=0.025 / 3, d=0.025 / 4))
    others = {k: found(9.0, 1.0) for k in ('C1', 'b', 'c')}  # that the others are found is of no help
    for p, word in (0.99 * levels['a'], 'supported'), (1.01 * levels['a'], 'inconclusive'):
        for side, words in (1, word), (-1, word.replace('supported', 'contradicted')):
            just = found(side * student.isf(p, 20.0), 1.0)
            assert judge(claims, others | dict(a=just)).set_index('key').verdict['a'] == words
    one = judge(claims, dict(C1=None, a=found(2.0, 0.9)))
    assert claim_levels(claims, one) == pytest.approx(dict(C1=0.025, a=0.025, b=0.0125, c=0.0125, d=0.0125))
    assert one.p_adjusted[1] == one.p[1]


def any_false_word(reps, how):
    """How often a table of independent claims has any false word; every other claim is true, by next to nothing

    Independent claims whose standard errors are known: there, errors are as many as they can be. The controls:
    the primary claim alone, and the others as a family of their own at 5 %; and nothing corrected.
    """
    rng, errors, claims = np.random.default_rng(0), 0, []
    for k in range(9):
        claims.append(Claim(f'c{k}', 'c', (0 if k % 2 else -1e-9, inf), primary=k == 0))
    wrong = ['supported' if k % 2 else 'contradicted' for k in range(9)]
    tables = dict(judge=[(claims, 0.025)], two_families=[(claims[:1], 0.025), (claims[1:], 0.05)])
    tables['nothing'] = [([claim], 0.025) for claim in claims]
    for z in rng.normal(0, 1, (reps, 9)):
        f = {c.key: found(of_claim, 1.0, df=1e9) for c, of_claim in zip(claims, z, strict=True)}
        words = [word for table, alpha in tables[how] for word in judge(table, f, alpha=alpha).verdict]
        errors += any(word == of_claim for word, of_claim in zip(words, wrong, strict=True))
    return errors / reps


def test_any_false_word_of_a_whole_table():
    "At most 5 %; three standard errors more are 6.1 %. Other procedures with 7.3 and 20 % are found out"
    assert 0.035 < any_false_word(3500, 'judge') <= 0.061
    assert any_false_word(3500, 'two_families') > 0.061
    assert any_false_word(300, 'nothing') > 0.1


def test_any_false_word_however_claims_depend():
    "All claims find the same, or the opposite: false words come together, and so in fewer tables"
    claims = [Claim(f'c{k}', 'c', (0, inf), primary=k == 0) for k in range(9)]
    for sign in 1, -1:
        errors, rng = 0, np.random.default_rng(1)
        for z in rng.normal(0, 1, 800):
            f = {c.key: found(z * (sign if k % 2 else 1), 1.0, df=1e9) for k, c in enumerate(claims)}
            errors += judge(claims, f).verdict.eq('supported').any()
        assert errors / 800 <= 0.05 + 3 * (0.05 * 0.95 / 800) ** 0.5


def family_errors(S, effect, reps, secondary=8):
    """How often a table of claims holds a false word: the primary claim, any of the others, any of all

    All claims share one side, and its seeds and images. Half of them are false, with the truth at the bound:
    there "supported" is an error. The others are true, by next to nothing: there "contradicted" is one.
    """
    keys = ['C1', *(f's{k}' for k in range(secondary))]
    claims = [Claim(k, k, (0, inf) if i % 2 else (-1e-9, inf), primary=k == 'C1') for i, k in enumerate(keys)]
    wrong = {k: 'supported' if i % 2 else 'contradicted' for i, k in enumerate(keys)}
    errors = np.zeros(3)
    for rep in range(reps):
        rng = np.random.default_rng([rep, S, effect])
        n = 30
        hard = rng.normal(0, 20, n)
        base = rng.normal(0, effect, (S, 1)) + hard + rng.normal(0, 10, (S, n))
        f = {}
        for k in keys:
            other = rng.normal(0, effect, (S, 1)) + hard + rng.normal(0, 10, (S, n))
            f[k] = two_sample(other, base)
        word = dict(judge(claims, f)[['key', 'verdict']].values)
        is_wrong = [word[k] == wrong[k] for k in keys]
        errors += is_wrong[0], any(is_wrong[1:]), any(is_wrong)
    return errors / reps


def family_error_of_seeds(S, claims, reps, counted_claims):
    """Any false word, of one number a seed: no image adds to the width, so errors are as many as there can be

    The correction is written out; the p values are SciPy's. `counted_claims`: how many share the level.
    """
    rng = np.random.default_rng([S, claims])
    a, b = rng.normal(0, 1, (reps, claims, S)), rng.normal(0, 1, (reps, 1, S))
    va, vb = a.var(-1, ddof=1) / S, b.var(-1, ddof=1) / S
    df = df_of_seeds((va, vb), (S, S))
    p = student.sf((a.mean(-1) - b.mean(-1)) / np.sqrt(va + vb), df)
    is_false = np.arange(claims) < claims // 2  # these are wrong if supported, the others if contradicted
    wrong = np.where(is_false, p, 1 - p) <= 0.025 / counted_claims
    return wrong.any(1).mean()


@pytest.mark.parametrize('S', [2, 3, 5, 10])
def test_family_error_of_many_claims(S):
    "Any false word among twelve; the same check finds out a table whose claims are not counted"
    assert family_error_of_seeds(S, 12, 20_000, 12) <= 0.025
    if S > 2:
        assert family_error_of_seeds(S, 12, 4000, 1) > 0.1


@pytest.mark.parametrize('S, effect', [(2, 3), (3, 3)])
def test_family_error_of_judge(S, effect):
    primary, others, all_of_them = family_errors(S, effect, 50)
    assert primary <= 0.1 and others <= 0.1 and all_of_them <= 0.15  # three standard errors; see the slow one


@pytest.mark.slow
@pytest.mark.parametrize('S', [2, 3, 5, 10])
@pytest.mark.parametrize('effect', [0, 1, 3])
def test_family_error_of_judge_in_full(S, effect):
    primary, others, all_of_them = family_errors(S, effect, 800)
    assert primary <= 0.035 and others <= 0.035 and all_of_them <= 0.05


# Cells of a table


def right(rate, S=3, n=10000):
    "Three networks near a rate, or one that has it exactly"
    rng = np.random.default_rng([S, n])
    return rng.random((S, n)) < rate if S > 1 else rng.permutation(np.arange(n) < rate * n)[None]


@pytest.mark.parametrize(
    'word, args, published, same',
    [
        ('supported', (0.5, 5), 50.0, True),
        ('one network', (0.5, 1), 50.0, True),
        ('inconclusive', (0.5, 3, 200), 50.0, True),
        ('contradicted', (0.6, 3), 50.0, True),
        ('one network', (0.6, 1), 50.0, True),
        ('supported', (0.0, 3, 2000), 0.0, True),
        ('one network', (1.0, 1, 2000), 100.0, True),
        ('one network', (0.0, 1, 50), 0.0, True),
        ('other scale', (0.5, 3), 50.0, False),
        ('no published value', (0.5, 3), None, True),
        ('not run', None, 50.0, True),
    ],
)
def test_cells(word, args, published, same):
    c = cell_verdict(args and right(*args), published, same=same)
    assert (
        list(c) == 'accuracy lo hi seeds n diff diff_lo diff_hi p verdict why'.split()
        and c['verdict'] == word
        and c['why']
    )
    if args:
        assert (
            0 <= c['lo'] <= c['accuracy'] <= c['hi'] <= 100
            and c['lo'] < c['hi']
            and (c['seeds'], c['n']) == right(*args).shape
        )
    assert math.isnan(c['p']) == (word not in ('supported', 'contradicted', 'inconclusive'))
    assert ('images only' in c['why']) == (word == 'one network')


@pytest.mark.parametrize('side, rate', [('for', 0.5), ('against', 0.6), ('neither', 0.52)])
def test_a_cell_of_one_network_says_which_side(side, rate):
    c = cell_verdict(right(rate, 1), 50.0, same=True)
    assert c['verdict'] == 'one network' and c['why'].startswith(f'{side}: ')


def test_a_cell_and_its_interval_agree():
    "Supported: the interval of 95 % lies within the margin; contradicted: outside of it"
    words = set()
    for k, rate in enumerate(np.linspace(0.44, 0.56, 61)):
        c = cell_verdict(np.random.default_rng(k).random((5, 8000)) < rate, 50.0, same=True)
        assert (c['verdict'] == 'supported') == (-2 < c['diff_lo'] and c['diff_hi'] < 2)
        assert (c['verdict'] == 'contradicted') == (c['diff_hi'] < -2 or c['diff_lo'] > 2)
        words.add(c['verdict'])
    assert words == {'supported', 'contradicted', 'inconclusive'}


def test_errors_of_both_numbers_count():
    mine, z = right(0.5, 1), 1.96

    def half(**kw):
        c = cell_verdict(mine, 50.0, same=True, **kw)
        return (c['diff_hi'] - c['diff_lo']) / 2

    assert math.isclose(half(), z * 50 * math.sqrt(2 / 10000), rel_tol=0.01) and math.isclose(
        half(n_published=100), z * 50 * math.sqrt(1 / 10000 + 1 / 104), rel_tol=0.01
    )
    nothing = cell_verdict(right(0.0, 1), 0.0, same=True)
    assert 0.01 < nothing['diff_hi'] < 0.1  # 0 of 10 000, twice


@pytest.mark.parametrize(
    'change',
    [
        dict(published=101.0),
        dict(published=math.nan),
        dict(margin=0.0),
        dict(n_published=0),
        dict(alpha=2.0),
        dict(right=np.ones((2, 9))),
        dict(right=np.ones(9, bool)),
    ],
    ids=str,
)
def test_cells_refuse(change):
    with pytest.raises(ParameterError, match=f'^{[*change][0]}='):
        cell_verdict(**dict(right=right(0.5, 2, 20), published=50.0, same=True) | change)
