"""From images to latents and back: a frozen diffusers ``AutoencoderKL``.

Shape suffixes: B batch, C latent channels, H and W pixels, h and w latent cells.
"""

from __future__ import annotations

import hashlib
import logging
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinyfusion.errors import InputError, first_line
from tinyfusion.files import read_json, sha256_of
from tinyfusion.quiet import at_least

CONFIG_FILE = "config.json"
WEIGHTS = "diffusion_pytorch_model*.safetensors"
DEFAULT_SCALE = 0.18215
"""``scaling_factor`` of ``AutoencoderKL`` where a configuration, as the first ones, has none."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class Autoencoder:
    """An ``AutoencoderKL`` that is only used, never trained.

    It is no ``nn.Module``, so a LightningModule or callback that holds it takes neither its
    weights nor its parameters for its own. A hub id is fetched, and weights are read, when they
    are first needed; only safetensors are, because other weight files can run code.

    Args:
        path: folder of the autoencoder, of a pipeline that holds it, or a hub id ``owner/name``.
        subfolder: folder inside ``path``, such as ``vae`` in a pipeline.
        batch_size: images or latents that go through the network at a time.

    Raises:
        InputError: ``batch_size`` is below 1, ``path`` is neither a folder nor a hub id, or a
            local folder has no valid configuration. Errors of fetching and of weights are raised
            where these are first used.
    """

    def __init__(self, path: str, subfolder: str | None = None, batch_size: int = 16) -> None:
        if batch_size < 1:
            raise InputError(f"autoencoder.batch_size={batch_size} must be at least 1")
        self.path, self.subfolder, self.batch_size = str(path), subfolder, batch_size
        self._device = torch.device("cpu")
        local = Path(self.path).expanduser()
        if self.path and local.exists():
            _ = self.config  # a local folder is checked at once
        elif not _HUB_ID.fullmatch(self.path) or local.parent.is_dir():
            raise InputError(
                f"autoencoder.path={self.path!r} does not exist; valid: a folder with "
                f"{CONFIG_FILE} and {WEIGHTS}, or a hub id such as stabilityai/sd-vae-ft-ema"
            )

    # -- configuration -------------------------------------------------------------------------

    @property
    def scale(self) -> float:
        """Factor that latents are multiplied by for the diffusion model."""
        return float(self.config.get("scaling_factor", DEFAULT_SCALE))

    @property
    def channels(self) -> int:
        """Latent channels C."""
        return int(self.config.get("latent_channels", 4))

    @property
    def factor(self) -> int:
        """Pixels per latent cell along one side."""
        return 2 ** (len(self.config["block_out_channels"]) - 1)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of its ``config.json``.

        Raises:
            InputError: the file is absent, describes another class, lacks ``block_out_channels``,
                or is of an autoencoder whose latents are shifted as well as scaled.
        """
        file = self.folder / CONFIG_FILE
        if not file.is_file():
            inside = (self.folder / "vae" / CONFIG_FILE).is_file()
            hint = "; give autoencoder.subfolder=vae" if inside else ""
            raise InputError(f"autoencoder.path={self.path!r}: no {CONFIG_FILE} in it{hint}")
        config = read_json(file, "autoencoder")
        found = config.get("_class_name") if isinstance(config, dict) else None
        if found != "AutoencoderKL":
            raise InputError(
                f"autoencoder.path={self.path!r}: {CONFIG_FILE} describes {found!r}, "
                "not an AutoencoderKL"
            )
        for key in ("shift_factor", "latents_mean", "latents_std"):
            if config.get(key):
                raise InputError(
                    f"autoencoder.path={self.path!r}: {key}={config[key]} is not supported; valid "
                    "are autoencoders whose latents are only multiplied by scaling_factor"
                )
        if not isinstance(config.get("block_out_channels"), list):
            raise InputError(f"autoencoder.path={self.path!r}: no block_out_channels in its config")
        return config

    @cached_property
    def folder(self) -> Path:
        """Local folder with configuration and weights; a hub id is fetched.

        Raises:
            InputError: the hub can't be reached or has no such model.
        """
        found = Path(self.path).expanduser()
        if not found.exists():
            found = self._fetch()
        return (found / self.subfolder if self.subfolder else found).absolute()

    def _fetch(self) -> Path:
        import huggingface_hub

        prefix = f"{self.subfolder}/" if self.subfolder else ""
        try:
            return Path(
                huggingface_hub.snapshot_download(
                    self.path, allow_patterns=[f"{prefix}*.json", f"{prefix}{WEIGHTS}"]
                )
            )
        # The hub client passes on errors of its HTTP library, which differs between its versions.
        except Exception as error:
            raise InputError(
                f"autoencoder.path={self.path!r} is no local folder and could not be fetched from "
                f"the hub: {first_line(error)}"
            ) from None

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 of its weights (of the files' hashes in order, if there are several)."""
        hashes = [sha256_of(file) for file in self._weight_files()]
        if len(hashes) == 1:
            return hashes[0]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    def _weight_files(self) -> list[Path]:
        # A variant such as ".fp16" is another rounding of the same weights; it is not read.
        found = sorted(self.folder.glob(WEIGHTS))
        files = [f for f in found if re.fullmatch(r"diffusion_pytorch_model(-\d+-of-\d+)?", f.stem)]
        if not files:
            raise InputError(
                f"autoencoder.path={self.path!r}: no {WEIGHTS} in it; other weight files can run "
                "code and are not read"
            )
        return files

    # -- encoding and decoding -----------------------------------------------------------------

    def to(self, device: torch.device | str) -> Autoencoder:
        """Use this device from now on; returns itself."""
        self._device = torch.device(device)
        return self

    def load(self) -> Autoencoder:
        """Read the weights now, not when they are first used; returns itself.

        Raises:
            InputError: the weights can't be fetched or read, or are not those of its configuration.
        """
        _ = self._loaded
        return self

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        """Mean and log-variance of the posterior of every image, not scaled.

        Args:
            images: shape (B, 3, H, W), in [-1, 1], H and W multiples of ``factor``.

        Returns:
            mean, then log-variance clamped to [-30, 20], float32, shape (B, 2C, h, w), on the
            device.
        """
        assert not (images.shape[-1] % self.factor or images.shape[-2] % self.factor)
        parts = []
        for part in images.split(self.batch_size):
            posterior = self._net.encode(part.to(self._device, torch.float32)).latent_dist
            parts.append(torch.cat([posterior.mean, posterior.logvar], 1))
        return torch.cat(parts)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images of latents.

        Args:
            latents: latents times ``scale``, as the diffusion model makes them,
                shape (B, C, h, w).

        Returns:
            images clamped to [-1, 1], float32, shape (B, 3, H, W), on the device.
        """
        parts = []
        for part in latents.split(self.batch_size):
            scaled = part.to(self._device, torch.float32)
            parts.append(self._net.decode(scaled / self.scale).sample.clamp(-1, 1))
        return torch.cat(parts)

    @property
    def _net(self) -> Any:
        return self._loaded.to(self._device)

    @cached_property
    def _loaded(self) -> Any:  # an AutoencoderKL, whose methods may also return tuples
        _ = self.config, self._weight_files()
        # Imported late: diffusers takes seconds and only models of latents need it.
        from diffusers import AutoencoderKL

        try:
            with at_least(logging.ERROR, "diffusers"):
                net, report = AutoencoderKL.from_pretrained(
                    str(self.folder),
                    use_safetensors=True,
                    low_cpu_mem_usage=False,
                    local_files_only=True,
                    output_loading_info=True,
                )
        # Broken files and other shapes raise errors of many kinds.
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"autoencoder.path={self.path!r} can't be loaded: {reason}") from None
        for kind in ("missing", "unexpected"):
            names = sorted(report[f"{kind}_keys"])
            if names:
                raise InputError(
                    f"autoencoder.path={self.path!r}: {kind} weights: {', '.join(names[:3])}"
                    f"{' ...' if len(names) > 3 else ''}"
                )
        return net.float().requires_grad_(False).eval()
