"Speed changes nothing but time: precision stays inside the networks, the group changes no result"

import json
import math
from dataclasses import replace

import pytest
import torch
import yaml
from helpers import ROOT, without_digests
from torch import nn

import adt_repro.methods.adversaries as adversaries
from adt_repro.base.device import eval_mode
from adt_repro.base.parameters import ParameterError
from adt_repro.data import load_data
from adt_repro.methods.objective import adt_loss
from adt_repro.methods.table import METHODS, make_method, method_options
from adt_repro.models.classifiers import build_model
from adt_repro.runs.config import RULES
from adt_repro.runs.fit import fit_run
from adt_repro.runs.resolve import resolve
from adt_repro.runs.store import load_run
from adt_repro.speed.precision import ComputeSettings, ComputeWrapper
from adt_repro.training.loop import train_step
from adt_repro.training.state import Recipe, State

CPU = torch.device('cpu')
DATA = load_data('digits').head(128, 64)


def small(name):
    return make_method(
        name, 0.15, (1, 8, 8), **({'gen_width': 8} if 'gen_width' in method_options(name) else {})
    )


def state_of(name, speed):
    torch.manual_seed(0)
    return State(
        build_model('small_cnn', in_ch=1).train(),
        small(name),
        Recipe(batch=64, epochs=1, augment=False),
        settings=speed,
    )


# Precision


class Spy:
    "A loss that notes the precision of what it is given and of what it gives"

    def __init__(self, loss):
        self.loss, self.seen = loss, set()

    def __call__(self, model, x, y):
        bound = self.loss(model, x, y)

        def look(x_adv):
            out = bound(x_adv)
            self.seen |= {x_adv.dtype, out.dtype}
            assert not torch.is_autocast_enabled('cpu')
            return out

        return look


def layers(net, seen):
    "Note the precision of what convolutions give"
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            m.register_forward_hook(lambda m, args, out: seen.add(out.dtype))


@pytest.mark.parametrize('name', METHODS)
def test_low_precision_stays_inside_the_networks(name, monkeypatch):
    "bfloat16 in every convolution; float32 in losses, μ, ρ, δ, entropy, gradients, weights and momentum"
    state, inside, drawn = state_of(name, ComputeSettings('bf16')), set(), set()
    layers(state.model, inside)
    layers(state.adversary, inside)
    spy = Spy(state.method.loss)
    state.method = replace(state.method, loss=spy)

    def watch(module, f):
        whole = getattr(module, f)

        def sampler(*args, **kw):
            delta, h = whole(*args, **kw)
            drawn.update({delta.dtype, h.dtype, *(a.dtype for a in args if isinstance(a, torch.Tensor))})
            return delta, h

        monkeypatch.setattr(module, f, sampler)

    for f in 'dirac', 'tanh_gaussian', 'implicit':
        watch(adversaries, f)
    before = [p.clone() for p in state.model.parameters()]
    loss, entropy = train_step(state, DATA.x_train[:64], DATA.y_train[:64])
    assert math.isfinite(loss) and math.isfinite(entropy)
    assert inside == {torch.bfloat16} and spy.seen == {torch.float32} and drawn <= {torch.float32}
    for opt in state.opts:
        for p, kept in opt.state.items():
            assert p.dtype == p.grad.dtype == torch.float32 and all(
                v.dtype == torch.float32 for v in kept.values() if isinstance(v, torch.Tensor)
            )
    assert any(not torch.equal(p, b) for p, b in zip(state.model.parameters(), before, strict=True))


@pytest.mark.parametrize('name', ['at_pgd', 'adt_exp', 'adt_exp_am'])
def test_one_step_in_low_precision_is_nearly_the_same(name):
    "From one random state: the loss within 2 %, the step in nearly the same direction, not the same numbers"
    steps, losses = [], []
    for precision in 'fp32', 'bf16':
        state = state_of(name, ComputeSettings(precision))
        before = torch.cat([p.detach().flatten().clone() for p in state.model.parameters()])
        torch.manual_seed(1)
        losses.append(train_step(state, DATA.x_train, DATA.y_train)[0])  # of 64 images, seeds differ by 0.03
        steps.append(torch.cat([p.detach().flatten() for p in state.model.parameters()]) - before)
    assert losses[0] != losses[1] and abs(losses[1] / losses[0] - 1) < 0.02
    assert nn.functional.cosine_similarity(*steps, 0) > 0.95


# The record


def config(**kw):
    return resolve(
        dict.fromkeys(RULES)
        | dict(
            method='at_pgd',
            dataset='digits',
            recipe='paper2020',
            epochs=1,
            n_train=128,
            n_test=16,
            seed=0,
            device='cpu',
            scale='quick',
        )
        | kw
    )


