"""Rows of ImageNet and of the test sets that show its classes under a shift."""

from __future__ import annotations

from datasets.downloads import GB, MB, SEE_PAGE, Address, RemoteFile, drive, same, unverified
from datasets.row import DatasetRow, Figure

HUB = "https://huggingface.co/datasets"
HENDRYCKS = "https://people.eecs.berkeley.edu/~hendrycks"
# Zero-shot figures are those that the RAda paper (arXiv:2507.15480) lists: from its test-time
# training table, or, with the ensemble, from the one of full fine-tuning.
ENSEMBLE, ONE_TEMPLATE = "80 templates", "'a photo of a {}.'"

IMAGENET = (
    DatasetRow(
        config="imagenet",
        name="ImageNet",
        directory="imagenet",
        images="images",
        split_file=None,
        num_classes=1000,
        counts=(1281167, 0, 50000),  # its val is the test set: the test labels are not public
        reader="imagenet.imagenet",
        wnids="imagenet.all_wnids",
        group="few_shot",
        zero_shot={"ViT-B/16": Figure(68.3, ENSEMBLE)},
        source="Images: ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar of "
        "www.image-net.org/download (registration needed), sorted into a folder per wnid.",
        page="https://www.image-net.org/download",
        licence="non-commercial research and education",
        files=(
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
)  # fmt: skip

SHIFTS = (
    DatasetRow(
        config="imagenetv2",
        name="ImageNetV2",
        directory="imagenetv2",
        images="imagenetv2-matched-frequency-format-val",
        split_file=None,
        num_classes=1000,
        counts=(0, 0, 10000),
        reader="imagenet.imagenetv2",
        wnids="imagenet.all_wnids",
        group="shifts",
        trained_on="imagenet",
        zero_shot={"ViT-B/16": Figure(60.86, ONE_TEMPLATE)},
        source="Images: imagenetv2-matched-frequency.tar.gz of "
        "huggingface.co/datasets/vaishaal/ImageNetV2.",
        page=f"{HUB}/vaishaal/ImageNetV2",
        licence=SEE_PAGE,
        files=(
            RemoteFile("imagenetv2-matched-frequency.tar.gz",
                       unverified(f"{HUB}/vaishaal/ImageNetV2/resolve/main/"
                                  "imagenetv2-matched-frequency.tar.gz",
                                  "https://s3-us-west-2.amazonaws.com/imagenetv2public/"
                                  "imagenetv2-matched-frequency.tar.gz"),
                       same("imagenetv2-matched-frequency-format-val"), 1300 * MB),
        ),
    ),
    DatasetRow(
        config="imagenet_sketch",
        name="ImageNetSketch",
        directory="imagenet-sketch",
        images="images",
        split_file=None,
        num_classes=1000,
        counts=(0, 0, 50889),  # not 50 for every class
        reader="imagenet.imagenet_sketch",
        wnids="imagenet.all_wnids",
        group="shifts",
        trained_on="imagenet",
        zero_shot={"ViT-B/16": Figure(46.09, ONE_TEMPLATE)},
        source="Images: ImageNet-Sketch.zip, linked at github.com/HaohanWang/ImageNet-Sketch; its "
        "sketch/ is to be renamed images/.",
        page="https://github.com/HaohanWang/ImageNet-Sketch",
        licence=SEE_PAGE,
        files=(
            RemoteFile("ImageNet-Sketch.zip",
                       (Address(f"{HUB}/songweig/imagenet_sketch/resolve/main/data/"
                                "ImageNet-Sketch.zip"),
                        drive("1Mj0i5HBthqH1p_yeXzsg22gZduvgoNeA")),
                       (("sketch", "images"),)),
        ),
    ),
    DatasetRow(
        config="imagenet_a",
        name="ImageNetA",
        directory="imagenet-adversarial",
        images="imagenet-a",
        split_file=None,
        num_classes=200,
        counts=(0, 0, 7500),
        reader="imagenet.imagenet_subset",
        wnids="imagenet.folder_wnids",
        group="shifts",
        trained_on="imagenet",
        zero_shot={"ViT-B/16": Figure(47.87, ONE_TEMPLATE)},
        source="Images: imagenet-a.tar, linked at github.com/hendrycks/natural-adv-examples.",
        page="https://github.com/hendrycks/natural-adv-examples",
        licence=SEE_PAGE,
        files=(
            RemoteFile("imagenet-a.tar", unverified(f"{HENDRYCKS}/imagenet-a.tar"),
                       same("imagenet-a")),
        ),
    ),
    DatasetRow(
        config="imagenet_r",
        name="ImageNetR",
        directory="imagenet-rendition",
        images="imagenet-r",
        split_file=None,
        num_classes=200,
        counts=(0, 0, 30000),
        reader="imagenet.imagenet_subset",
        wnids="imagenet.folder_wnids",
        group="shifts",
        trained_on="imagenet",
        zero_shot={"ViT-B/16": Figure(73.98, ONE_TEMPLATE)},
        source="Images: imagenet-r.tar, linked at github.com/hendrycks/imagenet-r.",
        page="https://github.com/hendrycks/imagenet-r",
        licence=SEE_PAGE,
        files=(
            RemoteFile("imagenet-r.tar", unverified(f"{HENDRYCKS}/imagenet-r.tar"),
                       same("imagenet-r")),
        ),
    ),
    DatasetRow(
        config="objectnet",
        name="ObjectNet",
        directory="objectnet-1.0",
        images="images",
        split_file=None,
        num_classes=113,  # of its 313 those that ImageNet has too
        counts=(0, 0, 18574),
        reader="objectnet.objectnet",
        wnids="objectnet.objectnet_wnids",
        border=2,  # the red frame that marks its images as not to be trained on
        group="extra",
        trained_on="imagenet",
        zero_shot={"ViT-B/16": Figure(54.2, ENSEMBLE)},
        source="Images: objectnet-1.0.zip, linked at objectnet.dev; it unpacks to objectnet-1.0/, "
        "with images/ and mappings/.",
        page="https://objectnet.dev",
        licence="CC BY 4.0 with conditions: no parameter of a model may be tuned on it",
        by_hand="Accept the terms at https://objectnet.dev, download objectnet-1.0.zip and, with "
        "the password that is given there, unpack it below --root, to objectnet-1.0.",
    ),
)  # fmt: skip
