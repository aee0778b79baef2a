"""The mathematics of PPO for language models, as pure functions on padded tensors.

Imports torch and the standard library only: no gRPC, no files, no metrics, no global random state. The stages
call it; each module cites where its formula comes from and states its signs.

Common shapes. ``[batch, response]`` tensors hold one row per response and one column per response token,
padded on the right; ``mask`` is a bool tensor of the same shape, True where a token counts. Whatever stands
at a place that does not count is ignored, NaN included, and every output is 0 there.

Papers: Z19 = Ziegler et al. 2019 (1909.08593), S20 = Stiennon et al. 2020 (2009.01325), I22 = Ouyang et al.
2022 (2203.02155), N+ = Huang et al. 2024 (2403.17031), M18 = McCandlish et al. 2018 (1812.06162).
"""
