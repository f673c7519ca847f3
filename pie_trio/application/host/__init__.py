"""The host side of the WIT: what a call of a guest does."""
