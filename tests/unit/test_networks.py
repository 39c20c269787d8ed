"Networks that a user may bring: their own logits, one line where they fail, and nothing of them changed"

import copy
import warnings
from collections import namedtuple
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers import refusal
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import adt_repro.speed.bn_folding as bn_folding
from adt_repro.attacks.black_box import spsa, square
from adt_repro.attacks.gradient import fgsm, pgd
from adt_repro.base.device import eval_mode
from adt_repro.base.network import as_network, takes_channels_last, tf32
from adt_repro.data import load_data
from adt_repro.evaluation.evaluate import evaluate
from adt_repro.methods.adversaries import exp_adversary, worst_of_draws
from adt_repro.methods.objective import Method
from adt_repro.methods.table import make_method
from adt_repro.models.classifiers import SmallCNN, build_model, check_model
from adt_repro.models.flops import forward_macs
from adt_repro.models.trained import trained_network
from adt_repro.speed.precision import ComputeSettings, ComputeWrapper
from adt_repro.training.loop import train_epochs
from adt_repro.training.state import Recipe

DIGITS = load_data('digits').head(48, 24)


def in_colour(images):
    "Digits with three channels that differ, where the layout of memory matters"
    return torch.cat([images, 1 - images, images.square()], 1)


COLOUR = replace(DIGITS, x_train=in_colour(DIGITS.x_train), x_test=in_colour(DIGITS.x_test))
X, Y = COLOUR.x_test, COLOUR.y_test
RECIPE = Recipe(lr=0.05, batch=24, epochs=1, augment=False)


def side_by_side(images):
    return images.contiguous(memory_format=torch.channels_last)


# Networks of users


def by_copy(maps):
    return maps.flatten(1)


def by_view(maps):
    return maps.view(len(maps), -1)


class Flattening(nn.Module):
    "A small network; `flatten` says how the maps become a row"

    def __init__(self, flatten=by_copy):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.fc, self.flatten = nn.Linear(6 * 64, 10), flatten

    def forward(self, x):
        return self.fc(self.flatten(F.relu(self.bn(self.conv(x)))))


class _ViewInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, maps):
        return maps.flatten(1)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.view(-1, 6, 8, 8)


class _InMemoryOrder(torch.autograd.Function):
    "As an own kernel that takes the numbers in the order in which they lie in memory"

    @staticmethod
    def forward(ctx, maps):
        storage, first = maps.untyped_storage(), maps.storage_offset()
        return maps.new_empty(0).set_(storage, first, (len(maps), 6 * 64), (6 * 64, 1)).clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.reshape(-1, 6, 8, 8)


FLATTENINGS = dict(view=by_view, backward=_ViewInBackward.apply, kernel=_InMemoryOrder.apply)
Output = namedtuple('Output', 'logits hidden')


class Giving(nn.Module):
    "A network whose output is something else"

    def __init__(self, wrap):
        super().__init__()
        self.net, self.wrap = Flattening(by_view), wrap

    def forward(self, x):
        return self.wrap(self.net(x))


def with_logits(logits):
    return Output(logits, None)


def twins(flatten):
    "A user's network, and one with the same weights that takes any layout"
    torch.manual_seed(0)
    own, twin = Flattening(flatten), Flattening()
    twin.load_state_dict(own.state_dict())
    return own, twin


def facts(net):
    "What must not change: tensors' identity, memory and layout, modes, gradients asked for, hooks"
    tensors = [*net.parameters(), *net.buffers()]
    return dict(
        tensors=[(id(t), t.data_ptr(), t.stride(), t.requires_grad) for t in tensors],
        modes=[module.training for module in net.modules()],
        hooks=[[len(module._forward_hooks), len(module._forward_pre_hooks)] for module in net.modules()],
        attributes=[sorted(vars(module)) for module in net.modules()],
    )


def method_named(name):
    small = dict(at_pgd={}, adt_exp=dict(inner_steps=2, n_mc=2), adt_exp_am=dict(gen_width=8))
    return make_method(name, 0.1, (3, 8, 8), **small[name])


