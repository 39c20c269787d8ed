"A judgement that is made up, with every part that a page can have: no network was judged"

import copy
from functools import cache

import numpy as np
import torch

from adt_repro.base.stats import share

EPS = dict(linf=(8 / 255, '8/255'), l2=(0.5, '0.5'))
NAMES = 'airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck'
CASCADE = 'targeted', 'square'
ADVICE = 'divide the logits by a constant, so that the softmax does not saturate, and judge again'


def attack(name, title, settings, n, misclassified, clean):
    "An entry of attacks; one of the cascade has met a part of the images only"
    found = share(clean - misclassified, n)
    del found['correct']
    entry = dict(name=name, title=title, settings=settings, cascade=name in CASCADE, n=n, met=n)
    entry |= dict(misclassified=misclassified, alone=misclassified // 40, bound=False) | found
    if entry['cascade']:
        entry |= dict(met=n // 2, alone=None, bound=True, lo=None, hi=None)
    return entry


def attacks(norm, n, clean):
    names = ('fgsm', 'FGSM') if norm == 'linf' else ('fgm', 'FGM (one step)')
    listed = [attack(*names, {}, n, n // 4, clean)]
    listed.append(attack('pgd20', 'PGD-20', dict(steps=20, step_size=EPS[norm][0] / 4), n, n // 3, clean))
    listed.append(attack('cw', 'C&W loss, 20 steps', dict(steps=20, loss='cw'), n, n // 3 + 5, clean))
    listed.append(attack('targeted', 'Targeted PGD', dict(targets=3), n, 9, clean))
    listed.append(attack('square', 'Square', dict(budget=500), n, 1, clean))
    return listed


def check(name, title, value, limit, n, saw):
    passed = value <= limit
    reason, advice = ('', '') if passed else (saw, ADVICE)
    words = dict(name=name, title=title, saw=saw, reason=reason, advice=advice)
    return words | dict(passed=passed, value=value, limit=limit, n=n)


def checks(status):
    zero = 0.31 if status else 0.004
    zero_words = f'{100 * zero:.1f} % of the images have a gradient of zero, which no step can follow.'
    return [
        check('again', 'Same images twice', 0.0, 0.095, 250, 'The logits are the same on a second pass.'),
        check('falls', 'Accuracy falls with ε', -0.12, 0.01, 250, 'From 0 to 2 ε it falls at every step.'),
        check('zero', 'Zero gradients', zero, 0.095, 250, zero_words),
        check('steps', 'More steps', 0.004, 0.016, 250, 'PGD-100 leaves 44.0 %, PGD-20 leaves 43.6 %.'),
        check(
            'square',
            'Black box: Square',
            -0.08,
            0.01,
            250,
            'Accuracy is 52.0 % under Square, 43.6 % under PGD-20.',
        ),
    ]


def curve(eps, n):
    heights = [0.86, 0.78, 0.66, 0.55, 0.44, 0.24, 0.09]
    radii = [0, 0.25, 0.5, 0.75, 1, 1.5, 2]
    return [dict(eps=f * eps) | share(round(h * n), n) for f, h in zip(radii, heights, strict=True)]


def images(norm, n_images, names):
    "Entries of worst and closest"
    eps = EPS[norm][0]
    found = dict(worst=[], closest=[])
    for k in range(2 * n_images):
        group = 'worst' if k < n_images else 'closest'
        y, other = k % len(NAMES), (k + 3) % len(NAMES)
        entry = dict(i=7 * k, index=31 * k, name=f'{names[y]}/{k:04}.png', y=y, clean_pred=y, key=str(7 * k))
        entry |= dict(attack='pgd20', pred=other if group == 'worst' else y, clean_margin=3.25 - k / 10)
        entry |= dict(margin=-9.5 + k / 4 if group == 'worst' else 0.01 * (k + 1))
        entry |= dict(linf=eps if norm == 'linf' else 0.09, l2=1.62 if norm == 'linf' else eps)
        found[group].append(entry)
    return found


def distribution(n, draws):
    "Clopper and Pearson's intervals as quantiles of beta distributions"
    from scipy.stats import beta

    rng = np.random.default_rng(1)
    counts = rng.binomial(draws, rng.beta(0.5, 0.8, n))
    lo = np.nan_to_num(beta.ppf(0.025, counts, draws - counts + 1), nan=0.0)
    hi = np.nan_to_num(beta.ppf(0.975, counts + 1, draws - counts), nan=1.0)
    listed = [
        dict(i=k, index=31 * k, misclassified=int(counts[k]), draws=draws, lo=float(lo[k]), hi=float(hi[k]))
        for k in range(n)
    ]
    mean = float(np.mean([image['misclassified'] / draws for image in listed]))
    ends = dict(value=mean, lo=max(0.0, mean - 0.09), hi=min(1.0, mean + 0.09))
    words = f'P(misclassified) of {n} images, {draws} draws each.'
    return dict(n=n, draws=draws, mean=ends, images=listed, words=words)


def made_up_report(status=0, norm='linf', drawn=True, names=NAMES, n_images=12, shape=(3, 32, 32)):
    "A report as `judge_model` makes it, for the caller to change"
    return copy.deepcopy(_report(status, norm, drawn, tuple(names), n_images, shape))


@cache
def _report(status, norm, drawn, names, n_images, shape):
    n, (eps, eps_text) = 1000, EPS[norm]
    listed, robust = checks(status), share(412, n)
    words = f'robust accuracy 41.2 % [38.2, 44.3] on 1,000 images, {norm} ≤ {eps_text}'
    line = f'{words}: sound, all {len(listed)} checks passed.'
    if status:
        line = f'{words}: overstated, the check Zero gradients failed.'
    report = dict(schema='adt_repro.judgement/1')
    failed = [
        dict(check=c['name'], reason=c['reason'], advice=c['advice']) for c in listed if not c['passed']
    ]
    report['answer'] = dict(
        status=status, word='overstated' if status else 'sound', line=line, reasons=failed
    )
    report['model'] = {
        'spec': 'my_module:make_model',
        'kind': 'module',
        'class': 'SmallCNN',
        'n_weights': 75_562,
    }
    report['model'] |= dict(weights_sha256='9f' * 32, inputs=[[0.49, 0.48, 0.45], [0.25, 0.24, 0.26]])
    report['model'] |= dict(files={'weights.safetensors': 'a7' * 32})
    report['data'] = dict(
        spec='test.npz', kind='npz', n_available=10_000, n=n, shape=list(shape), n_classes=10
    )
    report['data'] |= dict(
        test_set='0123456789ab', said=['Pixels of uint8 were divided by 255.'], files={'test.npz': 'c4' * 32}
    )
    report['threat'] = dict(norm=norm, eps=eps, eps_text=eps_text)
    report |= dict(clean=share(861, n), robust=robust, attacks=attacks(norm, n, 861))
    plain = [a['name'] for a in report['attacks'] if not a['cascade']]
    report['overlap'] = dict(names=plain, n=n, counts=[[250, 240, 231], [240, 333, 310], [231, 310, 338]])
    report['curve'] = curve(eps, 250)
    rights = [55, 61, 22, 12, 30, 28, 52, 57, 48, 47]
    report['classes'] = [
        dict(label=k, name=name, n=100, clean=share(80 + k % 20, 100), robust=share(rights[k % 10], 100))
        for k, name in enumerate(names)
    ]
    report |= dict(images=images(norm, n_images, names), checks=listed)
    report['distribution'] = (
        distribution(50, 200) if drawn else dict(left_out=f'it is not defined for {norm}')
    )
    report['left_out'] = [dict(what='AutoAttack', why='pyautoattack is not installed')]
    steps = [dict(attack=a['name'], n=a['n'], at_most_seconds=12.5) for a in report['attacks']]
    report['plan'] = dict(
        minutes=10, passes=dict(forward=1e-4, gradient=3e-4), steps=steps, n_checks=250, n_curve=250
    )
    report['plan'] |= dict(draws=200, n_distribution=50, left_out=report['left_out'], at_most_seconds=412.0)
    report |= dict(seed=0, batch=256, versions=dict(python='3.12.3', torch='2.14.0', adt_repro='0.1.0'))
    report['command'] = 'adt judge my_module:make_model --data test.npz --eps 8/255 --minutes 10'
    report['cite'] = '@misc{adt_repro,\n  title = {adt_repro},\n  year = {2026}\n}'
    return report


def made_up_pictures(report, noise=False):
    "Pictures for all its images: shapes, or pure noise, which no picture format can make small"
    rng, shape, threat = np.random.default_rng(2), report['data']['shape'], report['threat']
    rows, columns = np.mgrid[0 : shape[1], 0 : shape[2]] / max(shape[1:])
    pictures = {}
    for k, image in enumerate([*report['images']['worst'], *report['images']['closest']]):
        disc = (rows - 0.5) ** 2 + (columns - 0.3 - k / 60) ** 2 < 0.06
        levels = [0.75 * disc + 0.2 * rows * (c + 1) / shape[0] for c in range(shape[0])]
        clean = rng.random(shape) if noise else np.stack(levels)
        change = rng.choice([-1, 1], shape) * (threat['eps'] if threat['norm'] == 'linf' else 0.03)
        adversarial = (clean + change).clip(0, 1)
        pair = dict(clean=torch.tensor(clean, dtype=torch.float32))
        pictures[image['key']] = pair | dict(adversarial=torch.tensor(adversarial, dtype=torch.float32))
    return pictures
