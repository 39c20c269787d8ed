"A scale's runs, records, tables and figures, by calls of notebooks: snakemake --cores 2 --config scale=demo"
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, workflow.basedir)   # this project's package, however Snakemake was started
from adt_repro.base.files import lock_file, replacing, try_folder
from adt_repro.base.parameters import ParameterError
from adt_repro.runs import scales   # no PyTorch: every job reads this file again
from snakemake.settings.enums import RerunTrigger

# Jobs find this environment's Python
os.environ['PATH'] = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'

# Several GPUs in one machine: with ADT_GPUS="0 1" each job takes the first free one and locks it
if cards := os.environ.get('ADT_GPUS', '').split():
    shell.prefix(
        'set -euo pipefail; '
        'for card in $ADT_GPUS none; do '
        'if [ "$card" = none ]; then '
        f'echo "ADT_GPUS=$ADT_GPUS: no card is free, --resources gpu={len(cards)} is missing" >&2; '
        'exit 1; fi; '
        'exec 9>".snakemake/card-$card"; '
        'if flock -n 9; then export CUDA_VISIBLE_DEVICES="$card"; break; fi; '
        'done; '
    )

# What was requested: nbs/scales/<scale>.yaml
try:
    FILE = scales.find_scale(config)
    scale = scales.read_scale(FILE)
except ParameterError as error:
    raise WorkflowError(str(error))
# The scale's name, and those of its runs, are letters, digits, - and _
OUT, THREADS = f'outputs/{scale.name}', scale.asked['threads']
made, everything = scales.made_files(scale), scales.all_files(scale)

def given(notebook):
    "The parameters of a call of a notebook, for a rule that makes the files of one run or of all"
    return lambda wildcards: scales.call_parameters(scale, notebook, wildcards.get('run'))

def call(notebook, label=''):
    "The shell command for one notebook; the executed notebook stays in notebooks/, even if it failed"
    return (
        f'OMP_NUM_THREADS={{threads}} python -m adt_repro.runs.notebook {notebook} '
        f'{OUT}/notebooks/{notebook}{label}.ipynb '
        '-j {params.given:q} </dev/null >{log:q} 2>&1'
    )

def files_of_runs(runs):
    "What an experiment needs of its runs"
    return [f'{OUT}/runs/{run}/{file}' for run in runs for file in ('run.json', 'weights.safetensors')]

# What is made again is decided by outputs/<scale>/lock.json (adt_repro.runs.lock), which knows the code, the
# parameters and the files that each file was made from. Times of files decide nothing: git does not keep them.
STALE = set()   # calls to be made again: pairs of a rule and a run; found below, by the main process only
if workflow.dag_settings:   # not for commands that only print rules
    workflow.dag_settings.rerun_triggers = {RerunTrigger.MTIME}   # and all input files are ancient, see `needs`

def needs(rule, *files):
    "The input of a rule; a stale job is forced when Snakemake asks for its input, so only if it is in the plan"
    def input_files(wildcards):
        run = wildcards.get('run', '')
        wanted = [file.format(run=run) for file in files]
        if (rule, run) not in STALE:
            return ancient(wanted)
        workflow.dag.forcefiles.add(outputs_of(rule)[0].format(run=run))
        return wanted   # it waits for other jobs, whichever reason they have
    return input_files

def outputs_of(rule):
    "The files that a rule makes, with {run} for those of one run"
    tables = ['table1.csv', 'claims.csv', 'code_claims.csv']
    return made.get(rule) or [f'{OUT}/report.html', *(f'{OUT}/tables/{name}' for name in tables)]

wildcard_constraints: run='|'.join(scales.scale_runs(scale))
localrules: all, paper

# All files by name: a deleted file is made again, even if the report does not need it
rule all:
    input: f'{OUT}/report.html', everything

# Before a run is trained again, Snakemake deletes its files, and so it begins anew. The other experiments keep
# what is still true of their files: `update` leaves them there.
rule train:
    input: needs('train')
    output: outputs_of('train')
    params: given=given('train')
    threads: THREADS
    log: f'{OUT}/logs/train-{{run}}.log'
    shell: call('train', '-{wildcards.run:q}')

if 'white_box' in made:
    rule white_box:
        input: needs('white_box', f'{OUT}/runs/{{run}}/weights.safetensors')
        output: update(outputs_of('white_box'))
        params: given=given('white_box')
        threads: THREADS
        log: f'{OUT}/logs/white_box-{{run}}.log'
        shell: call('white_box', '-{wildcards.run:q}')

if 'all_images' in made:
    rule all_images:
        input: needs('all_images', f'{OUT}/runs/{{run}}/weights.safetensors')
        output: update(outputs_of('all_images'))
        params: given=given('all_images')
        threads: THREADS
        log: f'{OUT}/logs/all_images-{{run}}.log'
        shell: call('all_images', '-{wildcards.run:q}')

if 'spsa' in made:
    rule spsa:
        input: needs('spsa', f'{OUT}/runs/{{run}}/weights.safetensors')
        output: update(outputs_of('spsa'))
        params: given=given('spsa')
        threads: THREADS
        log: f'{OUT}/logs/spsa-{{run}}.log'
        shell: call('spsa', '-{wildcards.run:q}')

if 'transfer' in made:
    targets, sources = scales.transfer_runs(scale)

    rule transfer:
        input: needs('transfer', *files_of_runs(dict.fromkeys(targets + sources)))
        output: update(outputs_of('transfer'))
        params: given=given('transfer')
        threads: THREADS
        log: f'{OUT}/logs/transfer.log'
        shell: call('transfer')

