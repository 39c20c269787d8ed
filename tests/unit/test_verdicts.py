"Verdicts on claims: against plain formulations, other libraries, known simulations, records made by hand"

import math

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp
from scipy.stats import t as student

from adt_repro.base.parameters import ParameterError
from adt_repro.base.stats import holm, mcnemar, mean_interval, p_outside, two_level
from adt_repro.paper.verdicts import Claim, cell_verdict, judge, verdict

inf = math.inf


def normal(rng, S, n, seeds, examples, both):
    "(S, n) normal differences whose truth is 0, with three standard deviations"
    return rng.normal(0, seeds, (S, 1)) + rng.normal(0, examples, n) + rng.normal(0, both, (S, n))


def found(estimate, se, seeds=3, df=20.0):
    half = se * student.ppf(0.975, df)
    return dict(estimate=estimate, lo=estimate - half, hi=estimate + half, se=se, df=df, seeds=seeds, n=360)


# The bootstrap


def plain_bootstrap(d, boots, rng):
    "Means of rows and columns drawn anew, in two loops"
    S, n = d.shape
    for _ in range(boots):
        rows, columns, total = [rng.integers(S) for _ in range(S)], [rng.integers(n) for _ in range(n)], 0.0
        for s in rows:
            for i in columns:
                total += d[s, i]
        yield total / (S * n)


def test_against_a_plain_bootstrap():
    d = normal(np.random.default_rng(0), 4, 12, 1, 2, 0.0)  # no interaction: nothing is counted twice
    slow, rows, columns = (
        np.var(list(plain_bootstrap(d, 4000, np.random.default_rng(1)))),
        d.mean(1),
        d.mean(0),
    )
    f = two_level(d, boots=20000)
    assert math.isclose(slow, 3 / 4 * f['se_seeds'] ** 2 + 11 / 12 * f['se_examples'] ** 2, rel_tol=0.06)
    assert math.isclose(f['se_seeds'], rows.std(ddof=1) / 2, rel_tol=0.02) and math.isclose(
        f['se_examples'], columns.std(ddof=1) / 12**0.5, rel_tol=0.02
    )
    assert (
        f['estimate'] == d.mean()
        and math.isclose(f['hi'] - f['estimate'], f['estimate'] - f['lo'])
        and math.isclose(f['se'] * student.ppf(0.975, f['df']), f['hi'] - f['estimate'], rel_tol=1e-6)
    )


def test_what_is_in_rows_and_columns_is_counted_once():
    "The mean of independent numbers, whichever way they are arranged"
    se = [two_level(normal(np.random.default_rng(k), 8, 60, 0, 0, 1), boots=4000)['se'] for k in range(40)]
    assert (
        0.9 < np.sqrt(np.mean(np.square(se))) * 480**0.5 < 1.25
    )  # counted thrice: 1.73; never below what the rows show, hence a little above 1


@pytest.mark.parametrize('turned', [False, True])
def test_one_level_is_student(turned):
    v = np.random.default_rng(0).normal(1, 2, 30)
    f, m = two_level(v[None] if turned else v, boots=20000), mean_interval(v)
    assert (f['seeds'], f['n']) == ((1, 30) if turned else (30, 1)) and f['df'] == 29
    assert (
        math.isclose(f['estimate'], m['mean'])
        and math.isclose(f['hi'], m['hi'], rel_tol=0.03)
        and math.isclose(f['se'], v.std(ddof=1) / 30**0.5, rel_tol=0.02)
    )


def test_pairs_stay_pairs():
    d = normal(np.random.default_rng(0), 3, 50, 1, 1, 1)
    order = np.random.default_rng(1).permutation(50)
    a, b = two_level(d, boots=20000), two_level(d[::-1][:, order], boots=20000)
    assert math.isclose(a['estimate'], b['estimate']) and math.isclose(a['se'], b['se'], rel_tol=0.03)
    mixed = np.array(
        [np.random.default_rng(k).permutation(row) for k, row in enumerate(d)]
    )  # no longer the same example in a column
    assert two_level(mixed)['se_examples'] < 0.8 * a['se_examples']


