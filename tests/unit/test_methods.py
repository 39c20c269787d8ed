"Every training method against its equations, written out plainly: the same noise, the same gradients"

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import refusal

from adt_repro.base.device import eval_mode
from adt_repro.base.noise import example_noise
from adt_repro.methods.adversaries import default_draws, exp_adversary
from adt_repro.methods.objective import adt_loss
from adt_repro.methods.table import METHODS, OPTIONS, make_method, method_options
from adt_repro.models.classifiers import build_model
from adt_repro.models.flops import count_passes
from adt_repro.runs.config import RULES

# 64 is the paper's batch; the scale of the generator's input and Adam's 1e-8 belong to it
EPS, SHAPE, N = 0.1, (1, 8, 8), 64

# The equations. Each takes the network in training mode and gives what θ descends; of the amortised methods
# also what φ descends.


def unit(x):
    return torch.empty_like(x).uniform_(-1, 1)


def ce(net, x, y):
    return F.cross_entropy(net(x), y)


def kl(p, q):
    "Of logits q from logits p"
    return (p.softmax(1) * (p.softmax(1).log() - q.softmax(1).log())).sum(1).mean()


def ascend(value, x, x_adv, steps, step):
    "Textbook PGD: the value is a mean over the batch"
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (g,) = torch.autograd.grad(value(x_adv), x_adv)
        x_adv = torch.min(torch.max(x_adv.detach() + step * g.sign(), x - EPS), x + EPS).clamp(0, 1)
    return x_adv


def pgd7(net, x, y):
    net.eval()
    x_adv = ascend(lambda at: ce(net, at, y), x, (x + EPS * unit(x)).clamp(0, 1), 7, EPS / 4)
    net.train()
    return x_adv


def standard(net, x, y):
    return ce(net, x, y)


def at_fgsm(net, x, y, target='least_likely'):
    net.eval()
    at = x.clone().requires_grad_()
    logits = net(at)
    least = target == 'least_likely'
    (g,) = torch.autograd.grad(F.cross_entropy(logits, logits.argmin(1) if least else y), at)
    x_adv = (x - EPS * g.sign() if least else x + EPS * g.sign()).clamp(0, 1)
    net.train()
    return 0.5 * (ce(net, x, y) + ce(net, x_adv, y))


def rs_fgsm(net, x, y):
    net.eval()
    x_adv = ascend(lambda at: ce(net, at, y), x, (x + EPS * unit(x)).clamp(0, 1), 1, 1.25 * EPS)
    net.train()
    return ce(net, x_adv, y)


def at_pgd(net, x, y):
    return ce(net, pgd7(net, x, y), y)


def alp(net, x, y, beta=0.5):
    x_adv = pgd7(net, x, y)
    clean, adv = net(x), net(x_adv)
    return 0.5 * F.cross_entropy(clean, y) + 0.5 * F.cross_entropy(adv, y) + beta * F.mse_loss(clean, adv)


def transport(cost, reg=0.01, rounds=100):
    "Sinkhorn's iteration as Cuturi writes it; exp(-2/0.01) is still a number in double precision"
    n, kernel = len(cost), (-cost / reg).exp()
    u = v = torch.ones_like(cost[0])
    for _ in range(rounds):
        before, u = u, 1 / n / (kernel @ v)
        v = 1 / n / (kernel.T @ u)
        if (reg * u.log() - reg * before.log()).abs().sum() < 0.1:
            break
    return u[:, None] * kernel * v


def feature_scatter(net, x, y, smoothing=0.5, rounds=100, fixed=False):
    net.eval()
    clean = net(x).detach()

    def distance(at):
        cost = (1 - F.cosine_similarity(clean[:, None], net(at)[None], dim=2)).clamp(min=0)
        return (transport(cost.detach() if fixed else cost, rounds=rounds) * cost).sum()

    x_adv = ascend(distance, x, x + EPS * unit(x), 1, EPS)
    net.train()
    target = (1 - smoothing - smoothing / 9) * F.one_hot(y, 10).to(x) + smoothing / 9
    return -(target * net(x_adv).log_softmax(1)).sum(1).mean()


