"A judgement: its answer on networks of known flaws, its numbers against slow plain loops, its plan, and its repeats"

import json
import random
import shlex
from fractions import Fraction
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import refusal
from scipy.stats import binomtest
from torch import nn

import adt_repro as adt
from adt_repro.attacks.autoattack import autoattack_version
from adt_repro.attacks.gradient import pgd
from adt_repro.base.parameters import ParameterError
from adt_repro.command.main import main
from adt_repro.data import load_data
from adt_repro.evaluation.evaluate import evaluate
from adt_repro.evaluation.metrics import robust
from adt_repro.judging.budget import JUDGE_ATTACKS, budget_lines, make_plan, measure_passes
from adt_repro.judging.files import eps_words, judge_command
from adt_repro.judging.judgement import judge_attacks, judge_model
from adt_repro.judging.page import check_report, judgement_page
from adt_repro.judging.user_data import stratified_order
from adt_repro.judging.user_model import JudgeError
from adt_repro.methods.adversaries import distribution_stats, exp_adversary
from adt_repro.models.classifiers import SmallCNN
from adt_repro.models.flops import count_passes
from adt_repro.models.trained import trained_network
from adt_repro.runs.config import PARAMETERS

EPS = 0.15
DATA = load_data('digits')
ORDER = stratified_order(DATA.y_test)[:70]
X, Y = DATA.x_test[ORDER], DATA.y_test[ORDER]
PLAIN = ['fgsm', 'pgd20', 'mim', 'cw']
QUICK = [*PLAIN, 'pgd100', 'targeted']
PASSES = dict(forward=0.0004, gradient=0.001)


class Changed(nn.Module):
    "A trained network with something before it and something after it"

    def __init__(self, before=None, after=None, method='at_pgd'):
        super().__init__()
        self.net = trained_network(method)
        self.before, self.after = before or nn.Identity(), after or nn.Identity()

    def forward(self, x):
        return self.after(self.net(self.before(x)))


def times_50(z):
    return 50 * z


def rounded(x):
    return (4 * x).round() / 4


def shattered(x):
    return x + 0.03 * torch.sin(300 * x)


def noisy(z):
    return z + 0.5 * torch.randn_like(z)


def dropout(z):
    return F.dropout(z, 0.3, training=True)


def detached(x):
    return x.detach()


class NaNUnderAttack(nn.Module):
    "Logits that are finite on every clean digit, whose corner is black, and NaN where the corner is grey"

    def __init__(self):
        super().__init__()
        self.net = trained_network('at_pgd')

    def forward(self, x):
        return self.net(x) + (0.01 - x[:, :1, 0, 0]).log()


@pytest.fixture(scope='module')
def sound():
    return judge_model(trained_network('at_pgd'), X, Y, eps=EPS, attacks=QUICK)


@pytest.fixture(scope='module')
def weak():
    return judge_model(trained_network('standard'), X, Y, eps=EPS, attacks=['fgsm'])


# The answer


def test_an_adversarially_trained_network_is_sound(sound):
    report = sound.report
    assert sound.status == 0 and report['answer']['word'] == 'sound' and not report['answer']['reasons']
    assert '\n' not in sound.line and 'all 11 checks passed' in sound.line
    assert f'under {len(QUICK)} attacks in ℓ∞' in sound.line
    assert all(check['passed'] and check['saw'] and not check['advice'] for check in report['checks'])
    assert 0.5 < report['robust']['accuracy'] < report['clean']['accuracy']


@pytest.mark.parametrize(
    'change, named',
    [
        (dict(after=times_50), 'zero gradients'),
        (dict(after=times_50), 'loss increase'),
        (dict(before=rounded), 'zero gradients'),
        (dict(before=rounded), 'chance'),
        (dict(before=shattered, method='standard'), 'black box: Square'),
        (dict(before=shattered, method='standard'), 'many steps against one'),
    ],
)
def test_a_masked_gradient_is_named(change, named, judged_once):
    found = judged_once(**change)
    answer = found.report['answer']
    failed = [reason for reason in answer['reasons'] if reason['check'].startswith(named)]
    assert found.status == 1 and answer['word'] == 'overstated' and len(failed) == 1
    assert failed[0]['reason'] and failed[0]['advice'].endswith('.') and named in found.line
    by_name = {check['name']: check for check in found.report['checks']}
    assert by_name['same images twice']['passed'] and not by_name['same images twice']['advice']


