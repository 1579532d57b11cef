# Shared by run_*.sh: turns environment variables into flags of scripts/run.py. Source it.

run_protocol() {
    local protocol=$1
    shift
    local here
    here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

    local python=${PYTHON:-}
    if [[ -z $python && -z ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} && -x $here/../.venv/bin/python ]]; then
        python=$here/../.venv/bin/python
    fi

    local flags=(--protocol "$protocol") pair words
    for pair in TRAINER:trainer CFG:cfg DATASETS:datasets SOURCE:source TARGETS:targets \
        SEEDS:seeds SHOTS:shots DATA:root OUTPUT:output DEVICES:devices LAUNCHER:launcher \
        TRACK:track; do
        words=${pair%%:*}
        words=${!words:-}
        # Lists stay one word here; run.py splits them.
        if [[ -n $words ]]; then
            flags+=("--${pair##*:}" "$words")
        fi
    done
    if [[ ${WARM:-0} != 0 ]]; then
        flags+=(--warm)
    fi
    exec "${python:-$(command -v python || command -v python3)}" "$here/run.py" "${flags[@]}" "$@"
}
