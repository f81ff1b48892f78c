#!/bin/sh
# fetch.sh: fetches the real weights, which this repository may not ship.
#
#     sh weights/fetch.sh sd15|lcm-lora|inception [DIR]      DIR: where to (default weights/real)
#
# sd15       Stable Diffusion v1.5, the diffusers folder (4.3 GB): DIR/sd15, for sd -m
# lcm-lora   LCM-LoRA for it (135 MB): DIR/lcm-lora-sdv1-5.safetensors, for sd sample --lora
# inception  pytorch-fid's Inception-v3 (96 MB): DIR/inception.safetensors, for sd fid --weights; the
#            conversion from PyTorch's format needs Python with torch and safetensors
#
# A download that was cut off goes on where it stopped when the script is run again. Large files are checked
# against their SHA-256. Sources: Hugging Face shows it on each large file's page (it names the file in LFS);
# for pytorch-fid's file, the first 8 digits are part of its published name, the rest is printed by several
# projects that pin the file. The small text files (configurations, tokenizer) have no published SHA-256; the
# script says so.
set -eu
export LC_ALL=C # a decimal point is a point

what=${1:-}
dir=${2:-weights/real}

say() { echo "fetch.sh: $*" >&2; }
usage() { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }

sha256() {
    if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d ' ' -f 1
}

# right FILE NAME SHA-256: is FILE what NAME should be? Without a SHA-256 its first bytes tell a web page.
right() {
    [ -s "$1" ] || return 1
    if [ -n "$3" ]; then [ "$(sha256 "$1")" = "$3" ]; return; fi
    case $2 in
    *.json) [ "$(head -c 1 "$1")" = "{" ] ;;
    *merges.txt) [ "$(head -c 8 "$1")" = "#version" ] ;;
    esac
}
# get: one try. Goes on where FILE.part ends, and leaves curl's status in $status, the server's in $code.
get() {
    status=0
    code=$(curl -fL --progress-bar --retry 2 --connect-timeout 20 -C - -w '%{http_code}' \
        -o "$file.part" "$url") || status=$?
}

# fetch URL FILE [SHA-256]: through FILE.part, which only becomes FILE when whole and right
fetch() {
    url=$1 file=$2 want=${3:-}
    if [ -e "$file" ]; then
        if right "$file" "$file" "$want"; then say "$file is there already"; return; fi
        say "$file is there but is not what it should be: remove it to fetch it again"
        exit 1
    fi
    mkdir -p "$(dirname "$file")"
    say "$file from $url"
    begun=no
    [ ! -s "$file.part" ] || begun=yes
    get
    # A part may be damaged, or longer than the file (416), or the server may know no ranges (33): begin anew.
    if [ $begun = yes ] && ! right "$file.part" "$file" "$want" &&
        { [ $status = 0 ] || [ $status = 33 ] || [ "$code" = 416 ]; }; then
        say "$file.part cannot be completed; fetching all of it"
        rm -f "$file.part"
        get
    fi
    if [ "$code" = 416 ] && right "$file.part" "$file" "$want"; then status=0; fi # it was whole already
    if [ $status != 0 ] && { [ -z "$want" ] || ! right "$file.part" "$file" "$want"; }; then
        host=${url#https://}
        host=${host%%/*}
        case $status in # as curl's manual numbers them
        5 | 6 | 7 | 28 | 35) say "no network: $host cannot be reached from here" ;;
        22) say "$host refuses $url, or has it no longer" ;;
        23) say "cannot write $file.part: is the disk full?" ;;
        *) say "$url was cut off (curl ended with $status)" ;;
        esac
        rmdir "$(dirname "$file")" "$dir" 2>/dev/null || true # nothing came: no empty folder stays
        if [ -e "$file.part" ]; then say "run this again: it goes on where it stopped"; fi
        exit 1
    fi
    if ! right "$file.part" "$file" "$want"; then
        say "what came for $file is not it${want:+: its SHA-256 is not $want}; it is removed"
        rm -f "$file.part"
        exit 1
    fi
    [ -n "$want" ] || say "$file: no published SHA-256 is known; only its first bytes were looked at"
    mv "$file.part" "$file"
}

command -v curl >/dev/null || { say "curl is needed"; exit 1; }

hub=https://huggingface.co
case $what in
sd15)
    from=$hub/stable-diffusion-v1-5/stable-diffusion-v1-5/resolve/main
    for f in model_index.json scheduler/scheduler_config.json text_encoder/config.json unet/config.json \
        vae/config.json tokenizer/vocab.json tokenizer/merges.txt tokenizer/tokenizer_config.json \
        tokenizer/special_tokens_map.json; do
        fetch "$from/$f" "$dir/sd15/$f"
    done
    fetch "$from/text_encoder/model.safetensors" "$dir/sd15/text_encoder/model.safetensors" \
        d008943c017f0092921106440254dbbe00b6a285f7883ec8ba160c3faad88334
    fetch "$from/vae/diffusion_pytorch_model.safetensors" \
        "$dir/sd15/vae/diffusion_pytorch_model.safetensors" \
        a2b5134f4dbc140d9c11f11cba3233099e00af40f262f136c691fb7d38d2194c
    fetch "$from/unet/diffusion_pytorch_model.safetensors" \
        "$dir/sd15/unet/diffusion_pytorch_model.safetensors" \
        19da7aaa4b880e59d56843f1fcb4dd9b599c28a1d9d9af7c1143057c8ffae9f1
    say "done: sd sample -m $dir/sd15 -p \"...\""
    ;;
lcm-lora)
    fetch $hub/latent-consistency/lcm-lora-sdv1-5/resolve/main/pytorch_lora_weights.safetensors \
        "$dir/lcm-lora-sdv1-5.safetensors" 8f90d840e075ff588a58e22c6586e2ae9a6f7922996ee6649a7f01072333afe4
    say "done: sd sample -m $dir/sd15 --lora $dir/lcm-lora-sdv1-5.safetensors -p \"...\""
    ;;
inception)
    name=pt_inception-2015-12-05-6726825d.pth
    fetch https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/$name "$dir/$name" \
        6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2
    if [ ! -e "$dir/inception.safetensors" ]; then
        "${PYTHON:-python3}" "$(dirname "$0")/convert_inception.py" "$dir/$name" \
            "$dir/inception.safetensors" || {
            say "the conversion failed; it needs torch and safetensors (PYTHON=... names another Python)"
            exit 1
        }
    fi
    say "done: sd fid A B --weights $dir/inception.safetensors"
    ;;
*) usage ;;
esac