@pytest.fixture(scope='module')
def judged_once():
    known = {}

    def judged(**change):
        key = tuple(change.items())
        if key not in known:
            known[key] = judge_model(Changed(**change), X[:60], Y[:60], eps=EPS, attacks=['fgsm', 'pgd20'])
        return known[key]

    return judged


@pytest.mark.parametrize(
    'network, says',
    [
        (lambda: Changed(after=noisy), 'again|random|second'),
        (lambda: Changed(before=dropout), 'again|random|second'),
        (lambda: Changed(before=detached), 'gradient'),
        (NaNUnderAttack, 'not finite'),
    ],
)
def test_what_cannot_be_judged(network, says):
    with pytest.raises(JudgeError, match=says) as error:
        judge_model(network(), X, Y, eps=EPS, attacks=['fgsm', 'pgd20'])
    assert '\n' not in str(error.value)


def test_a_clean_error_is_no_verdict():
    "An error of another kind is not called a network that cannot be judged"

    def on_step(name, n):
        raise ValueError('something else')

    with pytest.raises(ValueError, match='something else') as error:
        judge_model(trained_network(), X, Y, eps=EPS, attacks=['fgsm'], on_step=on_step)
    assert not isinstance(error.value, ParameterError)


@pytest.mark.parametrize(
    'change, says',
    [
        (dict(eps=0), 'eps=0: expected'),
        (dict(eps=2), 'eps=2: expected'),
        (dict(norm='l1'), "norm='l1': expected"),
        (dict(batch=0), 'batch=0: expected'),
        (dict(seed=-1), 'seed=-1: expected'),
        (dict(minutes=0), 'minutes=0: expected'),
        (dict(attacks=['pgd']), "attacks=['pgd']: expected"),
        (dict(attacks=['fgm']), 'ℓ2 only'),
        (dict(plan=make_plan(n=99, n_classes=10, shape=(1, 8, 8))), 'plan='),
        (dict(x=X[:49], y=Y[:49]), 'x: there are 49 images'),
        (dict(y=torch.full_like(Y, 3)), 'y: all labels are 3, expected at least two classes'),
    ],
)
def test_mistakes_are_one_line_before_any_work(change, says):
    def on_step(name, n):
        raise AssertionError('work has begun')

    given = dict(x=X, y=Y, eps=EPS, attacks=['fgsm', 'pgd20'], on_step=on_step) | change
    line = refusal(judge_model, trained_network(), **given)
    assert says in line and '\n' not in line


def test_a_fraction_is_read_and_shown():
    found = judge_model(trained_network(), X, Y, eps='8/255', attacks=['fgsm'])
    assert found.report['threat'] == dict(norm='linf', eps=8 / 255, eps_text='8/255')


def test_the_text_of_a_radius_is_exact():
    "It stands in the command that asks the same question again"
    for eps in 0.15, 8 / 255, 0.0313725, 7.3 / 255, 1e-7, 1.0, 300 / 255:
        text = eps_words(eps)
        assert float(Fraction(text)) == pytest.approx(eps, rel=1e-15), text
    assert eps_words(8 / 255) == '8/255' and eps_words(0.15) == '0.15'


def test_the_command_asks_the_same_question(monkeypatch):
    "Read again by the command itself, which is stopped before it calls the notebook"
    default = {name: parameter.default for name, parameter in PARAMETERS['judge'].items()}
    base = default | dict(model='my module.py:make', data="it's.npz", eps=8 / 255)
    read = []

    def noted(name, output, given, *rest):
        read.append(default | given)
        raise ParameterError('stopped')

    monkeypatch.setattr('adt_repro.command.main.run_notebook', noted)
    asked = [dict(), dict(minutes=None), dict(autoattack=False), dict(inputs=[-1, 1]), dict(eps=0.0313725)]
    asked += [dict(attacks=['pgd20', 'cw'], seed=3), dict(norm='l2', eps=3.0, size=224), dict(name='a-b')]
    for change in asked:
        given = base | change
        assert main(shlex.split(judge_command(given))[1:]) == 2
        assert read.pop() == given
    assert judge_command(base | dict(fresh=True)) == judge_command(base)


