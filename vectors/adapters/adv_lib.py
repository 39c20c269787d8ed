"adversarial-library: PGD in L-infinity, in double precision"

from contextlib import nullcontext
from importlib.metadata import version

import torch
from adv_lib.attacks import pgd_linf
from adv_lib.utils.attack_utils import predict_inputs
from draws import given
from torch_networks import build, recorded

PRECISION = 'float64'
VERSIONS = {name: version(name) for name in ('adv-lib', 'torch')}
NONE = 'adversarial-library does not have it'
NOT_OFFERED = dict(
    fgsm='it has no FGSM, and pgd_linf with one step always returns the clean images or the start',
    mim=NONE,
    cw='pgd_linf has the loss "dl", minus the margin, without kappa and without an end; carlini_wagner_linf is '
    'another algorithm, with tanh and Adam',
    trades_attack='the losses of pgd_linf are ce, dl and dlr',
    feature_attack=NONE,
    spsa_gradient=NONE,
    square=NONE,
    trades_loss='it has attacks, and no losses to train with',
    alp_loss='it has attacks, and no losses to train with',
    feature_scatter=NONE,
    tanh_gaussian=NONE,
    adt_exp=NONE,
    adt_exp_am=NONE,
    adt_imp_am=NONE,
)
EXPLAINED = dict(
    pgd='_pgd_linf in attacks/projected_gradient_descent.py returns, image by image, the last of the points x_0 to '
    'x_{T-1} that is misclassified, and the clean image if there is none, as it tests a point before its step: the '
    'point after the last step is computed and never tested. To return a misclassified point is a convention. The '
    'last step never has an effect: with one step and no random start, the clean images come back. Its start is '
    'always clipped to [0, 1], by clamp_ with the bounds of both: a convention',
)


def forward(case):
    logits, _, _ = predict_inputs(build(case), torch.as_tensor(case.inputs['x']))
    return dict(logits=logits.detach().numpy())


def pgd(case):
    # once more with one step more, to see the point after the last step
    p, model = case.parameters, build(case)
    x, y = (torch.as_tensor(case.inputs[name]) for name in ('x', 'y'))
    random = 'start' in case.inputs

    def attacked(steps):
        start = torch.as_tensor(case.inputs['start']) if random else None
        with given(torch.Tensor, 'uniform_', start, in_place=True) if random else nullcontext():
            return pgd_linf(
                model, x, y, p['eps'], steps=steps, random_init=random, absolute_step_size=p['step_size']
            )

    x_adv = attacked(p['steps'])
    with recorded(model) as calls:
        attacked(p['steps'] + 1)
    return dict(x_adv=x_adv.numpy(), iterates=torch.stack(calls).numpy())
