#!/bin/sh
# build.sh BUILD   prints build/sd.html: doc/page/page.html with everything in it. A line that holds @NAME@
# alone is replaced: by a file beside it (@page.css@), by the code at a stop of doc/READING.md (@T9@), by the
# program and the files that it reads (@program@, @files@), packed by gzip and written in base64.
build=$1 here=doc/page

packed() { # TYPE NAME FILE: of a link only where it leads to
    if [ -L "$3" ]; then
        printf '<script type="%s" data-name="%s" data-link="%s"></script>\n' "$1" "$2" "$(readlink "$3")"
    else
        printf '<script type="%s" data-name="%s">' "$1" "$2"
        gzip -9 -n -c "$3" | base64 | tr -d '\n'
        printf '</script>\n'
    fi
}

stop() { # from the tag to the end of what it stands in
    file=$(grep -l "// \[$1\]" ./*.c lib/*/*.c cpu/*.c cli/*.c | head -n 1)
    file=${file#./}
    printf '<details class="code"><summary>In the code: <code>%s</code>, stop %s of the ' "$file" "$1"
    printf 'reading path</summary>\n<p><a href="../%s">Open %s</a></p>' "$file" "$file"
    printf '<pre tabindex="0" role="region" aria-label="The code at stop %s">' "$1"
    awk -v tag="// [$1]" '
        index($0, tag) { on = 1 } on { print } on && /^}|[^ ].*}$/ && !/^ / { exit }' "$file" |
        sed 's/&/\&amp;/g; s/</\&lt;/g'
    printf '</pre></details>\n'
}

while IFS= read -r line; do
    case $line in
    @program@)
        for kind in simd portable; do # compiled code stays as it is: it is needed before the program runs
            printf '<script type="text/wasm" data-name="%s">' $kind
            base64 <"$build/sd-$kind.wasm" | tr -d '\n'
            printf '</script>\n'
        done
        printf '<script type="text/worker">' # both have the same
        cat "$build/sd-simd.js" "$here/worker.js"
        printf '</script>\n' ;;
    @files@)
        for file in $(find weights/tiny weights/tiny-lcm ! -type d) weights/tiny-lcm-lora-8k.safetensors \
                    weights/tiny-inception.safetensors; do
            packed text/file "$file" "$file"
        done
        packed text/file weights/reference.npz "$build/reference.npz" ;;
    @words@) cat weights/tiny/tokenizer/words.txt ;;
    @*.*@) name=${line#@} && cat "$here/${name%@}" ;;
    @*@) tag=${line#@} && stop "${tag%@}" ;;
    *) printf '%s\n' "$line" ;;
    esac
done <$here/page.html
