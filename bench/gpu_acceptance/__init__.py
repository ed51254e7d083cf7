"""One command for whoever has a GPU: build engines for it, check them, measure them beside PyTorch.

    python -m diffplugin.bench.gpu_acceptance --out results/ [--full DIR]

Parts run one after the other, each in a process of its own; one that fails is recorded and does not stop the others.
"""
