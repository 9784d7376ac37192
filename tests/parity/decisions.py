"""What float32 leaves open in the gradients of the ResNet.

Rectifiers and max-pooling decide what is passed back. Where an input is all but zero, or two are all but equal, a few
of millions, rounding decides. One of them may move a gradient by a thousandth, and no two programs round alike. Passes
in float64 tell what they are worth: one as it is, the others with any half of the open decisions turned round.

Letters: T frames, D embed_dim, C channels, P pixels of a window.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from viavsp_jax.prepare.features.modeling_avhubert import VideoExtractor

PASSES = 4
PROGRAMS = 2  # that are compared: either has made its own decisions
MARGIN = 4.0  # another program's rounding errors may be so many times as large as those of PyTorch's float32 here


def left_open(
    extractor: VideoExtractor, video: Tensor, cotangent: Tensor, distance: Callable[[Tensor, Tensor], float]
) -> dict[str, float]:
    """How far apart the gradients of two float32 programs may be for their decisions, by the weight's name.

    Args:
      extractor: in float32, in evaluation mode.
      video: float32[1, T, 88, 88].
      cotangent: float32[1, T, D], the gradient of what the extractor gives.
      distance: of a gradient from another.
    """
    inputs: dict[str, list[Tensor]] = {}
    exact = copy.deepcopy(extractor).double()
    hooks = [
        module.register_forward_pre_hook(
            lambda _, args, name=name: inputs.setdefault(name, []).append(args[0].detach())
        )
        for model in (extractor, exact)
        for name, module in model.named_modules()
        if isinstance(module, nn.PReLU | nn.MaxPool3d)
    ]
    with torch.no_grad():
        extractor(video)
    plain = gradients(exact, video, cotangent)
    for hook in hooks:
        hook.remove()
    generator = torch.Generator().manual_seed(0)
    for name, (rounded, value) in inputs.items():
        module, error = exact.get_submodule(name), MARGIN * float((rounded - value).abs().max())
        turned = turned_pooling if isinstance(module, nn.MaxPool3d) else turned_rectifier
        module.forward = turned(module, error, generator)
    turned_round = [gradients(exact, video, cotangent) for _ in range(PASSES)]
    return {name: PROGRAMS * max(distance(one[name], value) for one in turned_round) for name, value in plain.items()}


def gradients(model: VideoExtractor, video: Tensor, cotangent: Tensor) -> dict[str, Tensor]:
    """Of the weights, in float64, by name."""
    names, weights = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(model(video.double()), weights, cotangent.double()), strict=True))


def any_half(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator) < 0.5


def turned_rectifier(rectifier: nn.PReLU, error: float, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """The rectifier with half of the inputs that are as close to zero as `error` moved across it."""

    def forward(x: Tensor) -> Tensor:
        turned = (x.abs() <= error) & any_half(x.shape, generator)
        across = torch.where(x > 0, -error, error) - x
        return F.prelu(x + torch.where(turned, across, 0).detach(), rectifier.weight)

    return forward


def turned_pooling(pooling: nn.MaxPool3d, error: float, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """The pooling with the second largest value at half of the windows where either may be the largest.

    It takes and gives [1, C, T, h, w], and pools each frame by itself.
    """
    (_, *kernel), (_, *stride), (_, *padding) = pooling.kernel_size, pooling.stride, pooling.padding

    def forward(x: Tensor) -> Tensor:
        padded = F.pad(x, [padding[1], padding[1], padding[0], padding[0]], value=-torch.inf)
        windows = padded.unfold(3, kernel[0], stride[0]).unfold(4, kernel[1], stride[1]).flatten(-2)  # [..., h, w, P]
        largest, second = windows.topk(2).values.unbind(-1)
        turned = (largest - second <= 2 * error) & any_half(largest.shape, generator)
        return torch.where(turned, second, largest)

    return forward
