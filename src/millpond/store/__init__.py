"""The public `Store`, composed of the kernel's fast paths, room, restoring, spilling and the registry."""