def with_trades(net, x, x_adv, y, beta):
    clean, adv = net(x), net(x_adv)
    return F.cross_entropy(clean, y) + beta * kl(clean, adv), kl(clean, adv)


def trades(net, x, y, beta=6.0):
    net.eval()
    clean = net(x).detach()
    x_adv = ascend(lambda at: kl(clean, net(at)), x, x + 0.001 * torch.randn_like(x), 10, 0.223125 * EPS)
    net.train()
    return with_trades(net, x, x_adv, y, beta)[0]


def noise(net, x, y):
    return ce(net, (x + EPS * unit(x)).clamp(0, 1), y)


def gaussian(mu, rho):
    r, sigma = torch.randn_like(mu), torch.log(1 + torch.exp(rho))
    t = torch.tanh(mu + sigma * r)
    return EPS * t, (r**2 / 2 + torch.log(sigma + 1e-8) + torch.log(1 - t**2 + 1e-8)).mean()


def fitted(net, x, value, inner_momentum, rho, lbd, n_mc, adam_eps):
    "The authors' loop: Adam without memory; gradients that nobody clears are its momentum"
    net.eval()
    params = [torch.zeros_like(x, requires_grad=True), torch.full_like(x, rho, requires_grad=True)]
    adam = torch.optim.Adam(params, lr=0.3, betas=(0.0, 0.0), eps=adam_eps)
    for _ in range(7):
        if inner_momentum == 0:
            adam.zero_grad()
        for _ in range(n_mc):
            delta, entropy = gaussian(*params)
            (-value((x + delta).clamp(0, 1)) - lbd * entropy).backward()
        adam.step()
    net.train()
    return (x + gaussian(*params)[0]).clamp(0, 1).detach()


def adt_exp(net, x, y, inner_momentum=1.0, rho=0.0, lbd=0.01, n_mc=5, adam_eps=1e-8):
    return ce(net, fitted(net, x, lambda at: ce(net, at, y), inner_momentum, rho, lbd, n_mc, adam_eps), y)


def adt_exp_trades(net, x, y, inner_momentum=1.0, rho=0.0, lbd=0.01, n_mc=5, beta=6.0, adam_eps=1e-8):
    net.eval()
    clean = net(x).detach()

    def total(at):
        "Divergence and entropy are summed over the batch: Adam's 1e-8 is on an image's own gradient"
        return len(x) * kl(clean, net(at))

    x_adv = fitted(net, x, total, inner_momentum, rho, len(x) * lbd, n_mc, adam_eps)
    return with_trades(net, x, x_adv, y, beta)[0]


def seen(net, x, y, gen_input):
    if gen_input == 'image':
        return x
    net.eval()
    at = x.clone().requires_grad_()
    (g1,) = torch.autograd.grad(ce(net, at, y), at)
    at = (x + EPS * g1.sign()).clamp(0, 1).requires_grad_()
    (g2,) = torch.autograd.grad(ce(net, at, y), at)
    net.train()
    return torch.cat([x, g1, g2], 1)


def versus(net, x, delta, y, beta):
    "What θ descends, and what φ climbs of it"
    x_adv = (x + delta).clamp(0, 1)
    return [ce(net, x_adv, y)] * 2 if beta is None else with_trades(net, x, x_adv, y, beta)


def adt_exp_am(net, x, y, generator, lbd=0.01, gen_input='gradients', beta=None, climb=1.0):
    out = generator(seen(net, x, y, gen_input))
    delta, entropy = gaussian(out[:, :1], out[:, 1:])
    theta, phi = versus(net, x, delta, y, beta)
    return theta, -climb * phi - lbd * entropy


