#!/bin/sh
# sh weights/thin.sh RUN PICTURES COMMAND: thins the log of a training run, RUN/log.jsonl, to a hundred points
# that a report draws. The first line is {"run", "pictures", "command", "steps", "seconds", "peak_mb"}. Lines
# {"step", "loss", "seconds"} follow, each with the mean loss of a hundredth of the run. PICTURES is the size
# of the data set, or "" where pictures are drawn during the training.
set -eu
export LC_ALL=C # a decimal point is a point
run=$1 pictures=${2:-} command=${3:-}
RUN=$(./sd report --quote "$(basename "$run")") COMMAND=$(./sd report --quote "$command")
export RUN COMMAND # by -v, awk would read backslashes
awk -v pictures="${pictures:-null}" '
    function figure(key,   at) {
        at = match($0, "\"" key "\": [-+0-9.e]+")
        return at ? substr($0, at + length(key) + 4, RLENGTH - length(key) - 4) : "null"
    }
    {
        step[NR] = figure("step"); loss[NR] = figure("loss"); at[NR] = figure("seconds")
        peak = figure("peak_mb")
    }
    END {
        printf "{\"run\": %s, \"pictures\": %s, ", ENVIRON["RUN"], pictures
        printf "\"command\": %s, ", ENVIRON["COMMAND"]
        printf "\"steps\": %d, \"seconds\": %s, \"peak_mb\": %s}\n",
            step[NR], NR ? at[NR] : "null", NR ? peak : "null"
        each = int((NR + 99) / 100)
        for (i = 1; i <= NR; i++) {
            sum += loss[i]; count++
            if (i % each && i < NR) continue
            printf "{\"step\": %d, \"loss\": %.5g, \"seconds\": %s}\n", step[i], sum / count, at[i]
            sum = count = 0
        }
    }' "$run/log.jsonl"
