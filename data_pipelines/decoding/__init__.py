"""From the bytes of a sample's columns to its image or tokens and its label."""

from data_pipelines.decoding.sample_decoder import SampleDecoder, decoder_for, probe
from data_pipelines.decoding.samples import Sample, SampleHeader, TextSample

__all__ = ["Sample", "SampleDecoder", "SampleHeader", "TextSample", "decoder_for", "probe"]
