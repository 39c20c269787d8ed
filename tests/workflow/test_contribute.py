"What a contributor relies on: hooks, a workflow that runs what the README says, a citation, JupyterLab"

import configparser
import importlib
import json
import os
import re
import shlex
import subprocess
import time
import urllib.request

import pytest
import yaml
from helpers import BIN, ROOT, copy_files, files_of_git, run

README = (ROOT / 'README.md').read_text(encoding='utf-8')
GUIDE = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')
INI = configparser.ConfigParser(delimiters=['='], interpolation=None)
INI.read(ROOT / 'settings.ini')
CFG = INI['DEFAULT']


def read(name):
    return yaml.safe_load((ROOT / name).read_text(encoding='utf-8'))


# Hooks


@pytest.fixture
def clone(tmp_path):
    "What git would put into a fresh clone"
    return copy_files(files_of_git(), tmp_path)


def hook(name, clone):
    entry = next(h for h in read('.pre-commit-config.yaml')['repos'][0]['hooks'] if h['id'] == name)
    env = os.environ | dict(PATH=f'{BIN}{os.pathsep}{os.environ["PATH"]}', PYTHONPATH=str(clone))
    done = run(*shlex.split(entry['entry']), cwd=clone, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return entry


def test_hooks_mend_what_was_forgotten(clone):
    path, module = clone / 'nbs' / 'library' / 'losses.ipynb', clone / 'adt_repro' / 'losses.py'
    clean, exported = json.loads(path.read_text()), module.read_text()
    dirty = json.loads(path.read_text())
    for c in dirty['cells']:
        if c['cell_type'] == 'code':
            c['execution_count'], c['metadata'] = 7, dict(scrolled=True)
    path.write_text(json.dumps(dirty))
    entry = hook('nbdev_clean', clone)
    assert json.loads(path.read_text()) == clean and re.search(entry['files'], 'nbs/library/losses.ipynb')

    module.write_text(exported + '\n# by hand\n')
    entry = hook('nbdev_export', clone)
    assert module.read_text() == exported and all(
        re.search(entry['files'], f) for f in ('nbs/library/losses.ipynb', 'adt_repro/losses.py')
    )


def test_hooks_find_what_cannot_be_read(clone):
    "The committed tree has nothing against it; a star import, two statements in a line and an endless line have"
    hook('ruff', clone)
    for line in 'from math import *', 'a = 1; b = 2', f'long = {"1" * 120}':
        (clone / 'adt_repro' / 'bad.py').write_text(line + '\n')
        with pytest.raises(AssertionError):
            hook('ruff', clone)


def test_no_exception_without_a_reason():
    "Where ruff is told to look away, the same line says why"
    found = [
        line for line in run('git', 'grep', '-nE', '#.?noqa', '--', '*.py', '*.ipynb').stdout.splitlines()
    ]
    assert not [
        line for line in found if 'git grep' not in line and not re.search(r'noqa: [A-Z]+\d+ - \w+', line)
    ]


def test_hooks_need_no_network():
    config = read('.pre-commit-config.yaml')
    assert {r['repo'] for r in config['repos']} == {'local'} and {
        h['language'] for r in config['repos'] for h in r['hooks']
    } == {'system'}


# The workflow


def workflow():
    return read('.github/workflows/ci.yml')


def scripts(job):
    return [s['run'] for s in job['steps'] if 'run' in s]


def test_workflow_runs_the_readme():
    jobs = workflow()['jobs']
    command = re.search(r'pip install uv && uv run nbdev_test .*', README)[0]
    assert any(s.strip() == command for s in scripts(jobs['test']))
    pythons = jobs['test']['strategy']['matrix']['python']
    assert (
        pythons == ['3.11', '3.12', '3.13']
        and pythons[0] == CFG['min_python']
        and jobs['test']['env']['UV_PYTHON'] == '${{ matrix.python }}'
    )
    assert all(f'Python {p}' in GUIDE or p in GUIDE for p in pythons)


def test_workflow_publishes_only_what_passed():
    w = workflow()
    site = w['jobs']['site']
    assert site['needs'] == 'test' and site['if'] == "github.ref == 'refs/heads/main'"
    assert w['permissions'] == {'contents': 'read'} and site['permissions'] == {
        'contents': 'read',
        'pages': 'write',
        'id-token': 'write',
    }
    upload = next(s for s in site['steps'] if 'upload-pages-artifact' in s.get('uses', ''))
    assert (
        upload['with']['path'] == CFG['doc_path']
        and any('.ci/docs.py' in s for s in scripts(site))
        and (ROOT / '.ci' / 'docs.py').is_file()
    )


@pytest.mark.parametrize('job', ['test', 'site'])
def test_workflow_is_sound(job):
    job = workflow()['jobs'][job]
    assert 'timeout-minutes' in job and all(('run' in s) != ('uses' in s) for s in job['steps'])
    for script in scripts(job):
        assert subprocess.run(['bash', '-n'], input=script, text=True).returncode == 0, script
    for action in (s['uses'] for s in job['steps'] if 'uses' in s):
        assert re.fullmatch(r'actions/[a-z-]+@v\d+', action)


# Words


def test_changelog_maps_old_imports_to_new_ones():
    "Every module and every name that the table leads to is there"
    text = (ROOT / 'CHANGELOG.md').read_text(encoding='utf-8')
    table = text.split('| old | new |')[1].split('###')[0]
    rows = [line for line in table.splitlines() if line.startswith('| `')]
    assert len(rows) > 30
    for row in rows:
        for module, names in re.findall(r'`([\w.]+)`(?: \(([^)]*)\))?(?:;| \|)', row.split('|', 2)[2]):
            found = importlib.import_module(f'adt_repro.{module}')
            for name in names.split(', ') if names else []:
                assert hasattr(found, name.split(' → ')[-1].strip('`')), f'{module}: {name}'


def test_citation():
    c = read('CITATION.cff')
    assert (
        c['cff-version'] == '1.2.0'
        and c['message']
        and c['authors'] == [{'name': CFG['author']}]
        and c['version'] == CFG['version']
        and c['license'] == 'Apache-2.0'
    )
    paper = c['preferred-citation']
    assert (
        paper['title'] in README
        and [a['family-names'] for a in paper['authors']] == ['Dong', 'Deng', 'Pang', 'Su', 'Zhu']
        and paper['year'] == 2020
        and paper['url'] in README
    )


def test_guide_names_what_exists():
    for path in re.findall(r'`((?:nbs|tests|\.ci|adt_repro)/[\w./-]*?)`|\]\(((?!http)[^)]+)\)', GUIDE):
        assert (ROOT / next(filter(None, path))).exists(), path
    for path in re.findall(r'(?:nbs|tests)/[\w/-]+\.(?:ipynb|py|yaml|yml)', GUIDE):
        assert (ROOT / path).is_file(), path
    for tool in re.findall(r'\bnbdev_\w+', GUIDE):
        assert (BIN / tool).exists(), tool
    assert 'CONTRIBUTING.md' in README and (ROOT / 'LICENSE').is_file()


# JupyterLab


def test_jupyterlab_opens_on_the_tour(tmp_path):
    command = re.search(r'uv run (jupyter lab nbs/index\.ipynb)', GUIDE)[1]
    assert f'uv run {command}' in README
    env = os.environ | {f'JUPYTER_{k}_DIR': str(tmp_path / k) for k in ('CONFIG', 'DATA', 'RUNTIME')}
    log = (tmp_path / 'log').open('w')
    lab = subprocess.Popen(
        [
            BIN / 'jupyter',
            *shlex.split(command)[1:],
            '--no-browser',
            '--allow-root',
            '--port=0',
            '--ServerApp.port_retries=0',
            '--IdentityProvider.token=tour',
        ],
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    )
    try:
        begin, found = time.monotonic(), []
        while time.monotonic() - begin < 60 and not found:
            assert lab.poll() is None, (tmp_path / 'log').read_text()
            found = (
                [
                    json.loads(p.read_text())
                    for p in (tmp_path / 'RUNTIME').glob('jpserver-*.json')
                    if p.stat().st_size
                ]
                if (tmp_path / 'RUNTIME').exists()
                else []
            )
            time.sleep(0.2)
        opened = list((tmp_path / 'RUNTIME').glob('jpserver-file-to-run-*-open.html'))
        assert found and opened and 'lab/tree/index.ipynb' in opened[0].read_text()
        with urllib.request.urlopen(
            f'{found[0]["url"]}api/contents/index.ipynb?token=tour', timeout=30
        ) as answer:
            tour = json.load(answer)
        assert [c['id'] for c in tour['content']['cells']] == [
            c['id'] for c in json.loads((ROOT / 'nbs' / 'index.ipynb').read_text())['cells']
        ]
    finally:
        lab.terminate()
        lab.wait(30)
        log.close()
