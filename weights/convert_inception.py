# convert_inception.py: pytorch-fid's Inception weights, a pickle, as the safetensors file that `sd fid
# --weights` reads. A pickle can run code when it is opened, so sd itself does not read one; PyTorch's
# weights_only loader, used here, takes tensors and nothing else.
#
#     python weights/convert_inception.py pt_inception-2015-12-05-6726825d.pth inception.safetensors
import sys

import torch
from safetensors.torch import save_file


def main(source, target):
    state = torch.load(source, map_location="cpu", weights_only=True)
    # How many batches the training saw: no part of what is computed.
    state = {k: v.float().contiguous() for k, v in state.items() if not k.endswith("num_batches_tracked")}
    rows = state["fc.weight"].shape[0] if "fc.weight" in state else 0
    if rows != 1008:
        sys.exit(f"{source}: fc.weight has {rows} rows; FID's Inception has 1008 (torchvision's has 1000)")
    save_file(state, target, {"format": "pt"})
    print(f"{target}: {len(state)} tensors, {sum(v.numel() for v in state.values())} numbers")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: convert_inception.py FROM.pth TO.safetensors")
    main(*sys.argv[1:])