def adt_imp_am(
    net, x, y, generator, encoder, lbd=1.0, u_max=0.9, gen_input='gradients', beta=None, climb=1.0
):
    features, z = seen(net, x, y, gen_input), unit(x.new_empty(N, 64))
    t = torch.tanh(generator(features, z))
    out = encoder(t)
    mean, var = out[:, :64], torch.log(1 + torch.exp(out[:, 64:]))
    u = -torch.log(torch.exp(-((z - mean) ** 2) / (2 * var)) / torch.sqrt(2 * math.pi * var)).mean()
    theta, phi = versus(net, x, EPS * t, y, beta)
    return theta, -climb * phi + lbd * F.relu(u - u_max)


def adt_exp_am_trades(*args, beta=6.0, **kw):
    return adt_exp_am(*args, beta=beta, **kw)


def adt_imp_am_trades(*args, beta=6.0, **kw):
    return adt_imp_am(*args, beta=beta, **kw)


# Both sides, and how far they are apart


def batch(seed=1, border=True):
    "Images with pixels at 0 and at 1, or none near them"
    torch.manual_seed(seed)
    x, y = torch.rand(N, *SHAPE, dtype=torch.float64), torch.randint(10, (N,))
    return (1.4 * x - 0.2).clamp(0, 1) if border else 0.3 + 0.4 * x, y


def prepare(name, options, x, seed=2):
    "A network with opinions and running statistics, and the method, all in double precision"
    torch.manual_seed(seed)
    net = build_model('small_cnn', in_ch=1).double()
    with torch.no_grad():
        net.fc.weight *= 10
        for _ in range(3):
            net(x + 0.1 * torch.randn_like(x))
    small = {k: v for k, v in dict(gen_width=16, n_mc=5).items() if k in method_options(name)}
    method = make_method(name, EPS, SHAPE, **small | options)
    if isinstance(method.adversary, torch.nn.Module):
        method.adversary.double()
    return net, method


def parts(method):
    return dict(method.adversary.named_children()) if isinstance(method.adversary, torch.nn.Module) else {}


def gradients(name, options, plain=None, border=True, inner='eval'):
    "{network: list of gradients} of the package and of the equations above; and the two losses"
    x, y = batch(border=border)
    net, method = prepare(name, options, x)
    net2, parts2 = copy.deepcopy((net, parts(method)))
    if inner == 'train':
        net2.eval = net2.train
    torch.manual_seed(3)
    objective, loss, _ = adt_loss(net, x, y, method)
    objective.backward()
    got = {k: [p.grad for p in m.parameters()] for k, m in dict(net=net, **parts(method)).items()}
    torch.manual_seed(3)
    theta = globals()[name](net2, x, y, **parts2, **(options if plain is None else plain))
    theta, phi = theta if parts2 else (theta, None)

    def grad(value, m):
        return torch.autograd.grad(value, list(m.parameters()), retain_graph=True)

    want = dict(net=grad(theta, net2), **{k: grad(phi, m) for k, m in parts2.items()})
    return got, want, (loss.item(), theta.item())


def errors(got, want):
    "{network: relative error}: of all parameters together, or of one that is not tiny if that is larger"

    def relative(a, b):
        return ((a - b).norm() / b.norm()).item() if b.norm() > 0 else a.norm().item()

    def error(a, b):
        flat = [torch.cat([t.flatten() for t in ts]) for ts in (a, b)]
        large = [(p, q) for p, q in zip(a, b, strict=True) if q.norm() > 1e-6 * flat[1].norm()]
        return max(relative(p, q) for p, q in [flat, *large])

    return {k: error(got[k], want[k]) for k in want}


