"""The named subjects: data, architectures, recipes and their preparation."""
