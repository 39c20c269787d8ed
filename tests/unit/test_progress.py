"A declared scale: what it says before its first run, how far it has come, and what of it is committed"

from pathlib import Path

import pytest
import yaml
from helpers import ROOT, files_of_git

from adt_repro.base.parameters import ParameterError
from adt_repro.paper.claims import paper_claims, published_table1
from adt_repro.planning.progress import main, progress_table, show_progress
from adt_repro.runs.config import CLAIM_NAMES
from adt_repro.runs.lock import beginning_file
from adt_repro.runs.scales import check_scale, read_scale, scale_runs

MID = ROOT / 'nbs' / 'scales' / 'mid.yaml'
LARGEST_CHECKPOINT = 15 * 10**6


def declared(**change):
    "The scale mid with another claim C1"
    content = yaml.safe_load(MID.read_text(encoding='utf-8'))
    content['experiments']['declared']['claims']['C1'] |= change
    return content


def test_what_is_declared_can_be_decided():
    "Every claim has its rows, seeds and test images among those of the scale; a run decides the first claims first"
    scale = read_scale(MID)
    claims = scale.asked['declared']['claims']
    assert list(claims)[0] == 'C1' and claims['C1']['seeds'] >= 5 and claims['C1']['n_test'] == 10000
    assert all(claim['effect'] > 0 for claim in claims.values())
    table = progress_table(scale, root='nowhere')
    assert set(table.run) == set(scale_runs(scale))
    first = table.head(2 * claims['C1']['seeds'])
    assert set(first.row) == {'adt_exp', 'at_pgd'}
    assert list(first.seed) == [seed for seed in range(claims['C1']['seeds']) for _ in range(2)]


@pytest.mark.parametrize(
    'change, line',
    [
        (dict(rows=['adt_exp', 'alp']), "rows='alp': expected at_pgd, adt_exp"),
        (dict(rows=['adt_exp_am', 'at_pgd']), 'seeds=5: expected at most the 3 of adt_exp_am'),
        (
            dict(attacks=['feature']),
            'n_test=10000: expected at most 1000, the test images of adt_exp under feature',
        ),
        (dict(attacks=['spsa']), 'expected a list of at least 1, each item natural, fgsm'),
        (dict(effect=0), 'effect=0: expected a number in'),
        (dict(margin=1), 'margin=1: there is no such parameter'),
    ],
)
def test_what_cannot_be_decided_is_refused_in_one_line(change, line):
    with pytest.raises(ParameterError) as e:
        check_scale(declared(**change))
    assert 'experiments: declared: claims: C1: ' in str(e.value) and line in str(e.value)
    assert '\n' not in str(e.value)


def test_what_is_added_later_says_when_and_why():
    content = declared()
    for added in {'C1': 'later'}, {'C10': '2026-12-24: asked for'}:
        content['experiments']['declared']['added'] = added
        with pytest.raises(ParameterError, match='declared: added='):
            check_scale(content)
    content['experiments']['declared']['added'] = {'C1': '2026-12-24: asked for'}
    check_scale(content)


def test_the_command(monkeypatch, capsys):
    "It reads what is committed, and its last line goes on"
    monkeypatch.chdir(ROOT)
    assert main(['nbs/scales/mid.yaml']) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert (
        said.err == ''
        and lines[0].startswith('Scale mid: ')
        and 'are left at the mean pace so far' in lines[1]
    )
    assert lines[-1].startswith('next: ')
    assert max(map(len, lines)) < 160


def test_one_line_on_what_is_wrong(tmp_path, capsys):
    assert main([]) == 1 and main([str(tmp_path / 'none.yaml')]) == 1
    folder = tmp_path / 'outputs' / 'mid' / 'runs' / next(iter(scale_runs(read_scale(MID))))
    folder.mkdir(parents=True)
    (folder / 'checkpoint.pt').write_bytes(b'no state of training')
    with pytest.raises(ParameterError, match="checkpoint='checkpoint.pt': cannot be read"):
        show_progress(MID, tmp_path)
    assert capsys.readouterr().err.count('\n') == 2


def offences(names, root):
    "What is wrong with the checkpoints among files that are committed"
    for name in names:
        if Path(name).match('outputs/*/runs/*/checkpoint.pt'):
            if (root / name).stat().st_size >= LARGEST_CHECKPOINT:
                yield f'{name} is too large'
            if (root / name).with_name('run.json').exists():
                yield f'{name} belongs to a finished run'
            if not beginning_file(root / Path(name).parents[2], Path(name).parent.name).exists():
                yield f'{name} is committed without the code from which it began'
        elif Path(name).match('outputs/*/.locks/*'):
            run = Path(name).stem.removeprefix('begun-')
            if not (root / Path(name).parents[1] / 'runs' / run / 'checkpoint.pt').exists():
                yield f'{name} belongs to no state of training'


def test_what_is_committed_of_a_run_that_is_not_finished(tmp_path):
    "Its checkpoint, while it is small, and from which code it began; nothing is left beside a finished run"
    assert not list(offences(files_of_git(), ROOT))
    names = [f'outputs/mid/runs/{run}/checkpoint.pt' for run in ('small', 'large', 'finished', 'alone')]
    begun = [f'outputs/mid/.locks/begun-{run}.json' for run in ('small', 'large', 'finished', 'gone')]
    for name in begun:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(bytes(LARGEST_CHECKPOINT if 'large' in name else 10))
    (tmp_path / names[2]).with_name('run.json').touch()
    assert list(offences(names + begun, tmp_path)) == [
        f'{names[1]} is too large',
        f'{names[2]} belongs to a finished run',
        f'{names[3]} is committed without the code from which it began',
        f'{begun[3]} belongs to no state of training',
    ]


def test_a_declared_claim_is_one_of_the_paper():
    "A misspelt name is refused before the campaign, a second form of a claim is not"
    assert CLAIM_NAMES == tuple(claim.key for claim in paper_claims(published_table1()))
    content = declared()
    claims = content['experiments']['declared']['claims']
    assert 'C1_feature' in claims and check_scale(content)
    claims['C77'] = claims['C1']
    with pytest.raises(ParameterError, match="claims='C77': expected one of C1, C1b, .*, or one with _"):
        check_scale(content)
