"""Two notebooks started at once: what is finished stays and is whole, and who has to wait is told why.

In every run of the tests the test itself holds a lock, and one pair of notebooks is started; all notebooks,
several times each, with -m slow. And before any work: outputs that cannot be written to. After it: nothing is
left that no call needs, and nothing is locked.
"""

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import warm
from helpers import ROOT, papermill, papermill_arguments, small_project

from adt_repro.base.files import lock_file

TINY = dict(scale='tiny')
SMALL = TINY | dict(n_test=20)
CALLS = {
    'white_box': SMALL | dict(attacks=['fgsm', 'pgd20'], draws=2, n_sound=10),
    'spsa': SMALL | dict(samples=[4], steps=4, budget=40),
    'transfer': SMALL | dict(attacks=['pgd20']),
    'landscape': TINY | dict(grid=5, n_images=2, n_samples=10, n_targets=1, n_curvature=2, curvature_steps=5),
    'diversity': TINY | dict(n_images=2, n_samples=10),
    'train': dict(method='standard', epochs=2, n_train=128, n_test=20, scale='tiny', seed=7),
    'ablation': dict(train='true', scale='tiny', lbd=[0], n_mc=[], inner_steps=[], inner_momentum=[], rho=[])
    | dict(u_max=[], seeds=2, epochs=1, n_train=64, n_test=20, draws=2),
    'benchmark': dict(parts=['training'], methods=['standard'], batch=2, machine='mine'),
}
CALLS_OF_ALL = CALLS | dict(paper={}, seeds=dict(train='true', methods=['standard'], seeds=2))


def project_with_scale(folder):
    "A project with all these notebooks, and with the file of its scale"
    root = small_project(folder, *CALLS_OF_ALL)
    (root / 'nbs' / 'scales').mkdir()
    text = (ROOT / 'nbs/scales/digits.yaml').read_text()
    (root / 'nbs' / 'scales' / 'tiny.yaml').write_text(
        text.replace('scale: digits', 'scale: tiny').replace(
            'experiments:\n', 'experiments:\n  kept: false\n'
        )
    )
    return root


@pytest.fixture
def few(tmp_path, give_tiny_runs):
    "All these notebooks, and one finished run"
    root = small_project(tmp_path, *CALLS)
    give_tiny_runs(root, 'standard')
    return root


@pytest.fixture
def project(few, give_tiny_runs):
    "All these notebooks, and finished runs for each of them"
    give_tiny_runs(few, 'standard', 'at_pgd', seeds=(0, 1))
    give_tiny_runs(few, 'adt_exp', 'adt_exp_am', 'adt_imp_am')
    return few


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
            assert content.endswith(b'\n'), name
        if name.endswith('.png'):
            assert content.endswith(b'IEND\xaeB`\x82'), name
        if name.endswith('.parquet'):
            assert content.startswith(b'PAR1') and content.endswith(b'PAR1'), name


def numbers(files):
    "The tables and records among some files, for a comparison; seconds, digests and finished parts left out"
    kinds = 'records/', 'tables/', 'frames/'
    found = {name: content for name, content in files.items() if any(kind in name for kind in kinds)}
    return {name: content for name, content in found.items() if 'records/parts/' not in name}


def check_says_why(line):
    "The last line of a notebook that another one keeps out"
    words = r"^ParameterError: (record|run)='.*': another process is (making it with|training it).* "
    assert re.search(words + r'\(process \d+ on host .*, since .*\), expected one at a time$', line), line


def check_one_wins(project, notebook, **change):
    """One comes to its end and leaves what it leaves alone; the other says why it does not, in one line

    Where the first has ended before the second asks, both come to their end."""
    before, call = contents(project), (notebook, CALLS_OF_ALL[notebook] | change)
    found = start_both(project, call, call)
    assert [status for status, _ in sorted(found)] in ([0, 1], [0, 0]), found
    for line in [line for status, line in found if status]:
        check_says_why(line)
    after = contents(project)
    assert {name: after[name] for name in before if 'runs/' in name} == {
        name: content for name, content in before.items() if 'runs/' in name
    }
    assert len(after) > len(before)
    check_whole(after)
    done = papermill(project, notebook, **call[1])  # what the winner left is found again
    assert done.returncode == 0, done.stderr[-1000:]
    if notebook != 'benchmark':  # whose numbers are times
        assert numbers(contents(project)) == numbers(after)


HELD = {
    'white_box': '.locks/white_box-digits-small_cnn-at_pgd-s0.lock',
    'spsa': '.locks/spsa-digits-small_cnn-at_pgd-s0.lock',
    'transfer': '.locks/transfer-itself-digits-small_cnn-at_pgd-s0.lock',
    'landscape': '.locks/landscape.lock',
    'diversity': '.locks/diversity.lock',
    'ablation': '.locks/ablation.lock',
    'train': 'runs/digits-small_cnn-standard-s7/.lock',
}
RUNS = ['digits-small_cnn-standard-s0', 'digits-small_cnn-at_pgd-s0']


@pytest.fixture(scope='module')
def named(tmp_path_factory):
    "All these notebooks, and two runs of which a notebook may ask no more than the name before it has its lock"
    root = small_project(tmp_path_factory.mktemp('named'), *CALLS)
    for run in RUNS:
        folder = root / 'outputs' / 'tiny' / 'runs' / run
        folder.mkdir(parents=True)
        for name in 'run.json', 'weights.safetensors':
            (folder / name).touch()
    return root


