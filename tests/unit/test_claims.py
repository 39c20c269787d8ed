"""Each claim asked of records made by a known random process: where it should be supported, and where contradicted

A network withstands an attack where an image's difficulty, the same for all networks, and noise of its own lie
below a level. So the levels are the accuracies, and the truth of every difference is known.
"""

from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ROOT
from scipy.stats import spearmanr
from scipy.stats import t as student

from adt_repro.analysis.coverage import alignment, clip_delta, covered, draws_of, spread
from adt_repro.attacks.gradient import fgsm
from adt_repro.base.parameters import ParameterError
from adt_repro.data import load_data
from adt_repro.evaluation.measures import measure_curvature
from adt_repro.evaluation.metrics import robust
from adt_repro.methods.adversaries import exp_adversary
from adt_repro.models.trained import trained_network
from adt_repro.paper.claims import (
    BEND,
    GATE,
    claim_conditions,
    claim_estimates,
    claim_keys,
    claim_missing,
    claim_statistics,
    code_claims,
    judge_code,
    judge_paper,
    not_judged,
    paper_claims,
    published_table1,
    weakest_columns,
)
from adt_repro.paper.evidence import TABLE1, Evidence, outcomes, read_evidence, withstood
from adt_repro.paper.verdicts import judge

PAPER = published_table1(ROOT)

# Networks of known accuracy

USUAL = dict(natural=0.85, fgsm=0.60, pgd20=0.50, mim=0.495, cw=0.48, pgd100=0.49, feature=0.49)
OF_ADT = dict(adt_exp=dict(n_mc=5, work=73), adt_exp_am=dict(work=13, per_pass=2), adt_imp_am=dict(work=13))
OF_ADT['adt_imp_am'] |= dict(per_pass=2, u_max=0.9, u_end=0.87)


def records(run, levels, difficulty, rng):
    "What a network gets right: an attack's level is its accuracy"
    hardness = difficulty + rng.normal(0, 0.02, len(difficulty)) + rng.normal(0, 0.003)
    frames = []
    for attack, level in levels.items():
        right = (hardness < level).astype(int)
        frames.append(pd.DataFrame(dict(run=run, source=run, attack=attack, i=range(len(right)), pred=right)))
    return pd.concat(frames).assign(y=1, attacked=True)


def run_list(rows, seeds):
    "As `run_table` has it, with the numbers of `OF_ADT`"
    columns = dict(n_mc=np.nan, work=np.nan, per_pass=np.nan, generator=np.nan, u_max=None, u_end=np.nan)
    found = [
        dict(run=f'{row}-s{seed}', row=row, method=row, seed=seed) | columns | OF_ADT.get(row, {})
        for row in rows
        for seed in range(seeds)
    ]
    return pd.DataFrame(found)


def scale(seeds=4, n=800, gain=0.92, **levels):
    "The evidence of a scale whose rows have these levels beside the usual ones"
    rng = np.random.default_rng(0)
    difficulty = (rng.permutation(n) + 0.5) / n
    levels = dict(at_pgd={}) | levels
    runs = run_list(levels, seeds)
    rows = pd.concat([records(r.run, USUAL | levels[r.row], difficulty, rng) for r in runs.itertuples()])
    gains = {
        row: [dict(seed=s, share=gain + 0.01 * s, lo=gain - 0.1, hi=gain + 0.1, n=200) for s in range(seeds)]
        for row in levels
        if row.startswith('adt_')
    }
    return Evidence(runs, {}, rows=rows, gains=gains)


def robust_by(points):
    "Levels under attack that lie this many points higher"
    return {attack: level + points / 100 * (attack != 'natural') for attack, level in USUAL.items()}


def judged_of(e, key):
    "A claim's row of `judge`, taken alone"
    claims = [c for c in paper_claims(PAPER, e=e) + code_claims(e) if c.key == key]
    parts = claim_estimates(e, [key]), claim_conditions(e, [key]), claim_missing(e, [key])
    return judge(claims, *parts).iloc[0]


def word_of(e, key):
    return judged_of(e, key).verdict


def test_what_a_scale_knows_of_its_networks():
    e = scale(adt_exp=robust_by(6))
    a, b = claim_statistics(e, ['C1'])['C1']
    assert a.shape == b.shape == (4, 800)
    assert abs(a.mean() - 54) < 1 and abs(b.mean() - 48) < 1
    assert a.mean() == pytest.approx(100 * outcomes(e.rows, e.runs)['adt_exp', 'rob'].values.mean())


# C1, C2a, C2b: robustness

AHEAD = {'C1': ('adt_exp', 'at_pgd'), 'C1b': ('adt_exp_am', 'at_pgd'), 'C1c': ('adt_imp_am', 'at_pgd')}
NO_WORSE = {'C2a': ('adt_exp_am', 'adt_exp'), 'C2b': ('adt_imp_am', 'adt_exp')}


@pytest.mark.parametrize('key, points, word', [
    *((key, 6, 'supported') for key in (*AHEAD, *NO_WORSE)),
    *((key, -8, 'contradicted') for key in (*AHEAD, *NO_WORSE)),
    *((key, 0, 'supported') for key in NO_WORSE),
])  # fmt: skip
def test_robustness(key, points, word):
    row, other = (AHEAD | NO_WORSE)[key]
    assert word_of(scale(**{other: {}, row: robust_by(points)}), key) == word


def test_an_effect_below_the_published_one():
    e = scale(n=4000, adt_exp=robust_by(0))
    found = claim_estimates(e, ['C1'])['C1']
    assert found['lo'] < 0 < found['hi'] < 2.3
    assert word_of(e, 'C1') == 'smaller than published'
    assert word_of(scale(n=60, adt_exp=robust_by(1)), 'C1') == 'inconclusive'


# C2c, C2d: work


@pytest.mark.parametrize('key', ['C2c', 'C2d'])
@pytest.mark.parametrize('change, word', [
    ({}, 'supported'),
    (dict(work=60), 'contradicted'),
    (dict(per_pass=10), 'not testable here'),
    (dict(n_mc=1), 'not testable here'),
])  # fmt: skip
def test_work(key, change, word):
    row = dict(C2c='adt_exp_am', C2d='adt_imp_am')[key]
    runs = run_list(['adt_exp', row], 2)
    at = runs.row == ('adt_exp' if 'n_mc' in change else row)
    runs.loc[at, list(change)] = list(change.values())
    e = Evidence(runs, {})
    assert word_of(e, key) == word
    if word == 'supported':
        assert claim_estimates(e, [key])[key]['estimate'] == pytest.approx(np.log10(13 / 73))


# C3, C4: baselines


