"""DeepSpeed's JSON as a config: what its keys mean here, and what DeepSpeed is handed."""
