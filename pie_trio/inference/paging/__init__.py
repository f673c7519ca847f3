"""What paged-attention kernels want to know of a batch, as numpy arrays; no device here."""
