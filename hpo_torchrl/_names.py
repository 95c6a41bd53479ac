"""Names of entries that environments write and policies read."""

# Which options may be chosen; TorchRL's own name for it.
ACTION_MASK = "action_mask"
