"""The rollout engine: vLLM inside the worker process."""
