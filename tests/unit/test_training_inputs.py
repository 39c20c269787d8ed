"What a user gives to a training, and what may happen to it: right numbers, or one line, and never lost work"

import math
import os
import signal
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from helpers import ROOT, refusal
from test_resume import BLANK, without_seconds
from torch import nn

import adt_repro as adt
from adt_repro.data import DATASETS, as_data, load_data
from adt_repro.exchange.import_weights import load_network
from adt_repro.methods.adversaries import default_draws
from adt_repro.methods.objective import adt_loss
from adt_repro.methods.table import METHODS, make_method, method_defaults
from adt_repro.models.flops import count_passes
from adt_repro.models.trained import trained_network
from adt_repro.models.weights import load_weights, save_weights
from adt_repro.planning.benchmark import training_step
from adt_repro.runs.config import check_notebook, parameters_cell
from adt_repro.runs.fit import fit_run, train_run
from adt_repro.runs.resolve import method_of, resolve
from adt_repro.runs.scales import check_scale
from adt_repro.runs.store import load_run, read_config
from adt_repro.runs.sweeps import finish_runs
from adt_repro.speed.precision import ComputeSettings
from adt_repro.training.loop import train_epochs
from adt_repro.training.signals import StopSignals
from adt_repro.training.state import ProcessGroup, Recipe, State, load_checkpoint, read_checkpoint

SHORT = Recipe(epochs=2, batch=32, lr=0.05, augment=False)


@pytest.fixture(scope='module')
def digits():
    return load_data('digits').head(96, 20)


def network():
    return trained_network('standard').train()


def numbers(net):
    return torch.cat([v.flatten().double() for v in net.state_dict().values()])


# A call that trains nothing


def test_train_as_a_statement(digits):
    net = network()
    before = numbers(net)
    adt.train(net, digits, 'standard', 0.15, 1, progress=False)
    assert not torch.equal(numbers(net), before)


@pytest.mark.parametrize('train', [train_epochs, train_run, finish_runs])
def test_a_generator_that_nobody_reads_says_so(train):
    "And one that is read says nothing"
    arguments = (None,) * 4 if train is train_epochs else (None,)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        train(*arguments)
    assert [str(w.message) for w in said] == [
        f'{train.__name__}(...) was called but has trained nothing, it trains while its results are read:'
        f' for result in {train.__name__}(...)'
    ]


def test_a_generator_that_is_read_is_silent(digits):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        rows = list(train_epochs(network(), digits, make_method('standard', 0.15), SHORT))
    assert [row['epoch'] for row in rows] == [1, 2]


# The same name means the same in Python and on the command line


@pytest.mark.parametrize('dataset', ['digits', 'cifar10'])
@pytest.mark.parametrize('method', METHODS)
def test_options_of_both_ways(method, dataset):
    "All but the generator's width, which the docstrings of `train` and `method_defaults` except"
    config = resolve(BLANK | dict(method=method, dataset=dataset, arch='small_cnn'))
    ours = method_defaults(method, DATASETS[dataset].shape)
    ours.pop('gen_width', None)
    assert {k: config[k] for k in ours} == ours


def test_default_draws_stand_in_one_place():
    "One draw on digits, the paper's five on each larger data set; a data set has no number of its own"
    draws = {name: default_draws(spec.shape) for name, spec in DATASETS.items()}
    assert draws == dict(digits=1, mnist=5, cifar10=5, cifar100=5, svhn=5)
    assert not hasattr(DATASETS['digits'], 'n_mc')


