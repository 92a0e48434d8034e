"""Where graphs run: the host and every execution provider, each behind `state.device.Device`."""