def test_precision_is_recorded_and_belongs_to_the_run(tmp_path):
    folder = fit_run(config(precision='bf16'), tmp_path)
    kept = yaml.safe_load((folder / 'config.yaml').read_text())
    assert (kept['precision'], kept['compile']) == ('bf16', 'none')
    assert fit_run(config(precision='bf16'), tmp_path) == folder  # finished: nothing to do
    with pytest.raises(ParameterError, match="precision='fp32'.*was begun with precision='bf16'"):
        fit_run(config(), tmp_path)
    with pytest.raises(ParameterError, match="compile='graphs': expected none or inductor on cpu"):
        fit_run(config(compile='graphs', seed=1), tmp_path)
    assert not (tmp_path / 'quick' / 'runs' / 'digits-small_cnn-at_pgd-s1').exists()
    other, _ = load_run(fit_run(config(seed=2), tmp_path))
    low, _ = load_run(folder)
    assert not torch.equal(other(DATA.x_test), low(DATA.x_test))


def test_a_run_from_before_there_was_a_choice_is_taken_as_it_is(tmp_path):
    folder = fit_run(config(), tmp_path)
    old = {
        k: v
        for k, v in yaml.safe_load((folder / 'config.yaml').read_text()).items()
        if k not in ('precision', 'compile', 'group')
    }
    without_digests(folder)
    (folder / 'config.yaml').write_text(yaml.safe_dump(old))
    was = (folder / 'weights.safetensors').stat().st_mtime_ns
    assert (
        fit_run(config(), tmp_path) == folder and (folder / 'weights.safetensors').stat().st_mtime_ns == was
    )


@pytest.mark.parametrize(
    'bad, says',
    [
        (dict(precision='half'), "precision='half': expected fp32, tf32, bf16"),
        (dict(compile=True), 'compile=True: expected none, inductor, graphs'),
        (dict(method='adt_exp', group=0), 'group=0: expected a whole number'),
        (dict(group=64), 'group=64: method at_pgd has no such option'),
    ],
)
def test_what_cannot_be_used_is_refused(bad, says):
    with pytest.raises(ParameterError) as e:
        config(**bad)
    assert says in str(e.value) and '\n' not in str(e.value)


# Several draws


@pytest.mark.parametrize('group', [None, 64, 256, 1000])
def test_the_group_changes_no_result(group):
    "A whole step of ADT_EXP with five draws in double precision, in groups of any size"
    found = []
    for g in 20, group:
        torch.manual_seed(0)
        net, m = (
            build_model('small_cnn', in_ch=1).double(),
            make_method('adt_exp', 0.15, (1, 8, 8), n_mc=5, group=g),
        )
        state = State(net.train(), m, Recipe(augment=False))
        torch.manual_seed(1)
        train_step(state, DATA.x_train[:64].double(), DATA.y_train[:64])
        found.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert (found[0] - found[1]).abs().max() < 1e-9


# Compilation


@pytest.mark.slow
def test_compiled_networks_give_the_same_numbers():
    "torch.compile on the CPU: inner gradients, a training step, and another size, which is not compiled"
    torch.manual_seed(0)
    plain, x, y = build_model('wrn-10-1').train(), torch.rand(16, 3, 32, 32), torch.arange(16) % 10
    fast = ComputeWrapper(build_model('wrn-10-1').train(), ComputeSettings(compile='inductor'))
    fast.net.load_state_dict(plain.state_dict())
    for net in plain, fast:
        torch.manual_seed(1)
        for _ in range(2):
            adt_loss(net, x, y, make_method('at_pgd', 8 / 255, inner_steps=1, inner_step=0.0))[0].backward()
        with eval_mode(net):
            net(x[:7])  # only looked at
            for n in 3, 5:
                net(x[:n].clone().requires_grad_())
    assert fast.compiled_sizes['forward'] == {16, 3}

    def leaves(fn):
        return (
            []
            if fn is None
            else [fn.variable]
            if hasattr(fn, 'variable')
            else [v for f, _ in fn.next_functions for v in leaves(f)]
        )

    asked = x.clone().requires_grad_()
    with eval_mode(fast):
        assert leaves(fast(asked).grad_fn) == [asked]  # an inner problem asks for nothing of the weights
    for (k, a), b in zip(plain.named_parameters(), fast.net.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=2e-3, atol=2e-4, msg=k)
    for a, b in zip(plain.buffers(), fast.net.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


# The benchmark

BENCHMARK = {
    c['id']: ''.join(c['source']) for c in json.loads((ROOT / 'nbs' / 'benchmark.ipynb').read_text())['cells']
}


@pytest.mark.parametrize(
    'name, value, says',
    [
        ('archs', ['vgg'], "archs=['vgg']: expected a list, each item small_cnn, resnet18"),
        ('archs', [], 'archs=[]: expected at least one'),
        ('parts', ['speed'], "parts=['speed']: expected a list, each item training, plain"),
        ('draws', [0], 'draws=[0]: expected a list, each item a whole number of at least 1'),
        ('repeats', 1, 'repeats=1: expected a whole number of at least 2'),
        ('compile', 'graphs', "compile='graphs': expected none or inductor on cpu"),
        ('device', 'tpu', "device='tpu': expected one of"),
        ('machine', '../x', "machine='../x': expected a name"),
    ],
)
def test_benchmark_refuses(name, value, says):
    names = {}
    exec(BENCHMARK['parameters'], names)
    names[name] = value
    with pytest.raises(ParameterError) as e:
        for cell in 'check', 'checked':
            exec(BENCHMARK[cell], names)
    assert says in str(e.value) and '\n' not in str(e.value)
