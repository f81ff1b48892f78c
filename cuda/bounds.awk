# bounds.awk LOOPS LAUNCHES: what each launch of Stable Diffusion v1.5 cannot be faster than, from what the
# emulator counted (test/cuda/bounds.c) and, for tensor cores, from nvcc's inner loops. A GPU must at least
#   tensor   do its mma.sync;  shared  make its passes over shared memory, one a cycle
#   issue    issue its instructions, four a cycle;  L1  move its sectors, 128 bytes a cycle
#   L2       bring what cp.async asks for (else: every byte once), 64 bytes a cycle
# on the multiprocessor that has the most blocks, and
#   memory   read what it meets for the first time, and what does not fit into the L2 cache
# The largest of these rules. What is not counted (latency, launches, arithmetic outside of tensor cores) only
# adds to it.
function gpu(name, sms, ghz, flops, terabytes, megabytes) {
    id[++gpus] = name; sm[gpus] = sms; clock[gpus] = ghz * 1e3 # cycles a microsecond
    mma[gpus] = flops; hbm[gpus] = terabytes * 1e6; l2[gpus] = megabytes * 1e6
}
BEGIN {
    # Multiprocessors, highest clock, operations of mma.sync a cycle, memory, L2 cache. Hopper's tensor cores
    # reach 4096 by wgmma alone; mma.sync is given two thirds, more than was measured (arXiv 2501.12084).
    gpu("A100", 108, 1.41, 2048, 2.04, 40); gpu("H100", 132, 1.98, 2731, 3.35, 50)
    gpu("H200", 132, 1.98, 2731, 4.8, 50); gpu("RTX 4090", 128, 2.52, 512, 1.01, 72)
    print "\n== Bounds: no run can be faster, and none was measured: no GPU has run this"
    print "Counted from " counted " blocks of each launch, activations and weights in bf16, 512 x 512 pixels."
}
function short(name) {
    gsub(/__nv_bfloat16(, )?/, "", name); gsub(/<>|, >/, "", name)
    return name
}
function most(what, time) { if (time > bound) { bound = time; rule = what } }
FILENAME == ARGV[1] {
    name = substr($0, 1, 70); sub(/^void /, "", name); gsub(/ /, "", name)
    if (match($0, / HMMA [0-9]+/)) hmma = substr($0, RSTART + 6) + 0
    if (match($0, / all [0-9]+/)) ratio[substr(name, 1, 50)] = (substr($0, RSTART + 5) + 0) / hmma
    next
}
$1 == "section" {
    section = $0; sub(/^section /, "", section)
    if (sub(/, compulsory.*/, "", section)) must[section] = $NF
    order[++sections] = section
    next
}
{
    split($2, grid, ","); blocks = grid[1] * grid[2] * grid[3]
    sectors = $5; passes = $7; flop = $9; instructions = $10; bytes = $11; cold = $12
    name = $13; for (i = 14; i <= NF; i++) name = name " " $i
    # adamw and square_part reach their tensors by a list.
    if (bytes > sectors * 32 || name ~ /^(adamw|square_part)/) bytes = sectors * 32
    if (cold > bytes) cold = bytes
    key = name; gsub(/ /, "", key); key = substr(key, 1, 50)
    if (key in ratio && flop / 4096 * ratio[key] > instructions) instructions = flop / 4096 * ratio[key]
    row = section SUBSEP short(name) SUBSEP $2 SUBSEP flop SUBSEP sectors
    if (!(row in calls)) rows[++row_count] = row
    calls[row]++; launches[section]++; moved[section] += bytes
    asked[section] += $6; came[section] += sectors; went[section] += passes; best[section] += $8
    for (g = 1; g <= gpus; g++) {
        waves = blocks / sm[g]; rounds = int(waves); if (rounds < waves) rounds++
        share = rounds / blocks / clock[g]; bound = 0
        most("tensor", flop * share / mma[g]); most("shared", passes * share)
        most("issue", instructions * share / 4); most("L1", sectors * share / 4)
        if (flop) most("L2", sectors * 32 * share / 64)
        else most("L2", bytes / 64 / sm[g] / clock[g])
        beyond = bytes - cold - l2[g]
        most("memory", (cold + (beyond > 0 ? beyond : 0)) / hbm[g])
        time[row, g] += bound; by[row, g] = rule; total[section, g] += bound; ruled[section, g, rule] += bound
        if (g == 2) full[row] = waves / rounds
    }
}
function whole(what, parts, times,  n, i, g, at, count) { # a line: sections, each so many times
    n = split(parts, at, "|"); split(times, count, "|")
    printf "%-88s", what
    for (g = 1; g <= gpus; g++) {
        sum = 0
        for (i = 1; i <= n; i++) sum += total[at[i], g] * count[i]
        printf " %10.3f ms   ", sum / 1e3
    }
    print ""
}
function line(what, g, i) { # of a row or of what is left of a section
    printf "%-88s", what
    for (g = 1; g <= gpus; g++) printf " %9.1f %-6s", time[i, g], by[i, g]
    print ""
}
END {
    for (s = 1; s <= sections; s++) {
        section = order[s]
        if (section == "-") continue
        printf "\n%-88s", section ": " launches[section] " launches; microseconds in all, and what rules"
        for (g = 1; g <= gpus; g++) printf " %9s       ", id[g]
        print ""
        for (r = 1; r <= row_count; r++) {
            row = rows[r]; split(row, of, SUBSEP)
            if (of[1] != section) continue
            if (time[row, 2] > total[section, 2] / 200)
                line(sprintf("%4dx %-58.58s %-13s %3.0f %% full", calls[row], of[2], of[3], 100 * full[row]),
                     0, row)
            else for (g = 1; g <= gpus; g++) { time[section, g] += time[row, g]; by[section, g] = "" }
        }
        line("      those under half a per cent, together", 0, section)
        for (g = 1; g <= gpus; g++) time[section, g] = total[section, g]
        line("      together", 0, section)
        printf "      on an H100:"
        for (i = split("tensor shared issue L1 L2 memory", what, " "); i; i--)
            printf " %s %.0f %%", what[i], 100 * ruled[section, 2, what[i]] / total[section, 2]
        printf "; sectors over those asked for %.3f", came[section] / asked[section]
        printf "; passes over the fewest %.3f", went[section] / best[section]
        if (must[section]) printf "; distinct bytes over compulsory %.2f", moved[section] / must[section]
        print ""
    }
    print ""
    whole("a guided step", "a guided step", "1")
    whole("a picture: captions, 51 guided evaluations (PNDM, 50 steps), VAE",
          "the captions, once a picture|the first guided step|a guided step|the VAE", "1|1|50|1")
    whole("an LCM training step, one picture", "an LCM training step, one picture", "1")
}
