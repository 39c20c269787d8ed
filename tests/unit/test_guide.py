"What a contributor reads: a workflow that runs README's command, a change log, a citation, a guide"

import configparser
import importlib
import re
import subprocess

import pytest
import yaml
from helpers import BIN, ROOT

README = (ROOT / 'README.md').read_text(encoding='utf-8')
GUIDE = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')
INI = configparser.ConfigParser(delimiters=['='], interpolation=None)
INI.read(ROOT / 'settings.ini')
CFG = INI['DEFAULT']


def read(name):
    return yaml.safe_load((ROOT / name).read_text(encoding='utf-8'))


# The workflow


def workflow():
    return read('.github/workflows/ci.yml')


def scripts(job):
    return [s['run'] for s in job['steps'] if 'run' in s]


def test_workflow_runs_the_readme():
    jobs = workflow()['jobs']
    command = re.search(r'pip install uv && .*nbdev_test .*', README)[0]
    assert any(s.strip() == command for s in scripts(jobs['test']))
    pythons = jobs['test']['strategy']['matrix']['python']
    assert pythons == ['3.11', '3.12', '3.13']
    assert pythons[0] == CFG['min_python']
    assert jobs['test']['env']['UV_PYTHON'] == '${{ matrix.python }}'
    assert all(f'Python {p}' in GUIDE or p in GUIDE for p in pythons)


def test_workflow_publishes_only_what_passed():
    w = workflow()
    site = w['jobs']['site']
    assert site['needs'] == 'test' and site['if'] == "github.ref == 'refs/heads/main'"
    assert w['permissions'] == {'contents': 'read'}
    assert site['permissions'] == {'contents': 'read', 'pages': 'write', 'id-token': 'write'}
    upload = next(s for s in site['steps'] if 'upload-pages-artifact' in s.get('uses', ''))
    assert upload['with']['path'] == CFG['doc_path']
    assert any('.ci/docs.py' in s for s in scripts(site))
    assert (ROOT / '.ci' / 'docs.py').is_file()


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
    assert c['cff-version'] == '1.2.0'
    assert c['message']
    assert c['authors'] == [{'name': CFG['author']}]
    assert c['version'] == CFG['version']
    assert c['license'] == 'Apache-2.0'
    paper = c['preferred-citation']
    assert paper['title'] in README
    assert [a['family-names'] for a in paper['authors']] == ['Dong', 'Deng', 'Pang', 'Su', 'Zhu']
    assert paper['year'] == 2020
    assert paper['url'] in README


def test_guide_names_what_exists():
    for path in re.findall(r'`((?:nbs|tests|\.ci|adt_repro)/[\w./-]*?)`|\]\(((?!http)[^)]+)\)', GUIDE):
        assert (ROOT / next(filter(None, path))).exists(), path
    for path in re.findall(r'(?:nbs|tests)/[\w/-]+\.(?:ipynb|py|yaml|yml)', GUIDE):
        assert (ROOT / path).is_file(), path
    for tool in re.findall(r'\bnbdev_\w+', GUIDE):
        assert (BIN / tool).exists(), tool
    assert 'CONTRIBUTING.md' in README and (ROOT / 'LICENSE').is_file()