def history(net, name, data=COLOUR, **options):
    "The losses of a short training"
    torch.manual_seed(0)
    return [row['loss'] for row in train_epochs(net, data, method_named(name), RECIPE, **options)]


def trains_as(net, twin, name):
    "Are the losses of two short trainings the same, up to rounding?"
    return history(net, name) == pytest.approx(history(twin, name), abs=1e-3)


# Fault 9: the layout of memory


@pytest.mark.parametrize('kind', FLATTENINGS)
def test_logits_and_gradients_as_of_the_twin(kind):
    "Also where images come with their channels side by side; the network itself can be called afterwards"
    own, twin = twins(FLATTENINGS[kind])
    own.eval()
    twin.eval()
    before = facts(own)

    def logits_and_gradient(net, images):
        images = images.clone().requires_grad_()
        logits = net(images)
        return logits.detach(), torch.autograd.grad(logits.square().sum(), images)[0]

    def largest_difference(images):
        found = logits_and_gradient(ComputeWrapper(own), images)
        pairs = zip(found, logits_and_gradient(twin, X), strict=True)
        return max((a - b).abs().max().item() for a, b in pairs) < 1e-4

    assert refusal(largest_difference, X) == 'gave True'
    assert refusal(largest_difference, side_by_side(X)) == 'gave True'
    assert refusal(lambda: torch.allclose(own(X), twin(X), atol=1e-5)) == 'gave True'
    assert facts(own) == before


ATTACKS = dict(
    pgd=partial(pgd, steps=3),
    fgsm=fgsm,
    spsa=partial(spsa, samples=4, steps=2),
    square=partial(square, budget=5),
    adt_exp=worst_of_draws(partial(exp_adversary, eps=0.1, steps=2), 2),
    clean=None,
)


@pytest.mark.parametrize('name', ATTACKS)
def test_evaluated_as_the_twin(name):
    own, twin = twins(by_view)
    before = facts(own)

    def losses(net):
        return evaluate(net, X, Y, ATTACKS[name], eps=0.1).loss.tolist()

    assert refusal(lambda: losses(own) == pytest.approx(losses(twin), abs=1e-2)) == 'gave True'
    assert refusal(lambda: own(X).shape) == f'gave {torch.Size([24, 10])}'
    assert facts(own) == before


@pytest.mark.parametrize('name', ['pgd', 'fgsm', 'spsa', 'square'])
def test_attacked_directly(name):
    "An attack called by itself: its images mislead the twin as those that were made for it"
    own, twin = twins(by_view)

    def twin_loss(net):
        torch.manual_seed(1)
        x_adv = ATTACKS[name](net, X, Y, eps=0.1)
        x_adv = x_adv[0] if isinstance(x_adv, tuple) else x_adv
        with eval_mode(twin), torch.no_grad():
            return F.cross_entropy(twin(x_adv), Y).item()

    assert refusal(lambda: twin_loss(own) == pytest.approx(twin_loss(twin), abs=1e-2)) == 'gave True'


@pytest.mark.parametrize('name', ['at_pgd', 'adt_exp', 'adt_exp_am'])
@pytest.mark.parametrize('kind', FLATTENINGS)
def test_trained_as_the_twin(kind, name):
    own, twin = twins(FLATTENINGS[kind])
    own.bn.eval()
    twin.bn.eval()
    before = facts(own)
    assert refusal(trains_as, own, twin, name) == 'gave True'
    assert facts(own) == before


def test_trained_by_its_logits():
    "An output with `logits`, as of Hugging Face's networks, simply works; a tuple is refused in one line"
    own, twin = twins(by_view)
    giving = Giving(with_logits)
    giving.net.load_state_dict(own.state_dict())
    assert refusal(trains_as, giving, twin, 'at_pgd') == 'gave True'
    line = refusal(history, Giving(lambda logits: (logits, None)), 'at_pgd')
    assert line.startswith('model=Giving: gives a tuple for 2 images, expected logits (N, classes)')
    assert 'wrap it in a module whose forward gives the logits alone' in line
    assert '\n' not in line


