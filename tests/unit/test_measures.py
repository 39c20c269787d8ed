"Where draws point and what the inner problem reaches: known processes, controls, and closed forms"

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ROOT, refusal

from adt_repro.analysis.coverage import alignment, clip_delta, covered, draws_of, restarts_of
from adt_repro.attacks.gradient import fgsm, mim, pgd
from adt_repro.base.noise import example_noise, rand_unit
from adt_repro.base.parameters import ParameterError
from adt_repro.data import data_folder, load_data
from adt_repro.evaluation.measures import gain_share, measure_alignment, measure_gain
from adt_repro.methods.adversaries import exp_adversary, from_attack
from adt_repro.models.trained import trained_network
from adt_repro.runs.gain import gain_words, main, run_gain, save_gain
from adt_repro.runs.select import load_adversary
from adt_repro.runs.store import load_run, read_facts

HAS_CIFAR10 = (data_folder() / 'cifar-10-batches-py' / 'data_batch_1').exists()
SIZE = 3, 16, 16
D = 3 * 16 * 16


# --- alignment, on clouds from a known process ---


def clouds_of(spread, n, seed):
    "Means (N, ...) of length 1 a pixel, and draws around them with so much noise a pixel: two sets of these"
    random = np.random.default_rng(seed)
    means = random.normal(size=(20, *SIZE))
    draws = [means + spread * random.normal(size=(n, 20, *SIZE)) for _ in range(2)]
    return torch.tensor(means), *map(torch.tensor, draws)


@pytest.mark.parametrize('spread, n', [(0.3, 20), (1.0, 50), (3.0, 100)])
def test_alignment_of_a_known_process(spread, n):
    "A new draw has a cosine of 1/√(1+σ²) with the true mean, and the noise of the cloud's mean takes its part"
    means, cloud, twin = clouds_of(spread, n, seed=1)
    ids = torch.arange(20)
    ends = dict(draw=twin[0], mean=means, other=means.roll(1, 0))
    found = alignment(ends, dict(own=cloud), ids=ids).groupby('attack').cosine
    of_mean = 1 / np.sqrt(1 + spread**2 / n)
    expected = dict(draw=of_mean / np.sqrt(1 + spread**2), mean=of_mean, other=0.0)
    for attack, cosine in expected.items():
        error = 5 / np.sqrt(D * 20)
        assert abs(found.mean()[attack] - cosine) < error, attack


def test_a_twin_is_aligned_and_another_image_is_not():
    "The controls, as the claim is judged: a re-fit is an attack that must pass, and another image one that must not"
    _, cloud, twin = clouds_of(1.0, 50, seed=2)
    ids = torch.arange(20)
    clouds = dict(own=cloud, other_image=cloud.roll(1, 1))
    rows = alignment(dict(refit=twin[3], stranger=twin[3].roll(7, 0)), clouds, ids=ids)
    wide = rows.pivot(index=['attack', 'i'], columns='cloud', values='cosine')
    gain = (wide.own - wide.other_image).groupby('attack')
    mean, error = gain.mean(), gain.std() / np.sqrt(20)
    assert mean['refit'] > 0.6 and mean['refit'] > 20 * error['refit']
    assert abs(mean['stranger']) < 3 * error['stranger']


def test_nothing_has_no_direction():
    _, cloud, _ = clouds_of(1.0, 5, seed=3)
    rows = alignment(dict(nothing=0 * cloud[0]), dict(own=cloud, nothing=0 * cloud), ids=torch.arange(20))
    assert (rows.cosine == 0).all()


def test_images_keep_their_names_and_order():
    _, cloud, twin = clouds_of(0.5, 5, seed=4)
    ids = torch.arange(20) * 3 + 2
    rows = alignment(dict(a=twin[0], b=twin[1]), dict(own=cloud), ids=ids)
    assert list(rows) == ['i', 'cloud', 'attack', 'cosine']
    assert rows[rows.attack == 'b'].i.tolist() == ids.tolist()


# --- why the old statistic went ---


def share_covered(points, cloud):
    "Share of the points (m, N, ...) within the cloud (n, N, ...) of their image"
    each = [
        covered(p, c).float().mean()
        for p, c in zip(points.flatten(2).unbind(1), cloud.flatten(2).unbind(1), strict=True)
    ]
    return torch.stack(each).mean().item()


def controls_of(net, x, y, eps, fit, n):
    "A re-fit's draws as if they were attacks: within its twin, and within random corners of the ball"
    ids = torch.arange(len(x))
    first = clip_delta(x, draws_of(fit, net, x, y, n, ids=ids))
    second = clip_delta(x, draws_of(fit, net, x, y, 20, ids=ids + 10_000))
    with example_noise(ids, 0):
        corners = clip_delta(x, torch.stack([eps * rand_unit(x).sign() for _ in range(n)]))
    by_alignment = alignment(dict(refit=second.mean(0)), dict(own=first, other=first.roll(1, 1)), ids=ids)
    cosine = by_alignment.groupby('cloud').cosine.mean()
    return dict(twin=share_covered(second, first), corners=share_covered(second, corners), **cosine)


