"The command adt without a kernel: its parser, refusals in one line, where things go, and the list of runs"

import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
from helpers import ROOT, run

from adt_repro.base.files import find_nbs, find_root, is_clone
from adt_repro.base.parameters import ParameterError
from adt_repro.command import main as command
from adt_repro.command.main import find_runs, main, make_parser
from adt_repro.command.terminal import PlainLines, StatusLine, follower
from adt_repro.planning.progress import trained_share
from adt_repro.runs.overview import runs_there

COMMANDS = ['train', 'evaluate', 'judge', 'runs', 'plan', 'report', 'audit', 'notebook', 'import', 'export']
COMMANDS += ['vectors']


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "An empty folder of a user, as the current one"
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put_run(folder, scale, name, weights=True, **facts):
    "A finished run, as far as its listing goes"
    place = folder / 'outputs' / scale / 'runs' / name
    place.mkdir(parents=True)
    (place / 'run.json').write_text(json.dumps(dict(run=name, results=[]) | facts))
    if weights:
        (place / 'weights.safetensors').write_bytes(b'')
    return place


@pytest.mark.parametrize('name', COMMANDS)
def test_help_of_each_command_has_an_example_that_can_be_parsed(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, '--help'])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and f'adt {name}' in said
    (example,) = re.findall(r'example:\n  adt (.+)', said)
    assert make_parser().parse_args(example.split()).command == name


