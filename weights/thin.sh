#!/bin/sh
# sh weights/thin.sh RUN PICTURES COMMAND: the log of a training run, RUN/log.jsonl, as a hundred points that a report
# draws: a first line {"run", "pictures", "command", "steps", "seconds", "peak_mb"}, then {"step", "loss", "seconds"}, each
# the mean loss of a hundredth of the run. PICTURES: size of the data set, "" where pictures are drawn on the way.
set -eu
run=$1 pictures=${2:-} command=${3:-}
awk -v run="$(basename "$run")" -v pictures="${pictures:-null}" -v command="$command" '
    function figure(key,   at) {
        at = match($0, "\"" key "\": [-+0-9.e]+")
        return at ? substr($0, at + length(key) + 4, RLENGTH - length(key) - 4) : "null"
    }
    { step[NR] = figure("step"); loss[NR] = figure("loss"); at[NR] = figure("seconds"); peak = figure("peak_mb") }
    END {
        gsub(/\\/, "\\\\", command); gsub(/"/, "\\\"", command)
        printf "{\"run\": \"%s\", \"pictures\": %s, \"command\": \"%s\", \"steps\": %d, \"seconds\": %s, \"peak_mb\": %s}\n",
            run, pictures, command, step[NR], NR ? at[NR] : "null", NR ? peak : "null"
        each = int((NR + 99) / 100)
        for (i = 1; i <= NR; i++) {
            sum += loss[i]; count++
            if (i % each && i < NR) continue
            printf "{\"step\": %d, \"loss\": %.5g, \"seconds\": %s}\n", step[i], sum / count, at[i]
            sum = count = 0
        }
    }' "$run/log.jsonl"
