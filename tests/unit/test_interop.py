"Weights from elsewhere and to elsewhere: round trips, other libraries on what was exported, bad files"

import copy
import hashlib
import json
import os
import random
import re
import subprocess

import mistune
import pytest
import torch
import torch.nn.functional as F
from helpers import ROOT, refusal, without_digests
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from adt_repro.attacks.feature import fea_attack
from adt_repro.attacks.gradient import mim, pgd
from adt_repro.base.network import channels_last
from adt_repro.base.parameters import ParameterError
from adt_repro.data import as_data, load_data
from adt_repro.evaluation.evaluate import evaluate
from adt_repro.exchange.export import export, model_card, model_info
from adt_repro.exchange.import_weights import import_run, load_authors, load_network
from adt_repro.methods.table import METHODS, make_method, method_options
from adt_repro.models.classifiers import Normalized, build_model
from adt_repro.runs.store import finished_runs, load_run, read_config, read_facts
from adt_repro.training.loop import train_epochs
from adt_repro.training.state import Recipe

PYTHON = os.environ.get('ADT_PEERS', '.venv-peers/bin/python')
EPS = 8 / 255

# Networks, and a second formulation of the wide one


def plain_wrn(w, x):
    "A Wide ResNet's logits from its state dict alone, one operation after the other"

    def bn(x, k):
        statistics = w[k + '.running_mean'], w[k + '.running_var']
        return F.relu(F.batch_norm(x, *statistics, w[k + '.weight'], w[k + '.bias']))

    n = len({k.split('.')[2] for k in w if k.startswith('block1.')})
    x = F.conv2d(x, w['conv1.weight'], padding=1)
    for stage in 1, 2, 3:
        for i in range(n):
            k, stride = f'block{stage}.layer.{i}.', 1 + (stage > 1 and i == 0)
            a = bn(x, k + 'bn1')
            out = F.conv2d(
                bn(F.conv2d(a, w[k + 'conv1.weight'], stride=stride, padding=1), k + 'bn2'),
                w[k + 'conv2.weight'],
                padding=1,
            )
            x = out + (
                F.conv2d(a, w[k + 'convShortcut.weight'], stride=stride)
                if k + 'convShortcut.weight' in w
                else x
            )
    return F.linear(F.avg_pool2d(bn(x, 'bn1'), 8).flatten(1), w['fc.weight'], w['fc.bias'])


def authors_layout(net):
    "A state dict as TRADES' class writes it: with a first stage that nothing calls"
    w = net.state_dict()
    return w | {
        'sub_' + k: torch.randn_like(v) if v.is_floating_point() else v
        for k, v in w.items()
        if k.startswith('block1.')
    }


@pytest.fixture(scope='module')
def trained():
    "A WRN-10-1 after 46 steps on digits as 32 × 32 images of three channels, and test images with their labels"
    d = load_data('digits').head(360, 64)

    def big(x):
        return F.interpolate(x, scale_factor=4, mode='bilinear').expand(-1, 3, -1, -1).contiguous()

    data = as_data((big(d.x_train), d.y_train), (big(d.x_test), d.y_test))
    torch.manual_seed(0)
    net = build_model('wrn-10-1')
    method = make_method('at_pgd', EPS, inner_steps=1, inner_step=1.0)
    list(train_epochs(net, data, method, Recipe(epochs=2, batch=16, lr=0.05, augment=False)))
    return channels_last(net.eval()), data.x_test, data.y_test  # the layout of a run that is loaded


@pytest.fixture(scope='module')
def exported(trained, tmp_path_factory):
    "The network in the authors' layout, imported as a run, and exported with and without the unused block"
    root = tmp_path_factory.mktemp('exported')
    torch.save(authors_layout(trained[0]), root / 'adt-exp.pt', _use_new_zipfile_serialization=False)
    run = root / 'demo' / 'runs' / import_run(root / 'adt-exp.pt', root / 'demo')
    for block in False, True:
        export(run, root / 'out', name=f'block_{block}', sub_block1=block)
    return run, root / 'out'


def test_round_trip(trained, exported):
    "authors' layout → ours → exported → read again, by our class and by plain operations: equal logits"
    (net, x, _), (run, out) = trained, exported
    with torch.no_grad():
        wanted = channels_last(copy.deepcopy(net))(x)  # in the layout of `load_run`
        assert torch.equal(load_run(run)[0](x), wanted) and wanted.argmax(1).unique().numel() > 5
        for block in False, True:
            w = torch.load(out / f'block_{block}.pt', weights_only=True)
            assert torch.equal(channels_last(load_network(out / f'block_{block}.pt')[0])(x), wanted)
            torch.testing.assert_close(plain_wrn(w, x), wanted, rtol=1e-5, atol=1e-5)
            assert set(w) == set(authors_layout(net) if block else net.state_dict())
    assert read_config(run)['arch'] == 'wrn-10-1' and read_facts(run)['dropped'] == 'sub_block1'


