"""The authors' loops, written by hand from their equations and from what their released code does.

No line of theirs is here. Losses are means over the batch, gradients of a fit are never set to zero, and the
classifier's weights get gradients that nobody uses. `EXPLAINED` says where this is not what the vectors ask for.
"""

import math

import torch
import torch.nn.functional as F
from torch_networks import build, weight_gradients

PRECISION = 'float64'
NOT_OFFERED = dict(square='the released code has no Square')
_NOT_CLIPPED = 'The released attacks take their first gradient at a start that is not clipped to [0, 1].'
EXPLAINED = dict(
    pgd=_NOT_CLIPPED,
    mim=_NOT_CLIPPED,
    cw=_NOT_CLIPPED,
    trades_attack=_NOT_CLIPPED,
    feature_attack='The released FeaAttack tests an iterate before each step, so never the last one.',
    feature_scatter='Its authors add 1e-6 to each sum inside the logarithm of their Sinkhorn iteration.',
    adt_exp='The released loop never sets the gradients of μ and ρ to zero; the paper does not say whether it should.',
)


def VERSIONS():
    "Of what computes"
    return dict(torch=torch.__version__)


def tensors(case):
    "The inputs of a case"
    return {name: torch.as_tensor(value) for name, value in case.inputs.items()}


def arrays(**outputs):
    "Tensors as arrays"
    return {name: value.detach().numpy() for name, value in outputs.items()}


def gradient_of_mean(value, x):
    "The gradient of a mean over the batch, as `backward` leaves it"
    x = x.detach().requires_grad_()
    value(x).backward()
    return x.grad


def into_ball(x_adv, x, eps):
    "Clipped to the ball around x, then to [0, 1]"
    return torch.max(torch.min(x_adv, x + eps), x - eps).clamp(0, 1)


def forward(case):
    t, model = tensors(case), build(case)
    logits = model(t['x'])
    loss = F.cross_entropy(logits, t['y'], reduction='none')
    found = len(t['x']) * gradient_of_mean(lambda x: F.cross_entropy(model(x), t['y']), t['x'])
    return arrays(logits=logits, loss=loss, gradient=found)


# the white-box attacks


def fgsm(case):
    t, eps, model = tensors(case), case.parameters['eps'], build(case)
    found = gradient_of_mean(lambda x: F.cross_entropy(model(x), t['y']), t['x'])
    x_adv = into_ball(t['x'] + eps * found.sign(), t['x'], eps)
    return arrays(x_adv=x_adv, gradient=len(t['x']) * found)


def climbed(case, loss, accumulate=lambda total, found: found):
    "PGD on a mean loss; the start is not clipped"
    t, p, model = tensors(case), case.parameters, build(case)
    x, y, total = t['x'], t['y'], torch.zeros_like(t['x'])
    clean = model(x).detach()
    iterates, signs = [x + p['eps'] * t.get('start', torch.zeros_like(x))], []
    for _ in range(p['steps']):
        found = gradient_of_mean(lambda at: loss(model(at), y, clean), iterates[-1])
        total = accumulate(total, found)
        signs.append(total.sign())
        iterates.append(into_ball(iterates[-1].detach() + p['step_size'] * signs[-1], x, p['eps']))
    return arrays(x_adv=iterates[-1], iterates=torch.stack(iterates), signs=torch.stack(signs))


def pgd(case):
    return climbed(case, lambda z, y, clean: F.cross_entropy(z, y))


def mim(case):
    def accumulate(total, found):
        return case.parameters['decay'] * total + found / found.abs().mean((1, 2, 3), keepdim=True)

    return climbed(case, lambda z, y, clean: F.cross_entropy(z, y), accumulate)


def cw(case):
    def loss(z, y, clean):
        chosen = F.one_hot(y, z.shape[1]).to(z)
        label, other = (chosen * z).sum(1), ((1 - chosen) * z - chosen * 10000).max(1)[0]
        return -(label - other + case.parameters['kappa']).clamp(min=0).mean()

    return climbed(case, loss)


def trades_attack(case):
    def loss(z, y, clean):
        return F.kl_div(z.log_softmax(1), clean.softmax(1), reduction='sum')

    return climbed(case, loss)


