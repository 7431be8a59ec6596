"""From the bytes of a sample's columns to its image and label."""

from data_pipelines.decoding.sample_decoder import Sample, SampleDecoder

__all__ = ["Sample", "SampleDecoder"]