@pytest.mark.parametrize('args', (['--help'], ['train', '--help'], ['runs']))
def test_quick_commands_import_no_pytorch(args, tmp_path):
    code = (
        'import sys\n'
        'from adt_repro.command.main import main\n'
        'try:\n'
        f'    main({args!r})\n'
        'finally:\n'
        '    print(sorted({"torch", "pandas", "papermill", "scipy"} & set(sys.modules)))\n'
    )
    put_run(tmp_path, 'demo', 'a-run-s0')
    done = run(sys.executable, '-c', code, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == '[]', done.stdout + done.stderr


@pytest.mark.parametrize(
    'args, expected',
    (
        ([], 'COMMAND'),
        (['trian'], 'trian'),
        (['train'], 'METHOD'),
        (['train', 'at_pdg'], "method='at_pdg'"),
        (['train', 'at_pgd', '-p', 'epochs', 'many'], "epochs='many'"),
        (['train', 'at_pgd', '-p', 'epoch', '3'], "epoch='3'"),
        (['train', 'at_pgd', '-p', 'method', 'adt_exp'], "method='adt_exp'"),
        (['train', 'at_pgd', '-p', 'n_mc', '3'], 'n_mc=3'),
        (['train', 'at_pgd', '-f', 'nowhere.yaml'], 'nowhere.yaml'),
        (['train', 'at_pgd', '-o', 'out.txt'], "output='out.txt'"),
        (['evaluate', 'no-such-run'], "RUN='no-such-run'"),
        (['evaluate', 'elsewhere/runs/x'], "RUN='elsewhere/runs/x'"),
        (['runs', 'nowhere'], "scale='nowhere'"),
        (['plan', 'dmeo'], "scale='dmeo'"),
        (['plan', 'mine.yaml'], 'mine.yaml'),
        (['report', 'demo', '-p', 'margin', '-1'], 'margin='),
        (['notebook', 'trian'], "notebook='trian'"),
        (['import', 'nowhere.pt'], 'nowhere.pt'),
        (['import', 'nowhere.pt', '-p', 'eps', '2'], 'eps='),
        (['export', 'no-such-run', 'shared'], "RUN='no-such-run'"),
    ),
)
def test_refusals_are_one_line_and_leave_nothing(args, expected, folder, capfd):
    assert main(args) == 1
    out, err = capfd.readouterr()
    lines = err.splitlines()
    if args[1:2] == ['at_pgd'] and '-o' in args:  # a notebook's steps come before
        lines = lines[-1:]
    assert not out and len(lines) == 1 and expected in lines[0], err
    assert not (folder / 'outputs').exists()


def test_where_the_executed_notebook_goes(folder, monkeypatch):
    calls = []
    monkeypatch.setattr(
        command, 'run_notebook', lambda name, output, given, follow: calls.append((name, output, given))
    )
    monkeypatch.setattr(command, '_result', lambda folder: 'done')
    monkeypatch.setattr(command, '_table', lambda scale, given: 'done')
    put_run(folder, 'demo', 'digits-small_cnn-at_pgd-s3')
    put_run(folder, 'demo', 'digits-small_cnn-trades-s3')
    label = ['-p', 'label', 'mine']
    for args in (
        ['train', 'at_pgd', '-p', 'seed', '3', '-p', 'scale', 'big'],
        ['train', 'at_pgd', *label],
        ['train', 'at_pgd', '-o', 'here/x.ipynb'],
        ['evaluate', 'digits-small_cnn-at_pgd-s3'],
        ['evaluate', '*-s3'],
        ['evaluate', 'outputs/demo/runs/digits-small_cnn-trades-s3', *label],
        ['report', 'demo'],
        ['notebook', 'landscape'],
    ):
        assert main(args) == 0
    found = [
        output.relative_to('outputs').as_posix() if output.parts[0] == 'outputs' else str(output)
        for _, output, _ in calls
    ]
    assert found == [
        'big/notebooks/train-digits-small_cnn-at_pgd-s3.ipynb',
        'demo/notebooks/train-digits-small_cnn-mine-s0.ipynb',
        'here/x.ipynb',
        'demo/notebooks/white_box-digits-small_cnn-at_pgd-s3.ipynb',
        'demo/notebooks/white_box-digits-small_cnn-at_pgd-s3-and-1-more.ipynb',
        'demo/notebooks/white_box-mine.ipynb',
        'demo/notebooks/paper.ipynb',
        'demo/notebooks/landscape.ipynb',
    ]
    assert calls[4][2] == dict(
        runs=['digits-small_cnn-at_pgd-s3', 'digits-small_cnn-trades-s3'], scale='demo'
    )


def test_a_run_in_two_scales_has_to_be_named_with_its_scale(folder):
    for scale in 'demo', 'digits':
        put_run(folder, scale, 'a-s0')
    put_run(folder, 'gpu', 'a-s0', weights=False)
    with pytest.raises(ParameterError, match='demo, digits'):
        find_runs(['a-s0'])
    assert find_runs(['a-s0'], 'digits') == find_runs(['outputs/digits/runs/a-s0']) == ('digits', ['a-s0'])
    with pytest.raises(ParameterError, match='without weights'):
        find_runs(['a-s0'], 'gpu')


def test_the_list_of_runs_agrees_with_the_files(capsys):
    "Of the committed runs, against a reading of their own files"
    assert main(['runs', 'digits', 'mid']) == 0
    said = capsys.readouterr().out
    rows = {line.split()[0]: line for line in said.splitlines() if re.search('-s[0-9]+ ', line)}
    files = [
        file for scale in ('digits', 'mid') for file in (ROOT / 'outputs' / scale).glob('runs/*/run.json')
    ]
    begun = {file.parent.name for file in ROOT.glob('outputs/mid/runs/*/checkpoint.pt')}
    assert set(rows) - begun <= {file.parent.name for file in files} <= set(rows) and len(files) >= 40
    for file in files:
        facts, row = json.loads(file.read_text()), rows[file.parent.name]
        for result in facts['results']:
            if result['attack'] in ('natural', 'pgd20'):
                cell = '{:.1f} [{:.1f}, {:.1f}]'.format(*(100 * result[k] for k in ('accuracy', 'lo', 'hi')))
                assert cell in row
        record = file.parents[2] / 'records' / f'white_box-{file.parent.name}.parquet'
        assert row.endswith(' yes' if record.exists() else ' no')
        assert ('without weights' in row) == (not file.with_name('weights.safetensors').exists())


def put_checkpoint(folder, name, protocol=4, **saved):
    "A run that was begun, as far as its listing goes"
    place = folder / 'outputs' / 'demo' / 'runs' / name / 'checkpoint.pt'
    place.parent.mkdir(parents=True)
    with zipfile.ZipFile(place, 'w') as archive:
        archive.writestr('x/data.pkl', pickle.dumps(saved, protocol))
    return place


def test_damaged_and_unfinished_runs_are_listed(folder):
    (put_run(folder, 'demo', 'a') / 'run.json').write_text('{')
    begun = folder / 'outputs' / 'demo' / 'runs' / 'b'
    begun.mkdir()
    damaged = folder / 'outputs' / 'demo' / 'runs' / 'c'
    damaged.mkdir()
    (damaged / 'checkpoint.pt').write_bytes(b'PK\x03\x04nothing')
    pipe = folder / 'outputs' / 'demo' / 'runs' / 'd'
    pipe.mkdir()
    os.mkfifo(pipe / 'checkpoint.pt')  # to open it as a file waits for a writer
    put_checkpoint(folder, 'e', facts=dict(epochs=float('nan'), batch=1), epoch=1, step=0)
    (folder / 'outputs' / 'other').mkdir()
    (folder / 'outputs' / 'other' / 'runs').touch()
    assert [(run.run, run.state) for run in runs_there()] == [
        ('a', 'damaged'),
        ('b', 'no checkpoint yet'),
        ('c', 'damaged'),
        ('d', 'damaged'),
        ('e', 'damaged'),
    ]


def test_a_run_of_another_user_is_listed(folder, monkeypatch):
    put_run(folder, 'demo', 'a')
    exists = Path.exists

    def forbidden(path):
        if path.parent.name == 'a':
            raise PermissionError(13, 'Permission denied', str(path))
        return exists(path)

    monkeypatch.setattr(Path, 'exists', forbidden)
    assert runs_there(scales=['demo'])[0].state == 'not readable'


def test_a_checkpoint_is_read_as_pytorch_reads_it(folder):
    import torch

    place = folder / 'outputs' / 'demo' / 'runs' / 'a'
    place.mkdir(parents=True)
    facts = dict(epochs=8, batch=10)
    saved = dict(epoch=3, step=4, order=torch.arange(80), facts=facts, seconds=0.0, history=[])
    torch.save(saved | dict(model=torch.nn.Linear(2, 2).state_dict()), place / 'checkpoint.pt')
    share, _ = trained_share(place, 8, 10)
    assert runs_there()[0].state == f'{100 * share:.0f} %' == '44 %'


class Hostile:
    "What pickle calls when it reads this"

    def __init__(self, *called):
        self.called = called

    def __reduce__(self):
        return self.called


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize('called', [(eval, ('open("ran", "w")',)), (os.system, ('touch ran',))])
def test_nothing_in_a_checkpoint_is_executed(folder, protocol, called):
    saved = dict(facts=dict(epochs=2, batch=1), epoch=1, step=0, x=Hostile(*called))
    place = put_checkpoint(folder, 'a', protocol, **saved)
    assert runs_there()[0].state == '50 %' and not (folder / 'ran').exists()
    with zipfile.ZipFile(place) as archive:
        pickle.loads(archive.read('x/data.pkl'))
    assert (folder / 'ran').exists()  # as pickle itself does


def test_signs_that_the_terminal_lacks(folder):
    put_run(folder, 'demo', 'a')
    command = [sys.executable, '-m', 'adt_repro.command.main', 'runs']
    done = run(*command, cwd=folder, env=dict(os.environ, PYTHONIOENCODING='latin-1'))
    assert done.returncode == 0 and ' a ' in done.stdout and done.stderr == ''


def test_a_reader_that_has_ended_is_no_error(folder):
    command = [sys.executable, '-m', 'adt_repro.command.main', 'plan', 'cpu']
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b'' and process.wait() == 0


def test_a_missing_scale_has_no_report_and_no_folder(folder, capfd):
    put_run(folder, 'demo', 'a')
    assert main(['report', 'dem']) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("scale='dem': expected ") and not (folder / 'outputs' / 'dem').exists()


def test_outputs_may_be_a_link(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp('disk')
    put_run(elsewhere, 'demo', 'a')
    (folder / 'outputs').symlink_to(elsewhere / 'outputs')
    assert find_runs(['outputs/demo/runs/a']) == ('demo', ['a'])


def test_a_terminal_that_cannot_redraw_gets_lines(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    kinds = {}
    for kind in 'xterm', 'dumb':
        monkeypatch.setenv('TERM', kind)
        kinds[kind] = type(follower(Terminal()))
    assert kinds == dict(xterm=StatusLine, dumb=PlainLines)


def test_ctrl_c_says_how_to_go_on(folder, monkeypatch, capsys):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, 'run_notebook', stop)
    args = ['train', 'at_pgd', '-y', 'drops: [-2, -1]']
    assert main(args) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith(" train at_pgd -y 'drops: [-2, -1]'")


def test_a_settings_file_of_another_project_is_not_ours(folder):
    inner = folder / 'nbs' / 'deep'
    inner.mkdir(parents=True)
    (folder / 'settings.ini').write_text('[DEFAULT]\nlib_name = mine\nrepo = adt_repro\n')
    assert not is_clone(folder) and find_root(inner) == inner
    assert find_nbs(inner) == find_nbs(folder) == ROOT / 'nbs'
    shutil.copy(ROOT / 'settings.ini', folder)
    assert is_clone(folder) and find_root(inner) == folder and find_nbs() == folder / 'nbs'


def test_requirements_of_the_command_are_those_of_the_package():
    ini = ConfigParser(delimiters=['='], interpolation=None)
    ini.read(ROOT / 'settings.ini')
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    assert project['requires-python'] == f'>={ini["DEFAULT"]["min_python"]}'
    needed = {re.split('[<>=]', line)[0] for line in ini['DEFAULT']['requirements'].split()}
    assert {'papermill', 'nbclient', 'ipykernel'} <= needed


def test_the_source_archive_has_the_notebooks():
    "MANIFEST.in names every file that setup.py puts into the wheel"
    patterns = [line.split() for line in (ROOT / 'MANIFEST.in').read_text().splitlines()]
    taken = set()
    for kind, first, *more in patterns:
        globs = [first, *more] if kind == 'include' else [f'{first}/**/{pattern}' for pattern in more]
        taken |= {file for glob in globs for file in ROOT.glob(glob)}
    listed = subprocess.run(
        ['git', 'ls-files', 'nbs', 'vectors'], cwd=ROOT, capture_output=True, text=True, check=True
    )
    tracked = {ROOT / name for name in listed.stdout.splitlines()}
    wheel = {
        file
        for file in tracked
        if re.fullmatch(
            r'nbs/([^/]+\.ipynb|(scales|published)/.+)|vectors/.+', file.relative_to(ROOT).as_posix()
        )
    }
    assert len(wheel) >= 20 and wheel <= taken