class _Stop(Exception):
    pass


def _stop(*place):
    raise _Stop


@pytest.mark.parametrize('ending', ['finished', 'error', 'closed'])
def test_a_training_leaves_layout_and_modes(ending):
    "The weights are laid out for a training only, whichever way it ends; and it did train"
    torch.manual_seed(0)
    net = build_model('small_cnn', in_ch=3)
    net.fc.eval()
    net.body[0][0].weight.requires_grad_(False)
    net.body[0].register_forward_hook(lambda *call: None)
    start = copy.deepcopy(net.state_dict())
    before, inside = facts(net), []

    def look(*place):
        inside.append(net.body[1][0].weight.is_contiguous(memory_format=torch.channels_last))
        if ending == 'error':
            _stop()

    rows = train_epochs(net, COLOUR, method_named('at_pgd'), RECIPE, on_batch=look)
    if ending == 'closed':
        next(rows)
        rows.close()
    else:
        refusal(list, rows)
    assert all(inside)
    assert inside
    assert facts(net) == before
    assert not torch.equal(net.fc.weight, start['fc.weight'])
    assert torch.equal(net.body[0][0].weight, start['body.0.0.weight'])


def test_a_training_goes_on_from_moments_in_any_layout():
    "Two epochs in one training, and one by one from the same state"
    from adt_repro.training.state import State

    losses = []
    for epochs in [2], [1, 2]:
        torch.manual_seed(0)
        net = build_model('small_cnn', in_ch=3)
        recipe = Recipe(lr=0.05, batch=24, epochs=2, augment=False)
        state = State(net, method_named('at_pgd'), recipe)
        for stop in epochs:
            for row in train_epochs(net, COLOUR, state.method, recipe, state=state):
                if row['epoch'] == stop:
                    break
        losses.append(round(row['loss'], 4))
    assert losses[0] == losses[1]


def test_a_wrapper_changes_nothing():
    "Neither the layout nor the mode of a part that was frozen by hand"
    for build in partial(build_model, 'small_cnn', 3), Flattening, partial(Flattening, by_view):
        net = build().train()
        for module in net.modules():
            module.training = not isinstance(module, nn.BatchNorm2d)
        before = facts(net)
        wrapper = ComputeWrapper(net)
        refusal(wrapper, X)
        with eval_mode(wrapper):
            refusal(wrapper, X)
        assert facts(net) == before


def test_the_cost_of_a_pass_leaves_the_mode():
    with torch.device('meta'):
        net = build_model('small_cnn', in_ch=1).train()
        assert forward_macs(net, (1, 8, 8)) > 0
    assert net.training


class Counting(nn.Module):
    "A network that counts its images, and draws from the random state"

    def __init__(self):
        super().__init__()
        self.net = Flattening(by_view)
        self.register_buffer('seen', torch.zeros(()))

    def forward(self, x):
        self.seen += len(x)
        return self.net(x) + 0 * torch.rand(1)


def test_the_trial_is_not_seen():
    "A buffer counts the images that were asked about, and the random state is that of one call"
    net = Counting().eval()
    torch.manual_seed(0)
    refusal(ComputeWrapper(net), side_by_side(X))
    after = torch.get_rng_state()
    torch.manual_seed(0)
    torch.rand(1)
    assert net.seen.item() == len(X)
    assert torch.equal(after, torch.get_rng_state())


class InPlace(nn.Module):
    "A network that rescales its images in place, as many do"

    def __init__(self):
        super().__init__()
        self.net = Flattening()

    def forward(self, x):
        return self.net(x.sub_(0.5).div_(0.25))


def test_images_stay_as_they_are():
    "Also where the first layer of a known network changes them; the logits are those of a copy of the images"
    torch.manual_seed(0)
    for net in InPlace().eval(), nn.Sequential(nn.Threshold(0.5, 2.0, inplace=True), Flattening()).eval():
        images, expected = X.clone(), net(X.clone())
        for _ in range(2):
            assert torch.equal(ComputeWrapper(net)(images), expected)
            assert torch.equal(images, X)
    data = replace(COLOUR, x_train=COLOUR.x_train.clone())
    assert refusal(lambda: len(history(InPlace(), 'at_pgd', data))) == 'gave 1'
    assert torch.equal(data.x_train, COLOUR.x_train)


