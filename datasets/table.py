"""One row per dataset; every row becomes a registered class of this module.

To add a dataset: a row here, a YAML in ``configs/datasets``, a section in DATASETS.md and, if its
files are in a format of their own, a reader in ``datasets/readers.py`` or ``datasets/lists.py``.
Data of your own needs no row: see ``datasets/folder.py``.
"""

from __future__ import annotations

from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY
from datasets import imagenet, lists, objectnet, readers
from datasets.base import DatasetRow, Reader, SplitFileDataset, Wnids

SPLIT_FILES = (
    "The split_zhou_*.json files are linked in CoOp's DATASETS.md "
    "(github.com/KaiyangZhou/CoOp) and go into the dataset's directory."
)
PHOTO = "A photo of a {},"


def _render_shapes(root: Path) -> object:
    # Imported when a bundled set is read: nothing else needs the renderer.
    from datasets.shapes import ensure_rendered

    return ensure_rendered(root)


def _shapes_row(config: str, name: str, template: str = PHOTO) -> DatasetRow:
    """A set of the bundled suite: rendered below ``<root>/shapes`` when it is first asked for."""
    return DatasetRow(
        config=config,
        name=name,
        directory="shapes",
        images="",
        split_file=f"split_zhou_{name}.json",
        template=template,
        source="It is rendered there on first use; delete that directory to have it made again.",
        prepare=_render_shapes,
        published=False,
    )


def _shift_row(
    config: str,
    name: str,
    path: str,
    size: tuple[int, int],
    reader: Reader,
    wnids: Wnids,
    source: str,
    border: int = 0,
) -> DatasetRow:
    """A shifted test set of ImageNet: ``size`` is its classes and images."""
    directory, _, images = path.partition("/")
    return DatasetRow(
        config=config,
        name=name,
        directory=directory,
        images=images,
        split_file=None,
        template=PHOTO,
        num_classes=size[0],
        counts=(0, 0, size[1]),
        reader=reader,
        source=f"Images: {source}",
        shifted=True,
        wnids=wnids,
        border=border,
    )


