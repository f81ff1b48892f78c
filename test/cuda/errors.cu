// errors.cu: calls that fail on purpose, one named on the command line. test/cuda/errors.sh looks at what the
// backend says.
#include "cuda.h"
#include "cuda/device.h"

int main(int argc, char **argv) {
    std::string what = argc > 1 ? argv[1] : "";
    k_init(1);
    size_t floats = 256;
    if (what == "memory") floats = 1 << 28;
    Mem y = {k_temp(floats * 4), F32}, x = {k_temp(floats * 4), F32};
    k_fill(x, 1, floats);
    if (what == "launch")
        k_attention(y, NULL, x, x, x,
                    Attention{1, 70000, 1, 1, 1, 1, false}); // a grid has 65535 blocks along y
    if (what == "heads") k_attention(y, NULL, x, x, x, Attention{1, 1, 1, 1, 1024, 1, false});
    if (what == "fault") { // a row of the table that does not exist, far beyond all memory
        int32_t id = 0x7fffffff;
        Mem ids = {k_temp(4), I32};
        k_upload(ids.at, &id, 4);
        k_embed(y, x, (const int32_t *)ids.at, 1, 256);
    }
    if (what == "free") k_free(x.at);
    k_sync();
    return 0;
}
