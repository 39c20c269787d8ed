"""Notebooks and commands in a fork of a process that has imported everything once.

A notebook from the shell starts two processes, and each import of PyTorch, pandas and Matplotlib takes seconds.
Here Python's fork server imports them once a session; each call is a fork of it: a process of its own, which
leaves nothing behind in the tests' process, and starts at once.
papermill runs there with all of its own code, but for the kernel: the cells run in the same process.
"""

import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

SERVER = multiprocessing.get_context('forkserver')
SERVER.set_forkserver_preload([
    'torch', 'torchvision', 'pandas', 'pyarrow.parquet', 'scipy.stats', 'scipy.optimize', 'sklearn.datasets',
    'matplotlib.pyplot', 'matplotlib_inline.backend_inline', 'seaborn', 'papermill.cli', 'execnb.shell',
    'snakemake.cli', 'adt_repro.runs.fit', 'adt_repro.runs.select', 'adt_repro.runs.scales',
    'adt_repro.attacks.suite', 'adt_repro.evaluation.suite', 'adt_repro.evaluation.sanity',
    'adt_repro.analysis.landscape', 'adt_repro.analysis.coverage', 'adt_repro.paper.report',
    'adt_repro.exchange.import_weights', 'warm',
])  # fmt: skip


def start_fork(command, *args, cwd, said):
    "Begin `command(*args)` in a fork, in the folder `cwd`, with what it prints in the files of `said`"
    call = SERVER.Process(target=_in_fork, args=(command, args, str(cwd), said, dict(os.environ)))
    call.start()
    return call


def run_fork(command, *args, cwd):
    "The exit status of `command(*args)` in a fork, and what it printed; killed after ten minutes"
    with tempfile.TemporaryDirectory() as folder:
        said = [f'{folder}/stdout', f'{folder}/stderr']
        call = start_fork(command, *args, cwd=cwd, said=said)
        call.join(600)
        if call.is_alive():
            call.kill()
            call.join()
        status = call.exitcode
        printed = [Path(file).read_text() for file in said]
        call.close()
        return subprocess.CompletedProcess(args, status, *printed)


def _in_fork(command, args, cwd, said, environment):
    for number, name in enumerate(['/dev/null', *said]):
        mode = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        file = os.open(name, mode)
        os.dup2(file, number)
        os.close(file)
    sys.stdin = open(0, closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    command(*args)


def papermill(*args):
    "papermill's command line, with cells that run in this process"
    from papermill.cli import papermill as command_line
    from papermill.engines import papermill_engines

    papermill_engines.register('same process', _engine())
    sys.path.insert(0, '')  # as for a kernel
    command_line.main([*args, '--engine', 'same process'], prog_name='papermill')


def adt(*args):
    "The command adt, with cells that run in this process"
    from papermill.engines import papermill_engines

    from adt_repro.command.main import main
    from adt_repro.runs import notebook

    papermill_engines.register('same process', _engine())
    notebook._followed_engine = lambda: 'same process'
    sys.path.insert(0, '')  # as for a kernel
    sys.argv = ['adt', *args]
    sys.exit(main(list(args)))


def papermill_with_small_files(largest, *args):
    "papermill where no file may grow beyond so many bytes"
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    papermill(*args)


def snakemake(*args):
    "Snakemake's command line"
    from snakemake.cli import main

    sys.argv = ['snakemake', *args]
    main(list(args))


def _engine():
    import nbformat
    from execnb.shell import CaptureShell
    from papermill.engines import Engine

    class Shell(CaptureShell):
        "A shell that shows errors and displays as Jupyter does"

        def _showtraceback(self, kind, error, lines):
            self.traceback = lines

        def _run(self, *args, **options):
            done = super()._run(*args, **options)
            latest = {}  # a display that is updated is shown once
            for output in done.display_objects:
                latest[(output.transient or {}).get('display_id', id(output))] = output
            done.display_objects = list(latest.values())
            return done

    class SameProcess(Engine):
        @classmethod
        def execute_managed_notebook(cls, manager, kernel_name, **options):
            shell = Shell(mpl_format='png')
            count = 0
            for number, cell in enumerate(manager.nb.cells):
                if cell.cell_type != 'code':
                    continue
                count += 1
                manager.cell_start(cell, number)
                cell.execution_count = count
                cell.outputs = [nbformat.from_dict(dict(output)) for output in shell.run(cell.source)]
                for output in cell.outputs:
                    if output.output_type == 'error':
                        output.traceback = shell.traceback
                    if output.output_type == 'stream':
                        output.text = ''.join(output.text)
                if shell.exc:
                    manager.cell_exception(cell, number)
                    break
                manager.cell_complete(cell, number)

    return SameProcess