if 'landscape' in made:
    rule landscape:
        input: needs('landscape', *files_of_runs(scales.runs_of(scale, 'landscape')))
        output: update(outputs_of('landscape'))
        params: given=given('landscape')
        threads: THREADS
        log: f'{OUT}/logs/landscape.log'
        shell: call('landscape')

if 'diversity' in made:
    rule diversity:
        input: needs('diversity', *files_of_runs(scales.runs_of(scale, 'diversity')))
        output: update(outputs_of('diversity'))
        params: given=given('diversity')
        threads: THREADS
        log: f'{OUT}/logs/diversity.log'
        shell: call('diversity')

if 'ablation' in made:
    rule ablation:
        input: needs('ablation')
        output: update(outputs_of('ablation'))
        params: given=given('ablation')
        threads: scale.asked['ablation']['jobs']*THREADS
        log: f'{OUT}/logs/ablation.log'
        shell: call('ablation')

rule paper:
    input: needs('paper', *(file for file in everything if not file.endswith('.safetensors')))
    output: update(outputs_of('paper'))
    params: given=given('paper')
    threads: 1
    log: f'{OUT}/logs/paper.log'
    shell: call('paper')

# Only one Snakemake at a time makes a scale, or deletes, touches or packs its files; a second one would delete
# what the first has just finished. This is checked here and not in `onstart`, which few of Snakemake's commands
# call. Commands that only print need no lock, and a job's process reads this file while the main one holds it.
QUESTIONS = {
    '--summary', '-S', '--detailed-summary', '-D', '--lint', '--print-compilation',
    '--dag', '--rulegraph', '--filegraph', '--d3dag',
    '--list-rules', '--list', '-l', '--list-target-rules', '--lt', '--list-changes', '--lc',
    '--list-input-changes', '--li', '--list-params-changes', '--lp', '--list-untracked', '--lu',
}
words = {word.partition('=')[0] for word in sys.argv[1:]}
only_prints = workflow.output_settings.dryrun or not QUESTIONS.isdisjoint(words)
if any(word.startswith(('--cleanup', '--cm')) for word in words):   # Snakemake does it in a dry run too
    only_prints = False
if workflow.is_main_process and not only_prints:
    if why := try_folder(OUT, OUT):   # it, or outputs, may be a link to another disk; folders in it may not
        raise WorkflowError(f'scale={scale.name!r}: {why}; expected a folder that can be written to')
    try:   # LOCK is held until this process ends
        LOCK = lock_file(Path(OUT)/'.snakemake.lock', f'scale={scale.name!r}', 'making it')
    except ParameterError as error:
        raise WorkflowError(str(error))

# What is stale, and why
if workflow.is_main_process:
    from adt_repro.runs.lock import plan_lines, stale_jobs, stale_units

    try:
        stale = stale_units(scale, OUT, workflow.basedir)
    except ParameterError as error:
        raise WorkflowError(str(error))
    STALE |= stale_jobs(stale)
    # A finished run that is stale is trained from its beginning, and not from what was left of its last epoch
    for rule, run in STALE if not only_prints else ():
        if rule == 'train' and Path(OUT, 'runs', run, 'weights.safetensors').exists():
            Path(OUT, 'runs', run, 'checkpoint.pt').unlink(missing_ok=True)
    for line in plan_lines(OUT, stale):
        print(line, file=sys.stderr)

# The costs, before anything starts. A plan is used again only if its first line says that it belongs to this
# file and this code.

def costs_of(file):
    "The table of costs; it finds errors in a scale that only PyTorch can find"
    costs = subprocess.run(
        [sys.executable, '-m', 'adt_repro.planning.costs', file],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=os.environ | dict(OMP_NUM_THREADS='1'),
    )
    if costs.returncode:
        last_line = (costs.stderr.strip() or '?').splitlines()[-1]
        raise WorkflowError(f'{file}: {last_line}')
    return costs.stdout

def planned_costs(plan, digest):
    "The plan of an earlier start, without terminal control characters; None: of another file or code"
    try:
        first_line, _, text = plan.read_text(encoding='utf-8').partition('\n')
    except (OSError, ValueError):
        return None
    return ''.join(c for c in text if c.isprintable() or c == '\n') if first_line == digest else None

if workflow.is_main_process:
    plan, digest = Path(OUT)/'plan.txt', scales.plan_digest(FILE)
    costs = planned_costs(plan, digest)
    if costs is None:
        costs = costs_of(FILE)
        plan.parent.mkdir(parents=True, exist_ok=True)
        with replacing(plan) as file:
            file.write(f'{digest}\n{costs}'.encode())
    print(costs, file=sys.stderr)

onsuccess:
    left = stale_jobs(stale_units(scale, OUT, workflow.basedir))   # a call may ask for some files only
    if left:
        print(f'Done. {len(left)} more jobs make all of scale {scale.name}: the same call without targets', file=sys.stderr)
    else:
        print(f'All of scale {scale.name} is made: {OUT}/report.html', file=sys.stderr)

onerror:
    print(
        f'Something failed: its last lines are in {OUT}/logs/, its notebook in {OUT}/notebooks/. '
        'Started again, the rest goes on. '
        'Another process that is named there may be left of a killed Snakemake: wait for its end, or end it.',
        file=sys.stderr,
    )
