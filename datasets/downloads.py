"""Where each dataset can be had: the one table of addresses, sizes, checksums and licences.

``scripts/data.py`` reads it; DATASETS.md says the same (a test compares the two). To add a dataset:
a ``Download`` here beside its row in ``datasets/table.py``.

None of the addresses was tried when this was written. ``listed_by`` names the maintained source
that lists an address; where it is empty the address is known by memory only and shown to the user
as "unverified". A checksum stands here only where such a source, or DATASETS.md, has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

TORCHVISION = "torchvision"  # the source of its dataset classes, release 0.29
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")


@dataclass(frozen=True)
class Address:
    """One place of a file.

    Attributes:
        url: http or https; a Google Drive file as ``https://drive.google.com/file/d/<id>/view``.
        listed_by: Maintained source that lists it; empty: from memory, unverified.
    """

    url: str
    listed_by: str = ""


@dataclass(frozen=True)
class RemoteFile:
    """A file to download and, if it is an archive, to unpack.

    Attributes:
        name: Its file name.
        addresses: Where it is, the best first; none if it takes an account.
        places: (path in the archive, path below the dataset's directory) of what is needed of it;
            of a file that is no archive the first is empty.
        size: Bytes, about; 0 if not known.
        md5: Checksum; empty if not known for sure.
        nested: Archive inside this one that the paths of ``places`` start in.
        optional: Needed for an own split only.
    """

    name: str
    addresses: tuple[Address, ...]
    places: tuple[tuple[str, str], ...]
    size: int = 0
    md5: str = ""
    nested: str = ""
    optional: bool = False

    @property
    def is_archive(self) -> bool:
        """Whether it is to be unpacked."""
        return self.name.endswith(ARCHIVE_SUFFIXES)


@dataclass(frozen=True)
class Download:
    """All there is to know about getting one dataset.

    Attributes:
        config: Stem of its config, as in ``datasets/table.py``.
        page: Its home page.
        licence: Its licence in a few words.
        files: What to download. Files of the same places are alternatives, the first is preferred.
        by_hand: What a person has to do; for a dataset that can be fetched, should that fail.
    """

    config: str
    page: str
    licence: str
    files: tuple[RemoteFile, ...] = field(default=())
    by_hand: str = ""

    @property
    def automatic(self) -> bool:
        """Whether all of it can be downloaded without an account."""
        return all(file.addresses for file in self.files) and bool(self.files)

    @property
    def size(self) -> int:
        """Bytes of the download, about, counting alternatives once; 0 if unknown."""
        largest = {file.places or file.name: file.size for file in reversed(self.files)}
        return sum(largest.values())


def drive(identifier: str) -> Address:
    """A file on Google Drive; the identifiers are those of CoOp's DATASETS.md, from memory."""
    return Address(f"https://drive.google.com/file/d/{identifier}/view")


def _split(name: str, identifier: str) -> RemoteFile:
    """The published split file of a dataset, on Google Drive."""
    file = f"split_zhou_{name}.json"
    return RemoteFile(file, (drive(identifier),), (("", file),))


def _list(name: str, address: Address, md5: str = "") -> RemoteFile:
    """A file that only an own split needs, to be put beside the images as it is."""
    return RemoteFile(name, (address,), (("", name),), md5=md5, optional=True)


def _same(*paths: str, inside: str = "") -> tuple[tuple[str, str], ...]:
    """Places that keep their names, in the directory ``inside`` of the archive."""
    return tuple((f"{inside}/{path}" if inside else path, path) for path in paths)


def _listed(url: str) -> tuple[Address, ...]:
    return (Address(url, TORCHVISION),)


def _unverified(*urls: str) -> tuple[Address, ...]:
    return tuple(Address(url) for url in urls)


MB, GB = 10**6, 10**9
SEE_PAGE = "see its page"
VGG = "https://www.robots.ox.ac.uk/~vgg/data"
HUB = "https://huggingface.co/datasets"
SUN = "vision.princeton.edu/projects/2010/SUN"
UCF = "https://www.crcv.ucf.edu/data"
HENDRYCKS = "https://people.eecs.berkeley.edu/~hendrycks"
# The web archive's copies, nearest to 2022, of what Stanford served.
CARS = "https://web.archive.org/web/2022id_/http://ai.stanford.edu/~jkrause"

DOWNLOADS = (
    Download(
        "imagenet",
        "https://www.image-net.org/download",
        "non-commercial research and education",
        (
            RemoteFile("ILSVRC2012_img_train.tar", (), (), 138 * GB,
                       md5="1d675b47d978889d74fa0da5fadfb00e"),
            RemoteFile("ILSVRC2012_img_val.tar", (), (), 6300 * MB,
                       md5="29b22e2961454d5413ddabcf34fc5622"),
            RemoteFile("ILSVRC2012_devkit_t12.tar.gz", (), (),
                       md5="fa75699e90414af021442c21a62c3abf"),
        ),
        by_hand="Register at https://www.image-net.org/download, put the archives into "
        "imagenet/images below --root, and have torchvision check, unpack and sort them there:\n"
        "python -c \"from torchvision.datasets import ImageNet as D; D('.', 'train'); "
        "D('.', 'val')\"",
    ),
    Download(
        "caltech101",
        "https://data.caltech.edu/records/mzrjq-6wc02",
        "CC BY 4.0",
        (
            RemoteFile("caltech-101.zip",
                       _listed("https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip"),
                       _same("101_ObjectCategories"), 137 * MB,
                       md5="3138e1922a9193bfa496528edbbc45d0",
                       nested="caltech-101/101_ObjectCategories.tar.gz"),
            _split("Caltech101", "1hyarUivQE36mY6jSomru6Fjd-JzwcCzN"),
        ),
    ),
    Download(
        "oxford_pets",
        f"{VGG}/pets/",
        "CC BY-SA 4.0",
        (
            RemoteFile("images.tar.gz", _listed(f"{VGG}/pets/data/images.tar.gz"),
                       _same("images"), 790 * MB, md5="5c4f3ee8e5d25df40f4fd59a7f44e54c"),
            _split("OxfordPets", "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs"),
            RemoteFile("annotations.tar.gz", _listed(f"{VGG}/pets/data/annotations.tar.gz"),
                       _same("annotations"), 19 * MB, md5="95a8c909bbe2e81eed6a22bccdf3f68f",
                       optional=True),
        ),
    ),
    Download(
        "stanford_cars",
        "https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
        "for research purposes",
        (
            RemoteFile("cars_train.tgz", _unverified(f"{CARS}/car196/cars_train.tgz"),
                       _same("cars_train"), 1 * GB, md5="065e5b463ae28d29e77c1b4b166cfe61"),
            RemoteFile("cars_test.tgz", _unverified(f"{CARS}/car196/cars_test.tgz"),
                       _same("cars_test"), 1 * GB, md5="4ce7ebf6a94d07f1952d94dd34c4d501"),
            _split("StanfordCars", "1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT"),
            RemoteFile("car_devkit.tgz", _unverified(f"{CARS}/cars/car_devkit.tgz"),
                       _same("devkit"), md5="c3b158d763b6e2245038c8ad08e45376", optional=True),
            _list("cars_test_annos_withlabels.mat",
                  Address(f"{CARS}/car196/cars_test_annos_withlabels.mat")),
        ),
        by_hand="Its site is gone. Find a copy of cars_train.tgz and cars_test.tgz with the MD5 "
        "sums that DATASETS.md has, or of the same images under the same names, and unpack it to "
        "stanford_cars/cars_train and stanford_cars/cars_test below --root.",
    ),
    Download(
        "oxford_flowers",
        f"{VGG}/flowers/102/",
        SEE_PAGE,
        (
            RemoteFile("102flowers.tgz", _listed(f"{VGG}/flowers/102/102flowers.tgz"),
                       _same("jpg"), 345 * MB, md5="52808999861908f626f3c1f4e79d11fa"),
            _split("OxfordFlowers", "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT"),
            _list("imagelabels.mat", Address(f"{VGG}/flowers/102/imagelabels.mat", TORCHVISION),
                  md5="e0620be6f572b9609742df49c70aed4d"),
            _list("cat_to_name.json", drive("1AkcxCXeK_RCGCEC_GvmWxjcjaNhu-at0")),
        ),
    ),
    Download(
        "food101",
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        "see its page; the pictures are Foodspotting's",
        (
            RemoteFile("food-101.tar.gz",
                       _listed("http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz"),
                       _same("images", inside="food-101"), 5 * GB,
                       md5="85eeb15f3717b99a5da872d97d918f87"),
            _split("Food101", "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl"),
        ),
    ),
    Download(
        "fgvc_aircraft",
        f"{VGG}/fgvc-aircraft/",
        "non-commercial research",
        (
            RemoteFile("fgvc-aircraft-2013b.tar.gz",
                       _listed(f"{VGG}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz"),
                       _same("images", "variants.txt", "images_variant_train.txt",
                             "images_variant_val.txt", "images_variant_test.txt",
                             inside="fgvc-aircraft-2013b/data"), 2800 * MB),
        ),
    ),
    Download(
        "sun397",
        f"https://{SUN}/",
        SEE_PAGE,
        (
            RemoteFile("SUN397.tar.gz", _listed(f"http://{SUN}/SUN397.tar.gz"),
                       _same("SUN397"), 37 * GB, md5="8ca2778205c41d23104230ba66911c7a"),
            _split("SUN397", "1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq"),
            RemoteFile("Partitions.zip", _unverified(f"https://{SUN}/download/Partitions.zip"),
                       _same("Training_01.txt", "Testing_01.txt"), optional=True),
        ),
    ),
    Download(
        "dtd",
        f"{VGG}/dtd/",
        "for research purposes",
        (
            RemoteFile("dtd-r1.0.1.tar.gz", _listed(f"{VGG}/dtd/download/dtd-r1.0.1.tar.gz"),
                       _same("images", inside="dtd"), 600 * MB,
                       md5="fff73e5086ae6bdbea199a49dfb8a4c1"),
            _split("DescribableTextures", "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x"),
        ),
    ),
    Download(
        "eurosat",
        "https://zenodo.org/records/7711810",
        "MIT",
        (
            RemoteFile("EuroSAT.zip",
                       _listed(f"{HUB}/torchgeo/eurosat/resolve/"
                               "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip"),
                       _same("2750"), 94 * MB, md5="c8fa014336c82ac7804f0398fcb19387"),
            RemoteFile("EuroSAT_RGB.zip",
                       _unverified("https://zenodo.org/records/7711810/files/EuroSAT_RGB.zip"),
                       (("EuroSAT_RGB", "2750"),)),
            _split("EuroSAT", "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o"),
        ),
    ),
    Download(
        "ucf101",
        f"{UCF}/UCF101.php",
        SEE_PAGE,
        (
            RemoteFile("UCF-101-midframes.zip", (drive("10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O"),),
                       _same("UCF-101-midframes")),
            _split("UCF101", "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y"),
            RemoteFile("UCF101TrainTestSplits-RecognitionTask.zip",
                       _listed(f"{UCF}/UCF101/UCF101TrainTestSplits-RecognitionTask.zip"),
                       _same("ucfTrainTestlist"), optional=True),
        ),
    ),
    Download(
        "imagenetv2",
        f"{HUB}/vaishaal/ImageNetV2",
        SEE_PAGE,
        (
            RemoteFile("imagenetv2-matched-frequency.tar.gz",
                       _unverified(f"{HUB}/vaishaal/ImageNetV2/resolve/main/"
                                   "imagenetv2-matched-frequency.tar.gz",
                                   "https://s3-us-west-2.amazonaws.com/imagenetv2public/"
                                   "imagenetv2-matched-frequency.tar.gz"),
                       _same("imagenetv2-matched-frequency-format-val"), 1300 * MB),
        ),
    ),
    Download(
        "imagenet_sketch",
        "https://github.com/HaohanWang/ImageNet-Sketch",
        SEE_PAGE,
        (
            RemoteFile("ImageNet-Sketch.zip",
                       (Address(f"{HUB}/songweig/imagenet_sketch/resolve/main/data/"
                                "ImageNet-Sketch.zip"),
                        drive("1Mj0i5HBthqH1p_yeXzsg22gZduvgoNeA")),
                       (("sketch", "images"),)),
        ),
    ),
    Download(
        "imagenet_a",
        "https://github.com/hendrycks/natural-adv-examples",
        SEE_PAGE,
        (
            RemoteFile("imagenet-a.tar", _unverified(f"{HENDRYCKS}/imagenet-a.tar"),
                       _same("imagenet-a")),
        ),
    ),
    Download(
        "imagenet_r",
        "https://github.com/hendrycks/imagenet-r",
        SEE_PAGE,
        (
            RemoteFile("imagenet-r.tar", _unverified(f"{HENDRYCKS}/imagenet-r.tar"),
                       _same("imagenet-r")),
        ),
    ),
    Download(
        "objectnet",
        "https://objectnet.dev",
        "CC BY 4.0 with conditions: no parameter of a model may be tuned on it",
        by_hand="Accept the terms at https://objectnet.dev, download objectnet-1.0.zip and, with "
        "the password that is given there, unpack it below --root, to objectnet-1.0.",
    ),
)  # fmt: skip


def download_of(config: str, table: Sequence[Download] = DOWNLOADS) -> Download | None:
    """Find what is known about getting a dataset.

    Args:
        config: Stem of its config.
        table: Where to look.

    Returns:
        Its row; None if there is none.
    """
    return next((row for row in table if row.config == config), None)