@pytest.mark.parametrize('method', ['adt_exp', 'adt_exp_trades'])
def test_draws_that_are_made(method, digits):
    "Seven steps of one draw on digits, of five on larger images, counted in the network; shape given or not"
    config = resolve(BLANK | dict(method=method))
    ways = make_method(method, 0.15), make_method(method, 0.15, (1, 8, 8)), method_of(config)
    x, y = digits.x_train[:4], digits.y_train[:4]
    found = []
    for images in x, F.interpolate(x, 32):
        for way in ways:
            net = network().eval()
            with count_passes(net) as passes:
                way.adversary(net, images, y)
            found.append(passes['input_grad'] // len(x))
    assert found == [7, 7, 7, 35, 35, 7]  # the run's own method has digits' one draw written in it


# Numbers of NumPy


def watch(net):
    return dict(a=np.float32(0.5), b=torch.tensor(0.25), c=np.int64(3), d=True)


class Enough(Exception):
    "Raised by a test to leave a training"


def resumed(data, folder, **changed):
    "A run that is stopped in its second epoch and goes on in new objects: weights and rows"
    file = folder / 'checkpoint.pt'
    recipe = replace(SHORT, **changed)

    def new_state(seed):
        net = network()
        torch.manual_seed(seed)
        return State(net, make_method('standard', 0.15), recipe)

    def train(state, on_batch=None):
        how = dict(state=state, monitor=watch, checkpoint=file, minutes=1e-9, on_batch=on_batch)
        list(train_epochs(state.model, data, state.method, recipe, **how))

    def stop_in_the_second_epoch(epoch, done, total):
        if (epoch, done) == (1, 1):
            raise Enough

    with pytest.raises(Enough):
        train(new_state(0), stop_in_the_second_epoch)
    state = load_checkpoint(new_state(99), file)
    train(state)
    return numbers(state.model).tolist(), without_seconds(state.history)


@pytest.mark.parametrize('changed', [{}, dict(lr=np.float64(0.05), weight_decay=np.float64(2e-4))], ids=str)
def test_numpy_numbers_survive_a_checkpoint(changed, digits, tmp_path):
    net, rows = network(), []
    torch.manual_seed(0)
    state = State(net, make_method('standard', 0.15), SHORT)
    for row in train_epochs(net, digits, state.method, SHORT, state=state, monitor=watch):
        rows.append(row)
    whole = numbers(net).tolist(), without_seconds(rows)
    assert refusal(resumed, digits, tmp_path, **changed) == f'gave {whole!r}'
    assert [rows[1][k] for k in 'abcd'] == [0.5, 0.25, 3, True]


def first_rows(data, file, monitor):
    return list(
        train_epochs(network(), data, make_method('standard', 0.15), SHORT, checkpoint=file, monitor=monitor)
    )


BAD_MONITORS = {
    "monitor['a']: a list, expected a single number": {'a': [1, 2]},
    "monitor['a']: a Tensor of shape (3,), expected a single number": {'a': torch.ones(3)},
    "monitor['a']: a str, expected a single number": {'a': 'good'},
    'monitor: gave a NoneType, expected a dict of columns and numbers': None,
    "monitor='loss': expected names of columns other than epoch, lr, loss, entropy, seconds": {'loss': 1.0},
}


@pytest.mark.parametrize('line', BAD_MONITORS)
def test_what_a_checkpoint_cannot_hold_is_refused_at_once(line, digits, tmp_path):
    assert refusal(first_rows, digits, tmp_path / 'c.pt', lambda net: BAD_MONITORS[line]) == line


def test_the_first_checkpoint_is_checked_before_it_is_written(digits, tmp_path):
    "A state that could not be read again is noticed, and the last good file is still there"
    file = tmp_path / 'c.pt'

    def one_epoch(spoil=None):
        state = State(network(), make_method('standard', 0.15), SHORT)
        if file.exists():
            load_checkpoint(state, file)
        if spoil:
            spoil(state)
        rows = train_epochs(state.model, digits, state.method, SHORT, state=state, checkpoint=file)
        return next(rows)['epoch']

    def numpy_setting(state):
        state.opts[0].param_groups[0]['weight_decay'] = np.float64(2e-4)

    def text_in_history(state):
        state.history[0]['loss'] = 'low'

    assert refusal(one_epoch) == 'gave 1'
    before = file.read_bytes()
    line = refusal(one_epoch, numpy_setting)
    assert line.startswith("checkpoint='c.pt': cannot be read as a state of training (it asks for numpy")
    assert file.read_bytes() == before
    line = refusal(one_epoch, text_in_history)
    assert line == "checkpoint='c.pt': training could not resume from it: history has another form"
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]
    assert refusal(one_epoch) == 'gave 2'


def test_numpy_facts(digits, tmp_path):
    state = State(
        network(), make_method('standard', 0.15), SHORT, facts=dict(eps=np.float64(0.15), drops=[np.int64(2)])
    )
    list(train_epochs(state.model, digits, state.method, SHORT, state=state, checkpoint=tmp_path / 'c.pt'))
    assert refusal(lambda: read_checkpoint(tmp_path / 'c.pt')['facts']) == "gave {'eps': 0.15, 'drops': [2]}"
    line = refusal(State, network(), make_method('standard', 0.15), SHORT, facts=dict(place=ROOT))
    assert line.startswith("facts['place']: a PosixPath, expected a number, text, None")


