#!/bin/sh
# sh weights/thin.sh RUN PICTURES COMMAND: thins the log of a training run, RUN/log.jsonl, to a hundred points
# that a report draws. The first line is {"run", "pictures", "command", "steps", "seconds", "peak_mb"}. Lines
# {"step", "loss", "seconds"} follow, each with the mean loss of a hundredth of the run, then {"step",
# "validation"}. PICTURES is the size of the data set, or "" where pictures are drawn during the training.
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
    /"validation"/ {
        held = held "{\"step\": " figure("step") ", \"validation\": " figure("validation") "}\n"
        next
    }
    {
        step[++n] = figure("step"); loss[n] = figure("loss"); at[n] = figure("seconds")
        peak = figure("peak_mb")
    }
    END {
        printf "{\"run\": %s, \"pictures\": %s, ", ENVIRON["RUN"], pictures
        printf "\"command\": %s, ", ENVIRON["COMMAND"]
        printf "\"steps\": %d, \"seconds\": %s, \"peak_mb\": %s}\n",
            step[n], n ? at[n] : "null", n ? peak : "null"
        each = int((n + 99) / 100)
        for (i = 1; i <= n; i++) {
            sum += loss[i]; count++
            if (i % each && i < n) continue
            printf "{\"step\": %d, \"loss\": %.5g, \"seconds\": %s}\n", step[i], sum / count, at[i]
            sum = count = 0
        }
        printf "%s", held
    }' "$run/log.jsonl"
