"""Rows of the ten datasets that the CoOp family tests on beside ImageNet."""

from __future__ import annotations

from datasets.downloads import (
    GB,
    MB,
    SEE_PAGE,
    TORCHVISION,
    Address,
    RemoteFile,
    drive,
    listed,
    own_split_list,
    published_split,
    same,
    unverified,
)
from datasets.row import DatasetRow

SPLIT_FILES = (
    "The split_zhou_*.json files are linked in CoOp's DATASETS.md "
    "(github.com/KaiyangZhou/CoOp) and go into the dataset's directory."
)
VGG = "https://www.robots.ox.ac.uk/~vgg/data"
HUB = "https://huggingface.co/datasets"
SUN = "vision.princeton.edu/projects/2010/SUN"
UCF = "https://www.crcv.ucf.edu/data"
# The web archive's copies, nearest to 2022, of what Stanford served.
CARS = "https://web.archive.org/web/2022id_/http://ai.stanford.edu/~jkrause"

PHOTOGRAPHS = (
    DatasetRow(
        config="caltech101",
        name="Caltech101",
        directory="caltech-101",
        images="101_ObjectCategories",
        split_file="split_zhou_Caltech101.json",
        num_classes=100,  # without the background and the second set of faces
        counts=(4128, 1649, 2465),
        reader="readers.caltech101",
        group="few_shot",
        template="A photo of a {}.",
        source="Images: caltech-101.zip of data.caltech.edu/records/mzrjq-6wc02, then unpack the "
        f"101_ObjectCategories.tar.gz in it. {SPLIT_FILES}",
        page="https://data.caltech.edu/records/mzrjq-6wc02",
        licence="CC BY 4.0",
        files=(
            RemoteFile("caltech-101.zip",
                       listed("https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip"),
                       same("101_ObjectCategories"), 137 * MB,
                       md5="3138e1922a9193bfa496528edbbc45d0",
                       nested="caltech-101/101_ObjectCategories.tar.gz"),
            published_split("Caltech101", "1hyarUivQE36mY6jSomru6Fjd-JzwcCzN"),
        ),
    ),
    DatasetRow(
        config="oxford_pets",
        name="OxfordPets",
        directory="oxford_pets",
        images="images",
        split_file="split_zhou_OxfordPets.json",
        num_classes=37,
        counts=(2944, 736, 3669),
        reader="readers.oxford_pets",
        group="few_shot",
        hand_made="a photo of a {}, a type of pet.",
        hint_first="a type of pet, a photo of a {}.",
        source="Images and lists: images.tar.gz and annotations.tar.gz of "
        f"www.robots.ox.ac.uk/~vgg/data/pets. {SPLIT_FILES}",
        page=f"{VGG}/pets/",
        licence="CC BY-SA 4.0",
        files=(
            RemoteFile("images.tar.gz", listed(f"{VGG}/pets/data/images.tar.gz"),
                       same("images"), 790 * MB, md5="5c4f3ee8e5d25df40f4fd59a7f44e54c"),
            published_split("OxfordPets", "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs"),
            RemoteFile("annotations.tar.gz", listed(f"{VGG}/pets/data/annotations.tar.gz"),
                       same("annotations"), 19 * MB, md5="95a8c909bbe2e81eed6a22bccdf3f68f",
                       optional=True),
        ),
    ),
    DatasetRow(
        config="stanford_cars",
        name="StanfordCars",
        directory="stanford_cars",
        images="",  # they lie in two directories, cars_train and cars_test
        split_file="split_zhou_StanfordCars.json",
        num_classes=196,
        counts=(6509, 1635, 8041),
        reader="readers.stanford_cars",
        group="few_shot",
        template="A photo of a {}, a type of car.",
        source="Images: the original site is gone; a copy must hold cars_train/00001.jpg and "
        f"cars_test/00001.jpg on. {SPLIT_FILES}",
        page="https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
        licence="for research purposes",
        files=(
            RemoteFile("cars_train.tgz", unverified(f"{CARS}/car196/cars_train.tgz"),
                       same("cars_train"), 1 * GB, md5="065e5b463ae28d29e77c1b4b166cfe61"),
            RemoteFile("cars_test.tgz", unverified(f"{CARS}/car196/cars_test.tgz"),
                       same("cars_test"), 1 * GB, md5="4ce7ebf6a94d07f1952d94dd34c4d501"),
            published_split("StanfordCars", "1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT"),
            RemoteFile("car_devkit.tgz", unverified(f"{CARS}/cars/car_devkit.tgz"),
                       same("devkit"), md5="c3b158d763b6e2245038c8ad08e45376", optional=True),
            own_split_list("cars_test_annos_withlabels.mat",
                           Address(f"{CARS}/car196/cars_test_annos_withlabels.mat")),
        ),
        by_hand="Its site is gone. Find a copy of cars_train.tgz and cars_test.tgz with the MD5 "
        "sums that DATASETS.md has, or of the same images under the same names, and unpack it to "
        "stanford_cars/cars_train and stanford_cars/cars_test below --root.",
    ),
    DatasetRow(
        config="oxford_flowers",
        name="OxfordFlowers",
        directory="oxford_flowers",
        images="jpg",
        split_file="split_zhou_OxfordFlowers.json",
        num_classes=102,
        counts=(4093, 1633, 2463),
        reader="readers.oxford_flowers",
        group="few_shot",
        hand_made="a photo of a {}, a type of flower.",
        hint_first="a type of flower, a photo of a {}.",
        source="Images: 102flowers.tgz of www.robots.ox.ac.uk/~vgg/data/flowers/102, which unpacks "
        f"to jpg/. {SPLIT_FILES}",
        page=f"{VGG}/flowers/102/",
        licence=SEE_PAGE,
        files=(
            RemoteFile("102flowers.tgz", listed(f"{VGG}/flowers/102/102flowers.tgz"),
                       same("jpg"), 345 * MB, md5="52808999861908f626f3c1f4e79d11fa"),
            published_split("OxfordFlowers", "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT"),
            own_split_list("imagelabels.mat",
                           Address(f"{VGG}/flowers/102/imagelabels.mat", TORCHVISION),
                           md5="e0620be6f572b9609742df49c70aed4d"),
            own_split_list("cat_to_name.json", drive("1AkcxCXeK_RCGCEC_GvmWxjcjaNhu-at0")),
        ),
    ),
    DatasetRow(
        config="food101",
        name="Food101",
        directory="food-101",
        images="images",
        split_file="split_zhou_Food101.json",
        num_classes=101,
        counts=(50500, 20200, 30300),
        reader="readers.class_folders",
        group="few_shot",
        template="A photo of a {}, a type of food.",
        hand_made="a photo of {}, a type of food.",
        hint_first="a type of food, a photo of {}.",
        source="Images: food-101.tar.gz of data.vision.ee.ethz.ch/cvl/datasets_extra/food-101, "
        f"which unpacks to food-101/. {SPLIT_FILES}",
        page="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        licence="see its page; the pictures are Foodspotting's",
        files=(
            RemoteFile("food-101.tar.gz",
                       listed("http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz"),
                       same("images", inside="food-101"), 5 * GB,
                       md5="85eeb15f3717b99a5da872d97d918f87"),
            published_split("Food101", "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl"),
        ),
    ),
    DatasetRow(
        config="fgvc_aircraft",
        name="FGVCAircraft",
        directory="fgvc_aircraft",
        images="images",
        split_file=None,  # its own lists are the split that everybody uses
        num_classes=100,
        counts=(3334, 3333, 3333),
        reader="readers.fgvc_aircraft",
        group="few_shot",
        hand_made="a photo of a {}, a type of aircraft.",
        hint_first="a type of aircraft, a photo of a {}.",
        source="Images and lists: the data/ of fgvc-aircraft-2013b.tar.gz of "
        "www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft, renamed fgvc_aircraft/.",
        page=f"{VGG}/fgvc-aircraft/",
        licence="non-commercial research",
        files=(
            RemoteFile("fgvc-aircraft-2013b.tar.gz",
                       listed(f"{VGG}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz"),
                       same("images", "variants.txt", "images_variant_train.txt",
                             "images_variant_val.txt", "images_variant_test.txt",
                             inside="fgvc-aircraft-2013b/data"), 2800 * MB),
        ),
    ),
    DatasetRow(
        config="sun397",
        name="SUN397",
        directory="sun397",
        images="SUN397",
        split_file="split_zhou_SUN397.json",
        num_classes=397,
        counts=(15880, 3970, 19850),  # of the 108,754 images in its archive
        reader="readers.sun397",
        group="few_shot",
        source="Images: SUN397.tar.gz of vision.princeton.edu/projects/2010/SUN, which unpacks to "
        f"SUN397/. {SPLIT_FILES}",
        page=f"https://{SUN}/",
        licence=SEE_PAGE,
        files=(
            RemoteFile("SUN397.tar.gz", listed(f"http://{SUN}/SUN397.tar.gz"),
                       same("SUN397"), 37 * GB, md5="8ca2778205c41d23104230ba66911c7a"),
            published_split("SUN397", "1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq"),
            RemoteFile("Partitions.zip", unverified(f"https://{SUN}/download/Partitions.zip"),
                       same("Training_01.txt", "Testing_01.txt"), optional=True),
        ),
    ),
    DatasetRow(
        config="dtd",
        name="DescribableTextures",
        directory="dtd",
        images="images",
        split_file="split_zhou_DescribableTextures.json",
        num_classes=47,
        counts=(2820, 1128, 1692),
        reader="readers.class_folders",
        group="few_shot",
        hand_made="{} texture.",
        kgcoop="a photo of a {}, a type of texture.",
        hint_first="a texture of {}.",
        source="Images: dtd-r1.0.1.tar.gz of www.robots.ox.ac.uk/~vgg/data/dtd, which unpacks to "
        f"dtd/. {SPLIT_FILES}",
        page=f"{VGG}/dtd/",
        licence="for research purposes",
        files=(
            RemoteFile("dtd-r1.0.1.tar.gz", listed(f"{VGG}/dtd/download/dtd-r1.0.1.tar.gz"),
                       same("images", inside="dtd"), 600 * MB,
                       md5="fff73e5086ae6bdbea199a49dfb8a4c1"),
            published_split("DescribableTextures", "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x"),
        ),
    ),
    DatasetRow(
        config="eurosat",
        name="EuroSAT",
        directory="eurosat",
        images="2750",
        split_file="split_zhou_EuroSAT.json",
        num_classes=10,
        counts=(13500, 5400, 8100),
        reader="readers.eurosat",
        group="few_shot",
        template="A top-down view of {} arranged in a pattern,",
        hand_made="a centered satellite photo of {}.",
        source="Images: EuroSAT_RGB.zip of zenodo.org/records/7711810, whose EuroSAT_RGB/ is to be "
        f"renamed 2750/. {SPLIT_FILES}",
        page="https://zenodo.org/records/7711810",
        licence="MIT",
        files=(
            RemoteFile("EuroSAT.zip",
                       listed(f"{HUB}/torchgeo/eurosat/resolve/"
                              "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip"),
                       same("2750"), 94 * MB, md5="c8fa014336c82ac7804f0398fcb19387"),
            # An alternative to the first, whose folder has another name.
            RemoteFile("EuroSAT_RGB.zip",
                       unverified("https://zenodo.org/records/7711810/files/EuroSAT_RGB.zip"),
                       (("EuroSAT_RGB", "2750"),)),
            published_split("EuroSAT", "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o"),
        ),
    ),
    DatasetRow(
        config="ucf101",
        name="UCF101",
        directory="ucf101",
        images="UCF-101-midframes",
        split_file="split_zhou_UCF101.json",
        num_classes=101,
        counts=(7639, 1898, 3783),
        reader="readers.ucf101",
        group="few_shot",
        hand_made="a photo of a person doing {}.",
        source="Images: UCF-101-midframes.zip, the middle frame of each video, is linked in CoOp's "
        f"DATASETS.md too. {SPLIT_FILES}",
        page=f"{UCF}/UCF101.php",
        licence=SEE_PAGE,
        files=(
            # The middle frame of each video; frames extracted otherwise are other images.
            RemoteFile("UCF-101-midframes.zip", (drive("10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O"),),
                       same("UCF-101-midframes")),
            published_split("UCF101", "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y"),
            RemoteFile("UCF101TrainTestSplits-RecognitionTask.zip",
                       listed(f"{UCF}/UCF101/UCF101TrainTestSplits-RecognitionTask.zip"),
                       same("ucfTrainTestlist"), optional=True),
        ),
    ),
)  # fmt: skip