# A single image that is left over


class Dense(nn.Sequential):
    "A network whose batch normalisation needs two images"

    def __init__(self):
        torch.manual_seed(3)
        super().__init__(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


def by_hand(net, x, y, sizes):
    "The standard method's plainest loop over batches of these sizes"
    torch.manual_seed(0)
    sgd = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=2e-4)
    for epoch in range(2):
        sgd.param_groups[0]['lr'] = 0.05 if epoch == 0 else 0.005
        for idx in torch.randperm(len(x)).split(sizes):
            sgd.zero_grad()
            F.cross_entropy(net(x[idx]), y[idx]).backward()
            sgd.step()
    return numbers(net)


@pytest.mark.parametrize('n, sizes', [(65, [32, 33]), (33, [33]), (66, [32, 32, 2])])
def test_a_single_last_image_joins_the_batch_before(n, sizes, digits):
    x, y = digits.x_train[:n].double(), digits.y_train[:n]
    data = as_data((x, y), (x, y))
    data = type(data)('mine', x, y, x, y, data.classes)
    net = Dense().double()
    recipe = Recipe(epochs=2, batch=32, lr=0.05, drops=(1,), augment=False)
    seen = []

    def train():
        list(
            train_epochs(
                net, data, make_method('standard', 0.15), recipe, on_batch=lambda *at: seen.append(at)
            )
        )

    assert refusal(train) == 'gave None'
    assert seen == [(epoch, i + 1, len(sizes)) for epoch in range(2) for i in range(len(sizes))]
    want = by_hand(Dense().double(), x, y, sizes)
    torch.testing.assert_close(numbers(net), want, rtol=0, atol=1e-9)


def test_resumed_in_the_last_batch(digits, tmp_path):
    "65 images in batches of 32 have two steps: a state after the first is accepted, after the second not"
    data = digits.head(65)
    state = State(network(), make_method('standard', 0.15), SHORT)
    file = tmp_path / 'c.pt'
    list(train_epochs(state.model, data, state.method, SHORT, state=state, checkpoint=file, until=0))
    new = State(network(), make_method('standard', 0.15), SHORT)
    assert load_checkpoint(new, file).place == 'after step 1 of epoch 1'
    torch.save(torch.load(file) | dict(step=2), file)
    assert refusal(load_checkpoint, new, file).endswith('step is out of range')


def test_a_batch_of_one_image(digits):
    "Refused before any work where the network cannot take it, and then nothing of the network has changed"

    def train(net, batch, method='standard', **options):
        recipe = Recipe(epochs=1, batch=batch, augment=False)
        return len(adt.train(net, digits.head(5), method, 0.15, recipe=recipe, progress=False, **options))

    net = Dense()
    before = numbers(net)
    words = 'batch=1: expected at least 2, since a step on a single image fails ('
    line = refusal(train, net, 1)
    assert line.startswith(words) and 'Expected more than 1 value per channel' in line and '\n' not in line
    assert torch.equal(numbers(net), before)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert refusal(train, plain, 1, 'adt_imp_am', gen_width=4).startswith(
        words
    )  # the encoder's normalisation
    assert refusal(train, plain, 1) == 'gave 1' and refusal(train, net, 2) == 'gave 1'


# A step outside of `train_epochs`


def test_a_step_does_not_check_its_images(monkeypatch):
    "Neither does a step that the benchmark times: training has checked them once"
    _, _, step = training_step(
        'small_cnn', 'at_pgd', 2, torch.device('cpu'), ComputeSettings(), inner_steps=1
    )
    checked = []

    def check(x, *more):
        checked.append(len(x))
        return x

    monkeypatch.setattr('adt_repro.attacks.inputs.check_images', check)
    step()
    assert not checked


# Numbers in any form


def test_numbers_of_numpy_and_text(digits):
    def train(eps, epochs, **options):
        net = network()
        adt.train(net, digits, 'at_pgd', eps, epochs, progress=False, **options)
        return numbers(net).sum().item()

    want = train(0.5, 1, inner_steps=2, inner_step=0.25)
    for eps, step in (np.float64(0.5), np.float32(0.25)), ('1/2', '2.5e-1'), (torch.tensor(0.5), '1/4'):
        assert refusal(train, eps, np.int64(1), inner_steps=np.int64(2), inner_step=step) == f'gave {want!r}'
    assert refusal(train, '3/2', 1) == "eps='3/2': expected a number in (0, 1]"
    assert refusal(make_method, 'adt_exp', 0.1, n_mc=0) == 'n_mc=0: expected a whole number of at least 1'


