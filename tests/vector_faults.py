"""Do the test vectors find faults? Each fault is one edit of tests/vector_plain.py, an adapter that passes all.

tests/unit/test_vectors.py runs them. `fault_table` gives what is found as a table, and this writes it:

    python tests/vector_faults.py outputs/vectors/faults.csv
"""

import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'vectors'))
import run

PLAIN = Path(__file__).with_name('vector_plain.py')


class Fault(NamedTuple):
    "What is put in place of what"

    says: str  # what is wrong, in a few words
    right: str  # stands exactly once in the adapter
    wrong: str
    caught: str  # the vectors that must deviate, each as NAME, or NAME:ID if it lists this deviation


FAULTS = dict(
    labels_from_one=Fault(
        'labels are counted from 1',
        'return model, t, case.parameters',
        "return model, t | (dict(y=t['y'] - 1) if 'y' in t else {}), case.parameters",
        '',
    ),
    training_mode=Fault(
        'batch normalisation in training mode',
        'model = build(case) if case.network else None',
        'model = build(case).train() if case.network else None',
        '',
    ),
    mean_gradient=Fault(
        'the gradient is that of a mean over the batch',
        "gradient = slope(lambda x: cross_entropy(model(x), t['y']), t['x'])",
        "gradient = slope(lambda x: cross_entropy(model(x), t['y']) / len(x), t['x'])",
        '',
    ),
    softmax_twice=Fault(
        'softmax is applied twice',
        "return F.cross_entropy(z, y, reduction='none')",
        "return F.cross_entropy(z.softmax(1), y, reduction='none')",
        '',
    ),
    wrong_eps=Fault(
        '0.031 is used for 8/255',
        "return p['eps']",
        "return 0.031 if abs(p['eps'] - 8 / 255) < 1e-9 else p['eps']",
        '',
    ),
    eps_in_float32=Fault(
        'ε is rounded to float32',
        "return p['eps']",
        "return torch.tensor(p['eps'], dtype=torch.float32).item()",
        '',
    ),
    sign_of_zero=Fault(
        'the sign of 0 is +1',
        'return a.sign()',
        'return torch.where(a >= 0, 1.0, -1.0).to(a)',
        '',
    ),
    no_ball=Fault(
        'iterates are not clipped to the ball',
        'in_ball = x_adv.clamp(x - eps, x + eps)',
        'in_ball = x_adv',
        '',
    ),
    no_pixel_range=Fault(
        'iterates are not clipped to [0, 1]',
        'return in_ball.clamp(0, 1)',
        'return in_ball',
        '',
    ),
    fgsm_descends=Fault(
        'FGSM descends',
        'x + eps * sign(gradient), x, eps)',
        'x - eps * sign(gradient), x, eps)',
        '',
    ),
    start_always_clipped=Fault(
        'the start is clipped to [0, 1] always',
        "if p['clip_start']:",
        'if True:',
        '',
    ),
    start_never_clipped=Fault(
        'the start is never clipped',
        "if p['clip_start']:",
        'if False:',
        '',
    ),
    start_left_out=Fault(
        'the attack starts at the clean image',
        "at = x + eps * t.get('start', torch.zeros_like(x))",
        'at = x',
        '',
    ),
    start_not_scaled=Fault(
        'the start is not scaled by ε',
        "at = x + eps * t.get('start', torch.zeros_like(x))",
        "at = x + t.get('start', torch.zeros_like(x))",
        '',
    ),
    one_step_less=Fault(
        'one step too few',
        "iterates, losses, signs = [at], [], []\n    for _ in range(p['steps']):",
        "iterates, losses, signs = [at], [], []\n    for _ in range(p['steps'] - 1):",
        '',
    ),
    one_step_more=Fault(
        'one step too many',
        "iterates, losses, signs = [at], [], []\n    for _ in range(p['steps']):",
        "iterates, losses, signs = [at], [], []\n    for _ in range(p['steps'] + 1):",
        '',
    ),
    descends=Fault(
        'the steps descend',
        "at = ball(at + p['step_size'] * signs[-1], x, eps)",
        "at = ball(at - p['step_size'] * signs[-1], x, eps)",
        '',
    ),
    step_of_quarter=Fault(
        'the step is ε/4 whatever is asked for',
        "at = ball(at + p['step_size'] * signs[-1], x, eps)",
        'at = ball(at + eps / 4 * signs[-1], x, eps)',
        '',
    ),
    step_not_sign=Fault(
        'the step is along the gradient, not its sign',
        "at = ball(at + p['step_size'] * signs[-1], x, eps)",
        "at = ball(at + p['step_size'] * m, x, eps)",
        '',
    ),
    clipped_once=Fault(
        'only the last iterate is clipped',
        "at = ball(at + p['step_size'] * signs[-1], x, eps)\n        iterates.append(at)\n    result = iterates[-1]",
        "at = at + p['step_size'] * signs[-1]\n        iterates.append(at)\n    result = ball(at, x, eps)",
        '',
    ),
    best_for_last=Fault(
        'the iterate with the largest loss is returned, not the last',
        'result = iterates[-1]',
        'losses.append(value(model, at, x, y))\n'
        '    result = torch.stack(iterates)[torch.stack(losses).argmax(0), torch.arange(len(x))]\n'
        '    losses = losses[:-1]',
        '',
    ),
    momentum_per_batch=Fault(
        'the gradient is divided by its mean over the batch',
        'size = g.abs().mean((1, 2, 3), keepdim=True)',
        'size = g.abs().mean()',
        '',
    ),
    momentum_not_normalised=Fault(
        'the gradient is not normalised before it is accumulated',
        'return decay * m + g / size',
        'return decay * m + g',
        '',
    ),
    momentum_one=Fault(
        'the decay is always 1',
        'return decay * m + g / size',
        'return m + g / size',
        '',
    ),
    momentum_before=Fault(
        'the gradients are not accumulated',
        'return decay * m + g / size',
        'return g / size',
        '',
    ),
    label_among_others=Fault(
        'the label is among the other classes',
        'others = z.scatter(1, y[:, None], -math.inf)',
        'others = z',
        '',
    ),
    kappa_sign=Fault(
        'κ has the wrong sign',
        '-(margin(model(at), y) + kappa).clamp(min=0)',
        '-(margin(model(at), y) - kappa).clamp(min=0)',
        '',
    ),
    kappa_left_out=Fault(
        'the climb ends when the image is misclassified (κ = 0)',
        '-(margin(model(at), y) + kappa).clamp(min=0)',
        '-margin(model(at), y).clamp(min=0)',
        '',
    ),
    kappa_not_flat=Fault(
        'the climb never ends',
        '-(margin(model(at), y) + kappa).clamp(min=0)',
        '-(margin(model(at), y) + kappa)',
        '',
    ),
    attack_reversed=Fault(
        'the divergence that is climbed is taken the other way round',
        'divergence(model(x).detach(), model(at))',
        'divergence(model(at), model(x).detach())',
        '',
    ),
    feature_start_not_clipped=Fault(
        'FeaAttack starts outside of [0, 1]',
        'path = [(x + radius(p) * start).clamp(0, 1)]',
        'path = [x + radius(p) * start]',
        '',
    ),
    feature_last_not_tested=Fault(
        'the last iterate is not tested',
        'tested = path\n',
        'tested = path[:-1]\n',
        '',
    ),
    feature_last_only=Fault(
        'the last iterate is taken, not the best',
        'best = margins.argmin(0)',
        'best = torch.full_like(y, len(path) - 1)',
        '',
    ),
    feature_distance=Fault(
        'the distance of the features, not their angle',
        'F.cosine_similarity(model.features(at), goal)',
        '-(model.features(at) - goal).square().sum(1)',
        '',
    ),
    feature_away=Fault(
        'the features move away from the target',
        "path.append(ball(path[-1] + p['step_size'] * sign(gradient), x, radius(p)))",
        "path.append(ball(path[-1] - p['step_size'] * sign(gradient), x, radius(p)))",
        '',
    ),
    feature_last_target=Fault(
        'the result of the last target that succeeds',
        'if value < 0][:1]',
        'if value < 0][-1:]',
        '',
    ),
    feature_first_target=Fault(
        'only the first target is tried',
        'chosen += first_wrong or [of_image.index(min(of_image))]',
        'chosen += [0]',
        '',
    ),
    spsa_clipped=Fault(
        'the points are clipped to [0, 1]',
        "model(t['x'] + side * sigma * d)",
        "model((t['x'] + side * sigma * d).clamp(0, 1))",
        '',
    ),
    spsa_twice=Fault(
        'the difference is divided by σ, not by 2σ',
        '/ (2 * sigma)',
        '/ sigma',
        '',
    ),
    spsa_sum=Fault(
        'the estimates are added up, not averaged',
        "return arrays(gradient=total / len(t['directions']))",
        'return arrays(gradient=total)',
        '',
    ),
    spsa_margin=Fault(
        'the margin itself is climbed',
        'up, down = (-margin(',
        'up, down = (margin(',
        '',
    ),
    square_worse=Fault(
        'every candidate becomes the best point',
        'if found < best[1]:',
        'if True:',
        '',
    ),
    square_never_ends=Fault(
        'an image is tried further after it is misclassified',
        'if best[1] < 0:',
        'if False:',
        '',
    ),
    square_added=Fault(
        'a patch is added to the best point instead of replacing it',
        'tried[:, rows, columns] = x[:, rows, columns] + eps * signs[:, None, None]',
        'tried[:, rows, columns] += eps * signs[:, None, None]',
        '',
    ),
    square_from_clean=Fault(
        'each patch is put into the clean image',
        'tried = best[0].clone()',
        'tried = x.clone()',
        '',
    ),
    square_not_clipped=Fault(
        'the candidates are not clipped to [0, 1]',
        'tried = tried.clamp(0, 1)\n',
        'tried = tried\n',
        '',
    ),
    square_rows=Fault(
        'the stripes are rows',
        "yield x + eps * t['stripes'][i][:, None]",
        "yield x + eps * t['stripes'][i][:, : x.shape[1], None]",
        '',
    ),
    square_swapped=Fault(
        'the place of a patch is left, top',
        'top, left, height, width = patch',
        'left, top, height, width = patch',
        '',
    ),
    square_counts=Fault(
        'the query of the clean image is not counted',
        "y, asked = t['y'][i : i + 1], 1",
        "y, asked = t['y'][i : i + 1], 0",
        '',
    ),
    loss_reversed=Fault(
        'the divergence of the loss is taken the other way round',
        'pairing = divergence(clean, adversarial)',
        'pairing = divergence(adversarial, clean)',
        '',
    ),
    loss_detached=Fault(
        'the clean prediction is held fixed',
        'pairing = divergence(clean, adversarial)',
        'pairing = divergence(clean.detach(), adversarial)',
        '',
    ),
    loss_beta=Fault(
        'the divergence is divided by β',
        "p['beta'] * pairing",
        "pairing / p['beta']",
        '',
    ),
    loss_adversarial=Fault(
        'the cross-entropy is that of the adversarial image',
        "cross_entropy(clean, t['y']) + p['beta'] * pairing",
        "cross_entropy(adversarial, t['y']) + p['beta'] * pairing",
        '',
    ),
    loss_over_classes=Fault(
        'the divergence is averaged over the classes as well',
        'return (log_p.exp() * (log_p - log_q)).sum(1)',
        'return (log_p.exp() * (log_p - log_q)).mean(1)',
        '',
    ),
    loss_sum=Fault(
        'the loss is summed over the batch, not averaged',
        'values.mean().backward()',
        'values = values * len(values)\n    values.mean().backward()',
        '',
    ),
    alp_detached=Fault(
        'the logits of the clean image are held fixed',
        'squares = (clean - adversarial) ** 2',
        'squares = (clean.detach() - adversarial) ** 2',
        '',
    ),
    alp_sum=Fault(
        'the squares are summed over the classes, not averaged',
        "p['beta'] * squares.mean(1)",
        "p['beta'] * squares.sum(1)",
        '',
    ),
    alp_halves=Fault(
        'the two cross-entropies are not halved',
        "halves + p['beta'] * squares",
        "2 * halves + p['beta'] * squares",
        '',
    ),
    plan_detached=Fault(
        'the gradient does not pass through the plan',
        'plan = plan_for(cost, p)',
        'plan = plan_for(cost.detach(), p)',
        '',
    ),
    plan_clean_moves=Fault(
        'the cost is that between rows of the adversarial batch and columns of the clean one',
        'clean @ F.normalize(model(at)).T',
        'F.normalize(model(at)) @ clean.T',
        '',
    ),
    plan_one_round=Fault(
        'only one round of Sinkhorn',
        "range(p['rounds'])",
        'range(1)',
        '',
    ),
    plan_all_rounds=Fault(
        'the rounds do not end early',
        "if (u - before).abs().sum() < p['tol']:",
        'if False:',
        '',
    ),
    plan_inside=Fault(
        '1e-6 inside the logarithms of Sinkhorn',
        "u = -p['reg'] * (math.log(n) + ((v[None] - cost) / p['reg']).logsumexp(1))\n"
        "        v = -p['reg'] * (math.log(n) + ((u[:, None] - cost) / p['reg']).logsumexp(0))",
        "u = u - p['reg'] * (math.log(n) + (((u[:, None] + v - cost) / p['reg']).exp().sum(1) + 1e-6).log())\n"
        "        v = v - p['reg'] * (math.log(n) + (((u[:, None] + v - cost) / p['reg']).exp().sum(0) + 1e-6).log())",
        '',
    ),
    scatter_start_clipped=Fault(
        'the start of feature scattering is clipped to [0, 1]',
        "start = x + eps * t['start']",
        "start = (x + eps * t['start']).clamp(0, 1)",
        '',
    ),
    scatter_from_clean=Fault(
        'the step starts at the clean image',
        'x_adv=ball(start + eps * signs, x, eps)',
        'x_adv=ball(x + eps * signs, x, eps)',
        '',
    ),
    sigma_exp=Fault(
        'σ = exp(ρ) in the fits',
        'def spread(rho):\n    return F.softplus(rho)',
        'def spread(rho):\n    return rho.exp()',
        '',
    ),
    density_exp=Fault(
        'σ = exp(ρ) in the perturbation',
        "torch.tanh(mu + F.softplus(rho) * t['noise'])",
        "torch.tanh(mu + rho.exp() * t['noise'])",
        '',
    ),
    density_no_tanh=Fault(
        "the tanh's part of the density is left out",
        '- 0.5 * math.log(2 * math.pi) - log_slope',
        '- 0.5 * math.log(2 * math.pi) - math.log(eps)',
        '',
    ),
    density_no_eps=Fault(
        "ε's part of the density is left out",
        'log_slope = math.log(eps) + 2',
        'log_slope = 2',
        '',
    ),
    density_sum=Fault(
        'the log-density is a sum over pixels, not a mean',
        'log_density=per_image(density)',
        'log_density=density.sum((1, 2, 3))',
        '',
    ),
    momentum_always=Fault(
        'the gradients are never set to zero',
        "p['momentum'] * old + new",
        'old + new',
        '',
    ),
    momentum_never=Fault(
        'the gradients are set to zero in each step',
        "p['momentum'] * old + new",
        'new',
        '',
    ),
    entropy_left_out=Fault(
        'the entropy is left out (λ = 0)',
        "objective = objective + cross_entropy(model(at), y) + p['lbd'] * per_image(h)",
        'objective = objective + cross_entropy(model(at), y)',
        '',
    ),
    entropy_sign=Fault(
        'the entropy is descended',
        "objective = objective + cross_entropy(model(at), y) + p['lbd'] * per_image(h)",
        "objective = objective + cross_entropy(model(at), y) - p['lbd'] * per_image(h)",
        '',
    ),
    entropy_sum=Fault(
        'the entropy is a sum over pixels, not a mean',
        "p['lbd'] * per_image(h)\n        objectives",
        "p['lbd'] * h.sum((1, 2, 3))\n        objectives",
        '',
    ),
    exp_batch_mean=Fault(
        'the objective is a mean over the batch',
        'torch.autograd.grad(objective.sum(), (mu, rho))',
        'torch.autograd.grad(objective.mean(), (mu, rho))',
        '',
    ),
    exp_sign=Fault(
        'the step is the sign of the gradient',
        "steps = [g / (g.abs() + p['tol']) for g in total]",
        'steps = [g.sign() for g in total]',
        '',
    ),
    exp_one_draw=Fault(
        'one draw is used in a step',
        'for noise in draws:',
        'for noise in draws[:1]:',
        '',
    ),
    exp_same_draws=Fault(
        'the draws of the first step are used in each step',
        "for draws in t['noise']:",
        "for draws in t['noise'][:1].expand_as(t['noise']):",
        '',
    ),
    exp_not_clipped=Fault(
        'the images of a fit are not clipped',
        "at = (x + p['eps'] * delta).clamp(0, 1)",
        "at = x + p['eps'] * delta",
        '',
    ),
    exp_descends=Fault(
        'the fit descends',
        "mu, rho = mu + p['step_size'] * steps[0], rho + p['step_size'] * steps[1]",
        "mu, rho = mu - p['step_size'] * steps[0], rho - p['step_size'] * steps[1]",
        '',
    ),
    exp_one_step_less=Fault(
        'one step of the fit too few',
        'found = torch.autograd.grad(objective.sum(), (mu, rho))',
        "if len(objectives) == p['steps']:\n            path.append((mu, rho))\n            break\n"
        '        found = torch.autograd.grad(objective.sum(), (mu, rho))',
        '',
    ),
    generator_no_fgsm=Fault(
        'the second gradient is taken at the image again',
        "p['gradient_scale'] * gradient(point)",
        "p['gradient_scale'] * gradient(x)",
        '',
    ),
    generator_not_clipped=Fault(
        'the FGSM point is not clipped',
        "point = (x + p['eps'] * first.sign()).clamp(0, 1)",
        "point = x + p['eps'] * first.sign()",
        '',
    ),
    generator_no_scale=Fault(
        "the generator's input has raw gradients",
        "p['gradient_scale'] * first, p['gradient_scale']",
        'first, 1',
        '',
    ),
    generator_swapped=Fault(
        'the generator gives ρ first',
        'mu, rho = out.chunk(2, 1)',
        'rho, mu = out.chunk(2, 1)',
        '',
    ),
    generator_descends=Fault(
        'the generator descends',
        'list(w.values()), retain_graph=True)',
        'list(w.values()), -torch.ones(()).to(objective), retain_graph=True)',
        '',
    ),
    generator_no_entropy=Fault(
        "the generator's entropy is left out (λ = 0)",
        "objective = loss + p['lbd'] * counted(entropy)",
        'objective = loss + 0 * counted(entropy)',
        '',
    ),
    generator_entropy_sign=Fault(
        "the generator's entropy is descended",
        "objective = loss + p['lbd'] * counted(entropy)",
        "objective = loss - p['lbd'] * counted(entropy)",
        '',
    ),
    hinge_missing=Fault(
        'the hinge is missing',
        'lambda h: h.clamp(max=hinge)',
        'lambda h: h',
        '',
    ),
    hinge_sign=Fault(
        'the hinge has the wrong sign',
        "hinge = -p['u_max']",
        "hinge = p['u_max']",
        '',
    ),
    hinge_each_image=Fault(
        'the hinge is on each image, not on their mean',
        'log_q.mean(1), lambda h: h.clamp(max=hinge)',
        'log_q.mean(1).clamp(max=hinge), lambda h: h',
        '',
    ),
    encoder_deviation=Fault(
        "the encoder's second half is taken as standard deviations",
        'variance = F.softplus(variance)',
        'variance = F.softplus(variance) ** 2',
        '',
    ),
    encoder_sum=Fault(
        'the bound is a sum over the latent dimensions, not a mean',
        "p['eps'] * delta, log_q.mean(1)",
        "p['eps'] * delta, log_q.sum(1)",
        '',
    ),
    encoder_sees_delta=Fault(
        'the encoder gets δ, not δ/ε',
        'delta.flatten(1) @',
        "(p['eps'] * delta).flatten(1) @",
        '',
    ),
)

