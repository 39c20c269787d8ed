"Every run, record, table and figure of a scale, each by one call of one notebook: snakemake --cores 2 --config scale=demo"
import json, os, subprocess, sys
from pathlib import Path

import yaml

os.environ['PATH'] = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'   # this environment's papermill, however Snakemake was started

def stop(line): raise WorkflowError(line)

# Several cards in one machine: with ADT_GPUS="0 1" each job takes the first free one, by a lock that ends with the job

if cards := os.environ.get('ADT_GPUS', '').split():
    shell.prefix(f'set -euo pipefail; for card in {" ".join(cards)} none; do if [ $card = none ]; then echo "ADT_GPUS=$ADT_GPUS: no card is free, --resources gpu={len(cards)} is missing" >&2; exit 1; fi; '
                 'exec 9>.snakemake/card-$card; if flock -n 9; then export CUDA_VISIBLE_DEVICES=$card; break; fi; done; ')

# What is asked for: nbs/scales/<scale>.yaml

SCALE = str(config.get('scale', 'demo'))
FILE = Path('nbs/scales')/f'{SCALE}.yaml'
EXPERIMENTS = 'white_box', 'transfer', 'spsa', 'landscape', 'diversity', 'ablation'
if other := sorted(set(config) - {'scale'}): stop(f'--config {other[0]}: there is no such setting, expected scale')
if not FILE.is_file(): stop(f'scale={SCALE!r}: expected the files of nbs/scales/, {", ".join(sorted(p.stem for p in FILE.parent.glob("*.yaml")))}')
BASE = yaml.safe_load(FILE.read_text(encoding='utf-8'))
ASKED, ROWS, OUT = BASE.pop('experiments', None) or {}, BASE.pop('rows', None) or {}, f'outputs/{SCALE}'
if BASE.get('scale') != SCALE: stop(f'{FILE}: scale={BASE.get("scale")!r}, expected the name of the file, {SCALE!r}')
if not (ASKED.get('methods') and ASKED.get('seeds')): stop(f'{FILE}: experiments: expected a table with at least methods and seeds')
if other := sorted(set(ASKED) - {'methods', 'seeds', 'more_seeds', 'rate', 'threads', 'paper', *EXPERIMENTS}): stop(f'{FILE}: experiments: {other[0]!r}, expected methods, seeds, more_seeds, rate, threads, {", ".join(EXPERIMENTS)}, paper')

def run_of(row, seed):
    "The folder of a run, as adt_repro.runs.store names it (which would import PyTorch; tests/test_snakefile.py compares the two)"
    p = ROWS.get(row, {}) | {k: v for k, v in BASE.items() if v is not None}
    if missing := {'dataset', 'arch'} - set(p): stop(f'{FILE}: {row}: {sorted(missing)[0]} is missing, expected a scale that names its dataset and arch')
    recipe = p.get('recipe', 'paper2020')
    return f"{p['dataset']}-{p['arch']}-{p.get('label') or row}" + f'-{recipe}'*(recipe != 'paper2020') + f'-s{seed}'

MORE = ASKED.get('more_seeds') or {}
if not (isinstance(MORE, dict) and all(isinstance(seeds, list) for seeds in MORE.values())): stop(f'{FILE}: more_seeds={MORE!r}: expected a table of methods, for each a list of seeds')
if other := sorted(set(MORE) - set(ASKED['methods'])): stop(f'{FILE}: more_seeds: {other[0]!r}, expected {", ".join(ASKED["methods"])}')
def seeds_of(row): return list(dict.fromkeys([*ASKED['seeds'], *MORE.get(row, [])]))
RUNS = {run_of(m, s): dict(method=m, seed=s, rows={m: ROWS[m]} if m in ROWS else None) for m in ASKED['methods'] for s in seeds_of(m)}

def runs_of(name, methods='methods', seeds='seeds', default=(ASKED['methods'], None)):
    "The runs that an experiment is about; without seeds of its own, all of its methods"
    own = ASKED[name].get(seeds, default[1])
    names = [run_of(m, s) for m in ASKED[name].get(methods, default[0]) for s in (seeds_of(m) if own is None else own)]
    return names if set(names) <= set(RUNS) else stop(f'{FILE}: {name}: {sorted(set(names) - set(RUNS))[0]}, expected the runs of methods and seeds above')

