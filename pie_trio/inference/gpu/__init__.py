"""The engine on a GPU: FlashInfer's kernels behind the same protocols as those of the CPU."""