def test_a_recipe_refuses_what_it_cannot_use():
    assert Recipe(epochs=np.int64(3), lr='1e-2', drops=(np.int64(-1),)) == Recipe(
        epochs=3, lr=0.01, drops=(-1,)
    )
    assert refusal(Recipe, batch=0) == 'batch=0: expected a whole number of at least 1'
    assert refusal(Recipe, lr='fast') == "lr='fast': expected a number above 0"


def test_yaml_text_is_a_number():
    "In a file for papermill, where YAML takes 1e-3 for text, in -p, where all is text, and in a scale's file"
    space = {}
    exec(parameters_cell('train'), space)
    space |= yaml.safe_load('lr: 1e-3\nepochs: 2') | dict(eps='8/255', max_minutes='1e1')
    read = refusal(
        lambda: {k: check_notebook('train', space)[k] for k in ('lr', 'eps', 'epochs', 'max_minutes')}
    )
    assert read == f'gave {dict(lr=0.001, eps=8 / 255, epochs=2, max_minutes=10.0)!r}'
    assert (space['lr'], space['eps'], space['max_minutes']) == (
        0.001,
        8 / 255,
        10.0,
    )  # for the cells that follow

    scale = yaml.safe_load(
        'scale: x\ndataset: digits\narch: small_cnn\neps: 8/255\nlr: 1e-3\nrows: {alp: {beta: 5e-1}}\n'
        'experiments: {methods: [alp], seeds: [0], rate: 2e-2}'
    )
    common = check_scale(scale).common
    assert (common['eps'], common['lr']) == (8 / 255, 0.001)
    config = resolve(BLANK | {k: common[k] for k in ('eps', 'lr', 'rows')} | dict(method='alp'))
    assert (config['eps'], config['lr'], config['beta']) == (8 / 255, 0.001, 0.5)


# Files


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.register_buffer('part', self.a.weight.detach()[:2])

    def forward(self, x):
        return self.b(self.a(x).relu()) + self.part.sum()


def test_tied_weights(tmp_path):
    torch.manual_seed(0)
    net, other, x = Tied(), Tied(), torch.rand(5, 4)
    assert refusal(save_weights, net, tmp_path / 'w.safetensors') == 'gave None'
    load_weights(other, tmp_path / 'w.safetensors')
    assert torch.equal(other(x), net(x)) and other.b.weight is other.a.weight


def test_missing_files_are_named_in_full(tmp_path):
    missing = tmp_path / 'sub' / 'missing.pt'
    assert str(missing) in refusal(load_network, missing)
    assert str(missing) in refusal(load_weights, network(), missing)
    assert str(tmp_path / 'nope' / 'run.json') in refusal(load_run, tmp_path / 'nope')
    assert str(tmp_path / 'nope' / 'config.yaml') in refusal(read_config, tmp_path / 'nope')


def test_a_finished_run_is_kept_by_a_label(tmp_path):
    "The line names `label` before `fresh`, and a label does keep both"
    given = BLANK | dict(method='standard', recipe='paper2020', seed=0, epochs=1, n_train=64, n_test=20)
    first = fit_run(resolve(given), tmp_path)
    line = refusal(fit_run, resolve(given | dict(lr=0.05)), tmp_path)
    assert 'lr=0.05: digits-small_cnn-standard-s0 was begun with lr=0.1; expected' in line
    assert 0 < line.find('label') < line.find('fresh=true')
    second = fit_run(resolve(given | dict(lr=0.05, label='slow')), tmp_path)
    assert (first / 'run.json').exists() and (second / 'run.json').exists() and first != second


# A generator for other images


def test_a_generator_of_another_shape(digits):
    wrong = make_method('adt_exp_am', 0.15, gen_width=4)
    line = refusal(adt.train, network(), digits, wrong, epochs=1, progress=False)
    assert line.startswith('method=adt_exp_am: its generator cannot take images of shape (1, 8, 8) (')
    assert line.endswith("expected make_method('adt_exp_am', eps, (1, 8, 8)), or the name in train(...)")
    right = make_method('adt_exp_am', 0.15, (1, 8, 8), gen_width=4)
    assert len(adt.train(network(), digits, right, epochs=1, progress=False)) == 1
    assert len(adt.train(network(), digits, 'adt_exp_am', 0.15, 1, progress=False, gen_width=4)) == 1


# Signals