@pytest.mark.parametrize('left, at_pgd, word', [
    (0.05, {}, 'supported'),
    (0.75, {}, 'contradicted'),
    (0.05, dict(fgsm=0.51), 'not testable here'),
])  # fmt: skip
def test_collapse(left, at_pgd, word):
    assert word_of(scale(at_pgd=at_pgd, at_fgsm=dict(fgsm=0.8, pgd20=left)), 'C3') == word


@pytest.mark.parametrize('levels, at_pgd, word', [
    (dict(pgd20=0.7, feature=0.4), {}, 'supported'),
    (dict(pgd20=0.7, feature=0.7), {}, 'contradicted'),
    (dict(pgd20=0.3, feature=0.1), {}, 'not testable here'),
    (dict(pgd20=0.7, feature=0.4), dict(fgsm=0.51), 'not testable here'),
])  # fmt: skip
def test_illusion(levels, at_pgd, word):
    assert word_of(scale(at_pgd=at_pgd, feature_scatter=levels), 'C4') == word


# C6: curvature


def curvatures(runs, ratio, rng, n=60):
    "Log-normal eigenvalues: images, seeds and their interaction vary"
    of_images = rng.normal(0, 1, n)
    frames = []
    for run in runs.itertuples():
        size = of_images + rng.normal(0, 0.05) + rng.normal(0, 0.2, n)
        size = size + np.log(ratio) * run.row.startswith('adt_')
        frames.append(pd.DataFrame(dict(run=run.run, i=range(n), eigenvalue=np.exp(size))))
    return pd.concat(frames)


@pytest.mark.parametrize('key, row', [('C6a', 'adt_exp'), ('C6b', 'adt_exp_am'), ('C6c', 'adt_imp_am')])
@pytest.mark.parametrize('ratio, seeds, word', [
    (0.5, 4, 'supported'), (2, 4, 'contradicted'), (0.5, 1, 'one network'), (2, 1, 'one network')
])  # fmt: skip
def test_curvature(key, row, ratio, seeds, word):
    e = scale(seeds, 50, **{row: {}})
    e = replace(e, curvature=curvatures(e.runs, ratio, np.random.default_rng(8)))
    assert claim_estimates(e, [key])[key]['estimate'] == pytest.approx(np.log10(ratio), abs=0.05)
    assert word_of(e, key) == word


def test_curvature_finds_a_known_one():
    "Of two classes and logits a·w·x, at x = 0 the largest eigenvalue is a² |w|² p (1 − p) with p = 1/2"
    w = torch.randn(1, 3, 4, 4)

    class Plane(torch.nn.Module):
        def __init__(self, a):
            super().__init__()
            self.w = torch.nn.Parameter(a * w)

        def forward(self, x):
            z = (x * self.w).flatten(1).sum(1)
            return torch.stack([z, torch.zeros_like(z)], 1)

    x, y = torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.long)
    sizes = [measure_curvature(Plane(a), x, y).eigenvalue.mean() for a in (1, 3)]
    assert sizes[0] == pytest.approx(float((w**2).sum()) / 4, rel=1e-4)
    assert np.log10(sizes[1] / sizes[0]) == pytest.approx(2 * np.log10(3), rel=1e-4)


# C7: alignment


def cosines(runs, own, restarts, rng, n=40):
    "Cosines of two attacks' ends with each cloud; those with another image's are about 0"
    centres = dict(own=own, other_image=0.0, restarts=restarts)
    frames = []
    for run, (cloud, centre), attack in product(runs.run, centres.items(), ('fgsm', 'pgd20')):
        cosine = np.clip(centre + rng.normal(0, 0.1, n) + rng.normal(0, 0.02), -1, 1)
        frames.append(pd.DataFrame(dict(run=run, i=range(n), cloud=cloud, attack=attack, cosine=cosine)))
    return pd.concat(frames)


@pytest.mark.parametrize('own, restarts, gain, word', [
    (0.8, 0.9, 0.92, 'supported'),
    (-0.3, 0.9, 0.92, 'contradicted'),
    (0.0, 0.9, 0.92, 'inconclusive'),  # a cloud that knows nothing of the image
    (0.8, -0.2, 0.92, 'not testable here'),  # it does not even find the restarts
    (0.8, 0.9, 0.58, 'not testable here'),
])  # fmt: skip
def test_alignment(own, restarts, gain, word):
    e = scale(4, 50, gain=gain, adt_exp={})
    e = replace(
        e, alignment=cosines(e.runs[e.runs.row == 'adt_exp'], own, restarts, np.random.default_rng(2))
    )
    assert claim_estimates(e, ['C7'])['C7']['estimate'] == pytest.approx(own, abs=0.05)
    assert word_of(e, 'C7') == word
    row = judge_paper(e, PAPER).set_index('key').loc['C7']
    assert 'PGD’s restarts are found, ' in row.conditions and 'control' not in row.conditions
    assert row.claim.endswith(' points towards the ends of other attacks more than another image’s does')
    assert ('with PGD’s restarts 0.9' in row.why) == (word != 'not testable here')


@pytest.fixture(scope='module')
def fitted():
    "The package's network and digits: draws of a fit, of another image's, of the same fit with other noise; corners"
    model, eps = trained_network('adt_exp'), 0.15
    data = load_data('digits')
    x, y, ids = data.x_test[:6], data.y_test[:6], torch.arange(6)

    def adversary(model, x, y):
        return exp_adversary(model, x, y, eps=eps, n_mc=5)

    own = draws_of(adversary, model, x, y, 600, ids=ids, seed=0)
    again = draws_of(adversary, model, x, y, 20, ids=ids, seed=1)
    corners = eps * torch.randn(600, *x.shape, generator=torch.Generator().manual_seed(0)).sign()
    clouds = dict(own=own, other=own.roll(1, 1), again=again, corners=corners)
    return model, x, y, eps, {name: clip_delta(x, cloud) for name, cloud in clouds.items()}


def share_covered(ends, cloud):
    "How many of several ends for each image lie within its cloud, as claim C7 once asked"
    held = [covered(ends[:, j].flatten(1), cloud[:, j].flatten(1), 3) for j in range(cloud.shape[1])]
    return torch.stack(held).float().mean().item()


def test_coverage_fails_its_positive_control_and_alignment_passes_it(fitted):
    """Draws of the same distribution, from a fit of its own, are asked for as if they were an attack's ends

    No statistic of distributions may be a claim's that this does not pass. C7 once was what the cloud covers minus
    what the best control covers, and had to be above 0.
    """
    *_, clouds = fitted
    in_own, in_corners = (share_covered(clouds['again'], clouds[name]) for name in ('own', 'corners'))
    assert in_own < 0.3 < 0.95 < in_corners

    rows = alignment({'fit': clouds['again'].mean(0)}, clouds, ids=torch.arange(6))
    means = rows.groupby('cloud').cosine.mean()
    assert means.own > 0.9 and means.own - means.other > 0.4


