"""Do the checks find faults? Each fault is put into a copy of the project, then the checks that could find it run.

Takes a few minutes a fault on two cores:

    python tests/mutations.py [NAME ...]

A fault goes into the notebook's cell and from there into the package, as a contributor's would. Then two checks
are run, each up to its first failure: the module's own notebook and those that import it, and the tests that
import it or run a notebook that does. A fault counts as found where a check fails.
"""

import argparse
import ast
import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from helpers import BIN, copy_files, files_of_git


class Fault(NamedTuple):
    "What is put in place of what, in the notebook of a module"

    module: str  # such as attacks.gradient
    right: str  # must stand in the notebook exactly once
    wrong: str


FAULTS = dict(
    sign_of_the_gradient=Fault('attacks.gradient', '+ size * sign(total)', '- size * sign(total)'),
    clamp_missing=Fault('attacks.gradient', '(x + eps).clamp(max=1)', '(x + eps)'),
    training_mode=Fault('attacks.gradient', 'with eval_mode(model):\n        return', 'if True:\n        return'),
    one_step_less=Fault('attacks.gradient', '[step_size] * steps', '[step_size] * max(1, steps - 1)'),
    lambda_dropped=Fault('methods.objective', 'loss - method.entropy_weight * h', 'loss - 0 * h'),
    hinge_dropped=Fault('methods.objective', 'h.clamp(max=method.entropy_cap)', 'h'),
    entropy_slope=Fault('methods.distributions', 'grad_t - 2 * grad_h * t', 'grad_t - grad_h * t'),
    seed_ignored=Fault('base.noise', 'torch.tensor([seed, next(draws)]', 'torch.tensor([0, next(draws)]'),
    spread_over_n=Fault('base.stats', 'v.std(ddof=1)', 'v.std()'),
    one_sided=Fault('base.stats', 'p=float(min(1, 2 * one_side))', 'p=float(min(1, one_side))'),
    any_is_all=Fault('evaluation.metrics', 'group.y)).groupby(group.i).any()', 'group.y)).groupby(group.i).all()'),
    variance_without_eps=Fault('speed.bn_folding', '(norm.running_var + norm.eps).rsqrt()', 'norm.running_var.rsqrt()'),
    drop_too_late=Fault('training.state', 't >= max(1, drop)', 't > max(1, drop)'),
    resume_forgets=Fault('runs.store', "load_checkpoint(state, folder / 'checkpoint.pt')", 'pass'),
    spsa_one_sided=Fault('attacks.black_box', '(up - down)', '(up - f(z, example).view(1, len(z)))'),
)  # fmt: skip


def copy_of_project(folder):
    "What git would put into a fresh clone, committed there"
    copy_files(files_of_git(), folder)
    quiet = dict(cwd=folder, check=True, capture_output=True)
    for step in ('init -q', 'add -A', '-c user.name=a -c user.email=a commit -qm 0'):
        subprocess.run(['git', *step.split()], **quiet)
    return folder


def notebook_of(project, module):
    return project / 'nbs' / 'library' / Path(*module.split('.')).with_suffix('.ipynb')


def put(fault, project):
    "The fault, in the cell of the notebook and in the package"
    file = notebook_of(project, fault.module)
    notebook = json.loads(file.read_text())
    changed = 0
    for cell in notebook['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'code' and fault.right in source:
            changed += source.count(fault.right)
            cell['source'] = source.replace(fault.right, fault.wrong).splitlines(keepends=True)
    assert changed == 1, f'{fault.right} stands {changed} times in {file.name}'
    file.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + '\n')
    subprocess.run([BIN / 'nbdev_export'], cwd=project, check=True, capture_output=True)


# What reaches a module

# About form, links and processes: a wrong number is not their business
FORM = {'api', 'layout', 'contribute', 'packaging', 'profiles', 'docs', 'snakefile', 'project', 'parameters'}


def imports(source):
    "The modules of the package that Python code imports; `adt_repro` alone is its public face"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split('.')[0] == 'adt_repro':
            yield node.module
            yield from (f'{node.module}.{alias.name}' for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split('.')[0] == 'adt_repro')


