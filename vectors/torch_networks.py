"""The three tiny networks of the test vectors as PyTorch modules, for adapters.

model = build(case)                     # evaluation mode, double precision
with recorded(model) as calls:          # the images at which a gradient is taken, in order
    attack(model, ...)
"""

from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

# for each kind of network: a vector's name of an array, to its name in the module's state dict
NAMES = dict(
    linear=dict(weight='fc.weight', bias='fc.bias'),
    relu=dict(weight1='hidden.weight', bias1='hidden.bias', weight2='fc.weight', bias2='fc.bias'),
    conv=dict(
        kernel='conv.weight',
        gamma='bn.weight',
        mean='bn.running_mean',
        variance='bn.running_var',
        beta='bn.bias',
        weight='fc.weight',
        bias='fc.bias',
    ),
)


class TinyNetwork(nn.Module):
    "A network whose last layer is `fc`; `features` gives the input of that layer"

    def __init__(self):
        super().__init__()
        self.calls = None  # a list inside of `recorded`

    def forward(self, x):
        "Images (N, C, H, W) to logits (N, K)"
        return self.fc(self.features(x))

    def features(self, x):
        "Images (N, C, H, W) to features (N, M)"
        if self.calls is not None and x.requires_grad and torch.is_grad_enabled():
            self.calls.append(x.detach().clone())
        return self.compute_features(x)


class Linear(TinyNetwork):
    "One linear layer"

    def __init__(self, weights):
        super().__init__()
        classes, pixels = weights['weight'].shape
        self.fc = nn.Linear(pixels, classes)

    def compute_features(self, x):
        return x.flatten(1)


class Relu(TinyNetwork):
    "Two linear layers with a ReLU between them"

    def __init__(self, weights):
        super().__init__()
        units, pixels = weights['weight1'].shape
        self.hidden = nn.Linear(pixels, units)
        self.fc = nn.Linear(units, len(weights['weight2']))

    def compute_features(self, x):
        return F.relu(self.hidden(x.flatten(1)))


class Conv(TinyNetwork):
    "A convolution, batch normalisation, ReLU, the mean over all places, and a linear layer"

    def __init__(self, weights):
        super().__init__()
        units, channels = weights['kernel'].shape[:2]
        self.conv = nn.Conv2d(channels, units, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(units, eps=1e-5)
        self.fc = nn.Linear(units, len(weights['weight']))

    def compute_features(self, x):
        return F.relu(self.bn(self.conv(x))).mean((2, 3))


KINDS = dict(linear=Linear, relu=Relu, conv=Conv)


def build(
    case,  # with `network` (linear, relu or conv) and `weights` (names to arrays)
    dtype=torch.float64,  # of its weights
):
    "A case's network with its weights, in evaluation mode"
    model = KINDS[case.network](case.weights)
    names = NAMES[case.network]
    state = {names[name]: torch.as_tensor(value) for name, value in case.weights.items()}
    model.to(dtype).load_state_dict(state, strict=False)
    return model.eval()


def weight_gradients(
    model,  # from `build`, after a backward pass
):
    "The gradient of each trained weight, as an array, by its name in the vectors"
    (kind,) = [name for name, made in KINDS.items() if type(model) is made]
    trained = dict(model.named_parameters())
    return {name: trained[key].grad.numpy() for name, key in NAMES[kind].items() if key in trained}


@contextmanager
def recorded(
    model,  # from `build`
):
    "A context whose value is a list of the images at which the model was called with a gradient needed"
    model.calls = calls = []
    try:
        yield calls
    finally:
        model.calls = None