def test_coverage_of_a_known_distribution():
    "In the dimensions of a CIFAR image: a fit whose mean points 95 % the same way is never covered; by corners it is"
    g = torch.Generator().manual_seed(0)
    centre = torch.randn(2, 3, 32, 32, generator=g)
    fit_again = centre + 0.3 * torch.randn(centre.shape, generator=g)

    def draws(n, of):
        return torch.tanh(of + 0.7 * torch.randn(n, *of.shape, generator=g))

    own, again, other = draws(200, centre), draws(20, fit_again), draws(200, centre.roll(1, 0))
    corners = torch.randn(200, *centre.shape, generator=g).sign()
    assert share_covered(again, own) == 0 and share_covered(again, corners) == 1
    exact = draws(20, centre)  # not even the very same distribution is as well covered as by corners
    assert share_covered(exact, own) < 0.8
    clouds = dict(own=own, other=other, corners=corners)
    rows = alignment(dict(one_draw=again[0]), clouds, ids=torch.arange(len(centre)))
    means = rows.groupby('cloud').cosine.mean()
    assert means.own > 0.7 and abs(means.other) < 0.1 and abs(means.corners) < 0.1


def test_alignment_of_attacks_and_of_noise(fitted):
    "Positive control: an attack on this network. Negative: a corner that knows nothing"
    model, x, y, eps, clouds = fitted
    ends = dict(fgsm=fgsm(model, x, y, eps=eps) - x, corner=clouds['corners'][0])
    rows = alignment(ends, clouds, ids=torch.arange(6))
    means = rows.groupby(['attack', 'cloud']).cosine.mean().unstack('cloud')
    assert means.own.fgsm - means.other.fgsm > 0.4
    assert abs(means.own.corner - means.other.corner) < 0.2


# C8: the entropy's weight

WEIGHTS = 0.0, 0.01, 0.1, 1.0


def ablation(entropy, share, seeds=4, gain=None):
    """Frame and records of an ablation: entropy, and expected loss over PGD-20's, by weight

    `gain`: the expected loss as a share of PGD-20's gain at λ = 0.01; None: clean images have no loss."""
    rng, frames, rows = np.random.default_rng(3), [], []
    for seed, value in product(range(seeds), entropy):
        run, largest = f'adt_exp-lbd-{value}-s{seed}', rng.uniform(0.5, 1)
        here = share[value] + rng.normal(0, 0.01)
        clean = 0.0 if gain is None else largest * (share[0.01] - gain) / (1 - gain)
        frame = dict(option='lbd', value=value, run=run, method='adt_exp', seed=seed, n_test=50)
        frame |= dict(entropy=entropy[value] + rng.normal(0, 0.05), expected_loss=here * largest)
        frames.append(frame)
        for attack, loss in dict(natural=clean, pgd20=largest).items():
            losses = rng.normal(0, 0.3, 50)
            rows.append(pd.DataFrame(dict(run=run, attack=attack, loss=losses - losses.mean() + loss)))
    return dict(ablation=pd.DataFrame(frames), ablation_rows=pd.concat(rows).assign(attacked=True))


def of_weights(*values):
    return dict(zip(WEIGHTS, values, strict=True))


FALLS, LEVEL = of_weights(-1.0, -0.4, -0.2, 0.0), of_weights(-0.4, -0.4, -0.4, -0.4)
NEARS, STAYS = of_weights(0.97, 0.93, 0.9, 0.8), of_weights(0.9, 0.9, 0.9, 0.9)
TURNED = of_weights(0.0, -0.2, -0.4, -1.0), of_weights(0.8, 0.9, 0.93, 0.97)


@pytest.mark.parametrize('entropy, share, words', [
    (FALLS, NEARS, ['supported', 'supported']),
    (*TURNED, ['contradicted', 'contradicted']),
    (LEVEL, STAYS, ['inconclusive', 'inconclusive']),
    ({0.0: -1.0, 0.01: -0.4}, {0.0: 0.97, 0.01: 0.9}, ['supported', 'supported']),
])  # fmt: skip
def test_as_the_weight_of_the_entropy_falls(entropy, share, words):
    e = replace(scale(2, 50), **ablation(entropy, share))
    found = claim_estimates(e, ['C8a', 'C8b'])
    for key, truth in dict(C8a=entropy, C8b=share).items():
        slope = np.polyfit(range(len(truth)), [truth[value] for value in sorted(truth)], 1)[0]
        assert found[key]['estimate'] == pytest.approx(-slope, abs=0.05 if key == 'C8a' else 0.01)
    assert found['C8a']['n'] == found['C8b']['n'] == 50
    assert [word_of(e, key) for key in ('C8a', 'C8b')] == words


def test_the_trend_is_that_of_all_weights():
    "The last step alone says nothing, and the others do; and the reverse: a step at the end and none before"
    late = ablation(of_weights(-0.4, -0.4, -0.2, 0.0), of_weights(0.93, 0.93, 0.9, 0.8))
    last = ablation(of_weights(-0.6, -0.2, 0.0, 0.0), of_weights(0.95, 0.9, 0.9, 0.9))
    for given in late, last:
        assert [word_of(replace(scale(2, 50), **given), key) for key in ('C8a', 'C8b')] == ['supported'] * 2
    frame = late['ablation']
    remarks = {c.key: c.remark for c in paper_claims(PAPER, e=replace(scale(2, 50), **late))}
    wide = frame.pivot(index='seed', columns='value', values='entropy')
    gap = wide[0.0] - wide[0.01]
    ranks = [spearmanr(WEIGHTS, row).statistic for row in wide.to_numpy()]
    assert remarks['C8a'].startswith(f'λ = 0 − λ = 0.01 alone: {gap.mean():.3f} [')
    assert f'Rank correlation with λ: {np.mean(ranks):.2f}, mean of 4 seeds' in remarks['C8a']
    three = frame[~((frame.seed == 3) & (frame.value == 0.1))]  # a seed that lacks a weight does not count
    assert claim_estimates(replace(scale(2, 50), **late | dict(ablation=three)), ['C8a'])['C8a']['seeds'] == 3


def test_a_trend_needs_two_weights_and_two_seeds():
    one = ablation({0.0: -1.0, 0.01: -0.4}, {0.0: 0.95, 0.01: 0.9}, seeds=1)
    assert word_of(replace(scale(2, 50), **one), 'C8a') == 'one network'
    alone = ablation({0.01: -0.4}, {0.01: 0.9})
    assert word_of(replace(scale(2, 50), **alone), 'C8a') == 'not run'