def test_coverage_fails_its_controls_and_alignment_does_not():
    "Nobody brings the claim about covered points back: a distribution does not cover itself, and corners cover it"
    digits, net = load_data('digits'), trained_network('adt_exp')
    x = 0.2 + 0.6 * digits.x_test[:10]  # so that nothing is clipped
    fit = partial(exp_adversary, eps=0.15, n_mc=1)
    found = controls_of(net, x, digits.y_test[:10], 0.15, fit, 100)
    assert found['twin'] < 0.05 < 0.95 < found['corners']
    assert found['own'] > 0.6 and abs(found['other']) < 0.25


@pytest.mark.slow
@pytest.mark.skipif(not HAS_CIFAR10, reason='no CIFAR-10')
def test_coverage_fails_its_controls_on_cifar10():
    "The same of the committed network of scale cpu, with its own adversary"
    folder, run = ROOT / 'outputs' / 'cpu', 'cifar10-small_cnn-adt_exp-s0'
    net, config = load_run(folder / 'runs' / run)
    data, fit = load_data('cifar10', download=False), load_adversary(folder, run, torch.device('cpu'))
    found = controls_of(net, data.x_test[:4], data.y_test[:4], config['eps'], fit, 200)
    assert found['twin'] == 0 and found['corners'] == 1
    assert found['own'] > 0.9 and abs(found['other']) < 0.2


# --- measured on a network ---


@pytest.fixture(scope='module')
def digits():
    data = load_data('digits')
    return trained_network('adt_exp'), data.x_test[:6], data.y_test[:6]


def test_measured_alignment_against_plain_loops(digits):
    "Own, lent and restarted clouds, image by image with the noise of each"
    net, x, y = digits
    fit, attacks, eps = partial(exp_adversary, eps=0.15, n_mc=1), dict(fgsm=fgsm, mim=mim), 0.15
    found = measure_alignment(fit, net, x, y, 30, attacks, eps=eps, starts=4, seed=3, batch=4)
    assert len(found) == 6 * 3 * 2
    cosines = found.set_index(['i', 'cloud', 'attack']).cosine
    for i in range(6):
        ids, lent = torch.tensor([i]), torch.tensor([(i + 1) % 6])
        xi, yi = x[ids], y[ids]
        clouds = dict(
            own=draws_of(fit, net, xi, yi, 30, ids=ids, seed=3),
            other_image=draws_of(fit, net, x[lent], y[lent], 30, ids=lent, seed=3),
            restarts=restarts_of(pgd, net, xi, yi, 4, eps=eps, ids=ids, seed=4),
        )
        with example_noise(ids, 3):
            ends = {
                name: (attack(net, xi, yi, eps=eps) - xi).numpy().ravel() for name, attack in attacks.items()
            }
        for (cloud, deltas), (name, a) in [(c, e) for c in clouds.items() for e in ends.items()]:
            b = clip_delta(xi, deltas).numpy().mean(0).ravel()
            slow = a @ b / np.sqrt((a @ a) * (b @ b))
            assert abs(cosines[i, cloud, name] - slow) < 0.02, (i, cloud, name)  # a sign may fall otherwise


# --- the gate: a network whose loss is known ---


