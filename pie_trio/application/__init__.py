"""The paper's application layer: what stands between users and the control layer."""
