"""Where the images of the named subjects come from: own folder, cache, download, or shipped."""

from modelfix_core.subjects.sources.base import Source, cache
from modelfix_core.subjects.sources.cifar import CifarSource
from modelfix_core.subjects.sources.idx import IdxSource
from modelfix_core.subjects.sources.imagenet import ImageNetSource, imagenet_classes
from modelfix_core.subjects.sources.utkface import UtkFaceSource

__all__ = ["SOURCES", "Source", "cache"]

FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        IdxSource(
            name="mnist",
            title="MNIST",
            classes=tuple("0123456789"),
            sizes={"train": 60_000, "test": 10_000},
            licence="CC BY-SA 3.0",
            homepage="http://yann.lecun.com/exdb/mnist/",
            files="https://ossci-datasets.s3.amazonaws.com/mnist/",
            torchvision="MNIST",
        ),
        IdxSource(
            name="fashion-mnist",
            title="Fashion-MNIST",
            classes=FASHION,
            sizes={"train": 60_000, "test": 10_000},
            licence="MIT, Copyright (c) 2017 Zalando SE",
            homepage="https://github.com/zalandoresearch/fashion-mnist",
            files="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            torchvision="FashionMNIST",
        ),
        IdxSource(
            name="fashion-mini",
            title="Fashion-MNIST (its 10,000 test images)",
            classes=FASHION,
            sizes={"test": 10_000},
            licence="MIT, Copyright (c) 2017 Zalando SE",
            homepage="https://github.com/zalandoresearch/fashion-mnist",
            shipped=True,
        ),
        CifarSource(
            name="cifar10",
            title="CIFAR10",
            classes=(
                "airplane",
                "automobile",
                "bird",
                "cat",
                "deer",
                "dog",
                "frog",
                "horse",
                "ship",
                "truck",
            ),
            sizes={"train": 50_000, "test": 10_000},
            licence="none stated; cite Krizhevsky, 2009",
            homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
            torchvision="CIFAR10",
        ),
        UtkFaceSource(
            name="utkface",
            title="UTKFace",
            classes=("male", "female"),
            sizes={"all": 23_705},
            licence="non-commercial research purposes only",
            homepage="https://susanqq.github.io/UTKFace/",
        ),
        ImageNetSource(
            name="imagenet",
            title="ImageNet",
            classes=tuple(c.name for c in imagenet_classes()),
            sizes={"train": 1_281_167, "val": 50_000},
            licence="non-commercial research and educational purposes only",
            homepage="https://www.image-net.org/download-images.php",
        ),
    )
}