def feature_attack(case):
    "An image is misclassified if a copy of it is at an iterate that is tested"
    t, p, model = tensors(case), case.parameters, build(case)
    x, y, wrong = t['x'], t['y'], torch.zeros(len(t['x']), dtype=torch.bool)
    iterates = []
    for start, target in zip(t['start'].unbind(1), t['targets'].unbind(1), strict=True):
        goal = model.features(target).detach()
        path = [(x + p['eps'] * start).clamp(0, 1)]
        for _ in range(p['steps']):
            wrong |= model(path[-1]).argmax(1) != y
            distance = gradient_of_mean(
                lambda at, goal=goal: (1 - F.cosine_similarity(model.features(at), goal)).mean(), path[-1]
            )
            path.append(into_ball(path[-1].detach() - p['step_size'] * distance.sign(), x, p['eps']))
        iterates.append(torch.stack(path))
    return arrays(misclassified=wrong, iterates=torch.stack(iterates, 2))


def spsa_gradient(case):
    "The loss is the margin with 50 added, and descended"
    t, sigma, model = tensors(case), case.parameters['sigma'], build(case)

    def loss(x):
        z = model(x)
        others = z.scatter(1, t['y'][:, None], -math.inf).amax(1)
        return z.gather(1, t['y'][:, None])[:, 0] - others + 50

    total = 0
    for direction in t['directions']:
        difference = loss(t['x'] + sigma * direction) - loss(t['x'] - sigma * direction)
        total = total - difference.view(-1, 1, 1, 1) * direction / (2 * sigma)
    return arrays(gradient=total / len(t['directions']))


# the losses of training


def outer_loss(case, loss):
    t, model = tensors(case), build(case)
    value = loss(model(t['x']), model(t['x_adv']), t['y'])
    value.backward()
    found = {f'gradient.{name}': gradient for name, gradient in weight_gradients(model).items()}
    return arrays(loss=value) | found


def trades_loss(case):
    def loss(clean, adv, y):
        divergence = F.kl_div(adv.log_softmax(1), clean.softmax(1), reduction='sum') / len(y)
        return F.cross_entropy(clean, y) + case.parameters['beta'] * divergence

    return outer_loss(case, loss)


def alp_loss(case):
    def loss(clean, adv, y):
        half = 0.5 * F.cross_entropy(clean, y) + 0.5 * F.cross_entropy(adv, y)
        return half + case.parameters['beta'] * F.mse_loss(clean, adv)

    return outer_loss(case, loss)


def feature_scatter(case):
    t, p, model = tensors(case), case.parameters, build(case)
    x, clean, seen = t['x'], model(t['x']).detach(), {}
    n = len(x)

    def transport(at):
        similarity = F.normalize(clean) @ F.normalize(model(at)).T
        cost = (1 - similarity).clamp(min=0)
        u, v = torch.zeros(n, 1).to(x), torch.zeros(1, n).to(x)
        for _ in range(p['rounds']):
            before = u
            sums = ((u + v - cost) / p['reg']).exp().sum(1, keepdim=True)
            u = u - p['reg'] * (math.log(n) + (sums + 1e-6).log())
            sums = ((u + v - cost) / p['reg']).exp().sum(0, keepdim=True)
            v = v - p['reg'] * (math.log(n) + (sums + 1e-6).log())
            if (u - before).abs().sum() < p['tol']:
                break
        seen.update(cost=cost, plan=((u + v - cost) / p['reg']).exp())
        return (seen['plan'] * cost).sum()

    start = x + p['eps'] * t['start']
    signs = gradient_of_mean(transport, start).sign()
    return arrays(x_adv=into_ball(start.detach() + p['eps'] * signs, x, p['eps']), signs=signs, **seen)


# adversarial distributional training


def squashed(mu, rho, noise):
    "tanh of a Gaussian, and for each entry the entropy without its constants"
    sigma = F.softplus(rho)
    t = torch.tanh(mu + sigma * noise)
    return t, noise**2 / 2 + (sigma + 1e-8).log() + (1 - t**2 + 1e-8).log()


def tanh_gaussian(case):
    t, eps = tensors(case), case.parameters['eps']
    constants = 0.5 * math.log(2 * math.pi) + math.log(eps)
    delta, h = squashed(t['mu'], t['rho'], t['noise'])
    nodes = [squashed(t['mu'], t['rho'], torch.full_like(t['mu'], node))[1] for node in t['nodes'].tolist()]
    entropy = (t['weights'] @ torch.stack(nodes).mean((2, 3, 4))) + constants
    return arrays(delta=eps * delta, log_density=-h.mean((1, 2, 3)) - constants, entropy=entropy)


