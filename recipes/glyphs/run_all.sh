#!/usr/bin/env bash
# All runs of the design in README.md beside this file, one after the other, on one thread.
#
#     OMP_NUM_THREADS=1 bash recipes/glyphs/run_all.sh glyphs.npz search
#     OMP_NUM_THREADS=1 bash recipes/glyphs/run_all.sh glyphs.npz tables
#
# `search` writes choose/ into the current folder and prints the best point of each method, which
# ablations/glyphs_each_at_its_best states. `tables` writes a/ and b/. Repeat either to resume:
# what is finished stays.
set -uo pipefail
data=${1:?the npz of make_glyphs.py}
part=${2:?search or tables}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

say() { echo "$(date -u +%FT%TZ) $*"; }

tried() { # a command: once more where it fails, then no further; a stop is a stop
    "$@" && return
    local code=$?
    [ "$code" -lt 130 ] && say "rc $code, once more" && "$@" && return
    say "stopped, rc $code: $*"
    exit "$code"
}

teacher() { # SEED
    local runs="runs/teacher_$1"
    compgen -G "$runs/teacher/npz/*/model.safetensors" > /dev/null && return
    say "begins: teacher $1"
    tried tser train-teacher --recipe glyphs/resnet20_teacher --data-dir "$data" --runs-dir "$runs" \
        --seed "$1" --quiet
    say "ends: teacher $1"
}

ladder() { # RECIPE FOLDER TEACHER METHODS, then options of tser ablate
    local recipe=$1 folder=$2 runs="runs/teacher_$3" methods=$4
    shift 4
    say "begins: $folder $methods $*"
    tried tser ablate "ablations/$recipe" --data-dir "$data" --runs-dir "$runs" \
        --output "$folder" --vary "method=$methods" --jobs 1 --quiet "$@"
    say "ends: $folder $methods $*"
}

laboratory() { # METHODS SEEDS: with the weights of the authors' laboratory, of which ce reads none
    ladder glyphs_components a/main 0 "$1" --seeds "$2" \
        --set method.kd_weight=0.2 --set method.temperature=3
}

# The points of the search: kd_weight tau^2 in {1.8, 4, 16} at tau 3, and 4 at tau 2 and 6.
points=("0.2 3" "0.4444444 3" "1.7777778 3" "1 2" "0.1111111 6")

# The best validation accuracy that a folder's only run had.
reached() { awk -F, 'NR==1 {for (i=1; i<=NF; i++) if ($i=="best_validation_accuracy") c=i} NR==2 {print $c}' "$1/ablation.csv"; }

search() { # METHODS: for one epoch, with a seed that no table has
    local method point
    for method in "$@"; do
        for point in "${points[@]}"; do
            read -r kd_weight temperature <<< "$point"
            ladder glyphs_components "choose/${method}_w${kd_weight}_tau$temperature" 0 "$method" --seed 100 \
                --set training.epochs=1 --set "method.kd_weight=$kd_weight" --set "method.temperature=$temperature"
        done
        for point in "${points[@]}"; do # the first of equals
            read -r kd_weight temperature <<< "$point"
            echo "$(reached "choose/${method}_w${kd_weight}_tau$temperature") $point"
        done | sort -s -k1,1gr | head -1 | cut -d' ' -f2- > "choose/$method.txt"
        say "chosen for $method: $(cat "choose/$method.txt")"
    done
}

mkdir -p a b choose
teacher 0
if [ "$part" = search ]; then
    search kd ts
    read -r kd_weight temperature < choose/ts.txt
    for entropy in 0.001 0.01 0.1; do
        ladder glyphs_components "choose/tser_entropy$entropy" 0 tser --seed 100 --set training.epochs=1 \
            --set "method.kd_weight=$kd_weight" --set "method.temperature=$temperature" \
            --set "method.entropy_weight=$entropy"
        say "entropy $entropy: $(reached "choose/tser_entropy$entropy")"
    done
    exit
fi
# 3. Table (b), then 4. table (a), seed by seed.
ladder glyphs_each_at_its_best b/main 0 kd,ts,tser --seeds 10
laboratory kd,ts,tser 10
mkdir -p a/n10 && cp a/main/*.csv a/n10/ # the next tables take their place
# 5. Table (a) with all six methods: the runs that are there stay.
laboratory kd,ts,tser,ce,tskl,tsce 5
# 6. Two more teachers for kd and ts, each at its own best.
for seed in 1 2; do
    teacher "$seed"
    ladder glyphs_each_at_its_best "b/teacher_$seed" "$seed" kd,ts --seeds 3
done
# 7. The rest of table (b), each with the best point of its search.
search tskl tsce
for method in tskl tsce; do
    read -r kd_weight temperature < "choose/$method.txt"
    ladder glyphs_components "b/$method" 0 "$method" --seeds 5 \
        --set "method.kd_weight=$kd_weight" --set "method.temperature=$temperature"
done
say "all done"
