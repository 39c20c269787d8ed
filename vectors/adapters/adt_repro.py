"""adt_repro through its public functions; given noise takes the place of the numbers that it would draw."""

import math
from contextlib import contextmanager
from functools import partial
from unittest import mock

import torch
from torch import nn
from torch_networks import build, recorded, weight_gradients

import adt_repro
from adt_repro import losses
from adt_repro.attacks import black_box, feature, gradient
from adt_repro.methods import distributions
from adt_repro.methods.adversaries import ExpAM, ImpAM, exp_adversary, image_and_gradients
from adt_repro.methods.objective import Method, adt_loss

PRECISION = 'float64'


def VERSIONS():
    "Of what computes"
    return dict(adt_repro=adt_repro.__version__, torch=torch.__version__)


def tensors(case):
    "The inputs of a case"
    return {name: torch.as_tensor(value) for name, value in case.inputs.items()}


def arrays(**outputs):
    "Tensors as arrays"
    return {name: value.detach().numpy() for name, value in outputs.items()}


@contextmanager
def given(module, name, values):
    "A context in which a module's function gives these values, one after the other, and all are used"
    draws = iter(values)
    with mock.patch.object(module, name, lambda *like, **options: next(draws)):
        yield
    assert next(draws, None) is None, f'{name} was not asked for all numbers'


def value_and_gradient(loss, x):
    "A loss of each image, and its gradient"
    x = x.clone().requires_grad_()
    value = loss(x)
    (found,) = torch.autograd.grad(value.sum(), x)
    return value, found


# forward, and attacks along a gradient


def forward(case):
    t, model = tensors(case), build(case)
    value, found = value_and_gradient(losses.ce(model, t['x'], t['y']), t['x'])
    outputs = dict(logits=model(t['x']), loss=value, gradient=found)
    if case.network != 'linear':
        outputs['features'] = model.features(t['x'])
    return arrays(**outputs)


def fgsm(case):
    t, model = tensors(case), build(case)
    value, found = value_and_gradient(losses.ce(model, t['x'], t['y']), t['x'])
    x_adv = gradient.fgsm(model, t['x'], t['y'], eps=case.parameters['eps'])
    return arrays(x_adv=x_adv, loss=value, gradient=found)


def climbed(case, attack, loss, **options):
    "What an attack with steps gives: images, all iterates, their losses, the signs of its steps"
    t, p, model, signs = tensors(case), case.parameters, build(case), []

    def sign(total):
        signs.append(total.sign())
        return signs[-1]

    start = t.get('start', torch.zeros_like(t['x']))
    options |= {name: p[name] for name in ('eps', 'step_size', 'steps', 'clip_start')}
    with recorded(model) as calls:
        x_adv = attack(model, t['x'], t['y'], start=lambda x: start, sign=sign, **options)
    values = [loss(model, t['x'], t['y'])(x) for x in calls]
    iterates = torch.stack([*calls, x_adv])
    return arrays(x_adv=x_adv, iterates=iterates, losses=torch.stack(values), signs=torch.stack(signs))


def pgd(case):
    return climbed(case, gradient.pgd, losses.ce)


def mim(case):
    return climbed(case, gradient.mim, losses.ce, decay=case.parameters['decay'])


def cw(case):
    loss = partial(losses.cw_loss, kappa=case.parameters['kappa'])
    if case.parameters['kappa'] == 50:
        return climbed(case, gradient.cw, loss)
    return climbed(case, partial(gradient.pgd, loss=loss), loss)


def trades_attack(case):
    return climbed(case, partial(gradient.pgd, loss=losses.kl), losses.kl)


def feature_attack(case):
    t, p, model = tensors(case), case.parameters, build(case)
    n, s = t['targets'].shape[:2]
    labels = ((t['y'] + 1) % model.fc.out_features).repeat_interleave(s)  # any other class
    how = dict(eps=p['eps'], step_size=p['step_size'], pool=(t['targets'].flatten(0, 1), labels))
    how |= dict(n_targets=s, group=s)

    def attack(steps):
        which = torch.arange(n * s).view(n, s)
        with given(feature, 'draw_targets', [which]), given(feature, 'rand_unit', t['start'].unbind(1)):
            return feature.fea_attack(model, t['x'], t['y'], steps=steps, **how)

    x_adv = attack(p['steps'])
    with recorded(model) as calls:
        attack(p['steps'] + 1)  # one step more takes a gradient at the last iterate too
    iterates = torch.stack(calls).unflatten(1, (s, n)).transpose(1, 2)
    misclassified = losses.margin(model(x_adv), t['y']) < 0
    return arrays(misclassified=misclassified, x_adv=x_adv, iterates=iterates)