def code_of(notebook):
    "The cells of a notebook that speak of the package"
    cells = json.loads(notebook.read_text())['cells']
    sources = [''.join(cell['source']) for cell in cells if cell['cell_type'] == 'code']
    return '\n'.join(source for source in sources if 'adt_repro' in source)


def absolute(source, package):
    "Source whose relative imports are written out; package: the parts of the module's name without its last"

    def origin(match):
        indent, dots, name = match.groups()
        parts = package[: len(package) + 1 - len(dots)]
        return f'{indent}from {".".join([*parts, *filter(None, [name])])} import'

    return re.sub(r'^(\s*)from (\.+)(\w[\w.]*)? import', origin, source, flags=re.M)


def graph_of(project):
    "Each module of the package to those that it imports"
    graph = {}
    for file in (project / 'adt_repro').rglob('*.py'):
        parts = file.relative_to(project).with_suffix('').parts
        graph['.'.join(parts)] = set(imports(absolute(file.read_text(), parts[:-1])))
    return graph


def notebooks_that_reach(module, project):
    "Library notebooks that import the module, its own first"
    own, name = notebook_of(project, module), f'adt_repro.{module}'
    others = sorted((project / 'nbs' / 'library').rglob('*.ipynb'))
    return [own, *(nb for nb in others if nb != own and name in imports(code_of(nb)))]


def tests_that_name(modules, project):
    "Files of tests that import one of some modules themselves, or name a notebook that does; the quick ones first"
    found = []
    experiments = [nb.stem for nb in (project / 'nbs').glob('*.ipynb') if modules & set(imports(code_of(nb)))]
    for file in sorted((project / 'tests').rglob('test_*.py')):
        source = file.read_text()
        runs_one = any(re.search(rf"['/]{nb}\b", source) for nb in experiments)
        if file.stem.removeprefix('test_') not in FORM and (runs_one or modules & set(imports(source))):
            found.append(file)
    return sorted(found, key=lambda file: file.parent.name != 'unit')


def tests_that_reach(module, project, graph):
    "Files of tests that name the module; if there are none, those that name a module which imports it"
    name = f'adt_repro.{module}'
    users = {user for user, imported in graph.items() if name in imported}
    return tests_that_name({name}, project) or tests_that_name(users, project)


# The two checks


def first_failure(command, project):
    "The last line of a check that failed, or None; and its seconds"
    began = time.monotonic()
    environment = os.environ | dict(PYTHONPATH=str(project), OMP_NUM_THREADS='1')
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    said = done.stdout + done.stderr
    seconds = time.monotonic() - began
    if done.returncode == 0:
        return None, seconds
    lines = re.findall(r'^(?:FAILED|ERROR) (\S+)', said, re.M) or said.strip().splitlines()[-1:]
    return lines[0].strip(), seconds


def by_notebooks(module, project, graph):
    total = 0
    for notebook in notebooks_that_reach(module, project):
        failed, seconds = first_failure([BIN / 'nbdev_test', '--path', notebook], project)
        total += seconds
        if failed:
            return notebook.relative_to(project / 'nbs').as_posix(), total
    return None, total


def by_tests(module, project, graph):
    files = tests_that_reach(module, project, graph)
    options = ['-x', '-q', '-p', 'no:cacheprovider', '-n', '2', '--dist', 'loadfile']
    return first_failure([BIN / 'pytest', *options, *files], project)


def main():
    options = argparse.ArgumentParser(
        description='Put faults into copies of the project and see what finds them'
    )
    options.add_argument('names', nargs='*', default=[*FAULTS], help='of FAULTS')
    missed = dict(notebooks=0, tests=0)
    names = options.parse_args().names
    for name in names:
        fault = FAULTS[name]
        with tempfile.TemporaryDirectory() as folder:
            project = copy_of_project(Path(folder) / 'adt_repro')
            put(fault, project)
            graph = graph_of(project)
            for kind, check in dict(notebooks=by_notebooks, tests=by_tests).items():
                failed, seconds = check(fault.module, project, graph)
                missed[kind] += failed is None
                print(f'{name}: {kind}: {failed or "NOT FOUND"} ({seconds:.0f} s)', flush=True)
    print(f'{len(names)} faults, not found by notebooks {missed["notebooks"]}, by tests {missed["tests"]}')


if __name__ == '__main__':
    main()
