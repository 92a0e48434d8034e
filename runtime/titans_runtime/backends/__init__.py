"""The former place of `titans_runtime.devices` and `titans_runtime.state`."""