class Linear(torch.nn.Module):
    "Two classes, logits (w·x, 0): the loss of class 0 is log(1 + exp(-w·x)), and FGSM is the best attack"

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.randn(64, generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        margin = (x - 0.5).flatten(1) @ self.w
        return torch.stack([margin, 0 * margin], 1)


def test_gains_of_a_linear_network():
    "FGSM, PGD-20 and a point at half the way, against the closed form"
    net, eps = Linear(), 0.1
    x = 0.3 + 0.4 * torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    y = torch.zeros(12, dtype=torch.int64)
    half_way = from_attack(lambda model, x, y: x - eps / 2 * net.w.sign().view(1, 1, 8, 8))
    rows = measure_gain(half_way, net, x, y, 3, eps=eps)
    w = net.w.detach().double().numpy()
    margins = (x.double().numpy().reshape(12, -1) - 0.5) @ w
    for column, step in dict(clean=0, expected=eps / 2, fgsm=eps, pgd20=eps).items():
        loss = np.log1p(np.exp(-(margins - step * abs(w).sum())))
        assert np.allclose(rows[column], loss, rtol=1e-4, atol=1e-5), column
    share = (rows.expected - rows.clean).sum() / (rows.pgd20 - rows.clean).sum()
    assert gain_share(rows)['share'] == pytest.approx(share) and 0.3 < share < 0.6
    assert gain_share(rows, 'fgsm')['share'] == pytest.approx(1, abs=1e-4)


def test_noise_gains_little():
    "The negative control: a distribution that knows nothing of the network"
    net, x, y = (
        trained_network('at_pgd'),
        *(part[:60] for part in (load_data('digits').x_test, load_data('digits').y_test)),
    )

    def noise(model, x, y):
        return lambda: (0.15 * rand_unit(x), torch.zeros(len(x)))

    assert gain_share(measure_gain(noise, net, x, y, 20, eps=0.15))['hi'] < 0.25


# --- of a finished run, from the command line ---


@pytest.fixture
def scale(tmp_path, give_tiny_runs):
    give_tiny_runs(tmp_path, 'at_pgd', 'adt_exp')
    return tmp_path / 'outputs' / 'tiny'


RUNS = 'digits-small_cnn-adt_exp-s0', 'digits-small_cnn-at_pgd-s0'


def test_training_notes_what_the_weights_say(scale):
    "run.json's gain is that of the network on the disk; a run without a distribution of its own has none"
    noted = read_facts(scale / 'runs' / RUNS[0])['gain']
    assert noted == pytest.approx(gain_share(run_gain(scale, RUNS[0], n_images=100)))
    assert noted['n'] == 100 and 'gain' not in read_facts(scale / 'runs' / RUNS[1])


def test_the_command(scale, capsys):
    "A line and a file for each run; the same again from what was kept, and the same bytes"
    assert main([str(scale), '--images', '30', '--draws', '4']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(':')[0] for line in lines] == list(RUNS)
    assert all(line.endswith(' of the gain in loss of PGD-20, 30 images') for line in lines)
    files = [scale / 'frames' / f'gain-{run}.csv' for run in RUNS]
    frames = [pd.read_csv(file) for file in files]
    assert all(list(f) == 'i y clean fgsm pgd20 expected'.split() and len(f) == 30 for f in frames)
    assert gain_words(frames[0]) in lines[0]
    kept = {f: f.stat().st_mtime_ns for f in scale.glob('records/parts/gain-*/*')}
    before = [file.read_bytes() for file in files]
    assert main([str(scale), '*adt_exp*', '--images', '30', '--draws', '4']) == 0
    assert kept and {f: f.stat().st_mtime_ns for f in kept} == kept
    assert [file.read_bytes() for file in files] == before


def test_other_weights_are_measured_anew(scale):
    "What was kept of a run is not taken for that of another one under its name"
    first = save_gain(scale, RUNS[1], n_images=20, draws=2)
    run, other = (scale / 'runs' / name for name in RUNS[::-1])
    facts = json.loads((run / 'run.json').read_text())
    del facts['file_sha256']
    (run / 'run.json').write_text(json.dumps(facts))
    (run / 'weights.safetensors').write_bytes((other / 'weights.safetensors').read_bytes())
    assert not np.allclose(save_gain(scale, RUNS[1], n_images=20, draws=2).clean, first.clean)


@pytest.mark.parametrize(
    'args, line',
    [
        (['nowhere'], "folder='nowhere': expected the folder of a scale"),
        (['outputs/tiny', 'nothing-*'], "runs='nothing-*': expected"),
        (['outputs/tiny', '--images', '1'], "images='1': expected"),
        (['outputs/tiny', '--draws', 'x'], "draws='x': expected"),
        (['outputs/tiny', '--device', 'moon'], "device='moon': expected"),
    ],
)
def test_one_line_for_what_cannot_be_used(scale, args, line, monkeypatch, capsys):
    monkeypatch.chdir(scale.parents[1])
    assert main(args) == 1
    said = capsys.readouterr().err
    assert said.startswith(line) and said.count('\n') == 1
    assert not (scale / 'frames').exists() and not (scale.parents[1] / 'nowhere').exists()


def test_a_damaged_run_is_one_line(scale, capsys):
    file = scale / 'runs' / RUNS[0] / 'weights.safetensors'
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    assert main([str(scale), RUNS[0]]) == 1
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and 'weights.safetensors' in said


@pytest.mark.parametrize(
    'gain',
    [0.9, dict(share=0.9), dict(share=0.9, lo=1.0, hi=1.1, n=100), dict(share='a', lo=0, hi=1, n=9)],
)
def test_a_gain_that_is_none_is_refused(scale, gain):
    file = scale / 'runs' / RUNS[0] / 'run.json'
    facts = json.loads(file.read_text())
    del facts['file_sha256']
    file.write_text(json.dumps(facts | dict(gain=gain)))
    (scale / 'SHA256SUMS').unlink(missing_ok=True)
    line = refusal(read_facts, file.parent)
    assert 'gain=' in line and line.endswith('a table of share, lo, hi and n')


def test_one_image_is_refused(digits):
    net, x, y = digits
    fit = partial(exp_adversary, eps=0.15, n_mc=1)
    with pytest.raises(ParameterError, match='1 images'):
        measure_alignment(fit, net, x[:1], y[:1], 3, dict(fgsm=fgsm), eps=0.15)