def test_the_gate_of_an_ablation_is_of_its_own_networks():
    "The gain in loss, since clean images have a loss too; at the paper's weight; of the ablation, not the scale"
    e = replace(scale(2, 50, gain=0.1, adt_exp={}), **ablation(FALLS, NEARS, gain=0.86))
    [gate] = claim_conditions(e, ['C8a'])['C8a']
    assert gate.met and gate.says.startswith('0.8') and 'mean of 4 networks' in gate.says
    assert word_of(e, 'C8a') == 'supported'
    below = replace(e, **ablation(FALLS, NEARS, gain=0.7))
    assert [word_of(below, key) for key in ('C8a', 'C8b')] == ['not testable here'] * 2
    assert judged_of(below, 'C8b').why.startswith('gate not met: inner problem of adt_exp at λ = 0.01, 0.')
    unknown = replace(e, ablation_rows=None)
    assert judged_of(unknown, 'C8a').why == 'gate not measured: inner problem of adt_exp at λ = 0.01'


# C9, C5: the released code


@pytest.mark.parametrize('ends, word', [
    ([0.87, 0.88, 0.86], 'supported'), ([1.1, 1.2, 1.15], 'contradicted'), ([0.87], 'one network')
])  # fmt: skip
def test_end_of_entropy(ends, word):
    runs = run_list(['adt_imp_am'], len(ends)).assign(u_end=ends)
    e = Evidence(runs, {})
    assert word_of(e, 'C9') == word
    assert claim_estimates(e, ['C9'])['C9']['estimate'] == pytest.approx(0.9 - np.mean(ends))


def test_weakest_column_is_a_description():
    "PGD-100 misclassifies images that C&W leaves: the worst case is the weaker of the two"
    e = scale(3, standard=dict.fromkeys(USUAL, 0.01), adt_exp={})
    e = replace(e, found=outcomes(e.rows, e.runs))
    gaps = weakest_columns(e, PAPER).set_index('row')
    assert 'standard' not in gaps.index and (gaps.column == 'cw').all()
    assert (gaps.estimate == 0).all()  # all attacks fell the same images, C&W some more
    assert gaps.published['adt_exp'] == pytest.approx((PAPER[TABLE1].min(axis=1) - PAPER.rob)['adt_exp'])
    assert 'C5' not in claim_keys(e)


def test_no_weakest_column_of_a_cascade():
    "What is left of the columns are those whose attacks came first: the weakest may be among the others"
    e = scale(3, standard={}, adt_exp={})
    of_adt = e.rows.run.str.startswith('adt_exp')
    by_cascade = [cascaded(rows, TABLE1) for _, rows in e.rows[of_adt].groupby('run')]
    found = outcomes(pd.concat([e.rows[~of_adt], *by_cascade]), e.runs)
    assert ('adt_exp', 'rob') in found and ('adt_exp', 'natural') in found
    assert weakest_columns(replace(e, found=found), PAPER).row.tolist() == ['at_pgd']


# C10: across attacks


@pytest.mark.parametrize('key, row', [('C10a', 'adt_exp'), ('C10b', 'adt_exp_am'), ('C10c', 'adt_imp_am')])
@pytest.mark.parametrize('cw, at_pgd, word', [
    (0.495, dict(cw=0.44), 'supported'),
    (0.40, dict(cw=0.49), 'contradicted'),
    (0.495, dict(cw=0.44, fgsm=0.51), 'not testable here'),
])  # fmt: skip
def test_across_attacks(key, row, cw, at_pgd, word):
    assert word_of(scale(at_pgd=at_pgd, **{row: dict(cw=cw)}), key) == word


# C11: black boxes


def black_box(e, points, attack, sources, rng, n=400):
    "Records of an attack on adt_exp and at_pgd that leaves adt_exp this many points more"
    difficulty, frames = (rng.permutation(n) + 0.5) / n, []
    for run, source in product(e.runs.itertuples(), sources):
        if run.row not in ('adt_exp', 'at_pgd') or run.run == source:
            continue
        level = 0.6 + points / 100 * (run.row == 'adt_exp')
        frame = records(run.run, {attack: level, 'natural': 0.9}, difficulty, rng)
        frames.append(frame.assign(source=source or run.run))
    return pd.concat(frames)


@pytest.mark.parametrize('key, attack, sources', [
    ('C11a', 'mim', ['standard-s0', 'standard-s1']), ('C11b', 'spsa256', [None])
])  # fmt: skip
@pytest.mark.parametrize('points, seeds, word', [
    (8, 4, 'supported'), (-8, 4, 'contradicted'), (8, 1, 'one network')
])  # fmt: skip
def test_black_boxes(key, attack, sources, points, seeds, word):
    e = scale(seeds, 50, adt_exp={})
    rows = black_box(e, points, attack, sources, np.random.default_rng(4))
    e = replace(e, **{dict(C11a='transfer', C11b='spsa')[key]: rows})
    assert word_of(e, key) == word


def test_only_transferred_attacks_that_all_targets_met():
    "at_pgd met one more, which misclassifies every image: it does not count"
    e = scale(3, 50, adt_exp={})
    rows = black_box(e, 0, 'mim', ['standard-s0'], np.random.default_rng(5))
    more = rows[rows.run.str.startswith('at_pgd')].assign(source='trades-s0', pred=0)
    itself = rows.assign(source=rows.run, pred=0)
    found = [
        claim_estimates(replace(e, transfer=given), ['C11a'])['C11a']['estimate']
        for given in (rows, pd.concat([rows, more, itself]))
    ]
    assert found[0] == found[1]


# C12: diversity


def variances(e, draws, restarts, rng, n=50):
    frames = []
    for run, (kind, size) in product(e.runs.run, dict(distribution=draws, restarts=restarts).items()):
        variance = size * np.exp(rng.normal(0, 0.1) + rng.normal(0, 0.2, n))
        frames.append(pd.DataFrame(dict(run=run, i=range(n), kind=kind, variance=variance)))
    return pd.concat(frames)


@pytest.mark.parametrize('draws, restarts, word', [
    (0.3, 0.1, 'supported'), (0.1, 0.3, 'contradicted'), (0.2, 0.2, 'inconclusive')
])  # fmt: skip
def test_diversity(draws, restarts, word):
    e = scale(4, 50, adt_exp={})
    e = replace(e, diversity=variances(e, draws, restarts, np.random.default_rng(6)))
    assert word_of(e, 'C12') == word


