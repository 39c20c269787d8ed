"""An adapter for vectors/run.py: the specification in plain PyTorch. vector_faults.py puts faults into it."""

import math

import torch
import torch.nn.functional as F
from torch_networks import build, weight_gradients

PRECISION = 'float64'
DTYPE = getattr(torch, PRECISION)


def opened(case):
    "Network, inputs and parameters"
    t = {name: torch.as_tensor(value) for name, value in case.inputs.items()}
    t = {name: a.to(DTYPE) if a.is_floating_point() else a for name, a in t.items()}
    model = build(case, DTYPE) if case.network else None
    return model, t, case.parameters


def arrays(**outputs):
    return {name: value.detach().numpy() for name, value in outputs.items()}


def radius(p):
    return p['eps']


def cross_entropy(z, y):
    return F.cross_entropy(z, y, reduction='none')


def margin(z, y):
    others = z.scatter(1, y[:, None], -math.inf)
    return z.gather(1, y[:, None])[:, 0] - others.amax(1)


def divergence(clean, z):
    log_p, log_q = clean.log_softmax(1), z.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def slope(value, x):
    "The gradient of the sum of (N,) values at x"
    x = x.detach().requires_grad_()
    return torch.autograd.grad(value(x).sum(), x)[0]


def sign(a):
    return a.sign()


def ball(x_adv, x, eps):
    in_ball = x_adv.clamp(x - eps, x + eps)
    return in_ball.clamp(0, 1)


# forward, and attacks along a gradient


def forward(case):
    model, t, p = opened(case)
    z = model(t['x'])
    gradient = slope(lambda x: cross_entropy(model(x), t['y']), t['x'])
    outputs = dict(logits=z, loss=cross_entropy(z, t['y']), gradient=gradient)
    if case.network != 'linear':
        outputs['features'] = model.features(t['x'])
    return arrays(**outputs)


def fgsm(case):
    model, t, p = opened(case)
    x, eps = t['x'], radius(p)
    gradient = slope(lambda at: cross_entropy(model(at), t['y']), x)
    loss = cross_entropy(model(x), t['y'])
    return arrays(x_adv=ball(x + eps * sign(gradient), x, eps), loss=loss, gradient=gradient)


def climb(case, value, accumulate=lambda m, g: g):
    "The last of T steps, and all of them"
    model, t, p = opened(case)
    x, y, eps, m = t['x'], t['y'], radius(p), torch.zeros_like(t['x'])
    at = x + eps * t.get('start', torch.zeros_like(x))
    if p['clip_start']:
        at = at.clamp(0, 1)
    iterates, losses, signs = [at], [], []
    for _ in range(p['steps']):
        losses.append(value(model, at, x, y))
        m = accumulate(m, slope(lambda at: value(model, at, x, y), at))
        signs.append(sign(m))
        at = ball(at + p['step_size'] * signs[-1], x, eps)
        iterates.append(at)
    result = iterates[-1]
    return arrays(
        x_adv=result, iterates=torch.stack(iterates), losses=torch.stack(losses), signs=torch.stack(signs)
    )


def pgd(case):
    return climb(case, lambda model, at, x, y: cross_entropy(model(at), y))


def mim(case):
    decay = case.parameters['decay']

    def accumulate(m, g):
        size = g.abs().mean((1, 2, 3), keepdim=True)
        return decay * m + g / size

    return climb(case, lambda model, at, x, y: cross_entropy(model(at), y), accumulate)


def cw(case):
    kappa = case.parameters['kappa']
    return climb(case, lambda model, at, x, y: -(margin(model(at), y) + kappa).clamp(min=0))


def trades_attack(case):
    return climb(case, lambda model, at, x, y: divergence(model(x).detach(), model(at)))


def towards(model, p, x, y, target, start):
    "Iterates towards one target, cosines, signs, the best iterate, and its margin"
    goal = model.features(target).detach()
    path = [(x + radius(p) * start).clamp(0, 1)]
    cosines, signs = [], []
    for _ in range(p['steps']):
        gradient = slope(lambda at: F.cosine_similarity(model.features(at), goal), path[-1])
        cosines.append(F.cosine_similarity(model.features(path[-1]), goal).detach())
        signs.append(sign(gradient))
        path.append(ball(path[-1] + p['step_size'] * sign(gradient), x, radius(p)))
    tested = path
    margins = torch.stack([margin(model(at), y) for at in tested])
    best = margins.argmin(0)
    images = torch.arange(len(x))
    by_step = torch.stack(path), torch.stack(cosines), torch.stack(signs)
    return *by_step, torch.stack(path)[best, images], margins[best, images]


