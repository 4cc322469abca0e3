"""What the official data sets consist of: archives with sizes and checksums, lists, label tables.

Sizes and SHA-256 values of the archives are those with which their publishers' files have been downloaded for years (the data
set classes of torchvision and TensorFlow state the same). Counts and hashes of lists and labels were counted from the lists
of the official programs (IRN, RIB, AMN, DRS, L2G).
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Source:
    """One official file.

    Attributes:
        name: of the file.
        url: where it is downloaded from.
        page: the official page to visit when the address has moved.
        size: in bytes.
        sha256: 64 hexadecimal digits.
    """

    name: str
    url: str
    page: str
    size: int
    sha256: str


@dataclass(frozen=True)
class ListFacts:
    """What is known about one official list.

    Attributes:
        images: number of ids.
        sha256: of the sorted ids, each followed by a newline.
        labels: way of labeling ("xml", "masks") to the SHA-256 of the 0/1 matrix, rows in the order of the sorted ids.
    """

    images: int
    sha256: str
    labels: dict[str, str] = field(default_factory=dict)


VOC_PAGE = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
SBD_PAGE = "http://home.bharathh.info/pubs/codes/SBD/download.html"
COCO_PAGE = "https://cocodataset.org/#download"

VOC12_SOURCES = {
    "devkit": Source(
        "VOCtrainval_11-May-2012.tar",
        f"{VOC_PAGE}VOCtrainval_11-May-2012.tar",
        VOC_PAGE,
        1_999_639_040,
        "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
    ),
    "sbd": Source(
        "benchmark.tgz",
        "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
        SBD_PAGE,
        1_419_539_633,
        "6a5a2918d5c73ce032fdeba876574d150d9d04113ab87540a1304cbcc715be53",
    ),
}
COCO14_SOURCES = {
    "annotations": Source(
        "annotations_trainval2014.zip",
        "http://images.cocodataset.org/annotations/annotations_trainval2014.zip",
        COCO_PAGE,
        252_872_794,
        "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
    ),
    "train": Source(
        "train2014.zip",
        "http://images.cocodataset.org/zips/train2014.zip",
        COCO_PAGE,
        13_510_573_713,
        "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
    ),
    "val": Source(
        "val2014.zip",
        "http://images.cocodataset.org/zips/val2014.zip",
        COCO_PAGE,
        6_645_013_297,
        "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
    ),
}

VOC12_LISTS = {
    "train": ListFacts(
        1464,
        "aa623bd2c8ce4443a8aaae51c524c0eb165e8e44caf6aa9e3ad33d7b75a3ef20",
        {
            "xml": "a4dbd3124efbb5bda40a715875ced3aad629c8e3e3a628ead5d0d27ff5d92bf1",
            "masks": "f4f7e8cfa04e51cf030dc3346d0c8e46fd7e0a25d5957ab7989af0f8d479408a",
        },
    ),
    "val": ListFacts(
        1449,
        "cdc1326d12f69ce5153aa5da04a4d8783e146868d42d19f82f44e74b97ac907d",
        {
            "xml": "e935c08be302c7c7440a4cd6fbbf36d189c75a11c2bbd77469234d41383b0f40",
            "masks": "c9417f5d6533d380114bd31343153a4e0330dcdcccf3178eb0f3b438ec0bccf2",
        },
    ),
    "train_aug": ListFacts(
        10582,
        "d1326bd532648d73bc4b1bd275434eba81930982dc7401a65a8cecb26c028e24",
        {
            "xml": "1a551ddbe9f7cccba3651ee909a4025020f6c05a0f17da2fd94aa0b44a287ee1",
            "masks": "52a7f7dc9bf7c1041c466d19a6bfb00de2b2adfeb43a0e01516152010ea3bfc6",
        },
    ),
    "test": ListFacts(1456, "5e8fe0c14b2e6633fb2e3a0f5db65fb6b8f5217b574478bb21127a48fd33010f"),
}
# RIB and AMN use the full lists (`train`, `val`); the shorter ones omit the images without any annotation.
COCO14_LISTS = {
    "train": ListFacts(82783, "af8348f3562ef56b3f916befd81282597ee982284a30b771c73ea8980c7972d4"),
    "val": ListFacts(40504, "4009aef28c44ddfc56a7a5951b173694979c78504b2884a70e8480e801f3e444"),
    "train_annotated": ListFacts(82081, "b34ccca834ae8c71c9fd36a20c8a842e7ae13d64c0b58d899285330392362571"),
    "val_annotated": ListFacts(40137, "641910832fe4cd9319ca24e017ed60e8ea704c3283a8f12a559fbd3ebe5919f7"),
}


def list_sha256(ids: Iterable[str]) -> str:
    """Return the SHA-256 of the sorted ids, each followed by a newline: the identity of a list whatever its order.

    Args:
        ids: image ids.

    Explained in notebook 02, section "The folder".
    """
    return hashlib.sha256("".join(f"{image_id}\n" for image_id in sorted(ids)).encode()).hexdigest()


def matrix_sha256(labels: dict[str, np.ndarray], ids: Iterable[str]) -> str:
    """Return the SHA-256 of the bytes of the label matrix of a list, rows in the order of the sorted ids.

    Args:
        labels: image id to uint8 (C,), 0 or 1.
        ids: of the list.
    """
    return hashlib.sha256(b"".join(labels[image_id].tobytes() for image_id in sorted(ids))).hexdigest()