def test_diversity_of_known_clouds():
    "Corners have variance 1 in ε², uniform noise 1/3, copies of one end 0"
    g, eps = torch.Generator().manual_seed(0), 0.15
    uniform = 2 * torch.rand(400, 3, 1, 8, 8, generator=g) - 1
    clouds = dict(corners=uniform.sign(), uniform=uniform, copies=uniform[:1].expand_as(uniform))
    means = {name: spread(eps * c, eps, ids=torch.arange(3)).variance.mean() for name, c in clouds.items()}
    assert means == pytest.approx(dict(corners=1, uniform=1 / 3, copies=0), abs=0.02)


# C13: clean images


@pytest.mark.parametrize('natural, word', [(0.85, 'supported'), (0.92, 'supported'), (0.78, 'contradicted')])
def test_clean_images(natural, word):
    assert word_of(scale(adt_exp=dict(natural=natural)), 'C13') == word


# Gates, premises, one network, nothing


GATED = ['C1', 'C6a', 'C7', 'C10a', 'C11a', 'C11b', 'C12', 'C13']


def everything(**options):
    "A scale in which all that ADT_EXP is asked was measured"
    e, rng = scale(4, 300, adt_exp=robust_by(6), **options), np.random.default_rng(7)
    of_adt = e.runs[e.runs.row == 'adt_exp']
    return replace(
        e,
        curvature=curvatures(e.runs, 0.5, rng),
        alignment=cosines(of_adt, 0.8, 0.9, rng),
        diversity=variances(e, 0.3, 0.1, rng),
        transfer=black_box(e, 8, 'mim', ['standard-s0'], rng),
        spsa=black_box(e, 8, 'spsa256', [None], rng),
    )


def test_below_the_gate_nothing_is_tested():
    judged = judge_paper(everything(gain=0.58), PAPER).set_index('key').loc[GATED]
    assert (judged.verdict == 'not testable here').all()
    assert judged.why.str.contains(
        f'gate not met: inner problem of adt_exp, 0.5.* needed: at least {GATE}'
    ).all()
    assert judged.p_adjusted.isna().all()
    solved = judge_paper(everything(gain=0.9), PAPER).set_index('key').loc[GATED]
    assert (solved.verdict == 'not testable here').sum() == 0
    assert solved.conditions.str.contains('gate met').all()


def test_a_gate_that_was_not_measured_is_named():
    judged = judge_paper(replace(everything(), gains={}), PAPER).set_index('key').loc[GATED]
    assert (judged.verdict == 'not testable here').all()
    assert judged.why.str.contains('gate not measured: inner problem of adt_exp').all()
    assert judged.p_adjusted.isna().all()


def test_a_premise_that_was_not_measured_is_named():
    e = scale(4, 300, at_fgsm=dict(fgsm=0.8, pgd20=0.05))
    row = judged_of(replace(e, rows=e.rows[~e.rows.run.str.startswith('at_pgd')]), 'C3')
    assert (row.verdict, row.why) == ('not testable here', 'premise not measured: the loss bends')


def test_the_gate_is_a_mean_over_seeds():
    e, below = scale(2, 50, adt_exp={}), dict(seed=0, share=0.7, lo=0.6, hi=0.8, n=200)
    for share, met in (1.0, True), (0.7, False), (0.9, False):
        gains = dict(adt_exp=[below, dict(below, seed=1, share=share)])
        [gate] = claim_conditions(replace(e, gains=gains), ['C1'])['C1']
        assert gate.met is met and 'mean of 2 networks' in gate.says
    e = scale(1, 50, adt_exp={})
    [gate] = claim_conditions(replace(e, gains=dict(adt_exp=[below])), ['C1'])['C1']
    assert gate.says == f'0.70 [0.60, 0.80] of PGD-20’s gain in loss (one network), needed: at least {GATE}'


def test_one_step_stands_beside_the_gate():
    "FGSM's share: below the bound, at it, and not measured; only where it passes too the gate tells nothing"
    e = scale(2, 50, gain=0.95, adt_exp={})
    tells = 'so this gate does not tell the inner problem from one step'
    for steps, said in (
        ((0.6, 0.7), ', one FGSM step 0.65'),
        ((GATE, GATE + 0.1), f', one FGSM step 0.90, {tells}'),
    ):
        gains = [gain | dict(fgsm=step) for gain, step in zip(e.gains['adt_exp'], steps, strict=True)]
        [gate] = claim_conditions(replace(e, gains=dict(adt_exp=gains)), ['C1'])['C1']
        assert gate.met and gate.says.endswith(f'at least {GATE}{said}')
    worse = [dict(seed=s, share=0.4, lo=0.3, hi=0.5, n=200, fgsm=0.9) for s in (0, 1)]
    [gate] = claim_conditions(replace(e, gains=dict(adt_exp=worse)), ['C1'])['C1']
    assert not gate.met and gate.says.endswith(f'at least {GATE}, one FGSM step 0.90')
    some = dict(adt_exp=[e.gains['adt_exp'][0] | dict(fgsm=0.9), e.gains['adt_exp'][1]])
    [gate] = claim_conditions(replace(e, gains=some), ['C1'])['C1']
    assert gate.says.endswith(f'at least {GATE}')
    [gate] = claim_conditions(scale(2, 50, gain=0.9, adt_exp={}), ['C1'])['C1']
    assert gate.met and gate.says.endswith(f'at least {GATE}, uncertain because the interval includes {GATE}')


def test_remarks():
    "Why C1 has no premise; what C7 is without ADT; a variant and a claim that was declared later"
    e = scale(3, 2000, at_pgd=dict(fgsm=0.52), adt_exp={}, standard={})
    frames = [
        cosines(e.runs[e.runs.row == row], own, 0.9, np.random.default_rng(2))
        for row, own in dict(adt_exp=0.8, at_pgd=0.6, standard=0.3).items()
    ]
    e = replace(e, alignment=pd.concat(frames))
    remarks = {c.key: c.remark for c in paper_claims(PAPER, e=e)}
    assert 'without the premise that the loss bends (FGSM − PGD-20 of at_pgd, mean of 3' in remarks['C1']
    assert ' networks, is 2.' in remarks['C1']
    assert ' points, 8.27 in the paper)' in remarks['C1'] and remarks['C13'] == ''
    said = remarks['C7'].rpartition(': the same difference is ')[2]
    at_pgd, standard = (float(text.split()[0]) for text in said.split(', '))
    assert (at_pgd, standard) == pytest.approx((0.6, 0.3), abs=0.05)
    assert all('points' not in c.remark for c in paper_claims(PAPER))

    later = DECLARED | dict(n_test=2000, added='2026-11-30: asked for')
    e = replace(e, declared=dict(C1=DECLARED | dict(n_test=2000), C1_feature=later, C13=later))
    remarks = judge_paper(e, PAPER).set_index('key').remark
    assert 'secondary' not in remarks['C1'] and 'Declared' not in remarks['C1']
    assert remarks['C1_feature'].endswith(
        'A variant of C1, secondary. Declared later, 2026-11-30: asked for.'
    )
    assert remarks['C13'] == 'Declared later, 2026-11-30: asked for.'