@pytest.mark.parametrize('notebook', HELD)
def test_what_another_process_holds_is_left_alone(notebook, named):
    "The test holds the lock: one line, and not a byte is changed"
    file = named / 'outputs' / 'tiny' / HELD[notebook]
    file.parent.mkdir(exist_ok=True)
    before = contents(named)
    asked = dict(white_box='runs', spsa='runs', transfer='targets').get(notebook)
    held = lock_file(file, 'x', 'y')
    done = papermill(named, notebook, **CALLS[notebook] | ({asked: RUNS} if asked else {}))
    held.release()
    assert done.returncode == 1
    check_says_why(done.stderr.strip().splitlines()[-1])
    assert contents(named) == before


ONE_RUN = dict(runs=RUNS[:1], n_test=5)


def test_the_same_notebook_twice_at_once(few):
    check_one_wins(few, 'spsa', **ONE_RUN)


def papermill_then_lock(*args):
    "In a fork: papermill, and in the same process the locks that its notebook took"
    try:
        warm.papermill(*args)
    except SystemExit as end:
        assert not end.code
    for kind in '.locks/*.lock', 'runs/*/.lock':
        for file in Path('outputs').rglob(kind):
            lock_file(file, f'lock={str(file)!r}', 'held')
            print('free:', file)


def check_lets_go(project, notebook, **change):
    "A notebook that has finished, in a kernel that goes on, keeps nobody out"
    args = papermill_arguments(notebook, 'out.ipynb', **CALLS[notebook] | change)
    done = warm.run_fork(papermill_then_lock, *args, cwd=project)
    assert done.returncode == 0 and 'free: ' in done.stdout, done.stderr[-500:]


@pytest.mark.parametrize(('notebook', 'change'), [('spsa', ONE_RUN), ('train', {})], ids=['spsa', 'train'])
def test_locks_end_with_the_last_file(few, notebook, change):
    check_lets_go(few, notebook, **change)


@pytest.mark.slow
@pytest.mark.parametrize('notebook', CALLS)
def test_locks_of_every_notebook_end_with_the_last_file(notebook, project):
    check_lets_go(project, notebook)


@pytest.mark.slow
def test_two_tables_of_seeds_at_once(tmp_path):
    check_one_wins(project_with_scale(tmp_path), 'seeds', scale='tiny')


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
    calls = [(notebook, CALLS_OF_ALL[notebook] | change) for notebook, change in PAIRS[pair]]
    found = start_both(project, *calls)
    assert [status for status, _ in found] == [0, 0], found
    check_whole(contents(project))


@pytest.mark.slow
@pytest.mark.parametrize('again', range(3))
@pytest.mark.parametrize('pair', PAIRS)
def test_other_pairs_at_once(pair, again, project):
    check_both_end(project, pair)


# A folder that each notebook writes to, besides what it reads
FOLDERS = dict(white_box='tables', spsa='frames', transfer='records', landscape='figures', diversity='frames')
FOLDERS |= dict(ablation='figures', train='runs', paper='frames', seeds='tables')


@pytest.fixture(scope='module')
def empty(tmp_path_factory):
    "All notebooks, and no run: what they need at scale tiny they train themselves"
    return project_with_scale(tmp_path_factory.mktemp('empty'))


@pytest.mark.parametrize('notebook', FOLDERS)
def test_unwritable_outputs_are_found_before_any_work(notebook, empty):
    "A file stands where the folder should be: one line, and nothing is trained or evaluated"
    tiny = empty / 'outputs' / 'tiny'
    shutil.rmtree(tiny, ignore_errors=True)
    tiny.mkdir()
    (tiny / FOLDERS[notebook]).touch()
    done = papermill(empty, notebook, **CALLS_OF_ALL[notebook] | dict(scale='tiny'))
    line = (done.stderr.strip().splitlines() or ['it ended without a word'])[-1]
    words = "ParameterError: scale='tiny': expected a folder of outputs/ that can be written to "
    assert line.startswith(words), line
    assert not [file for file in tiny.rglob('*') if file.is_file() and file.name != FOLDERS[notebook]]


def test_the_folder_of_benchmarks(empty):
    (empty / 'outputs' / 'benchmark').touch()
    done = papermill(empty, 'benchmark', **CALLS['benchmark'])
    line = (done.stderr.strip().splitlines() or ['it ended without a word'])[-1]
    assert line.startswith("ParameterError: scale='benchmark': expected a folder of outputs/"), line


def check_not_through_links(notebook, project, **change):
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
    done = papermill(project, notebook, **CALLS[notebook] | change)
    assert treasure.read_bytes() == b'probe'
    assert done.returncode == 0, done.stderr[-1000:]
    for name in names:
        assert not (tiny / f'{name}.csv').is_symlink() and len(pd.read_csv(tiny / f'{name}.csv'))


def test_no_table_is_written_through_a_link(few):
    check_not_through_links('spsa', few, **ONE_RUN)


@pytest.mark.slow
@pytest.mark.parametrize('notebook', ['white_box', 'spsa', 'transfer'])
def test_no_table_of_any_notebook_is_written_through_a_link(notebook, project):
    check_not_through_links(notebook, project)


@pytest.mark.slow
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