# attacks without a gradient


def spsa_gradient(case):
    t, model = tensors(case), build(case)

    def values(points, example):
        return -losses.margin(model(points), t['y'][example])

    how = dict(pairs=len(t['directions']), sigma=case.parameters['sigma'])
    with given(black_box, 'rand_unit', t['directions']):
        return arrays(gradient=black_box.spsa_gradient(values, t['x'], **how))


def square_draws(stripes, patches, signs, size):
    "The numbers that `square` draws for one image: for its own seed, for the stripes, for each patch"
    yield torch.zeros(1, 2)
    yield stripes[None, :, None]
    for patch, sign in zip(patches.tolist(), signs, strict=True):
        places = [whole - part + 1 for whole, part in zip(size, patch[2:], strict=True)]
        middles = [2 * (at + 0.5) / number - 1 for at, number in zip(patch[:2], places, strict=True)]
        yield torch.cat([torch.tensor(middles), sign])[None]


def square(case):
    "Image by image, as an image is left out once it is misclassified"
    t, p, model, results = tensors(case), case.parameters, build(case), []
    how = dict(eps=p['eps'], first=p['first'], budget=p['budget'])
    for i, x in enumerate(t['x']):
        draws = square_draws(t['stripes'][i], t['patches'][:, i], t['patch_signs'][:, i], x.shape[1:])
        with mock.patch.object(black_box, 'rand_unit', lambda like, draws=draws: next(draws).to(like)):
            results.append(black_box.square(model, x[None], t['y'][i : i + 1], **how))
    x_adv, queries = map(torch.cat, zip(*results, strict=True))
    return arrays(x_adv=x_adv, queries=queries)


# losses


def outer_loss(case, loss):
    t, model = tensors(case), build(case)
    values = loss(model, t['x'], t['y'], beta=case.parameters['beta'])(t['x_adv'])
    values.mean().backward()
    found = {f'gradient.{name}': value for name, value in weight_gradients(model).items()}
    return arrays(loss=values.mean(), losses=values) | found


def trades_loss(case):
    return outer_loss(case, losses.trades)


def alp_loss(case):
    return outer_loss(case, losses.alp)


def feature_scatter(case):
    t, p, model, seen = tensors(case), case.parameters, build(case), {}
    sinkhorn = losses.sinkhorn

    def transport(cost):
        seen.update(cost=cost, plan=sinkhorn(cost, reg=p['reg'], rounds=p['rounds'], tol=p['tol']))
        return seen['plan']

    def sign(total):
        seen['signs'] = total.sign()
        return seen['signs']

    with mock.patch.object(losses, 'sinkhorn', transport):
        how = dict(eps=p['eps'], steps=1, step_size=p['eps'], start=lambda x: t['start'], sign=sign)
        x_adv = gradient.pgd(model, t['x'], t['y'], loss=losses.scatter, group=len(t['x']), **how)
    return arrays(x_adv=x_adv, **seen)


# distributions


def squashed(case, noise):
    "δ, and the package's estimate of −log p, with the constants that it leaves out"
    t, eps = tensors(case), case.parameters['eps']
    with given(distributions, 'rand_normal', [noise]):
        delta, h = distributions.tanh_gaussian(t['mu'], t['rho'], eps)
    return delta, h + 0.5 * math.log(2 * math.pi) + math.log(eps)


def tanh_gaussian(case):
    "The entropy by the rule that is given; the package's logarithms have the authors' two 1e-8"
    t = tensors(case)
    delta, h = squashed(case, t['noise'])
    at_nodes = [squashed(case, torch.full_like(t['mu'], node))[1] for node in t['nodes'].tolist()]
    return arrays(delta=delta, log_density=-h, entropy=t['weights'] @ torch.stack(at_nodes))