class Switched(nn.Module):
    "A network that rescales its images in place once a switch is thrown"

    def __init__(self):
        super().__init__()
        self.net, self.in_place = Flattening(), False

    def forward(self, x):
        return self.net(x.sub_(0.5) if self.in_place else x)


def test_images_stay_when_a_network_changes_later():
    "Its first calls left the images alone; the layer of a known network, or an attribute, is changed then"

    def throw(net):
        net[0].inplace = True

    known = nn.Sequential(nn.Threshold(0.5, 2.0), Flattening()).eval()
    for net, change in (Switched().eval(), lambda net: setattr(net, 'in_place', True)), (known, throw):
        network, images = as_network(net), X.clone()
        network(images)
        change(net)
        network(images)
        assert torch.equal(images, X)
        pgd(net, images, Y, eps=0.1, steps=2)
        assert torch.equal(images, X)


@dataclass
class Scored:
    "A network that is no module, and cannot be hashed"

    net: nn.Module

    def __call__(self, x):
        return self.net(x)


class Slotted:
    "A network that cannot be referenced weakly"

    __slots__ = ('net',)

    def __init__(self, net):
        self.net = net

    def __call__(self, x):
        return self.net(x)


@pytest.mark.parametrize('wrap', [Scored, Slotted, partial(partial)])
def test_any_callable_is_a_network(wrap):
    own, _ = twins(by_view)
    own.eval()

    def images(net):
        torch.manual_seed(0)
        return pgd(net, X, Y, eps=0.1, steps=2)

    found = refusal(lambda: torch.equal(images(wrap(own)), images(own)))
    assert found == 'gave True'


class Equal(Flattening):
    "A network that is equal to each of its kind"

    def __eq__(self, other):
        return type(self) is type(other)

    def __hash__(self):
        return 1


class EqualOnly(Flattening):
    def __eq__(self, other):
        return self is other


def test_each_network_has_a_trial_of_its_own():
    "What one takes is not believed of another one that is equal to it"
    assert takes_channels_last(Equal(by_copy).eval(), X)
    takes = Equal(by_copy).eval()
    assert takes_channels_last(takes, X)
    assert not takes_channels_last(Equal(by_view).eval(), X)


def test_a_module_without_a_hash():
    "PyTorch cannot list its parameters; the line says what to do"
    line = refusal(pgd, EqualOnly().eval(), X, Y, eps=0.1)
    assert line.startswith('model=')
    assert line.endswith(
        'expected modules that can be hashed: next to __eq__ define __hash__ = torch.nn.Module.__hash__'
    )


class Seeing(nn.Module):
    "A network that notes how it is computed"

    def __init__(self):
        super().__init__()
        self.net, self.seen = Flattening(), []

    def __deepcopy__(self, memo):
        other = Seeing()
        other.seen = self.seen  # what a copy sees is noted too
        return other

    def forward(self, x):
        logits = self.net(x)
        self.seen.append((logits.dtype, torch.backends.cudnn.allow_tf32))
        return logits


def test_the_trial_is_made_in_float32():
    "Whatever the caller has switched on"
    net = Seeing().eval()
    with torch.autocast('cpu', torch.bfloat16), tf32(True):
        assert takes_channels_last(net, X)
        assert torch.is_autocast_enabled('cpu')
        assert torch.backends.cudnn.allow_tf32
    assert set(net.seen) == {(torch.float32, False)}