def test_labels_that_do_not_fit_are_said(sound):
    "All checks pass, because there is nothing to attack; but the line says what is wrong"
    shifted = judge_model(trained_network('at_pgd'), X, (Y + 1) % 10, eps=EPS, attacks=['fgsm', 'square'])
    assert shifted.report['clean']['accuracy'] < 0.1 and 'look at labels' in shifted.line
    assert 'look at labels' not in sound.line
    assert shifted.report['images'] == dict(worst=[], closest=[])
    assert judgement_page(shifted.report, shifted.pictures).count('there is no such image') == 2


def test_no_change_of_a_robust_network():
    "A network that no attack moves by much: no worst images, and closest ones"

    class Easy(nn.Module):
        def forward(self, x):
            mean = x.flatten(1).mean(1, keepdim=True)
            return torch.cat([0.01 * mean + 5, -0.01 * mean, 0 * mean - 1], 1)

    found = judge_model(Easy(), X, (Y > 7).long(), eps=EPS, attacks=['fgsm', 'pgd20', 'pgd100', 'targeted'])
    assert found.report['robust'] == found.report['clean'] and not found.report['images']['worst']
    assert len(found.report['images']['closest']) == 12
    assert 'no better than always naming one class' in found.line, 'it always names one class'


def test_the_public_face():
    assert adt.judge_model is judge_model and 'judge_model' in adt.__all__


# The numbers


def test_accuracies_are_those_of_a_plain_loop(sound):
    "Every attack on every image, without a cascade"
    net = trained_network('at_pgd')
    attacks = judge_attacks(n_classes=10, pool=(X, Y), names=QUICK)
    assert [attack['name'] for attack in sound.report['attacks']] == QUICK

    def right_under(attack):
        rows = evaluate(net, X, Y, attack, eps=EPS)
        return (rows.pred == rows.y).to_numpy()

    clean = right_under(None)
    withstands = clean.copy()
    assert sound.report['clean']['correct'] == clean.sum()
    for entry in sound.report['attacks']:
        right = right_under(attacks[entry['name']])
        met = withstands.copy() if entry['cascade'] else clean
        assert entry['met'] == (met.sum() if entry['cascade'] else len(X))
        assert entry['misclassified'] == (met & ~right).sum() and entry['bound'] == entry['cascade']
        if not entry['cascade']:
            assert entry['accuracy'] == right.mean()
        withstands &= right
    assert sound.report['robust']['correct'] == withstands.sum() < clean.sum()


def test_the_curve_passes_through_pgd20(sound):
    curve = sound.report['curve']
    by_name = {attack['name']: attack for attack in sound.report['attacks']}
    assert [round(point['eps'] / EPS, 9) for point in curve] == [k / 4 for k in range(9)]
    assert curve[4]['accuracy'] == by_name['pgd20']['accuracy']
    assert curve[0]['accuracy'] == sound.report['clean']['accuracy'] > curve[8]['accuracy']
    net = trained_network('at_pgd')
    for k in 2, 7:
        rows = evaluate(net, X, Y, pgd, eps=EPS * k / 4)
        assert curve[k]['correct'] == (rows.pred == rows.y).sum()


def test_a_radius_above_one_has_no_point():
    found = judge_model(trained_network('at_pgd'), X[:50], Y[:50], eps=0.7, attacks=['fgsm'])
    assert [point['eps'] for point in found.report['curve']] == [0.7 * k / 4 for k in range(6)]


def test_classes_add_up(sound):
    classes = sound.report['classes']
    for kind in 'clean', 'robust':
        for count in 'n', 'correct':
            assert sum(entry[kind][count] for entry in classes) == sound.report[kind][count]
    assert [entry['n'] for entry in classes] == [int((Y == label).sum()) for label in range(10)]


def test_overlap_and_alone_by_counting(sound):
    wide = sound.rows.assign(wrong=sound.rows.pred != sound.rows.y).pivot(
        index='i', columns='attack', values='wrong'
    )
    wide = wide[~wide.natural]
    overlap = sound.report['overlap']
    assert overlap['names'] == PLAIN and overlap['n'] == len(wide)
    for j, one in enumerate(PLAIN):
        for k, other in enumerate(PLAIN):
            assert overlap['counts'][j][k] == sum(
                a and b for a, b in zip(wide[one], wide[other], strict=True)
            )
    for entry in sound.report['attacks']:
        if entry['cascade']:
            assert entry['alone'] is None
            continue
        others = [name for name in PLAIN if name != entry['name']]
        assert entry['alone'] == sum(
            row[entry['name']] and not row[others].any() for _, row in wide.iterrows()
        )