def adt_exp(case):
    t, p, model = tensors(case), case.parameters, build(case)
    x, y, noise = t['x'], t['y'], t['noise']
    how = {name: p[name] for name in ('eps', 'step_size', 'lbd', 'momentum', 'rho', 'tol')}
    iterates, objectives = [(torch.zeros_like(x), torch.full_like(x, p['rho']))], []
    for steps in range(1, p['steps'] + 1):
        with given(distributions, 'rand_normal', noise[:steps].flatten(0, 1)):
            fitted = exp_adversary(model, x, y, steps=steps, n_mc=p['draws'], **how)
        objective = 0
        for draw in noise[steps - 1]:
            with given(distributions, 'rand_normal', [draw]):
                delta, h = distributions.tanh_gaussian(*iterates[-1], p['eps'])
            objective = objective + losses.ce(model, x, y)((x + delta).clamp(0, 1)) + p['lbd'] * h
        objectives.append(objective)
        iterates.append(fitted.args[:2])
    with given(distributions, 'rand_normal', [t['last_noise']]):
        x_adv = (x + fitted()[0]).clamp(0, 1)
    mu, rho = map(torch.stack, zip(*iterates, strict=True))
    outputs = dict(mu_iterates=mu, rho_iterates=rho, objective=torch.stack(objectives))
    return arrays(mu=mu[-1], rho=rho[-1], x_adv=x_adv, **outputs)


# amortised adversaries


class Generator(nn.Module):
    "Pixel by pixel; with `z_weight`, one more channel of its input is made from noise"

    def __init__(self, given):
        super().__init__()
        for name, value in given.items():
            setattr(self, name, nn.Parameter(value.clone()))

    def forward(self, features, z=None):
        if z is not None:
            n, _, height, width = features.shape
            channel = (z @ self.z_weight.T + self.z_bias).view(n, 1, height, width)
            features = torch.cat([features, channel], 1)
        return torch.einsum('oc,nchw->nohw', self.weight, features) + self.bias[:, None, None]


class Encoder(nn.Module):
    "One linear layer"

    def __init__(self, given):
        super().__init__()
        self.weight, self.bias = (nn.Parameter(given[name].clone()) for name in ('weight', 'bias'))

    def forward(self, t):
        return t.flatten(1) @ self.weight.T + self.bias


def part(inputs, name):
    "The inputs whose names begin with `name` and a point"
    return {
        key.removeprefix(f'{name}.'): value for key, value in inputs.items() if key.startswith(f'{name}.')
    }


def scaled_input(scale):
    "The generator's input with gradients at another scale than the package's, that of a batch of 64"

    def make_input(model, x, y, eps):
        image, gradients = image_and_gradients(model, x, y, eps).tensor_split([x.shape[1]], 1)
        return torch.cat([image, gradients * (64 * scale)], 1)

    return image_and_gradients if scale == 1 / 64 else make_input


def amortised(case, adversary, draw, noise, **options):
    "The outputs of one step of a method"
    t, model = tensors(case), build(case)
    method = Method(adversary, entropy_weight=case.parameters['lbd'], **options)
    with given(distributions, draw, [noise]), recorded(model) as calls:
        objective, loss, entropy = adt_loss(model, t['x'], t['y'], method)
    objective.backward()
    found = {f'gradient.network.{name}': value for name, value in weight_gradients(model).items()}
    for name, weight in adversary.named_parameters():
        found[f'gradient.{name}'] = -weight.grad.numpy()  # the method descends
    return arrays(loss=loss, entropy=entropy, x_adv=calls[-1]) | found


def adt_exp_am(case):
    t, p = tensors(case), case.parameters
    adversary = ExpAM(Generator(part(t, 'generator')), p['eps'], scaled_input(p['gradient_scale']))
    return amortised(case, adversary, 'rand_normal', t['noise'])


def adt_imp_am(case):
    t, p = tensors(case), case.parameters
    generator, encoder = Generator(part(t, 'generator')), Encoder(part(t, 'encoder'))
    make_input = scaled_input(p['gradient_scale'])
    adversary = ImpAM(generator, encoder, p['eps'], t['z'].shape[1], make_input)
    return amortised(case, adversary, 'rand_unit', t['z'], entropy_cap=-p['u_max'])