def test_blocks_of_memory_do_not_change_what_is_drawn():
    d = normal(np.random.default_rng(0), 2, 30_000, 1, 1, 1)
    f = two_level(d, boots=300)
    assert math.isclose(
        f['se_examples'],
        (d.mean(0).var() / 30_000 - 0.25 * (d[0] - d[1]).var() / 60_000 * 2) ** 0.5,
        rel_tol=0.2,
    ) and f == two_level(d, boots=300)


@pytest.mark.parametrize('d', [np.zeros((3, 40)), np.zeros((1, 40)), np.zeros(4), np.full((2, 7), 0.1)])
def test_no_spread(d):
    f = two_level(d)
    assert f['se'] == 0 and f['lo'] == f['hi'] == f['estimate'] and f['df'] >= 1
    assert verdict(f, (-2, 2))[0] == verdict(f, (0.5, inf), 2.0)[0] == 'underpowered'


@pytest.mark.parametrize(
    'd',
    [[[1.0]], [1.0], [], [[1.0, math.nan]], [[1.0, inf]], np.zeros((2, 2, 2)), 3.0, [['a', 'b']], [[1j, 2]]],
    ids=str,
)
def test_refused(d):
    with pytest.raises(ParameterError, match='^d=.*expected') as e:
        two_level(d)
    assert '\n' not in str(e.value)


# Coverage: at 95 %, 300 repetitions, a standard error of 1.3 points


def percentiles(d, rng, boots=200):
    "The naive interval: quantiles of the bootstrap's means, seeds and examples drawn anew"
    S, n = d.shape
    means = [d[rng.integers(S, size=S)][:, rng.integers(n, size=n)].mean() for _ in range(boots)]
    return np.quantile(means, [0.025, 0.975])


def one_t(d):
    "The bootstrap's standard error and one Student's t with Satterthwaite's degrees of freedom"
    f = two_level(d, boots=200)
    s, i = f['se_seeds'] ** 2, f['se_examples'] ** 2
    half = math.sqrt(s + i) * student.ppf(
        0.975, (s + i) ** 2 / (s**2 / (f['seeds'] - 1) + i**2 / (f['n'] - 1))
    )
    return f['estimate'] - half, f['estimate'] + half


def ours(d):
    f = two_level(d, boots=200)
    return f['lo'], f['hi']


def coverage(interval, S, seeds, reps=300, n=100):
    held = 0
    for k in range(reps):
        lo, hi = interval(normal(np.random.default_rng([k, S]), S, n, seeds, 3, 3))
        held += lo <= 0 <= hi
    return held / reps


@pytest.mark.parametrize('S', [2, 3, 5])
@pytest.mark.parametrize('seeds', [0, 0.3, 1, 5])
def test_covers(S, seeds):
    assert coverage(ours, S, seeds) > 0.915


def test_what_does_not_cover_is_found_out():
    "The same check fails the naive percentiles, and one t, with two seeds"
    rng = np.random.default_rng(0)
    assert coverage(lambda d: percentiles(d, rng), 2, 5) < 0.75
    assert coverage(one_t, 2, 1.5) < 0.915


def test_covers_right_and_wrong():
    "Two equally good methods, right or wrong on the same images; with two seeds that differ by 3 points"
    held = 0
    for k in range(300):
        rng = np.random.default_rng(k)
        easy, luck = rng.beta(0.7, 0.4, 360), rng.normal(0, 0.015, (2, 1))
        d = 100.0 * ((rng.random((2, 360)) < easy + luck) - 1 * (rng.random((2, 360)) < easy - luck))
        lo, hi = ours(d)
        held += lo <= 0 <= hi
    assert held / 300 > 0.915


