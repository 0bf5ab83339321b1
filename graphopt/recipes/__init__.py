"""The recipes that come along, one YAML file each."""
