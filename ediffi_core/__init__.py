"""The science of eDiff-I: noise, expert trees, denoisers, samplers.

Needs torch, numpy and safetensors alone.
"""