def test_false_positives_of_equivalence_at_the_margin():
    "Where the truth is the margin itself, at most alpha may be called the same; well inside, most are"
    margin, rates = 1.0, {}
    for truth in (1.0, 0.0):
        p = [
            p_outside(
                two_level(truth + normal(np.random.default_rng(k), 4, 150, 0.15, 1.5, 1.5), boots=100),
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
    assert cells.count('reproduced') <= 6


# Tests


def test_p_outside_is_a_t_test():
    v = np.random.default_rng(0).normal(0.4, 1, 12)
    f = two_level(v, boots=50000)
    for bounds, other in ((0, inf), 'greater'), ((-inf, 0.5), 'less'):
        assert math.isclose(
            p_outside(f, bounds),
            ttest_1samp(v, max(b for b in bounds if math.isfinite(b)), alternative=other).pvalue,
            rel_tol=0.05,
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


def plain_holm(p):
    "Each p value's smallest level at which the step-down procedure rejects it, found by trying"

    def rejected(level):
        left, out = sorted(range(len(p)), key=lambda k: p[k]), set()
        while left and p[left[0]] * len(left) <= level:
            out.add(left.pop(0))
        return out

    levels = sorted({min(1.0, q * k) for q in p for k in range(1, len(p) + 1)} | {1.0})
    return [next((a for a in levels if k in rejected(a)), 1.0) for k in range(len(p))]


def test_holm():
    rng = np.random.default_rng(0)
    for m in 1, 2, 5, 9:
        for scale in 1, 0.05:
            p = scale * rng.random(m)
            p[m // 2] = p[0]
            q = holm(p)
            assert (
                np.allclose(q, plain_holm(list(p)))
                and (q >= p).all()
                and q.max() <= 1
                and (np.diff(q[np.argsort(p)]) >= 0).all()
            )
    assert np.allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06]) and len(holm([])) == 0


@pytest.mark.parametrize('p', [[-0.1], [1.01], [math.nan, 0.1], [[0.1]]], ids=str)
def test_holm_refuses(p):
    with pytest.raises(ParameterError, match='p='):
        holm(p)


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


# Words

WORDS = [
    ('reproduced', found(2, 0.5), (0, inf), 2.3, None),
    ('reproduced', found(2, 0.5, seeds=2), (0, inf), 2.3, 0.05),  # p may be alpha itself
    ('reproduced', found(1, 0.2), (0, inf), 2.3, None),  # smaller than published, and yet better
    ('reproduced', found(0.1, 0.5), (-2, 2), 0.0, None),
    ('reproduced', found(-2, 0.5), (-inf, 0), -2.0, None),
    ('consistent', found(2, 0.5, seeds=1), (0, inf), 2.3, None),
    ('consistent', found(2, 0.5), (0, inf), 2.3, 0.0500001),
    ('consistent', found(2, 0.5, seeds=1), (0, inf), 2.3, 0.5),
    ('underpowered', found(2, 1.5), (0, inf), 2.3, None),
    ('underpowered', found(2, 1.5, seeds=1), (0, inf), 2.3, None),
    ('underpowered', found(-0.5, 1.5), (0, inf), 2.3, None),
    ('underpowered', found(0.2, 0.6), (0, inf), None, None),
    ('underpowered', found(0, 3), (-2, 2), 0.0, None),
    ('not reproduced', found(0.2, 0.6), (0, inf), 2.3, None),  # cannot tell from 0, but from 2.3
    (
        'underpowered',
        found(0.2, 0.6, seeds=1),
        (0, inf),
        2.3,
        None,
    ),  # of a single seed, whose interval knows no others
    ('not reproduced', found(-2, 0.5), (0, inf), 2.3, None),
    ('not reproduced', found(-2, 0.5), (0, inf), None, None),
    ('not reproduced', found(-2, 0.5, seeds=1), (0, inf), 2.3, None),
    ('not reproduced', found(5, 0.5), (-2, 2), 0.0, None),
    ('not reproduced', found(2, 0.5), (-2, 2), 0.0, None),  # at the margin, and excludes sameness
    ('underpowered', found(0, 0), (0, inf), 2.3, None),  # no spread is no evidence, for or against
    ('underpowered', found(0, 0), (-2, 2), 0.0, None),
    ('underpowered', found(9, 0), (-2, 2), 0.0, 0.0),
    ('not run', None, (0, inf), 2.3, None),
]


@pytest.mark.parametrize('word, f, bounds, published, p', WORDS)
def test_words(word, f, bounds, published, p):
    said, why = verdict(f, bounds, published, p)
    assert said == word and why and '\n' not in why and (f is None or any(c.isdigit() for c in why))


def test_never_from_a_difference_alone():
    for estimate, bounds, published in (2.0, (0, inf), 2.3), (-1.0, (0, inf), 2.3), (0.5, (-2, 2), 0.0):
        words = [verdict(found(estimate, se), bounds, published)[0] for se in (0.1, 5.0)]
        assert words[0] != words[1] == 'underpowered'


def test_level_and_confidence_may_differ():
    assert (
        verdict(found(2, 0.9), (0, inf), 2.3, alpha=0.01)[0] == 'underpowered'
        and verdict(found(2, 0.9), (0, inf), 2.3)[0] == 'reproduced'
    )
    word, why = verdict(found(2, 0.9), (0, inf), 2.3, alpha=0.01)
    assert 'within' in why or 'covers' in why


def test_why():
    assert (
        verdict(dict(estimate=1.1, lo=-1.2, hi=3.4, se=1.1, df=20, seeds=3, n=9), (0, inf), 2.3)[1]
        == 'interval [-1.2, 3.4] covers both 0 and the published 2.3'
    )


@pytest.mark.parametrize('bounds', [(1, 0), (0, 0), (-inf, inf), (0, math.nan), (0,), None, 'ab'], ids=str)
def test_bounds_are_refused(bounds):
    for f in (
        lambda: verdict(None, bounds),
        lambda: p_outside(found(1, 1), bounds),
        lambda: Claim('k', 't', bounds),
    ):
        with pytest.raises(ParameterError, match='bounds='):
            f()


def test_judge():
    claims = [Claim(k, f'claim {k}', (0, inf), 2.3, 'points', 'difference') for k in 'abcd'] + [
        Claim('e', 'claim e', (-2, 2))
    ]
    f = dict(a=found(2, 0.3), b=found(2, 1.0), c=None, e=found(0, 5.0))
    rows = judge(claims, f)
    assert list(
        rows.columns
    ) == 'key claim statistic unit estimate lo hi published seeds n p p_holm verdict why'.split() and list(
        rows.key
    ) == list('abcde')
    assert rows.verdict.tolist() == ['reproduced', 'consistent', 'not run', 'not run', 'underpowered']
    run = rows.key.isin(list('abe'))
    assert (
        np.allclose(rows.p_holm[run], plain_holm(list(rows.p[run])))
        and rows.loc[~run, ['p', 'p_holm', 'estimate']].isna().all(axis=None)
        and rows.seeds.tolist() == [3, 3, 0, 0, 3]
    )
    assert judge(claims[:2], f).verdict.tolist() == ['reproduced', 'reproduced']  # fewer claims, less to pay
    assert judge(claims[:1], f, alpha=1e-9).verdict.item() != 'reproduced' and math.isnan(
        rows.published.iloc[-1]
    )
    with pytest.raises(ParameterError, match='claims='):
        judge(claims + claims[:1], f)


# Cells of a table


def right(rate, S=3, n=10000):
    "Three networks near a rate, or one that has it exactly"
    rng = np.random.default_rng([S, n])
    return rng.random((S, n)) < rate if S > 1 else rng.permutation(np.arange(n) < rate * n)[None]


@pytest.mark.parametrize(
    'word, args, published, same',
    [
        ('reproduced', (0.5, 3), 50.0, True),
        ('consistent', (0.5, 1), 50.0, True),
        ('underpowered', (0.5, 3, 200), 50.0, True),
        ('not reproduced', (0.6, 3), 50.0, True),
        ('not reproduced', (0.6, 1), 50.0, True),
        ('reproduced', (0.0, 3, 2000), 0.0, True),
        ('consistent', (1.0, 1, 2000), 100.0, True),
        ('underpowered', (0.0, 1, 50), 0.0, True),
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
    assert math.isnan(c['p']) == (word in ('other scale', 'no published value', 'not run'))


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
