"""diffusers' AutoencoderKL: pictures to the codes that a latent diffusion model works on, and back."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Autoencoder(nn.Module):
    """An AutoencoderKL between pictures in [-1, 1] and the codes of about unit variance that a network was trained on.

    code = scaling_factor (mean - shift_factor). Rombach et al. 2022, arXiv:2112.10752, section 4.3.1 and appendix D.1.
    """

    def __init__(self, vae: nn.Module, scaling: float, shift: float = 0.0):
        super().__init__()
        self.vae, self.scaling, self.shift = vae, scaling, shift

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Pictures (B, C, H, W) to their codes, the mean of the encoder's distribution."""
        return self.scaling * (self.vae.encode(x).latent_dist.mode() - self.shift)

    @torch.no_grad()
    def decode(self, code: Tensor) -> Tensor:
        """Codes to pictures."""
        return self.vae.decode(code / self.scaling + self.shift).sample
