# make_trace_fixtures.py: test/fixtures/trace-lcm.safetensors and trace-lora.safetensors, a step of Phase 2
# and one of Phase 3 in PyTorch on the tiny architecture with made weights, with some of their gradients; and
# trace-adapters.safetensors, the adapters of the second. test/cli/cli.c gives them to `sd verify`.
#
#     python make_trace_fixtures.py ../sd
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors.torch import save_file

from trace import gradients

FIXTURES = Path(__file__).parent.parent / "fixtures"
KEPT = ("conv_out.bias", "conv_in.bias", "norm_out.weight", "mid_block.attentions.0.norm.bias",
        "mid_block.resnets.1.conv2.bias", "down_blocks.0.attentions.0.proj_out.bias")
LAYERS = ["conv_in", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"]

with tempfile.TemporaryDirectory() as work:
    subprocess.run([sys.argv[1], "synth", "-q", work + "/model", "--arch", "tiny"], check=True)
    for phase in ("lcm", "lora"):
        step = gradients(work + "/model", phase, 0, FIXTURES / "trace-adapters.safetensors", n=1, side=8,
                         tokens=3, rank=1, layers=LAYERS)
        kept = {k: v.contiguous() for k, v in step.items()
                if not k.startswith("gradient.") or ".lora_" in k or k.endswith(KEPT)}
        save_file(kept, FIXTURES / f"trace-{phase}.safetensors")
