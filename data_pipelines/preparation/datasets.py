"""The data sets by name."""

from data_pipelines.preparation.cifar import CIFAR10, CIFAR100
from data_pipelines.preparation.digits import DIGITS
from data_pipelines.preparation.film_reviews import FILM_REVIEWS
from data_pipelines.preparation.glue import COLA, MRPC, QQP, SST2
from data_pipelines.preparation.image_folder import IMAGE_FOLDER
from data_pipelines.preparation.imagenet import IMAGENET
from data_pipelines.preparation.mnist import FASHION_MNIST, MNIST
from data_pipelines.preparation.recipe import DatasetRecipe
from data_pipelines.preparation.table import TABLE

DATASETS: dict[str, DatasetRecipe] = {
    recipe.name: recipe
    for recipe in (
        DIGITS,
        MNIST,
        FASHION_MNIST,
        CIFAR10,
        CIFAR100,
        IMAGENET,
        IMAGE_FOLDER,
        COLA,
        MRPC,
        SST2,
        QQP,
        FILM_REVIEWS,
        TABLE,
    )
}
