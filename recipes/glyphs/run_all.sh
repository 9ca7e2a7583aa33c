#!/usr/bin/env bash
# All runs of the design in README.md beside this file, one after the other, on one thread.
#
#     OMP_NUM_THREADS=1 bash recipes/glyphs/run_all.sh glyphs.npz
#
# It writes into the current folder: runs/ (teachers), a/ and b/ (the two tables), choose/ (the
# search). Repeat it to resume: what is finished stays. Wherever it stops, what stands is whole: all
# methods of a stage have the same seeds, but for the last one.
set -uo pipefail
data=${1:?the npz of make_glyphs.py}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
laboratory="0.2 3" # kd_weight and temperature of the authors' laboratory

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

ladder() { # FOLDER TEACHER "KD_WEIGHT TEMPERATURE" METHODS, then options of tser ablate
    local folder=$1 runs="runs/teacher_$2" methods=$4 weights=()
    read -r kd_weight temperature <<< "$3"
    shift 4
    [ "$methods" = ce ] || weights=(--set "method.kd_weight=$kd_weight" --set "method.temperature=$temperature")
    say "begins: $folder $methods $*"
    tried tser ablate ablations/glyphs_components --data-dir "$data" --runs-dir "$runs" \
        --output "$folder" --vary "method=$methods" "${weights[@]}" --jobs 1 --quiet "$@"
    say "ends: $folder $methods $*"
}

# The best validation accuracy that a folder's only run had.
reached() { awk -F, 'NR==1 {for (i=1; i<=NF; i++) if ($i=="best_validation_accuracy") c=i} NR==2 {print $c}' "$1/ablation.csv"; }

# The points of the search: kd_weight tau^2 in {1.8, 4, 16} at tau 3, and 4 at tau 2 and 6.
points=("0.2 3" "0.4444444 3" "1.7777778 3" "1 2" "0.1111111 6")

choose() { # METHOD: the point with the best validation accuracy, the first of equals
    for point in "${points[@]}"; do
        read -r kd_weight temperature <<< "$point"
        echo "$(reached "choose/$1_w${kd_weight}_tau$temperature") $point"
    done | sort -s -k1,1gr | head -1 | cut -d' ' -f2-
}

search() { # METHODS
    for method in "$@"; do
        for point in "${points[@]}"; do
            read -r kd_weight temperature <<< "$point"
            ladder "choose/${method}_w${kd_weight}_tau$temperature" 0 "$point" "$method" --seed 100
        done
        choose "$method" > "choose/$method.txt"
        say "chosen for $method: $(cat "choose/$method.txt")"
    done
}

mkdir -p a b choose
# 1. The teacher.
teacher 0
# 2. The search, on held-out images, with a seed that no table has.
search kd ts
for entropy in 0.001 0.01 0.1; do
    ladder "choose/tser_entropy$entropy" 0 "$(cat choose/ts.txt)" tser --seed 100 --set "method.entropy_weight=$entropy"
done
for entropy in 0.001 0.01 0.1; do
    echo "$(reached "choose/tser_entropy$entropy") $entropy"
done | sort -s -k1,1gr | head -1 | cut -d' ' -f2 > choose/entropy.txt
entropy=$(cat choose/entropy.txt)
say "chosen for tser: $(cat choose/ts.txt), entropy $entropy"
# 3 and 4. Both tables, seed by seed.
for n in 1 2 3 4 5 6 7 8 9 10; do
    ladder a/main 0 "$laboratory" kd,ts,tser --seeds "$n"
    ladder b/kd 0 "$(cat choose/kd.txt)" kd --seeds "$n"
    ladder b/ts 0 "$(cat choose/ts.txt)" ts --seeds "$n"
    ladder b/tser 0 "$(cat choose/ts.txt)" tser --seeds "$n" --set "method.entropy_weight=$entropy"
done
# 5. The rest of table (a).
for n in 1 2 3 4 5; do
    ladder a/rest 0 "$laboratory" tskl,tsce --seeds "$n"
    ladder a/ce 0 "$laboratory" ce --seeds "$n"
done
# 6. Two more teachers for kd and ts, each at its own best.
for seed in 1 2; do
    teacher "$seed"
    for n in 1 2 3 4 5; do
        ladder "b/kd_teacher_$seed" "$seed" "$(cat choose/kd.txt)" kd --seeds "$n"
        ladder "b/ts_teacher_$seed" "$seed" "$(cat choose/ts.txt)" ts --seeds "$n"
    done
done
# 7. The rest of table (b).
search tskl tsce
for n in 1 2 3 4 5; do
    ladder b/tskl 0 "$(cat choose/tskl.txt)" tskl --seeds "$n"
    ladder b/tsce 0 "$(cat choose/tsce.txt)" tsce --seeds "$n"
done
say "all done"