# Edits that change nothing: no vector may deviate
HARMLESS = dict(
    mean_over_batch=Fault(
        'the loss that is climbed is a mean over the batch',
        'slope(lambda at: value(model, at, x, y), at)',
        'slope(lambda at: value(model, at, x, y) / len(x), at)',
        '',
    ),
    momentum_by_sum=Fault(
        'the gradient is divided by the sum of its absolute values, not their mean',
        'size = g.abs().mean((1, 2, 3), keepdim=True)',
        'size = g.abs().sum((1, 2, 3), keepdim=True)',
        '',
    ),
    range_before_ball=Fault(
        'iterates are clipped to [0, 1] first, and to the ball then',
        'in_ball = x_adv.clamp(x - eps, x + eps)\n    return in_ball.clamp(0, 1)',
        'in_range = x_adv.clamp(0, 1)\n    return in_range.clamp(x - eps, x + eps)',
        '',
    ),
)


def adapter_of(
    code,  # of an adapter, as text
):
    "The adapter of a text; no file is written"
    module = ModuleType('adapter_with_a_fault')
    exec(compile(code, str(PLAIN), 'exec'), module.__dict__)

    def answer(case):
        return getattr(module, case.function)(run.given_to(case))

    return run.Adapter('plain', answer, module.PRECISION)


