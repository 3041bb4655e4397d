"""Reads settings from words and YAML into dataclasses, whatever they mean. Which there are says ``verl.config``."""
