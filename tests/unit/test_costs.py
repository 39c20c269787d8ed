"The costs of a scale, as its users see them: a table or one line, before anything starts"

import pytest
import yaml
from helpers import ROOT

from adt_repro.base.parameters import ParameterError
from adt_repro.planning.costs import cost_table, main, show, step_costs
from adt_repro.runs.config import EXPERIMENTS
from adt_repro.training.passes import attack_passes

PAPER = yaml.safe_load((ROOT / 'nbs' / 'scales' / 'paper.yaml').read_text())
SMALL = dict(
    dataset='digits',
    epochs=2,
    n_train=100,
    experiments=dict(methods=['standard', 'at_pgd'], seeds=[0, 1], rate=0.02),
)


def test_the_papers_costs():
    "Training by hand: 50,000 images, 76 epochs, 3 or 73 passes of 5.24 GMAC"
    table = cost_table(PAPER).set_index('what')
    for name, passes in dict(standard=3, adt_exp=73).items():
        by_hand = 2 * 5.24e9 * 50000 * 76 * passes / 1e18
        assert table.eflop[f'train: {name}'] == pytest.approx(by_hand, rel=0.01)
    assert list(table.index) == [f'train: {m}' for m in PAPER['experiments']['methods']] + [
        'watch',
        *(k for k in EXPERIMENTS if k in PAPER['experiments']),
        'total',
    ]
    assert table.hours['total'] == pytest.approx(table.eflop['total'] * 1e18 / 30e12 / 3600)


def test_what_is_asked_is_what_it_costs():
    "More seeds, images or attacks cost in proportion; a run that only an experiment names is trained too"

    def eflop(what, **experiments):
        scale = SMALL | dict(experiments=SMALL['experiments'] | experiments)
        table, steps = cost_table(scale).set_index('what'), step_costs(scale)
        gain = steps[(steps.experiment == what) & steps.what.str.endswith(', gain')]  # of 200 images at most
        return table.eflop[what] - gain.eflop.sum()

    assert eflop('train: at_pgd', seeds=[0, 1, 2, 3]) == pytest.approx(2 * eflop('train: at_pgd'))
    more = dict(more_seeds=dict(at_pgd=[1, 2, 3]), white_box=dict(n_test=100))  # seed 1 is there already
    assert eflop('train: at_pgd', **more) == pytest.approx(2 * eflop('train: at_pgd')) and eflop(
        'train: standard', **more
    ) == eflop('train: standard')
    assert eflop('white_box', **more) == pytest.approx(
        1.5 * eflop('white_box', white_box=dict(n_test=100)), rel=0.01
    )
    whole, few = (eflop('white_box', white_box=dict(n_test=n)) for n in (300, 100))
    assert whole == pytest.approx(3 * few)
    alone = eflop('white_box', white_box=dict(attacks=['pgd20'], draws=0, sound=False))
    both = eflop('white_box', white_box=dict(attacks=['pgd20', 'pgd100'], draws=0, sound=False))
    assert both / alone == pytest.approx((1 + 41 + 201) / (1 + 41))
    few = eflop(
        'white_box',
        white_box=dict(
            attacks=['pgd20', 'pgd100'], draws=0, sound=False, n_test=1000, limits=dict(pgd100=100)
        ),
    )
    assert few / eflop(
        'white_box', white_box=dict(attacks=['pgd20'], draws=0, sound=False, n_test=1000)
    ) == pytest.approx((1 + 41 + 20.1) / (1 + 41), abs=0.05)
    low = eflop(
        'white_box',
        white_box=dict(attacks=['pgd20'], draws=0, sound=False, n_test=1000, precision='bf16', n_beside=1000),
    )
    assert low == pytest.approx(
        2 * eflop('white_box', white_box=dict(attacks=['pgd20'], draws=0, sound=False, n_test=1000))
    )
    content = SMALL | dict(experiments=SMALL['experiments'] | dict(white_box=dict(n_test=300)))
    steps = step_costs(content)
    gain = steps[(steps.experiment == 'white_box') & steps.what.str.endswith(', gain')]
    assert (gain.images == 200).all() and (gain.passes > 20 + 1 + 2 + 40).all() and len(gain)
    assert eflop('train: adt_exp', diversity=dict(methods=['adt_exp'], seeds=[0])) > 0
    steps = step_costs(
        SMALL
        | dict(
            experiments=SMALL['experiments']
            | dict(transfer=dict(targets=['at_pgd'], sources=['standard'], n_test=10))
        )
    ).set_index(['experiment', 'what'])
    assert (
        steps.passes['transfer', 'at_pgd'] == 1 + 2 * 41 + 2
        and steps.passes['transfer', 'made on standard'] == 2 * 40
    )


@pytest.mark.parametrize(
    'change, says',
    [
        (dict(experiments=None), 'experiments=None: expected a table of experiments'),
        (dict(experiments=dict(methods=['standard'])), 'experiments: rate=None: expected a number above 0'),
        (dict(experiments=dict(rate=1)), 'experiments: methods=None: expected a list'),
        (dict(experiments=dict(methods=['standart'], rate=1)), "method='standart'"),
        (
            dict(experiments=dict(methods=['standard'], rate=1, more_seeds=dict(at_pgd=[1]))),
            "more_seeds='at_pgd': expected standard",
        ),
        (dict(experiments=dict(methods=['standard'], rate=1, whitebox={})), "did you mean 'white_box'"),
        (dict(experiments=dict(methods=['standard'], rate=1, spsa=dict(samples=[3]))), 'spsa: samples='),
        (
            dict(experiments=dict(methods=['standard'], rate=1, spsa=dict(n_tset=3))),
            "spsa: n_tset=3: there is no such parameter, did you mean 'n_test'",
        ),
        (dict(experiments=dict(methods=['standard'], rate=1, ablation=dict(lbd=[-1]))), 'lbd=[-1]'),
        (dict(epoch=3), "epoch=3: there is no such parameter, did you mean 'epochs'"),
    ],
    ids=str,
)
def test_bad_scales_are_one_line(change, says, tmp_path, capsys):
    (tmp_path / 'bad.yaml').write_text(yaml.safe_dump(SMALL | change))
    assert main([str(tmp_path / 'bad.yaml')]) == 1
    out, err = capsys.readouterr()
    assert out == '' and says in err and err.count('\n') == 1


@pytest.mark.parametrize('text', ['', '[1, 2]', '3: 4', 'a: [', 'a: !!python/object:os.system x'], ids=repr)
def test_files_that_are_no_scale(text, tmp_path, capsys):
    (tmp_path / 'bad.yaml').write_text(text)
    assert (
        main([str(tmp_path / 'bad.yaml')]) == 1 and main([str(tmp_path / 'none.yaml')]) == 1 and main([]) == 1
    )
    assert capsys.readouterr().err.count('\n') == 3


def test_a_count_is_a_count():
    for steps in 1, 20, 37:
        assert attack_passes('pgd20', steps=steps) == 2 * steps + 1
    with pytest.raises(ParameterError, match='expected natural, fgsm'):
        attack_passes('pgd')


def test_shown_as_text():
    lines = show(SMALL).splitlines()
    assert 'digits, small_cnn' in lines[0] and lines[-1].split()[0] == 'total' and max(map(len, lines)) < 160