def given(name, **more):
    "The parameters of one call, as JSON, which is YAML too"
    whose = ('targets', 'target_seeds', 'sources', 'source_seeds') if name == 'transfer' else () if name == 'ablation' else ('methods', 'seeds')
    own = {k: v for k, v in ASKED[name].items() if k not in whose}
    return json.dumps(own | more | dict(scale=SCALE))

def call(name, label=''):
    "The shell's line for one notebook; the executed one stays in notebooks/, whether it came to its end or not"
    return (f'mkdir -p {OUT}/notebooks && OMP_NUM_THREADS={{threads}} python -m papermill --no-progress-bar nbs/{name}.ipynb {OUT}/notebooks/{name}{label}.ipynb '
            '-y {params.given:q} </dev/null >{log} 2>&1')

# What belongs to whom

weights = f'{OUT}/runs/{{run}}/weights.safetensors'
first, second = ASKED['seeds'][:1], ASKED['seeds'][1:2] or ASKED['seeds'][:1]
targets = runs_of('transfer', 'targets', 'target_seeds', (ASKED['methods'], first)) if 'transfer' in ASKED else []
sources = runs_of('transfer', 'sources', 'source_seeds', (ASKED['transfer'].get('targets', ASKED['methods']), second)) if targets else []
transfer = [f'{OUT}/records/transfer-itself-{t}.parquet' for t in targets] + [f'{OUT}/records/transfer-from-{s}.parquet' for s in sources if set(targets) - {s}]
transfer += [f'{OUT}/tables/transfer.csv']*bool(transfer)
swept = {k: ASKED.get('ablation', {}).get(k, True) for k in ('lbd', 'n_mc', 'inner_steps', 'inner_momentum', 'rho', 'u_max')}
pictures = dict(landscape=['landscape', 'landscape_plane', 'coverage', 'curvature'], diversity=[f'diversity_{k}' for k in ('samples', 'measures', 'classes', 'map')],
                ablation=['ablation_frontier']*bool(swept.pop('lbd')) + ['ablation_hinge']*bool(swept.pop('u_max')) + ['ablation_options']*any(map(bool, swept.values())))
pictures = {name: stems for name, stems in pictures.items() if name in ASKED}

low = '' if (p := ASKED.get('white_box', {}).get('precision', 'fp32')) == 'fp32' else f'_{p}'     # attacks of low precision have files of their own
made = dict(train=[f'{OUT}/runs/{{run}}/{f}' for f in ('run.json', 'config.yaml', 'history.csv', 'weights.safetensors')],
            white_box=[f'{OUT}/records/white_box{low}-{{run}}.parquet', f'{OUT}/tables/white_box{low}-{{run}}.csv', *[f'{OUT}/tables/white_box{low}_vs_fp32-{{run}}.csv']*bool(low),
                       *[f'{OUT}/frames/soundness{low}-{{run}}.csv']*ASKED.get('white_box', {}).get('sound', True),
                       *[f'{OUT}/frames/distribution{low}-{{run}}.csv']*(ASKED.get('white_box', {}).get('draws', 20) > 0)],
            spsa=[f'{OUT}/records/spsa-{{run}}.parquet', f'{OUT}/tables/spsa-{{run}}.csv', f'{OUT}/frames/soundness_spsa-{{run}}.csv'])
def files_of(name): return [f'{OUT}/{at}/{stem}.{ext}' for stem in pictures[name] for at, ext in (('frames', 'csv'), ('figures', 'svg'), ('figures', 'png'))]
def runs(names): return [f'{OUT}/runs/{run}/{f}' for run in names for f in ('run.json', 'weights.safetensors')]

ablation = [f'{OUT}/frames/ablation.csv', f'{OUT}/records/ablation.parquet']*('ablation' in ASKED)
everything = [f.format(run=run) for name, names in dict(train=RUNS, **{k: runs_of(k) for k in ('white_box', 'spsa') if k in ASKED}).items() for run in names for f in made[name]]
everything += [*transfer, *(f for name in pictures for f in files_of(name)), *ablation]
wildcard_constraints: run='|'.join(RUNS)
localrules: all, paper