def test_a_derived_size_is_not_called_published():
    e = scale(3, 2000, adt_exp={})
    rows = judge_paper(e, PAPER).set_index('key')
    row = rows.loc['C10a']
    assert row.published_source == 'derived from Table 1' and 'published' not in row.why
    assert row.why.endswith('the -0.15 derived from Table 1') or 'the -0.15 derived from Table 1' in row.why


def test_a_gate_of_some_networks_was_not_measured(with_all_images):
    "Three of five that enter the claim; then three of three, where the others have no records or are not declared"
    e = scale(5, 300, adt_exp=robust_by(6))
    some = replace(e, gains=dict(adt_exp=e.gains['adt_exp'][:3]))
    row = judged_of(some, 'C1')
    assert row.verdict == 'not testable here'
    assert row.why == 'gate not measured: inner problem of adt_exp, 3 of 5 networks'

    unjudged = replace(some, rows=e.rows[~e.rows.run.isin(['adt_exp-s3', 'adt_exp-s4'])])
    declared = replace(some, declared=dict(C1=DECLARED | dict(n_test=300)))
    for given in unjudged, declared:
        [gate] = claim_conditions(given, ['C1'])['C1']
        assert gate.met and 'mean of 3 networks' in gate.says
        assert judged_of(given, 'C1').verdict == 'supported'
    worse = [*e.gains['adt_exp'][:3], dict(seed=3, share=0.0), dict(seed=4, share=0.0)]
    assert judged_of(replace(declared, gains=dict(adt_exp=worse)), 'C1').verdict == 'supported'
    assert judged_of(replace(e, gains=dict(adt_exp=worse)), 'C1').verdict == 'not testable here'


def test_the_bend_is_at_pgds():
    for gap, met in (2.0, False), (4.5, True):
        e = scale(3, 2000, at_pgd=dict(fgsm=0.50 + gap / 100), at_fgsm={})
        [premise] = claim_conditions(e, ['C3'])['C3']
        assert (
            premise.met is met and f' points, needed: at least {BEND:g} (8.27 in the paper)' in premise.says
        )
    [premise] = claim_conditions(Evidence(e.runs, {}), ['C3'])['C3']
    assert premise.met is None


def test_a_premise_says_whether_its_interval_includes_the_bound():
    "One network on few images and on many: Student's interval of the images; the estimate alone decides"
    for gap, n, is_open in (4, 100, True), (2, 100, True), (1, 4000, False), (9, 4000, False):
        e = scale(1, n, at_pgd=dict(fgsm=0.50 + gap / 100), at_fgsm={})
        right = e.rows[e.rows.run == 'at_pgd-s0'].assign(right=lambda rows: rows.pred == rows.y)
        right = right.pivot(index='i', columns='attack', values='right').astype(int)
        gaps = 100 * (right.fgsm - right.pgd20)
        lo, hi = student.interval(0.95, n - 1, gaps.mean(), gaps.std() / n**0.5)
        [premise] = claim_conditions(e, ['C3'])['C3']
        assert f'is {gaps.mean():.1f} [{lo:.1f}, {hi:.1f}] points' in premise.says
        assert premise.met is bool(gaps.mean() >= BEND)
        assert premise.says.endswith(', uncertain because the interval includes 3') is is_open
        assert bool(lo < BEND <= hi) is is_open


def test_premises_that_compare_show_the_interval_of_the_difference():
    "One network a side: Student's interval of the images, computed here from the records and from the cosines"
    e = scale(1, 300, at_pgd={}, feature_scatter=dict(pgd20=0.52))
    right = (e.rows[e.rows.attack == 'pgd20'].set_index(['run', 'i']).pred == 1).astype(int).unstack('run')
    differences = 100 * (right['feature_scatter-s0'] - right['at_pgd-s0'])
    lo, hi = student.interval(0.95, 299, differences.mean(), differences.std() / 300**0.5)
    _, premise = claim_conditions(e, ['C4'])['C4']
    size = f'(difference {differences.mean():.1f} [{lo:.1f}, {hi:.1f}])'
    says = f'PGD-20 leaves {100 * right["feature_scatter-s0"].mean():.1f} %, needed: at least at_pgd’s'
    assert premise.says.startswith(says) and size in premise.says
    assert premise.says.endswith(', uncertain because the interval includes 0') is bool(lo < 0 <= hi)

    e = scale(1, adt_exp={})
    e = replace(e, alignment=cosines(e.runs[e.runs.row == 'adt_exp'], 0.8, 0.3, np.random.default_rng(2)))
    by_image = e.alignment.groupby(['cloud', 'i']).cosine.mean().unstack('cloud')
    found = by_image.restarts - by_image.other_image
    lo, hi = student.interval(0.95, len(found) - 1, found.mean(), found.std() / len(found) ** 0.5)
    premise = claim_conditions(e, ['C7'])['C7'][-1]
    assert premise.says.endswith(f'cloud is {found.mean():.2f} [{lo:.2f}, {hi:.2f}], needed: above 0')


def test_a_premise_waits_for_all_declared_networks():
    "Three of five: no word on the premise, only what it is so far; three of three: met"
    e = scale(3, 900, at_pgd=dict(fgsm=0.58), adt_exp={}, at_fgsm={})
    for seeds, met in (5, None), (3, True):
        [premise] = claim_conditions(replace(e, declared=dict(C1=DECLARED | dict(seeds=seeds))), ['C3'])['C3']
        assert premise.met is met
        assert premise.says.startswith('3 of 5 declared networks of at_pgd, so far ') is (met is None)


def test_a_claim_waits_for_the_networks_of_its_premise():
    "C3 is about at_fgsm alone, whose one declared seed is there; at_pgd has three of five, then three of three"
    e = scale(3, 900, at_pgd=dict(fgsm=0.58), adt_exp={}, at_fgsm=dict(fgsm=0.8, pgd20=0.05))
    own = dict(C3=dict(rows=['at_fgsm'], attacks=['fgsm', 'pgd20'], effect=1.0, seeds=1, n_test=900))
    early = judged_of(replace(e, declared=dict(C1=DECLARED | dict(seeds=5)) | own), 'C3')
    assert (early.verdict, np.isnan(early.estimate)) == ('not complete', True)
    assert early.why == '3 of 5 declared seeds of at_pgd, for its premise'
    there = judged_of(replace(e, declared=dict(C1=DECLARED) | own), 'C3')
    assert there.verdict == 'one network' and there.estimate < 0