ROWS = [(name, {}) for name in METHODS] + [
    ('at_fgsm', dict(target='label')),
    ('adt_exp', dict(inner_momentum=0.0)),
    ('adt_exp', dict(rho=-5.0)),
    ('adt_exp_trades', dict(inner_momentum=0.0)),
    ('adt_exp_am', dict(gen_input='image')),
    ('adt_imp_am', dict(gen_input='image')),
    ('adt_imp_am', dict(u_max=0.5)),
    ('adt_imp_am', dict(u_max=2.0)),
    ('adt_imp_am_trades', dict(u_max=0.5)),
    ('adt_imp_am_trades', dict(u_max=2.0)),
]


@pytest.mark.parametrize('name, options', ROWS)
def test_gradients(name, options):
    got, want, (loss, theta) = gradients(name, options)
    silent = {k for k, gs in want.items() if not any(g.any() for g in gs)}
    above_hinge = options.get('u_max') == 2.0  # where the entropy moves nobody
    assert silent == ({'encoder'} if above_hinge else set())
    found = errors(got, want)
    assert max(found.values()) <= 1e-5 and abs(loss - theta) <= 1e-5 * theta, found


AT = [(name, {}) for name in ('standard', 'at_fgsm', 'at_pgd', 'rs_fgsm', 'alp')] + [
    ('at_fgsm', dict(target='label'))
]


@pytest.mark.parametrize('name, options', AT)
def test_no_difference_at_all(name, options):
    "Away from 0 and 1, x + (x_adv - x) is x_adv to the bit, and adversarial training is that of the textbook"
    got, want, _ = gradients(name, options, border=False)
    assert all(torch.equal(a, b) and b.any() for a, b in zip(got['net'], want['net'], strict=True))


WRONG = [
    ('at_fgsm', {}, dict(target='label')),
    ('alp', {}, dict(beta=0.49)),
    ('trades', {}, dict(beta=5.9)),
    ('feature_scatter', {}, dict(smoothing=0.49)),
    ('feature_scatter', {}, dict(rounds=1)),
    ('feature_scatter', {}, dict(fixed=True)),
    ('adt_exp', {}, dict(inner_momentum=0.0)),
    ('adt_exp', dict(inner_momentum=0.0), {}),
    ('adt_exp', {}, dict(rho=-5.0)),
    ('adt_exp', {}, dict(lbd=0.0)),
    ('adt_exp', {}, dict(adam_eps=1e-9)),
    ('adt_exp_trades', {}, dict(lbd=0.01 / N)),
    ('adt_exp_trades', {}, dict(adam_eps=64e-8)),
    ('adt_exp_am', {}, dict(climb=-1.0)),
    ('adt_exp_am', {}, dict(lbd=-0.01)),
    ('adt_exp_am_trades', {}, dict(climb=6.0)),
    ('adt_imp_am', dict(u_max=0.5), dict(climb=-1.0)),
    ('adt_imp_am', dict(u_max=0.5), dict(u_max=2.0)),
    ('adt_imp_am_trades', dict(u_max=0.5), dict(u_max=0.5, climb=6.0)),
]


@pytest.mark.parametrize('name, options, plain', WRONG)
def test_a_wrong_equation_is_noticed(name, options, plain):
    assert max(errors(*gradients(name, options, plain)[:2]).values()) > 1e-3


@pytest.mark.parametrize('name', [name for name in METHODS if name not in ('standard', 'noise')])
def test_an_inner_problem_in_training_mode_is_noticed(name):
    assert max(errors(*gradients(name, {}, inner='train')[:2]).values()) > 1e-3


INNER = dict(
    standard=0,
    noise=0,
    at_fgsm=1,
    rs_fgsm=1,
    feature_scatter=1,
    at_pgd=7,
    alp=7,
    trades=10,
    adt_exp=35,
    adt_exp_trades=35,
    adt_exp_am=2,
    adt_imp_am=2,
    adt_exp_am_trades=2,
    adt_imp_am_trades=2,
)