ROWS = (
    DatasetRow(
        config="imagenet",
        name="ImageNet",
        directory="imagenet",
        images="images",
        split_file=None,
        template=PHOTO,
        num_classes=1000,
        counts=(1281167, 0, 50000),
        reader=imagenet.imagenet,
        wnids=imagenet.all_wnids,
        source="Images: ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar of "
        "www.image-net.org/download (registration needed), sorted into a folder per wnid.",
    ),
    DatasetRow(
        config="caltech101",
        name="Caltech101",
        directory="caltech-101",
        images="101_ObjectCategories",
        split_file="split_zhou_Caltech101.json",
        template="A photo of a {}.",
        num_classes=100,
        counts=(4128, 1649, 2465),
        reader=readers.caltech101,
        source="Images: caltech-101.zip of data.caltech.edu/records/mzrjq-6wc02, then unpack the "
        f"101_ObjectCategories.tar.gz in it. {SPLIT_FILES}",
    ),
    DatasetRow(
        config="oxford_pets",
        name="OxfordPets",
        directory="oxford_pets",
        images="images",
        split_file="split_zhou_OxfordPets.json",
        template=PHOTO,
        num_classes=37,
        counts=(2944, 736, 3669),
        reader=lists.oxford_pets,
        source="Images and lists: images.tar.gz and annotations.tar.gz of "
        f"www.robots.ox.ac.uk/~vgg/data/pets. {SPLIT_FILES}",
    ),
    DatasetRow(
        config="stanford_cars",
        name="StanfordCars",
        directory="stanford_cars",
        images="",
        split_file="split_zhou_StanfordCars.json",
        template="A photo of a {}, a type of car.",
        num_classes=196,
        counts=(6509, 1635, 8041),
        reader=lists.stanford_cars,
        source="Images: the original site is gone; a copy must hold cars_train/00001.jpg and "
        f"cars_test/00001.jpg on. {SPLIT_FILES}",
    ),
    DatasetRow(
        config="oxford_flowers",
        name="OxfordFlowers",
        directory="oxford_flowers",
        images="jpg",
        split_file="split_zhou_OxfordFlowers.json",
        template=PHOTO,
        num_classes=102,
        counts=(4093, 1633, 2463),
        reader=lists.oxford_flowers,
        source="Images: 102flowers.tgz of www.robots.ox.ac.uk/~vgg/data/flowers/102, which unpacks "
        f"to jpg/. {SPLIT_FILES}",
    ),
    DatasetRow(
        config="food101",
        name="Food101",
        directory="food-101",
        images="images",
        split_file="split_zhou_Food101.json",
        template="A photo of a {}, a type of food.",
        num_classes=101,
        counts=(50500, 20200, 30300),
        reader=readers.food101,
        source="Images: food-101.tar.gz of data.vision.ee.ethz.ch/cvl/datasets_extra/food-101, "
        f"which unpacks to food-101/. {SPLIT_FILES}",
    ),
    DatasetRow(
        config="fgvc_aircraft",
        name="FGVCAircraft",
        directory="fgvc_aircraft",
        images="images",
        split_file=None,
        template=PHOTO,
        num_classes=100,
        counts=(3334, 3333, 3333),
        reader=lists.fgvc_aircraft,
        source="Images and lists: the data/ of fgvc-aircraft-2013b.tar.gz of "
        "www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft, renamed fgvc_aircraft/.",
    ),
    DatasetRow(
        config="sun397",
        name="SUN397",
        directory="sun397",
        images="SUN397",
        split_file="split_zhou_SUN397.json",
        template=PHOTO,
        num_classes=397,
        counts=(15880, 3970, 19850),
        reader=lists.sun397,
        source="Images: SUN397.tar.gz of vision.princeton.edu/projects/2010/SUN, which unpacks to "
        f"SUN397/. {SPLIT_FILES}",
    ),
    DatasetRow(
        config="dtd",
        name="DescribableTextures",
        directory="dtd",
        images="images",
        split_file="split_zhou_DescribableTextures.json",
        template=PHOTO,
        num_classes=47,
        counts=(2820, 1128, 1692),
        reader=readers.describable_textures,
        source="Images: dtd-r1.0.1.tar.gz of www.robots.ox.ac.uk/~vgg/data/dtd, which unpacks to "
        f"dtd/. {SPLIT_FILES}",
    ),
    DatasetRow(
        config="eurosat",
        name="EuroSAT",
        directory="eurosat",
        images="2750",
        split_file="split_zhou_EuroSAT.json",
        template="A top-down view of {} arranged in a pattern,",
        num_classes=10,
        counts=(13500, 5400, 8100),
        reader=readers.eurosat,
        source="Images: EuroSAT_RGB.zip of zenodo.org/records/7711810, whose EuroSAT_RGB/ is to be "
        f"renamed 2750/. {SPLIT_FILES}",
    ),
    DatasetRow(
        config="ucf101",
        name="UCF101",
        directory="ucf101",
        images="UCF-101-midframes",
        split_file="split_zhou_UCF101.json",
        template=PHOTO,
        num_classes=101,
        counts=(7639, 1898, 3783),
        reader=lists.ucf101,
        source="Images: UCF-101-midframes.zip, the middle frame of each video, is linked in CoOp's "
        f"DATASETS.md too. {SPLIT_FILES}",
    ),
    _shift_row(
        "imagenetv2",
        "ImageNetV2",
        "imagenetv2/imagenetv2-matched-frequency-format-val",
        (1000, 10000),
        imagenet.imagenetv2,
        imagenet.all_wnids,
        "imagenetv2-matched-frequency.tar.gz of huggingface.co/datasets/vaishaal/ImageNetV2.",
    ),
    _shift_row(
        "imagenet_sketch",
        "ImageNetSketch",
        "imagenet-sketch/images",
        (1000, 50889),
        imagenet.imagenet_sketch,
        imagenet.all_wnids,
        "ImageNet-Sketch.zip, linked at github.com/HaohanWang/ImageNet-Sketch; its sketch/ is to "
        "be renamed images/.",
    ),
    _shift_row(
        "imagenet_a",
        "ImageNetA",
        "imagenet-adversarial/imagenet-a",
        (200, 7500),
        imagenet.imagenet_subset,
        imagenet.folder_wnids,
        "imagenet-a.tar, linked at github.com/hendrycks/natural-adv-examples.",
    ),
    _shift_row(
        "imagenet_r",
        "ImageNetR",
        "imagenet-rendition/imagenet-r",
        (200, 30000),
        imagenet.imagenet_subset,
        imagenet.folder_wnids,
        "imagenet-r.tar, linked at github.com/hendrycks/imagenet-r.",
    ),
    _shift_row(
        "objectnet",
        "ObjectNet",
        "objectnet-1.0/images",
        (113, 18574),
        objectnet.objectnet,
        objectnet.objectnet_wnids,
        "objectnet-1.0.zip, linked at objectnet.dev; it unpacks to objectnet-1.0/, with images/ "
        "and mappings/.",
        border=objectnet.BORDER,
    ),
    _shapes_row("shapes", "Shapes"),
    _shapes_row("shapes_v2", "ShapesV2"),
    _shapes_row("shapes_sketch", "ShapesSketch"),
    _shapes_row("shapes_r", "ShapesR"),
    _shapes_row("shapes_a", "ShapesA"),
    _shapes_row("shapes_colours", "ShapesColours"),
    _shapes_row("shapes_textures", "ShapesTextures"),
    _shapes_row("shapes_forms", "ShapesForms"),
    _shapes_row("shapes_counts", "ShapesCounts", "A photo of {},"),
)


def row_of(name: str) -> DatasetRow:
    """Find a row by class name or config stem.

    Raises:
        KeyError: No row has that name.
    """
    for row in ROWS:
        if name in (row.name, row.config):
            return row
    raise KeyError(f"no dataset {name!r} in the table; there are {[row.name for row in ROWS]}")


def register(row: DatasetRow) -> type[SplitFileDataset]:
    """Make the dataset class of a row and register it.

    The class becomes an attribute of this module, so that it can be imported and, for worker
    processes, pickled like one that is written out.
    """
    attributes = {
        "row": row,
        "default_template": row.template,
        "shifted": row.shifted,
        "border": row.border,
        "__doc__": f"{row.name}: {row.directory}, see DATASETS.md.",
    }
    dataset = type(row.name, (SplitFileDataset,), attributes)
    DATASET_REGISTRY.register()(dataset)
    globals()[row.name] = dataset
    return dataset


for _row in ROWS:
    register(_row)
