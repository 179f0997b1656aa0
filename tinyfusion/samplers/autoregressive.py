"""Sampling of MAR (arXiv 2406.11838): tokens appear a few at a time, each drawn by the head.

Shape suffixes: B batch, T tokens, M tokens that one iteration reveals, Ct entries of a token,
D width, C data channels, H height, W width, P patch size, N = B * M.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tinyfusion.backbones.contract import Backbone, dtype_of
from tinyfusion.backbones.tokens import patchify, unpatchify
from tinyfusion.conditioning import Conditioning
from tinyfusion.errors import InputError
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.processes.masked import MaskedDiffusion
from tinyfusion.samplers.ancestral import ancestral_step
from tinyfusion.samplers.contract import NoiseSource, OnStep, check_sampler
from tinyfusion.samplers.guidance import NO_GUIDANCE, Guidance
from tinyfusion.samplers.guided import state_dtype
from tinyfusion.samplers.reverse import count_steps

GUIDANCE_SCHEDULES = ("linear", "constant")


def hidden_after(num_tokens: int, iterations: int) -> list[int]:
    """How many tokens are still hidden after each iteration, by the cosine schedule of MaskGIT.

    Args:
        num_tokens: all of them are hidden at first.
        iterations: at most ``num_tokens``.

    Returns:
        Strictly decreasing numbers, the last one 0, so that each iteration reveals a token.

    Source: arXiv 2202.04200, section 3.3.
    """
    counts, hidden = [], num_tokens
    for iteration in range(1, iterations):
        share = math.cos(math.pi / 2 * iteration / iterations)
        hidden = max(1, min(hidden - 1, math.floor(num_tokens * share)))
        counts.append(hidden)
    return [*counts, 0]


class AutoregressiveSampler:
    """Reveals the tokens of a picture in a random order, several in each iteration.

    An iteration asks the network for conditions given what is known by then; its head then
    draws each of the next tokens by ancestral sampling, independently of each other. Later
    iterations reveal more tokens than early ones, for which little is known.

    Every sample has draws of its own for each entry of its picture and each head step, made
    before the first token, so that it depends neither on the batch nor on the schedules of
    others: ``head_steps + 1`` pictures of noise per sample are held on the CPU (256 latents
    of 16x16x16 at 100 head steps: 424 MB). The device holds those of one head step.

    Args:
        iterations: how often the network runs; at most the number of tokens.
        head_steps: steps of the head's diffusion, or another respacing (see `respaced_times`).
        temperature: factor of the noise that the head's steps add; 1 samples from the model,
            0 adds none after the initial noise.
        guidance_schedule: ``linear``: the guidance scale grows from about 1 with the share of
            tokens that are known after the iteration, as published; ``constant``: it stays.

    Raises:
        InputError: a setting out of range.
    """

    process_kind = "masked"

    def __init__(
        self,
        iterations: int = 64,
        head_steps: int | str = 100,
        temperature: float = 1.0,
        guidance_schedule: str = "linear",
    ) -> None:
        if iterations < 1:
            raise InputError(f"sampler.iterations={iterations}: must be at least 1")
        if not (math.isfinite(temperature) and temperature >= 0):
            raise InputError(f"sampler.temperature={temperature}: must be a finite number >= 0")
        if guidance_schedule not in GUIDANCE_SCHEDULES:
            raise InputError(
                f"sampler.guidance_schedule={guidance_schedule!r} is not known; valid: "
                f"{', '.join(GUIDANCE_SCHEDULES)}"
            )
        self.iterations = iterations
        self.head_steps = head_steps
        self.temperature = temperature
        self.guidance_schedule = guidance_schedule

    def num_steps(self, process: MaskedDiffusion) -> int:
        """See `Sampler`; one step is one iteration."""
        count_steps(process.diffusion, self.head_steps, "sampler.head_steps")
        return self.iterations

    def check(self, net: Any) -> None:
        """Refuse a network with fewer tokens than there are iterations.

        Args:
            net: a backbone with ``num_tokens``, see `MAR`.

        Raises:
            InputError: ``iterations`` is more than the network's ``num_tokens``.
        """
        if self.iterations > net.num_tokens:
            raise InputError(
                f"sampler.iterations={self.iterations}, but the model has {net.num_tokens} "
                f"token(s) and each iteration reveals at least one; valid: 1 to {net.num_tokens}"
            )

    @torch.no_grad()
    def __call__(
        self,
        net: Backbone,
        process: MaskedDiffusion,
        noise: NoiseSource,
        conditioning: Conditioning,
        guidance: Guidance = NO_GUIDANCE,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """See `Sampler`; ``noise`` gives the order, then the start and one draw per head step.

        States are pictures in which hidden tokens are 0.
        """
        check_sampler(self, process, net)
        if guidance.interval is not None:
            raise InputError(
                f"guidance interval={list(guidance.interval)}: {type(self).__name__} reveals a "
                "picture token by token, which has no noise level as a whole; give null"
            )
        chain = process.diffusion.respaced(self.head_steps)
        size = process.patch_size
        # Independent draws of one distribution come in every order equally often.
        orders_BT = patchify(noise(), size)[..., 0].argsort(dim=1, stable=True)
        draws = [patchify(noise(), size) for _ in range(1 + chain.num_steps)]

        device, dtype = next(net.parameters()).device, state_dtype(net)
        tokens_BTCt = torch.zeros(draws[0].shape, device=device, dtype=dtype)
        state = unpatchify(tokens_BTCt, size)
        conditioning = conditioning.to(device)
        hidden = count = orders_BT.shape[1]
        for index, still in enumerate(hidden_after(count, self.iterations)):
            now = self._guidance(guidance, count, still)
            new_BM = orders_BT[:, still:hidden]
            hidden_BM = orders_BT[:, :hidden].to(device)
            conditions = _conditions(net, state, hidden_BM, conditioning, new_BM, now)
            own = (_take(draw, new_BM).to(device, dtype) for draw in draws)
            drawn = draw_tokens(net, chain, conditions, own, state.shape[1], now, self.temperature)
            position = new_BM.to(device)[..., None].expand(-1, -1, drawn.shape[1])
            tokens_BTCt = tokens_BTCt.scatter(1, position, drawn.view(position.shape))
            state = unpatchify(tokens_BTCt, size)
            hidden = still
            if on_step is not None:
                on_step(index, state)
        return state

    def _guidance(self, guidance: Guidance, num_tokens: int, still_hidden: int) -> Guidance:
        """Guidance of an iteration after which ``still_hidden`` tokens are hidden."""
        if self.guidance_schedule == "constant":
            return guidance
        # The published schedule leaves one token hidden after the last iteration, too.
        known = (num_tokens - max(1, still_hidden)) / num_tokens
        return replace(guidance, scale=1 + (guidance.scale - 1) * known)


def draw_tokens(
    net: Any,
    chain: GaussianDiffusion,
    conditions: Tensor,
    draws: Iterator[Tensor],
    channels: int,
    guidance: Guidance,
    temperature: float,
) -> Tensor:
    """Draw tokens from the distribution that the head gives for their conditions.

    Args:
        net: a backbone with ``head(noisy, t, conditions)``, see `MAR`.
        chain: the head's diffusion, respaced.
        conditions: shape (N, D); with guidance (2N, D), those of the null class behind.
        draws: standard normal draws of shape (N, Ct): the start, then one per step.
        channels: data channels C.
        guidance: classifier-free guidance of the predicted noise.
        temperature: factor of the noise that steps add.

    Returns:
        Tokens, shape (N, Ct).
    """

    def draw() -> Tensor:
        token_NCt = next(draws)
        # Tokens are small pictures: their entries are ordered by channel, row and column.
        side = math.isqrt(token_NCt.shape[1] // channels)
        return token_NCt.view(-1, channels, side, side)

    x, dtype = draw(), dtype_of(net)
    copies = len(conditions) // len(x)
    for time in reversed(range(chain.num_steps)):
        t = torch.full((len(x),), time, device=x.device)
        noisy = x.flatten(1).to(dtype).repeat(copies, 1)
        out = net.head(noisy, chain.network_time(t).repeat(copies), conditions)
        out = out.to(x.dtype).view(len(noisy), -1, *x.shape[2:])
        if copies == 2:
            conditional, null = out.chunk(2)
            out = guidance.combine(conditional, null, channels=channels)
        x = ancestral_step(chain, out, x, t, lambda: temperature * draw())
    return x.flatten(1)


def _conditions(
    net: Any,
    x: Tensor,
    hidden_BM: Tensor,
    conditioning: Conditioning,
    new_BM: Tensor,
    guidance: Guidance,
) -> Tensor:
    """Conditions of the tokens ``new_BM``: shape (N, D), or (2N, D) if they are guided.

    ``net`` is a backbone with ``conditions(x, hidden, ...)``, see `MAR`.
    """
    x = x.to(dtype_of(net))
    if guidance.scale != 1:
        x, hidden_BM, new_BM = (torch.cat([each, each]) for each in (x, hidden_BM, new_BM))
        conditioning = conditioning.cat([conditioning, conditioning.null(net)])
    conditions = net.conditions(x, hidden_BM, *conditioning.arguments())
    return _take(conditions, new_BM.to(x.device))


def _take(values_BTX: Tensor, index_BM: Tensor) -> Tensor:
    """Some tokens' rows of all samples, shape (N, X)."""
    return values_BTX.take_along_dim(index_BM[..., None], dim=1).flatten(0, 1)