@pytest.fixture(scope='module')
def peers():
    "An environment with RobustBench, torchattacks, Foolbox and pyautoattack"
    if not (ROOT / PYTHON).exists():
        pytest.skip(f'no {PYTHON}; tests/exported.py says how to make it')
    has = json.loads(
        subprocess.run(
            [ROOT / PYTHON, ROOT / 'tests' / 'exported.py', 'have'],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    if len(has) < 5:
        pytest.skip(f'{PYTHON} has only {", ".join(has)}; tests/exported.py says what belongs there')


@pytest.fixture(scope='module')
def others(trained, exported, peers):
    "RobustBench's network with the exported weights, and what torchattacks, Foolbox and AutoAttack do to it"
    _, x, y = trained
    return in_robustbench(exported[1], x[:16], y[:16], 10, 1, EPS)


def in_robustbench(out, x, y, depth, widen, eps):
    save_file(dict(x=x.contiguous(), y=y), out / 'images.safetensors')
    done = subprocess.run(
        [
            ROOT / PYTHON,
            '-W',
            'ignore',
            ROOT / 'tests' / 'exported.py',
            out,
            str(depth),
            str(widen),
            str(eps),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return out


def test_robustbench_loads_it_strictly(others, trained):
    net, x, y = trained
    with torch.no_grad():
        wanted = net(x[:16])
    logits = load_file(others / 'logits.safetensors')
    assert set(logits) == {'block_False', 'block_True'} and all(
        torch.equal(z, logits['block_False']) for z in logits.values()
    )
    torch.testing.assert_close(logits['block_False'], wanted, rtol=1e-5, atol=1e-5)
    assert set(json.loads((others / 'result.json').read_text())['clean_accuracy'].values()) == {
        (wanted.argmax(1) == y[:16]).float().mean().item()
    }


def test_their_attacks_run_on_it(others, trained):
    "In the ball, within 2 of 16 images of ours where it is the same attack; AutoAttack leaves no more than PGD"
    net, x, y = trained
    x, y, right = x[:16], y[:16], {}
    with torch.no_grad():
        natural = (net(x).argmax(1) == y).sum().item()
        for k, x_adv in load_file(others / 'x_adv.safetensors').items():
            assert (x_adv - x).abs().max() <= EPS + 1e-6 and x_adv.min() >= 0 and x_adv.max() <= 1
            right[k] = (net(x_adv).argmax(1) == y).sum().item()
    own = {
        k: (evaluate(net, x, y, attack, eps=EPS).query('pred == y').shape[0])
        for k, attack in dict(pgd=pgd, mim=mim).items()
    }
    assert (
        set(right) == {'torchattacks_pgd', 'torchattacks_mim', 'foolbox_pgd', 'autoattack'}
        and natural - own['pgd'] >= 3
    )
    assert all(
        abs(right[k] - own['mim' if 'mim' in k else 'pgd']) <= 2 for k in right if k != 'autoattack'
    ) and right['autoattack'] <= min(right.values())


@pytest.mark.slow
def test_the_papers_network(tmp_path, peers):
    "WRN-28-10 itself, 36 million numbers, all the way round"
    torch.manual_seed(0)
    net, x = build_model('wrn-28-10'), torch.rand(2, 3, 32, 32)
    net(x)
    net.eval()
    torch.save(authors_layout(net), tmp_path / 'adt-impam.pt', _use_new_zipfile_serialization=False)
    with torch.no_grad():
        assert torch.equal(load_authors(tmp_path / 'adt-impam.pt')(x), net(x))
    run = tmp_path / 'imported' / 'runs' / import_run(tmp_path / 'adt-impam.pt', tmp_path / 'imported')
    assert run.name == 'cifar10-wrn-28-10-adt-impam' and read_config(run)['eps'] == EPS
    for block in False, True:
        export(run, tmp_path / 'out', name=f'block_{block}', sub_block1=block)
    assert (
        sum(
            v.numel()
            for k, v in torch.load(tmp_path / 'out' / 'block_True.pt', weights_only=True).items()
            if not re.search('running|num_batches', k)
        )
        == 38_119_866
    )
    logits = load_file(
        in_robustbench(tmp_path / 'out', x, torch.zeros(2, dtype=torch.int64), 28, 10, 0)
        / 'logits.safetensors'
    )
    with torch.no_grad():
        for z in logits.values():
            torch.testing.assert_close(z, net(x), rtol=1e-4, atol=1e-5)


# Files that cannot be used


def test_damaged_files(tmp_path):
    "Cut anywhere, or with bytes altered anywhere: a network of the right form, or one line"
    whole, lines = tmp_path / 'whole.pt', set()
    torch.save(build_model('small_cnn').state_dict(), whole)
    data, rng = whole.read_bytes(), random.Random(0)
    for k in range(60):
        bad = bytearray(data[: rng.randrange(len(data))] if k % 2 else data)
        for _ in range(3 * (k % 2 == 0)):
            bad[rng.choice([rng.randrange(2000), rng.randrange(len(bad))])] = rng.randrange(256)
        (tmp_path / 'bad.pt').write_bytes(bad)
        try:
            net, facts = load_network(tmp_path / 'bad.pt')
        except ParameterError as e:
            lines.add(str(e))
            continue
        assert facts['arch'] == 'small_cnn' and net(torch.rand(1, 3, 8, 8)).isfinite().all() and k % 2 == 0
    assert lines and all('\n' not in line and line.startswith("weights='bad.pt': ") for line in lines)


def test_a_run_whose_rescaling_was_altered(tmp_path):
    torch.save(build_model('small_cnn', 1).state_dict(), tmp_path / 'w.pt')
    run = tmp_path / 'x' / 'runs' / import_run(tmp_path / 'w.pt', tmp_path / 'x', inputs=[-1, 1])
    without_digests(run)
    for bad in ([[0.5]], [[0.5], [0]], 'x', [['a'], ['b']]):
        (run / 'run.json').write_text(json.dumps(read_facts(run) | dict(inputs=bad)))
        with pytest.raises(ParameterError, match='expected'):
            load_run(run)
    (run / 'config.yaml').write_text((run / 'config.yaml').read_text().replace('eps: 0.15', 'eps: null'))
    with pytest.raises(ParameterError, match='eps=None: expected a number'):
        load_run(run)


# A card of a stranger's run

NASTY = (
    '<script>alert(1)</script> <img src=x onerror=alert(1)> [x](javascript:alert(1)) ![x](//a.b/c)'
    ' `code` ``` ```` |a|b| *em* _em_ **bold** ~~gone~~ &lt; $x$ [r]: //a.b \\<b>'
    '\n\n# heading\n\n```\n````\n<script>alert(2)</script>\n\x1b[2J\u202e'
)
RESULT = dict(attack='natural', n=4, correct=1, accuracy=0.25, lo=0.1, hi=0.5)


@pytest.fixture
def strangers_run(tmp_path):
    "The folder of a run whose files are not checked, and what its run.json says"
    torch.manual_seed(0)
    torch.save(build_model('small_cnn', 3).state_dict(), tmp_path / 'w.pt')
    run = tmp_path / 'x' / 'runs' / import_run(tmp_path / 'w.pt', tmp_path / 'x', inputs=[-1, 1])
    without_digests(run)
    return run, read_facts(run) | dict(results=[dict(RESULT)], git_commit='0' * 40)


def skeleton(card):
    "The elements of a card as a browser gets them, in their order, and its code outside of YAML"
    html = mistune.create_markdown(escape=False, plugins=['table', 'strikethrough', 'url'])(card)
    python = re.findall('<code class="language-python">.*?</code>', html, re.DOTALL)
    return re.findall('<[a-zA-Z!/][^>]*>', html), python


TEXTS = dict(
    version=lambda facts: facts['versions'].update(adt_repro=NASTY.splitlines()[0]),
    version_lines=lambda facts: facts['versions'].update(adt_repro=NASTY.split('\x1b')[0]),
    source=lambda facts: facts.update(source=NASTY),
    sha256=lambda facts: facts.update(sha256=NASTY),
    sha256_link=lambda facts: facts.update(sha256='[x](//a.b)'),
    sha256_html=lambda facts: facts.update(sha256='<b>\n# a\n\n```'),
    attack=lambda facts: facts['results'][0].update(attack='<img src=x>|[x](y)|`a` *b*'),
    platform=lambda facts: facts.update(platform='<b>``````</b>'),
    device=lambda facts: facts.update(device='``` ````` <b>'),
    git_commit=lambda facts: facts.update(git_commit='``````'),
    test_set=lambda facts: facts.update(test_set='````'),
)


@pytest.mark.parametrize('change', TEXTS.values(), ids=TEXTS)
def test_texts_of_a_run_do_nothing_on_its_card(strangers_run, change):
    "The same elements of HTML as without them, or one line that refuses; no control character"
    run, facts = strangers_run
    (run / 'run.json').write_text(json.dumps(facts))
    good = model_card(run)
    assert '| natural | 25.00 | 10.00 – 50.00 | 4 | run.json |' in good and 'The weights of w.pt (SHA' in good
    change(facts)
    (run / 'run.json').write_text(json.dumps(facts))
    line = refusal(read_facts, run)
    if not line.startswith('gave'):
        assert '\n' not in line and 'run.json' in line
        return
    card = model_card(run)
    assert card != good and skeleton(card) == skeleton(good)
    footnote = model_info(run)['footnote']
    assert card.replace('\n', '').isprintable() and footnote.isprintable()


@pytest.mark.parametrize(
    'inputs', ["[1]); import os; os.system('id')#", [1, "2'); x("], [[0.5], ['`']], [['<b>'], [1]], {'a': 1}]
)
def test_inputs_of_a_run_are_no_code(strangers_run, inputs):
    run, facts = strangers_run
    assert 'inputs=[[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]])   # takes images' in model_card(run)
    (run / 'run.json').write_text(json.dumps(facts | dict(inputs=inputs)))
    for read in model_card, model_info:
        assert re.match('inputs=.*: expected a range', refusal(read, run))


@pytest.mark.parametrize(
    'name', ["x'); import os; os.system('id')#", '<img src=x onerror=a>', 'a b', 'ä', '.x']
)
def test_a_folder_whose_name_is_no_name_of_a_run(strangers_run, tmp_path, name):
    "It is in no list of runs, and there is no card of it; the same for the name of a file"
    run, _ = strangers_run
    assert finished_runs(run.parent) == [run.name]
    assert refusal(model_card, run, name).startswith('name=')
    assert [file.name for file in export(run, tmp_path / 'out').values()]
    strange = run.rename(run.with_name(name))
    assert finished_runs(run.parent) == []
    for call in model_card, lambda folder: export(folder, tmp_path / 'none'):
        assert re.match('run=.*: expected a name', refusal(call, strange))
    assert not (tmp_path / 'none').exists()


def test_the_card_of_a_committed_run_is_as_it_was():
    "To the byte, by its digest"
    card = model_card(ROOT / 'outputs' / 'cpu' / 'runs' / 'cifar10-small_cnn-at_pgd-s0')
    assert (
        hashlib.sha256(card.encode()).hexdigest()
        == '148da45a8991851410d8423bed429bfac51f1b75da24bf82386a13ade655087c'
    )


# One's own network and data


class Own(nn.Module):
    "A network with nothing that this project's networks have"

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(8 * 4 * 4, 3),
        )

    def forward(self, x):
        return self.net(x)


@pytest.fixture(scope='module')
def own():
    "Images of 8 × 8 with two channels, whose class is the bright third"
    torch.manual_seed(0)
    y = torch.arange(240) % 3
    x = 0.3 * torch.rand(240, 2, 8, 8) + 0.4 * (torch.arange(8) // 3 == y[:, None])[:, None, None]
    return as_data(
        DataLoader(TensorDataset(x[:192], y[:192]), batch_size=50, shuffle=True), (x[192:], y[192:])
    )


@pytest.mark.parametrize('name', METHODS)
def test_any_method_trains_it(name, own):
    torch.manual_seed(0)
    net = Own()
    before, small = (
        [p.clone() for p in net.parameters()],
        {
            k: v
            for k, v in dict(gen_width=8, z_dim=8, n_mc=1, inner_steps=2).items()
            if k in method_options(name)
        },
    )
    history = list(
        train_epochs(
            net, own, make_method(name, 0.05, own.shape, **small), Recipe(epochs=20, lr=0.05, augment=False)
        )
    )
    assert len(history) == 20 and all(
        not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)
    )
    rows = evaluate(net, own.x_test, own.y_test, pgd, eps=0.05)
    assert (rows.pred == rows.y).mean() > 0.9 and rows.linf.max() > 0.04


def test_attacks_take_it(own):
    x, y = own.x_test, own.y_test
    net = Own()
    for attack in pgd, mim:
        assert (attack(net, x, y, eps=0.1) - x).abs().max() <= 0.1 + 1e-6
    for model in net, Normalized(net, [0.5, 0.5], [0.5, 0.5]):
        with pytest.raises(
            ParameterError,
            match=r'FeaAttack needs a network with features\(x\), the input of its last layer, and that layer as fc$',
        ):
            fea_attack(model, x, y, eps=0.1, pool=(x, y))
    with pytest.raises(ParameterError, match='model=Own: cannot take images of shape .1, 8, 8. on cpu'):
        list(train_epochs(net, load_data('digits'), make_method('standard', 0.1), Recipe(epochs=1)))