def feature_attack(case):
    model, t, p = opened(case)
    tried = [
        towards(model, p, t['x'], t['y'], target, start)
        for target, start in zip(t['targets'].unbind(1), t['start'].unbind(1), strict=True)
    ]
    iterates, losses, signs, results, margins = map(torch.stack, zip(*tried, strict=True))
    chosen = []
    for of_image in margins.T.tolist():
        first_wrong = [s for s, value in enumerate(of_image) if value < 0][:1]
        chosen += first_wrong or [of_image.index(min(of_image))]
    images = torch.arange(len(chosen))
    misclassified = margins[chosen, images] < 0
    x_adv = results[chosen, images]
    by_step = dict(iterates=iterates, losses=losses, signs=signs)
    by_step = {name: a.movedim(0, 2) for name, a in by_step.items()}
    return arrays(misclassified=misclassified, x_adv=x_adv, **by_step)


# attacks without a gradient


def spsa_gradient(case):
    model, t, p = opened(case)
    sigma, total = p['sigma'], 0
    for d in t['directions']:
        up, down = (-margin(model(t['x'] + side * sigma * d), t['y']) for side in (1, -1))
        total = total + ((up - down) / (2 * sigma)).view(-1, 1, 1, 1) * d
    return arrays(gradient=total / len(t['directions']))


def candidates(x, t, i, eps, best):
    "The points that are tried for image i, one after the other; `best` has the best one so far"
    yield x + eps * t['stripes'][i][:, None]
    for patch, signs in zip(t['patches'][:, i].tolist(), t['patch_signs'][:, i], strict=True):
        top, left, height, width = patch
        rows, columns = slice(top, top + height), slice(left, left + width)
        tried = best[0].clone()
        tried[:, rows, columns] = x[:, rows, columns] + eps * signs[:, None, None]
        yield tried


def square(case):
    model, t, p = opened(case)
    results, queries = [], []
    for i, x in enumerate(t['x']):
        y, asked = t['y'][i : i + 1], 1
        best = [x, margin(model(x[None]), y).item()]
        for tried in candidates(x, t, i, radius(p), best):
            if best[1] < 0:
                break
            tried = tried.clamp(0, 1)
            found = margin(model(tried[None]), y).item()
            asked += 1
            if found < best[1]:
                best[:] = tried, found
        results.append(best[0])
        queries.append(asked)
    return arrays(x_adv=torch.stack(results), queries=torch.tensor(queries))


# losses of training


def outer_loss(model, values):
    values.mean().backward()
    found = {f'gradient.{name}': value for name, value in weight_gradients(model).items()}
    return arrays(loss=values.mean(), losses=values) | found


def trades_loss(case):
    model, t, p = opened(case)
    clean, adversarial = model(t['x']), model(t['x_adv'])
    pairing = divergence(clean, adversarial)
    return outer_loss(model, cross_entropy(clean, t['y']) + p['beta'] * pairing)


def alp_loss(case):
    model, t, p = opened(case)
    clean, adversarial = model(t['x']), model(t['x_adv'])
    halves = 0.5 * cross_entropy(clean, t['y']) + 0.5 * cross_entropy(adversarial, t['y'])
    squares = (clean - adversarial) ** 2
    return outer_loss(model, halves + p['beta'] * squares.mean(1))


def plan_for(cost, p):
    "Sinkhorn's iteration"
    n = len(cost)
    u, v = torch.zeros(n).to(cost), torch.zeros(n).to(cost)
    for _ in range(p['rounds']):
        before = u
        u = -p['reg'] * (math.log(n) + ((v[None] - cost) / p['reg']).logsumexp(1))
        v = -p['reg'] * (math.log(n) + ((u[:, None] - cost) / p['reg']).logsumexp(0))
        if (u - before).abs().sum() < p['tol']:
            break
    return ((u[:, None] + v[None] - cost) / p['reg']).exp()


def feature_scatter(case):
    model, t, p = opened(case)
    x, eps, seen = t['x'], radius(p), {}
    clean = F.normalize(model(x)).detach()
    start = x + eps * t['start']

    def transport(at):
        cost = (1 - clean @ F.normalize(model(at)).T).clamp(min=0)
        plan = plan_for(cost, p)
        seen.update(cost=cost, plan=plan)
        return plan * cost

    signs = sign(slope(transport, start))
    return arrays(x_adv=ball(start + eps * signs, x, eps), signs=signs, **seen)


# adversarial distributional training


def spread(rho):
    return F.softplus(rho)


def squashed(mu, rho, noise):
    "tanh(μ + σ · noise), and what is averaged to the entropy h"
    sigma = spread(rho)
    t = torch.tanh(mu + sigma * noise)
    return t, noise**2 / 2 + (sigma + 1e-8).log() + (1 - t**2 + 1e-8).log()


def per_image(a):
    return a.mean((1, 2, 3))


