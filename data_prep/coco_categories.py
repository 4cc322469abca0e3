"""COCO's 80 categories: their official ids, the indices that masks and labels have, and the colors that RIB and AMN gave them.

An official id is one of 1 to 90, of which ten are unused. The value in a mask is the rank of the id among the 80, from 1 on;
the channel of a classifier is one less.
"""

import numpy as np

UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
CATEGORY_IDS = tuple(number for number in range(1, 91) if number not in UNUSED_IDS)
COCO_CLASSES = (
    "person",
    "bicycle",
    "car",
    "motorcycle",
    "airplane",
    "bus",
    "train",
    "truck",
    "boat",
    "traffic light",
    "fire hydrant",
    "stop sign",
    "parking meter",
    "bench",
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "elephant",
    "bear",
    "zebra",
    "giraffe",
    "backpack",
    "umbrella",
    "handbag",
    "tie",
    "suitcase",
    "frisbee",
    "skis",
    "snowboard",
    "sports ball",
    "kite",
    "baseball bat",
    "baseball glove",
    "skateboard",
    "surfboard",
    "tennis racket",
    "bottle",
    "wine glass",
    "cup",
    "fork",
    "knife",
    "spoon",
    "bowl",
    "banana",
    "apple",
    "sandwich",
    "orange",
    "broccoli",
    "carrot",
    "hot dog",
    "pizza",
    "donut",
    "cake",
    "chair",
    "couch",
    "potted plant",
    "bed",
    "dining table",
    "toilet",
    "tv",
    "laptop",
    "mouse",
    "remote",
    "keyboard",
    "cell phone",
    "microwave",
    "oven",
    "toaster",
    "sink",
    "refrigerator",
    "book",
    "clock",
    "vase",
    "scissors",
    "teddy bear",
    "hair drier",
    "toothbrush",
)
INDEX_OF_ID = {number: index for index, number in enumerate(CATEGORY_IDS, start=1)}  # official id to mask value 1..80

# Digits 0..4 are 0, 1/4, 1/2, 3/4 and 1 of full red, green and blue.
_RIB_COLOURS = (
    "000 002 004 010 012 014 020 021 022 030 031 032 033 034 041 100 101 102 104 110 112 114 120 121 124 130 131 132 "
    "140 143 200 201 202 203 210 214 220 221 222 223 230 232 233 240 241 242 244 300 301 304 310 314 320 321 322 323 "
    "324 330 331 332 333 334 340 341 342 343 344 400 402 411 412 413 414 420 421 422 423 424 431 432 433"
)


def rib_palette() -> np.ndarray:
    """Return the colors of the COCO pseudo-masks that RIB and AMN publish: uint8 (81, 3), RGB, background first.

    Only for comparing figures: masks of this project have VOC's palette, also with 80 classes.

    >>> rib_palette()[1].tolist()
    [0, 0, 127]
    """
    digits = np.array([[int(digit) for digit in color] for color in _RIB_COLOURS.split()])
    return (digits / 4 * 255).astype(np.uint8)