def test_an_error_of_the_compiler_has_its_own_line(monkeypatch):
    "It is not blamed on the images, and the call is not made again"
    whole, calls = torch.compile, []

    def broken(graph, inputs):
        calls.append(1)
        raise RuntimeError('no such compiler')

    monkeypatch.setattr(torch, 'compile', lambda f, **options: whole(f, backend=broken))
    wrapper = ComputeWrapper(Flattening().eval(), ComputeSettings(compile='inductor'))
    line = refusal(wrapper, side_by_side(X).requires_grad_())
    assert line.startswith("model=Flattening: torch.compile fails: backend='broken' raised:")
    assert 'no such compiler' in line
    assert line.endswith("Use compile='none', or the network as it was before torch.compile")
    assert '\n' not in line
    assert len(calls) == 1


def test_a_network_without_parameters_is_not_trained():
    line = 'expected a network with parameters that are trained, this has none'
    assert refusal(history, nn.Flatten(), 'at_pgd') == f'model=Flatten: {line}'


def test_a_network_without_gradients_is_not_trained():
    line = refusal(history, Giving(torch.Tensor.detach), 'at_pgd')
    assert line.startswith('model=Giving: its logits have no gradient')


class Late(nn.Module):
    "A network that takes any layout until a switch is thrown"

    def __init__(self):
        super().__init__()
        self.net, self.late = Flattening(), False

    def forward(self, x):
        if self.late:
            self.net.flatten = by_view
        return self.net(x)


def test_a_layout_that_fails_later():
    "The same call again in PyTorch's usual layout"
    net = Late().eval()
    wrapper = ComputeWrapper(net)
    assert torch.allclose(wrapper(X), net(X), atol=1e-5)
    net.late = True
    assert refusal(lambda: torch.allclose(wrapper(X), net(X.clone()), atol=1e-5)) == 'gave True'


# Fault 15: one line where the images do not fit the network


@pytest.mark.parametrize(
    'x, advice',
    [
        (
            X.permute(0, 2, 3, 1),
            'The images look like (N, H, W, C), expected (N, C, H, W): use x.permute(0, 3, 1, 2)',
        ),
        ((255 * X).byte(), 'The images are uint8, expected floats in [0, 1]: use x.float() / 255'),
        (X.double(), 'The network is in float32, the images are in float64: use x.to(torch.float32)'),
        (X.to('meta'), "The network is on cpu: use x.to('cpu')"),
    ],
    ids=['nhwc', 'uint8', 'float64', 'device'],
)
def test_one_line_says_what_to_do(x, advice):
    for net in build_model('small_cnn', 3), Flattening(by_view):
        line = refusal(check_model, net, x, 10)
        assert line.startswith(f'model={type(net).__name__}: cannot take images of shape')
        assert line.endswith(advice)
        assert '\n' not in line


def test_what_an_output_may_be():
    half = Giving(torch.Tensor.bfloat16)
    assert check_model(Giving(lambda logits: logits), X, 10)
    assert refusal(lambda: check_model(Giving(with_logits), X, 10) is not None) == 'gave True'
    assert ComputeWrapper(half).eval()(X).dtype == torch.float32
    wanted = 'expected logits (N, classes) as a tensor or as `logits` of the output; wrap it in a module'
    for wrap in (
        tuple,
        list,
        lambda logits: dict(scores=logits),
        lambda logits: logits[:, 0],
        torch.Tensor.int,
    ):
        line = refusal(check_model, Giving(wrap), X, 10)
        assert wanted in line
        assert '\n' not in line


# Fault 3: training attacks the network as it is


SLOPE = 0.0


class Slopes:
    slope = 0.0


class Annealed(Flattening):
    "A network whose activation is annealed, kept in one of many places"

    shared = 0.0

    def __init__(self, place):
        super().__init__()
        self.place, self.slope, self.slopes, self.table = place, 0.0, [0.0], dict(slope=0.0)
        self.config, self.act = SimpleNamespace(slope=0.0), nn.LeakyReLU(0.0)

    def slope_now(self):
        if self.place == 'global':
            return SLOPE
        if self.place == 'global object':
            return Slopes.slope
        if self.place == 'branch':
            return 0.0 if self.slope < 0.5 else 0.9
        places = dict(
            attribute=self.slope,
            list=self.slopes[0],
            dict=self.table['slope'],
            object=self.config.slope,
            layer=self.act.negative_slope,
        )
        return places.get(self.place, self.shared)

    def anneal(self, slope):
        global SLOPE
        SLOPE = Slopes.slope = Annealed.shared = slope
        self.slope = self.slopes[0] = self.table['slope'] = self.config.slope = slope
        self.act.negative_slope = slope

    def forward(self, x):
        maps = F.leaky_relu(self.bn(self.conv(x)), self.slope_now())
        return self.fc(maps.flatten(1))


