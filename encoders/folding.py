"""Batch norms folded into the convolutions before them, for networks of torchvision that only run forward."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold(network: nn.Module, side: int) -> None:
    """Folds batch norms of a network into the convolutions before them, in place.

    Once trained, both are one convolution with other parameters (Jacob et al., 2018, section 3.2). What it computes
    differs in the last bits of float32. Of MobileNetV3-small's time on a CPU the norms were an eighth.

    Which convolution a norm follows is seen by running the network without data. torch.fx would tell more, but while it
    traces in one thread, passes of other threads fail.

    Args:
        network: of torchvision.
        side: of a picture (1, 3, side, side) that it takes, pixels.
    """
    for name, (convolution, norm) in _followed(network.eval(), side).items():
        fused = fuse_conv_bn_eval(convolution, norm)
        convolution.weight, convolution.bias = fused.weight, fused.bias
        network.set_submodule(name, nn.Identity())


def _followed(network: nn.Module, side: int) -> dict[str, tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Name of each norm that takes what a convolution beside it put out, and both.

    Beside it, as parts of the same module: in MaxViT the first norm of a block takes what a convolution outside of it
    put out, and so does the block's way around.
    """
    convolved: dict[int, tuple[str, nn.Conv2d, Tensor]] = {}  # by what came out, kept so that no other has its place
    found = {}

    def note(name: str, convolution: Any, inputs: Any, output: Tensor) -> None:
        convolved[id(output)] = name.rpartition(".")[0], convolution, output

    def look(name: str, norm: Any, inputs: tuple[Tensor]) -> None:
        before = convolved.get(id(inputs[0]))
        if before is not None and before[0] == name.rpartition(".")[0]:
            found[name] = before[1], norm

    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(partial(note, name)))
        elif isinstance(module, nn.BatchNorm2d):
            hooks.append(module.register_forward_pre_hook(partial(look, name)))
    without_data = {name: tensor.to("meta") for name, tensor in network.state_dict().items()}
    with torch.inference_mode():
        functional_call(network, without_data, torch.empty(1, 3, side, side, device="meta"))
    for hook in hooks:
        hook.remove()
    return found
