"Foolbox: fast gradient, PGD, MI-FGSM (all in L-infinity), and its gradient estimator; all in double precision"

from contextlib import nullcontext
from importlib.metadata import version

import eagerpy
import foolbox
import torch
from draws import given
from foolbox.gradient_estimators import es_gradient_estimator
from torch_networks import build, recorded

PRECISION = 'float64'
VERSIONS = {name: version(name) for name in ('foolbox', 'eagerpy', 'torch')}
NONE = 'Foolbox does not have it'
NOT_OFFERED = dict(
    cw='the loss of LinfPGD can be overridden, but Foolbox has no margin loss of its own; its C&W attack is in L2',
    trades_attack='VirtualAdversarialAttack climbs a KL divergence, but in L2 and by power iteration',
    feature_attack=NONE,
    square=NONE,
    trades_loss='Foolbox has attacks, and no losses to train with',
    alp_loss='Foolbox has attacks, and no losses to train with',
    feature_scatter=NONE,
    tanh_gaussian=NONE,
    adt_exp=NONE,
    adt_exp_am=NONE,
    adt_imp_am=NONE,
)
START = (
    'its start is always clipped to the bounds of the images: BaseGradientDescent.run in '
    'attacks/gradient_descent_base.py does so before the first step, and has no option for it. A convention: '
    'published code has both'
)
EXPLAINED = dict(
    pgd=START,
    mim='BaseGradientDescent.run in attacks/gradient_descent_base.py normalises the gradient before it goes to the '
    'optimizer, and LinfBaseGradientDescent.normalize is the sign: GDMOptimizer in attacks/mi_fgsm.py therefore adds '
    'up signs, which differs from the paper that it cites: there, gradients divided by their L1 norm are added up. '
    'With a momentum of at most 0.5 the last sign decides alone, as if there were no momentum. Also, '
    + START,
    spsa_gradient='evolutionary_strategies_gradient_estimator in gradient_estimators.py evaluates samples // 2 '
    'pairs and then divides by 4 * sigma * samples, where the mean over pairs has sigma * samples: it is a quarter of '
    'that mean, which the sign of an L-infinity step does not show. Its loss is the sum over the batch, so that the '
    'difference that multiplies the noise of an image contains those of all images. This changes the variance, and '
    'not the mean over the noise',
)


def wrapped(case):
    "The network, and it as Foolbox sees it"
    model = build(case)
    return model, foolbox.PyTorchModel(model, bounds=(0, 1), device='cpu')


def tensors(case, *names):
    return [torch.as_tensor(case.inputs[name]) for name in names]


def climbed(case, attack, draw=None):
    "What an attack makes of the images, and the points at which it took a gradient"
    (x, y), (model, net) = tensors(case, 'x', 'y'), wrapped(case)
    with draw or nullcontext(), recorded(model) as calls:
        x_adv = attack.run(net, x, foolbox.Misclassification(y), epsilon=case.parameters['eps'])
    return dict(x_adv=x_adv.numpy(), iterates=torch.stack([*calls, x_adv]).numpy())


def iterated(case, attack, **options):
    "An attack of many steps, from the vector's start if it has one"
    p = case.parameters
    random = 'start' in case.inputs
    attack = attack(abs_stepsize=p['step_size'], steps=p['steps'], random_start=random, **options)
    if not random:
        return climbed(case, attack)
    noise = eagerpy.astensor(torch.as_tensor(case.inputs['start']) * p['eps'])
    return climbed(case, attack, given(eagerpy, 'uniform', noise))


def forward(case):
    (x, y), (_, net) = tensors(case, 'x', 'y'), wrapped(case)
    x, y = eagerpy.astensors(x, y)
    attack = foolbox.attacks.LinfPGD()
    logits = net(x)
    _, gradient = attack.value_and_grad(attack.get_loss_fn(net, y), x)
    loss = eagerpy.crossentropy(logits, y)
    return dict(logits=logits.numpy(), loss=loss.numpy(), gradient=gradient.numpy())


def fgsm(case):
    return dict(x_adv=climbed(case, foolbox.attacks.LinfFastGradientAttack())['x_adv'])


def pgd(case):
    return iterated(case, foolbox.attacks.LinfPGD)


def mim(case):
    attack = foolbox.attacks.mi_fgsm.LinfMomentumIterativeFastGradientMethod
    return iterated(case, attack, momentum=case.parameters['decay'])


def spsa_gradient(case):
    # two samples for each direction; the loss is given, as get_loss_fn may be overridden, and summed as there
    (x, y, directions), (_, net) = tensors(case, 'x', 'y', 'directions'), wrapped(case)
    row = torch.arange(len(y))

    def loss(images):
        logits = net(images).raw
        others = logits.clone()
        others[row, y] = -torch.inf
        return eagerpy.astensor((others.max(1).values - logits[row, y]).sum())

    attack = es_gradient_estimator(
        foolbox.attacks.LinfPGD,
        samples=2 * len(directions),
        sigma=case.parameters['sigma'],
        bounds=(0, 1),
        clip=False,
    )()
    with given(eagerpy, 'normal', *[eagerpy.astensor(d) for d in directions]):
        _, gradient = attack.value_and_grad(loss, eagerpy.astensor(x))
    return dict(gradient=gradient.numpy())