def test_images_by_brute_force(sound):
    rows = sound.rows[sound.rows.attacked]
    clean = rows[rows.attack == 'natural'].set_index('i')
    worst, closest = {}, {}
    for i, group in rows[rows.attack != 'natural'].groupby('i'):
        if clean.pred[i] != clean.y[i]:
            continue
        smallest = min(group.margin)
        (worst if smallest < 0 else closest)[i] = smallest
    for kind, margins in dict(worst=worst, closest=closest).items():
        entries = sound.report['images'][kind]
        expected = sorted(margins, key=lambda i: margins[i])[:12]
        assert [entry['i'] for entry in entries] == expected and len(expected) > 3
        for entry in entries:
            assert entry['margin'] == pytest.approx(margins[entry['i']], abs=1e-3)


def test_pictures_are_what_is_said_of_them(sound):
    net = trained_network('at_pgd')
    for kind, entries in sound.report['images'].items():
        for entry in entries:
            picture = sound.pictures[entry['key']]
            assert torch.equal(picture['clean'], X[entry['i']])
            moved = picture['adversarial'] - picture['clean']
            assert (
                float(moved.abs().max()) == pytest.approx(entry['linf'], abs=1e-6)
                and entry['linf'] <= EPS + 1e-6
            )
            assert float(moved.norm()) == pytest.approx(entry['l2'], rel=1e-5)
            z = net(picture['adversarial'][None])[0]
            assert int(z.argmax()) == entry['pred'] and entry['y'] == int(Y[entry['i']])
            assert (entry['pred'] != entry['y']) == (kind == 'worst')
    assert len(sound.pictures) == sum(map(len, sound.report['images'].values()))


def test_the_distribution(sound):
    section = sound.report['distribution']
    for image in section['images']:
        exact = binomtest(image['misclassified'], image['draws']).proportion_ci(0.95, 'exact')
        assert (image['lo'], image['hi']) == pytest.approx((exact.low, exact.high), abs=1e-9)
    shares = [image['misclassified'] / image['draws'] for image in section['images']]
    assert section['mean']['value'] == pytest.approx(sum(shares) / len(shares))
    assert section['mean']['lo'] < section['mean']['value'] < section['mean']['hi']
    adversary = partial(exp_adversary, eps=EPS, n_mc=None)
    stats = distribution_stats(trained_network('at_pgd'), X, Y, adversary, n=100)
    assert section['mean']['value'] == pytest.approx(stats['p_wrong'], abs=1e-3)
    assert 'robabilistic robustness' in section['words'] and 'no certificate' in section['words']


def test_probabilistic_robustness_moves_with_the_network(sound, weak):
    assert weak.report['distribution']['mean']['lo'] > sound.report['distribution']['mean']['hi']


def test_robust_is_the_records_own(sound):
    sums = robust(sound.rows).iloc[0]
    assert sound.report['robust']['correct'] == sums.correct and sound.report['robust']['n'] == sums.n == len(
        X
    )
    known = sound.report['robust']
    wilson = binomtest(known['correct'], known['n']).proportion_ci(0.95, 'wilson')
    assert (known['lo'], known['hi']) == pytest.approx((wilson.low, wilson.high))


def test_expensive_attacks_run_too():
    names = ['pgd20', 'square', 'feature']
    found = judge_model(trained_network('at_pgd'), X[:50], Y[:50], eps=EPS, attacks=names)
    met = {attack['name']: attack['met'] for attack in found.report['attacks']}
    assert list(met) == names and met['pgd20'] == 50 > met['square'] >= met['feature'] > 0


def test_in_l2():
    net = trained_network('at_pgd')
    found = judge_model(
        net, X[:60], Y[:60], eps=0.8, norm='l2', attacks=['fgm', 'pgd20', 'targeted', 'patches']
    )
    assert found.status == 0 and 0.1 < found.report['robust']['accuracy'] < found.report['clean']['accuracy']
    assert 'ℓ2' in found.line and found.report['threat']['norm'] == 'l2'
    assert set(found.rows.norm) == {'l2'} and found.rows.l2.max() <= 0.8 + 1e-6
    assert 'ℓ∞ only' in found.report['distribution']['left_out']
    left_out = ' '.join(item['what'] for item in found.report['left_out'])
    assert 'FeaAttack' in left_out and 'MIM' in left_out and 'Square' not in left_out
    masked = judge_model(
        Changed(after=times_50), X[:60], Y[:60], eps=0.8, norm='l2', attacks=['fgm', 'pgd20']
    )
    assert masked.status == 1 and 'zero gradients' in masked.line and 'black box: Patches' in masked.line
    shown = [entry for entries in found.report['images'].values() for entry in entries]
    assert shown and all(entry['l2'] <= 0.8 + 1e-6 for entry in shown)