class Stopped(Exception):
    "Raised by a program's own handler of SIGTERM"


def raise_stopped(number, frame):
    raise Stopped


def attempt(data, file, sent=None, monitor=None):
    "Train from wherever the file is; where asked, the process gets a signal in the third step"
    net, method = network(), make_method('adt_exp', 0.15, (1, 8, 8))
    torch.manual_seed(0 if sent else 99)
    state = State(net, method, Recipe(epochs=2, batch=16, lr=0.05, augment=False))
    if not sent:
        load_checkpoint(state, file)

    def send(epoch, done, total):
        if sent and (epoch, done) == (0, 3):
            os.kill(os.getpid(), sent)

    list(train_epochs(net, data, method, state.recipe, state=state, checkpoint=file, on_batch=send))
    return numbers(net)


@pytest.mark.parametrize('sent, acts', [(signal.SIGTERM, 'Stopped'), (signal.SIGINT, 'KeyboardInterrupt')])
def test_a_signal_keeps_the_state(sent, acts, digits, tmp_path):
    "Within the first ten minutes of an epoch; and the resumed run has the bits of the undisturbed one"
    net, method = network(), make_method('adt_exp', 0.15, (1, 8, 8))
    recipe = Recipe(epochs=2, batch=16, lr=0.05, augment=False)
    list(train_epochs(net, digits, method, recipe, checkpoint=tmp_path / 'whole.pt'))

    file = tmp_path / 'c.pt'
    before = signal.signal(signal.SIGTERM, raise_stopped)
    happened = 'nothing'
    try:
        attempt(digits, file, sent)
    except (Stopped, KeyboardInterrupt) as error:
        happened = type(error).__name__
    finally:
        restored = signal.getsignal(signal.SIGTERM) is raise_stopped
        signal.signal(signal.SIGTERM, before)
    assert happened == acts and restored
    assert file.exists(), 'the signal has kept nothing'
    kept = torch.load(file)
    assert (kept['epoch'], kept['step']) == (0, 3)
    assert torch.equal(attempt(digits, file), numbers(net))


def test_a_signal_is_not_lost_where_training_fails(digits, tmp_path):
    "A weight becomes NaN in the step in which the signal comes: the handler is called, and the line stays"
    net, seen, file = network(), [], tmp_path / 'c.pt'

    def send(epoch, done, total):
        if done == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            next(net.parameters()).data.fill_(math.nan)

    def note(number, frame):
        seen.append(number)

    before = signal.signal(signal.SIGTERM, note)
    try:
        epochs = train_epochs(
            net, digits, make_method('standard', 0.15), SHORT, checkpoint=file, on_batch=send
        )
        line = refusal(list, epochs)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert line.startswith('TrainingError: standard: weights or logits are not finite after epoch 1, step 2')
    assert seen == [signal.SIGTERM] and not file.exists()


@pytest.mark.parametrize('seconds, acts', [(0, False), (1, True)])
def test_a_second_signal_of_another_kind(seconds, acts):
    "SIGINT after SIGTERM: within a second they are one request; later the second one acts at once"
    happened = []
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGTERM)
            signals.noted_at -= seconds
            os.kill(os.getpid(), signal.SIGINT)
            happened.append('the end of the block')
    except KeyboardInterrupt:
        happened.append('KeyboardInterrupt')
    finally:
        signal.signal(signal.SIGTERM, before)
    assert happened == ['KeyboardInterrupt' if acts else 'the end of the block']


class SignalEverywhere(ProcessGroup):
    "Another process has a SIGTERM after the first step; this one gets its own just before the state is kept"

    def any(self, *flags):
        if len(flags) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            return flags
        time_is_over, save_now, *noted = flags
        return time_is_over, save_now, True, False


def test_a_signal_to_all_processes(digits, tmp_path):
    "One that this process knows from another one, and then gets itself, is still one request"
    state = State(network(), make_method('standard', 0.15), SHORT, group=SignalEverywhere())
    epochs = train_epochs(state.model, digits, state.method, SHORT, state=state, checkpoint=tmp_path / 'c.pt')
    before = signal.signal(signal.SIGTERM, raise_stopped)
    try:
        assert refusal(list, epochs) == 'Stopped: '
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (tmp_path / 'c.pt').exists(), 'the signal has kept nothing'
    assert read_checkpoint(tmp_path / 'c.pt')['step'] == 1


