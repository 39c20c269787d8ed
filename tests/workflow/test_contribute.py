"What a contributor starts: hooks, and JupyterLab as the guide says"

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

GUIDE = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')
HOOKS = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text(encoding='utf-8'))


# Hooks


@pytest.fixture
def clone(tmp_path):
    "What git would put into a fresh clone"
    return copy_files(files_of_git(), tmp_path)


def hook(name, clone):
    entry = next(h for h in HOOKS['repos'][0]['hooks'] if h['id'] == name)
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
    assert {r['repo'] for r in HOOKS['repos']} == {'local'}
    assert {h['language'] for r in HOOKS['repos'] for h in r['hooks']} == {'system'}


# JupyterLab


def test_jupyterlab_opens_on_home(tmp_path):
    command = re.search(r'uv run (jupyter lab nbs/index\.ipynb)', GUIDE)[1]
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
            '--IdentityProvider.token=home',
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
            f'{found[0]["url"]}api/contents/index.ipynb?token=home', timeout=30
        ) as answer:
            home = json.load(answer)
        assert [c['id'] for c in home['content']['cells']] == [
            c['id'] for c in json.loads((ROOT / 'nbs' / 'index.ipynb').read_text())['cells']
        ]
    finally:
        lab.terminate()
        lab.wait(30)
        log.close()
