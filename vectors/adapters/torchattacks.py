"torchattacks: FGSM, PGD, MIFGSM (UPGD from a start), TPGD, SPSA's estimate, Square; all in double precision"

from contextlib import nullcontext
from importlib.metadata import version

import torch
import torchattacks
from draws import given
from torch_networks import build, recorded

PRECISION = 'float64'
VERSIONS = {name: version(name) for name in ('torchattacks', 'torch')}
NONE = 'torchattacks does not have it'
NOT_OFFERED = dict(
    cw='CW is the attack in L2; UPGD has the loss "margin", but kappa is fixed to 0 in it',
    feature_attack=NONE,
    trades_loss='torchattacks has attacks, and no losses to train with',
    alp_loss='torchattacks has attacks, and no losses to train with',
    feature_scatter=NONE,
    tanh_gaussian=NONE,
    adt_exp=NONE,
    adt_exp_am=NONE,
    adt_imp_am=NONE,
)
START = (
    'its start is always clipped to [0, 1]: {} clamps the images with their noise before the first step, and has no '
    'option for it. A convention: published code has both'
)
EXPLAINED = dict(
    pgd=START.format('PGD.forward in attacks/pgd.py'),
    mim=START.format('UPGD.forward in attacks/upgd.py'),
    trades_attack=START.format('TPGD.forward in attacks/tpgd.py'),
    square='Square.perturb in attacks/square.py copies the result only of images that are misclassified in the end: '
    'for the others it returns the clean image, not the best point. Square.attack_single_run takes the stripes as '
    'the best point without comparing their margin with that of the clean image. Square.p_selection makes the '
    'patches smaller by (t - 1) / n_queries, where the vectors have t / (n_queries + 1). All three are conventions, '
    'taken from AutoAttack. Square.random_int leaves the upper end out, as there, so that a patch never touches the '
    'lower or the right edge; this does not show here, as the vectors give the places',
)


def tensors(case, *names):
    return [torch.as_tensor(case.inputs[name]) for name in names]


def start_of(case):
    "The start as an offset from the images, or None"
    return torch.as_tensor(case.inputs['start']) * case.parameters['eps'] if 'start' in case.inputs else None


def climbed(case, attack, draw=None):
    "What an attack makes of the images, and the points at which it took a gradient"
    x, y = tensors(case, 'x', 'y')
    with draw or nullcontext(), recorded(attack.model) as calls:
        x_adv = attack(x, y)
    return dict(x_adv=x_adv.numpy(), iterates=torch.stack([*calls, x_adv]).numpy())


def sizes(case):
    "The parameters that all iterated attacks have"
    p = case.parameters
    return dict(eps=p['eps'], alpha=p['step_size'], steps=p['steps'])


def forward(case):
    attack = torchattacks.attack.Attack('none', build(case))
    return dict(logits=attack.get_logits(*tensors(case, 'x')).detach().numpy())


def fgsm(case):
    attack = torchattacks.FGSM(build(case), eps=case.parameters['eps'])
    return dict(x_adv=climbed(case, attack)['x_adv'])


def pgd(case):
    start = start_of(case)
    attack = torchattacks.PGD(build(case), **sizes(case), random_start=start is not None)
    if start is None:
        return climbed(case, attack)
    return climbed(case, attack, given(torch.Tensor, 'uniform_', start, in_place=True))


def mim(case):
    start, decay = start_of(case), case.parameters['decay']
    if start is None:
        return climbed(case, torchattacks.MIFGSM(build(case), **sizes(case), decay=decay))
    attack = torchattacks.UPGD(build(case), **sizes(case), decay=decay, random_start=True)
    return climbed(case, attack, given(torch.Tensor, 'uniform_', start, in_place=True))


def trades_attack(case):
    # TPGD multiplies its draw, a standard normal, by 0.001
    return climbed(
        case,
        torchattacks.TPGD(build(case), **sizes(case)),
        given(torch, 'randn_like', start_of(case) / 0.001),
    )


def spsa_gradient(case):
    # one image at a time, as SPSA draws one direction for all images of a batch;
    # SPSA.loss is the margin, and SPSA descends: the vectors' L is minus the margin
    x, y, directions = tensors(case, 'x', 'y', 'directions')
    samples = len(directions)
    attack = torchattacks.SPSA(build(case), delta=case.parameters['sigma'])
    gradients = []
    for i in range(len(x)):
        bits = (directions[:, None, i] + 1) / 2
        with given(torch.Tensor, 'bernoulli_', bits, in_place=True):
            gradients.append(-attack.spsa_grad(x[i : i + 1], y[i : i + 1], attack.delta, samples, samples))
    return dict(gradient=torch.cat(gradients).numpy())


def square(case):
    # one image at a time, as Square draws one patch for all images of a batch; the size of the patch is Square's own;
    # its queries: the clean image, and a candidate for each choice of signs
    x, y, stripes, patches, signs = tensors(case, 'x', 'y', 'stripes', 'patches', 'patch_signs')
    p = case.parameters
    x_adv, queries = [], []
    for i in range(len(x)):
        attack = torchattacks.Square(build(case), eps=p['eps'], n_queries=len(patches), p_init=p['first'])
        choices = [stripes[i : i + 1, :, None], *signs[:, i, :, None, None]]
        places = patches[:, i, :2].flatten().split(1)
        with (
            given(attack, 'random_choice', *choices, all_used=False) as left,
            given(attack, 'random_int', *places, all_used=False),
        ):
            x_adv.append(attack(x[i : i + 1], y[i : i + 1]))
        queries.append(1 + len(choices) - len(left))
    return dict(x_adv=torch.cat(x_adv).numpy(), queries=queries)
