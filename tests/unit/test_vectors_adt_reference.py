"The vectors of losses, plans, densities, ascents and generators against PyTorch’s own derivatives, in both precisions"

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import batch_norm, conv2d, cross_entropy, kl_div, log_softmax, mse_loss, softplus

from adt_repro.reference.adt_cases import adt_cases
from adt_repro.reference.cases import compare_case, load_case, relative_gap, save_case, tolerance_of

# What must be told in at least one vector of each function
NEEDED = dict(
    trades_loss={'divergence_reversed', 'clean_held_fixed', 'batch_sum'},
    alp_loss={'clean_held_fixed', 'sum_over_classes', 'halves_left_out'},
    feature_scatter={
        'plan_held_fixed',
        'small_number_inside',
        'all_rounds',
        'one_round_too_few',
        'start_clipped',
    },
    tanh_gaussian={'exp_for_softplus', 'gaussian_entropy', 'eps_left_out', 'pixel_sum', 'entropy_sign'},
    adt_exp={'gradients_zeroed', 'gradients_kept', 'entropy_left_out', 'entropy_sum', 'entropy_sign'}
    | {'gaussian_entropy', 'exp_for_softplus', 'draws_reused', 'descends', 'one_step_too_few', 'batch_mean'},
    adt_exp_am={
        'second_gradient_at_x',
        'generator_descends',
        'entropy_left_out',
        'batch_sum',
        'halves_swapped',
    },
    adt_imp_am={
        'second_gradient_at_x',
        'generator_descends',
        'hinge_missing',
        'hinge_per_image',
        'by_column',
    },
)


@pytest.fixture(scope='module')
def cases():
    return adt_cases()


class Given:
    "A vector in PyTorch: its inputs, parameters and network"

    def __init__(self, case, dtype):
        def tensor(a):
            a = torch.from_numpy(np.array(a))
            return a.to(dtype) if a.is_floating_point() else a

        self.kind, self.p = case.network, case.parameters
        self.inputs = {name: tensor(a) for name, a in case.inputs.items()}
        self.weights = {name: tensor(a) for name, a in case.weights.items()}
        for name, w in self.weights.items():
            w.requires_grad_(name not in ('mean', 'variance'))

    def part(self, name):
        "The inputs of a part, such as generator, with gradients"
        found = {k.removeprefix(f'{name}.'): a for k, a in self.inputs.items() if k.startswith(f'{name}.')}
        return {k: a.requires_grad_() for k, a in found.items()}

    def logits(self, x):
        w = self.weights
        if self.kind == 'linear':
            return x.flatten(1) @ w['weight'].T + w['bias']
        if self.kind == 'relu':
            return (x.flatten(1) @ w['weight1'].T + w['bias1']).relu() @ w['weight2'].T + w['bias2']
        a = conv2d(x, w['kernel'], padding=1)
        a = batch_norm(a, w['mean'], w['variance'], w['gamma'], w['beta'], training=False, eps=1e-5)
        return a.relu().mean((2, 3)) @ w['weight'].T + w['bias']


def gradients(value, weights, name='gradient'):
    "Names of outputs to gradients"
    moved = {k: w for k, w in weights.items() if w.requires_grad}
    found = torch.autograd.grad(value, list(moved.values()), retain_graph=True, allow_unused=True)
    found = (torch.zeros_like(w) if g is None else g for g, w in zip(found, moved.values(), strict=True))
    return {f'{name}.{k}': g for k, g in zip(moved, found, strict=True)}


