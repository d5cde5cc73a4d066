"""Forward and backward passes of the two networks, written out over buffers that are made once.

Autograd would allocate and visit some two hundred small tensors a step. Here every pass writes into the same buffers,
which never move, so that a CUDA graph can be captured of them, and so that no memory is asked for: the C library may
map blocks of a megabyte anew each time, and touching their pages can cost more than the arithmetic. That is why the
layer normalisation is written out as well: torch's own has no form that allocates nothing. Tests hold each pass to a
slow implementation with autograd.

A pass may carry only some rows of a batch, as one lane of several (`learner.lanes`): it then writes gradients of its
own, which are added up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from learner.networks import CriticEnsemble, GaussianPolicy

_LAYER_NORM_EPSILON = 1e-5

Gradients = Mapping[Tensor, Tensor]
"""Parameter -> where the derivative of the loss by it is written."""


class PolicyPass:
    """One pass of the policy's mean for batches of one size.

    Args:
        policy: read at each pass.
        batch_size: B.
        gradients: where `backward` writes those of its layers; without them there is no backward pass.
    """

    def __init__(self, policy: GaussianPolicy, batch_size: int, *, gradients: Gradients | None = None) -> None:
        self._layers = [layer for layer in policy.layers if isinstance(layer, nn.Linear)]
        self._bounded = policy.spec.bounded_mean
        like = self._layers[0].weight
        self._outputs = [like.new_empty(batch_size, layer.out_features) for layer in self._layers]
        self._back = [torch.empty_like(output) for output in self._outputs] if gradients is not None else []
        self._gradients = gradients or {}
        self._inputs: Tensor | None = None

    def forward(self, observations: Tensor) -> Tensor:
        """Mean actions (B, A) of observations (B, O) as the layers see them; valid until the next pass."""
        self._inputs = hidden = observations
        last = len(self._layers) - 1
        for index, (layer, output) in enumerate(zip(self._layers, self._outputs, strict=True)):
            torch.addmm(layer.bias, hidden, layer.weight.t(), out=output)
            if index < last:
                output.clamp_(min=0.0)
            elif self._bounded:
                output.tanh_()
            hidden = output
        return hidden

    def backward(self, mean_gradient: Tensor) -> None:
        """Write dL/dparameter of every layer, given dL/dmean (B, A) of the last forward pass."""
        assert self._inputs is not None, "forward comes first"
        last = len(self._layers) - 1
        gradient = self._back[last]
        if self._bounded:
            torch.ops.aten.tanh_backward.grad_input(mean_gradient, self._outputs[last], grad_input=gradient)
        else:
            gradient.copy_(mean_gradient)
        for index in range(last, -1, -1):
            layer = self._layers[index]
            below = self._outputs[index - 1] if index else self._inputs
            torch.mm(gradient.t(), below, out=self._gradients[layer.weight])
            torch.sum(gradient, dim=0, out=self._gradients[layer.bias])
            if index:
                torch.mm(gradient, layer.weight, out=self._back[index - 1])
                gradient = _through_relu(self._back[index - 1], below)


@dataclass(slots=True)
class _Hidden:
    """Buffers of one hidden layer of N critics; the last three only with layer normalisation."""

    product: Tensor
    """(N, B, H): inputs times weights plus bias."""
    output: Tensor
    """(N, B, H), after normalisation and ReLU; the same memory as `product` without normalisation."""
    gradient: Tensor
    """(N, B, H)."""
    normal: Tensor
    """(N, B, H): the product with mean 0 and standard deviation 1 over H."""
    mean: Tensor
    """(N, B, 1): of the product; `backward` leaves other means in it."""
    inverse_std: Tensor
    """(N, B, 1)."""


class CriticPass:
    """One pass of N critics for batches of one size.

    Args:
        critics: read at each pass.
        batch_size: B.
        members: how many critics take part; fewer than all are chosen anew for each forward pass.
        gradients: where `backward` writes those of the parameters; without them there is no backward pass.
    """

    def __init__(
        self,
        critics: CriticEnsemble,
        batch_size: int,
        *,
        members: int | None = None,
        gradients: Gradients | None = None,
    ) -> None:
        self._critics = critics
        self._gradients = gradients or {}
        count = members or critics.num_critics
        like = critics.weights[0]
        self._inputs = like.new_empty(batch_size, like.shape[1])
        self._norm = len(critics.scales) > 0
        self._hidden: list[_Hidden] = []
        for index, weight in enumerate(critics.weights[:-1]):
            width = weight.shape[2]
            if gradients is None and index >= 2 and self._hidden[index - 2].product.shape[-1] == width:
                self._hidden.append(self._hidden[index - 2])  # only what the next layer reads is kept: less memory
                continue
            product = like.new_empty(count, batch_size, width)
            empty = like.new_empty(0)
            output, normal = (torch.empty_like(product), torch.empty_like(product)) if self._norm else (product, empty)
            back = torch.empty_like(product) if gradients is not None else empty
            statistics = [like.new_empty(count, batch_size, 1) for _ in range(2)]
            self._hidden.append(_Hidden(product, output, back, normal, *statistics))
        self._summands = like.new_empty(count, batch_size, critics.weights[-1].shape[1])
        self._raw = like.new_empty(count, batch_size, 1)
        self._q = like.new_empty(count, batch_size)
        self._gradient = like.new_empty(count, batch_size, 1)
        self._chosen: dict[Tensor, Tensor] = {}
        if count < critics.num_critics:
            self._chosen = {p: torch.empty_like(p[:count], requires_grad=False) for p in critics.parameters()}
        self._within = torch.empty_like(self._gradient, dtype=torch.bool)

    def forward(self, observations: Tensor, actions: Tensor, members: Tensor | None = None) -> Tensor:
        """Values (N, B) of state-action pairs (B, O), (B, A) as the layers see them; valid until the next pass.

        Args:
            observations: (B, O).
            actions: (B, A).
            members: (M,) int64, the critics to ask; None asks all.
        """
        critics = self._critics
        torch.cat([observations, actions], dim=-1, out=self._inputs)

        def chosen(parameter: Tensor) -> Tensor:
            if members is None:
                return parameter
            return torch.index_select(parameter, 0, members, out=self._chosen[parameter])

        hidden = self._inputs.expand(len(self._raw), *self._inputs.shape)
        for index, layer in enumerate(self._hidden):
            bias, weight = chosen(critics.biases[index]), chosen(critics.weights[index])
            torch.baddbmm(bias, hidden, weight, out=layer.product)
            if self._norm:
                _normalise(layer)
                shift, scale = chosen(critics.shifts[index]), chosen(critics.scales[index])
                torch.addcmul(shift, layer.normal, scale, out=layer.output)
            layer.output.clamp_(min=0.0)
            hidden = layer.output
        # One column: sums of products, where a matrix product would take four times as long on a CPU.
        torch.mul(hidden, chosen(critics.weights[-1]).transpose(1, 2), out=self._summands)
        torch.sum(self._summands, dim=-1, keepdim=True, out=self._raw).add_(chosen(critics.biases[-1]))
        raw = self._raw.squeeze(-1)
        return raw if critics.max_q is None else torch.clamp(raw, max=critics.max_q, out=self._q)

    def backward(self, q_gradient: Tensor) -> None:
        """Write dL/dparameter of every critic, given dL/dQ (N, B) of the last forward pass, which asked all critics."""
        critics = self._critics
        gradient = self._gradient
        if critics.max_q is None:
            gradient.copy_(q_gradient.unsqueeze(-1))
        else:
            # The clamp passes no gradient, as in the authors' output activation Clamp(max=0).
            torch.le(self._raw, critics.max_q, out=self._within)
            torch.mul(q_gradient.unsqueeze(-1), self._within, out=gradient)
        for index in range(len(self._hidden), -1, -1):
            below = self._hidden[index - 1].output if index else self._inputs.expand(len(gradient), *self._inputs.shape)
            weight, bias = critics.weights[index], critics.biases[index]
            one_column = index == len(self._hidden)
            if one_column:
                torch.mul(below, gradient, out=self._summands)
                torch.sum(self._summands, dim=1, out=self._gradients[weight].squeeze(-1))
            else:
                torch.bmm(below.transpose(1, 2), gradient, out=self._gradients[weight])
            torch.sum(gradient, dim=1, keepdim=True, out=self._gradients[bias])
            if index:
                layer = self._hidden[index - 1]
                if one_column:
                    torch.mul(gradient, weight.transpose(1, 2), out=layer.gradient)
                else:
                    torch.bmm(gradient, weight.transpose(1, 2), out=layer.gradient)
                gradient = _through_relu(layer.gradient, layer.output)
                if self._norm:
                    gradient = self._through_norm(gradient, layer, index - 1)

    def _through_norm(self, gradient: Tensor, layer: _Hidden, index: int) -> Tensor:
        critics = self._critics
        torch.sum(gradient, dim=1, keepdim=True, out=self._gradients[critics.shifts[index]])
        # The layer's output is not needed any more: its memory takes the product.
        scaled = torch.mul(gradient, layer.normal, out=layer.output)
        torch.sum(scaled, dim=1, keepdim=True, out=self._gradients[critics.scales[index]])
        gradient.mul_(critics.scales[index])
        # dL/dproduct = (g - mean(g) - normal mean(g normal)) / std, means over H (Ba, Kiros and Hinton 2016).
        torch.mul(gradient, layer.normal, out=scaled)
        gradient.sub_(torch.mean(gradient, dim=-1, keepdim=True, out=layer.mean))
        gradient.addcmul_(layer.normal, torch.mean(scaled, dim=-1, keepdim=True, out=layer.mean), value=-1.0)
        return gradient.mul_(layer.inverse_std)


def own_gradients(module: nn.Module) -> dict[Tensor, Tensor]:
    """The gradients of the trainable parameters, made if they are missing: to be written in place."""
    found: dict[Tensor, Tensor] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            found[parameter] = parameter.grad
    return found


def _normalise(layer: _Hidden) -> None:
    """Write `normal`, `mean` and `inverse_std` of the layer's product."""
    torch.mean(layer.product, dim=-1, keepdim=True, out=layer.mean)
    torch.sub(layer.product, layer.mean, out=layer.normal)
    torch.linalg.vector_norm(layer.normal, dim=-1, keepdim=True, out=layer.inverse_std)
    layer.inverse_std.square_().div_(layer.product.shape[-1]).add_(_LAYER_NORM_EPSILON).rsqrt_()
    layer.normal.mul_(layer.inverse_std)


def _through_relu(gradient: Tensor, output: Tensor) -> Tensor:
    """In place: no gradient where the ReLU gave 0."""
    torch.ops.aten.threshold_backward.grad_input(gradient, output, 0.0, grad_input=gradient)
    return gradient
