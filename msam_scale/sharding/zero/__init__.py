"""DeepSpeed's ZeRO: stages 1 and 2 shard the optimizer, stage 3 the parameters as well."""