@pytest.mark.parametrize('name', METHODS)
def test_no_inner_problem_computes_gradients_of_weights(name):
    x, y = batch()
    net, method = prepare(name, {}, x)
    with count_passes(net) as passes, eval_mode(net):
        method.adversary(net, x, y)
    assert (
        passes['weight_grad'] == 0
        and passes['input_grad'] == INNER[name] * N
        and all(p.grad is None for p in net.parameters())
    )
    with count_passes(net) as passes:
        adt_loss(net, x, y, method)[0].backward()
    assert passes['weight_grad'] in (N, 2 * N)


# What an option may be


def taken(option, value):
    "Does the first method that has this option take the value?"
    name = next(name for name in METHODS if option in method_options(name))
    said = refusal(lambda: make_method(name, EPS, SHAPE, **{option: value}) is not None)
    return said == 'gave True'


NOT_OPTIONS = dict(
    inner_steps=(0, 2.5, -1),
    inner_step=(-0.1, math.inf, math.nan, [], [0.1, -0.1], [math.inf]),
    n_mc=(0, 1.5),
    lbd=(-0.01, math.inf),
    inner_momentum=(-0.1, 1.1),
    rho=(math.inf, math.nan),
    group=(0, -64),
    beta=(-1, math.nan),
    smoothing=(-0.1, 1.1),
    u_max=(math.nan,),
    gen_width=(0, 8.5),
    z_dim=(0,),
    target=('other', 1),
    gen_input=('other', 1),
)


@pytest.mark.parametrize('option', OPTIONS)
def test_what_an_option_is_not(option):
    assert [value for value in NOT_OPTIONS[option] if taken(option, value)] == []


SAMPLES = [-20, -1, -0.5, 0, 0.0, 0.25, 0.9, 1, 1.0, 2, 8, 16.0, '8/255', '1e-3']
SAMPLES += ['least_likely', 'label', 'gradients', 'image']


@pytest.mark.parametrize('option', OPTIONS)
def test_options_of_a_run_are_options_of_a_method(option):
    "A value that the command line takes is taken by `make_method` too"
    rule = RULES[option]
    good = [value for value in SAMPLES if rule.ok(rule.read(value))]
    assert good
    assert [value for value in good if not taken(option, value)] == []


@pytest.mark.parametrize('name', [name for name in METHODS if 'inner_step' in method_options(name)])
def test_a_size_for_each_step(name):
    "A list of equal sizes is that size; other sizes are other images"
    x, y = batch()
    x, y = x[:8], y[:8]
    steps = dict(inner_steps=3) if 'inner_steps' in method_options(name) else {}
    count = steps.get('inner_steps', 1)

    def perturbation(inner_step):
        net, method = prepare(name, dict(inner_step=inner_step, **steps), x)
        with example_noise(torch.arange(8)), eval_mode(net):
            return method.adversary(net, x, y)()[0]

    def is_equal_to_one_size(*sizes):
        return torch.equal(perturbation(list(sizes)), perturbation(0.1))

    first_sizes = [0.1] * (count - 1)
    assert refusal(is_equal_to_one_size, *first_sizes, 0.1) == 'gave True'
    assert refusal(is_equal_to_one_size, *first_sizes, 0.05) == 'gave False'


@pytest.mark.parametrize(
    'shape, draws',
    [((3, 32, 32), 5), ((1, 8, 8), 1), ((64,), 1), ((8, 8), 1), ((784,), 5), ((3, 4, 8, 8), 5)],
)
def test_draws_for_images_of_any_shape(shape, draws):
    assert refusal(default_draws, shape) == f'gave {draws}'


def test_a_distribution_on_rows_of_numbers():
    "Images need not be (C, H, W) where the number of draws is left out"
    torch.manual_seed(0)
    rows, y = torch.rand(4, 64), torch.arange(4)
    net = torch.nn.Linear(64, 10)
    said = refusal(lambda: exp_adversary(net, rows, y, eps=EPS, steps=2, n_mc=None)()[0].shape)
    assert said == 'gave torch.Size([4, 64])'