# The same report again


def as_text(found):
    return json.dumps(found.report, allow_nan=False)


def test_the_same_call_gives_the_same_report(sound):
    again = judge_model(trained_network('at_pgd'), X, Y, eps=EPS, attacks=QUICK)
    assert as_text(again) == as_text(sound) and again.rows.equals(sound.rows)


class Killed(Exception):
    pass


@pytest.mark.parametrize('at', ['targeted', 'distribution'])
def test_a_judgement_resumes(sound, tmp_path, at):
    "Stopped before a step: what was finished is not computed again, and the report is the same"

    def stop(name, n):
        if name == at:
            raise Killed

    how = dict(eps=EPS, attacks=QUICK, folder=tmp_path)
    with pytest.raises(Killed):
        judge_model(trained_network('at_pgd'), X, Y, **how, on_step=stop)
    finished = {file: file.stat().st_mtime_ns for file in tmp_path.rglob('*.parquet')}
    assert finished
    steps = []
    found = judge_model(trained_network('at_pgd'), X, Y, **how, on_step=lambda name, n: steps.append(name))
    assert as_text(found) == as_text(sound) and found.rows.equals(sound.rows)
    assert all(file.stat().st_mtime_ns == before for file, before in finished.items())
    assert steps == ['natural', *QUICK, 'checks', 'curve', 'distribution', 'pictures']
    for key, picture in found.pictures.items():
        assert torch.equal(picture['adversarial'], sound.pictures[key]['adversarial'])


def test_parts_of_another_network_are_not_used(weak, tmp_path):
    how = dict(eps=EPS, attacks=['fgsm'], folder=tmp_path)
    first = judge_model(trained_network('at_pgd'), X, Y, **how)
    second = judge_model(trained_network('standard'), X, Y, **how)
    assert first.report['robust'] != second.report['robust']
    assert as_text(second) == as_text(weak)


def test_what_the_caller_knows(sound):
    classes = [f'digit {k}' for k in range(10)]
    about = dict(
        model=dict(spec='a.py:net'),
        data=dict(spec='b.npz'),
        command='adt judge',
        index=ORDER,
        names=[f'{i}.png' for i in ORDER.tolist()],
        classes=classes,
    )
    report = judge_model(trained_network('at_pgd'), X, Y, eps=EPS, attacks=QUICK, about=about).report
    assert (
        report['model'] == about['model']
        and report['data'] == about['data'] | dict(class_names=classes)
        and report['command'] == 'adt judge'
    )
    assert [entry['name'] for entry in report['classes']] == classes
    for entry in report['images']['worst'] + report['images']['closest']:
        assert entry['index'] == int(ORDER[entry['i']]) and entry['name'] == f'{entry["index"]}.png'
    assert report['robust'] == sound.report['robust'] and json.loads(json.dumps(report)) == report


def test_each_label_needs_a_name():
    about = dict(classes=['zero', 'one'])
    with pytest.raises(
        ParameterError, match='^about=.2 names in classes.: expected a name for each label, 0 to 9$'
    ):
        judge_model(trained_network('at_pgd'), X, Y, eps=EPS, attacks=QUICK, about=about)


# The plan


def images_of(plan):
    return {step['attack']: step['n'] for step in plan['steps']} | {o['what']: o['n'] for o in plan['others']}


def planned(minutes, **change):
    how = dict(n=1000, n_classes=10, shape=(3, 32, 32), passes=PASSES, has_features=True, autoattack=True)
    return make_plan(**how | change, minutes=minutes)