def test_a_gate_waits_for_all_declared_networks():
    "Three networks solve the inner problem; five are declared"
    e = scale(3, 900, adt_exp=robust_by(6))
    for seeds, met, says in (3, True, 'mean of 3 networks'), (5, None, '3 of 5 networks'):
        [gate] = claim_conditions(replace(e, declared=dict(C1=DECLARED | dict(seeds=seeds))), ['C1'])['C1']
        assert gate.met is met and says in gate.says


@pytest.mark.parametrize('key', ['C10a', 'C13', 'C4'])
def test_a_claim_that_is_not_declared_waits_for_the_seeds_of_its_rows(key):
    "With C1 declared on five seeds of adt_exp and at_pgd, of which three are there, and with all of three"
    e = scale(3, 900, at_pgd=dict(fgsm=0.58), adt_exp={}, feature_scatter={})
    early = judged_of(replace(e, declared=dict(C1=DECLARED | dict(seeds=5))), key)
    assert early.verdict == 'not complete' and np.isnan(early.estimate)
    assert early.why.endswith('3 of 5 declared seeds of at_pgd')
    there = replace(e, declared=dict(C1=DECLARED))
    assert judged_of(there, key).verdict == judged_of(e, key).verdict != 'not complete'
    assert judged_of(replace(there, declared={}), key).estimate == judged_of(there, key).estimate


def test_one_network_gets_no_verdict():
    "Whatever its size: no word of a verdict from one seed on either side"
    for points in -20, 0, 20:
        judged = judge_paper(scale(1, adt_exp=robust_by(points), adt_exp_am=robust_by(points)), PAPER)
        assert set(judged.verdict) <= {'one network', 'not run', 'supported'}
        assert (judged.key[judged.verdict == 'supported'] == 'C2c').all()  # which is counted
    e = scale(4, adt_exp=robust_by(20))
    e = replace(e, rows=e.rows[e.rows.run.str.startswith('at_pgd') | (e.rows.run == 'adt_exp-s0')])
    row = judged_of(e, 'C1')
    assert (row.verdict, row.seeds) == ('one network', '1, 4') and row.why.startswith('for')


def test_nothing_is_not_run():
    e = Evidence(run_list(['at_pgd', 'at_fgsm'], 2), {})
    assert set(judge_paper(e, PAPER).verdict) | set(judge_code(e).verdict) == {'not run'}
    assert all(v is None for v in claim_statistics(e).values())
    assert len(weakest_columns(e, PAPER)) == 0


# Cascades, all images, and what a scale declares


def cascaded(rows, order):
    "The same records where an image that fell meets no later attack of `order`"
    rows, fallen = rows.copy(), set()
    for attack in order:
        at = rows.attack == attack
        skipped = at & rows.i.isin(fallen)
        fallen |= set(rows.i[at & ~skipped & (rows.pred != rows.y)])
        rows.loc[skipped, ['attacked', 'pred']] = [False, -1]
    return rows


FIVE = ['fgsm', 'pgd20', 'mim', 'cw', 'pgd100']


@pytest.fixture(scope='module')
def with_all_images():
    "Three seeds on 300 images under all attacks, and the same on 900 by cascade under five of them"
    e = scale(3, 900, adt_exp=robust_by(6))
    five = e.rows[e.rows.attack.isin(['natural', *FIVE])]
    by_cascade = pd.concat([cascaded(rows, ['natural', *FIVE]) for _, rows in five.groupby('run')])
    first = e.rows[e.rows.i < 300]
    return e, replace(e, rows=first, all_images=by_cascade)


DECLARED = dict(rows=['adt_exp', 'at_pgd'], attacks=FIVE, effect=1.1, seeds=3, n_test=900)


def test_the_worst_case_of_a_cascade_is_that_of_whole_attacks(with_all_images):
    whole, e = with_all_images
    e = replace(e, declared=dict(C1=DECLARED))
    ours, theirs = claim_statistics(e, ['C1'])['C1']
    assert ours.shape == theirs.shape == (3, 900)
    expected = robust(whole.rows, FIVE).set_index('run').accuracy * 100
    assert np.allclose(ours.mean(1), expected[[f'adt_exp-s{s}' for s in range(3)]])
    assert np.allclose(theirs.mean(1), expected[[f'at_pgd-s{s}' for s in range(3)]])
    [claim] = [c for c in paper_claims(PAPER, e=e) if c.key == 'C1']
    assert claim.statistic == 'A_rob without FeaAttack, adt_exp − at_pgd' and claim.primary


def test_a_size_that_was_published_under_other_attacks(with_all_images):
    _, e = with_all_images
    e = replace(e, declared=dict(C1=DECLARED, C1_feature=DECLARED | dict(attacks=TABLE1[1:], n_test=300)))
    judged = judge_paper(e, PAPER).set_index('key')
    assert judged.statistic['C1'].startswith('A_rob without FeaAttack')
    assert judged.why['C1'].endswith('; published under six attacks')
    assert judged.statistic['C1_feature'].startswith('A_rob, ')
    assert 'six attacks' not in judged.why['C1_feature']
    other = replace(e, declared=dict(C1=DECLARED | dict(attacks=['fgsm', 'autoattack'])))
    assert judge_paper(other, PAPER).statistic[0].startswith('A_rob under fgsm, autoattack, ')
    assert not judge_paper(other, PAPER).why[0].endswith('six attacks')  # there is no number


def test_an_image_that_did_not_meet_all_attacks_is_not_robust():
    "FeaAttack was not made for the later half: only those of them that another attack broke are known"
    e = scale(2, 200, adt_exp={})
    rows = e.rows.copy()
    left_out = (rows.attack == 'feature') & (rows.i >= 100)
    rows.loc[left_out, ['attacked', 'pred']] = [False, -1]
    found, sums = outcomes(rows, e.runs), robust(rows, TABLE1[1:]).set_index('run')
    for run in e.runs.itertuples():
        of_run = withstood(rows[rows.run == run.run], TABLE1[1:])
        assert (len(of_run), of_run.sum()) == (sums.n[run.run], sums.correct[run.run])
        assert 100 < len(of_run) < 200 and (of_run[100:] == 0).all()
        worst = found[run.row, 'rob'].loc[run.seed]
        assert (worst == of_run[worst.index]).all() and not worst[worst.index >= 100].any()


