"""Two notebooks started at once: what is finished stays and is whole, and who has to wait is told why.

A few pairs in every run of the tests; all notebooks, several times each, with -m slow. And before any work:
outputs that cannot be written to. After it: nothing is left that no call needs.
"""

import re

import pandas as pd
import pytest
import warm
from helpers import papermill, papermill_arguments, small_project

SMALL = dict(n_test=20)
CALLS = {
    'white_box': SMALL | dict(attacks=['fgsm', 'pgd20'], draws=2, n_sound=10),
    'spsa': SMALL | dict(samples=[4], steps=4, budget=40),
    'transfer': SMALL | dict(attacks=['pgd20']),
    'landscape': dict(grid=5, n_images=2, n_samples=10, k=2, n_targets=1, n_curvature=2, curvature_steps=5),
    'diversity': dict(n_images=2, n_samples=10),
    'train': dict(method='standard', epochs=2, n_train=128, n_test=20, scale='tiny', seed=7),
    'ablation': dict(train='true', scale='tiny', lbd=[0], n_mc=[], inner_steps=[], inner_momentum=[], rho=[])
    | dict(u_max=[], seeds=2, epochs=1, n_train=64, n_test=20, draws=2),
    'benchmark': dict(parts=['training'], methods=['standard'], batch=2, machine='mine'),
}


@pytest.fixture
def project(tmp_path, give_tiny_runs):
    "All these notebooks, and finished runs"
    root = small_project(tmp_path, *CALLS)
    give_tiny_runs(root, 'standard', 'at_pgd', seeds=(0, 1))
    give_tiny_runs(root, 'adt_exp', 'adt_exp_am', 'adt_imp_am')
    return root


def start_both(project, *calls):
    "Exit status and last line of each of two notebooks, (name, parameters), that are started at once"
    started = []
    for n, (notebook, params) in enumerate(calls):
        said = [f'{project}/{n}.out', f'{project}/{n}.err']
        args = papermill_arguments(notebook, f'{n}.ipynb', **params)
        started.append(warm.start_fork(warm.papermill, *args, cwd=project, said=said))
    found = []
    for n, call in enumerate(started):
        call.join(300)
        lines = (project / f'{n}.err').read_text().strip().splitlines() or ['']
        found.append((call.exitcode, lines[-1]))
        call.kill()
    return found


def contents(project):
    "Every file under outputs/, with its content; locks left out"
    files = [file for file in (project / 'outputs').rglob('*') if file.is_file() and '.lock' not in str(file)]
    return {str(file.relative_to(project)): file.read_bytes() for file in files}


def check_whole(files):
    "Nothing half-written, and nothing temporary"
    assert not [name for name in files if name.endswith('.part')]
    for name, content in files.items():
        if name.endswith('.csv'):
            assert content.count(b'\n') > 1 and content.endswith(b'\n'), name
        if name.endswith('.png'):
            assert content.endswith(b'IEND\xaeB`\x82'), name
        if name.endswith('.parquet'):
            assert content.startswith(b'PAR1') and content.endswith(b'PAR1'), name


def numbers(files):
    "The tables and records among some files, for a comparison; seconds and digests left out"
    kinds = 'records/', 'tables/', 'frames/'
    return {name: content for name, content in files.items() if any(kind in name for kind in kinds)}


def check_one_wins(project, notebook):
    "One comes to its end and leaves what it leaves alone; the other says why it does not, in one line"
    before, call = contents(project), (notebook, CALLS[notebook])
    found = start_both(project, call, call)
    assert [status for status, _ in sorted(found)] == [0, 1], found
    line = max(found)[1]
    words = r"^ParameterError: (record|run)='.*': another process is (making it with|training it).* "
    assert re.search(words + r'\(process \d+ on host .*, since .*\), expected one at a time$', line), line
    after = contents(project)
    assert {name: after[name] for name in before if 'runs/' in name} == {
        name: content for name, content in before.items() if 'runs/' in name
    }
    assert len(after) > len(before)
    check_whole(after)
    done = papermill(project, notebook, **CALLS[notebook])  # what the winner left is found again
    assert done.returncode == 0, done.stderr[-1000:]
    if notebook != 'benchmark':  # whose numbers are times
        assert numbers(contents(project)) == numbers(after)


@pytest.mark.parametrize('notebook', ['white_box', 'spsa', 'train'])
def test_the_same_notebook_twice_at_once(notebook, project):
    check_one_wins(project, notebook)