def test_a_larger_budget_never_plans_less():
    random.seed(0)
    for _ in range(20):
        forward = 10 ** random.uniform(-5, -1)
        change = dict(n=random.choice([50, 73, 400, 5000]), norm=random.choice(['linf', 'l2']))
        change |= dict(passes=dict(forward=forward, gradient=forward * random.uniform(1, 4)))
        before, grew = {}, 0
        for minutes in [0.01 * 1.5**k for k in range(45)]:
            try:
                plan = planned(minutes, **change)
            except ParameterError:
                assert not before
                continue
            found = images_of(plan)
            assert all(found.get(what, 0) >= n for what, n in before.items())
            assert all(n == 0 or n >= 50 for n in found.values())
            assert plan['at_most_seconds'] <= 60 * minutes
            grew += found != before
            before = found
        assert grew >= 2 and before == images_of(planned(None, **change))


def test_the_numbers_of_a_plan_add_up():
    plan = planned(10)
    parts = [part['at_most_seconds'] for part in plan['steps'] + plan['others']]
    assert sum(parts) == pytest.approx(plan['at_most_seconds'], abs=1e-2)
    pgd100 = next(step for step in plan['steps'] if step['attack'] == 'pgd100')
    assert pgd100['at_most_seconds'] == pytest.approx(pgd100['n'] * (100 * 0.001 + 0.0004), abs=1e-3)
    longer = planned(1000)
    square = next(step for step in longer['steps'] if step['attack'] == 'square')
    assert square['at_most_seconds'] == pytest.approx((1000 + 24) * 1002 * 0.0004), 'and for 24 pictures'
    lines = budget_lines(plan)
    assert len(lines) >= 1 + len(plan['steps']) + len(plan['left_out'])


def test_a_plan_always_has_an_attack():
    "Also if only expensive attacks are asked for: else the clean accuracy would be the robust one"
    for minutes in (0.4 * 1.3**k for k in range(20)):
        try:
            plan = planned(minutes, attacks=['square', 'feature'])
        except ParameterError as error:
            assert 'expected at least' in str(error)
            continue
        assert plan['steps'][0]['attack'] == 'square' and plan['steps'][0]['n'] >= plan['n_checks'] >= 50
        assert images_of(plan)['natural'] == images_of(plan)['square']
        assert images_of(plan).get('feature', 0) in (0, 1000)
    assert images_of(plan)['feature'] == 1000, 'the largest budget pays for it'


def test_autoattack_is_left_out_where_its_square_fails():
    def why(shape, norm='l2'):
        left_out = planned(None, shape=shape, norm=norm)['left_out']
        return next((item['why'] for item in left_out if item['what'] == 'AutoAttack'), None)

    assert why((3, 32, 32)) is None and why((3, 14, 14), 'linf') is None
    assert '14×14 pixels' in why((3, 14, 14)) and '28×20 pixels' in why((1, 28, 20))


def test_the_lines_of_a_plan():
    lines = budget_lines(planned(10, n=60))
    assert lines[0].startswith('10 minutes, 60 images, at most')
    assert lines[1] == '  clean images: 60 images, under 1 s' and lines[2].startswith('  FGSM: 60 images')
    assert not any(' 0 s' in line for line in lines)


def test_what_a_budget_leaves_out_is_said():
    whole = ' '.join(item['what'] for item in planned(None)['left_out'])
    assert 'Square' not in whole and 'FGSM' not in whole
    small = planned(2)
    assert {'AutoAttack', 'FeaAttack', 'Square'} <= {item['what'] for item in small['left_out']}
    assert all('2 minutes' in item['why'] for item in small['left_out'])
    n = images_of(small)['pgd20']
    assert any(f'{1000 - n} of 1000 images under FGSM' in item['what'] for item in small['left_out'])


def test_a_budget_of_seconds():
    "A plan for some seconds of an imagined slow machine is followed exactly"
    passes = dict(forward=0.002, gradient=0.005)
    how = dict(n=len(X), n_classes=10, shape=(1, 8, 8), passes=passes, attacks=QUICK)
    plan = make_plan(**how, minutes=5.1)
    counts = images_of(plan)
    assert 50 < counts['pgd20'] < len(X) and counts['checks'] >= 50
    found = judge_model(trained_network('at_pgd'), X, Y, eps=EPS, plan=plan, attacks=QUICK)
    report = found.report
    assert report['robust']['n'] == report['clean']['n'] == counts['pgd20'] == found.rows.i.max() + 1
    assert report['plan'] == plan and report['left_out'] == plan['left_out'] != []
    assert (
        report['distribution']['n'] == counts['distribution'] and report['curve'][0]['n'] == counts['curve']
    )
    shares = Y.bincount(minlength=10) / len(Y)
    for entry in report['classes']:
        assert abs(entry['n'] - float(shares[entry['label']]) * counts['pgd20']) <= 1


