#!/bin/sh
# The Makefile calls this where stb_image.h is not found: installs the distribution's package of the stb
# headers.
set -u
run() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else echo "sd: stb_image.h is missing; as root: $*" >&2; exit 1
    fi
}
echo "stb_image.h is missing: installing the package of the stb headers" >&2
if command -v apt-get >/dev/null; then
    run apt-get install -y -q libstb-dev >/dev/null 2>&1 ||
        { run apt-get update -q >/dev/null && run apt-get install -y -q libstb-dev >/dev/null; }
elif command -v dnf >/dev/null; then run dnf install -y -q stb-devel
elif command -v pacman >/dev/null; then run pacman -S --noconfirm stb
elif command -v brew >/dev/null; then brew install -q stb
else
    echo "sd: stb_image.h is missing: install it and stb_image_write.h into /usr/local/include/stb" >&2
    exit 1
fi || {
    echo "sd: the package of the stb headers could not be installed (libstb-dev, stb-devel, stb)" >&2
    exit 1
}
