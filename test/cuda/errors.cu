// errors.cu: calls that fail on purpose, one named on the command line. test/cuda/errors.sh looks at what the
// backend says.
#include "cuda.h"
#include "cuda/device.h"

int main(int argc, char **argv) {
    std::string what = argc > 1 ? argv[1] : "";
    backend_init(1);
    size_t floats = 256;
    if (what == "memory") floats = 1 << 28;
    Mem y = {backend.temp(floats * 4), F32}, x = {backend.temp(floats * 4), F32};
    backend.fill(x, 1, floats);
    if (what == "launch")
        backend.attention(y, NULL, x, x, x,
                          Attention{1, 70000, 1, 1, 1, 1, false}); // a grid has 65535 blocks along y
    if (what == "heads") backend.attention(y, NULL, x, x, x, Attention{1, 1, 1, 1, 1024, 1, false});
    if (what == "fault") { // a row of the table that does not exist, far beyond all memory
        int32_t id = 0x7fffffff;
        Mem ids = {backend.temp(4), I32};
        backend.upload(ids.at, &id, 4);
        backend.embed(y, x, (const int32_t *)ids.at, 1, 256);
    }
    if (what == "free") backend.free(x.at);
    backend.sync();
    return 0;
}
