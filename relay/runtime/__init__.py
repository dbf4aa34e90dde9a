"""What a process stands on: settings, TLS, the listener, logs, metrics, tasks and their end."""
