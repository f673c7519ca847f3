"""Programs by content hash, and instances from launch to end."""