def test_all_six_attacks_are_known_of_the_first_images_alone(with_all_images):
    _, e = with_all_images
    assert claim_statistics(e, ['C1'])['C1'][0].shape == (3, 300)
    assert claim_statistics(e, ['C13'])['C13'][0].shape == (3, 900)
    assert word_of(e, 'C1') == 'supported'


def test_a_variant_is_never_the_main_claim(with_all_images):
    _, e = with_all_images
    e = replace(e, declared=dict(C1=DECLARED, C1_feature=DECLARED | dict(attacks=TABLE1[1:], n_test=300)))
    claims = {c.key: c for c in paper_claims(PAPER, e=e)}
    assert list(claims)[:2] == ['C1', 'C1_feature']
    assert claims['C1'].primary and not claims['C1_feature'].primary
    judged = judge_paper(e, PAPER).set_index('key')
    assert judged.n[['C1', 'C1_feature']].tolist() == [900, 300]
    assert claim_missing(e) == {}


@pytest.mark.parametrize('change, said', [
    (dict(seeds=5), '3 of 5 declared seeds of adt_exp on 900 images; 3 of 5 declared seeds of at_pgd on 900'),
    (dict(n_test=10_000), '0 of 3 declared seeds of adt_exp on 10,000 images'),
    (dict(attacks=TABLE1[1:]), '0 of 3 declared seeds of adt_exp on 900 images'),
])  # fmt: skip
def test_no_verdict_before_all_that_was_declared_is_there(with_all_images, change, said):
    _, e = with_all_images
    e = replace(e, declared=dict(C1=DECLARED | change))
    row = judged_of(e, 'C1')
    assert row.verdict == 'not complete' and row.why.startswith(said) and np.isnan(row.estimate)


def test_seeds_that_were_not_declared_do_not_enter(with_all_images):
    "A fourth seed, of 100 images under all attacks; and one seed that was not judged on all images"
    _, e = with_all_images
    e = replace(e, declared=dict(C1=DECLARED))
    first = e.runs[e.runs.seed == 0]
    more = first.assign(run=first.row + '-s3', seed=3)
    few = e.rows[e.rows.run.isin(first.run) & (e.rows.i < 100)]
    of_more = few.run.str.replace('-s0', '-s3')
    four = replace(
        e, runs=pd.concat([more, e.runs]), rows=pd.concat([e.rows, few.assign(run=of_more, source=of_more)])
    )
    row = judged_of(four, 'C1')
    assert (row.seeds, row.n, row.verdict) == ('3, 3', 900, 'supported')
    assert row.estimate == judged_of(e, 'C1').estimate

    lacks = replace(e, all_images=e.all_images[e.all_images.run != 'adt_exp-s1'])
    row = judged_of(lacks, 'C1')
    assert (row.verdict, row.why) == ('not complete', '2 of 3 declared seeds of adt_exp on 900 images')
    first = replace(lacks, declared=dict(C1=DECLARED | dict(seeds=2)))
    assert judged_of(first, 'C1').why.startswith('1 of 2 declared seeds')  # the third is no substitute


def test_images_that_networks_share_are_compared_with_the_declared_ones(with_all_images):
    "Each network knows 900 images, both know 800"
    whole, _ = with_all_images
    rows = whole.rows
    shifted = rows.assign(i=rows.i + 100 * rows.run.str.startswith('at_pgd'))
    e = replace(whole, rows=shifted, declared=dict(C1=DECLARED))
    row = judged_of(e, 'C1')
    assert (row.verdict, row.why) == ('not complete', 'on 800 of 900 declared images')


@pytest.mark.parametrize('key', ['C6a', 'C7', 'C11a', 'C11b', 'C12'])
def test_declared_images_of_measures(key):
    e = everything()
    n = claim_estimates(e, [key])[key]['n']
    declared = dict(rows=['adt_exp', 'at_pgd'][: 1 + (key not in ('C7', 'C12'))], seeds=4)
    for n_test, word in (n, 'supported'), (n + 1, 'not complete'):
        of_key = replace(e, declared={key: declared | dict(n_test=n_test)})
        row = judged_of(of_key, key)
        assert row.verdict == word
    assert row.why.startswith(f'0 of 4 declared seeds of adt_exp on {n + 1} images')
    of_five = replace(e, declared={key: declared | dict(seeds=5, n_test=n)})
    assert judged_of(of_five, key).why.startswith('4 of 5')


def test_declared_rows():
    "C2a of another row, with the size of its generator; too many rows; a name that is no claim"
    e = scale(3, 300, adt_exp={}, adt_exp_am=robust_by(-10), adt_exp_am_wide={})
    e.runs.loc[e.runs.row == 'adt_exp_am_wide', 'generator'] = 1_000_000
    declared = dict(rows=['adt_exp_am_wide', 'adt_exp'], attacks=TABLE1[1:], effect=2, seeds=3, n_test=300)
    wide = replace(e, declared=dict(C2a=declared, clean=declared))
    [claim] = [c for c in paper_claims(PAPER, e=wide) if c.key == 'C2a']
    assert claim.statistic == 'A_rob, adt_exp_am_wide − adt_exp'
    assert '1,000,000 weights; of 10,330,880 in the paper' in claim.text
    usual, declared_one = (claim_estimates(given, ['C2a'])['C2a']['estimate'] for given in (e, wide))
    assert usual < -7 and abs(declared_one) < 3
    assert not_judged(wide) == ['clean']
    with pytest.raises(ParameterError, match='declared: claims: C1: rows=.* expected 2, as adt_exp, at_pgd'):
        claim_statistics(replace(e, declared=dict(C1=declared | dict(rows=['adt_exp']))))


# Sources, and committed records


def test_every_number_says_where_it_is_from():
    claims = paper_claims(PAPER) + code_claims()
    assert {c.key: c.published_source for c in claims if c.published is not None} == {
        **dict.fromkeys(['C1', 'C1b', 'C1c', 'C2a', 'C2b', 'C13'], 'Table 1'),
        **dict.fromkeys(['C2c', 'C2d'], 'derived from the released code'),
        **dict.fromkeys(['C3', 'C4', 'C10a', 'C10b', 'C10c'], 'derived from Table 1'),
    }
    assert all(not c.published_source for c in claims if c.published is None)
    assert [c.key for c in claims if c.source == 'ours'] == ['C9']


def test_committed_records_are_read():
    e = read_evidence(ROOT / 'outputs' / 'gpu')
    judged = judge_paper(e, PAPER)
    assert {'one network', 'not run'} <= set(judged.verdict) <= {'one network', 'not run', 'supported'}
    assert judged.key[judged.verdict == 'supported'].tolist() == ['C2c']  # which is counted