def test_no_handler_stays_between_epochs(digits, tmp_path):
    "Not between two rows, not after a generator that nobody finishes, and never without a checkpoint"
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    seen = []

    def look(*place):
        seen.append([signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before)

    for file in tmp_path / 'c.pt', None:
        rows = train_epochs(
            network(), digits, make_method('standard', 0.15), SHORT, checkpoint=file, on_batch=look
        )
        next(rows)
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
        rows.close()
    assert seen == [False] * 3 + [True] * 3


def test_a_process_without_its_parent_keeps_the_state(digits, tmp_path, monkeypatch):
    "A kernel whose papermill was ended gets no signal, and has a second to live"
    places, file = [], tmp_path / 'c.pt'

    def look(epoch, done, total):
        places.append(read_checkpoint(file)['step'] if file.exists() else None)
        if done == 1 and epoch == 0:
            monkeypatch.setattr(os, 'getppid', lambda: 1)

    list(
        train_epochs(network(), digits, make_method('standard', 0.15), SHORT, checkpoint=file, on_batch=look)
    )
    assert places == [None, 1, 1, 0, 0, 0]


# ADT_EXP with TRADES' loss, as the authors' loop has it


def their_gradient(net, x, y, eps):
    "Adam without memory on gradients that nobody clears; the divergence is summed over the batch; λ = 0"
    net.eval()
    mu, rho = (torch.zeros_like(x, requires_grad=True) for _ in range(2))
    adam = torch.optim.Adam([mu, rho], lr=0.3, betas=(0.0, 0.0))
    clean = net(x).detach()

    def draw():
        return (x + eps * torch.tanh(mu + F.softplus(rho) * torch.randn_like(x))).clamp(0, 1)

    for _ in range(7):
        for _ in range(5):
            (-F.kl_div(net(draw()).log_softmax(1), clean.softmax(1), reduction='sum')).backward()
        adam.step()
    net.train()
    z, z_adv = net(x), net(draw().detach())
    divergence = F.kl_div(z_adv.log_softmax(1), z.softmax(1), reduction='batchmean')
    return torch.autograd.grad(F.cross_entropy(z, y) + 6 * divergence, list(net.parameters()))


def test_adt_exp_trades_is_the_authors_loop(digits):
    net, other = network().double(), network().double()
    x, y = digits.x_train[:16].double(), digits.y_train[:16]
    method = make_method('adt_exp_trades', 0.15, (1, 8, 8), lbd=0.0, n_mc=5)
    torch.manual_seed(5)
    adt_loss(net, x, y, method)[0].backward()
    torch.manual_seed(5)
    want = torch.cat([g.flatten() for g in their_gradient(other, x, y, 0.15)])
    got = torch.cat([p.grad.flatten() for p in net.parameters()])
    error = ((got - want).norm() / want.norm()).item()
    assert math.isfinite(error) and error < 1e-8


# What is no network, no data set and no recipe


def test_train_says_what_it_was_not_given(digits):
    net = trained_network('standard')
    lines = {
        'model=': lambda: adt.train(lambda x: net(x), digits, 'at_pgd', 0.15, progress=False),
        "model='small_cnn'": lambda: adt.train('small_cnn', digits, 'at_pgd', 0.15, progress=False),
        'data=': lambda: adt.train(net, (digits.x_train, digits.y_train), 'at_pgd', 0.15, progress=False),
        'eps=Recipe': lambda: adt.train(net, digits, 'at_pgd', Recipe(), progress=False),
        "recipe='tuned'": lambda: adt.train(net, digits, 'at_pgd', 0.15, recipe='tuned', progress=False),
    }
    for start, call in lines.items():
        line = refusal(call)
        assert line.startswith(start) and 'expected' in line and '\n' not in line


@pytest.mark.parametrize('method', ['adt_exp_am', 'adt_imp_am', 'at_pgd', 'adt_exp'])
def test_a_root_in_the_network_can_be_trained(method, digits):
    "Its gradient at black pixels is infinite; the generator sees gradients, and gets them back through the images"

    class Rooted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = trained_network('standard')

        def forward(self, x):
            return self.net(x.sqrt() ** 2)

    few = digits.head(64, 8)
    options = dict(gen_width=16) if 'am' in method else {}
    recipe = Recipe(epochs=1, batch=32, lr=0.01, augment=False)
    assert (few.x_train == 0).any()
    history = adt.train(Rooted(), few, method, eps=0.15, recipe=recipe, progress=False, **options)
    assert history.loss.map(math.isfinite).all()
