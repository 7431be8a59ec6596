"""A loader that is busy for as long as anybody asks."""

from data_pipelines import MicroBatchLoader, SampleIndex, transform_preset


def endless_loader(index: SampleIndex) -> MicroBatchLoader:
    """Mini-batches of 8 samples from two loader processes."""
    return MicroBatchLoader(
        index,
        order="global",
        seed=0,
        batch_size=8,
        positions=[range(8)],
        transform=transform_preset("none"),
        num_workers=2,
        first_step=0,
        num_steps=10**6,
    )
