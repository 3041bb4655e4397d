"""Rows and batches of RS. Reading files is ``verl.utils``'."""