PLACES = 'attribute', 'list', 'dict', 'object', 'layer', 'class', 'global', 'global object', 'branch'


class Recorder:
    "An adversary that keeps how far the logits it sees are from those of the network itself"

    def __init__(self, net):
        self.net, self.gaps = net, []

    def method(self):
        inner = make_method('at_fgsm', 0.1)

        def adversary(model, x, y):
            with torch.no_grad():
                self.gaps.append((model(x) - self.net(x)).abs().max().item())
            return inner.adversary(model, x, y)

        return Method(adversary)

    def worst_gap(self, *changes, when='epoch'):
        "Of a training of three epochs, with a change after each epoch or each batch"
        left = list(changes)

        def change(*at):
            if left:
                left.pop(0)(self.net)
            return {}

        hook = dict(monitor=change) if when == 'epoch' else dict(on_batch=change)
        recipe = Recipe(lr=0.01, batch=24, epochs=3, augment=False)
        rows = list(train_epochs(self.net, COLOUR, self.method(), recipe, **hook))
        assert len(rows) == 3
        assert not left
        return max(self.gaps)


@pytest.mark.parametrize('when', ['epoch', 'batch'])
@pytest.mark.parametrize('place', PLACES)
def test_an_annealed_activation_is_attacked_as_it_is(place, when):
    "The logits that attacks in training see, against a call of the network itself with the same weights"
    torch.manual_seed(0)
    net = Annealed(place)
    net.anneal(0.0)
    gap = Recorder(net).worst_gap(lambda net: net.anneal(0.4), lambda net: net.anneal(0.9), when=when)
    assert gap < 1e-4


class Routed(nn.Module):
    "Dual batch normalisation: clean and adversarial images have a normalisation each"

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 10)
        self.clean, self.adversarial, self.route = nn.BatchNorm2d(6), nn.BatchNorm2d(6), 'clean'
        nn.init.constant_(self.adversarial.weight, 3.0)

    def forward(self, x):
        norm = self.clean if self.route == 'clean' else self.adversarial
        return self.fc(F.relu(norm(self.conv(x))).mean((2, 3)))


def test_a_route_is_attacked_as_it_is():
    torch.manual_seed(0)
    recorder = Recorder(Routed())

    def is_right():
        return recorder.worst_gap(lambda net: setattr(net, 'route', 'adversarial')) < 1e-4

    assert refusal(is_right) == 'gave True'


def _replace_head(net):
    net.fc = nn.Linear(net.fc.in_features, 10)


def _hook_a_norm(net):
    net.body[0][1].register_forward_hook(lambda module, args, out: 2 * out)


def _hook_the_whole(net):
    net.register_forward_hook(lambda module, args, out: out + 1)


def _patch_forward(net):
    net.forward = lambda x: 3 * net.fc(net.features(x))


def _patch_class(net):
    class Halved(SmallCNN):
        def forward(self, x):
            return 0.5 * super().forward(x)

    net.__class__ = Halved


def _other_activation(net):
    net.body[0][2] = nn.LeakyReLU(0.5)


def _weight_norm(net):
    parametrizations.weight_norm(net.body[1][0])
    net.body[1][0].parametrizations.weight.original0.data.mul_(2)


def _scaled_weight(net):
    class Twice(nn.Module):
        def forward(self, weight):
            return 2 * weight

    parametrize.register_parametrization(net.body[1][0], 'weight', Twice())


def _other_norm(net):
    net.body[0][1] = nn.InstanceNorm2d(net.body[0][1].num_features)


