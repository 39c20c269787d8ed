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
    caught: str  # the vectors that must deviate, or functions for all of theirs; with :ID if they list this deviation


FAULTS = dict(
    labels_from_one=Fault(
        'labels are counted from 1',
        'return model, t, case.parameters',
        "return model, t | (dict(y=(t['y'] - 1).clamp(min=0)) if 'y' in t else {}), case.parameters",
        (
            'forward fgsm:labels_from_one pgd:labels_from_one mim-conv:labels_from_one '
            'mim-relu-decay-half:labels_from_one mim-relu-decay-one cw:labels_from_one feature_attack '
            'spsa_gradient square trades_loss alp_loss adt_exp adt_exp_am adt_imp_am'
        ),
    ),
    training_mode=Fault(
        'batch normalisation in training mode',
        'model = build(case, DTYPE) if case.network else None',
        'model = build(case, DTYPE).train() if case.network else None',
        (
            'forward-conv:training_mode fgsm-conv:training_mode pgd-conv:training_mode '
            'mim-conv:training_mode cw-conv:training_mode trades_attack-conv:training_mode '
            'feature_attack-conv spsa_gradient-conv square-conv trades_loss-conv alp_loss-conv '
            'feature_scatter-conv-few-rounds adt_exp-conv-small-eps adt_exp_am-conv'
        ),
    ),
    mean_gradient=Fault(
        'the gradient is that of a mean over the batch',
        "gradient = slope(lambda x: cross_entropy(model(x), t['y']), t['x'])",
        "gradient = slope(lambda x: cross_entropy(model(x), t['y']) / len(x), t['x'])",
        'forward',
    ),
    softmax_twice=Fault(
        'softmax is applied twice',
        "return F.cross_entropy(z, y, reduction='none')",
        "return F.cross_entropy(z.softmax(1), y, reduction='none')",
        'forward fgsm pgd mim trades_loss alp_loss adt_exp adt_exp_am adt_imp_am',
    ),
    wrong_eps=Fault(
        '0.031 is used for 8/255',
        "return p['eps']",
        "return 0.031 if abs(p['eps'] - 8 / 255) < 1e-9 else p['eps']",
        (
            'fgsm-relu:eps_0031 pgd-relu-small-steps:eps_0031 mim-conv:eps_0031 cw-conv:eps_0031 '
            'trades_attack-relu:eps_0031 feature_attack-relu-small-steps square-conv '
            'feature_scatter-relu-small-eps'
        ),
    ),
    eps_in_float32=Fault(
        'ε is rounded to float32',
        "return p['eps']",
        "return torch.tensor(p['eps'], dtype=torch.float32).item()",
        (
            'fgsm pgd-conv pgd-linear-clean pgd-linear-zero-gradient pgd-relu-small-steps '
            'pgd-relu-unclipped-start mim-conv mim-relu-decay-one cw trades_attack feature_attack square '
            'feature_scatter'
        ),
    ),
    eps_over_255=Fault(
        'ε is divided by 255, although images are in [0, 1]',
        "return p['eps']",
        "return p['eps'] / 255",
        'fgsm:eps_in_255ths pgd:eps_in_255ths mim cw trades_attack feature_attack square feature_scatter',
    ),
    sign_of_zero=Fault(
        'the sign of 0 is +1',
        'return a.sign()',
        'return torch.where(a >= 0, 1.0, -1.0).to(a)',
        'pgd-linear-zero-gradient:sign_of_zero cw-conv:sign_of_zero cw-relu-small-kappa:sign_of_zero',
    ),
    no_ball=Fault(
        'iterates are not clipped to the ball',
        'in_ball = x_adv.clamp(x - eps, x + eps)',
        'in_ball = x_adv',
        'pgd:no_ball pgd-linear-clean mim:no_ball cw:no_ball trades_attack:no_ball feature_attack feature_scatter',
    ),
    no_pixel_range=Fault(
        'iterates are not clipped to [0, 1]',
        'return in_ball.clamp(0, 1)',
        'return in_ball',
        (
            'fgsm:not_clipped pgd:not_clipped mim:not_clipped cw:not_clipped trades_attack:not_clipped '
            'feature_attack feature_scatter:not_clipped'
        ),
    ),
    fgsm_descends=Fault(
        'FGSM descends',
        'x + eps * sign(gradient), x, eps)',
        'x - eps * sign(gradient), x, eps)',
        'fgsm:descends',
    ),
    start_always_clipped=Fault(
        'the start is clipped to [0, 1] always',
        "if p['clip_start']:",
        'if True:',
        (
            'pgd-conv:start_clipped pgd-relu-small-steps:start_clipped '
            'pgd-relu-unclipped-start:start_clipped mim-relu-decay-one:start_clipped '
            'cw-relu:start_clipped cw-relu-small-kappa:start_clipped trades_attack-conv:start_clipped'
        ),
    ),
    start_never_clipped=Fault(
        'the start is never clipped',
        "if p['clip_start']:",
        'if False:',
        (
            'pgd-linear-zero-gradient:start_not_clipped pgd-relu-clipped-start:start_not_clipped '
            'mim-relu-decay-half:start_not_clipped cw-conv:start_not_clipped '
            'trades_attack-relu:start_not_clipped'
        ),
    ),
    start_left_out=Fault(
        'the attack starts at the clean image',
        "at = x + eps * t.get('start', torch.zeros_like(x))",
        'at = x',
        (
            'pgd-conv:start_left_out pgd-linear-zero-gradient:start_left_out '
            'pgd-relu-clipped-start:start_left_out pgd-relu-small-steps:start_left_out '
            'pgd-relu-unclipped-start:start_left_out mim-relu-decay-half:start_left_out '
            'mim-relu-decay-one:start_left_out cw:start_left_out trades_attack'
        ),
    ),
    start_not_scaled=Fault(
        'the start is not scaled by ε',
        "at = x + eps * t.get('start', torch.zeros_like(x))",
        "at = x + t.get('start', torch.zeros_like(x))",
        (
            'pgd-conv:start_in_pixel_values pgd-linear-zero-gradient:start_in_pixel_values '
            'pgd-relu-clipped-start:start_in_pixel_values pgd-relu-small-steps:start_in_pixel_values '
            'pgd-relu-unclipped-start:start_in_pixel_values mim-relu-decay-half:start_in_pixel_values '
            'mim-relu-decay-one:start_in_pixel_values cw:start_in_pixel_values '
            'trades_attack:start_in_pixel_values'
        ),
    ),
    one_step_less=Fault(
        'one step too few',
        "iterates, losses, signs = [at], [], []\n    for _ in range(p['steps']):",
        "iterates, losses, signs = [at], [], []\n    for _ in range(p['steps'] - 1):",
        (
            'pgd-conv pgd-linear-clean pgd-linear-zero-gradient:one_step_too_few '
            'pgd-relu-clipped-start:one_step_too_few pgd-relu-small-steps:one_step_too_few '
            'pgd-relu-unclipped-start mim:one_step_too_few cw:one_step_too_few '
            'trades_attack:one_step_too_few'
        ),
    ),
    one_step_more=Fault(
        'one step too many',
        "iterates, losses, signs = [at], [], []\n    for _ in range(p['steps']):",
        "iterates, losses, signs = [at], [], []\n    for _ in range(p['steps'] + 1):",
        (
            'pgd-conv:one_step_too_many pgd-linear-clean pgd-linear-zero-gradient:one_step_too_many '
            'pgd-relu-clipped-start:one_step_too_many pgd-relu-small-steps:one_step_too_many '
            'pgd-relu-unclipped-start:one_step_too_many mim:one_step_too_many cw-conv:one_step_too_many '
            'cw-relu:one_step_too_many cw-relu-small-kappa trades_attack:one_step_too_many'
        ),
    ),
    descends=Fault(
        'the steps descend',
        "at = ball(at + p['step_size'] * signs[-1], x, eps)",
        "at = ball(at - p['step_size'] * signs[-1], x, eps)",
        'pgd:descends mim:descends cw:descends trades_attack:descends',
    ),
    step_of_quarter=Fault(
        'the step is ε/4 whatever is asked for',
        "at = ball(at + p['step_size'] * signs[-1], x, eps)",
        'at = ball(at + eps / 4 * signs[-1], x, eps)',
        'pgd mim-relu-decay-half mim-relu-decay-one cw-relu trades_attack-conv',
    ),
    step_not_sign=Fault(
        'the step is along the gradient, not its sign',
        "at = ball(at + p['step_size'] * signs[-1], x, eps)",
        "at = ball(at + p['step_size'] * m, x, eps)",
        'pgd mim cw trades_attack',
    ),
    clipped_once=Fault(
        'only the last iterate is clipped',
        "at = ball(at + p['step_size'] * signs[-1], x, eps)\n        iterates.append(at)\n    result = iterates[-1]",
        "at = at + p['step_size'] * signs[-1]\n        iterates.append(at)\n    result = ball(at, x, eps)",
        (
            'pgd-conv:clipped_once pgd-linear-clean:clipped_once pgd-linear-zero-gradient '
            'pgd-relu-clipped-start:clipped_once pgd-relu-small-steps:clipped_once '
            'pgd-relu-unclipped-start:clipped_once mim:clipped_once cw:clipped_once '
            'trades_attack:clipped_once'
        ),
    ),
    best_for_last=Fault(
        'the iterate with the largest loss is returned, not the last',
        'result = iterates[-1]',
        'losses.append(value(model, at, x, y))\n'
        '    result = torch.stack(iterates)[torch.stack(losses).argmax(0), torch.arange(len(x))]\n'
        '    losses = losses[:-1]',
        (
            'pgd-conv:best_iterate pgd-relu-clipped-start:best_iterate '
            'pgd-relu-unclipped-start:best_iterate mim-conv:best_iterate '
            'mim-relu-decay-half:best_iterate cw-relu:best_iterate'
        ),
    ),
    momentum_per_batch=Fault(
        'the gradient is divided by its mean over the batch',
        'size = g.abs().mean((1, 2, 3), keepdim=True)',
        'size = g.abs().mean()',
        'mim-relu-decay-half:normalised_over_batch mim-relu-decay-one:normalised_over_batch',
    ),
    momentum_not_normalised=Fault(
        'the gradient is not normalised before it is accumulated',
        'return decay * m + g / size',
        'return decay * m + g',
        'mim-relu-decay-half:not_normalised mim-relu-decay-one:not_normalised',
    ),
    momentum_one=Fault(
        'the decay is always 1',
        'return decay * m + g / size',
        'return m + g / size',
        'mim-relu-decay-half:decay_one',
    ),
    momentum_before=Fault(
        'the gradients are not accumulated',
        'return decay * m + g / size',
        'return g / size',
        'mim:decay_left_out mim-relu-decay-half',
    ),
    label_among_others=Fault(
        'the label is among the other classes',
        'others = z.scatter(1, y[:, None], -math.inf)',
        'others = z',
        'cw:label_among_others feature_attack spsa_gradient square',
    ),
    kappa_sign=Fault(
        'κ has the wrong sign',
        '-(margin(model(at), y) + kappa).clamp(min=0)',
        '-(margin(model(at), y) - kappa).clamp(min=0)',
        'cw:kappa_negated',
    ),
    kappa_left_out=Fault(
        'the climb ends when the image is misclassified (κ = 0)',
        '-(margin(model(at), y) + kappa).clamp(min=0)',
        '-margin(model(at), y).clamp(min=0)',
        'cw:kappa_zero cw-conv',
    ),
    kappa_not_flat=Fault(
        'the climb never ends',
        '-(margin(model(at), y) + kappa).clamp(min=0)',
        '-(margin(model(at), y) + kappa)',
        'cw-conv:kappa_infinite cw-relu-small-kappa:kappa_infinite',
    ),
    attack_reversed=Fault(
        'the divergence that is climbed is taken the other way round',
        'divergence(model(x).detach(), model(at))',
        'divergence(model(at), model(x).detach())',
        'trades_attack:divergence_reversed',
    ),
    feature_start_not_clipped=Fault(
        'FeaAttack starts outside of [0, 1]',
        'path = [(x + radius(p) * start).clamp(0, 1)]',
        'path = [x + radius(p) * start]',
        'feature_attack',
    ),
    feature_last_not_tested=Fault(
        'the last iterate is not tested',
        'tested = path\n',
        'tested = path[:-1]\n',
        'feature_attack:last_left_out',
    ),
    feature_last_only=Fault(
        'the last iterate is taken, not the best',
        'best = margins.argmin(0)',
        'best = torch.full_like(y, len(path) - 1)',
        'feature_attack-relu:last_iterate feature_attack-relu-small-steps:last_iterate',
    ),
    feature_distance=Fault(
        'the distance of the features, not their angle',
        'F.cosine_similarity(model.features(at), goal)',
        '-(model.features(at) - goal).square().sum(1)',
        'feature_attack',
    ),
    feature_away=Fault(
        'the features move away from the target',
        "path.append(ball(path[-1] + p['step_size'] * sign(gradient), x, radius(p)))",
        "path.append(ball(path[-1] - p['step_size'] * sign(gradient), x, radius(p)))",
        'feature_attack:descends',
    ),
    feature_last_target=Fault(
        'the result of the last target that succeeds',
        'if value < 0][:1]',
        'if value < 0][-1:]',
        'feature_attack',
    ),
    feature_first_target=Fault(
        'only the first target is tried',
        'chosen += first_wrong or [of_image.index(min(of_image))]',
        'chosen += [0]',
        'feature_attack:first_target',
    ),
    spsa_clipped=Fault(
        'the points are clipped to [0, 1]',
        "model(t['x'] + side * sigma * d)",
        "model((t['x'] + side * sigma * d).clamp(0, 1))",
        'spsa_gradient:points_clipped',
    ),
    spsa_twice=Fault(
        'the difference is divided by σ, not by 2σ',
        '/ (2 * sigma)',
        '/ sigma',
        'spsa_gradient:not_halved',
    ),
    spsa_sum=Fault(
        'the estimates are added up, not averaged',
        "return arrays(gradient=total / len(t['directions']))",
        'return arrays(gradient=total)',
        'spsa_gradient:summed',
    ),
    spsa_margin=Fault(
        'the margin itself is climbed',
        'up, down = (-margin(',
        'up, down = (margin(',
        'spsa_gradient:margin_not_negated',
    ),
    square_worse=Fault(
        'every candidate becomes the best point',
        'if found < best[1]:',
        'if True:',
        'square',
    ),
    square_never_ends=Fault(
        'an image is tried further after it is misclassified',
        'if best[1] < 0:',
        'if False:',
        'square:goes_on',
    ),
    square_added=Fault(
        'a patch is added to the best point instead of replacing it',
        'tried[:, rows, columns] = x[:, rows, columns] + eps * signs[:, None, None]',
        'tried[:, rows, columns] += eps * signs[:, None, None]',
        'square',
    ),
    square_from_clean=Fault(
        'each patch is put into the clean image',
        'tried = best[0].clone()',
        'tried = x.clone()',
        'square',
    ),
    square_not_clipped=Fault(
        'the candidates are not clipped to [0, 1]',
        'tried = tried.clamp(0, 1)\n',
        'tried = tried\n',
        'square',
    ),
    square_rows=Fault(
        'the stripes are rows',
        "yield x + eps * t['stripes'][i][:, None]",
        "yield x + eps * t['stripes'][i][:, : x.shape[1], None]",
        'square:stripes_across',
    ),
    square_swapped=Fault(
        'the place of a patch is left, top',
        'top, left, height, width = patch',
        'left, top, height, width = patch',
        'square',
    ),
    square_counts=Fault(
        'the query of the clean image is not counted',
        "y, asked = t['y'][i : i + 1], 1",
        "y, asked = t['y'][i : i + 1], 0",
        'square:clean_not_counted',
    ),
    loss_reversed=Fault(
        'the divergence of the loss is taken the other way round',
        'pairing = divergence(clean, adversarial)',
        'pairing = divergence(adversarial, clean)',
        'trades_loss:divergence_reversed',
    ),
    loss_detached=Fault(
        'the clean prediction is held fixed',
        'pairing = divergence(clean, adversarial)',
        'pairing = divergence(clean.detach(), adversarial)',
        'trades_loss:clean_held_fixed',
    ),
    loss_beta=Fault(
        'β is left out of the loss (β = 1)',
        "p['beta'] * pairing",
        'pairing',
        'trades_loss:beta_left_out',
    ),
    loss_adversarial=Fault(
        'the cross-entropy is that of the adversarial image',
        "cross_entropy(clean, t['y']) + p['beta'] * pairing",
        "cross_entropy(adversarial, t['y']) + p['beta'] * pairing",
        'trades_loss:adversarial_cross_entropy',
    ),
    loss_over_classes=Fault(
        'the divergence is averaged over the classes as well',
        'return (log_p.exp() * (log_p - log_q)).sum(1)',
        'return (log_p.exp() * (log_p - log_q)).mean(1)',
        'trades_attack trades_loss:mean_over_classes',
    ),
    loss_sum=Fault(
        'the loss is summed over the batch, not averaged',
        'values.mean().backward()',
        'values = values * len(values)\n    values.mean().backward()',
        'trades_loss:batch_sum alp_loss:batch_sum',
    ),
    alp_detached=Fault(
        'the logits of the clean image are held fixed',
        'squares = (clean - adversarial) ** 2',
        'squares = (clean.detach() - adversarial) ** 2',
        'alp_loss:clean_held_fixed',
    ),
    alp_sum=Fault(
        'the squares are summed over the classes, not averaged',
        "p['beta'] * squares.mean(1)",
        "p['beta'] * squares.sum(1)",
        'alp_loss:sum_over_classes',
    ),
    alp_halves=Fault(
        'the two cross-entropies are not halved',
        "halves + p['beta'] * squares",
        "2 * halves + p['beta'] * squares",
        'alp_loss:halves_left_out',
    ),
    plan_detached=Fault(
        'the gradient does not pass through the plan',
        'plan = plan_for(cost, p)',
        'plan = plan_for(cost.detach(), p)',
        'feature_scatter:plan_held_fixed',
    ),
    plan_clean_moves=Fault(
        'the cost is that between rows of the adversarial batch and columns of the clean one',
        'clean @ F.normalize(model(at)).T',
        'F.normalize(model(at)) @ clean.T',
        'feature_scatter',
    ),
    plan_one_round=Fault(
        'only one round of Sinkhorn',
        "range(p['rounds'])",
        'range(1)',
        'feature_scatter',
    ),
    plan_round_less=Fault(
        'one round of Sinkhorn too few',
        "range(p['rounds'])",
        "range(p['rounds'] - 1)",
        (
            'feature_scatter-conv-few-rounds:one_round_too_few '
            'feature_scatter-linear-sharp-plan:one_round_too_few '
            'feature_scatter-relu-small-eps:one_round_too_few'
        ),
    ),
    plan_columns_first=Fault(
        'the prices of the columns are set before those of the rows',
        "u = -p['reg'] * (math.log(n) + ((v[None] - cost) / p['reg']).logsumexp(1))\n"
        "        v = -p['reg'] * (math.log(n) + ((u[:, None] - cost) / p['reg']).logsumexp(0))",
        "v = -p['reg'] * (math.log(n) + ((u[:, None] - cost) / p['reg']).logsumexp(0))\n"
        "        u = -p['reg'] * (math.log(n) + ((v[None] - cost) / p['reg']).logsumexp(1))",
        (
            'feature_scatter-conv-few-rounds:columns_priced_first '
            'feature_scatter-linear-sharp-plan:columns_priced_first feature_scatter-relu-settled '
            'feature_scatter-relu-small-eps:columns_priced_first'
        ),
    ),
    plan_all_rounds=Fault(
        'the rounds do not end early',
        "if (u - before).abs().sum() < p['tol']:",
        'if False:',
        'feature_scatter-relu-settled:all_rounds',
    ),
    plan_inside=Fault(
        '1e-6 inside the logarithms of Sinkhorn',
        "u = -p['reg'] * (math.log(n) + ((v[None] - cost) / p['reg']).logsumexp(1))\n"
        "        v = -p['reg'] * (math.log(n) + ((u[:, None] - cost) / p['reg']).logsumexp(0))",
        "u = u - p['reg'] * (math.log(n) + (((u[:, None] + v - cost) / p['reg']).exp().sum(1) + 1e-6).log())\n"
        "        v = v - p['reg'] * (math.log(n) + (((u[:, None] + v - cost) / p['reg']).exp().sum(0) + 1e-6).log())",
        (
            'feature_scatter-conv-few-rounds feature_scatter-linear-sharp-plan:small_number_inside '
            'feature_scatter-relu-settled feature_scatter-relu-small-eps'
        ),
    ),
    scatter_start_clipped=Fault(
        'the start of feature scattering is clipped to [0, 1]',
        "start = x + eps * t['start']",
        "start = (x + eps * t['start']).clamp(0, 1)",
        'feature_scatter:start_clipped',
    ),
    scatter_from_clean=Fault(
        'the step starts at the clean image',
        'x_adv=ball(start + eps * signs, x, eps)',
        'x_adv=ball(x + eps * signs, x, eps)',
        'feature_scatter:step_from_clean',
    ),
    sigma_exp=Fault(
        'σ = exp(ρ) in the fits',
        'def spread(rho):\n    return F.softplus(rho)',
        'def spread(rho):\n    return rho.exp()',
        'adt_exp:exp_for_softplus adt_exp_am:exp_for_softplus',
    ),
    density_exp=Fault(
        'σ = exp(ρ) in the perturbation',
        "torch.tanh(mu + F.softplus(rho) * t['noise'])",
        "torch.tanh(mu + rho.exp() * t['noise'])",
        'tanh_gaussian:exp_for_softplus',
    ),
    density_no_tanh=Fault(
        "the tanh's part of the density is left out",
        '- 0.5 * math.log(2 * math.pi) - log_slope',
        '- 0.5 * math.log(2 * math.pi) - math.log(eps)',
        'tanh_gaussian',
    ),
    density_no_eps=Fault(
        "ε's part of the density is left out",
        'log_slope = math.log(eps) + 2',
        'log_slope = 2',
        'tanh_gaussian:eps_left_out',
    ),
    density_sum=Fault(
        'the log-density is a sum over pixels, not a mean',
        'log_density=per_image(density)',
        'log_density=density.sum((1, 2, 3))',
        'tanh_gaussian',
    ),
    momentum_always=Fault(
        'the gradients are never set to zero',
        "p['momentum'] * old + new",
        'old + new',
        'adt_exp-relu-momentum-zero:gradients_kept',
    ),
    momentum_never=Fault(
        'the gradients are set to zero in each step',
        "p['momentum'] * old + new",
        'new',
        (
            'adt_exp-conv-small-eps:gradients_zeroed adt_exp-linear-several-draws:gradients_zeroed '
            'adt_exp-relu-large-tol:gradients_zeroed adt_exp-relu-momentum-one:gradients_zeroed'
        ),
    ),
    entropy_left_out=Fault(
        'the entropy is left out (λ = 0)',
        "objective = objective + cross_entropy(model(at), y) + p['lbd'] * per_image(h)",
        'objective = objective + cross_entropy(model(at), y)',
        'adt_exp:entropy_left_out',
    ),
    entropy_sign=Fault(
        'the entropy is descended',
        "objective = objective + cross_entropy(model(at), y) + p['lbd'] * per_image(h)",
        "objective = objective + cross_entropy(model(at), y) - p['lbd'] * per_image(h)",
        'adt_exp:entropy_sign',
    ),
    entropy_sum=Fault(
        'the entropy is a sum over pixels, not a mean',
        "p['lbd'] * per_image(h)\n        objectives",
        "p['lbd'] * h.sum((1, 2, 3))\n        objectives",
        'adt_exp:entropy_sum',
    ),
    exp_batch_mean=Fault(
        'the objective is a mean over the batch',
        'torch.autograd.grad(objective.sum(), (mu, rho))',
        'torch.autograd.grad(objective.mean(), (mu, rho))',
        (
            'adt_exp-conv-small-eps adt_exp-linear-several-draws adt_exp-relu-large-tol:batch_mean '
            'adt_exp-relu-momentum-one adt_exp-relu-momentum-zero'
        ),
    ),
    exp_sign=Fault(
        'the step is the sign of the gradient',
        "steps = [g / (g.abs() + p['tol']) for g in total]",
        'steps = [g.sign() for g in total]',
        (
            'adt_exp-conv-small-eps adt_exp-linear-several-draws adt_exp-relu-large-tol:pure_sign '
            'adt_exp-relu-momentum-one adt_exp-relu-momentum-zero'
        ),
    ),
    exp_one_draw=Fault(
        'one draw is used in a step',
        'for noise in draws:',
        'for noise in draws[:1]:',
        (
            'adt_exp-conv-small-eps:first_draw_only adt_exp-linear-several-draws:first_draw_only '
            'adt_exp-relu-large-tol:first_draw_only adt_exp-relu-momentum-zero:first_draw_only'
        ),
    ),
    exp_same_draws=Fault(
        'the draws of the first step are used in each step',
        "for draws in t['noise']:",
        "for draws in t['noise'][:1].expand_as(t['noise']):",
        'adt_exp:draws_reused',
    ),
    exp_not_clipped=Fault(
        'the images of a fit are not clipped',
        "at = (x + p['eps'] * delta).clamp(0, 1)",
        "at = x + p['eps'] * delta",
        'adt_exp:not_clipped',
    ),
    exp_descends=Fault(
        'the fit descends',
        "mu, rho = mu + p['step_size'] * steps[0], rho + p['step_size'] * steps[1]",
        "mu, rho = mu - p['step_size'] * steps[0], rho - p['step_size'] * steps[1]",
        'adt_exp:descends',
    ),
    exp_one_step_less=Fault(
        'one step of the fit too few',
        'found = torch.autograd.grad(objective.sum(), (mu, rho))',
        "if len(objectives) == p['steps']:\n            path.append((mu, rho))\n            break\n"
        '        found = torch.autograd.grad(objective.sum(), (mu, rho))',
        'adt_exp:one_step_too_few',
    ),
    generator_no_fgsm=Fault(
        'the second gradient is taken at the image again',
        "p['gradient_scale'] * gradient(point)",
        "p['gradient_scale'] * gradient(x)",
        'adt_exp_am:second_gradient_at_x adt_imp_am:second_gradient_at_x',
    ),
    generator_not_clipped=Fault(
        'the FGSM point is not clipped',
        "point = (x + p['eps'] * first.sign()).clamp(0, 1)",
        "point = x + p['eps'] * first.sign()",
        'adt_exp_am adt_imp_am:fgsm_point_not_clipped',
    ),
    generator_no_scale=Fault(
        "the generator's input has raw gradients",
        "p['gradient_scale'] * first, p['gradient_scale']",
        'first, 1',
        'adt_exp_am:gradient_scale_left_out adt_imp_am:gradient_scale_left_out',
    ),
    generator_swapped=Fault(
        'the generator gives ρ first',
        'mu, rho = out.chunk(2, 1)',
        'rho, mu = out.chunk(2, 1)',
        'adt_exp_am:halves_swapped',
    ),
    generator_descends=Fault(
        'the generator descends',
        'list(w.values()), retain_graph=True)',
        'list(w.values()), -torch.ones(()).to(objective), retain_graph=True)',
        'adt_exp_am:generator_descends adt_imp_am:generator_descends',
    ),
    generator_no_entropy=Fault(
        "the generator's entropy is left out (λ = 0)",
        "objective = loss + p['lbd'] * counted(entropy)",
        'objective = loss + 0 * counted(entropy)',
        'adt_exp_am:entropy_left_out adt_imp_am-linear-free:entropy_left_out',
    ),
    generator_entropy_sign=Fault(
        "the generator's entropy is descended",
        "objective = loss + p['lbd'] * counted(entropy)",
        "objective = loss - p['lbd'] * counted(entropy)",
        'adt_exp_am adt_imp_am-linear-free:entropy_sign',
    ),
    hinge_missing=Fault(
        'the hinge is missing',
        'lambda h: h.clamp(max=hinge)',
        'lambda h: h',
        'adt_imp_am-relu-hinge:hinge_missing',
    ),
    hinge_sign=Fault(
        'the hinge has the wrong sign',
        "hinge = -p['u_max']",
        "hinge = p['u_max']",
        'adt_imp_am-relu-hinge:hinge_missing',
    ),
    hinge_each_image=Fault(
        'the hinge is on each image, not on their mean',
        'log_q.mean(1), lambda h: h.clamp(max=hinge)',
        'log_q.mean(1).clamp(max=hinge), lambda h: h',
        'adt_imp_am-relu-hinge',
    ),
    encoder_deviation=Fault(
        "the encoder's second half is taken as standard deviations",
        'variance = F.softplus(variance)',
        'variance = F.softplus(variance) ** 2',
        'adt_imp_am:softplus_as_deviation',
    ),
    encoder_sum=Fault(
        'the bound is a sum over the latent dimensions, not a mean',
        "p['eps'] * delta, log_q.mean(1)",
        "p['eps'] * delta, log_q.sum(1)",
        'adt_imp_am:entropy_sum',
    ),
    encoder_sees_delta=Fault(
        'the encoder gets δ, not δ/ε',
        'delta.flatten(1) @',
        "(p['eps'] * delta).flatten(1) @",
        'adt_imp_am:encoder_reads_delta',
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
    "The same as `found`, as the fault says it; an AssertionError if there is no such vector"
    said = {}
    for word in fault.caught.split():
        name, _, id = word.partition(':')
        meant = [case.name for case in vectors() if name in (case.name, case.function)]
        assert meant, f'{name}: no such vector'
        said |= dict.fromkeys(meant, id or None)
    return said


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