def image_gradient(given, x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(cross_entropy(given.logits(x), given.inputs['y'], reduction='sum'), x)[0]


def trades_loss(given):
    z, z_adv = given.logits(given.inputs['x']), given.logits(given.inputs['x_adv'])
    log_p, log_q = log_softmax(z, 1), log_softmax(z_adv, 1)
    divergence = kl_div(log_q, log_p, reduction='batchmean', log_target=True)
    loss = cross_entropy(z, given.inputs['y']) + given.p['beta'] * divergence
    return dict(loss=loss, **gradients(loss, given.weights))


def alp_loss(given):
    z, z_adv = given.logits(given.inputs['x']), given.logits(given.inputs['x_adv'])
    y = given.inputs['y']
    loss = (cross_entropy(z, y) + cross_entropy(z_adv, y)) / 2 + given.p['beta'] * mse_loss(z, z_adv)
    return dict(loss=loss, **gradients(loss, given.weights))


def feature_scatter(given):
    x, p = given.inputs['x'], given.p
    moved = (x + p['eps'] * given.inputs['start']).requires_grad_()
    clean = given.logits(x).detach()
    cost = 1 - torch.cosine_similarity(clean[:, None], given.logits(moved)[None], dim=2)
    u, v, log_n = torch.zeros_like(cost[0]), torch.zeros_like(cost[0]), math.log(len(x))
    for _ in range(p['rounds']):
        before = u
        u = -p['reg'] * (log_n + torch.logsumexp((v[None] - cost) / p['reg'], 1))
        v = -p['reg'] * (log_n + torch.logsumexp((u[:, None] - cost) / p['reg'], 0))
        if (u - before).abs().sum() < p['tol']:
            break
    plan = torch.exp((u[:, None] + v[None] - cost) / p['reg'])
    g = torch.autograd.grad((plan * cost).sum(), moved)[0]
    x_adv = (moved + p['eps'] * g.sign()).clamp(x - p['eps'], x + p['eps']).clamp(0, 1)
    return dict(x_adv=x_adv, plan=plan, cost=cost, signs=g.sign())


def tanh_gaussian(given):
    i, eps = given.inputs, given.p['eps']
    base = torch.distributions.Normal(i['mu'], softplus(i['rho']))
    scale = torch.distributions.AffineTransform(0, eps)
    squash = torch.distributions.TanhTransform()
    s = base.loc + base.scale * i['noise']
    log_p = base.log_prob(s) - squash.log_abs_det_jacobian(s, s.tanh()) - math.log(eps)
    at = base.loc + base.scale * i['nodes'].view(-1, 1, 1, 1, 1)
    slopes = torch.einsum('q,qnchw->nchw', i['weights'], squash.log_abs_det_jacobian(at, at.tanh()))
    entropy = base.entropy() + slopes + math.log(eps)
    return dict(delta=scale(s.tanh()), log_density=log_p.mean((1, 2, 3)), entropy=entropy.mean((1, 2, 3)))


def surprise(noise, sigma, t):
    return (noise**2 / 2 + torch.log(sigma + 1e-8) + torch.log(1 - t**2 + 1e-8)).mean((1, 2, 3))


def adt_exp(given):
    "With the optimiser of the released code: Adam with betas (0, 0), and gradients that are zeroed or not"
    i, p = given.inputs, given.p
    mu, rho = torch.zeros_like(i['x']), torch.full_like(i['x'], p['rho'])
    law = [mu.requires_grad_(), rho.requires_grad_()]
    adam = torch.optim.Adam(law, lr=p['step_size'], betas=(0.0, 0.0), eps=p['tol'])
    mus, rhos, objectives = [mu.detach().clone()], [rho.detach().clone()], []
    for draws in i['noise']:
        value = 0
        for noise in draws:
            sigma = softplus(rho)
            t = torch.tanh(mu + sigma * noise)
            images = (i['x'] + p['eps'] * t).clamp(0, 1)
            ce = cross_entropy(given.logits(images), i['y'], reduction='none')
            value = value + ce + p['lbd'] * surprise(noise, sigma, t)
        if not p['momentum']:
            adam.zero_grad()
        (-value.sum()).backward()
        adam.step()
        mus.append(mu.detach().clone())
        rhos.append(rho.detach().clone())
        objectives.append(value)
    x_adv = (i['x'] + p['eps'] * torch.tanh(mu + softplus(rho) * i['last_noise'])).clamp(0, 1)
    iterates = dict(mu_iterates=torch.stack(mus), rho_iterates=torch.stack(rhos))
    return dict(mu=mu, rho=rho, x_adv=x_adv, objective=torch.stack(objectives), **iterates)


def seen(given):
    x, p = given.inputs['x'], given.p
    first = image_gradient(given, x)
    second = image_gradient(given, (x + p['eps'] * first.sign()).clamp(0, 1))
    return torch.cat([x, p['gradient_scale'] * first, p['gradient_scale'] * second], 1)


def one_by_one(weight, bias, a):
    return conv2d(a, weight[:, :, None, None], bias)


def amortised(given, t, entropy, objective_of, parts):
    x_adv = (given.inputs['x'] + given.p['eps'] * t).clamp(0, 1)
    y = given.inputs['y']
    loss = cross_entropy(given.logits(x_adv), y)
    found = gradients(cross_entropy(given.logits(x_adv.detach()), y), given.weights, 'gradient.network')
    for name, weights in parts.items():
        found |= gradients(objective_of(loss, entropy), weights, f'gradient.{name}')
    return dict(loss=loss, entropy=entropy, x_adv=x_adv, **found)


def adt_exp_am(given):
    generator, noise = given.part('generator'), given.inputs['noise']
    mu, rho = one_by_one(generator['weight'], generator['bias'], seen(given)).chunk(2, 1)
    t = torch.tanh(mu + softplus(rho) * noise)
    entropy = surprise(noise, softplus(rho), t).mean()
    return amortised(given, t, entropy, lambda a, h: a + given.p['lbd'] * h, dict(generator=generator))


def adt_imp_am(given):
    generator, encoder = given.part('generator'), given.part('encoder')
    x, z, p = given.inputs['x'], given.inputs['z'], given.p
    plane = (z @ generator['z_weight'].T + generator['z_bias']).view(len(x), 1, *x.shape[2:])
    t = torch.tanh(one_by_one(generator['weight'], generator['bias'], torch.cat([seen(given), plane], 1)))
    mean, raw = (t.flatten(1) @ encoder['weight'].T + encoder['bias']).chunk(2, 1)
    entropy = torch.distributions.Normal(mean, softplus(raw).sqrt()).log_prob(z).mean()
    parts = dict(generator=generator, encoder=encoder)
    return amortised(given, t, entropy, lambda a, h: a + p['lbd'] * h.clamp(max=-p['u_max']), parts)


FUNCTIONS = {
    f.__name__: f
    for f in (trades_loss, alp_loss, feature_scatter, tanh_gaussian, adt_exp, adt_exp_am, adt_imp_am)
}


def gaps(case, dtype, function):
    "Outputs to their gaps, in units of the tolerance"
    found = FUNCTIONS[function](Given(case, dtype))
    at = 0 if dtype == torch.float64 else 1
    return {
        k: relative_gap(a.detach().double().numpy(), case.outputs[k]) / tolerance_of(case, k)[at]
        for k, a in found.items()
    }


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_autograd_agrees(cases, dtype):
    "All outputs, in double precision and in single: no sign and no maximum is decided by rounding"
    worst = {}
    for case in cases:
        found = gaps(case, dtype, case.function)
        assert set(case.required) <= set(found)
        assert set(case.outputs) - set(found) <= {'losses'}
        worst[case.name] = max(found.items(), key=lambda item: item[1])
    assert len(worst) == 19
    too_far = {name: gap for name, gap in worst.items() if not gap[1] < 0.5}
    assert not too_far


def test_a_loss_is_the_mean_of_the_losses(cases):
    "With one image less the mean is another one, and the losses of the others stay"
    for case in cases:
        if 'losses' in case.outputs:
            assert math.isclose(case.outputs['losses'].mean(), case.outputs['loss'], rel_tol=1e-14)
            assert np.unique(case.outputs['losses']).size == len(case.inputs['x'])


def test_another_equation_is_far_away(cases):
    "The negative control: ALP’s loss is not that of TRADES, nor IMP-AM’s free entropy the one that is held"
    case = next(c for c in cases if c.function == 'alp_loss')
    assert gaps(case, torch.float64, 'trades_loss')['loss'] > 1e5
    held = next(c for c in cases if c.name.endswith('-hinge'))
    given = Given(held, torch.float64)
    given.p = given.p | dict(u_max=-50.0)
    free = adt_imp_am(given)
    assert float(free['loss'].detach()) == pytest.approx(float(held.outputs['loss']), abs=1e-12)
    assert (held.outputs['gradient.encoder.weight'] == 0).all()
    assert float(free['gradient.encoder.weight'].abs().max()) > 1e-3


def test_what_a_vector_holds(cases):
    "Images in [0, 1], exact zeros and ones among them, H ≠ W, and the deviations that the contract names"
    told = {}
    for case in cases:
        told.setdefault(case.function, set()).update(case.deviations)
        assert case.network in ('linear', 'relu', 'conv', None)
        assert all(reason and not reason.endswith('.') for reason, _ in case.deviations.values())
        assert all(np.isfinite(a).all() for a in [*case.inputs.values(), *case.outputs.values()])
        if case.network:
            x = case.inputs['x']
            assert x.min() == 0 and x.max() == 1
            assert x.shape[2] != x.shape[3]
    assert set(told) == set(NEEDED)
    assert not {
        function: needed - told[function] for function, needed in NEEDED.items() if needed - told[function]
    }


def test_files_hold_what_was_computed(cases, tmp_path):
    "safetensors writes the memory of an array: a view of a larger one would come back as something else"
    for case in cases:
        assert compare_case(load_case(save_case(case, tmp_path)), case) == []
        held = [case.outputs, *(outputs for _, outputs in case.deviations.values())]
        assert all(a.flags.c_contiguous for outputs in held for a in outputs.values())


def test_a_deviation_that_needs_no_other_output_has_none(cases):
    "The runner matches a deviation in all of its outputs, so they are few; a right loss needs its gradient"
    for case in cases:
        for outputs in (found for _, found in case.deviations.values()):
            assert set(case.required) <= set(outputs)
            gaps = [relative_gap(outputs[k], case.outputs[k]) / tolerance_of(case, k)[1] for k in outputs]
            assert max(gaps) > 100
    held = next(c for c in cases if c.name == 'trades_loss-relu').deviations
    assert set(held['batch_sum'][1]) == {'loss'}
    assert set(held['clean_held_fixed'][1]) > {'loss', 'gradient.weight1'}


def test_one_reason_for_one_id(cases):
    "An id means the same in all vectors of a function"
    reasons = {}
    for case in cases:
        for name, (reason, _) in case.deviations.items():
            reasons.setdefault((case.function, name), set()).add(reason)
    assert all(len(said) == 1 for said in reasons.values())


def test_momentum_and_signs_move(cases):
    "Signs change between iterates, and a larger tolerance makes shorter steps"
    for case in cases:
        if case.function == 'adt_exp':
            steps = np.diff(case.outputs['mu_iterates'], axis=0)
            assert (np.sign(steps[1:]) != np.sign(steps[:-1])).any(), case.name
            shortest = np.abs(steps).min() / case.parameters['step_size']
            assert shortest < 0.9 if case.name.endswith('large-tol') else shortest > 0.99