@pytest.mark.slow
@pytest.mark.parametrize('again', range(5))
@pytest.mark.parametrize('notebook', CALLS)
def test_every_notebook_twice_at_once(notebook, again, project):
    check_one_wins(project, notebook)


def run_of(method):
    return dict(runs=[f'*-{method}-s0'])


PAIRS = {
    'two runs': (('white_box', run_of('standard')), ('white_box', run_of('at_pgd'))),
    'two experiments': (('spsa', {}), ('transfer', {})),
    'training beside': (('train', {}), ('spsa', {})),
    'figures': (('landscape', run_of('standard')), ('diversity', run_of('adt_exp'))),
}


def check_both_end(project, pair):
    "Two calls that have nothing in common but the scale both come to their end"
    calls = [(notebook, CALLS[notebook] | change) for notebook, change in PAIRS[pair]]
    found = start_both(project, *calls)
    assert [status for status, _ in found] == [0, 0], found
    check_whole(contents(project))


def test_two_experiments_at_once(project):
    check_both_end(project, 'two experiments')


@pytest.mark.slow
@pytest.mark.parametrize('again', range(3))
@pytest.mark.parametrize('pair', PAIRS)
def test_other_pairs_at_once(pair, again, project):
    check_both_end(project, pair)


# A folder that each notebook writes to, besides what it reads
FOLDERS = dict(white_box='tables', spsa='frames', transfer='records', landscape='figures', diversity='frames')
FOLDERS |= dict(ablation='figures', train='runs')


@pytest.mark.parametrize('notebook', FOLDERS)
def test_unwritable_outputs_are_found_before_any_work(notebook, project):
    "A file stands where the folder should be: one line, and nothing is trained or evaluated"
    params = CALLS[notebook] | dict(scale='full')
    (project / 'outputs' / 'tiny').rename(project / 'outputs' / 'full')
    if notebook == 'train':
        (project / 'outputs' / 'full' / 'runs').rename(project / 'runs')
    (project / 'outputs' / 'full' / FOLDERS[notebook]).touch()
    done = papermill(project, notebook, **params)
    line = (done.stderr.strip().splitlines() or ['it ended without a word'])[-1]
    words = "ParameterError: scale='full': expected a folder of outputs/ that can be written to "
    assert line.startswith(words), line
    assert not list(project.rglob('*.parquet')) and not list(project.rglob('ablation/runs/*'))


def test_the_folder_of_benchmarks(project):
    (project / 'outputs' / 'benchmark').touch()
    done = papermill(project, 'benchmark', **CALLS['benchmark'])
    line = (done.stderr.strip().splitlines() or ['it ended without a word'])[-1]
    assert line.startswith("ParameterError: scale='benchmark': expected a folder of outputs/"), line


@pytest.mark.parametrize('notebook', ['white_box', 'spsa', 'transfer'])
def test_no_table_is_written_through_a_link(notebook, project):
    "Links to a file outside stand where tables and frames go; the file outside stays"
    treasure, tiny = project / 'treasure', project / 'outputs' / 'tiny'
    treasure.write_bytes(b'probe')
    names = dict(
        white_box='tables/white_box frames/distribution frames/soundness',
        spsa='tables/spsa frames/soundness_spsa',
        transfer='tables/transfer frames/soundness_transfer',
    )[notebook].split()
    for name in names:
        file = tiny / f'{name}.csv'
        file.parent.mkdir(exist_ok=True)
        file.symlink_to(treasure)
    done = papermill(project, notebook, **CALLS[notebook])
    assert treasure.read_bytes() == b'probe'
    assert done.returncode == 0, done.stderr[-1000:]
    for name in names:
        assert not (tiny / f'{name}.csv').is_symlink() and len(pd.read_csv(tiny / f'{name}.csv'))


def test_parts_are_tidied(project):
    "After a call with other images only its own parts are left, and the same call again makes none"
    records = project / 'outputs' / 'tiny' / 'records'

    def parts_after(**change):
        done = papermill(project, 'spsa', **CALLS['spsa'] | run_of('at_pgd') | change)
        assert done.returncode == 0, done.stderr[-1000:]
        return {file: file.stat().st_mtime_ns for file in records.rglob('parts/**/*.parquet')}

    first, second = parts_after(), parts_after(n_test=10)
    assert first and second and not set(first) & set(second)
    assert 'files of earlier calls deleted' in (project / 'out.ipynb').read_text()
    assert parts_after(n_test=10) == second