def test_measured_minutes_are_planned():
    found = judge_model(trained_network('at_pgd'), X, Y, eps=EPS, attacks=['fgsm', 'pgd20'], minutes=1000)
    assert found.report['plan']['passes'].keys() == {'forward', 'gradient'}
    assert images_of(found.report['plan'])['pgd20'] == len(X)


def test_too_few_minutes_are_refused():
    line = refusal(planned, 0.001)
    assert 'minutes=0.001: expected at least ' in line and '\n' not in line
    least = float(line.partition('at least ')[2].partition(':')[0])
    assert images_of(planned(least))['checks'] == 50
    assert 'passes=None' in refusal(planned, 5, passes=None)


def counted(run):
    "Forward and backward passes for one image of a network that is never fooled"
    net = SmallCNN(1, 10, 2).eval()
    nn.init.zeros_(net.fc.weight)
    nn.init.zeros_(net.fc.bias)
    net.fc.bias.data[0] = 1
    x, y = torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)
    with count_passes(net, net.body[0][0]) as passes:
        run(net, x, y)
    return passes['forward'] / 4


@pytest.mark.parametrize('name', [name for name in JUDGE_ATTACKS if name != 'autoattack'])
def test_costs_are_those_of_the_attacks(name):
    "Every forward pass is counted by a hook, and the judging pass added"
    card = JUDGE_ATTACKS[name]
    pool = torch.rand(20, 1, 8, 8), torch.arange(20) % 10

    def run(net, x, y):
        attack = judge_attacks(norm=card.norms[0], n_classes=10, pool=pool, names=[name])[name]
        attack(net, x, y, eps=0.1)

    forwards = counted(run) + 1
    allowed = card.gradients + card.forwards
    pool_passes = 20 / 4 if name == 'feature' else 0
    assert allowed >= forwards - pool_passes >= 0.9 * allowed - 2


def test_autoattack_is_run_if_it_is_installed():
    try:
        autoattack_version()
    except ParameterError as error:
        assert 'not installed' in str(
            [
                item['why']
                for item in judge_model(trained_network(), X, Y, eps=EPS, attacks=['fgsm']).report['left_out']
            ]
        )
        assert refusal(judge_model, trained_network(), X, Y, eps=EPS, autoattack=True) == str(error)
        return
    found = judge_model(trained_network(), X, Y, eps=EPS, attacks=['pgd20', 'autoattack'])
    assert found.report['attacks'][-1]['name'] == 'autoattack' and 'pyautoattack' in found.report['versions']


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_measured_passes_are_counted(norm, monkeypatch):
    "With a clock on which every call takes a millisecond, and a hook that counts passes"
    net = trained_network('at_pgd')
    seen = []

    def clock(run, device):
        with count_passes(net, next(m for m in net.modules() if isinstance(m, nn.Conv2d))) as passes:
            run()
        seen.append(passes['forward'] / len(X[:64]))
        return 0.001

    monkeypatch.setattr('adt_repro.judging.budget.clock', clock)
    found = measure_passes(net, X, Y, 64, norm)
    per_query, per_step = (0.001 / 64 / found[name] for name in ('forward', 'gradient'))
    queried, climbed = seen[1], seen[-1]
    assert queried == pytest.approx(per_query, abs=1.1) and climbed == pytest.approx(per_step, abs=1.1)
    assert per_query > 5 > per_step


def test_a_slow_network_is_measured_on_few_images_and_once(monkeypatch):
    sizes = []

    class Noted(nn.Module):
        def forward(self, x):
            sizes.append(len(x))
            return x.flatten(1)[:, :10]

    def clock(run, device):
        run()
        return 40.0

    monkeypatch.setattr('adt_repro.judging.budget.clock', clock)
    found = measure_passes(Noted(), X, Y)
    assert max(sizes) == 8 and len(sizes) < 20
    assert found['forward'] > 0.1


def test_reports_fit_the_schema(sound, weak):
    for found in sound, weak:
        check_report(found.report)
    with pytest.raises(ParameterError):
        check_report(sound.report | dict(robust=None))