def adt_exp(case):
    "Adam without memory on the mean over the batch, whose 1e-8 is `tol` of one image"
    t, p, model = tensors(case), case.parameters, build(case)
    x, y = t['x'], t['y']
    mu = torch.zeros_like(x, requires_grad=True)
    rho = torch.full_like(x, p['rho'], requires_grad=True)
    adam = torch.optim.Adam([mu, rho], lr=p['step_size'], betas=(0.0, 0.0), eps=p['tol'] / len(x))
    path = [(mu.detach().clone(), rho.detach().clone())]
    for draws in t['noise']:
        for noise in draws:
            delta, h = squashed(mu, rho, noise)
            adv_loss = F.cross_entropy(model((x + p['eps'] * delta).clamp(0, 1)), y)
            (-adv_loss - p['lbd'] * h.mean()).backward()
        adam.step()
        path.append((mu.detach().clone(), rho.detach().clone()))
    x_adv = (x + p['eps'] * squashed(mu, rho, t['last_noise'])[0]).clamp(0, 1)
    mu_iterates, rho_iterates = map(torch.stack, zip(*path, strict=True))
    return arrays(mu=mu, rho=rho, x_adv=x_adv, mu_iterates=mu_iterates, rho_iterates=rho_iterates)


class Reversed(torch.autograd.Function):
    "The same values; the gradient changes its sign on its way back"

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -grad


def generator_input(model, x, y, eps, scale):
    "The image and two gradients of a batch's mean loss, as if the batch had 1 / scale images"

    def gradient(at):
        return len(x) * scale * gradient_of_mean(lambda images: F.cross_entropy(model(images), y), at)

    first = gradient(x)
    second = gradient((x + eps * first.sign()).clamp(0, 1))
    return torch.cat([x.detach(), first, second], 1)


def pixel_by_pixel(weight, bias, features):
    return torch.einsum('oc,nchw->nohw', weight, features) + bias.view(1, -1, 1, 1)


def joint_step(case, model, weights, delta, entropy, counted):
    "One backward pass: the classifier's gradients descend, those of the other weights are turned to ascend"
    t = tensors(case)
    x_adv = (t['x'] + Reversed.apply(delta)).clamp(0, 1)
    model.zero_grad()
    loss = F.cross_entropy(model(x_adv), t['y'])
    (loss - case.parameters['lbd'] * counted).backward()
    found = {f'gradient.network.{name}': value for name, value in weight_gradients(model).items()}
    for name, weight in weights.items():
        found[f'gradient.{name}'] = -weight.grad.numpy()
    return arrays(loss=loss, entropy=entropy, x_adv=x_adv) | found


def trained(case):
    "The weights of generator and encoder"
    parts = {
        name: value for name, value in tensors(case).items() if name.startswith(('generator.', 'encoder.'))
    }
    return {name: value.clone().requires_grad_() for name, value in parts.items()}


def adt_exp_am(case):
    t, p, model, w = tensors(case), case.parameters, build(case), trained(case)
    features = generator_input(model, t['x'], t['y'], p['eps'], p['gradient_scale'])
    mu, rho = pixel_by_pixel(w['generator.weight'], w['generator.bias'], features).chunk(2, 1)
    delta, h = squashed(mu, rho, t['noise'])
    return joint_step(case, model, w, p['eps'] * delta, h.mean(), h.mean())


def adt_imp_am(case):
    t, p, model, w = tensors(case), case.parameters, build(case), trained(case)
    x, z = t['x'], t['z']
    features = generator_input(model, x, t['y'], p['eps'], p['gradient_scale'])
    channel = z @ w['generator.z_weight'].T + w['generator.z_bias']
    features = torch.cat([features, channel.view(len(x), 1, *x.shape[2:])], 1)
    delta = torch.tanh(pixel_by_pixel(w['generator.weight'], w['generator.bias'], features))
    mean, variance = (delta.flatten(1) @ w['encoder.weight'].T + w['encoder.bias']).chunk(2, 1)
    variance = F.softplus(variance)
    exponent = -((z - mean) ** 2) / (2 * variance + 1e-8)
    u = -(exponent - 0.5 * (2 * math.pi * variance + 1e-8).log()).mean()
    return joint_step(case, model, w, p['eps'] * delta, -u, -(u - p['u_max']).clamp(min=0))
