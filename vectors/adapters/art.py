"Adversarial Robustness Toolbox: FGM, PGD, MIM, Square, and TRADES' loss by its trainer; in single precision"

from contextlib import nullcontext
from importlib.metadata import version

import numpy as np
import torch
from art.attacks.evasion import (
    FastGradientMethod,
    MomentumIterativeMethod,
    ProjectedGradientDescentPyTorch,
    SquareAttack,
)
from art.attacks.evasion.projected_gradient_descent import projected_gradient_descent_pytorch
from art.defences.trainer import AdversarialTrainerTRADESPyTorch
from art.estimators.classification import PyTorchClassifier
from art.utils import to_categorical
from draws import given
from torch_networks import build, recorded, weight_gradients

PRECISION = 'float32'  # ART_NUMPY_DTYPE in art/config.py
VERSIONS = {name: version(name) for name in ('adversarial-robustness-toolbox', 'torch')}
NONE = 'ART does not have it'
NOT_OFFERED = dict(
    cw='CarliniLInfMethod is another algorithm, with tanh and Adam; ProjectedGradientDescent climbs the loss of the '
    'classifier, and ART has no margin loss for it',
    trades_attack='ProjectedGradientDescent climbs a loss of logits and labels, and ART has no KL divergence for it',
    feature_attack='FeatureAdversariesPyTorch approaches one target by the distance in L2, not by the angle',
    spsa_gradient=NONE,
    alp_loss=NONE,
    feature_scatter=NONE,
    tanh_gaussian=NONE,
    adt_exp=NONE,
    adt_exp_am=NONE,
    adt_imp_am=NONE,
    **{'square-conv': 'SquareAttack._check_params refuses a share of 1 for p_init'},
)
START = (
    'its start is always clipped to the clip_values of the classifier: '
    'ProjectedGradientDescentPyTorch._compute_pytorch in '
    'attacks/evasion/projected_gradient_descent/projected_gradient_descent_pytorch.py does so before the first step, '
    'and has no option for it. A convention: published code has both'
)
EXPLAINED = dict(
    pgd=START,
    mim=START,
    square='SquareAttack._get_percentage_of_elements in attacks/evasion/square_attack.py makes the patches smaller by '
    '(t - 1) / max_iter, above each limit, where the vectors have t / (max_iter + 1), from each limit on: a '
    'convention. SquareAttack.generate draws the places with the upper end left out, so that a patch never touches '
    'the lower or the right edge, and NumPy raises an error for one that is as high as the image; this does not show '
    'here, as the vectors give the places',
)

SUM = torch.nn.CrossEntropyLoss(reduction='sum')  # with it the gradient of an image is that of its own loss


def wrapped(case, loss=SUM, **options):
    "The network, and it as ART sees it"
    model = build(case, torch.float32)
    classifier = PyTorchClassifier(
        model,
        loss,
        case.inputs['x'].shape[1:],
        model.fc.out_features,
        clip_values=(0, 1),
        device_type='cpu',
        **{name: make(model) for name, make in options.items()},
    )
    return model, classifier


def images(case, name='x'):
    return case.inputs[name].astype(np.float32)


def climbed(case, attack, **options):
    "What an attack makes of the images, from the vector's start if it has one, and where it took a gradient"
    p, (model, classifier) = case.parameters, wrapped(case)
    draw = nullcontext()
    if 'start' in case.inputs:
        options['num_random_init'] = 1
        noise = (case.inputs['start'] * p['eps']).reshape(len(case.inputs['x']), -1)
        draw = given(projected_gradient_descent_pytorch, 'random_sphere', noise)
    attack = attack(
        classifier,
        np.inf,
        p['eps'],
        p['step_size'],
        max_iter=p['steps'],
        batch_size=64,
        verbose=False,
        **options,
    )
    with draw, recorded(model) as calls:
        x_adv = attack.generate(images(case), case.inputs['y'])
    return dict(x_adv=x_adv, iterates=np.stack([*(c.numpy() for c in calls), x_adv]))


def forward(case):
    model, classifier = wrapped(case)
    x, y = images(case), to_categorical(case.inputs['y'], model.fc.out_features)
    return dict(
        logits=classifier.predict(x),
        loss=classifier.compute_loss(x, y),
        gradient=classifier.loss_gradient(x, y),
    )


def fgsm(case):
    attack = FastGradientMethod(wrapped(case)[1], np.inf, case.parameters['eps'], batch_size=64)
    return dict(x_adv=attack.generate(images(case), case.inputs['y']))


def pgd(case):
    return climbed(case, ProjectedGradientDescentPyTorch)


def mim(case):
    # MomentumIterativeMethod is ProjectedGradientDescent with momentum and without a random start
    attack = ProjectedGradientDescentPyTorch if 'start' in case.inputs else MomentumIterativeMethod
    return climbed(case, attack, decay=case.parameters['decay'])


def square(case):
    # one image at a time, as SquareAttack draws one patch for all images of a batch; its size is SquareAttack's own;
    # its queries: the clean image, and a candidate for each choice of signs (some points it evaluates more than once)
    p, x, x_adv, queries = case.parameters, images(case), [], []
    stripes, patches, signs = (case.inputs[name] for name in ('stripes', 'patches', 'patch_signs'))
    for i in range(len(x)):
        attack = SquareAttack(
            wrapped(case)[1], max_iter=len(patches), eps=p['eps'], p_init=p['first'], verbose=False
        )
        choices = [stripes[i : i + 1, :, None], *(2 * p['eps'] * signs[:, i, :, None, None])]
        with (
            given(np.random, 'choice', *choices, all_used=False) as left,
            given(np.random, 'randint', *patches[:, i, :2].flatten(), all_used=False),
        ):
            x_adv.append(attack.generate(x[i : i + 1].copy(), case.inputs['y'][i : i + 1]))
        queries.append(1 + len(choices) - len(left))
    return dict(x_adv=np.concatenate(x_adv), queries=queries)


class Given:
    "An attack whose result is given"

    def __init__(self, x_adv):
        self.x_adv = x_adv

    def generate(self, x, y=None):
        return self.x_adv


def trades_loss(case):
    # the step of the trainer with a learning rate of 0; it sets the network to training mode, in which batch
    # normalisation would use the batch, and so that mode is kept from the network
    model, classifier = wrapped(
        case,
        torch.nn.CrossEntropyLoss(),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.0),
    )
    model.train = lambda mode=True: model
    trainer = AdversarialTrainerTRADESPyTorch(
        classifier, Given(images(case, 'x_adv')), case.parameters['beta']
    )
    total, _, count = trainer._batch_process(images(case), case.inputs['y'])
    gradients = weight_gradients(model)
    return dict(loss=np.float32(total / count), **{f'gradient.{name}': g for name, g in gradients.items()})
