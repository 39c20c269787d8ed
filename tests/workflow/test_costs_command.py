"The costs of the paper's scale from the shell"

import sys

from helpers import run


def test_the_papers_costs_from_the_shell():
    "Without its data"
    done = run(sys.executable, '-m', 'adt_repro.planning.costs', 'nbs/scales/paper.yaml')
    assert done.returncode == 0, done.stderr
    assert done.stderr == ''
    for words in 'wrn-28-10', '30 TFLOP/s as stated', 'upper bound':
        assert words in done.stdout