def code_with(
    fault,  # one of `FAULTS` or of `HARMLESS`
):
    "The adapter's code with a fault; an AssertionError if the right text does not stand exactly once"
    code = PLAIN.read_text(encoding='utf-8')
    assert code.count(fault.right) == 1, f'{fault.right!r} stands {code.count(fault.right)} times'
    return code.replace(fault.right, fault.wrong)


@cache
def vectors():
    "All of them"
    return run.load_cases()


@cache
def results_of(
    fault,  # one of `FAULTS` or of `HARMLESS`
):
    "The results of all vectors"
    return run.run_cases(adapter_of(code_with(fault)), vectors())


def found(
    results,  # of `results_of`
):
    "Vectors that deviate, each with the deviation that it is said to be, or None"
    assert not any(result['result'] == 'not offered' for result in results)
    return {r['case']: r['deviation'] for r in results if r['result'] != 'passed'}


def declared(
    fault,  # one of `FAULTS`
):
    "The same as `found`, as the fault says it"
    return {name: id or None for name, _, id in (word.partition(':') for word in fault.caught.split())}


def fault_table():
    """A DataFrame with a row for each of `FAULTS`

    fault, functions and caught_by: what is wrong, and the functions and vectors that deviate (words joined by
    spaces). vectors and named: how many vectors these are, and in how many of them the runner names a known
    deviation. reason: the reasons that it names, or else what it says."""
    import pandas as pd

    rows = []
    for fault in FAULTS.values():
        caught = [result for result in results_of(fault) if result['result'] != 'passed']
        named = [result for result in caught if result['deviation']]
        rows.append(
            dict(
                fault=fault.says,
                functions=' '.join(dict.fromkeys(result['function'] for result in caught)),
                caught_by=' '.join(result['case'] for result in caught),
                vectors=len(caught),
                named=len(named),
                reason='; '.join(dict.fromkeys(result['reason'] for result in named or caught)),
            )
        )
    return pd.DataFrame(rows)


if __name__ == '__main__':
    fault_table().to_csv(sys.argv[1], index=False)