rule all:
    input: f'{OUT}/report.html', everything   # all of it by name: what is deleted is made again, needed by the report or not

rule train:
    output: made['train']
    params: given=lambda w: json.dumps(BASE | RUNS[w.run] | dict(fresh='changed'))
    threads: ASKED.get('threads', 1)
    log: f'{OUT}/logs/train-{{run}}.log'
    shell: call('train', '-{wildcards.run}')

rule white_box:
    input: weights
    output: made['white_box']
    params: given=lambda w: given('white_box', runs=[w.run], label=w.run)
    threads: ASKED.get('threads', 1)
    log: f'{OUT}/logs/white_box-{{run}}.log'
    shell: call('white_box', '-{wildcards.run}')

rule spsa:
    input: weights
    output: made['spsa']
    params: given=lambda w: given('spsa', runs=[w.run], label=w.run)
    threads: ASKED.get('threads', 1)
    log: f'{OUT}/logs/spsa-{{run}}.log'
    shell: call('spsa', '-{wildcards.run}')

if transfer:
    rule transfer:
        input: runs(dict.fromkeys(targets + sources))
        output: transfer
        params: given=given('transfer', targets=targets, sources=sources)
        threads: ASKED.get('threads', 1)
        log: f'{OUT}/logs/transfer.log'
        shell: call('transfer')

if 'landscape' in ASKED:
    rule landscape:
        input: runs(runs_of('landscape'))
        output: files_of('landscape')
        params: given=given('landscape', runs=runs_of('landscape'))
        threads: ASKED.get('threads', 1)
        log: f'{OUT}/logs/landscape.log'
        shell: call('landscape')

if 'diversity' in ASKED:
    rule diversity:
        input: runs(runs_of('diversity'))
        output: files_of('diversity')
        params: given=given('diversity', runs=runs_of('diversity'))
        threads: ASKED.get('threads', 1)
        log: f'{OUT}/logs/diversity.log'
        shell: call('diversity')

if 'ablation' in ASKED:
    rule ablation:
        output: files_of('ablation'), ablation
        params: given=given('ablation', train=True, fresh='changed', **{k: BASE[k] for k in ('dataset', 'arch') if k in BASE and k not in ASKED['ablation']})
        threads: ASKED['ablation'].get('jobs', 1)*ASKED.get('threads', 1)
        log: f'{OUT}/logs/ablation.log'
        shell: call('ablation')

rule paper:
    input: [f for f in everything if not f.endswith(('.safetensors', '.svg'))], 'nbs/paper.ipynb', [str(p) for p in sorted(Path('nbs/published').glob('*'))]
    output: f'{OUT}/report.html', f'{OUT}/tables/table1.csv', f'{OUT}/tables/claims.csv'
    params: given=json.dumps(ASKED.get('paper', {}) | dict(scale=SCALE, runs=list(RUNS), parts=[k for k in EXPERIMENTS if k in ASKED], precision=ASKED.get('white_box', {}).get('precision')))
    threads: 1
    log: f'{OUT}/logs/paper.log'
    shell: call('paper')

# What it will cost, before anything starts

if workflow.is_main_process:
    plan = Path(OUT)/'plan.txt'
    if not plan.exists() or plan.stat().st_mtime < max(p.stat().st_mtime for p in [FILE, *Path('adt_repro').rglob('*.py')]):
        said = subprocess.run([sys.executable, '-m', 'adt_repro.planning.costs', FILE], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=os.environ | dict(OMP_NUM_THREADS='1'))
        if said.returncode: stop(f'{FILE}: {(said.stderr.strip() or "?").splitlines()[-1]}')
        plan.parent.mkdir(parents=True, exist_ok=True)
        plan.write_text(said.stdout, encoding='utf-8')
    print(plan.read_text(encoding='utf-8'), file=sys.stderr)

onsuccess: print(f'All of scale {SCALE} is made: {OUT}/report.html', file=sys.stderr)
onerror: print(f'Something failed: its last lines are in {OUT}/logs/, its notebook in {OUT}/notebooks/. Started again, the rest goes on.', file=sys.stderr)