def log_density(mu, rho, noise, eps):
    "Of one entry: log p(δ) at δ = ε tanh(μ + σ · noise)"
    u = mu + F.softplus(rho) * noise
    log_slope = math.log(eps) + 2 * (math.log(2) - u - F.softplus(-2 * u))
    return -(noise**2) / 2 - F.softplus(rho).log() - 0.5 * math.log(2 * math.pi) - log_slope


def tanh_gaussian(case):
    _, t, p = opened(case)
    mu, rho = t['mu'], t['rho']
    delta = p['eps'] * torch.tanh(mu + F.softplus(rho) * t['noise'])
    density = log_density(mu, rho, t['noise'], p['eps'])
    at_nodes = [-per_image(log_density(mu, rho, node, p['eps'])) for node in t['nodes']]
    return arrays(delta=delta, log_density=per_image(density), entropy=t['weights'] @ torch.stack(at_nodes))


def adt_exp(case):
    model, t, p = opened(case)
    x, y = t['x'], t['y']
    mu, rho = torch.zeros_like(x), torch.full_like(x, p['rho'])
    total = [torch.zeros_like(x), torch.zeros_like(x)]
    path, objectives = [(mu, rho)], []
    for draws in t['noise']:
        mu, rho = mu.detach().requires_grad_(), rho.detach().requires_grad_()
        objective = 0
        for noise in draws:
            delta, h = squashed(mu, rho, noise)
            at = (x + p['eps'] * delta).clamp(0, 1)
            objective = objective + cross_entropy(model(at), y) + p['lbd'] * per_image(h)
        objectives.append(objective)
        found = torch.autograd.grad(objective.sum(), (mu, rho))
        total = [p['momentum'] * old + new for old, new in zip(total, found, strict=True)]
        steps = [g / (g.abs() + p['tol']) for g in total]
        mu, rho = mu + p['step_size'] * steps[0], rho + p['step_size'] * steps[1]
        path.append((mu, rho))
    x_adv = (x + p['eps'] * squashed(mu, rho, t['last_noise'])[0]).clamp(0, 1)
    mu_iterates, rho_iterates = map(torch.stack, zip(*path, strict=True))
    return arrays(
        mu=mu,
        rho=rho,
        x_adv=x_adv,
        mu_iterates=mu_iterates,
        rho_iterates=rho_iterates,
        objective=torch.stack(objectives),
    )


def generator_input(model, t, p):
    x, y = t['x'], t['y']

    def gradient(at):
        return slope(lambda at: cross_entropy(model(at), y), at)

    first = gradient(x)
    point = (x + p['eps'] * first.sign()).clamp(0, 1)
    return torch.cat([x, p['gradient_scale'] * first, p['gradient_scale'] * gradient(point)], 1)


def pixel_by_pixel(w, features):
    maps = torch.einsum('oc,nchw->nohw', w['generator.weight'], features)
    return maps + w['generator.bias'][:, None, None]


def minimax(model, t, p, w, delta, h, counted):
    "Loss and entropy; the network's gradients to descend, those of the weights w to ascend"
    x_adv = (t['x'] + delta).clamp(0, 1)
    entropy = h.mean()
    loss = cross_entropy(model(x_adv), t['y']).mean()
    objective = loss + p['lbd'] * counted(entropy)
    climbed = torch.autograd.grad(objective, list(w.values()), retain_graph=True)
    loss.backward()
    found = {f'gradient.network.{name}': value for name, value in weight_gradients(model).items()}
    found |= {f'gradient.{name}': value.numpy() for name, value in zip(w, climbed, strict=True)}
    return arrays(loss=loss, entropy=entropy, x_adv=x_adv) | found


def trained(t):
    return {name: value.clone().requires_grad_() for name, value in t.items() if '.' in name}


def adt_exp_am(case):
    model, t, p = opened(case)
    w = trained(t)
    out = pixel_by_pixel(w, generator_input(model, t, p))
    mu, rho = out.chunk(2, 1)
    delta, h = squashed(mu, rho, t['noise'])
    return minimax(model, t, p, w, p['eps'] * delta, per_image(h), lambda entropy: entropy)


def adt_imp_am(case):
    model, t, p = opened(case)
    w, z = trained(t), t['z']
    channel = (z @ w['generator.z_weight'].T + w['generator.z_bias']).view(len(z), 1, *t['x'].shape[2:])
    features = torch.cat([generator_input(model, t, p), channel], 1)
    delta = torch.tanh(pixel_by_pixel(w, features))
    mean, variance = (delta.flatten(1) @ w['encoder.weight'].T + w['encoder.bias']).chunk(2, 1)
    variance = F.softplus(variance)
    log_q = -0.5 * (math.log(2 * math.pi) + variance.log() + (z - mean) ** 2 / variance)
    hinge = -p['u_max']
    return minimax(model, t, p, w, p['eps'] * delta, log_q.mean(1), lambda h: h.clamp(max=hinge))