CHANGES = dict(
    head=_replace_head,
    norm_hook=_hook_a_norm,
    whole_hook=_hook_the_whole,
    patched=_patch_forward,
    patched_class=_patch_class,
    activation=_other_activation,
    weight_norm=_weight_norm,
    parametrized=_scaled_weight,
    norm=_other_norm,
)


@pytest.mark.parametrize('change', CHANGES)
def test_a_changed_network_is_attacked_as_it_is(change):
    "The package's own network, which is folded, and then changed in the middle of a training"
    torch.manual_seed(0)
    recorder = Recorder(build_model('small_cnn', in_ch=3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        assert recorder.worst_gap(CHANGES[change]) < 1e-4
    assert not caught  # it was seen at once, not by the check of the next epoch


def test_a_class_that_is_patched_later(monkeypatch):
    net = trained_network().eval()
    wrapper = ComputeWrapper(net)
    assert torch.allclose(wrapper(DIGITS.x_test), net(DIGITS.x_test), atol=1e-3)
    monkeypatch.setattr(SmallCNN, 'features', lambda self, x: -self.body(x))
    assert torch.allclose(wrapper(DIGITS.x_test), net(DIGITS.x_test), atol=1e-3)


def test_a_copy_is_a_network_of_its_own():
    wrapper = ComputeWrapper(trained_network().eval())
    wrapper(DIGITS.x_test)
    other = copy.deepcopy(wrapper)
    other.net.fc = nn.Linear(other.net.fc.in_features, 10)
    assert torch.allclose(other(DIGITS.x_test), other.net(DIGITS.x_test), atol=1e-3)


def test_a_network_that_keeps_changing():
    "Twenty hooks, each set and taken away: the logits are those of the network itself each time"
    net = trained_network().eval()
    wrapper, gaps = ComputeWrapper(net), []
    with torch.no_grad():
        for factor in range(20):
            handle = net.body[0][1].register_forward_hook(lambda module, args, out, by=factor: by * out)
            gaps.append((wrapper(DIGITS.x_test) - net(DIGITS.x_test)).abs().max().item())
            handle.remove()
            gaps.append((wrapper(DIGITS.x_test) - net(DIGITS.x_test)).abs().max().item())
    assert max(gaps) < 1e-3


def _batch_norms(net, monkeypatch):
    "How many batch normalisations a pass in evaluation mode computes by PyTorch's function"
    calls, whole = [], F.batch_norm

    def counted(*args, **options):
        calls.append(1)
        return whole(*args, **options)

    wrapper = ComputeWrapper(net.eval())
    wrapper(X)
    with monkeypatch.context() as patched:
        patched.setattr(F, 'batch_norm', counted)
        wrapper(X)
    return len(calls)


def test_what_is_folded(monkeypatch):
    "The package's own networks are, a user's class and a patched network are not"
    assert _batch_norms(build_model('small_cnn', 3), monkeypatch) == 0
    assert _batch_norms(build_model('wrn-10-1', 3), monkeypatch) == 0
    assert _batch_norms(Flattening(), monkeypatch) == 1
    patched = build_model('small_cnn', 3)
    patched.forward = type(patched).forward.__get__(patched)
    assert _batch_norms(patched, monkeypatch) == 3


@pytest.mark.parametrize('fault', [False, True])
def test_folding_is_checked_each_epoch(fault, monkeypatch):
    "A folded form that becomes wrong is found at the next epoch, with one line, else there is none"
    torch.manual_seed(0)
    recorder = Recorder(build_model('small_cnn', in_ch=3))
    right = bn_folding._scale_and_shift

    def break_folding(net):
        recorder.gaps.clear()
        if fault:
            monkeypatch.setattr(bn_folding, '_scale_and_shift', lambda norm: [2 * v for v in right(norm)])

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        gap = recorder.worst_gap(break_folding)
    lines = [str(each.message) for each in caught if 'folded' in str(each.message)]
    assert len(lines) == fault
    assert gap < 1e-4
    if fault:
        assert lines[0].startswith('model=SmallCNN: with its normalisations folded into convolutions')
        assert '\n' not in lines[0]
